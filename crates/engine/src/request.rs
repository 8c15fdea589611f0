//! What is asked of an engine, and what comes of it.

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::SamplingParams;

/// What someone wants completed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateRequest {
    /// Token ids of the prompt.
    pub prompt: Vec<u32>,
    /// The most tokens to generate.
    pub max_tokens: usize,
    /// How tokens are chosen.
    pub sampling: SamplingParams,
    /// Tokens that end the completion.
    pub stop_token_ids: Vec<u32>,
    /// So many of the first tokens are none of those.
    pub min_tokens: usize,
    /// Added to the logits of single ids, before penalties and temperature.
    pub logit_bias: Vec<(u32, f32)>,
    /// Whether each token comes with its log-probability, and with how many of the most probable ones.
    pub logprobs: Option<usize>,
    /// The same for the tokens of the prompt.
    pub prompt_logprobs: Option<usize>,
    /// What the completion must conform to. It can be large, and requests share it.
    #[serde(with = "shared")]
    pub grammar: Option<Arc<Grammar>>,
    /// Prompts share cached keys and values only with those of the same salt.
    pub cache_salt: u64,
}

/// Requests that differ in prompt, length and seed only: what they share is sent and held once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GenerateBatch {
    /// What is completed.
    pub prompts: Vec<BatchPrompt>,
    /// Completions of each prompt; their seeds count up from the prompt's.
    pub n: usize,
    /// All else.
    pub like: Box<GenerateRequest>,
}

/// A prompt of a batch, and what is its own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct BatchPrompt {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// The most tokens to generate for it.
    pub max_tokens: usize,
    /// That of its first completion.
    pub seed: u64,
}

impl GenerateBatch {
    /// The requests: those of the first prompt, then those of the next.
    pub fn requests(self) -> impl Iterator<Item = GenerateRequest> {
        let GenerateBatch { prompts, n, like } = self;
        prompts.into_iter().flat_map(move |BatchPrompt { tokens, max_tokens, seed }| {
            let like = GenerateRequest { prompt: tokens, max_tokens, ..(*like).clone() };
            (0..n as u64).map(move |i| {
                let mut request = like.clone();
                request.sampling.seed = seed.wrapping_add(i);
                request
            })
        })
    }
}

impl From<GenerateRequest> for GenerateBatch {
    fn from(mut like: GenerateRequest) -> Self {
        let tokens = std::mem::take(&mut like.prompt);
        let prompt = BatchPrompt { tokens, max_tokens: like.max_tokens, seed: like.sampling.seed };
        GenerateBatch { prompts: vec![prompt], n: 1, like: Box::new(like) }
    }
}

/// A grammar that is shared travels as one that is not.
mod shared {
    use std::sync::Arc;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::Grammar;

    pub fn serialize<S: Serializer>(grammar: &Option<Arc<Grammar>>, to: S) -> Result<S::Ok, S::Error> {
        grammar.as_deref().serialize(to)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Arc<Grammar>>, D::Error> {
        Ok(Option::<Grammar>::deserialize(from)?.map(Arc::new))
    }
}

/// What a completion must conform to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Grammar {
    /// A JSON Schema, as JSON text.
    JsonSchema(String),
    /// A regular expression over the whole completion.
    Regex(String),
    /// A Lark grammar, as llguidance takes it.
    Lark(String),
    /// Free text, parts of which conform.
    Opened(Box<Opened>),
}

/// Free text until an opener comes: from that on, the opener included, it conforms to a grammar.
///
/// Where what follows an opener in the same token does not conform, the opener was text.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opened {
    /// Texts, or names of special tokens.
    pub openers: Vec<String>,
    /// Those that open only where the completion begins, behind white space.
    pub first_openers: Vec<String>,
    /// A Lark grammar, as llguidance takes it.
    pub grammar: String,
    /// Whether text follows what conforms; else the completion ends there.
    pub repeats: bool,
}

/// The log-probability of a token, and those of the most probable ones in its place: natural logarithms, of the model's own
/// distribution, before biases, penalties and temperature.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Logprobs {
    /// That of the token.
    pub logprob: f32,
    /// Its place among all ids in the order of `top`, from 1.
    pub rank: u32,
    /// The most probable ids, by log-probability descending, then id ascending.
    pub top: Vec<(u32, f32)>,
}

impl Default for GenerateRequest {
    fn default() -> Self {
        GenerateRequest {
            prompt: Vec::new(),
            max_tokens: 1,
            sampling: SamplingParams::default(),
            stop_token_ids: Vec::new(),
            min_tokens: 0,
            logit_bias: Vec::new(),
            logprobs: None,
            prompt_logprobs: None,
            grammar: None,
            cache_salt: 0,
        }
    }
}

impl GenerateRequest {
    /// Tokens that it may take to run: those of the prompt and those to come.
    pub(crate) fn work(&self) -> usize {
        self.prompt.len() + self.max_tokens
    }
}

/// Why a completion ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FinishReason {
    /// A token or text that ends it.
    Stop,
    /// `max_tokens`, or the model's longest sequence.
    Length,
}

impl FinishReason {
    /// OpenAI's name of it.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// A request's tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// Token ids; a stop token is the last of them.
    pub token_ids: Vec<u32>,
    /// Why it ended.
    pub finish_reason: FinishReason,
}

/// Where a call's time went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Until the first token was chosen.
    pub time_to_first_token: Duration,
    /// Prompt tokens, and seconds of the steps that had any.
    pub prefill: (usize, f64),
    /// Tokens chosen in steps without prompt tokens, and seconds of those steps.
    pub decode: (usize, f64),
}

impl Timing {
    /// That of replicas that work side by side.
    pub(crate) fn beside(self, other: Timing) -> Timing {
        let both = |a: (usize, f64), b: (usize, f64)| (a.0 + b.0, a.1.max(b.1));
        let first = match (self.time_to_first_token, other.time_to_first_token) {
            (Duration::ZERO, t) | (t, Duration::ZERO) => t,
            (a, b) => a.min(b),
        };
        Timing {
            time_to_first_token: first,
            prefill: both(self.prefill, other.prefill),
            decode: both(self.decode, other.decode),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_a_batch_share_their_grammar_and_have_seeds_of_their_own() {
        let grammar = Some(Arc::new(Grammar::Regex("a*".into())));
        let like = GenerateRequest { grammar, ..GenerateRequest::default() };
        let prompts = vec![
            BatchPrompt { tokens: vec![1], max_tokens: 5, seed: u64::MAX },
            BatchPrompt { tokens: vec![2, 3], max_tokens: 6, seed: 70 },
        ];
        let batch = GenerateBatch { prompts, n: 2, like: Box::new(like) };
        let sent: GenerateBatch = postcard::from_bytes(&postcard::to_stdvec(&batch).unwrap()).unwrap();
        assert_eq!(sent, batch);
        let requests: Vec<GenerateRequest> = sent.requests().collect();
        let told: Vec<_> =
            requests.iter().map(|r| (r.prompt.as_slice(), r.max_tokens, r.sampling.seed)).collect();
        let (first, second) = (&[1][..], &[2, 3][..]);
        assert_eq!(told, [(first, 5, u64::MAX), (first, 5, 0), (second, 6, 70), (second, 6, 71)]);
        let grammars = requests.iter().map(|request| request.grammar.as_ref().unwrap());
        assert!(grammars.clone().zip(grammars.skip(1)).all(|(a, b)| Arc::ptr_eq(a, b)));
    }
}
