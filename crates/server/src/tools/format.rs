//! How families of models write calls: one row each. Nothing else knows one of them by name.

/// A way to write calls: `opener begin OBJECT (separator OBJECT)* end`.
#[derive(Debug, PartialEq, Eq)]
pub struct Format {
    /// vLLM's name of its parser.
    pub name: &'static str,
    /// Begins calls, anywhere in a text; where the tokenizer has a special token of that name, by that token.
    pub opener: &'static str,
    /// Whether an object at the beginning of the completion is a call without an opener.
    pub is_bare: bool,
    /// Between the opener and the first object.
    pub begin: &'static str,
    /// Between objects; none if each has its own opener.
    pub separator: Option<&'static str>,
    /// Behind the last object.
    pub end: &'static str,
    /// The key of a call's arguments.
    pub arguments: &'static str,
    /// What chat templates of such models contain, one of them at least.
    pub marks: &'static [&'static str],
}

/// The first one is for models that know none.
pub const FORMATS: &[Format] = &[
    Format {
        name: "hermes",
        opener: "<tool_call>",
        is_bare: false,
        begin: "",
        separator: None,
        end: "</tool_call>",
        arguments: "arguments",
        marks: &["<tool_call>"],
    },
    Format {
        name: "mistral",
        opener: "[TOOL_CALLS]",
        is_bare: false,
        begin: "[",
        separator: Some(","),
        end: "]",
        arguments: "arguments",
        marks: &["[TOOL_CALLS]"],
    },
    Format {
        name: "llama3_json",
        opener: "<|python_tag|>",
        is_bare: true,
        begin: "",
        separator: Some(";"),
        end: "",
        arguments: "parameters",
        marks: &["<|python_tag|>", "\"parameters\": "],
    },
];

impl Format {
    /// The format of a name.
    pub fn named(name: &str) -> Option<&'static Format> {
        FORMATS.iter().find(|format| format.name == name)
    }

    /// The format of a chat template: that whose marks it has.
    pub fn of_template(source: &str) -> &'static Format {
        let is_of = |format: &&Format| format.marks.iter().any(|mark| source.contains(mark));
        FORMATS.iter().find(is_of).unwrap_or(&FORMATS[0])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_known_by_its_marks() {
        let hermes = r#"{{- '\n<tool_call>\n{"name": "' }}{{- tool_call.arguments | tojson }}"#;
        let llama = r#"{{- '{"name": "' + tool_call.name + '", ' }}{{- '"parameters": ' }}"#;
        let mistral = r#"{{ "[TOOL_CALLS] [" + tool_calls + "]" }}"#;
        for (source, name) in
            [(hermes, "hermes"), (llama, "llama3_json"), (mistral, "mistral"), ("", "hermes")]
        {
            assert_eq!(Format::of_template(source).name, name);
            assert_eq!(Format::named(name), Some(Format::of_template(source)));
        }
        assert_eq!(Format::named("no such"), None);
    }
}
