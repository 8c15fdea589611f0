//! Attention: which kernel works on which rows, and where what they leave for each other lies.

mod split;
mod tiles;

pub use tiles::kernels_for;

use std::cell::RefCell;
use std::iter::repeat_n;
use std::ops::Range;

use tensor::{AttentionSpec, SeenSegment, seen_segments};

use crate::driver::{Address, Arguments, Grid, Kernel};
use crate::kv::CudaKv;
use crate::memory::Block;
use crate::step::{CudaStep, Group};
use crate::tensor::{CudaTensor, Queue};

/// Threads of blocks whose warps each have a row and a head.
const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;
/// No place.
const NONE: u32 = u32::MAX;
/// The largest head that the kernels have registers for.
const MOST_HEAD_DIM: usize = 256;

/// What kernels of attention are told.
struct Call<'a> {
    queue: &'a Queue,
    queries: &'a CudaTensor,
    kv: &'a CudaKv,
    step: &'a CudaStep,
    spec: &'a AttentionSpec,
    /// Which rows of the step.
    rows: Range<usize>,
    /// How many segments a row sees at most.
    segments: usize,
    /// Where segments go that are asked for one by one, and how many each head has of them.
    places: Option<(Address, usize)>,
}

/// Zeros that blocks which work on the same rows count themselves with; they leave zeros behind.
#[derive(Default)]
pub(crate) struct Arrived(RefCell<Option<(usize, Block)>>);

impl Arrived {
    fn address(&self, queue: &Queue, count: usize) -> Address {
        let mut own = self.0.borrow_mut();
        if let Some((_, block)) = own.as_ref().filter(|(there, _)| *there >= count) {
            return block.at;
        }
        let count = count.next_power_of_two();
        let block = queue.numbers(repeat_n(0, count));
        let at = block.at;
        // After a fault nothing was written, and nothing is launched.
        *own = queue.0.is_sound().then_some((count, block));
        at
    }
}

/// The result of every row.
pub(crate) fn attention(
    queue: &Queue,
    arrived: &Arrived,
    qkv: &CudaTensor,
    kv: &CudaKv,
    step: &CudaStep,
    spec: &AttentionSpec,
) -> CudaTensor {
    assert_eq!([qkv.rows, qkv.cols], [step.rows, spec.qkv_cols()], "shape of qkv");
    assert_eq!(kv.spec.share.owners, 1, "all blocks are here");
    let out = queue.tensor(qkv.rows, spec.num_heads * spec.head_dim);
    let segments = step.segments(spec.window);
    let rows = 0..qkv.filled_rows();
    let call = Call { queue, queries: qkv, kv, step, spec, rows, segments, places: None };
    call.check();
    let short = &step.short;
    let slots = short.count * short.most_rows;
    if slots > 0 && segments == 1 {
        call.of_short(out.at(), None);
    } else if slots > 0 {
        let parts = queue.tensor(slots * segments * spec.num_heads, 2 + spec.head_dim);
        if kv.is_exact() {
            call.of_short(parts.at(), None);
            let merge = Merge { queue, step, spec, segments };
            merge.launch(out.at(), parts.at(), Rows { list: short.rows, first: 0, count: slots }, 0);
        } else {
            let count = call.packs() * spec.num_kv_heads;
            call.of_short(out.at(), Some((parts.at(), arrived.address(queue, count))));
        }
    }
    call.of_long(out.at());
    out
}

/// The segments that are here of the rows of a range.
pub(crate) fn segments(
    queue: &Queue,
    q: &CudaTensor,
    kv: &CudaKv,
    step: &CudaStep,
    spec: &AttentionSpec,
    rows: Range<usize>,
) -> CudaTensor {
    assert_eq!([q.rows, q.cols], [step.rows, spec.num_heads * spec.head_dim], "shape of q");
    let segments = step.segments(spec.window);
    let share = kv.spec.share;
    let seen = seen_segments(&step.sequences, spec.window, rows.clone());
    let here: Vec<SeenSegment> = seen.filter(|seen| share.local(seen.block).is_some()).collect();
    let mut places = vec![NONE; rows.len() * segments];
    for (place, seen) in here.iter().enumerate() {
        places[(seen.row - rows.start) * segments + seen.segment % segments] = number(place);
    }
    let places = queue.numbers(places);
    let out = queue.tensor(spec.num_heads * here.len(), 2 + spec.head_dim);
    let places = Some((places.at, here.len()));
    let call = Call { queue, queries: q, kv, step, spec, rows, segments, places };
    call.check();
    if !here.is_empty() {
        call.of_short(out.at(), None);
        call.of_long(out.at());
    }
    out
}

/// Merges what all owners have of the rows of a range.
pub(crate) fn merge(
    queue: &Queue,
    parts: &CudaTensor,
    owners: usize,
    step: &CudaStep,
    spec: &AttentionSpec,
    rows: Range<usize>,
    out: &CudaTensor,
) {
    let segments = step.segments(spec.window);
    let seen: Vec<SeenSegment> = seen_segments(&step.sequences, spec.window, rows.clone()).collect();
    assert_eq!([parts.rows, parts.cols], [spec.num_heads * seen.len(), 2 + spec.head_dim], "shape of parts");
    assert_eq!([out.rows, out.cols], [step.rows, spec.num_heads * spec.head_dim], "shape of out");
    let places = merge_places(queue, &seen, owners, spec.num_heads, &rows, segments);
    let rows = Rows { list: 0, first: rows.start, count: rows.len() };
    Merge { queue, step, spec, segments }.launch(out.at(), parts.at(), rows, places.at);
}

/// Where each row's segments are among the parts of all owners: of the first head, and from head to head.
fn merge_places(
    queue: &Queue,
    seen: &[SeenSegment],
    owners: usize,
    heads: usize,
    rows: &Range<usize>,
    segments: usize,
) -> Block {
    let mut counts = vec![0; owners];
    seen.iter().for_each(|seen| counts[seen.owner(owners)] += 1);
    let mut next: Vec<usize> = counts
        .iter()
        .scan(0, |first, count| Some(std::mem::replace(first, *first + heads * count)))
        .collect();
    let mut places = vec![[0, 0]; rows.len() * segments];
    for seen in seen {
        let owner = seen.owner(owners);
        places[(seen.row - rows.start) * segments + seen.segment % segments] =
            [number(next[owner]), number(counts[owner])];
        next[owner] += 1;
    }
    queue.numbers(places.into_iter().flatten())
}

/// Rows of a list on the GPU, or, without one, from the first on.
struct Rows {
    list: Address,
    first: usize,
    count: usize,
}

struct Merge<'a> {
    queue: &'a Queue,
    step: &'a CudaStep,
    spec: &'a AttentionSpec,
    segments: usize,
}

impl Merge<'_> {
    fn launch(&self, out: Address, parts: Address, rows: Rows, places: Address) {
        let spec = self.spec;
        let arguments = Arguments::new()
            .address(out)
            .address(parts)
            .address(self.step.positions)
            .address(rows.list)
            .count(rows.count)
            .count(spec.num_heads)
            .count(spec.head_dim)
            .count(window_of(spec))
            .count(self.segments)
            .address(places)
            .count(rows.first);
        let grid = Grid::flat((rows.count * spec.num_heads).div_ceil(WARPS), THREADS);
        self.queue.launch(Kernel { file: "attention_merge", name: "attention_merge" }, grid, arguments);
    }
}

impl Call<'_> {
    fn check(&self) {
        let AttentionSpec { num_heads, num_kv_heads, group, first_in_group, head_dim, window, .. } =
            *self.spec;
        self.kv.check(self.spec);
        assert!(
            head_dim <= MOST_HEAD_DIM,
            "heads of {head_dim} elements are too large for the GPU's kernels"
        );
        assert!(window != Some(0), "a window of no positions");
        let last = (num_heads + first_in_group).div_ceil(group);
        assert!(num_heads == 0 || last <= num_kv_heads, "query heads read {last} of {num_kv_heads} KV heads");
    }

    /// Some rows and their heads of a sequence, for each sequence with few rows.
    fn packs(&self) -> usize {
        let group = &self.step.short;
        group.count * (group.most_rows * self.most_heads()).div_ceil(split::ROWS)
    }

    /// The results of sequences with few rows, or what they leave to be merged. `meet`: where blocks leave parts and count
    /// themselves, to merge them.
    fn of_short(&self, out: Address, meet: Option<(Address, Address)>) {
        let group = &self.step.short;
        if self.kv.is_exact() {
            let segments = if self.segments == 1 && self.places.is_none() { 0 } else { self.segments };
            return self.exact(out, group, segments);
        }
        let spec = self.spec;
        let grid = Grid {
            blocks: [self.packs(), spec.num_kv_heads, self.segments].map(number),
            threads: number(split::THREADS),
            shared: number(split::shared_bytes(spec.head_dim)),
        };
        let name = self.kv.own(split::KERNELS);
        let kernel = Kernel { file: name, name };
        let (parts, arrived) = meet.unwrap_or((0, 0));
        let arguments = self.over_sequences(out, group).count(group.most_rows);
        self.queue.launch(kernel, grid, arguments.address(parts).address(arrived));
    }

    /// The results of sequences with many rows.
    fn of_long(&self, out: Address) {
        let group = &self.step.long;
        if self.kv.is_exact() {
            // Asked for one by one, segments are those of all rows at once: `of_short` has done them.
            if self.places.is_none() {
                self.exact(out, group, 0);
            }
            return;
        }
        let shape = tiles::Shape::of(self.spec.head_dim);
        let blocks = (group.most_rows * self.most_heads()).div_ceil(shape.rows());
        let items = group.count * self.places.map_or(1, |_| self.segments);
        let grid = Grid {
            blocks: [blocks, self.spec.num_kv_heads, items].map(number),
            threads: number(shape.threads(self.kv)),
            shared: number(shape.shared_bytes(self.spec.head_dim, self.kv)),
        };
        let name = shape.kernel(self.kv);
        self.queue.launch(Kernel { file: name, name }, grid, self.over_sequences(out, group));
    }

    /// The most query heads that read one KV head.
    fn most_heads(&self) -> usize {
        self.spec.group.min(self.spec.num_heads)
    }

    /// Arguments of the kernels whose blocks have some rows of a sequence.
    fn over_sequences(&self, out: Address, group: &Group) -> Arguments {
        let (places, per_head) = self.places.unwrap_or((0, 0));
        let arguments = Arguments::new()
            .address(out)
            .address(self.queries.at())
            .count(self.queries.cols)
            .address(self.kv.block.at)
            .address(self.step.spans)
            .address(self.step.tables)
            .address(group.list);
        let arguments = self.of_spec(arguments).count(self.segments).address(places);
        self.kv.share(arguments.count(self.rows.start).count(self.rows.end).count(per_head))
    }

    fn of_spec(&self, arguments: Arguments) -> Arguments {
        let spec = self.spec;
        arguments
            .count(spec.num_heads)
            .count(spec.num_kv_heads)
            .count(spec.group)
            .count(spec.first_in_group)
            .count(spec.head_dim)
            .float(spec.scale)
            .float(spec.softcap.unwrap_or(0.0))
            .count(window_of(spec))
    }

    /// Over caches of f32: a warp per row and head; with `segments`, and segment.
    fn exact(&self, out: Address, group: &Group, segments: usize) {
        let (places, per_head) = self.places.unwrap_or((0, 0));
        let (list, count) = match self.places {
            Some(_) => (0, self.rows.len()),
            None => (group.rows, group.count * group.most_rows),
        };
        let arguments = Arguments::new()
            .address(out)
            .address(self.queries.at())
            .count(self.queries.cols)
            .address(self.kv.block.at)
            .address(self.step.positions)
            .address(self.step.table_of_row)
            .address(self.step.tables)
            .address(list)
            .count(count);
        let arguments =
            self.of_spec(arguments).count(segments).address(places).count(self.rows.start).count(per_head);
        let mut grid = Grid::flat((count * self.spec.num_heads).div_ceil(WARPS), THREADS);
        grid.blocks[2] = number(segments.max(1));
        let kernel = Kernel { file: "attention_exact", name: "attention_exact" };
        self.queue.launch(kernel, grid, self.kv.share(arguments));
    }
}

fn window_of(spec: &AttentionSpec) -> usize {
    spec.window.map_or(u32::MAX as usize, |window| window.min(u32::MAX as usize))
}

fn number(x: usize) -> u32 {
    u32::try_from(x).expect("what kernels count is below 2^32")
}
