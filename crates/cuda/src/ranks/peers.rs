//! Collectives of ranks that use each other's memory (`kernels/ranks.cuh`, `all_reduce.cu`).

use std::cell::Cell;
use std::iter::repeat_n;
use std::sync::Arc;
use std::time::Duration;

use collective::ReducePlan;

use super::finish::Tree;
use super::rings::Rings;
use super::words::{Report, Words};
use crate::driver::{Address, Arguments, Fault, Grid, Kernel, SharedMemory};
use crate::memory::Block;
use crate::tensor::{CudaTensor, Queue};

/// Operations by their numbers in kernels.
pub(super) const OPS: [&str; 6] =
    ["all_reduce", "reduce_scatter", "all_gather", "all_to_all", "send", "recv"];
pub(super) const ALL_REDUCE: usize = 0;
pub(super) const REDUCE_SCATTER: usize = 1;
pub(super) const ALL_GATHER: usize = 2;
pub(super) const ALL_TO_ALL: usize = 3;
pub(super) const SEND: usize = 4;
pub(super) const RECV: usize = 5;
/// Those from here on concern two ranks.
pub(super) const FIRST_OF_MESSAGES: usize = SEND;

/// The most blocks of a kernel that waits for others, as in the kernels.
pub(super) const MOST_BLOCKS: usize = 64;
/// Threads of its blocks, at most.
pub(super) const MOST_THREADS: usize = 512;
/// Where a region's parts begin: flags, what the kernels know of the group, how far messages are, slots. Behind the slots are rings.
pub(super) const GROUP_AT: u64 = 8448;
const RINGS_AT: usize = 9216;
pub(super) const FIRST_SLOT: usize = 16 << 10;

/// How all-reduces are done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shots {
    One,
    Two,
}

/// One rank's view of the memory of all.
pub(super) struct Peers {
    pub rank: usize,
    /// Of each rank.
    pub regions: Vec<Arc<dyn SharedMemory>>,
    /// Of those in this process.
    pub words: Vec<Option<Words>>,
    /// Blocks of kernels that wait: those of all ranks have room at the same time.
    pub blocks: usize,
    /// Shared memory that a block can have on any of the GPUs.
    pub shared_bytes: usize,
    /// f32 numbers that a slot has room for.
    pub slot: usize,
    pub timeout: Duration,
    /// All-reduces of at most so many bytes of a rank are done in one shot.
    pub one_shot_bytes: Cell<usize>,
    /// Kernels so far that wait for others.
    pub calls: Cell<u32>,
    /// How messages travel.
    pub rings: Rings,
}

impl Peers {
    pub(super) fn ranks(&self) -> usize {
        self.regions.len()
    }

    /// Writes what kernels know of the group into this rank's region, which wait for so long from then on.
    pub fn tell_kernels(&self, queue: &Queue, timeout: Duration) {
        let mut bytes = Vec::new();
        bytes.extend((self.rank as u32).to_le_bytes());
        bytes.extend((self.ranks() as u32).to_le_bytes());
        let slot_bytes = 4 * self.slot as u64;
        let timeout_ns = u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX);
        let numbers = [timeout_ns, slot_bytes, FIRST_SLOT as u64, self.own_words().at()];
        let rings = [RINGS_AT, FIRST_SLOT + 8 * self.slot, self.rings.lanes | self.rings.words << 32];
        let regions = self.regions.iter().map(|region| region.at());
        let numbers = numbers.into_iter().chain(rings.map(|number| number as u64)).chain(regions);
        numbers.for_each(|number| bytes.extend(number.to_le_bytes()));
        queue.write(self.group(), &bytes);
    }

    /// Where that is.
    pub(super) fn group(&self) -> Address {
        self.regions[self.rank].at() + GROUP_AT
    }

    /// Where this rank's slots begin.
    pub fn own_slots(&self) -> Address {
        self.regions[self.rank].at() + FIRST_SLOT as u64
    }

    /// What this rank's kernels have found out.
    pub fn report(&self) -> Option<Report> {
        self.own_words().report()
    }

    /// This rank's.
    pub fn own_words(&self) -> &Words {
        self.words[self.rank].as_ref().expect("a rank is in its own process")
    }

    fn launch(&self, queue: &Queue, name: &'static str, elements: usize, arguments: Arguments) {
        // As many threads as there is work for, in warps; all ranks have the same.
        let threads = elements.div_ceil(self.blocks).next_multiple_of(32).clamp(32, MOST_THREADS);
        let blocks = elements.div_ceil(threads).clamp(1, self.blocks);
        self.launch_in(queue, Kernel { file: "all_reduce", name }, Grid::flat(blocks, threads), arguments);
    }

    /// A kernel that waits for others. Its grid is the same on all ranks.
    pub(super) fn launch_in(&self, queue: &Queue, kernel: Kernel, grid: Grid, arguments: Arguments) {
        self.calls.set(self.calls.get().wrapping_add(1));
        queue.launch(kernel, grid, arguments);
    }

    /// The sum of the nodes of all ranks, on every rank.
    pub fn all_reduce(
        &self,
        queue: &Queue,
        tree: &Tree,
        partial: &CudaTensor,
        rows: usize,
        plan: &ReducePlan,
    ) -> CudaTensor {
        let bytes = 4 * partial.part_len() * most_nodes(plan);
        let shots = if bytes <= self.one_shot_bytes.get() { Shots::One } else { Shots::Two };
        self.all_reduce_in(queue, tree, partial, rows, plan, shots)
    }

    /// The same in one or two shots.
    pub fn all_reduce_in(
        &self,
        queue: &Queue,
        tree: &Tree,
        partial: &CudaTensor,
        rows: usize,
        plan: &ReducePlan,
        shots: Shots,
    ) -> CudaTensor {
        let out = queue.tensor_of(1, rows, partial.part_rows(), partial.cols);
        let elements = out.filled_len();
        let nodes = Nodes { of: partial, elements, plan, tree };
        match shots {
            Shots::One => self.one_shot(queue, ALL_REDUCE, &out, &nodes, 0, elements.is_multiple_of(4)),
            Shots::Two => self.two_shot(queue, &out, &nodes),
        }
        out
    }

    /// The sum of this rank's rows.
    pub fn reduce_scatter(
        &self,
        queue: &Queue,
        tree: &Tree,
        partial: &CudaTensor,
        rows_of_rank: &[usize],
        plan: &ReducePlan,
    ) -> CudaTensor {
        let cols = partial.cols;
        let out = queue.tensor(rows_of_rank[self.rank], cols);
        let first: usize = rows_of_rank[..self.rank].iter().sum();
        let nodes = Nodes { of: partial, elements: partial.part_len(), plan, tree };
        // Which rows are whose lies in memory: it is another thing with every number of rows.
        let wanted = [first * cols, (first + rows_of_rank[self.rank]) * cols];
        let wanted = longs(queue, wanted);
        // All ranks must cut in the same way, so fours must be fours for all.
        self.one_shot(queue, REDUCE_SCATTER, &out, &nodes, wanted.at, cols.is_multiple_of(4));
        out
    }

    /// `wanted`: where the first of this rank's elements lies, and the end; nowhere if it wants all.
    fn one_shot(
        &self,
        queue: &Queue,
        op: usize,
        out: &CudaTensor,
        nodes: &Nodes<'_>,
        wanted: Address,
        are_fours: bool,
    ) {
        let most = self.slot / most_nodes(nodes.plan) / 4 * 4;
        let (name, together) = if are_fours { ("one_shot_fours", 4) } else { ("one_shot_ones", 1) };
        for first in (0..nodes.elements).step_by(most) {
            let count = most.min(nodes.elements - first);
            let arguments = self.piece(op, out, nodes, first, count).address(wanted);
            let arguments = arguments.address(nodes.tree.at()).count(nodes.tree.num_items);
            self.launch(queue, name, count / together, arguments);
        }
    }

    fn two_shot(&self, queue: &Queue, out: &CudaTensor, nodes: &Nodes<'_>) {
        let are_fours = nodes.elements.is_multiple_of(4);
        let (name, together) = if are_fours { ("two_shot_fours", 4) } else { ("two_shot_ones", 1) };
        // Room for a slice's sums beside the nodes.
        let most = (self.slot - 4) / (most_nodes(nodes.plan) + 1) / 4 * 4;
        for first in (0..nodes.elements).step_by(most) {
            let count = most.min(nodes.elements - first);
            let slice = count.div_ceil(self.ranks()).next_multiple_of(4);
            let arguments = self.piece(ALL_REDUCE, out, nodes, first, count).long(slice);
            let arguments = arguments.address(nodes.tree.at()).count(nodes.tree.num_items);
            self.launch(queue, name, slice / together, arguments);
        }
    }

    fn piece(&self, op: usize, out: &CudaTensor, nodes: &Nodes<'_>, first: usize, count: usize) -> Arguments {
        let own = nodes.plan.nodes_of_rank[self.rank];
        let arguments = Arguments::new().address(out.at()).address(self.group()).count(op);
        arguments.address(nodes.of.at()).count(own).long(nodes.elements).long(first).long(count)
    }

    /// All ranks' rows.
    pub fn all_gather(&self, queue: &Queue, part: &CudaTensor, rows_of_rank: &[usize]) -> CudaTensor {
        let (rows, cols) = (rows_of_rank.iter().sum(), part.cols);
        let filled = || rows_of_rank.iter().map(|&rows| queue.filled_up(rows) * cols);
        // The same memory for all numbers of rows that are filled up to these.
        let out = queue.tensor_with_room(rows, queue.filled_up(rows), cols, filled().sum());
        let words = rows_of_rank.iter().map(|rows| rows * cols);
        self.gather(queue, part, words, filled().max().unwrap_or(0), &out);
        out
    }

    /// All ranks' rows, of which each has as many.
    pub fn all_gather_alike(&self, queue: &Queue, part: &CudaTensor) -> CudaTensor {
        let out = queue.tensor_of(self.ranks(), part.rows, part.part_rows(), part.cols);
        self.gather(queue, part, repeat_n(part.part_len(), self.ranks()), part.part_len(), &out);
        out
    }

    /// So many words of each rank, `longest` at most.
    fn gather(
        &self,
        queue: &Queue,
        part: &CudaTensor,
        words: impl IntoIterator<Item = usize>,
        longest: usize,
        out: &CudaTensor,
    ) {
        let table = longs(queue, words);
        let are_fours = part.cols.is_multiple_of(4);
        let (name, together) = if are_fours { ("gather_fours", 4) } else { ("gather_ones", 1) };
        let most = self.slot / 4 * 4;
        for first in (0..longest).step_by(most) {
            let arguments = Arguments::new().address(out.at()).address(self.group()).count(ALL_GATHER);
            let arguments = arguments.address(part.at()).address(table.at).long(first).long(most);
            self.launch(queue, name, most.min(longest - first).div_ceil(together), arguments);
        }
    }

    /// What of another rank's slots this rank's GPU reads, behind all work.
    ///
    /// # Errors
    /// Whatever went wrong before.
    pub fn read_of(&self, queue: &Queue, rank: usize, words: usize) -> Result<Vec<u32>, Fault> {
        let copy = queue.block(4 * words);
        let from = self.regions[rank].at() + FIRST_SLOT as u64;
        let arguments = Arguments::new().address(copy.at).address(from).long(words);
        queue.launch(
            Kernel { file: "all_reduce", name: "copy_words" },
            queue.over_elements(words),
            arguments,
        );
        queue.read_numbers(copy.at, words)
    }

    /// Has this rank's GPU write words into another rank's slots, from word `at` on.
    pub fn write_to(&self, queue: &Queue, rank: usize, at: usize, words: &[u32]) {
        let from = queue.numbers(words.iter().copied());
        let to = self.regions[rank].at() + FIRST_SLOT as u64 + 4 * at as u64;
        let arguments = Arguments::new().address(to).address(from.at).long(words.len());
        let grid = queue.over_elements(words.len());
        queue.launch(Kernel { file: "all_reduce", name: "copy_words" }, grid, arguments);
    }
}

/// Numbers that kernels read as `u64`.
fn longs(queue: &Queue, numbers: impl IntoIterator<Item = usize>) -> Block {
    queue.uploaded(&numbers.into_iter().flat_map(|n| (n as u64).to_le_bytes()).collect::<Vec<_>>())
}

/// What a rank brings to a reduction.
struct Nodes<'a> {
    of: &'a CudaTensor,
    /// Of each node.
    elements: usize,
    plan: &'a ReducePlan,
    tree: &'a Tree,
}

/// Of any rank.
pub(super) fn most_nodes(plan: &ReducePlan) -> usize {
    plan.nodes_of_rank.iter().copied().max().unwrap_or(0).max(1)
}
