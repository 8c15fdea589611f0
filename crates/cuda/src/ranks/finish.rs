//! Finishes reduction trees on a GPU (`kernels/tree.cuh`), with the bits of the processor.

use std::cell::RefCell;
use std::rc::Rc;

use collective::ReducePlan;

use crate::driver::{Address, Arguments, Kernel};
use crate::memory::Block;
use crate::tensor::Queue;

/// Sums that kernels have room for.
const DEPTH: usize = 32;

/// A plan as kernels read it: for each item the rank, its node there, and the merges behind it.
pub(crate) struct Tree {
    items: Block,
    pub num_items: usize,
}

impl Tree {
    fn new(queue: &Queue, plan: &ReducePlan) -> Self {
        let owners = plan.nodes_of_rank.iter().enumerate();
        let nodes = owners.flat_map(|(rank, &nodes)| (0..nodes).map(move |node| (rank as u32, node as u32)));
        let merges = &plan.finish.merges;
        assert_eq!(
            plan.nodes_of_rank.iter().sum::<usize>(),
            merges.len(),
            "a plan's items are its ranks' nodes"
        );
        let (mut height, mut most) = (0, 0);
        for &merges in merges {
            height += 1;
            most = most.max(height);
            height -= merges as usize;
        }
        assert!(height == 1 && most <= DEPTH, "a plan leaves one sum and needs {DEPTH} at a time at most");
        let words = nodes.zip(merges).flat_map(|((rank, node), &merges)| [rank, node, merges]);
        Tree { items: queue.numbers(words), num_items: merges.len() }
    }

    /// Where the items lie.
    pub fn at(&self) -> Address {
        self.items.at
    }
}

/// The trees of the plans that came. A model has a few.
#[derive(Default)]
pub(crate) struct Trees(RefCell<Vec<(ReducePlan, Rc<Tree>)>>);

impl Trees {
    /// A plan's tree.
    ///
    /// # Panics
    /// If the plan leaves more or less than one sum.
    pub fn get(&self, queue: &Queue, plan: &ReducePlan) -> Rc<Tree> {
        let mut trees = self.0.borrow_mut();
        if let Some((_, tree)) = trees.iter().find(|(of, _)| of == plan) {
            return tree.clone();
        }
        let tree = Rc::new(Tree::new(queue, plan));
        // After a fault nothing may have been written.
        if queue.0.is_sound() {
            trees.push((plan.clone(), tree.clone()));
        }
        tree
    }
}

/// Writes a tree's sums to `out [count]`. `parts[r]` is where rank r's nodes lie, of `count` elements each, one behind the other;
/// of a rank without nodes it is not looked at.
pub(crate) fn finish(queue: &Queue, tree: &Tree, parts: &[Address], out: Address, count: usize) {
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.to_le_bytes()).collect();
    let table = queue.uploaded(&bytes);
    let is_four = count.is_multiple_of(4) && parts.iter().chain([&out]).all(|at| at.is_multiple_of(16));
    let (name, elements) = if is_four { ("finish_fours", count / 4) } else { ("finish_ones", count) };
    let arguments = Arguments::new().address(out).address(table.at).address(tree.at());
    let arguments = arguments.count(tree.num_items).long(count);
    queue.launch(Kernel { file: "finish", name }, queue.over_elements(elements), arguments);
}
