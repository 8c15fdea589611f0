//! A completion that conforms to a grammar, as far as it has come.

use llguidance::Matcher;

use super::one_line;
use super::opened::Watch;

/// A completion under a grammar.
pub(crate) enum Conforming {
    /// All of it.
    Held(Box<Held>),
    /// What follows an opener.
    Watched(Box<Watch>),
}

impl Conforming {
    /// Whether all tokens may come next, for nothing is held to the grammar.
    pub fn is_free(&self) -> bool {
        matches!(self, Conforming::Watched(watch) if watch.is_free())
    }

    /// One bit for each id that may come next, in words of 32; none where all may.
    ///
    /// # Errors
    /// No token may, or it costs too much to find out.
    pub fn mask(&mut self) -> Result<Option<Vec<u32>>, String> {
        match self {
            Conforming::Held(held) => held.mask().map(Some),
            Conforming::Watched(watch) => watch.mask(),
        }
    }

    /// Takes a token that the mask allowed; whether nothing can follow it.
    ///
    /// # Errors
    /// It costs too much to find out.
    pub fn take(&mut self, token: u32) -> Result<bool, String> {
        match self {
            Conforming::Held(held) => held.take(token),
            Conforming::Watched(watch) => watch.take(token),
        }
    }
}

/// Tokens that conform from the first on.
#[derive(Clone)]
pub(crate) struct Held {
    matcher: Matcher,
    eos_token_ids: Vec<u32>,
}

impl Held {
    /// Before the first one.
    pub fn new(matcher: Matcher, eos_token_ids: Vec<u32>) -> Self {
        Held { matcher, eos_token_ids }
    }

    /// The same, with nothing in common: what clones learn of a grammar they share, and its limits with it.
    pub fn fresh(&self) -> Self {
        Held { matcher: self.matcher.deep_clone(), eos_token_ids: self.eos_token_ids.clone() }
    }

    /// As [`Conforming::mask`].
    ///
    /// # Errors
    /// As there.
    pub fn mask(&mut self) -> Result<Vec<u32>, String> {
        let mask = self.matcher.compute_mask_or_eos().map_err(|why| one_line(&why.to_string()))?;
        // A sampler has to choose something.
        if mask.is_zero() {
            return Err("nothing conforms to it".into());
        }
        let mut words = mask.as_slice().to_vec();
        let bit = |words: &[u32], id: u32| {
            words.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
        };
        // Where one token may end it, all that end it may.
        if self.eos_token_ids.first().is_some_and(|&eos| bit(&words, eos)) {
            for &id in &self.eos_token_ids {
                if let Some(word) = words.get_mut(id as usize / 32) {
                    *word |= 1 << (id % 32);
                }
            }
        }
        Ok(words)
    }

    /// As [`Conforming::take`].
    ///
    /// # Errors
    /// As there.
    pub fn take(&mut self, token: u32) -> Result<bool, String> {
        if self.eos_token_ids.contains(&token) {
            return Ok(true);
        }
        self.matcher.consume_token(token).map_err(|why| one_line(&why.to_string()))?;
        Ok(self.matcher.is_stopped())
    }

    /// Takes a special token if it conforms; else nothing has changed.
    pub fn takes(&mut self, token: u32) -> bool {
        self.takes_all(&[token])
    }

    /// Takes bytes if they conform, however they were cut into tokens; else nothing has changed.
    pub fn takes_bytes(&mut self, bytes: &[u8]) -> bool {
        match self.matcher.tok_env() {
            Ok(env) => self.takes_all(&env.tok_trie().greedy_tokenize(bytes)),
            Err(_) => false,
        }
    }

    fn takes_all(&mut self, tokens: &[u32]) -> bool {
        let valid = self.matcher.validate_tokens(tokens);
        valid.is_ok_and(|valid| valid == tokens.len()) && self.matcher.consume_tokens(tokens).is_ok()
    }

    /// Whether nothing can follow.
    pub fn is_over(&self) -> bool {
        self.matcher.is_stopped()
    }
}
