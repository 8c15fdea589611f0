//! Mixtures of experts: choosing, sorting by expert, and the weighted sum. Routings and assignments stay on the GPU.

use std::ops::Range;

use tensor::{Program, RouterSpec};

use crate::driver::{Arguments, Fault, Grid, Kernel};
use crate::memory::Block;
use crate::of_program::OfProgram;
use crate::tensor::{CudaTensor, Queue};

/// The id in a place of a routing that its token does not use; as `kernels/moe.cu` has it.
const NOBODY: u32 = u32::MAX;
/// Sums that a thread keeps until they are merged; as `kernels/moe.cu` has it. A tree over 65,536 experts has no more.
const MOST_WAITING: u32 = 34;
/// Threads of a block that sums up.
const THREADS: usize = 256;
/// The most threads of a block that sorts.
const MOST_THREADS: usize = 1024;

const fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "moe", name }
}

/// Chosen experts per token, by ascending id, and their weights. Places that a token does not use are at its end.
pub struct CudaRouting {
    tokens: usize,
    experts: usize,
    /// Places per token.
    places: usize,
    /// `[tokens, places]`
    ids: Block,
    /// `[tokens, places]`
    weights: Block,
    chosen: Chosen,
}

/// What the host knows of choices.
enum Chosen {
    /// Every token has one in each place, of whatever id.
    All,
    /// How many tokens chose each id.
    Counts(Vec<usize>),
}

/// The (token, expert) pairs of a range of experts, by expert, then by token.
pub struct CudaAssignment {
    pub(crate) tokens: usize,
    /// Of the range.
    pub(crate) experts: usize,
    /// Of each token, in the routing.
    places: usize,
    /// How many there are, or rows for as many as there could be.
    pub(crate) pairs: usize,
    /// The first pair of each expert, and the number of pairs: `[experts + 1]`
    pub(crate) offsets: Block,
    /// `[pairs]`
    pub(crate) pair_token: Block,
    /// `[pairs]`
    pair_weight: Block,
    /// Each token's (expert of the range, pair), by expert: `[tokens, places, 2]`, and how many it has: `[tokens]`
    choices: Block,
    choices_of_token: Block,
}

/// How many items are on a program's stack after each of them.
pub(crate) struct Heights(Block);

impl Heights {
    fn new(queue: &Queue, program: &Program) -> Self {
        let after = |height: &mut u32, merges: &u32| {
            *height = *height + 1 - merges;
            Some(*height)
        };
        let heights: Vec<u32> = program.merges.iter().scan(0, after).collect();
        assert!(heights.iter().all(|&height| height <= MOST_WAITING), "combine: sums that wait to be merged");
        Heights(queue.numbers(heights))
    }
}

impl CudaRouting {
    /// Pairs of a range of experts, if the host knows how many there are.
    fn pairs(&self, experts: &Range<usize>) -> Option<usize> {
        match &self.chosen {
            Chosen::Counts(counts) => Some(counts[experts.clone()].iter().sum()),
            Chosen::All if experts.len() == self.experts => Some(self.tokens * self.places),
            Chosen::All if self.places == self.experts => Some(self.tokens * experts.len()),
            Chosen::All => (self.tokens * experts.len() == 0).then_some(0),
        }
    }
}

/// Chooses experts of each token.
pub(crate) fn route(queue: &Queue, logits: &CudaTensor, spec: RouterSpec) -> CudaRouting {
    let (tokens, experts, places) = (logits.rows, logits.cols, spec.top_k);
    assert!(places <= experts, "{places} of {experts} experts");
    let [ids, weights] = [0, 1].map(|_| queue.block(4 * tokens * places));
    let arguments = Arguments::new().address(ids.at).address(weights.at).address(logits.at());
    let arguments = arguments.count(experts).count(places).count(usize::from(spec.normalize));
    let grid = Grid::flat(tokens, 32).with_shared(4 * (experts + places));
    queue.launch(kernel("moe_route"), grid, arguments);
    CudaRouting { tokens, experts, places, ids, weights, chosen: Chosen::All }
}

/// What each token chose: (expert, weight).
pub(crate) fn routing_to_host(queue: &Queue, routing: &CudaRouting) -> Result<Vec<Vec<(u32, f32)>>, Fault> {
    let (tokens, places) = (routing.tokens, routing.places);
    let ids = queue.read_numbers(routing.ids.at, tokens * places)?;
    let weights = queue.read(routing.weights.at, tokens * places)?;
    let of_token = |token: usize| {
        let places = token * places..(token + 1) * places;
        let pairs = ids[places.clone()].iter().copied().zip(weights[places].iter().copied());
        pairs.take_while(|&(id, _)| id != NOBODY).collect()
    };
    Ok((0..tokens).map(of_token).collect())
}

/// Adds how many tokens chose each expert to `counts [1, experts]`.
pub(crate) fn count_choices(queue: &Queue, routing: &CudaRouting, counts: &CudaTensor) {
    assert_eq!([counts.rows, counts.cols], [1, routing.experts], "count_choices: a count per expert");
    let arguments = Arguments::new().address(counts.at()).address(routing.ids.at);
    let grid = Grid::flat(routing.experts, THREADS);
    queue.launch(kernel("moe_count"), grid, arguments.count(routing.tokens * routing.places));
}

/// A routing of choices that were made elsewhere.
pub(crate) fn routing_from_host(queue: &Queue, choices: &[Vec<(u32, f32)>], experts: usize) -> CudaRouting {
    let (tokens, places) = (choices.len(), choices.iter().map(Vec::len).max().unwrap_or(0));
    let (mut ids, mut weights) = (vec![NOBODY; tokens * places], vec![0; tokens * places]);
    let mut counts = vec![0; experts];
    for (token, chosen) in choices.iter().enumerate() {
        assert!(chosen.is_sorted_by(|a, b| a.0 < b.0), "choices ascend: {chosen:?}");
        assert!(chosen.last().is_none_or(|c| (c.0 as usize) < experts), "{chosen:?} of {experts} experts");
        for (place, &(id, weight)) in (token * places..).zip(chosen) {
            ids[place] = id;
            weights[place] = weight.to_bits();
            counts[id as usize] += 1;
        }
    }
    let (ids, weights) = (queue.numbers(ids), queue.numbers(weights));
    CudaRouting { tokens, experts, places, ids, weights, chosen: Chosen::Counts(counts) }
}

/// Sorts the pairs of `experts` by expert, then by token.
///
/// How many there are is known where choices came from the host, and where all experts are here. A part of the experts of a
/// routing that was made here has as many as it has: matrices get rows for as many as there could be, which no kernel works on,
/// so that nothing is waited for. That is as much memory as a rank needs that has all experts.
pub(crate) fn assign(queue: &Queue, routing: &CudaRouting, experts: Range<usize>) -> CudaAssignment {
    assert!(experts.end <= routing.experts, "experts {experts:?} of {}", routing.experts);
    let (tokens, places) = (routing.tokens, routing.places);
    let most = tokens * places.min(experts.len());
    let offsets = match experts.len() {
        // No block is there to write it.
        0 => queue.numbers([0]),
        len => queue.block(4 * (len + 1)),
    };
    let [pair_token, pair_weight] = [0, 1].map(|_| queue.block(4 * most));
    let (choices, choices_of_token) = (queue.block(8 * tokens * places), queue.block(4 * tokens));
    let arguments = Arguments::new().address(offsets.at).address(pair_token.at).address(pair_weight.at);
    let arguments = arguments.address(choices.at).address(choices_of_token.at);
    let arguments = arguments.address(routing.ids.at).address(routing.weights.at).count(tokens).count(places);
    let threads = tokens.next_multiple_of(32).clamp(32, MOST_THREADS);
    let arguments = arguments.count(experts.start).count(experts.len());
    queue.launch(kernel("moe_assign"), Grid::flat(experts.len(), threads), arguments);
    let pairs = routing.pairs(&experts).unwrap_or(most);
    let experts = experts.len();
    CudaAssignment {
        tokens,
        experts,
        places,
        pairs,
        offsets,
        pair_token,
        pair_weight,
        choices,
        choices_of_token,
    }
}

/// The program's nodes over `weight · output` of the experts that each token chose.
pub(crate) fn combine(
    queue: &Queue,
    heights: &OfProgram<Heights>,
    y: &CudaTensor,
    assignment: &CudaAssignment,
    program: &Program,
) -> CudaTensor {
    let &CudaAssignment { tokens, experts, places, .. } = assignment;
    assert_eq!(y.rows, assignment.pairs, "combine: one row per pair");
    assert_eq!(program.inputs.len(), experts, "combine: one item per expert");
    let nodes = program.num_nodes();
    let out = queue.tensor(nodes * tokens, y.cols);
    let heights = heights.get(queue, program, || Heights::new(queue, program));
    let arguments = Arguments::new().address(out.at()).address(y.at()).address(assignment.pair_weight.at);
    let arguments = arguments.address(assignment.choices.at).address(assignment.choices_of_token.at);
    let arguments = arguments.address(heights.0.at).count(tokens).count(places).count(experts);
    let most_parts = y.cols.div_ceil(THREADS);
    let blocks = 8 * queue.0.driver.multiprocessors();
    let parts = if nodes > 0 { blocks.div_ceil(tokens.max(1)).min(most_parts) } else { 0 };
    let grid = Grid::plane(tokens, parts, THREADS).with_shared(12 * places);
    queue.launch(kernel("moe_combine"), grid, arguments.count(nodes).count(y.cols).count(parts * THREADS));
    out
}
