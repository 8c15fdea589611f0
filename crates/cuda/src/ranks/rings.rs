//! Messages between ranks that use each other's memory (`kernels/moves.cu`): matrices of two, and exchanges of all.

use std::cell::Cell;
use std::time::Duration;

use super::peers::{ALL_TO_ALL, Peers, RECV, SEND};
use super::words::MOST_RANKS;
use crate::driver::{Address, Arguments, Grid, Kernel};
use crate::tensor::{CudaTensor, Queue};

/// Bytes of all rings that a rank has for others: what is sent before anyone takes it.
pub(super) const RING_BYTES: usize = 4 << 20;
/// As in the kernel.
const MOST_LANES: usize = 8;
const LANE_WORDS: usize = 4096;
const NOTHING: u64 = u64::MAX;
/// Threads of a block, at most.
const MOST_THREADS: usize = 512;
/// A receive without a bound of its own waits for so many deadlines of its group, and at least so long.
const DEADLINES: u32 = 10;
const LEAST_PATIENCE: Duration = Duration::from_secs(300);

/// How long a receive without a bound waits, in a group of this deadline. Every wait of a kernel ends, for while it waits the driver may
/// hold up other ranks of the process, the one that it waits for among them, and nobody would hear of that. The other rank has the same
/// command already, so no more lies between than what it computes first: its steps before, and one of at most
/// `--max-num-batched-tokens`, which takes seconds. It ends earlier when this rank's host hears that another is lost.
pub(super) fn patience(deadline: Duration) -> Duration {
    deadline.saturating_mul(DEADLINES).max(LEAST_PATIENCE)
}

/// How messages travel, and how many of them there were.
pub(super) struct Rings {
    /// The most blocks that a message has.
    pub lanes: usize,
    /// Words of a ring: there is one for each other rank and lane.
    pub words: usize,
    /// Messages to each rank, and of each.
    pub counts: Cell<[[u32; 2]; MOST_RANKS]>,
    /// Exchanges of all ranks.
    pub exchanges: Cell<u32>,
}

/// What goes to another rank and what comes of it: where it lies, and words.
#[derive(Clone, Copy, Default)]
struct Leg {
    sent: Option<(Address, usize)>,
    received: Option<(Address, usize)>,
}

/// Lanes of a message.
fn lanes_of(words: usize, most: usize) -> usize {
    words.div_ceil(LANE_WORDS).clamp(1, most)
}

impl Rings {
    /// For so many ranks, whose kernels have room for so many blocks at the same time.
    pub fn new(ranks: usize, blocks: usize) -> Self {
        let lanes = blocks.clamp(1, MOST_LANES);
        let most = RING_BYTES / 4 / ranks / lanes;
        // Numbers of words go round, and so do places in a ring: they must do so together.
        let words = most.next_power_of_two() >> usize::from(!most.is_power_of_two());
        Rings { lanes, words, counts: Cell::default(), exchanges: Cell::default() }
    }

    fn count(&self, legs: &[Leg]) {
        let mut counts = self.counts.get();
        for ([to, of], leg) in counts.iter_mut().zip(legs) {
            *to = to.wrapping_add(u32::from(leg.sent.is_some()));
            *of = of.wrapping_add(u32::from(leg.received.is_some()));
        }
        self.counts.set(counts);
    }
}

impl Peers {
    /// Sends a matrix, and waits for room for it no longer than that.
    pub fn send(&self, queue: &Queue, x: &CudaTensor, to: usize, patience: Duration) {
        let mut legs = vec![Leg::default(); self.ranks()];
        legs[to].sent = Some((x.at(), x.len()));
        self.move_words(queue, SEND, (&legs, to), x.filled_len(), patience);
    }

    /// The matrix that another rank sent, which is waited for no longer than that.
    pub fn recv(
        &self,
        queue: &Queue,
        from: usize,
        [rows, cols]: [usize; 2],
        patience: Duration,
    ) -> CudaTensor {
        let out = queue.tensor(rows, cols);
        let mut legs = vec![Leg::default(); self.ranks()];
        legs[from].received = Some((out.at(), out.len()));
        self.move_words(queue, RECV, (&legs, from), out.filled_len(), patience);
        out
    }

    /// As [`collective::Collective::all_to_all`].
    pub fn all_to_all(
        &self,
        queue: &Queue,
        x: &CudaTensor,
        rows_to: &[usize],
        rows_from: &[usize],
    ) -> CudaTensor {
        let out = queue.tensor(rows_from.iter().sum(), x.cols);
        let first = |rows: &[usize]| 4 * (rows[..self.rank].iter().sum::<usize>() * x.cols) as u64;
        let (own, to) = (x.at() + first(rows_to), out.at() + first(rows_from));
        queue.work(|driver| match 4 * rows_to[self.rank] * x.cols {
            0 => Ok(()),
            bytes => driver.copy(own, to, bytes),
        });
        let legs_of = |at: Address, rows: &[usize]| -> Vec<Option<(Address, usize)>> {
            let ends = rows.iter().scan(0, |end, rows| {
                *end += rows * x.cols;
                Some(*end)
            });
            let of = ends.zip(rows).enumerate().map(|(rank, (end, rows))| {
                let words = rows * x.cols;
                // Both ranks know where there is nothing.
                let is = rank != self.rank && words > 0;
                is.then(|| (at + 4 * (end - words) as u64, words))
            });
            of.collect()
        };
        let (to, of) = (legs_of(x.at(), rows_to), legs_of(out.at(), rows_from));
        let legs: Vec<Leg> = to.into_iter().zip(of).map(|(sent, received)| Leg { sent, received }).collect();
        if legs.iter().any(|leg| leg.sent.is_some() || leg.received.is_some()) {
            self.rings.exchanges.set(self.rings.exchanges.get().wrapping_add(1));
            let sides = legs.iter().flat_map(|leg| [leg.sent, leg.received]).flatten();
            let most = sides.map(|(_, words)| words).max().unwrap_or(0);
            self.move_words(queue, ALL_TO_ALL, (&legs, self.ranks()), most, self.timeout);
        }
        out
    }

    /// Messages of at most so many words, or fewer: launches of as many are the same. `numbered`: see the kernel.
    fn move_words(
        &self,
        queue: &Queue,
        op: usize,
        (legs, numbered): (&[Leg], usize),
        most: usize,
        patience: Duration,
    ) {
        self.rings.count(legs);
        let at = |side: Option<(Address, usize)>| side.map_or(0, |(at, _)| at);
        let words = |side: Option<(Address, usize)>| side.map_or(NOTHING, |(_, words)| words as u64);
        let numbers = |leg: &Leg| [at(leg.sent), at(leg.received), words(leg.sent), words(leg.received)];
        let table: Vec<u8> = legs.iter().flat_map(numbers).flat_map(u64::to_le_bytes).collect();
        let table = queue.uploaded(&table);
        let lanes = lanes_of(most, self.rings.lanes);
        // All threads of a block look at ranks, and each moves four words at a time.
        let threads = most.div_ceil(4 * lanes).next_multiple_of(32).clamp(32, MOST_THREADS);
        let timeout = usize::try_from(patience.as_nanos()).unwrap_or(usize::MAX);
        let arguments = Arguments::new().address(self.group()).count(op).address(table.at).count(numbered);
        let arguments = arguments.long(timeout);
        queue.launch(Kernel { file: "moves", name: "move_words" }, Grid::flat(lanes, threads), arguments);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn receives_wait_for_ten_deadlines_and_at_least_five_minutes() {
        let waits = [1, 30, 60, u64::MAX].map(|seconds| patience(Duration::from_secs(seconds)));
        assert_eq!(waits[..3], [300, 300, 600].map(Duration::from_secs));
        assert_eq!(waits[3], Duration::MAX);
    }

    #[test]
    fn rings_are_powers_of_two_and_have_room() {
        for ranks in 2..=MOST_RANKS {
            for blocks in [1, 2, 7, 8, 64] {
                let rings = Rings::new(ranks, blocks);
                assert!(
                    rings.words.is_power_of_two() && rings.words >= 4096,
                    "{ranks} ranks, {blocks} blocks"
                );
                assert!(4 * rings.words * rings.lanes * ranks <= RING_BYTES);
                assert!(8 * rings.words * rings.lanes * ranks > RING_BYTES, "half of it is used at least");
            }
        }
    }
}
