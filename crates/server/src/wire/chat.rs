//! The request of `/v1/chat/completions`.

use serde_json::{Map, Value, json};

use super::common::{Common, LOGPROBS_MAX, SAMPLING};
use super::errors::ApiError;
use super::fields::{Checked, Field, Kind, field};
use super::messages;
use crate::config::SamplingDefaults;
use crate::tools::Tools;

/// All of its parameters.
pub const CHAT: &[&[Field]] = &[CONVERSATION, OWN, SAMPLING];

/// Those that make its prompt.
pub const CONVERSATION: &[Field] = &[
    field("messages", Kind::Custom(messages::schema), "The conversation"),
    field("add_generation_prompt", Kind::Bool, "Whether the assistant's turn is begun"),
    field("continue_final_message", Kind::Bool, "Whether the last message is gone on with"),
    field("chat_template_kwargs", Kind::Object, "Further variables of the chat template"),
    field(
        "documents",
        Kind::Custom(|| json!({"type": ["array", "null"], "items": {"type": "object"}})),
        "For templates that know documents",
    ),
    field(
        "tools",
        Kind::Custom(Tools::schema),
        "Functions that the model may call; arguments conform to their schemas also without strict: true, if they can",
    ),
    field(
        "tool_choice",
        Kind::Custom(|| json!({"type": ["string", "object", "null"]})),
        "none, auto, required, or a function",
    ),
];

/// The rest of its own.
const OWN: &[Field] = &[
    field("max_tokens", Kind::Int(1, u32::MAX as i64), "The most tokens; by default what fits"),
    field("max_completion_tokens", Kind::Int(1, u32::MAX as i64), "The same, and wins over max_tokens"),
    field("logprobs", Kind::Bool, "Whether tokens come with their log-probabilities"),
    field("top_logprobs", Kind::Int(0, LOGPROBS_MAX), "With so many of the most probable tokens"),
    field(
        "parallel_tool_calls",
        Kind::Bool,
        "Whether several calls may come at once; without tools it has no effect",
    ),
    field("modalities", Kind::Only(|| json!(["text"])), "Text only"),
];

/// A checked request.
#[derive(Debug)]
pub struct ChatRequest {
    /// What completions have too.
    pub common: Common,
    /// As the template sees them.
    pub messages: Vec<Value>,
    /// What the client said, and by which name.
    pub max_tokens: Option<(&'static str, usize)>,
    /// Log-probabilities, with so many of the most probable tokens.
    pub logprobs: Option<usize>,
    /// Begins the assistant's turn.
    pub add_generation_prompt: bool,
    /// Goes on with the last message.
    pub continue_final: bool,
    /// Variables of the template.
    pub variables: Map<String, Value>,
    /// Functions.
    pub tools: Tools,
}

impl ChatRequest {
    /// Reads a checked body.
    ///
    /// # Errors
    /// 400 that names the parameter.
    pub fn read(mut fields: Checked, defaults: &SamplingDefaults) -> Result<Self, ApiError> {
        let common = Common::read(&fields, defaults)?;
        let messages = messages::read(fields.take("messages").unwrap_or_default())?;
        let logprobs = match (fields.flag("logprobs").unwrap_or(false), fields.count("top_logprobs")) {
            (true, top) => Some(top.unwrap_or(0)),
            (false, None | Some(0)) => None,
            (false, Some(_)) => {
                let message = "top_logprobs needs logprobs: true";
                return Err(ApiError::param("top_logprobs", message).code("invalid_value"));
            }
        };
        let continue_final = fields.flag("continue_final_message").unwrap_or(false);
        let add_generation_prompt = fields.flag("add_generation_prompt");
        if continue_final && add_generation_prompt == Some(true) {
            let message = "continue_final_message and add_generation_prompt exclude each other";
            return Err(ApiError::param("continue_final_message", message).code("invalid_value"));
        }
        let mut variables = match fields.take("chat_template_kwargs") {
            Some(Value::Object(variables)) => variables,
            _ => Map::new(),
        };
        match fields.take("documents") {
            None => {}
            Some(Value::Array(documents)) => {
                variables.insert("documents".into(), documents.into());
            }
            Some(other) => return Err(ApiError::wrong_type("documents", "a list", &other)),
        }
        let tools = Tools::read(&mut fields)?;
        if let Some(rendered) = tools.rendered() {
            variables.insert("tools".into(), rendered);
        }
        if common.prompt_logprobs.is_some() && common.streaming.stream {
            return Err(prompt_logprobs_of_stream());
        }
        Ok(ChatRequest {
            max_tokens: ["max_completion_tokens", "max_tokens"]
                .into_iter()
                .find_map(|name| Some((name, fields.count(name)?))),
            logprobs,
            add_generation_prompt: add_generation_prompt.unwrap_or(!continue_final),
            continue_final,
            variables,
            tools,
            messages,
            common,
        })
    }
}

/// They would be in no chunk.
pub fn prompt_logprobs_of_stream() -> ApiError {
    let message = "prompt_logprobs is not supported with stream: true";
    ApiError::param("prompt_logprobs", message).code("unsupported_value")
}
