//! Answers are as `/openapi.json` says.

use serde_json::{Value, json};

use super::client::{get, post};
use super::engine::{Harness, says_text};

/// What of a value is not as its schema says.
fn fault(schema: &Value, value: &Value, at: &str) -> Option<String> {
    if let Some(any) = schema["anyOf"].as_array() {
        let faults: Vec<_> = any.iter().map(|schema| fault(schema, value, at)).collect();
        return if faults.contains(&None) { None } else { faults.into_iter().flatten().next() };
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let allows = |types: &Value| types == kind || (types == "number" && kind == "integer");
    let types = &schema["type"];
    if !(types.is_null() || allows(types) || types.as_array().is_some_and(|types| types.iter().any(allows))) {
        return Some(format!("{at} is {value}, not {types}"));
    }
    for name in schema["required"].as_array().into_iter().flatten() {
        if value.get(name.as_str().unwrap()).is_none() {
            return Some(format!("{at} has no {name}"));
        }
    }
    for (name, field) in value.as_object().into_iter().flatten() {
        let schema = match (&schema["properties"][name], &schema["additionalProperties"]) {
            (Value::Null, Value::Bool(false)) => {
                return Some(format!("{at} has {name:?}, which nothing tells of"));
            }
            (Value::Null, more) => more,
            (schema, _) => schema,
        };
        if let Some(fault) = fault(schema, field, &format!("{at}.{name}")) {
            return Some(fault);
        }
    }
    let items = value.as_array().into_iter().flatten().enumerate();
    items.filter_map(|(i, item)| fault(&schema["items"], item, &format!("{at}[{i}]"))).next()
}

#[test]
fn every_answer_is_as_the_document_says() {
    let server = Harness::new(Default::default(), says_text);
    let document = get(server.address, "/openapi.json").json();
    let check = |method: &str, path: &str, answer: Value| {
        let schema =
            &document["paths"][path][method]["responses"]["200"]["content"]["application/json"]["schema"];
        assert_eq!(schema["additionalProperties"], false, "{path} says what there is, and that is all");
        assert_eq!(fault(schema, &answer, path), None, "{answer}");
    };
    let messages = json!([{"role": "user", "content": "a"}]);
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    for chat in [
        json!({"messages": messages, "tools": tools}),
        json!({"messages": messages, "logprobs": true, "top_logprobs": 2, "prompt_logprobs": 1, "n": 2}),
        json!({"messages": messages, "return_token_ids": true, "stop": "quiet"}),
    ] {
        check("post", "/v1/chat/completions", post(server.address, "/v1/chat/completions", &chat).json());
    }
    for completion in [
        json!({"prompt": ["a", "b"], "logprobs": 2, "echo": true, "n": 2}),
        json!({"prompt": "a", "prompt_logprobs": 1, "return_token_ids": true}),
    ] {
        check("post", "/v1/completions", post(server.address, "/v1/completions", &completion).json());
    }
    for text in [json!({"prompt": "a", "return_token_strs": true}), json!({"messages": messages})] {
        check("post", "/tokenize", post(server.address, "/tokenize", &text).json());
    }
    check("post", "/detokenize", post(server.address, "/detokenize", &json!({"tokens": [5]})).json());
    check("get", "/v1/models/{id}", get(server.address, "/v1/models/model").json());
    for path in ["/v1/models", "/status", "/health", "/ready", "/version"] {
        check("get", path, get(server.address, path).json());
    }
}

#[test]
fn every_chunk_of_a_stream_is_as_the_document_says() {
    let server = Harness::new(Default::default(), says_text);
    let schemas = get(server.address, "/openapi.json").json()["components"]["schemas"].take();
    let options = json!({"include_usage": true});
    for (path, schema, mut body) in [
        (
            "/v1/chat/completions",
            &schemas["ChatCompletionChunk"],
            json!({"messages": [{"role": "user", "content": "a"}], "logprobs": true}),
        ),
        ("/v1/completions", &schemas["CompletionChunk"], json!({"prompt": "a", "logprobs": 1, "echo": true})),
    ] {
        for ids in [false, true] {
            (body["stream"], body["stream_options"]) = (true.into(), options.clone());
            body["return_token_ids"] = ids.into();
            let text = post(server.address, path, &body).text();
            let chunks: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
            assert!(chunks.len() > 3 && chunks.last() == Some(&"[DONE]"), "{text}");
            for chunk in &chunks[..chunks.len() - 1] {
                assert_eq!(fault(schema, &serde_json::from_str(chunk).unwrap(), path), None, "{chunk}");
            }
        }
    }
}
