//! One completion as its tokens come: text, stop strings, and its end.

use std::sync::Arc;

use engine::text::{StopMatcher, StreamDecoder};
use engine::{FinishReason, Logprobs};
use serde_json::Value;

use crate::wire::common::{Common, Finish};

/// What a token came to.
#[derive(Debug, Default)]
pub struct Delta {
    /// Text that is sure now.
    pub text: String,
    /// The token, and its log-probabilities if they were asked for.
    pub token: Option<(u32, Option<Logprobs>)>,
    /// If it is the last one.
    pub finish: Option<Finish>,
}

/// A completion that is under way.
#[derive(Clone)]
pub struct Choice {
    decoder: Option<StreamDecoder>,
    /// Special tokens that have text, and that text.
    shown: Vec<(u32, String)>,
    /// None if nothing stops it.
    matcher: Option<StopMatcher>,
    include_stop: bool,
    /// The client's own stop tokens, and the model's.
    stop_token_ids: Arc<[u32]>,
    eos_token_ids: Arc<[u32]>,
    /// Stop strings don't count before so many tokens.
    min_tokens: usize,
    /// Nothing was wanted: the engine chooses one token at least, and it is dropped.
    drops_all: bool,
    /// So many were chosen.
    pub tokens: usize,
}

impl Choice {
    /// A completion of any prompt, before its beginning. `shown` are special tokens that have text.
    pub fn new(common: &Common, eos_token_ids: Arc<[u32]>, shown: Vec<(u32, String)>) -> Self {
        Choice {
            decoder: None,
            shown,
            matcher: (!common.stop.is_empty()).then(|| StopMatcher::new(common.stop.iter().cloned())),
            include_stop: common.include_stop,
            stop_token_ids: common.stop_token_ids.clone().into(),
            eos_token_ids,
            min_tokens: common.min_tokens,
            drops_all: false,
            tokens: 0,
        }
    }

    /// The beginning of a prompt's completion. What is large is shared by all of them.
    pub fn of(&self, decoder: Option<StreamDecoder>, drops_all: bool) -> Self {
        Choice { decoder, drops_all, ..self.clone() }
    }

    /// Takes a token, and the engine's word on whether it is the last.
    pub fn push(&mut self, token: u32, logprobs: Option<Logprobs>, end: Option<FinishReason>) -> Delta {
        if self.drops_all {
            let finish = Finish { reason: FinishReason::Length, stop_reason: Value::Null };
            return Delta { finish: Some(finish), ..Delta::default() };
        }
        self.tokens += 1;
        let is_own_stop = self.stop_token_ids.contains(&token);
        let is_stop = end == Some(FinishReason::Stop) && (is_own_stop || self.eos_token_ids.contains(&token));
        let mut delta = Delta { token: Some((token, logprobs)), ..Delta::default() };
        let mut piece = String::new();
        if let Some(decoder) = &mut self.decoder {
            match self.shown.iter().find(|(shown, _)| *shown == token) {
                Some((_, text)) => {
                    piece.extend(decoder.finish());
                    piece.push_str(text);
                }
                _ if !is_stop || (is_own_stop && self.include_stop) => piece.extend(decoder.push(token)),
                _ => {}
            }
            if end.is_some() {
                piece.extend(decoder.finish());
            }
        }
        let stopped = match &mut self.matcher {
            Some(matcher) if self.tokens > self.min_tokens => matcher.push(&piece),
            _ => Ok(piece),
        };
        match stopped {
            Ok(text) => {
                delta.text = text;
                if let Some(reason) = end {
                    delta.text.extend(self.matcher.as_mut().map(StopMatcher::finish));
                    let stop_reason = if is_stop && is_own_stop { token.into() } else { Value::Null };
                    delta.finish = Some(Finish { reason, stop_reason });
                }
            }
            Err(stopped) => {
                delta.text = stopped.text;
                if self.include_stop {
                    delta.text.push_str(&stopped.stop);
                }
                delta.finish = Some(Finish { reason: FinishReason::Stop, stop_reason: stopped.stop.into() });
            }
        }
        delta
    }
}
