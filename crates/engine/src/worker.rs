//! One rank at work: it holds its part of the model and does what rank 0 broadcasts.

use std::time::Duration;

use collective::{Collective, CollectiveStats};
use model::{Decoder, KvCache, LoadStats, ModelError, Rank};
use serde::{Deserialize, Serialize};
use tensor::{DType, Device, LogitEdit, StepMeta};

use crate::sampler::{not_finite, sample};
use crate::sampling::Choice;

/// Rows of logits that are made at a time when a whole prompt is scored.
const SCORED_ROWS: u32 = 32;

/// What all ranks do next.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Command {
    /// Makes a KV cache of this many blocks, in place of the one before.
    AllocateKv { blocks: usize },
    /// Runs a step and chooses a token for each of its logit rows.
    Generate { meta: StepMeta, edits: Vec<Edit>, choices: Vec<Choice> },
    /// Runs a step and takes the log-probability of one id for each of its logit rows.
    Score { meta: StepMeta, targets: Vec<u32> },
    /// Tells rank 0 what each rank holds and has spent.
    Report,
    /// Ends.
    Stop,
}

/// [`LogitEdit`], as it travels.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) enum Edit {
    Add(usize, usize, f32),
    Repetition(usize, usize, f32),
    Divide(usize, f32),
}

impl From<LogitEdit> for Edit {
    fn from(edit: LogitEdit) -> Self {
        match edit {
            LogitEdit::Add { row, col, by } => Edit::Add(row, col, by),
            LogitEdit::Repetition { row, col, by } => Edit::Repetition(row, col, by),
            LogitEdit::Divide { row, by } => Edit::Divide(row, by),
        }
    }
}

impl From<Edit> for LogitEdit {
    fn from(edit: Edit) -> Self {
        match edit {
            Edit::Add(row, col, by) => LogitEdit::Add { row, col, by },
            Edit::Repetition(row, col, by) => LogitEdit::Repetition { row, col, by },
            Edit::Divide(row, by) => LogitEdit::Divide { row, by },
        }
    }
}

/// What a command came to, the same on every rank.
#[derive(Debug)]
pub(crate) enum Reply {
    Done,
    Tokens(Vec<u32>),
    Logprobs(Vec<f32>),
    Reports(Vec<RankReport>),
}

/// What one rank holds and has spent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct RankReport {
    /// The rank.
    pub rank: usize,
    /// Its query heads.
    pub query_heads: usize,
    /// The KV heads that they read.
    pub kv_heads: usize,
    /// Elements times stored type.
    pub weight_bytes: u64,
    /// What packed weights take.
    pub packed_bytes: u64,
    /// What its KV cache takes.
    pub kv_cache_bytes: u64,
    /// All-reduces of one forward pass.
    pub all_reduce_calls: u64,
    /// Bytes that it contributed to those.
    pub all_reduce_bytes: u64,
    /// Seconds in all-reduces since the start.
    pub all_reduce_s: f64,
    /// Exchanges of embedding rows, sums and candidates for one forward pass and its choice.
    pub vocab_collective_calls: u64,
}

/// A rank: device, place in the group, part of the model.
pub(crate) struct Worker<D: Device> {
    pub dev: D,
    pub group: Box<dyn Collective<D>>,
    pub decoder: Decoder<D>,
    pub loaded: LoadStats,
    pub kv_dtype: DType,
    pub comm_timeout: Duration,
    pub kv: Option<KvCache<D>>,
    /// What the last forward pass and its choice spent.
    pub last: CollectiveStats,
    /// What the last forward pass spent on all-reduces.
    pub last_forward: CollectiveStats,
}

impl<D: Device> Worker<D> {
    /// Does what rank 0 says until it says stop. Waits for that as long as it takes.
    pub fn follow(&mut self) -> Result<(), ModelError> {
        let mut bytes = Vec::new();
        loop {
            self.group.broadcast(&mut bytes, None)?;
            let command = postcard::from_bytes(&bytes).expect("rank 0 writes what the others read");
            if matches!(command, Command::Stop) {
                return Ok(());
            }
            self.run(&command)?;
        }
    }

    /// Rank 0: has all ranks do something.
    pub fn lead(&mut self, command: &Command) -> Result<Reply, ModelError> {
        let mut bytes = postcard::to_stdvec(command).expect("a command can be written");
        self.group.broadcast(&mut bytes, Some(self.comm_timeout))?;
        self.run(command)
    }

    fn run(&mut self, command: &Command) -> Result<Reply, ModelError> {
        match command {
            Command::AllocateKv { blocks } => {
                self.kv = None;
                let (layout, rank) = (self.decoder.layout(), self.group.rank());
                self.kv = Some(KvCache::new(&self.dev, layout, rank, *blocks, self.kv_dtype));
                Ok(Reply::Done)
            }
            Command::Generate { meta, edits, choices } => self.generate(meta, edits, choices),
            Command::Score { meta, targets } => self.score(meta, targets),
            Command::Report => self.report(),
            Command::Stop => Ok(Reply::Done),
        }
    }

    fn forward(&mut self, meta: &StepMeta) -> Result<D::Tensor, ModelError> {
        let before = self.group.stats();
        let rank = Rank { dev: &self.dev, group: &*self.group };
        let kv = self.kv.as_mut().expect("a cache is made before the first step");
        let hidden = self.decoder.forward(rank, meta, kv)?;
        self.last_forward = difference(self.group.stats(), before);
        Ok(hidden)
    }

    fn generate(&mut self, meta: &StepMeta, edits: &[Edit], choices: &[Choice]) -> Result<Reply, ModelError> {
        let before = self.group.stats();
        let hidden = self.forward(meta)?;
        let mut tokens = Vec::new();
        if !choices.is_empty() {
            let rank = Rank { dev: &self.dev, group: &*self.group };
            let mut logits = self.decoder.logits(&self.dev, &hidden);
            if !edits.is_empty() {
                let edits: Vec<LogitEdit> = edits.iter().map(|&e| e.into()).collect();
                self.decoder.head().edit(&self.dev, &mut logits, &edits);
            }
            tokens = sample(rank, &self.decoder, &logits, choices)?;
        }
        self.last = difference(self.group.stats(), before);
        Ok(Reply::Tokens(tokens))
    }

    fn score(&mut self, meta: &StepMeta, targets: &[u32]) -> Result<Reply, ModelError> {
        let before = self.group.stats();
        let hidden = self.forward(meta)?;
        let rank = Rank { dev: &self.dev, group: &*self.group };
        let head = self.decoder.head();
        let mut logprobs = Vec::with_capacity(targets.len());
        for from in (0..targets.len() as u32).step_by(SCORED_ROWS as usize) {
            let to = (from + SCORED_ROWS).min(targets.len() as u32);
            let rows: Vec<u32> = (from..to).collect();
            let logits = self.decoder.logits(&self.dev, &self.dev.gather_rows(&hidden, &rows));
            let sums = head.log_sum_exp(rank, &logits)?;
            let at: Vec<(usize, u32)> =
                targets[from as usize..to as usize].iter().copied().enumerate().collect();
            let picked = head.pick(rank, &logits, &at)?;
            if let Some(&logit) = picked.iter().find(|logit| !logit.is_finite()) {
                return Err(not_finite(rank, logit));
            }
            logprobs.extend(picked.iter().zip(&sums).map(|(&logit, sum)| (f64::from(logit) - sum) as f32));
        }
        self.last = difference(self.group.stats(), before);
        Ok(Reply::Logprobs(logprobs))
    }

    fn report(&self) -> Result<Reply, ModelError> {
        let (layout, rank) = (self.decoder.layout(), self.group.rank());
        let attention = layout.attention(0, rank);
        let total = self.group.stats();
        let numbers = [
            attention.num_heads as u64,
            attention.num_kv_heads as u64,
            self.loaded.weight_bytes,
            self.loaded.packed_bytes,
            self.kv.as_ref().map_or(0, KvCache::bytes),
            self.last_forward.all_reduce_calls,
            self.last_forward.all_reduce_bytes,
            total.all_reduce_s.to_bits(),
            self.last.other_calls,
        ];
        let all =
            self.group.all_gather_host(&numbers.iter().flat_map(|&n| to_floats(n)).collect::<Vec<_>>())?;
        let report = |(rank, floats): (usize, &Vec<f32>)| {
            let n: Vec<u64> = floats.chunks(4).map(from_floats).collect();
            RankReport {
                rank,
                query_heads: n[0] as usize,
                kv_heads: n[1] as usize,
                weight_bytes: n[2],
                packed_bytes: n[3],
                kv_cache_bytes: n[4],
                all_reduce_calls: n[5],
                all_reduce_bytes: n[6],
                all_reduce_s: f64::from_bits(n[7]),
                vocab_collective_calls: n[8],
            }
        };
        Ok(Reply::Reports(all.iter().enumerate().map(report).collect()))
    }
}

/// Host gathers carry f32, which holds 16 bits exactly.
fn to_floats(n: u64) -> [f32; 4] {
    [0, 16, 32, 48].map(|shift| f32::from((n >> shift) as u16))
}

fn from_floats(parts: &[f32]) -> u64 {
    parts.iter().rev().fold(0, |n, &part| (n << 16) | part as u64)
}

fn difference(after: CollectiveStats, before: CollectiveStats) -> CollectiveStats {
    CollectiveStats {
        all_reduce_calls: after.all_reduce_calls - before.all_reduce_calls,
        all_reduce_bytes: after.all_reduce_bytes - before.all_reduce_bytes,
        all_reduce_s: after.all_reduce_s - before.all_reduce_s,
        other_calls: after.other_calls - before.other_calls,
        sent_bytes: after.sent_bytes - before.sent_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_survive_the_journey_as_floats() {
        for n in [0, 1, 65_535, 65_536, u64::MAX, 1.5f64.to_bits()] {
            assert_eq!(from_floats(&to_floats(n)), n);
        }
    }
}
