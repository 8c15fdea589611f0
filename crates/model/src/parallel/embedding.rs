//! The token embedding, whose ids are split over ranks.

use std::ops::Range;
use std::rc::Rc;

use tensor::{Device, Part};

use super::{Layout, Module, Rank};
use crate::ModelError;
use crate::loader::Loader;

/// The token embedding. Each row comes, unchanged, from the rank that has it.
pub struct VocabParallelEmbedding<D: Device> {
    weight: Rc<D::Weight>,
    /// The ids of each rank; `None` if every rank has all.
    vocab: Option<Vec<Range<usize>>>,
}

impl<D: Device> VocabParallelEmbedding<D> {
    /// Loads this rank's ids.
    pub fn load(loader: &Loader<D>) -> Result<Self, ModelError> {
        let (weight, _) = loader.linear(&[Module::Embed], 0, 0)?;
        Ok(VocabParallelEmbedding {
            weight: Rc::new(weight),
            vocab: split_vocab(loader.layout, Module::Embed),
        })
    }

    /// The weight, for a head that is tied to it.
    pub fn weight(&self) -> Rc<D::Weight> {
        self.weight.clone()
    }

    /// `ids [t]` → `[t, hidden_size]`: this rank's rows of the stream.
    pub fn forward(&self, rank: Rank<D>, ids: &[u32]) -> Result<D::Tensor, ModelError> {
        let Some(vocab) = &self.vocab else {
            let own = rank.stream.rows(rank.group.rank(), ids.len());
            return Ok(rank.dev.embed(&self.weight, &ids[own]));
        };
        let owner = |id: u32| vocab.partition_point(|range| range.end <= id as usize);
        // Rows travel sorted by their owner; then they are put back in the order of the ids.
        let mut by_owner: Vec<Vec<u32>> = vec![Vec::new(); vocab.len()];
        for (row, &id) in ids.iter().enumerate() {
            by_owner[owner(id)].push(row as u32);
        }
        let me = rank.group.rank();
        let own: Vec<u32> =
            by_owner[me].iter().map(|&row| ids[row as usize] - vocab[me].start as u32).collect();
        let part = rank.dev.embed(&self.weight, &own);
        let counts: Vec<usize> = by_owner.iter().map(Vec::len).collect();
        let sorted = rank.calls(Part::Exchange).all_gather(&part, &counts)?;
        let mut place = vec![0; ids.len()];
        for (at, row) in by_owner.into_iter().flatten().enumerate() {
            place[row as usize] = at as u32;
        }
        let own = rank.stream.rows(me, ids.len());
        Ok(rank.dev.gather_rows(&sorted, &place[own]))
    }
}

/// The ids of each rank, if there are several and they don't all have all.
pub(super) fn split_vocab(layout: &Layout, module: Module) -> Option<Vec<Range<usize>>> {
    let replicated = match module {
        Module::Embed => layout.styles.embed_replicated,
        _ => layout.styles.head_replicated,
    };
    (layout.ranks() > 1 && !replicated).then(|| (0..layout.ranks()).map(|r| layout.split.vocab(r)).collect())
}
