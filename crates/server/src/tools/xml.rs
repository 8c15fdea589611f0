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
    let is_other = |value: &Value| !value.is_string() && allows(schema, value);
    parsed.ok().filter(is_other).unwrap_or_else(|| text.into()).to_string()
}

/// Whether a schema allows a value that is no text. Without a schema it is text; one by other words may allow anything.
fn allows(schema: &Value, value: &Value) -> bool {
    let says = |(word, what): (&String, &Value)| match (word.as_str(), what) {
        ("type", Value::String(kind)) => is(value, kind),
        ("type", Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).any(|kind| is(value, kind)),
        ("enum", Value::Array(values)) => values.contains(value),
        ("const", only) => only == value,
        ("anyOf" | "oneOf", Value::Array(schemas)) => schemas.iter().any(|schema| allows(schema, value)),
        ("allOf", Value::Array(schemas)) => schemas.iter().all(|schema| allows(schema, value)),
        _ => true,
    };
    schema.as_object().is_some_and(|schema| schema.iter().all(says))
}

/// Whether a value is of a type; it may be of any that JSON Schema doesn't know.
fn is(value: &Value, kind: &str) -> bool {
    match kind {
        "string" => value.is_string(),
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        // `2.0` too.
        "integer" => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        "number" => value.is_number(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => true,
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
            ("2", json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), "\"2\""),
            ("2", json!({"oneOf": [{"type": "string"}, {"type": "integer"}]}), "2"),
            ("null", json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), "null"),
            ("2", json!({"allOf": [{"type": "string"}, {"description": "a text"}]}), "\"2\""),
            ("1", json!({"enum": ["1", "2"]}), "\"1\""),
            ("1", json!({"enum": ["a", 1]}), "1"),
            ("1", json!({"const": "1"}), "\"1\""),
            ("2.0", json!({"type": "integer"}), "2.0"),
            ("[1]", json!({"type": "integer"}), "\"[1]\""),
            ("2.5", json!({"type": "integer"}), "\"2.5\""),
            ("2", json!({"type": "int"}), "2"),
            ("2", json!({"$ref": "#/$defs/a"}), "2"),
            ("\n  a\n\n b\n", json!({"type": "string"}), "\"  a\\n\\n b\""),
        ] {
            assert_eq!(super::json(written, &schema), expected, "{written:?} as {schema}");
        }
    }
}
