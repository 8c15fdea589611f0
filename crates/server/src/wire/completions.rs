//! The request of `/v1/completions`.

use engine::serving::Queued;
use serde_json::{Value, json};

use super::common::{Common, LOGPROBS_MAX, Prompt, ids_of};
use super::errors::ApiError;
use super::fields::{Checked, Field, Kind, field};
use crate::config::SamplingDefaults;

/// Tokens to generate where a request doesn't say.
const MAX_TOKENS: usize = 16;

/// Its own parameters.
pub const COMPLETIONS: &[Field] = &[
    field("prompt", Kind::Custom(schema), "Text, token ids, or a list of either"),
    field("max_tokens", Kind::Int(0, u32::MAX as i64), "The most tokens, 16 by default; 0 needs echo"),
    field("echo", Kind::Bool, "Whether the prompt comes back before the completion"),
    field(
        "logprobs",
        Kind::Int(0, LOGPROBS_MAX),
        "Log-probabilities, with so many of the most probable tokens",
    ),
    field("suffix", Kind::Only(|| json!("")), "Not supported"),
];

fn schema() -> Value {
    let ids = json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": u32::MAX}, "minItems": 1});
    json!({"anyOf": [
        {"type": "string"},
        {"type": "array", "items": {"type": "string"}, "minItems": 1},
        ids,
        {"type": "array", "items": ids, "minItems": 1},
    ]})
}

/// A checked request.
#[derive(Debug)]
pub struct CompletionRequest {
    /// What chat has too.
    pub common: Common,
    /// At least one.
    pub prompts: Vec<Prompt>,
    /// 0 only with `echo`.
    pub max_tokens: Option<usize>,
    /// The prompt comes back.
    pub echo: bool,
    /// Log-probabilities, with so many of the most probable tokens.
    pub logprobs: Option<usize>,
}

impl CompletionRequest {
    /// Reads a checked body.
    ///
    /// # Errors
    /// 400 that names the parameter.
    pub fn read(mut fields: Checked, defaults: &SamplingDefaults) -> Result<Self, ApiError> {
        let common = Common::read(&fields, defaults)?;
        let prompts = prompts(fields.take("prompt").unwrap_or_default())?;
        let echo = fields.flag("echo").unwrap_or(false);
        let max_tokens = fields.count("max_tokens");
        if max_tokens == Some(0) && !echo {
            let message = "max_tokens is 0, which needs echo: true; else it must be at least 1";
            return Err(ApiError::param("max_tokens", message).code("invalid_value"));
        }
        if common.prompt_logprobs.is_some() && common.streaming.stream {
            return Err(super::chat::prompt_logprobs_of_stream());
        }
        Ok(CompletionRequest { logprobs: fields.count("logprobs"), common, prompts, max_tokens, echo })
    }

    /// What its completions are in the queue, with prompts of so many tokens.
    pub fn queued(&self, tokens: usize) -> Queued {
        let n = self.common.n;
        Queued { requests: self.prompts.len().saturating_mul(n), tokens: tokens.saturating_mul(n) }
    }

    /// Tokens to generate for a prompt that leaves room for so many.
    pub fn max_tokens(&self, room: usize) -> usize {
        self.max_tokens.unwrap_or(MAX_TOKENS.min(room))
    }
}

fn prompts(value: Value) -> Result<Vec<Prompt>, ApiError> {
    let expected = "a string, a list of strings, token ids, or a list of token ids";
    let items = match value {
        Value::String(text) => return Ok(vec![Prompt::Text(text)]),
        Value::Array(items) => items,
        other => return Err(ApiError::wrong_type("prompt", expected, &other)),
    };
    match items.first() {
        None => Err(ApiError::param("prompt", "prompt is an empty list").code("invalid_value")),
        Some(Value::Number(_)) => Ok(vec![Prompt::Ids(ids_of(&items, "prompt")?)]),
        Some(Value::String(_) | Value::Array(_)) => {
            let one = |(i, item): (usize, Value)| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(ids) => ids_of(&ids, &format!("prompt[{i}]")).map(Prompt::Ids),
                other => Err(ApiError::wrong_type(format!("prompt[{i}]"), "a string or token ids", &other)),
            };
            items.into_iter().enumerate().map(one).collect()
        }
        Some(other) => Err(ApiError::wrong_type("prompt[0]", "a string, a token id or token ids", other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_text_or_ids_or_a_batch_of_either() {
        let text = |text: &str| Prompt::Text(text.into());
        assert_eq!(prompts(json!("a")).unwrap(), [text("a")]);
        assert_eq!(prompts(json!(["a", "b"])).unwrap(), [text("a"), text("b")]);
        assert_eq!(prompts(json!([1, 2])).unwrap(), [Prompt::Ids(vec![1, 2])]);
        assert_eq!(prompts(json!([[1], [2, 3]])).unwrap(), [Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]);
        for (wrong, param) in [
            (json!([]), "prompt"),
            (json!({}), "prompt"),
            (json!([1, "a"]), "prompt[1]"),
            (json!([[1], [-1]]), "prompt[1][0]"),
            (json!([4294967296u64]), "prompt[0]"),
            (json!([null]), "prompt[0]"),
            (json!(["a", 1]), "prompt[1]"),
        ] {
            assert_eq!(prompts(wrong).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
