//! The parameters that chat and completions share, and what they come to.

use engine::{FinishReason, SamplingParams};
use serde_json::{Value, json};

use super::errors::ApiError;
use super::fields::{Checked, Field, Kind, field, id, shortened};
use super::grammar::Asked;
use crate::config::SamplingDefaults;

/// The most completions of a prompt.
pub const N_MAX: i64 = 128;
/// The most `logprobs` of a place.
pub const LOGPROBS_MAX: i64 = 20;
/// The most stop strings, and their bytes together.
const STOPS_MAX: usize = 16;
const STOP_BYTES_MAX: usize = 16 << 10;
/// The most token ids that end a completion, and the most that have a bias.
const IDS_MAX: usize = 1024;
const TOKENS_MAX: i64 = u32::MAX as i64;

/// The parameters that both have.
pub const SAMPLING: &[Field] = &[
    field("model", Kind::Text, "A name of the served model; the first one if left out"),
    field("temperature", Kind::Number(0.0, 100.0), "0 always takes the most probable token"),
    field("top_p", Kind::Above(0.0, 1.0), "Only the most probable tokens that reach this sum"),
    field("top_k", Kind::Int(-1, TOKENS_MAX), "Only the k most probable tokens; 0 or -1: all"),
    field("min_p", Kind::Number(0.0, 1.0), "Only tokens at least this times as probable as the first"),
    field("n", Kind::Int(1, N_MAX), "Completions of each prompt"),
    field("stop", Kind::Custom(stop_schema), "Text that ends the completion, which does not contain it"),
    field("include_stop_str_in_output", Kind::Bool, "Whether the completion contains what ended it"),
    field("stop_token_ids", Kind::Ids(IDS_MAX), "Tokens that end the completion"),
    field("ignore_eos", Kind::Bool, "Goes on behind the model's own end"),
    field("min_tokens", Kind::Int(0, TOKENS_MAX), "So many tokens come before one may end the completion"),
    field("seed", Kind::Seed, "The same seed gives the same completion"),
    field("presence_penalty", Kind::Number(-2.0, 2.0), "Taken off the logits of tokens that were chosen"),
    field("frequency_penalty", Kind::Number(-2.0, 2.0), "The same, once per occurrence"),
    field(
        "repetition_penalty",
        Kind::Number(0.01, 100.0),
        "Above 1, tokens that are there are less probable",
    ),
    field("logit_bias", Kind::Custom(bias_schema), "Added to the logits of single token ids"),
    field("prompt_logprobs", Kind::Int(0, LOGPROBS_MAX), "Log-probabilities of the prompt's tokens"),
    field("stream", Kind::Bool, "Whether the answer comes as server-sent events"),
    field("stream_options", Kind::Custom(stream_schema), "Whether usage comes with a stream"),
    field("skip_special_tokens", Kind::Bool, "Whether special tokens have no text"),
    field("add_special_tokens", Kind::Bool, "Whether the tokenizer adds its own tokens to a prompt"),
    field("return_token_ids", Kind::Bool, "Whether choices have their token ids"),
    field("return_tokens_as_token_ids", Kind::Bool, "Log-probabilities name tokens as token_id:N"),
    field("cache_salt", Kind::Text, "Prompts share cached keys and values only with the same salt"),
    field(
        "response_format",
        Kind::Custom(|| json!({"type": ["object", "null"]})),
        "text, json_object or json_schema",
    ),
    field(
        "guided_json",
        Kind::Custom(|| json!({"type": ["object", "string", "null"]})),
        "A JSON Schema to conform to",
    ),
    field("guided_regex", Kind::Text, "A regular expression to conform to"),
    field("guided_grammar", Kind::Text, "A Lark grammar to conform to"),
    field("guided_choice", Kind::Custom(choice_schema), "Texts of which the completion is one"),
    field(
        "structured_outputs",
        Kind::Object,
        "The same four as json, regex, grammar, choice; or json_object",
    ),
    field("user", Kind::Ignored, "Has no effect"),
    field("metadata", Kind::Ignored, "Has no effect"),
    field("service_tier", Kind::Ignored, "Has no effect"),
    field("safety_identifier", Kind::Ignored, "Has no effect"),
    field("prompt_cache_key", Kind::Ignored, "Has no effect: all prompts share the cache"),
    field("prompt_cache_retention", Kind::Ignored, "Has no effect: the cache keeps what it has room for"),
    field("store", Kind::Only(|| json!(false)), "Nothing is stored"),
    field("use_beam_search", Kind::Only(|| json!(false)), "Not supported"),
    field("length_penalty", Kind::Only(|| json!(1.0)), "Not supported"),
    field("best_of", Kind::Only(|| json!(1)), "Not supported"),
    field("priority", Kind::Only(|| json!(0)), "First come, first served"),
];

fn stop_schema() -> Value {
    json!({"anyOf": [
        {"type": "string", "minLength": 1}, {"type": "null"},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "maxItems": STOPS_MAX},
    ]})
}

fn bias_schema() -> Value {
    json!({
        "type": ["object", "null"], "propertyNames": {"pattern": "^(0|[1-9][0-9]{0,9})$"}, "maxProperties": IDS_MAX,
        "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
    })
}

fn stream_schema() -> Value {
    json!({
        "type": ["object", "null"], "additionalProperties": false, "properties": {
            "include_usage": {"type": ["boolean", "null"]},
            "continuous_usage_stats": {"type": ["boolean", "null"]},
            "include_obfuscation": {"enum": [false, null]},
        },
    })
}

fn choice_schema() -> Value {
    json!({"type": ["array", "null"], "items": {"type": "string"}, "minItems": 1})
}

/// How an answer comes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streaming {
    /// As events.
    pub stream: bool,
    /// With a last chunk of usage.
    pub include_usage: bool,
    /// With usage in each chunk.
    pub continuous_usage: bool,
}

/// What both endpoints' requests have.
#[derive(Debug, Clone, PartialEq)]
pub struct Common {
    /// The name that the client gave.
    pub model: Option<String>,
    /// Completions per prompt.
    pub n: usize,
    /// How tokens are chosen; its seed is that of the first choice.
    pub sampling: SamplingParams,
    /// Whether the client gave the seed.
    pub has_seed: bool,
    /// Text that ends a completion.
    pub stop: Vec<String>,
    /// Whether that is part of the completion.
    pub include_stop: bool,
    /// Tokens that end it.
    pub stop_token_ids: Vec<u32>,
    /// Whether the model's own don't.
    pub ignore_eos: bool,
    /// Tokens before one may.
    pub min_tokens: usize,
    /// By id.
    pub logit_bias: Vec<(u32, f32)>,
    /// Of the prompt, in vLLM's shape.
    pub prompt_logprobs: Option<usize>,
    /// How the answer comes.
    pub streaming: Streaming,
    /// Special tokens have no text.
    pub skip_special: bool,
    /// The tokenizer adds its own; by default it does to a plain prompt.
    pub add_special: Option<bool>,
    /// Choices have token ids.
    pub return_token_ids: bool,
    /// Log-probabilities name tokens by their ids.
    pub tokens_as_ids: bool,
    /// Of the prefix cache.
    pub cache_salt: u64,
    /// What the completion conforms to.
    pub grammar: Option<Asked>,
}

impl Common {
    /// Reads what both have.
    ///
    /// # Errors
    /// 400 that names the parameter.
    pub fn read(fields: &Checked, defaults: &SamplingDefaults) -> Result<Self, ApiError> {
        let seed =
            fields.get("seed").and_then(|seed| seed.as_u64().or(seed.as_i64().map(|seed| seed as u64)));
        let number =
            |name: &str, default: Option<f32>, or: f32| fields.number(name).or(default).unwrap_or(or);
        let top_k = match fields.int("top_k") {
            Some(k) => usize::try_from(k).unwrap_or(0),
            None => defaults.top_k.unwrap_or(0),
        };
        let sampling = SamplingParams {
            temperature: number("temperature", defaults.temperature, 1.0),
            top_k,
            top_p: number("top_p", defaults.top_p, 1.0),
            min_p: number("min_p", defaults.min_p, 0.0),
            repetition_penalty: number("repetition_penalty", defaults.repetition_penalty, 1.0),
            presence_penalty: number("presence_penalty", None, 0.0),
            frequency_penalty: number("frequency_penalty", None, 0.0),
            seed: seed.unwrap_or(0),
        };
        sampling.check().map_err(|error| {
            let message = error.to_string();
            let names = ["temperature", "top_p", "min_p", "repetition_penalty"];
            let name = names.into_iter().find(|name| message.contains(name)).unwrap_or("temperature");
            ApiError::param(name, message).code("invalid_value")
        })?;
        let flag = |name: &str| fields.flag(name).unwrap_or(false);
        Ok(Common {
            model: fields.text("model").map(str::to_owned),
            n: fields.count("n").unwrap_or(1),
            sampling,
            has_seed: seed.is_some(),
            stop: stops(fields.get("stop"))?,
            include_stop: flag("include_stop_str_in_output"),
            stop_token_ids: fields.ids("stop_token_ids").unwrap_or_default(),
            ignore_eos: flag("ignore_eos"),
            min_tokens: fields.count("min_tokens").unwrap_or(0),
            logit_bias: biases(fields.get("logit_bias"))?,
            prompt_logprobs: fields.count("prompt_logprobs"),
            streaming: streaming(fields)?,
            skip_special: fields.flag("skip_special_tokens").unwrap_or(true),
            add_special: fields.flag("add_special_tokens"),
            return_token_ids: flag("return_token_ids"),
            tokens_as_ids: flag("return_tokens_as_token_ids"),
            cache_salt: fields.text("cache_salt").map_or(0, salt),
            grammar: super::grammar::read(fields)?,
        })
    }
}

/// 64 bits of a text's hash.
fn salt(text: &str) -> u64 {
    use sha2::Digest;
    let hash = sha2::Sha256::digest(text.as_bytes());
    u64::from_le_bytes(hash[..8].try_into().expect("a hash is longer"))
}

fn stops(value: Option<&Value>) -> Result<Vec<String>, ApiError> {
    let texts: Vec<&Value> = match value {
        None => Vec::new(),
        Some(Value::Array(texts)) => texts.iter().collect(),
        Some(text) => vec![text],
    };
    if texts.len() > STOPS_MAX {
        let message = format!("stop has {} strings; {STOPS_MAX} at most are supported", texts.len());
        return Err(ApiError::param("stop", message).code("invalid_value"));
    }
    let mut stops = Vec::with_capacity(texts.len());
    for text in texts {
        match text.as_str() {
            Some("") => {
                return Err(
                    ApiError::param("stop", "stop has an empty string; leave it out").code("invalid_value")
                );
            }
            Some(text) => stops.push(text.to_owned()),
            None => return Err(ApiError::wrong_type("stop", "a string or a list of strings", text)),
        }
    }
    let bytes: usize = stops.iter().map(String::len).sum();
    if bytes > STOP_BYTES_MAX {
        let message = format!("stop has {bytes} bytes; {STOP_BYTES_MAX} at most are supported");
        return Err(ApiError::param("stop", message).code("invalid_value"));
    }
    Ok(stops)
}

fn biases(value: Option<&Value>) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(value) = value else { return Ok(Vec::new()) };
    let Some(by_id) = value.as_object() else {
        return Err(ApiError::wrong_type("logit_bias", "an object of token ids", value));
    };
    if by_id.len() > IDS_MAX {
        let message = format!("logit_bias has {} token ids; {IDS_MAX} at most are supported", by_id.len());
        return Err(ApiError::param("logit_bias", message).code("invalid_value"));
    }
    let mut biases = Vec::with_capacity(by_id.len());
    for (key, bias) in by_id {
        // Written in one way only, so no id is there twice.
        let Some(id) = key.parse::<u32>().ok().filter(|id| id.to_string() == *key) else {
            let message = format!(
                "logit_bias has the key {:?}, which is no token id; write it in digits, the first of them not 0",
                shortened(key)
            );
            return Err(ApiError::param("logit_bias", message).code("invalid_value"));
        };
        match bias.as_f64() {
            Some(bias) if (-100.0..=100.0).contains(&bias) => biases.push((id, bias as f32)),
            Some(bias) => {
                let message = format!("logit_bias of {id} is {bias}; it must be from -100 to 100");
                return Err(ApiError::param("logit_bias", message).code("invalid_value"));
            }
            None => return Err(ApiError::wrong_type(format!("logit_bias.{id}"), "a number", bias)),
        }
    }
    Ok(biases)
}

const STREAM_OPTIONS: &[Field] = &[
    field("include_usage", Kind::Bool, "A last chunk with usage"),
    field("continuous_usage_stats", Kind::Bool, "Usage in every chunk"),
    field("include_obfuscation", Kind::Only(|| json!(false)), "Not supported"),
];

fn streaming(fields: &Checked) -> Result<Streaming, ApiError> {
    let stream = fields.flag("stream").unwrap_or(false);
    let Some(options) = fields.get("stream_options") else {
        return Ok(Streaming { stream, ..Streaming::default() });
    };
    if !options.is_object() {
        return Err(ApiError::wrong_type("stream_options", "an object", options));
    }
    if !stream {
        let message = "stream_options needs stream: true";
        return Err(ApiError::param("stream_options", message).code("invalid_value"));
    }
    let options = Checked::new(options.clone(), &[STREAM_OPTIONS], &[])
        .map_err(|error| within("stream_options", error))?;
    Ok(Streaming {
        stream,
        include_usage: options.flag("include_usage").unwrap_or(false),
        continuous_usage: options.flag("continuous_usage_stats").unwrap_or(false),
    })
}

/// An error of a field of a field.
pub fn within(outer: &str, error: ApiError) -> ApiError {
    let param = match &error.param {
        Some(inner) => format!("{outer}.{inner}"),
        None => outer.to_owned(),
    };
    ApiError { message: format!("{outer}: {}", error.message), param: Some(param), ..error }
}

/// What a prompt, or one of several, is.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Text to encode.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

impl Default for Prompt {
    fn default() -> Self {
        Prompt::Ids(Vec::new())
    }
}

impl Prompt {
    /// What encoding it costs.
    pub fn bytes(&self) -> usize {
        match self {
            Prompt::Text(text) => text.len(),
            Prompt::Ids(ids) => size_of_val(ids.as_slice()),
        }
    }
}

/// Token ids of a list.
pub fn ids_of(items: &[Value], at: &str) -> Result<Vec<u32>, ApiError> {
    let one = |(i, item): (usize, &Value)| {
        id(item).ok_or_else(|| ApiError::wrong_type(format!("{at}[{i}]"), "a token id", item))
    };
    items.iter().enumerate().map(one).collect()
}

/// Why a choice ended, in OpenAI's words, and what ended it in vLLM's `stop_reason`.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// `stop` or `length`.
    pub reason: FinishReason,
    /// The stop string or token id; null for the model's own end.
    pub stop_reason: Value,
}

/// Tokens that a request took and gave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of all prompts.
    pub prompt_tokens: usize,
    /// Of those, that were in the cache.
    pub cached_tokens: usize,
    /// Of all choices; stop tokens count.
    pub completion_tokens: usize,
}

impl Usage {
    /// OpenAI's shape.
    pub fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        })
    }
}
