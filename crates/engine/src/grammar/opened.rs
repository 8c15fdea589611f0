//! Free text in which an opener begins what conforms. Free text costs nothing: no mask is computed for it.

use std::sync::Arc;

use super::conforming::Held;
use crate::Opened;
use crate::text::Tokenizer;

/// A completion that is watched for openers.
pub(crate) struct Watch {
    tokenizer: Arc<Tokenizer>,
    /// Openers that are text, anywhere and at the beginning.
    openers: Vec<Vec<u8>>,
    first_openers: Vec<Vec<u8>>,
    /// Openers that are special tokens.
    ids: Vec<u32>,
    repeats: bool,
    /// The grammar, before its first token.
    fresh: Held,
    state: State,
}

enum State {
    /// Free text, with what may yet become an opener.
    Free {
        /// The last bytes, fewer than the longest opener has.
        tail: Vec<u8>,
        /// All bytes since the beginning, as long as they may be a first opener.
        first: Option<Vec<u8>>,
    },
    /// Behind an opener.
    Held(Box<Held>),
}

impl Watch {
    /// At the beginning of a completion.
    pub fn new(tokenizer: Arc<Tokenizer>, opened: &Opened, fresh: Held) -> Self {
        let special = |name: &String| tokenizer.token_to_id(name).filter(|&id| tokenizer.is_special(id));
        let ids = opened.openers.iter().filter_map(special).collect();
        let texts = |names: &[String]| {
            let texts = names.iter().filter(|name| !name.is_empty() && special(name).is_none());
            texts.map(|text| text.clone().into_bytes()).collect()
        };
        let (openers, first_openers) = (texts(&opened.openers), texts(&opened.first_openers));
        let state = State::Free { tail: Vec::new(), first: Some(Vec::new()) };
        Watch { tokenizer, openers, first_openers, ids, repeats: opened.repeats, fresh, state }
    }

    /// As [`super::Conforming::is_free`].
    pub fn is_free(&self) -> bool {
        matches!(self.state, State::Free { .. })
    }

    /// As [`super::Conforming::mask`].
    ///
    /// # Errors
    /// As there.
    pub fn mask(&mut self) -> Result<Option<Vec<u32>>, String> {
        match &mut self.state {
            State::Free { .. } => Ok(None),
            State::Held(held) => held.mask().map(Some),
        }
    }

    /// As [`super::Conforming::take`].
    ///
    /// # Errors
    /// As there.
    pub fn take(&mut self, token: u32) -> Result<bool, String> {
        let is_over = match &mut self.state {
            State::Held(held) => held.take(token)?,
            State::Free { .. } => match self.opened_by(token) {
                Some(held) => {
                    let is_over = held.is_over();
                    self.state = State::Held(Box::new(held));
                    is_over
                }
                None => return Ok(false),
            },
        };
        if is_over && self.repeats {
            self.state = State::Free { tail: Vec::new(), first: None };
        }
        Ok(is_over && !self.repeats)
    }

    /// What conforms from here on, if this token ends an opener.
    fn opened_by(&mut self, token: u32) -> Option<Held> {
        let State::Free { tail, first } = &mut self.state else { return None };
        if self.ids.contains(&token) {
            let mut held = self.fresh.clone();
            return held.takes(token).then_some(held);
        }
        let bytes = self.tokenizer.token_bytes(token);
        let fed = |bytes: &[u8]| {
            let mut held = self.fresh.clone();
            held.takes_bytes(bytes).then_some(held)
        };
        if let Some(begun) = first {
            begun.extend_from_slice(&bytes);
            let text = begun.trim_ascii_start();
            let is_begun = |opener: &Vec<u8>| text.starts_with(opener);
            if self.first_openers.iter().any(is_begun) {
                let held = fed(text);
                *first = None;
                if held.is_some() {
                    return held;
                }
            } else if !self.first_openers.iter().any(|opener| opener.starts_with(text)) {
                *first = None;
            }
        }
        let before = tail.len();
        tail.extend_from_slice(&bytes);
        for end in before + 1..=tail.len() {
            for opener in self.openers.iter().filter(|opener| tail[..end].ends_with(opener)) {
                let held = fed(&tail[end - opener.len()..]);
                if held.is_some() {
                    return held;
                }
            }
        }
        let longest = self.openers.iter().map(Vec::len).max().unwrap_or(1);
        tail.drain(..tail.len().saturating_sub(longest - 1));
        None
    }
}
