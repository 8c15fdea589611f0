//! What is sent: a request of OpenAI's API.

use serde_json::{Map, Value, json};

use super::load::Prepared;
use super::prompt::{Content, Prompt};
use super::{EndpointType, ServeArgs};

/// The request for a prompt. What `--extra-body` says wins.
pub fn prepared(args: &ServeArgs, model: &str, prompt: &Prompt) -> Prepared {
    let mut body = Map::new();
    body.insert("model".into(), json!(model));
    let (key, content) = match (args.endpoint_type, &prompt.content) {
        (EndpointType::OpenaiChat, Content::Text(text)) => {
            ("messages", json!([{ "role": "user", "content": text }]))
        }
        (_, Content::Text(text)) => ("prompt", json!(text)),
        (_, Content::Ids(ids)) => ("prompt", json!(ids)),
    };
    body.insert(key.into(), content);
    body.insert("max_tokens".into(), json!(prompt.output_tokens));
    body.insert("temperature".into(), json!(args.temperature));
    body.insert("stream".into(), json!(true));
    body.insert("stream_options".into(), json!({ "include_usage": true }));
    if args.ignore_eos {
        body.insert("ignore_eos".into(), json!(true));
    }
    body.extend(args.extra_body.clone().unwrap_or_default().0);
    Prepared { body: Value::Object(body).to_string().into(), prompt_tokens: prompt.content.tokens() }
}
