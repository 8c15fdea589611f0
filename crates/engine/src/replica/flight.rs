//! A step that is on its way: what was asked of it, and the command that asks.

use std::collections::BTreeMap;
use std::time::Instant;

use scheduler::{Batch, BatchItem};
use tensor::{LogitEdit, SequenceSpan, StepMeta};

use super::{Replica, Running};
use crate::sampling::Ask;
use crate::worker::Command;

/// A step that is on its way.
pub struct Flight {
    pub lane: usize,
    pub batch: Batch,
    pub issued: Instant,
    /// Rows that are not those of sequences that decode.
    pub prompt_rows: usize,
    /// One per row of logits, in order.
    pub asks: Vec<AskOf>,
}

/// Whose row of logits it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AskOf {
    pub id: u64,
    /// Whether a token of the prompt is scored there, and not the next one sampled.
    pub is_of_prompt: bool,
}

impl Flight {
    /// Tokens that are sampled.
    pub fn sampled(&self) -> usize {
        self.asks.iter().filter(|ask| !ask.is_of_prompt).count()
    }

    /// Whether there are any.
    pub fn samples(&self) -> bool {
        self.batch.items.iter().any(|item| item.samples)
    }

    /// What changes the logits of its rows.
    pub fn edits(&self, running: &BTreeMap<u64, Running>) -> Vec<LogitEdit> {
        let sampled = self.asks.iter().enumerate().filter(|(_, ask)| !ask.is_of_prompt);
        sampled.filter_map(|(row, ask)| Some(running.get(&ask.id)?.edits(row))).flatten().collect()
    }
}

/// What of a command is made row by row.
#[derive(Default)]
struct Parts {
    meta: StepMeta,
    asks: Vec<Ask>,
    of: Vec<AskOf>,
}

impl Replica {
    /// A batch as a command.
    pub(super) fn flight_of(&mut self, lane: usize, batch: Batch) -> (Flight, Command) {
        let first_block = self.lanes[lane].first_block;
        let mut parts = Parts::default();
        let mut masks_follow = false;
        for item in &batch.items {
            let first = parts.meta.tokens.len();
            parts.meta.tokens.extend_from_slice(&item.tokens);
            let rows = first..parts.meta.tokens.len();
            let running = self.running.get_mut(&item.id).expect("who is scheduled has not ended");
            parts.score_prompt(running, item, first);
            if item.samples {
                parts.sample(running, item, rows.end - 1);
                masks_follow |= running.awaits_mask();
            }
            let block_table = item.block_table.iter().map(|block| block + first_block).collect();
            parts.meta.sequences.push(SequenceSpan { rows, start: item.start, block_table });
        }
        let prompt_rows = batch.num_tokens() - batch.num_decoding;
        let copies = batch.copies.iter().map(|(from, to)| (from + first_block, to + first_block)).collect();
        let flight = Flight { lane, batch, issued: Instant::now(), prompt_rows, asks: parts.of };
        // Of the rows of a step all edits follow, or none.
        let edits = (!masks_follow).then(|| flight.edits(&self.running));
        (flight, Command::Generate { copies, meta: parts.meta, edits, asks: parts.asks })
    }
}

impl Parts {
    /// Asks for the log-probabilities of those tokens of the prompt that follow `item`'s, if they are wanted. After a
    /// preemption those are not asked for again that were told.
    fn score_prompt(&mut self, running: &mut Running, item: &BatchItem, first_row: usize) {
        let Some(top) = running.request.prompt_logprobs else { return };
        let prompt = &running.request.prompt;
        let end = (item.start + item.tokens.len()).min(prompt.len() - 1);
        for position in item.start.max(running.scored)..end {
            self.meta.logit_rows.push((first_row + position - item.start) as u32);
            self.asks.push(Ask::Score { target: prompt[position + 1], top });
            self.of.push(AskOf { id: item.id, is_of_prompt: true });
        }
        running.scored = running.scored.max(end);
    }

    fn sample(&mut self, running: &Running, item: &BatchItem, row: usize) {
        let request = &running.request;
        self.meta.logit_rows.push(row as u32);
        let position = item.start + item.tokens.len();
        self.asks.push(Ask::Sample { choice: request.sampling.choice(position), logprobs: request.logprobs });
        self.of.push(AskOf { id: item.id, is_of_prompt: false });
    }
}
