//! A request that has not ended.

use tensor::LogitEdit;

use super::masks::Held;
use crate::request::{FinishReason, GenerateRequest};
use crate::sampling::History;

pub struct Running {
    pub request: GenerateRequest,
    history: History,
    pub lane: usize,
    /// Tokens of the prompt whose log-probabilities have been asked for.
    pub scored: usize,
    /// Whether events have begun to tell those.
    pub is_told_of: bool,
    /// Where its tokens must conform to something.
    pub held: Option<Held>,
}

impl Running {
    /// One that begins.
    pub fn new(request: GenerateRequest, lane: usize, held: Option<Held>) -> Self {
        let history = History::new(&request);
        Running { request, history, lane, scored: 0, is_told_of: false, held }
    }

    /// Notes a token that was chosen. Why it is the last, if it is.
    ///
    /// # Errors
    /// It can't be held to its grammar any more.
    pub fn take(&mut self, token: u32) -> Result<Option<FinishReason>, String> {
        self.history.add(&self.request, token);
        if self.request.stop_token_ids.contains(&token) {
            return Ok(Some(FinishReason::Stop));
        }
        if let Some(held) = &mut self.held
            && held.take(token)?
        {
            return Ok(Some(FinishReason::Stop));
        }
        Ok((self.history.generated() == self.request.max_tokens).then_some(FinishReason::Length))
    }

    /// What changes row `row` of the logits, from which its next token is chosen.
    pub fn edits(&self, row: usize) -> Vec<LogitEdit> {
        let mask = self.held.as_ref().and_then(|held| held.mask.clone().ok().flatten());
        self.history.edits(&self.request, row, mask)
    }

    /// Whether its next token can't be chosen before [`super::masks::Masks::join`].
    pub fn awaits_mask(&self) -> bool {
        self.held.as_ref().is_some_and(Held::awaits_mask)
    }

    /// Why nothing can be chosen, if that is so.
    pub fn failure(&self) -> Option<&String> {
        self.held.as_ref()?.mask.as_ref().err()
    }

    /// Tokens still to be run.
    pub fn work(&self) -> usize {
        self.request.work() - self.history.generated().min(self.request.work())
    }
}
