//! `/tokenize` and `/detokenize`, in vLLM's shapes.

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::app::{App, Shared};
use crate::session::check_vocabulary;
use crate::wire::chat::{CONVERSATION, ChatRequest};
use crate::wire::errors::{ApiError, json_response};
use crate::wire::fields::{Checked, Field, Kind, field};
use crate::{body, prompt};

/// The most ids of a request.
const IDS_MAX: usize = 1 << 20;

/// Parameters of `/tokenize`.
pub const TOKENIZE: &[&[Field]] = &[OF_TEXT, OF_BOTH, CONVERSATION];
const OF_TEXT: &[Field] = &[
    field("prompt", Kind::Text, "The text; or messages"),
    field("return_token_strs", Kind::Bool, "Whether tokens come as text too"),
];
const OF_BOTH: &[Field] = &[
    field("model", Kind::Text, "A name of the served model"),
    field("add_special_tokens", Kind::Bool, "Whether the tokenizer adds its own; by default to a prompt"),
];

/// Parameters of `/detokenize`.
pub const DETOKENIZE: &[&[Field]] = &[&[
    field("model", Kind::Text, "A name of the served model"),
    field("tokens", Kind::Ids(IDS_MAX), "Token ids"),
]];

/// Ids of a text or a conversation.
pub async fn tokenize(State(app): State<Shared>, request: Request) -> Result<Response, ApiError> {
    let max_model_len = app.requests.info()?.max_model_len;
    let take = move |app: &App, value: Value| {
        let fields = Checked::new(value, TOKENIZE, &[])?;
        app.model(fields.text("model"))?;
        let tokenizer = app.tokenizer("prompt")?;
        let has_strings = fields.flag("return_token_strs").unwrap_or(false);
        let ids = match (fields.text("prompt"), fields.get("messages")) {
            (Some(text), None) => {
                if let Some(field) = CONVERSATION.iter().find(|field| fields.get(field.name).is_some()) {
                    let message = format!("{} belongs to messages, but prompt was given", field.name);
                    return Err(ApiError::param(field.name, message));
                }
                let add_special = fields.flag("add_special_tokens").unwrap_or(true);
                prompt::encode(app, max_model_len, text, add_special, "prompt")?
            }
            (None, Some(_)) => chat_ids(app, max_model_len, fields)?,
            _ => {
                let message = "give either prompt or messages";
                return Err(ApiError::param("prompt", message).code("missing_required_parameter"));
            }
        };
        let strings =
            has_strings.then(|| ids.iter().map(|&id| tokenizer.id_to_token(id)).collect::<Vec<_>>());
        let answer = json!({
            "count": ids.len(), "max_model_len": max_model_len, "tokens": ids, "token_strs": strings,
        });
        Ok(json_response(StatusCode::OK, &answer))
    };
    body::json(&app, request, take).await
}

fn chat_ids(app: &App, max_model_len: usize, fields: Checked) -> Result<Vec<u32>, ApiError> {
    let request = ChatRequest::read(fields, &app.text.defaults)?;
    let tokenizer = app.tokenizer("messages")?;
    let text = prompt::render(tokenizer, app.dialect(), &request)?;
    prompt::encode(app, max_model_len, &text, request.common.add_special.unwrap_or(false), "messages")
}

/// The text of ids.
pub async fn detokenize(State(app): State<Shared>, request: Request) -> Result<Response, ApiError> {
    let info = app.requests.info()?;
    let take = move |app: &App, value: Value| {
        let fields = Checked::new(value, DETOKENIZE, &["tokens"])?;
        app.model(fields.text("model"))?;
        let ids = fields.ids("tokens").unwrap_or_default();
        check_vocabulary(&info, &ids, "tokens")?;
        let text = app.tokenizer("tokens")?.decode(&ids, false);
        let text = text.map_err(|error| ApiError::param("tokens", error.to_string()))?;
        Ok(json_response(StatusCode::OK, &json!({"prompt": text})))
    };
    body::json(&app, request, take).await
}
