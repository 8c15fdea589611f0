//! What single flags say.

use clap::ValueEnum;
use serde_json::{Map, Value};

/// More requests, or tokens of a prompt, than anyone has time for.
const MOST: usize = 10_000_000;
/// The longest request rate's gap, and the longest time that a request may take, seconds.
const LONGEST: f64 = 1e6;

/// How requests are worded.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EndpointType {
    /// /v1/completions, with prompts of token ids
    #[value(aliases = ["openai-completions", "completions", "vllm"])]
    Openai,
    /// /v1/chat/completions, with prompts of words
    #[value(aliases = ["chat", "openai-chat-completions"])]
    OpenaiChat,
}

impl EndpointType {
    pub fn name(self) -> &'static str {
        match self {
            EndpointType::Openai => "openai",
            EndpointType::OpenaiChat => "openai-chat",
        }
    }

    /// The path of such requests.
    pub fn path(self) -> &'static str {
        match self {
            EndpointType::Openai => "/v1/completions",
            EndpointType::OpenaiChat => "/v1/chat/completions",
        }
    }
}

/// Where prompts come from.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DatasetName {
    /// Each prompt is random
    Random,
    /// One random prompt, each time
    Fixed,
    /// Few random prefixes, each with many random suffixes
    #[value(alias = "prefix_repetition")]
    SharedPrefix,
    /// Those of --dataset-path
    #[value(aliases = ["custom", "sharegpt"])]
    File,
}

impl DatasetName {
    pub fn name(self) -> &'static str {
        match self {
            DatasetName::Random => "random",
            DatasetName::Fixed => "fixed",
            DatasetName::SharedPrefix => "shared-prefix",
            DatasetName::File => "file",
        }
    }
}

/// A number of requests or tokens, from 0.
pub fn count(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(n) if n <= MOST => Ok(n),
        _ => Err(format!("give a whole number up to {MOST}")),
    }
}

/// A number of requests or tokens, from 1.
pub fn some(text: &str) -> Result<usize, String> {
    count(text).ok().filter(|&n| n > 0).ok_or(format!("give a whole number from 1 to {MOST}"))
}

/// Requests per second.
pub fn rate(text: &str) -> Result<f64, String> {
    number(text, |rate| rate >= 1.0 / LONGEST, "give requests per second, more than 0, or inf")
}

/// How evenly requests arrive.
pub fn burstiness(text: &str) -> Result<f64, String> {
    let is_fit = |b: f64| (1e-3..=1e6).contains(&b) || b.is_infinite() && b > 0.0;
    number(text, is_fit, "give a number from 0.001 to 1000000, or inf; 1 is a Poisson process")
}

/// A fraction below 1.
pub fn fraction(text: &str) -> Result<f64, String> {
    number(text, |ratio| (0.0..1.0).contains(&ratio), "give a number from 0 to less than 1")
}

/// A temperature.
pub fn temperature(text: &str) -> Result<f64, String> {
    number(text, |t| t >= 0.0 && t.is_finite(), "give a number from 0 on")
}

/// Percent.
pub fn percent(text: &str) -> Result<f64, String> {
    number(text, |p| (0.0..=100.0).contains(&p), "give numbers from 0 to 100, with commas between them")
}

/// Seconds.
pub fn seconds(text: &str) -> Result<f64, String> {
    number(text, |s| s > 0.0 && s <= LONGEST, "give seconds, more than 0 and up to 1000000")
}

fn number(text: &str, is_fit: impl Fn(f64) -> bool, or: &str) -> Result<f64, String> {
    text.trim().parse().ok().filter(|&n| is_fit(n)).ok_or(or.to_owned())
}

/// Keys that each request has besides ours.
#[derive(Clone, Default)]
pub struct ExtraBody(pub Map<String, Value>);

impl ExtraBody {
    /// Reads a JSON object.
    pub fn parse(text: &str) -> Result<Self, String> {
        match serde_json::from_str(text) {
            Ok(Value::Object(keys)) => Ok(ExtraBody(keys)),
            _ => Err("give a JSON object, such as {\"top_p\":0.9}".into()),
        }
    }
}

/// An endpoint's path.
pub fn path(text: &str) -> Result<String, String> {
    let is_fit = text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic() && !b"?#".contains(&b));
    if is_fit { Ok(text.into()) } else { Err("give a path, such as /v1/completions".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_out_of_their_range_are_refused() {
        for text in ["0", "-1", "nan", "", "x", "-inf"] {
            assert!(rate(text).is_err() && burstiness(text).is_err() && seconds(text).is_err(), "{text}");
        }
        assert_eq!([rate("inf"), burstiness("inf")], [Ok(f64::INFINITY), Ok(f64::INFINITY)]);
        assert!(rate("1e-300").is_err() && burstiness("1e-300").is_err());
        assert!(rate("0.5").is_ok() && seconds("inf").is_err() && temperature("inf").is_err());
        assert!(fraction("1").is_err() && fraction("0").is_ok() && percent("100.1").is_err());
        assert!(some("0").is_err() && count("0").is_ok() && some("99999999999").is_err());
    }

    #[test]
    fn an_extra_body_is_an_object_and_an_endpoint_a_path() {
        assert!(ExtraBody::parse("[]").is_err() && ExtraBody::parse("{").is_err());
        assert_eq!(ExtraBody::parse("{\"top_p\":0.9}").unwrap().0.len(), 1);
        assert!(path("/v1/x").is_ok());
        for text in ["v1", "", "/a b", "/a?b", "/é"] {
            assert!(path(text).is_err(), "{text}");
        }
    }
}
