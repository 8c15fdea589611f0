//! What a completion must conform to: OpenAI's `response_format`, and vLLM's `guided_*` and `structured_outputs`.

use engine::Grammar;
use serde_json::{Value, json};

use super::common::within;
use super::errors::{ApiError, kind_of};
use super::fields::{Checked, Field, Kind, field};

const STRUCTURED: &[Field] = &[
    field("json", Kind::Custom(|| json!({})), "A JSON Schema"),
    field("regex", Kind::Text, "A regular expression"),
    field("grammar", Kind::Text, "A Lark grammar"),
    field("choice", Kind::Custom(|| json!({})), "One of these texts"),
    field("json_object", Kind::Bool, "Any JSON object"),
];
const FORMAT: &[Field] = &[
    field("type", Kind::Text, "text, json_object or json_schema"),
    field("json_schema", Kind::Object, "The schema"),
];
const SCHEMA: &[Field] = &[
    field("name", Kind::Text, "Its name"),
    field("description", Kind::Text, "What it is for"),
    field("schema", Kind::Custom(|| json!({})), "The JSON Schema"),
    field("strict", Kind::Bool, "Has no effect: output always conforms"),
];

/// What a request asks its completions to be.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// The parameter that asks.
    pub param: &'static str,
    /// What it asks for.
    pub grammar: Grammar,
}

/// The grammar that a request asks for.
///
/// # Errors
/// 400 that names the parameter; also if two ask for one.
pub fn read(fields: &Checked) -> Result<Option<Asked>, ApiError> {
    let mut found: Option<Asked> = None;
    let mut add = |name: &'static str, grammar: Option<Grammar>| match (&found, grammar) {
        (_, None) => Ok(()),
        (None, Some(grammar)) => {
            found = Some(Asked { param: name, grammar });
            Ok(())
        }
        (Some(Asked { param: first, .. }), Some(_)) => {
            let message = format!("{first} and {name} both say what the completion is; give one of them");
            Err(ApiError::param(name, message).code("invalid_value"))
        }
    };
    if let Some(format) = fields.get("response_format") {
        add("response_format", response_format(format)?)?;
    }
    for (name, key) in [
        ("guided_json", "json"),
        ("guided_regex", "regex"),
        ("guided_grammar", "grammar"),
        ("guided_choice", "choice"),
    ] {
        if let Some(value) = fields.get(name) {
            add(name, one(name, key, value)?)?;
        }
    }
    if let Some(options) = fields.get("structured_outputs") {
        let name = "structured_outputs";
        let options = Checked::new(options.clone(), &[STRUCTURED], &[]).map_err(|e| within(name, e))?;
        for field in STRUCTURED {
            if let Some(value) = options.get(field.name) {
                add(name, one(&format!("{name}.{}", field.name), field.name, value)?)?;
            }
        }
    }
    Ok(found)
}

fn response_format(format: &Value) -> Result<Option<Grammar>, ApiError> {
    let name = "response_format";
    if !format.is_object() {
        return Err(ApiError::wrong_type(name, "an object", format));
    }
    let format = Checked::new(format.clone(), &[FORMAT], &["type"]).map_err(|e| within(name, e))?;
    match format.text("type") {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(any_object())),
        Some("json_schema") => {
            let schema = format.get("json_schema").cloned().unwrap_or(Value::Null);
            let at = "response_format.json_schema";
            if schema.is_null() {
                return Err(ApiError::param(at, format!("missing required parameter {at:?}")));
            }
            let schema = Checked::new(schema, &[SCHEMA], &["schema"]).map_err(|e| within(at, e))?;
            let schema = schema.get("schema").cloned().unwrap_or_default();
            json_schema("response_format.json_schema.schema", &schema).map(Some)
        }
        other => {
            let message = format!(
                "response_format.type is {:?}; it must be text, json_object or json_schema",
                other.unwrap_or_default()
            );
            Err(ApiError::param("response_format.type", message).code("invalid_value"))
        }
    }
}

fn any_object() -> Grammar {
    Grammar::JsonSchema(json!({"type": "object"}).to_string())
}

fn json_schema(at: &str, schema: &Value) -> Result<Grammar, ApiError> {
    match schema {
        Value::Object(_) | Value::Bool(_) => Ok(Grammar::JsonSchema(schema.to_string())),
        other => Err(ApiError::wrong_type(at, "a JSON Schema", other)),
    }
}

fn one(at: &str, key: &str, value: &Value) -> Result<Option<Grammar>, ApiError> {
    let text =
        || value.as_str().map(str::to_owned).ok_or_else(|| ApiError::wrong_type(at, "a string", value));
    Ok(Some(match key {
        "json" => match value.as_str() {
            None => json_schema(at, value)?,
            Some(text) => {
                let no_json = |error| ApiError::param(at, format!("{at} is no JSON: {error}"));
                json_schema(at, &serde_json::from_str(text).map_err(no_json)?)?
            }
        },
        "regex" => Grammar::Regex(text()?),
        "grammar" => Grammar::Lark(text()?),
        "choice" => Grammar::Regex(alternatives(at, value)?),
        _ if value == &json!(true) => any_object(),
        _ => return Ok(None),
    }))
}

/// A regular expression that matches exactly the given texts.
fn alternatives(at: &str, value: &Value) -> Result<String, ApiError> {
    let expected = "a list of strings, at least one";
    let texts = value.as_array().filter(|texts| !texts.is_empty());
    let texts = texts.ok_or_else(|| ApiError::wrong_type(at, expected, value))?;
    let mut regex = String::from("(");
    for (i, text) in texts.iter().enumerate() {
        let Some(text) = text.as_str() else {
            return Err(ApiError::param(at, format!("{at}[{i}] must be a string, but is {}", kind_of(text))));
        };
        if i > 0 {
            regex.push('|');
        }
        for char in text.chars() {
            // An escaped angle bracket is no bracket but an edge of a word.
            if char.is_ascii_punctuation() && !matches!(char, '<' | '>') {
                regex.push('\\');
            }
            regex.push(char);
        }
    }
    regex.push(')');
    Ok(regex)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::common::SAMPLING;

    fn grammar(body: Value) -> Result<Option<Grammar>, ApiError> {
        Ok(read(&Checked::new(body, &[SAMPLING], &[])?)?.map(|asked| asked.grammar))
    }

    #[test]
    fn each_way_to_say_it_becomes_a_grammar() {
        let schema = json!({"type": "object", "properties": {"b": {}, "a": {}}});
        let json_schema = Some(Grammar::JsonSchema(schema.to_string()));
        let format =
            json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": true}});
        assert_eq!(grammar(json!({"response_format": format})).unwrap(), json_schema);
        assert_eq!(grammar(json!({"guided_json": schema.to_string()})).unwrap(), json_schema);
        assert_eq!(grammar(json!({"structured_outputs": {"json": schema}})).unwrap(), json_schema);
        assert_eq!(grammar(json!({"response_format": {"type": "text"}})).unwrap(), None);
        let choice = grammar(json!({"guided_choice": ["a.b", "c"]})).unwrap();
        assert_eq!(choice, Some(Grammar::Regex("(a\\.b|c)".into())));
    }

    #[test]
    fn two_grammars_or_a_wrong_one_are_refused_by_name() {
        for (body, param) in [
            (json!({"guided_regex": "a", "guided_grammar": "b"}), "guided_grammar"),
            (json!({"response_format": {"type": "yaml"}}), "response_format.type"),
            (json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema"),
            (json!({"response_format": {"type": "text", "x": 1}}), "response_format.x"),
            (json!({"guided_choice": []}), "guided_choice"),
            (json!({"guided_json": "{"}), "guided_json"),
            (json!({"structured_outputs": {"json": 3}}), "structured_outputs.json"),
        ] {
            assert_eq!(grammar(body).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
