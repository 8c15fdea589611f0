//! The messages of a conversation: checked, and as templates see them.

use serde_json::{Map, Value, json};

use super::errors::{ApiError, kind_of};
use super::fields::shortened;

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "function"];
/// What a message may have. Those in the second list are what our answers and other servers' carry: fields that clients send
/// back, that no prompt shows.
const SHOWN: [&str; 7] =
    ["role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning"];
const NOT_SHOWN: [&str; 2] = ["annotations", "refusal"];

/// The JSON Schema of the list.
pub fn schema() -> Value {
    let part = json!({
        "type": "object", "required": ["type", "text"], "additionalProperties": false,
        "properties": {
            "type": {"enum": ["text"]}, "text": {"type": "string"},
            "cache_control": {"description": "Has no effect: all prompts share the cache"},
        },
    });
    json!({
        "type": "array", "minItems": 1,
        "items": {
            "type": "object", "required": ["role"],
            "properties": {
                "role": {"enum": ROLES},
                "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": part}, {"type": "null"}]},
                "name": {"type": ["string", "null"]},
                "tool_calls": {"type": ["array", "null"], "items": {"type": "object"}},
                "tool_call_id": {"type": ["string", "null"]},
                "reasoning_content": {"type": ["string", "null"]},
            },
        },
    })
}

/// Checks messages, and gives them as templates expect them: `content` a text, `developer` a system message, arguments of
/// calls as objects.
///
/// # Errors
/// 400 that names the message and the field.
pub fn read(value: Value) -> Result<Vec<Value>, ApiError> {
    let Value::Array(messages) = value else {
        return Err(ApiError::wrong_type("messages", "a list of messages", &value));
    };
    if messages.is_empty() {
        return Err(ApiError::param("messages", "messages is empty; give at least one").code("invalid_value"));
    }
    messages
        .into_iter()
        .enumerate()
        .map(|(i, message)| read_one(&format!("messages[{i}]"), message))
        .collect()
}

fn read_one(at: &str, message: Value) -> Result<Value, ApiError> {
    let Value::Object(fields) = message else {
        return Err(ApiError::wrong_type(at, "an object", &message));
    };
    let mut out = Map::new();
    let mut role = None;
    for (name, value) in fields {
        let place = format!("{at}.{}", shortened(&name));
        match (name.as_str(), value) {
            (_, Value::Null) => {}
            ("role", Value::String(text)) if ROLES.contains(&text.as_str()) => role = Some(text),
            ("role", Value::String(text)) => {
                let text = shortened(&text);
                let message = format!("{place} is {text:?}; it must be one of {}", ROLES.join(", "));
                return Err(ApiError::param(place, message).code("invalid_value"));
            }
            ("content", value) => {
                out.insert(name, content(&place, value)?.into());
            }
            ("tool_calls", value) => {
                let calls = calls(&place, value)?;
                // Templates that only ask whether there is a list would take this for a call.
                if !calls.is_empty() {
                    out.insert(name, calls.into());
                }
            }
            (name, Value::String(text)) if SHOWN.contains(&name) => {
                out.insert(name.into(), text.into());
            }
            (name, value) if SHOWN.contains(&name) => {
                return Err(ApiError::wrong_type(place, "a string", &value));
            }
            (name, _) if NOT_SHOWN.contains(&name) => {}
            (name, _) => return Err(unknown(at, name)),
        }
    }
    let Some(role) = role else {
        let param = format!("{at}.role");
        let message = format!("missing required parameter {param:?}");
        return Err(ApiError::param(param, message).code("missing_required_parameter"));
    };
    // An assistant that called tools said nothing; nobody else may.
    if role != "assistant" && !out.contains_key("content") {
        let param = format!("{at}.content");
        let message = format!("missing required parameter {param:?}");
        return Err(ApiError::param(param, message).code("missing_required_parameter"));
    }
    let role = if role == "developer" { "system" } else { &role };
    let mut message = Map::from_iter([("role".to_owned(), role.into())]);
    message.insert("content".into(), out.shift_remove("content").unwrap_or_else(|| "".into()));
    message.extend(out);
    Ok(message.into())
}

fn unknown(at: &str, name: &str) -> ApiError {
    let name = shortened(name);
    let message = format!("unknown field {name:?} in {at}: this server does not support it");
    ApiError::param(format!("{at}.{name}"), message).code("unknown_parameter")
}

/// # Errors
/// 400 that names the first field that is none of these.
fn known(at: &str, object: &Value, names: &[&str]) -> Result<(), ApiError> {
    let mut fields = object.as_object().into_iter().flatten().filter(|(_, value)| !value.is_null());
    let found = fields.find(|(name, _)| !names.contains(&name.as_str()));
    found.map_or(Ok(()), |(name, _)| Err(unknown(at, name)))
}

/// Text, or parts of text, one a line.
fn content(at: &str, value: Value) -> Result<String, ApiError> {
    let parts = match value {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        other => return Err(ApiError::wrong_type(at, "a string or a list of text parts", &other)),
    };
    let mut texts = Vec::with_capacity(parts.len());
    for (i, part) in parts.iter().enumerate() {
        let place = format!("{at}[{i}]");
        match (part.get("type").and_then(Value::as_str), part.get("text")) {
            (Some("text"), Some(Value::String(text))) => {
                known(&place, part, &["type", "text", "cache_control"])?;
                texts.push(text.as_str());
            }
            (Some("text"), _) => {
                let param = format!("{place}.text");
                let message = format!("{param} must be a string");
                return Err(ApiError::param(param, message).code("invalid_type"));
            }
            (Some(kind), _) => {
                let kind = shortened(kind);
                let message =
                    format!("{place} is of type {kind:?}; this model takes text only, nothing was fetched");
                return Err(ApiError::param(place, message).code("unsupported_content"));
            }
            (None, _) => {
                let message = format!("{place} must be an object with a type, but is {}", kind_of(part));
                return Err(ApiError::param(place, message).code("invalid_type"));
            }
        }
    }
    Ok(texts.join("\n"))
}

/// Calls that the assistant made before.
fn calls(at: &str, value: Value) -> Result<Vec<Value>, ApiError> {
    let Value::Array(mut calls) = value else {
        return Err(ApiError::wrong_type(at, "a list of calls", &value));
    };
    for (i, call) in calls.iter_mut().enumerate() {
        let place = format!("{at}[{i}].function");
        let Some(function) = call.get_mut("function").and_then(Value::as_object_mut) else {
            return Err(ApiError::param(&place, format!("{place} must be an object")).code("invalid_type"));
        };
        if !function.get("name").is_some_and(Value::is_string) {
            let param = format!("{place}.name");
            let message = format!("{param} must be a string");
            return Err(ApiError::param(param, message).code("invalid_type"));
        }
        let arguments = function.entry("arguments").or_insert(Value::Null);
        match arguments {
            // A function without parameters is called with none.
            Value::Null => *arguments = json!({}),
            Value::String(text) if text.is_empty() => *arguments = json!({}),
            Value::String(text) => {
                // Templates write arguments as JSON themselves. What is no JSON the model wrote so, and sees again.
                if let Ok(object @ Value::Object(_)) = serde_json::from_str(text) {
                    *arguments = object;
                }
            }
            Value::Object(_) => {}
            other => {
                let found = kind_of(other);
                let param = format!("{place}.arguments");
                let message = format!("{param} must be a string of JSON, but is {found}");
                return Err(ApiError::param(param, message).code("invalid_type"));
            }
        }
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_out_as_templates_want_them() {
        let messages = read(json!([
            {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b", "cache_control": {}}]},
            {"role": "assistant", "content": null, "annotations": [], "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "2"},
        ]));
        let messages = messages.unwrap();
        assert_eq!(messages[0], json!({"role": "system", "content": "a\nb"}));
        assert_eq!(messages[1]["content"], "");
        assert_eq!(messages[1]["tool_calls"][0]["function"]["arguments"], json!({"x": 1}));
        assert_eq!(messages[2]["tool_call_id"], "1");
    }

    #[test]
    fn calls_of_nothing_are_none_and_no_arguments_are_an_empty_object() {
        let messages = read(json!([{"role": "assistant", "content": "a", "tool_calls": []}])).unwrap();
        assert_eq!(messages, [json!({"role": "assistant", "content": "a"})]);
        for function in [
            json!({"name": "f"}),
            json!({"name": "f", "arguments": null}),
            json!({"name": "f", "arguments": ""}),
            json!({"name": "f", "arguments": "{}"}),
        ] {
            let messages = read(json!([{"role": "assistant", "tool_calls": [{"function": function}]}]));
            let function = &messages.unwrap()[0]["tool_calls"][0]["function"];
            assert_eq!(*function, json!({"name": "f", "arguments": {}}));
        }
    }

    #[test]
    fn what_is_no_message_is_named() {
        for (wrong, param) in [
            (json!([]), "messages"),
            (json!("hi"), "messages"),
            (json!([1]), "messages[0]"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"content": "a"}]), "messages[0].role"),
            (json!([{"role": "king", "content": "a"}]), "messages[0].role"),
            (json!([{"role": "user", "content": 1}]), "messages[0].content"),
            (json!([{"role": "user", "content": [1]}]), "messages[0].content[0]"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://x"}}]}]),
                "messages[0].content[0]",
            ),
            (json!([{"role": "user", "content": "a", "x": 1}]), "messages[0].x"),
            (
                json!([{"role": "user", "content": [{"type": "text", "text": "a", "language": "nl"}]}]),
                "messages[0].content[0].language",
            ),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0].function"),
        ] {
            assert_eq!(read(wrong).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
