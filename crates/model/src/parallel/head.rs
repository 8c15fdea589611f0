//! The output head, whose vocabulary ids are split over ranks, and what is asked of logits without ever
//! bringing them together: maxima, sums, candidates and single values travel.

use std::collections::BTreeSet;
use std::ops::Range;
use std::rc::Rc;

use tensor::{Device, DeviceError, LogitEdit, Part, Program, math};

use super::embedding::split_vocab;
use super::{Module, Rank, VocabParallelEmbedding};
use crate::ModelError;
use crate::loader::Loader;

/// The output head.
pub struct ParallelLmHead<D: Device> {
    weight: Rc<D::Weight>,
    softcap: Option<f32>,
    vocab_size: usize,
    /// The ids of this rank, and of all, where they are divided.
    own: Range<usize>,
    vocab: Vec<Range<usize>>,
    /// What this rank sums, how many nodes each rank has, and what finishes the sum.
    program: Program,
    nodes_of_rank: Vec<usize>,
    finish: Program,
}

/// Logits with their ids, by logit descending, then id ascending.
pub type Candidates = Vec<(f32, u32)>;

/// A rank's columns of some rows of logits.
pub struct Logits<D: Device> {
    local: D::Tensor,
    /// Rows of which some ids, on whatever rank, were forbidden.
    forbidden: BTreeSet<usize>,
}

impl<D: Device> Logits<D> {
    /// Some of the rows.
    pub fn rows(&self, dev: &D, rows: &[u32]) -> Self {
        let is_forbidden = |&at: &usize| self.forbidden.contains(&(rows[at] as usize));
        let forbidden = (0..rows.len()).filter(is_forbidden).collect();
        Logits { local: dev.gather_rows(&self.local, rows), forbidden }
    }
}

impl<D: Device> ParallelLmHead<D> {
    /// Loads this rank's ids, or takes those of the embedding that it is tied to.
    pub fn load(
        loader: &Loader<D>,
        embedding: Option<&VocabParallelEmbedding<D>>,
    ) -> Result<Self, ModelError> {
        let layout = loader.layout;
        let weight = match embedding.filter(|_| layout.config.tied) {
            Some(embedding) => embedding.weight(),
            None => Rc::new(loader.linear(&[Module::Head], 0, 0)?.0),
        };
        let vocab_size = layout.config.vocab_size;
        let panels = layout.split.vocab_panels();
        let (vocab, panels, rank) = match split_vocab(layout, Module::Head) {
            Some(vocab) => (vocab, panels.clone(), loader.rank),
            None => (std::iter::once(0..vocab_size).collect(), panels.undivided(), 0),
        };
        let plan = panels.reduce_plan();
        Ok(ParallelLmHead {
            weight,
            softcap: layout.config.logit_softcap,
            vocab_size,
            own: vocab[rank].clone(),
            vocab,
            program: panels.program(rank),
            nodes_of_rank: plan.nodes_of_rank,
            finish: plan.finish,
        })
    }

    /// `hidden [t, hidden_size]` → this rank's columns of the logits.
    pub fn forward(&self, dev: &D, hidden: &D::Tensor) -> Logits<D> {
        dev.span(Part::Head, || {
            let mut local = dev.linear(hidden, &self.weight, None);
            if let Some(cap) = self.softcap {
                dev.softcap(&mut local, cap);
            }
            Logits { local, forbidden: BTreeSet::new() }
        })
    }

    /// Ids of the whole vocabulary.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Changes logits before a choice. Columns of `edits` are vocabulary ids; those of other ranks are skipped. `place` says
    /// where a row of `edits` is among these logits; it may be none of them.
    pub fn edit(
        &self,
        dev: &D,
        logits: &mut Logits<D>,
        edits: &[LogitEdit],
        place: impl Fn(usize) -> Option<usize>,
    ) {
        let local = |col: usize| self.own.contains(&col).then(|| col - self.own.start);
        let mut own = Vec::with_capacity(edits.len());
        for edit in edits {
            let (LogitEdit::Add { row, .. }
            | LogitEdit::Repetition { row, .. }
            | LogitEdit::Allow { row, .. }
            | LogitEdit::Divide { row, .. }) = *edit;
            let Some(row) = place(row) else { continue };
            own.extend(match *edit {
                LogitEdit::Add { col, by, .. } => {
                    if by == f32::NEG_INFINITY {
                        logits.forbidden.insert(row);
                    }
                    local(col).map(|col| LogitEdit::Add { row, col, by })
                }
                LogitEdit::Repetition { ref cols, by, .. } => {
                    let cols = cols.iter().filter_map(|&col| local(col as usize)).map(|col| col as u32);
                    Some(LogitEdit::Repetition { row, cols: cols.collect(), by })
                }
                LogitEdit::Allow { ref words, .. } => {
                    logits.forbidden.insert(row);
                    Some(LogitEdit::Allow { row, words: bits_of(words, self.own.clone()) })
                }
                LogitEdit::Divide { by, .. } => Some(LogitEdit::Divide { row, by }),
            });
        }
        dev.edit_logits(&mut logits.local, &own);
    }

    /// ln Σ exp(logit) of each row, in f64: the exact maximum plus the logarithm of the canonical sum, of what
    /// [`ParallelLmHead::exp_sums`] gives.
    fn logs_of(
        &self,
        rank: Rank<D>,
        logits: &Logits<D>,
        max: &[f32],
        sums: &[Vec<f32>],
    ) -> Result<Vec<f64>, ModelError> {
        let finish = |(row, &max): (usize, &f32)| {
            let mut nodes = Vec::with_capacity(self.finish.inputs.len());
            for (sums, &n) in sums.iter().zip(&self.nodes_of_rank) {
                nodes.extend_from_slice(&sums[row * n..(row + 1) * n]);
            }
            let sum = self.finish.run(|i| nodes[i])[0];
            // A logit that isn't a number makes the sum none, one that is infinite the maximum or the sum.
            self.check_row(rank, logits, row, max, sum)?;
            Ok(f64::from(max) + math::ln_f64(f64::from(sum)))
        };
        max.iter().enumerate().map(finish).collect()
    }

    /// That a row's maximum, and what its exponentials sum up to, are numbers.
    fn check_row(
        &self,
        rank: Rank<D>,
        logits: &Logits<D>,
        row: usize,
        max: f32,
        sum: f32,
    ) -> Result<(), ModelError> {
        let message = match max {
            max if max.is_finite() && sum.is_finite() => return Ok(()),
            f32::NEG_INFINITY if logits.forbidden.contains(&row) => {
                format!("row {row} of the logits has no token that is allowed")
            }
            _ => "a logit is not a finite number; the weights may be damaged".into(),
        };
        Err(ModelError::Device(DeviceError { device: rank.dev.name(), message }))
    }

    /// Each row's maximum, and each rank's nodes of the sums of exponentials.
    ///
    /// # Errors
    /// A rank is missing.
    pub fn exp_sums(
        &self,
        rank: Rank<D>,
        logits: &Logits<D>,
    ) -> Result<(Vec<f32>, Vec<Vec<f32>>), ModelError> {
        let own_max = rank.dev.row_max(&logits.local)?;
        let all = self.exchange(rank, own_max)?;
        let max: Vec<f32> = (0..all[0].len()).map(|row| largest(all.iter().map(|m| m[row]))).collect();
        let sums = self.exchange(rank, rank.dev.exp_sums(&logits.local, &max, &self.program)?)?;
        Ok((max, sums))
    }

    /// The `k` largest logits of each row as [`ParallelLmHead::top_k`] gives them, and with `weighs` ln Σ exp(logit), in f64. The
    /// device is read once, and ranks meet once, unless they have to know the largest of all logits before they sum up.
    ///
    /// # Errors
    /// A rank is missing, a logit isn't a number or +∞, or all of a row are −∞.
    pub fn survey(
        &self,
        rank: Rank<D>,
        logits: &Logits<D>,
        k: usize,
        weighs: bool,
    ) -> Result<(Vec<Candidates>, Option<Vec<f64>>), ModelError> {
        let own = rank.dev.survey(&logits.local, &self.program, k)?;
        if !self.divided() {
            let logs = self.logs_of(rank, logits, &own.max, std::slice::from_ref(&own.sums))?;
            return Ok((own.top, weighs.then_some(logs)));
        }
        let (rows, nodes) = (own.max.len(), self.program.num_nodes());
        // What the sums are relative to is not the same on all ranks, so all that they say here is whether they are numbers.
        let sum_of = |row: usize| own.sums[row * nodes..(row + 1) * nodes].iter().sum::<f32>();
        let mut flat = Vec::new();
        for (row, top) in own.top.into_iter().enumerate() {
            flat.extend([own.max[row], sum_of(row)]);
            flat.extend(self.with_ids(top));
        }
        let all = self.exchange(rank, flat)?;
        let of_row =
            |row: usize| all.iter().map(move |flat| &flat[row * (flat.len() / rows)..][..flat.len() / rows]);
        let max: Vec<f32> = (0..rows).map(|row| largest(of_row(row).map(|part| part[0]))).collect();
        for (row, &max) in max.iter().enumerate() {
            // At most as many as there are ids, if all are numbers.
            let sum = of_row(row).map(|part| part[1]).find(|sum| !sum.is_finite());
            self.check_row(rank, logits, row, max, sum.unwrap_or(0.0))?;
        }
        let top = (0..rows).map(|row| merged(of_row(row).map(|part| &part[2..]), k)).collect();
        if !weighs {
            return Ok((top, None));
        }
        let sums = self.exchange(rank, rank.dev.exp_sums(&logits.local, &max, &self.program)?)?;
        Ok((top, Some(self.logs_of(rank, logits, &max, &sums)?)))
    }

    /// The `k` largest logits of each row with their ids, by logit descending, then id ascending.
    pub fn top_k(&self, rank: Rank<D>, logits: &Logits<D>, k: usize) -> Result<Vec<Candidates>, ModelError> {
        let own = rank.dev.top_k(&logits.local, 0, k)?;
        if !self.divided() {
            return Ok(own);
        }
        let rows = own.len();
        let all = self.exchange(rank, own.into_iter().flat_map(|top| self.with_ids(top)).collect())?;
        let of_row =
            |row: usize| all.iter().map(move |flat| &flat[row * (flat.len() / rows)..][..flat.len() / rows]);
        Ok((0..rows).map(|row| merged(of_row(row), k)).collect())
    }

    /// A row's candidates among this rank's columns as they travel: logit, id. Ids are below 2^24, so f32 carries them exactly.
    fn with_ids(&self, top: Vec<(f32, u32)>) -> impl Iterator<Item = f32> {
        let first = self.own.start as u32;
        top.into_iter().flat_map(move |(logit, col)| [logit, (col + first) as f32])
    }

    /// Single logits, by (row, id).
    pub fn pick(
        &self,
        rank: Rank<D>,
        logits: &Logits<D>,
        at: &[(usize, u32)],
    ) -> Result<Vec<f32>, ModelError> {
        let own: Vec<(usize, usize)> = at
            .iter()
            .filter(|(_, id)| self.own.contains(&(*id as usize)))
            .map(|&(row, id)| (row, id as usize - self.own.start))
            .collect();
        let all = self.exchange(rank, rank.dev.pick(&logits.local, &own)?)?;
        if !self.divided() {
            return Ok(all.into_iter().next().unwrap_or_default());
        }
        // Each rank sent the values of its own ids, in the order of the question.
        let mut parts: Vec<_> = all.iter().map(|part| part.iter().copied()).collect();
        let value = |&(_, id): &(usize, u32)| {
            let owner = self.vocab.partition_point(|range| range.end <= id as usize);
            parts[owner].next().expect("every rank answers for its ids")
        };
        Ok(at.iter().map(value).collect())
    }

    /// How many of each row come before one of its ids, of which this is the logit, by logit descending, then id ascending.
    pub fn count_before(
        &self,
        rank: Rank<D>,
        logits: &Logits<D>,
        places: &[(f32, u32)],
    ) -> Result<Vec<u32>, ModelError> {
        let local = |&(logit, id): &(f32, u32)| (logit, (id as usize).saturating_sub(self.own.start));
        let own = rank.dev.count_before(&logits.local, &places.iter().map(local).collect::<Vec<_>>())?;
        // As ids do, counts of them fit in f32.
        let all = self.exchange(rank, own.into_iter().map(|n| n as f32).collect())?;
        Ok((0..places.len()).map(|row| all.iter().map(|of_rank| of_rank[row] as u32).sum()).collect())
    }

    fn divided(&self) -> bool {
        self.vocab.len() > 1
    }

    fn exchange(&self, rank: Rank<D>, own: Vec<f32>) -> Result<Vec<Vec<f32>>, ModelError> {
        match self.divided() {
            true => Ok(rank.calls(Part::Exchange).all_gather_host(&own)?),
            false => Ok(vec![own]),
        }
    }
}

/// The largest of numbers, those that are none passed over.
fn largest(numbers: impl Iterator<Item = f32>) -> f32 {
    numbers.fold(f32::NEG_INFINITY, |a, b| if b > a { b } else { a })
}

/// The first `k` of all ranks' candidates for a row, of which each rank's are pairs of a logit and an id.
fn merged<'a>(of_ranks: impl Iterator<Item = &'a [f32]>, k: usize) -> Vec<(f32, u32)> {
    let pairs = of_ranks.flat_map(|flat| flat.chunks_exact(2).map(|pair| (pair[0], pair[1] as u32)));
    let mut merged: Vec<(f32, u32)> = pairs.collect();
    // Adding +0 makes zeros equal, whatever their sign.
    merged.sort_by(|a, b| (b.0 + 0.0).total_cmp(&(a.0 + 0.0)).then(a.1.cmp(&b.1)));
    merged.truncate(k);
    merged
}

/// The bits of some ids, the first of them first.
fn bits_of(words: &[u32], ids: Range<usize>) -> Vec<u32> {
    let (first, shift) = (ids.start / 32, ids.start % 32);
    let word = |at: usize| u64::from(words.get(at).copied().unwrap_or(0));
    let of = |at: usize| ((word(at) | word(at + 1) << 32) >> shift) as u32;
    (first..first + ids.len().div_ceil(32)).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rank_gets_the_bits_of_its_own_ids() {
        let words = [0xdead_beef, 0x0123_4567, 0x89ab_cdef];
        for ids in [0..96, 0..16, 16..80, 48..96, 64..200, 96..112, 33..33] {
            let own = bits_of(&words, ids.clone());
            assert_eq!(own.len(), ids.len().div_ceil(32));
            for (col, id) in ids.enumerate() {
                assert_eq!(LogitEdit::allows(&own, col), LogitEdit::allows(&words, id), "id {id}");
            }
        }
    }
}
