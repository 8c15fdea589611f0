//! Tokens travel to the experts that they chose, and sums travel back.
//!
//! A token goes once to every rank that has an expert which it chose, with the choices that concern that rank, cut into
//! *runs*: what can be summed for itself (see `ReductionTree::runs`). One row per run comes back, takes the place of one
//! of its leaves, and the tree over all ids is finished where the token is. What was not chosen is −0 on both sides.

use collective::CollectiveError;
use tensor::{Device, Part, Program, ReductionTree};

use super::ParallelExperts;
use crate::ModelError;
use crate::parallel::Rank;

/// Set in an entry's expert where a token begins.
const TOKEN: u32 = 1 << 31;
/// Set where a run begins.
const RUN: u32 = 1 << 30;
/// Bytes of an entry: expert and flags, then the weight.
pub(super) const ENTRY: usize = 8;

/// What a rank has to know to send tokens and to take them.
pub(super) struct Exchange {
    tree: ReductionTree,
    program: Program,
    rank_of: Vec<usize>,
    /// For each expert its place among this rank's own.
    place: Vec<Option<u32>>,
}

/// What a rank sends of its tokens.
struct Dispatch {
    /// Per rank: the rows that go there, and the entries of their choices.
    rows: Vec<Vec<u32>>,
    entries: Vec<Vec<u8>>,
    runs_of_rank: Vec<usize>,
    /// Where in what comes back each run is, by its first expert, then by token.
    order: Vec<u32>,
    /// Per token its runs, each at its first expert.
    runs: Vec<Vec<(u32, f32)>>,
}

/// What a rank has to do for others and for itself.
#[derive(Default)]
struct Work {
    rows_of_rank: Vec<usize>,
    runs_of_rank: Vec<usize>,
    /// Per token its choices, by place among this rank's experts.
    tokens: Vec<Vec<(u32, f32)>>,
    /// Per run its choices, by expert.
    runs: Vec<Vec<(u32, f32)>>,
}

impl Exchange {
    pub(super) fn new(rank_of: &[usize], rank: usize) -> Self {
        let tree = ReductionTree::over_ids(rank_of.len());
        let mut places = 0..;
        let place = rank_of.iter().map(|&of| if of == rank { places.next() } else { None }).collect();
        Exchange { program: tree.program(0..rank_of.len()), tree, rank_of: rank_of.to_vec(), place }
    }

    fn num_experts(&self) -> usize {
        self.rank_of.len()
    }

    fn dispatch(&self, choices: &[Vec<(u32, f32)>], ranks: usize) -> Dispatch {
        let mut rows = vec![Vec::new(); ranks];
        let mut entries = vec![Vec::new(); ranks];
        let mut runs = vec![Vec::new(); choices.len()];
        // Per rank the first expert and the token of each run that comes back.
        let mut back: Vec<Vec<(u32, u32)>> = vec![Vec::new(); ranks];
        for (token, chosen) in (0..).zip(choices) {
            let ids: Vec<usize> = chosen.iter().map(|c| c.0 as usize).collect();
            for run in self.tree.runs(&ids, |a, b| self.rank_of[a] == self.rank_of[b]) {
                let to = self.rank_of[ids[run.start]];
                let mut flags = RUN;
                if rows[to].last() != Some(&token) {
                    rows[to].push(token);
                    flags |= TOKEN;
                }
                let first = chosen[run.start].0;
                back[to].push((first, token));
                runs[token as usize].push((first, 1.0));
                for &(expert, weight) in &chosen[run] {
                    entries[to].extend((expert | std::mem::take(&mut flags)).to_le_bytes());
                    entries[to].extend(weight.to_le_bytes());
                }
            }
        }
        let runs_of_rank = back.iter().map(Vec::len).collect();
        let mut places: Vec<((u32, u32), u32)> = back.into_iter().flatten().zip(0..).collect();
        places.sort_unstable();
        let order = places.into_iter().map(|(_, at)| at).collect();
        Dispatch { rows, entries, runs_of_rank, order, runs }
    }

    /// Reads what the ranks sent; an entry that makes no sense is its sender's failure.
    fn work(&self, received: &[Vec<u8>]) -> Result<Work, CollectiveError> {
        let mut work = Work::default();
        for (rank, bytes) in received.iter().enumerate() {
            let (tokens, runs) = (work.tokens.len(), work.runs.len());
            let (entries, rest) = bytes.as_chunks::<ENTRY>();
            let read = entries.iter().try_for_each(|entry| self.read(entry, &mut work, [tokens, runs]));
            if read.is_none() || !rest.is_empty() {
                let message = "it sent choices that can't be read".into();
                return Err(CollectiveError::Failed { rank, message });
            }
            work.rows_of_rank.push(work.tokens.len() - tokens);
            work.runs_of_rank.push(work.runs.len() - runs);
        }
        Ok(work)
    }

    /// Adds an entry; `begun` are the tokens and runs before those of its sender.
    fn read(&self, entry: &[u8; ENTRY], work: &mut Work, begun: [usize; 2]) -> Option<()> {
        let [a, b, c, d, w @ ..] = *entry;
        let word = u32::from_le_bytes([a, b, c, d]);
        let (expert, weight) = (word & !(TOKEN | RUN), f32::from_le_bytes(w));
        let place = (*self.place.get(expert as usize)?)?;
        if word & TOKEN != 0 {
            work.tokens.push(Vec::new());
        }
        if word & RUN != 0 {
            work.runs.push(Vec::new());
        }
        let token = work.tokens[begun[0]..].last_mut()?;
        let run = work.runs[begun[1]..].last_mut()?;
        // A token's first choice begins a run, and experts ascend.
        if (word & TOKEN != 0 && word & RUN == 0) || token.last().is_some_and(|last| last.0 >= place) {
            return None;
        }
        token.push((place, weight));
        run.push((expert, weight));
        Some(())
    }
}

impl<D: Device> ParallelExperts<D> {
    /// Rows of this rank alone → their sums over the experts that they chose, wherever those are.
    pub(super) fn exchange(
        &self,
        rank: Rank<D>,
        x: &D::Tensor,
        exchange: &Exchange,
    ) -> Result<D::Tensor, ModelError> {
        let Rank { dev, group, .. } = rank;
        let routing = dev.route(&dev.linear(x, &self.router, None), self.spec);
        let choices = dev.routing_to_host(&routing)?;
        self.counts.borrow_mut().choose(&choices);
        let dispatch = exchange.dispatch(&choices, group.size());
        let entries = rank.calls(Part::Exchange).all_to_all_host(&dispatch.entries)?;
        let work = exchange.work(&entries)?;

        let rows_to: Vec<usize> = dispatch.rows.iter().map(Vec::len).collect();
        let sent = dev.gather_rows(x, &dispatch.rows.concat());
        let taken = rank.calls(Part::Exchange).all_to_all(&sent, &rows_to, &work.rows_of_rank)?;
        let sums = self.work(dev, &taken, &work, exchange);
        let back =
            rank.calls(Part::Exchange).all_to_all(&sums, &work.runs_of_rank, &dispatch.runs_of_rank)?;

        let others = |counts: &[usize]| counts.iter().sum::<usize>() - counts[group.rank()];
        let entries: Vec<usize> = dispatch.entries.iter().map(Vec::len).collect();
        let rows = others(&rows_to) + others(&work.runs_of_rank);
        let bytes = rows * dev.shape(x)[1] * size_of::<f32>() + others(&entries);
        self.counts.borrow_mut().sent_bytes += bytes as u64;

        let runs = dev.routing_from_host(&dispatch.runs, exchange.num_experts());
        let runs = dev.assign(&runs, 0..exchange.num_experts());
        Ok(dev.combine(&dev.gather_rows(&back, &dispatch.order), &runs, &exchange.program))
    }

    /// Tokens of all ranks → the sums of their runs over this rank's experts.
    fn work(&self, dev: &D, x: &D::Tensor, work: &Work, exchange: &Exchange) -> D::Tensor {
        if self.own.is_empty() {
            return dev.alloc(0, dev.shape(x)[1]);
        }
        let chosen = dev.assign(&dev.routing_from_host(&work.tokens, self.own.len()), 0..self.own.len());
        self.counts.borrow_mut().worked += work.tokens.iter().map(Vec::len).sum::<usize>() as u64;
        let outputs = self.outputs(dev, x, &chosen);
        // By expert, then by token: so are the choices of runs, of which each is a part of one token.
        let all = 0..exchange.num_experts();
        let runs = dev.assign(&dev.routing_from_host(&work.runs, all.end), all);
        dev.combine(&outputs, &runs, &exchange.program)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(word: u32) -> [u8; ENTRY] {
        let [a, b, c, d] = word.to_le_bytes();
        [a, b, c, d, 0, 0, 0, 0]
    }

    #[test]
    fn what_is_dispatched_is_read_by_its_rank() {
        let rank_of = [0, 1, 0, 1, 1, 1];
        let choices = vec![vec![(0, 0.5), (2, 0.25), (4, 0.125)], vec![], vec![(3, 1.0), (4, 2.0)]];
        let sent = Exchange::new(&rank_of, 0).dispatch(&choices, 2);
        assert_eq!(sent.rows, [vec![0], vec![0, 2]]);
        assert_eq!(sent.runs, [vec![(0, 1.0), (4, 1.0)], vec![], vec![(3, 1.0)]]);
        let own = Exchange::new(&rank_of, 0).work(&[sent.entries[0].clone(), Vec::new()]).unwrap();
        assert_eq!((own.rows_of_rank, own.runs_of_rank), (vec![1, 0], vec![1, 0]));
        assert_eq!(
            (own.tokens, own.runs),
            (vec![vec![(0, 0.5), (1, 0.25)]], vec![vec![(0, 0.5), (2, 0.25)]])
        );
        let other = Exchange::new(&rank_of, 1).work(&[sent.entries[1].clone(), Vec::new()]).unwrap();
        assert_eq!(other.tokens, [vec![(2, 0.125)], vec![(1, 1.0), (2, 2.0)]]);
        assert_eq!(other.runs, [vec![(4, 0.125)], vec![(3, 1.0), (4, 2.0)]]);
    }

    #[test]
    fn choices_that_cant_be_read_are_their_senders_failure() {
        let exchange = Exchange::new(&[0, 1, 0, 1], 1);
        let begins = TOKEN | RUN;
        let wrong: [Vec<u8>; 7] = [
            vec![0; ENTRY - 1],
            entry(1).to_vec(),
            entry(TOKEN | 1).to_vec(),
            entry(begins).to_vec(),
            entry(begins | 4).to_vec(),
            [entry(begins | 3), entry(1)].concat(),
            [entry(begins | 3), entry(TOKEN | 1)].concat(),
        ];
        for bytes in wrong {
            let received = [entry(begins | 1).to_vec(), bytes.clone(), Vec::new()];
            let failed = exchange.work(&received).err();
            assert!(matches!(failed, Some(CollectiveError::Failed { rank: 1, .. })), "{bytes:?}: {failed:?}");
        }
    }
}
