//! From messages and texts to token ids. For threads that may compute.

use engine::text::{TextError, Tokenizer};
use serde_json::Value;

use crate::app::App;
use crate::tools::describe;
use crate::tools::dialect::Dialect;
use crate::wire::chat::ChatRequest;
use crate::wire::errors::ApiError;

/// The text of a conversation, as the model's template writes it.
///
/// # Errors
/// 400 with the template's words.
pub fn render(tokenizer: &Tokenizer, dialect: &Dialect, request: &ChatRequest) -> Result<String, ApiError> {
    let template =
        tokenizer.chat_template(request.tools.are_used()).map_err(|error| refused("messages", &error))?;
    let described = (!dialect.knows_tools).then(|| {
        let used = request.tools.are_used();
        let functions: Vec<&Value> = request.tools.functions().filter(|_| used).collect();
        describe::messages(&request.messages, &functions, dialect)
    });
    let mut messages = described.unwrap_or_else(|| request.messages.clone());
    let tag = request.continue_final.then(|| tag_end(&mut messages)).flatten();
    let rendered = template.render_json(&messages, request.add_generation_prompt, &request.variables);
    let mut text = rendered.map_err(|error| match &error {
        TextError::TemplateArgument { .. } => refused("chat_template_kwargs", &error),
        _ => refused("messages", &error),
    })?;
    if let Some(tag) = tag {
        // What the template writes behind the last message would end it.
        let Some(end) = text.rfind(tag.trim_end()) else {
            let message = "continue_final_message: the chat template changes the last message, so it can't be gone on with";
            return Err(ApiError::param("continue_final_message", message));
        };
        // A template that took the tag's blank away takes those at the message's end away.
        let keeps_blanks = text[end..].starts_with(&tag);
        text.truncate(end);
        if !keeps_blanks {
            text.truncate(text.trim_end().len());
        }
    }
    Ok(text)
}

/// Marks where the last message ends, with what no message has; none without messages. Its text may stand elsewhere in what
/// the template writes.
fn tag_end(messages: &mut [Value]) -> Option<String> {
    let mut tag = "END_OF_FINAL_MESSAGE".to_owned();
    while messages.iter().any(|message| message.to_string().contains(&tag)) {
        tag.push('_');
    }
    tag.push(' ');
    let last = messages.last_mut()?;
    last["content"] = format!("{}{tag}", last["content"].as_str().unwrap_or_default()).into();
    Some(tag)
}

/// Token ids of a text.
///
/// # Errors
/// 400 if the tokenizer has no tokens for it, or if it is so long that it need not be asked.
pub fn encode(
    app: &App,
    max_model_len: usize,
    text: &str,
    add_special: bool,
    at: &str,
) -> Result<Vec<u32>, ApiError> {
    // Who sends megabytes for a model of a few thousand tokens would keep a thread busy for seconds.
    if text.len() / app.token_bytes_max > max_model_len {
        let message = format!(
            "This model's maximum context length is {}. However, {at} has {} bytes. Please reduce its length.",
            app.requests.info()?.longest(),
            text.len()
        );
        return Err(ApiError::param(at, message).code("context_length_exceeded"));
    }
    app.tokenizer(at)?.encode(text, add_special).map_err(|error| refused(at, &error))
}

fn refused(at: &str, error: &TextError) -> ApiError {
    ApiError::param(at, error.to_string()).code("invalid_value")
}
