//! Calls as XML: `<function=NAME> <parameter=KEY> VALUE </parameter> … </function>`.

use serde_json::Value;

use super::scan::{Found, blanks, mark};

const PARAMETER: &str = "<parameter=";
const PARAMETER_END: &str = "</parameter>";
const FUNCTION_END: &str = "</function>";

/// Reads the beginning of a call: its name.
pub fn call(text: &str) -> Found<String> {
    tag(text, "<function=")
}

/// Reads a call's next argument, as its key and JSON; none at the call's end.
pub fn argument(text: &str, parameters: &Value) -> Found<Option<(String, String)>> {
    match mark(text, FUNCTION_END) {
        Found::Yes((), taken) => return Found::Yes(None, taken),
        Found::Open => return Found::Open,
        Found::No => {}
    }
    match tag(text, PARAMETER) {
        Found::Yes(key, start) => match text[start..].find(PARAMETER_END) {
            Some(length) => {
                let value = json(&text[start..start + length], &parameters["properties"][&key]);
                Found::Yes(Some((key, value)), start + length + PARAMETER_END.len())
            }
            None => Found::Open,
        },
        Found::Open => Found::Open,
        Found::No => Found::No,
    }
}

/// `begin` and a name up to `>`.
fn tag(text: &str, begin: &str) -> Found<String> {
    let start = match mark(text, begin) {
        Found::Yes((), start) => start,
        Found::Open => return Found::Open,
        Found::No => return Found::No,
    };
    match text[start..].find(['>', '<', '\n']) {
        Some(length) if text[start + length..].starts_with('>') && length > 0 => {
            Found::Yes(text[start..start + length].trim().to_owned(), start + length + 1)
        }
        Some(_) => Found::No,
        None => Found::Open,
    }
}

/// A value as JSON. Text is written as it is, so its schema says what it is: what that doesn't allow is text.
fn json(written: &str, schema: &Value) -> String {
    let text = written.strip_prefix('\n').unwrap_or(written);
    let text = text.strip_suffix('\n').unwrap_or(text);
    let parsed = match &text[blanks(text)..].trim_end() {
        // As Python has them.
        &"True" => Ok(Value::Bool(true)),
        &"False" => Ok(Value::Bool(false)),
        &"None" => Ok(Value::Null),
        other => serde_json::from_str(other),
    };
    let is_text = |kind: &str| kind == "string";
    let allows = |value: &Value| match &schema["type"] {
        Value::String(kind) => !is_text(kind),
        Value::Array(kinds) => kinds.iter().any(|kind| kind.as_str().is_some_and(|kind| is(value, kind))),
        // Without any schema it is text; one by other words may allow anything.
        _ => schema.is_object() && !value.is_string(),
    };
    parsed.ok().filter(allows).unwrap_or_else(|| text.into()).to_string()
}

fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_of_the_types_that_their_schemas_say() {
        for (written, schema, expected) in [
            ("\n5\n", json!({"type": "integer"}), "5"),
            ("\n5\n", json!({"type": "string"}), "\"5\""),
            ("\n5\n", Value::Null, "\"5\""),
            ("true", json!({"type": ["boolean", "null"]}), "true"),
            ("5", json!({"type": ["string", "null"]}), "\"5\""),
            ("None", json!({"type": ["string", "null"]}), "null"),
            ("\n[1, {\"a\": 2}]\n", json!({"type": "array"}), "[1,{\"a\":2}]"),
            ("[1, ", json!({"type": "array"}), "\"[1, \""),
            ("2", json!({"anyOf": [{"type": "integer"}]}), "2"),
            ("\n  a\n\n b\n", json!({"type": "string"}), "\"  a\\n\\n b\""),
        ] {
            assert_eq!(super::json(written, &schema), expected, "{written:?} as {schema}");
        }
    }
}
