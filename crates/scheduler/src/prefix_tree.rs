//! What blocks contain: a tree of blocks, each known by the tokens in it and by the block before it.

use std::collections::BTreeMap;
use std::ops::Bound;

/// What comes before a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Parent {
    /// Nothing, among sequences of this salt.
    Root(u64),
    /// A full block.
    Block(u32),
}

/// By their tokens, so that a look-up compares tokens and trusts no hash.
type Children = BTreeMap<Box<[u32]>, u32>;

/// Blocks whose contents are known. A path from the root is a sequence's first tokens.
#[derive(Debug, Default)]
pub(crate) struct PrefixTree {
    roots: BTreeMap<u64, Children>,
    /// Of each block.
    children: Vec<Children>,
    /// Of each block in the tree: what comes before it, and its tokens.
    entries: Vec<Option<(Parent, Box<[u32]>)>>,
}

impl PrefixTree {
    pub fn new(num_blocks: usize) -> Self {
        PrefixTree {
            roots: BTreeMap::new(),
            children: vec![Children::new(); num_blocks],
            entries: vec![None; num_blocks],
        }
    }

    /// What is known of a block.
    pub fn entry(&self, block: u32) -> Option<(Parent, &[u32])> {
        self.entries[block as usize].as_ref().map(|(parent, tokens)| (*parent, &tokens[..]))
    }

    pub fn contains(&self, block: u32) -> bool {
        self.entries[block as usize].is_some()
    }

    /// The block with exactly these tokens.
    pub fn child(&self, parent: Parent, tokens: &[u32]) -> Option<u32> {
        self.children(parent)?.get(tokens).copied()
    }

    /// The blocks whose tokens begin most like these, and how many tokens they share: at most two, the neighbours in
    /// lexical order, for no other shares more.
    pub fn closest(&self, parent: Parent, tokens: &[u32]) -> impl Iterator<Item = (u32, usize)> {
        let neighbours = self.children(parent).map(|children| {
            let mut before = children.range::<[u32], _>((Bound::Unbounded, Bound::Excluded(tokens)));
            let mut after = children.range::<[u32], _>((Bound::Included(tokens), Bound::Unbounded));
            before.next_back().into_iter().chain(after.next())
        });
        neighbours.into_iter().flatten().map(|(own, &block)| (block, common_prefix(own, tokens)))
    }

    /// Notes what a block contains. Neither the block nor these tokens are there yet.
    pub fn insert(&mut self, parent: Parent, tokens: &[u32], block: u32) {
        let children = match parent {
            Parent::Root(salt) => self.roots.entry(salt).or_default(),
            Parent::Block(parent) => &mut self.children[parent as usize],
        };
        assert!(children.insert(tokens.into(), block).is_none(), "tokens are in the tree once");
        let before = self.entries[block as usize].replace((parent, tokens.into()));
        assert!(before.is_none(), "block {block} is in the tree once");
    }

    /// Takes out a block and all that can't be reached without it: those blocks, it being the last.
    pub fn remove(&mut self, block: u32) -> Vec<u32> {
        let (parent, tokens) = self.entries[block as usize].take().expect("a block in the tree");
        match parent {
            Parent::Root(salt) => {
                let children = self.roots.get_mut(&salt).expect("the block's root");
                children.remove(&tokens);
                if children.is_empty() {
                    self.roots.remove(&salt);
                }
            }
            Parent::Block(parent) => drop(self.children[parent as usize].remove(&tokens)),
        }
        // Level by level, for a branch may have as many levels as there are blocks.
        let mut removed = vec![block];
        let mut next = 0;
        while let Some(&block) = removed.get(next) {
            let children = std::mem::take(&mut self.children[block as usize]);
            children.values().for_each(|&child| self.entries[child as usize] = None);
            removed.extend(children.into_values());
            next += 1;
        }
        removed.reverse();
        removed
    }

    fn children(&self, parent: Parent) -> Option<&Children> {
        match parent {
            Parent::Root(salt) => self.roots.get(&salt),
            Parent::Block(block) => Some(&self.children[block as usize]),
        }
    }
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: Parent = Parent::Root(7);

    fn closest(tree: &PrefixTree, tokens: &[u32]) -> Option<(u32, usize)> {
        tree.closest(ROOT, tokens).max_by_key(|found| found.1)
    }

    #[test]
    fn the_closest_child_shares_the_most_tokens() {
        let mut tree = PrefixTree::new(8);
        let keys: [&[u32]; 6] = [&[1, 2, 3, 4], &[1, 2, 9, 9], &[1, 2], &[5, 0, 0, 0], &[5, 6], &[9]];
        for (block, tokens) in keys.iter().enumerate() {
            tree.insert(ROOT, tokens, block as u32);
        }
        for query in
            [[1, 2, 3, 4], [1, 2, 3, 0], [1, 2, 9, 8], [5, 6, 7, 8], [5, 5, 5, 5], [0, 1, 2, 3], [9, 9, 9, 9]]
        {
            let most = keys.iter().map(|key| common_prefix(key, &query)).max();
            assert_eq!(closest(&tree, &query).map(|found| found.1), most, "{query:?}");
        }
        assert_eq!(closest(&tree, &[1, 2, 3, 4]), Some((0, 4)));
        assert_eq!(tree.closest(Parent::Root(8), &[1, 2]).count(), 0, "of another salt");
    }

    #[test]
    fn what_is_behind_a_removed_block_goes_with_it() {
        let mut tree = PrefixTree::new(6);
        tree.insert(ROOT, &[1], 0);
        tree.insert(Parent::Block(0), &[2], 1);
        tree.insert(Parent::Block(1), &[3], 2);
        tree.insert(Parent::Block(0), &[4], 3);
        tree.insert(ROOT, &[2], 4);
        let mut removed = tree.remove(0);
        assert_eq!(removed.pop(), Some(0));
        removed.sort_unstable();
        assert_eq!(removed, [1, 2, 3]);
        assert_eq!((tree.child(ROOT, &[1]), tree.child(ROOT, &[2])), (None, Some(4)));
        assert!((0..4).all(|block| tree.entry(block).is_none()));
        tree.insert(ROOT, &[1], 1);
        assert_eq!(tree.child(Parent::Block(1), &[3]), None, "a block comes back without children");
        assert_eq!(tree.remove(4), [4]);
    }
}
