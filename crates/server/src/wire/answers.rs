//! What answers look like, for `/openapi.json`: shapes in short, and the JSON Schemas that they stand for. Tests hold answers
//! to them.
//!
//! ```text
//! "integer|null"      of one of these types; null here is anything
//! [X]                 a list of X
//! {"a": X, "b?": Y}   an object that has a, and perhaps b, and nothing else
//! {"*": X}            an object with X by any names
//! {"or null": X}      X or null
//! ```

use std::time::Instant;

use engine::serving::LoadReport;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::metrics::RankState;
use crate::rates::RecentRates;
use crate::timeline::Timeline;

/// The JSON Schema of a shape.
pub fn schema(shape: &Value) -> Value {
    match shape {
        Value::String(types) => json!({"type": types.split('|').collect::<Vec<_>>()}),
        Value::Array(items) => json!({"type": "array", "items": items.first().map_or(json!({}), schema)}),
        Value::Object(fields) => match (fields.get("or null"), fields.get("*")) {
            (Some(shape), _) => json!({"anyOf": [schema(shape), {"type": "null"}]}),
            (_, Some(shape)) => json!({"type": "object", "additionalProperties": schema(shape)}),
            _ => {
                let required: Vec<&String> = fields.keys().filter(|name| !name.ends_with('?')).collect();
                let property =
                    |(name, shape): (&String, _)| (name.trim_end_matches('?').to_owned(), schema(shape));
                let properties: Map<String, Value> = fields.iter().map(property).collect();
                json!({"type": "object", "required": required, "properties": properties, "additionalProperties": false})
            }
        },
        _ => json!({}),
    }
}

/// The shape of what a type writes, by one of its values. What is null in it may be a number or a text too.
fn like(value: impl Serialize) -> Value {
    fn of(value: &Value) -> Value {
        match value {
            Value::Null => "number|string|null".into(),
            Value::Bool(_) => "boolean".into(),
            Value::Number(_) => "number".into(),
            Value::String(_) => "string".into(),
            Value::Array(items) => items.first().map(of).into_iter().collect(),
            Value::Object(fields) => fields.iter().map(|(name, value)| (name.clone(), of(value))).collect(),
        }
    }
    of(&serde_json::to_value(value).unwrap_or_default())
}

fn or_null(shape: Value) -> Value {
    json!({"or null": shape})
}

fn usage() -> Value {
    like(super::common::Usage::default().to_json())
}

/// An answer with choices; chunks may lack usage.
fn with(choice: Value, usage: (&str, Value), more: Value) -> Value {
    let mut shape = json!({"id": "string", "object": "string", "created": "integer", "model": "string", "choices": [choice]});
    shape[usage.0] = usage.1;
    shape
        .as_object_mut()
        .into_iter()
        .for_each(|fields| fields.extend(more.as_object().cloned().unwrap_or_default()));
    shape
}

fn prompt_logprobs() -> Value {
    let entry = json!({"logprob": "number", "rank": "integer", "decoded_token": "string"});
    json!([or_null(json!({"*": entry}))])
}

fn chat_logprobs() -> Value {
    let token = json!({"token": "string", "logprob": "number", "bytes": or_null(json!(["integer"]))});
    let mut entry = token.clone();
    entry["top_logprobs"] = json!([token]);
    or_null(json!({"content": [entry], "refusal": "null"}))
}

/// Of `/v1/chat/completions`.
pub fn chat() -> Value {
    let call =
        json!({"id": "string", "type": "string", "function": {"name": "string", "arguments": "string"}});
    let choice = json!({
        "index": "integer",
        "message": {"role": "string", "content": "string|null", "refusal": "null", "tool_calls?": [call]},
        "logprobs": chat_logprobs(), "finish_reason": "string|null", "stop_reason": "string|integer|null",
        "token_ids?": ["integer"],
    });
    let more = json!({"prompt_logprobs?": prompt_logprobs(), "prompt_token_ids?": ["integer"]});
    with(choice, ("usage", usage()), more)
}

/// Of its streams.
pub fn chat_chunk() -> Value {
    let function = json!({"name?": "string", "arguments": "string"});
    let call = json!({"index": "integer", "id?": "string", "type?": "string", "function": function});
    let choice = json!({
        "index": "integer", "delta": {"role?": "string", "content?": "string", "tool_calls?": [call]},
        "logprobs": chat_logprobs(), "finish_reason": "string|null", "stop_reason?": "string|integer|null",
        "token_ids?": ["integer"],
    });
    with(choice, ("usage?", or_null(usage())), json!({"prompt_token_ids?": ["integer"]}))
}

fn completion_choice() -> Value {
    let logprobs = json!({
        "tokens": ["string"], "token_logprobs": ["number|null"], "top_logprobs": [or_null(json!({"*": "number"}))],
        "text_offset": ["integer"],
    });
    json!({
        "index": "integer", "text": "string", "logprobs": or_null(logprobs), "finish_reason": "string|null",
        "stop_reason": "string|integer|null", "prompt_logprobs?": prompt_logprobs(), "token_ids?": ["integer"],
        "prompt_token_ids?": ["integer"],
    })
}

/// Of `/v1/completions`.
pub fn completion() -> Value {
    with(completion_choice(), ("usage", usage()), json!({}))
}

/// Of its streams.
pub fn completion_chunk() -> Value {
    with(completion_choice(), ("usage?", or_null(usage())), json!({}))
}

/// Of `/v1/models/{id}`.
pub fn model() -> Value {
    json!({
        "id": "string", "object": "string", "created": "integer", "owned_by": "string", "root": "string",
        "parent": "null", "max_model_len": "integer",
    })
}

/// Of `/v1/models`.
pub fn models() -> Value {
    json!({"object": "string", "data": [model()]})
}

/// Of `/tokenize`.
pub fn tokenize() -> Value {
    json!({
        "count": "integer", "max_model_len": "integer", "tokens": ["integer"],
        "token_strs": or_null(json!(["string|null"])),
    })
}

/// Of `/detokenize`.
pub fn detokenize() -> Value {
    json!({"prompt": "string"})
}

/// Of `/health` and `/ready`.
pub fn health() -> Value {
    json!({"status": "string"})
}

/// Of `/version`.
pub fn version() -> Value {
    json!({"version": "string"})
}

/// Of `/status`.
pub fn status() -> Value {
    let now = Instant::now();
    let parallel =
        json!({"tp": "integer", "pp": "integer", "dp": "integer", "ep": "integer", "sp": "boolean"});
    let engine = json!({
        "max_model_len": "integer", "vocab_size": "integer", "max_num_seqs": "integer", "kv_cache_tokens": "integer",
        "kv_cache_bytes": "integer", "dtype": "string", "quantization": "string|null", "parallel": parallel,
        "reduction": "string", "load_s": "number",
    });
    json!({
        "model": "string", "version": "string", "state": "string", "failure": "string|null", "uptime_s": "number",
        "loading": or_null(json!({"done_bytes": "integer", "total_bytes": "integer"})), "engine": or_null(engine),
        "load": like(LoadReport::default()), "queued": "integer", "rates": like(RecentRates::default()),
        "ranks": [like(RankState::default())], "requests": [like(Timeline::new(now, 0).entry("", now, None))],
    })
}

/// Anything.
pub fn any() -> Value {
    json!({"*": null})
}
