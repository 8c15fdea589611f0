//! How families of models write calls: one row each. Nothing else knows one of them by name.

/// How a family writes calls, and how it is held to them: as JSON, `opener begin OBJECT (separator OBJECT)* end`.
#[derive(Debug, PartialEq, Eq)]
pub struct Format {
    /// vLLM's name of its parser.
    pub name: &'static str,
    /// How calls are written; the first is the family's own, all are read.
    pub ways: &'static [Way],
    /// Begins calls, anywhere in a text; where the tokenizer has a special token of that name, by that token.
    pub opener: &'static str,
    /// Further special tokens that have to be seen in calls.
    pub tokens: &'static [&'static str],
    /// Whether `begin`, or an object, at the beginning of the completion is a call without an opener.
    pub is_bare: bool,
    /// Between the opener and the first call.
    pub begin: &'static str,
    /// Between calls; none if each has its own opener.
    pub separator: Option<&'static str>,
    /// Behind the last call.
    pub end: &'static str,
    /// The key of an object's arguments.
    pub arguments: &'static str,
    /// What chat templates of such models contain, one of them at least.
    pub marks: &'static [&'static str],
}

/// How a single call is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// `{"name": NAME, "arguments": {…}}`. What must be a call is held to this.
    Json,
    /// `NAME[ARGS]{…}`, with `[CALL_ID]…` between in some.
    Named,
    /// `<function=NAME> <parameter=KEY> VALUE </parameter> </function>`.
    Xml,
    /// `NAME(KEY=VALUE, …)`.
    Python,
}

const MISTRAL: Format = Format {
    name: "mistral",
    ways: &[Way::Json, Way::Named],
    opener: "[TOOL_CALLS]",
    tokens: &["[CALL_ID]", "[ARGS]"],
    is_bare: false,
    begin: "[",
    separator: Some(","),
    end: "]",
    arguments: "arguments",
    marks: &["[TOOL_CALLS]"],
};

/// By how sure their marks are. The last one is for models that know none.
pub const FORMATS: &[Format] = &[
    Format {
        name: "qwen3_coder",
        ways: &[Way::Xml, Way::Json],
        opener: "<tool_call>",
        tokens: &[],
        is_bare: false,
        begin: "",
        separator: None,
        end: "</tool_call>",
        arguments: "arguments",
        marks: &["<function="],
    },
    Format {
        name: "pythonic",
        ways: &[Way::Python, Way::Json],
        opener: "<|python_start|>",
        tokens: &[],
        is_bare: true,
        begin: "[",
        separator: Some(","),
        end: "]",
        arguments: "arguments",
        marks: &["[func_name1("],
    },
    Format { ways: &[Way::Named, Way::Json], marks: &["[ARGS]"], ..MISTRAL },
    MISTRAL,
    Format {
        name: "llama3_json",
        ways: &[Way::Json],
        opener: "<|python_tag|>",
        tokens: &[],
        is_bare: true,
        begin: "",
        separator: Some(";"),
        end: "",
        arguments: "parameters",
        marks: &["<|python_tag|>", "\"parameters\": "],
    },
    Format {
        name: "hermes",
        ways: &[Way::Json],
        opener: "<tool_call>",
        tokens: &[],
        is_bare: false,
        begin: "",
        separator: None,
        end: "</tool_call>",
        arguments: "arguments",
        marks: &["<tool_call>"],
    },
];

impl Format {
    /// The format of a name; of two, the older.
    pub fn named(name: &str) -> Option<&'static Format> {
        FORMATS.iter().rfind(|format| format.name == name)
    }

    /// The format of a chat template: that whose marks it has.
    pub fn of_template(source: &str) -> &'static Format {
        let is_of = |format: &&Format| format.marks.iter().any(|mark| source.contains(mark));
        FORMATS.iter().find(is_of).unwrap_or(&FORMATS[FORMATS.len() - 1])
    }

    /// Whether its own way is the one that calls can be held to, so that a model that may call is.
    pub fn is_held(&self) -> bool {
        self.ways[0] == Way::Json
    }

    /// What a completion begins with that calls without an opener.
    pub fn bare(&self) -> Option<&'static str> {
        self.is_bare.then_some(if self.begin.is_empty() { "{" } else { self.begin })
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
        let coder = "{{- '<tool_call>\\n<function=' + tool_call.name + '>' }}";
        let llama4 = "[func_name1(params_name1=params_value1), func_name2(params)]";
        for (source, name) in [
            (hermes, "hermes"),
            (llama, "llama3_json"),
            (mistral, "mistral"),
            (coder, "qwen3_coder"),
            (llama4, "pythonic"),
            ("", "hermes"),
        ] {
            assert_eq!(Format::of_template(source).name, name);
            assert_eq!(Format::named(name), Some(Format::of_template(source)));
        }
        let newer = Format::of_template("[TOOL_CALLS]{{ name }}[ARGS]");
        assert_eq!((newer.name, newer.ways[0]), ("mistral", Way::Named));
        assert_eq!(Format::named("no such"), None);
    }
}
