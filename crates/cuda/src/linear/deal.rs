//! How the items of a sum are dealt out to the warps of a block, as leaves of a tree are to ranks.

use std::ops::Range;

/// Warps of a block.
pub(crate) const WARPS: usize = 8;

/// Items, and how often the top two sums are merged after each: a [`tensor::Program`] whose inputs are tiles.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Items {
    pub tiles: Vec<Range<usize>>,
    pub merges: Vec<u32>,
}

impl Items {
    /// Tiles that belong to no tree, cut into parts so that warps can share them: a function of their number alone. The parts
    /// are added from left to right.
    pub fn cut(tiles: usize) -> Self {
        let parts = (tiles / 4).clamp(1, WARPS);
        let tiles = (0..parts).map(|i| i * tiles / parts..(i + 1) * tiles / parts).collect();
        Items { tiles, merges: (0..parts).map(|i| u32::from(i > 0)).collect() }
    }

    /// The most warps that can share them.
    pub fn sharing(&self) -> usize {
        let items = self.tiles.len().clamp(1, WARPS);
        1 << items.ilog2()
    }
}

/// What a kernel is told (`kernels/linear.cu`: `Deal`, `Item`, and the merges of what is left).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Deal {
    pub sharing: usize,
    /// Each warp's first item and the end, and the first node that each leaves.
    first_item: Vec<usize>,
    first_left: Vec<usize>,
    items: Vec<Item>,
    /// Merges after each of the nodes that the warps leave.
    left: Vec<u32>,
    /// The most sums of a warp that wait at a time.
    pub waiting: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Item {
    tiles: Range<usize>,
    merges: u32,
    leaves: bool,
}

impl Deal {
    /// Deals items out to so many warps, to each about as many tiles.
    pub fn new(items: &Items, sharing: usize) -> Self {
        let all: usize = items.tiles.iter().map(Range::len).sum();
        let mut deal = Deal {
            sharing,
            first_item: vec![0],
            first_left: vec![0],
            items: Vec::new(),
            left: Vec::new(),
            waiting: 0,
        };
        let (mut next, mut before) = (0, 0);
        for warp in 0..sharing {
            // The last item of each sum of this warp that nobody has taken over yet.
            let mut sums: Vec<usize> = Vec::new();
            let mut left = Vec::new();
            let is_last = warp + 1 == sharing;
            while next < items.tiles.len() && (is_last || before < (warp + 1) * all / sharing) {
                let (tiles, wanted) = (items.tiles[next].clone(), items.merges[next]);
                let merges = wanted.min(sums.len() as u32);
                sums.truncate(sums.len() - merges as usize);
                sums.push(next);
                if wanted > merges {
                    // What it merges with is another warp's.
                    left.append(&mut sums);
                    deal.left.push(wanted - merges);
                }
                before += tiles.len();
                deal.items.push(Item { tiles, merges, leaves: false });
                next += 1;
            }
            deal.left.extend(sums.iter().map(|_| 0));
            left.append(&mut sums);
            left.iter().for_each(|&item| deal.items[item].leaves = true);
            deal.first_item.push(next);
            deal.first_left.push(deal.left.len());
        }
        deal.waiting = deal.most_waiting();
        deal
    }

    /// The most sums of a warp that wait for another one at a time. What is left to the block does not wait.
    fn most_waiting(&self) -> usize {
        let mut most = 0;
        for warp in 0..self.sharing {
            let mut now = 0;
            for item in &self.items[self.first_item[warp]..self.first_item[warp + 1]] {
                now -= item.merges as usize;
                now += usize::from(!item.leaves);
                most = most.max(now);
            }
        }
        most
    }

    pub fn num_items(&self) -> usize {
        self.items.len()
    }

    /// Nodes that the warps leave to the block.
    pub fn num_left(&self) -> usize {
        self.left.len()
    }

    /// As the kernel reads it: `Deal`, then each `Item`, then the merges; and where the last two begin, in bytes.
    pub fn words(&self) -> (Vec<u32>, [usize; 2]) {
        let padded = |list: &[usize], len: usize| {
            let last = list.last().copied().unwrap_or(0);
            (0..len).map(|i| *list.get(i).unwrap_or(&last) as u32).collect::<Vec<_>>()
        };
        let mut words = vec![self.sharing as u32, self.left.len() as u32];
        words.extend(padded(&self.first_item, WARPS + 1));
        words.extend(padded(&self.first_left, WARPS));
        let items = words.len();
        for Item { tiles, merges, leaves } in &self.items {
            words.extend([tiles.start as u32, tiles.end as u32, *merges, u32::from(*leaves)]);
        }
        let left = words.len();
        words.extend(&self.left);
        (words, [4 * items, 4 * left])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::tensor::{Program, ReductionTree};
    use proptest::prelude::*;

    /// What a block makes of a deal, in words: each warp for itself, then what is left.
    fn run(deal: &Deal) -> Vec<String> {
        let mut left = Vec::new();
        for warp in 0..deal.sharing {
            assert_eq!(left.len(), deal.first_left[warp]);
            let mut stack: Vec<String> = Vec::new();
            for item in &deal.items[deal.first_item[warp]..deal.first_item[warp + 1]] {
                merge(&mut stack, format!("{:?}", item.tiles), item.merges);
                if item.leaves {
                    assert_eq!(stack.len(), 1, "only what is alone is left");
                    left.append(&mut stack);
                }
                assert!(stack.len() <= deal.waiting, "no more wait than it says");
            }
            assert!(stack.is_empty(), "all is left in the end");
        }
        let mut stack = Vec::new();
        left.into_iter().zip(&deal.left).for_each(|(node, &merges)| merge(&mut stack, node, merges));
        stack
    }

    fn merge(stack: &mut Vec<String>, mut top: String, merges: u32) {
        for _ in 0..merges {
            top = format!("({} + {top})", stack.pop().expect("what is merged is there"));
        }
        stack.push(top);
    }

    fn whole(items: &Items) -> Vec<String> {
        let mut stack = Vec::new();
        for (tiles, &merges) in items.tiles.iter().zip(&items.merges) {
            merge(&mut stack, format!("{tiles:?}"), merges);
        }
        stack
    }

    proptest! {
        #[test]
        fn warps_add_up_what_one_would(heads in 1..70usize, start in 0..70usize, end in 0..70usize) {
            let tree = ReductionTree::over_heads(heads, 3);
            let (start, end) = (start.min(heads), end.min(heads));
            let Program { inputs, merges, .. } = tree.program(start.min(end)..end);
            let items = Items { tiles: inputs, merges };
            prop_assert_eq!(run(&Deal::new(&items, items.sharing())), whole(&items));
        }

        #[test]
        fn few_sums_wait(heads in 1..=128usize, start in 0..128usize, end in 0..=128usize) {
            let tree = ReductionTree::over_heads(heads, 3);
            let (start, end) = (start.min(heads), end.min(heads));
            let Program { inputs, merges, .. } = tree.program(start.min(end)..end);
            let items = Items { tiles: inputs, merges };
            // One for each level of the tree; warps that share it have three levels fewer.
            prop_assert!(Deal::new(&items, 1).waiting <= heads.next_power_of_two().ilog2() as usize);
            prop_assert!(Deal::new(&items, items.sharing()).waiting <= 4);
        }

        #[test]
        fn parts_of_no_tree_are_all_tiles_in_their_order(tiles in 0..500usize) {
            let items = Items::cut(tiles);
            prop_assert_eq!(items.tiles.iter().cloned().flatten().collect::<Vec<_>>(), (0..tiles).collect::<Vec<_>>());
            prop_assert_eq!(run(&Deal::new(&items, items.sharing())), whole(&items));
            prop_assert_eq!(whole(&items).len(), 1);
        }
    }
}
