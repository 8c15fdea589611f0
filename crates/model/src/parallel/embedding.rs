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
        let (me, rows) = (rank.group.rank(), ids.len());
        let own = &vocab[me];
        // Every rank gives as many rows, of whatever ids it has where the id is another rank's, and takes each from the rank that has
        // it: so what is done follows from the number of rows alone, and not from the ids.
        let here = |&id: &u32| if own.contains(&(id as usize)) { id - own.start as u32 } else { 0 };
        let part = match own.is_empty() {
            true => rank.dev.alloc(rows, rank.dev.weight_shape(&self.weight)[1]),
            false => rank.dev.embed(&self.weight, &ids.iter().map(here).collect::<Vec<_>>()),
        };
        let parts = rank.calls(Part::Exchange).all_gather_alike(&part)?;
        let owner = |id: u32| vocab.partition_point(|range| range.end <= id as usize);
        let place = |row: usize| (owner(ids[row]) * rows + row) as u32;
        let taken: Vec<u32> = rank.stream.rows(me, rows).map(place).collect();
        Ok(rank.dev.gather_rows(&parts, &taken))
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
