//! A program as kernels are told it, on the GPU; made once per weight.

use std::cell::RefCell;
use std::rc::Rc;

use ::tensor::{DType, Program, WeightFormat, WeightSpec};

use super::deal::{Deal, Items};
use super::tiles::Layout;
use crate::driver::Address;
use crate::memory::Block;
use crate::tensor::Queue;

/// Sums of a warp of `linear.cuh` for which there is room: those of 256 leaves that eight warps share.
const MOST_WAITING: usize = 5;
/// Query heads, the leaves of attention's projection, for whose tree that is enough.
pub const MOST_HEADS: usize = 256;

/// A program of one weight.
pub(super) enum Plan {
    /// In f32: where each item's inputs end, then the merges behind it.
    Exact { items: usize, words: Block },
    /// In tiles: dealt out to all warps that can share it, and to one; and where the tiles of each node begin.
    Tiled { shared: Box<Dealt>, alone: Box<Dealt>, nodes: Nodes },
}

/// The first tile of each node, and the end of the last.
pub(super) struct Nodes {
    pub tiles: Vec<usize>,
    words: Block,
}

impl Nodes {
    fn new(queue: &Queue, items: &Items) -> Self {
        let (mut tiles, mut end) = (Vec::new(), 0);
        for (own, &merges) in items.tiles.iter().zip(&items.merges) {
            // A node begins where the first of what was merged does.
            let keep = tiles.len() + 1 - merges as usize;
            tiles.push(end);
            tiles.truncate(keep);
            end += own.len();
        }
        tiles.push(end);
        let words = queue.numbers(tiles.iter().map(|&tile| tile as u32));
        Nodes { tiles, words }
    }

    /// The same as numbers on the GPU.
    pub fn at(&self) -> Address {
        self.words.at
    }
}

/// A deal.
pub(super) struct Dealt {
    pub deal: Deal,
    words: Block,
    offsets: [usize; 2],
}

impl Dealt {
    fn new(queue: &Queue, deal: Deal) -> Self {
        let (words, offsets) = deal.words();
        Dealt { deal, words: queue.numbers(words), offsets }
    }

    /// Where the deal lies, its items, and the merges of what is left.
    pub fn addresses(&self) -> [Address; 3] {
        [0, self.offsets[0], self.offsets[1]].map(|offset| self.words.at + offset as u64)
    }
}

impl Plan {
    /// Without a program inputs belong to no tree.
    fn new(queue: &Queue, spec: WeightSpec, k: usize, program: Option<&Program>) -> Self {
        let whole = Program::sequential(k);
        if spec.format == WeightFormat::Float(DType::F32) {
            let Program { inputs, merges, .. } = program.unwrap_or(&whole);
            let ends = inputs.iter().map(|inputs| inputs.end as u32);
            return Plan::Exact {
                items: merges.len(),
                words: queue.numbers(ends.chain(merges.iter().copied())),
            };
        }
        let layout = Layout::new(spec, k);
        let of = |program: &Program| Items {
            tiles: program.inputs.iter().map(|inputs| layout.tiles_of(inputs.clone())).collect(),
            merges: program.merges.clone(),
        };
        let items = match (program, spec.format) {
            (Some(program), _) => of(program),
            // One group after the other, as everywhere.
            (None, WeightFormat::Int8 | WeightFormat::Int4) => of(&whole),
            (None, _) => Items::cut(layout.tiles()),
        };
        let dealt = |sharing: usize| Box::new(Dealt::new(queue, Deal::new(&items, sharing)));
        let shared = dealt(items.sharing());
        assert!(shared.deal.waiting <= MOST_WAITING, "a tree of {} items is too deep", items.tiles.len());
        let nodes = Nodes::new(queue, &items);
        Plan::Tiled { shared, alone: dealt(1), nodes }
    }
}

/// Programs that ran over a weight.
#[derive(Default)]
pub(super) struct Plans(RefCell<Vec<(Option<Program>, Rc<Plan>)>>);

impl Plans {
    pub fn get(&self, queue: &Queue, spec: WeightSpec, k: usize, program: Option<&Program>) -> Rc<Plan> {
        let mut plans = self.0.borrow_mut();
        if let Some((_, plan)) = plans.iter().find(|(of, _)| of.as_ref() == program) {
            return plan.clone();
        }
        let plan = Rc::new(Plan::new(queue, spec, k, program));
        // After a fault nothing may have been written.
        if queue.0.is_sound() {
            plans.push((program.cloned(), plan.clone()));
        }
        plan
    }
}
