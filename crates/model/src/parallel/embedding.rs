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
        let (parts, places) = match rank.group.sizes_by_numbers() {
            true => self.by_owner(rank, vocab, ids)?,
            false => self.alike(rank, vocab, ids)?,
        };
        let own = rank.stream.rows(rank.group.rank(), ids.len());
        Ok(rank.dev.gather_rows(&parts, &places[own]))
    }

    /// Each row of the rank that has it, and the place of each id's among them: as little as there can be.
    fn by_owner(&self, rank: Rank<D>, vocab: &[Range<usize>], ids: &[u32]) -> Gathered<D> {
        let mut by_owner: Vec<Vec<u32>> = vec![Vec::new(); vocab.len()];
        for (row, &id) in ids.iter().enumerate() {
            by_owner[owner(vocab, id)].push(row as u32);
        }
        let me = rank.group.rank();
        let own = by_owner[me].iter().map(|&row| ids[row as usize] - vocab[me].start as u32);
        let part = rank.dev.embed(&self.weight, &own.collect::<Vec<_>>());
        let counts: Vec<usize> = by_owner.iter().map(Vec::len).collect();
        let sorted = rank.calls(Part::Exchange).all_gather(&part, &counts)?;
        let mut places = vec![0; ids.len()];
        for (at, row) in by_owner.into_iter().flatten().enumerate() {
            places[row as usize] = at as u32;
        }
        Ok((sorted, places))
    }

    /// The same where sizes must not depend on ids: every rank gives as many rows, of whatever ids it has where the id is another
    /// rank's.
    fn alike(&self, rank: Rank<D>, vocab: &[Range<usize>], ids: &[u32]) -> Gathered<D> {
        let (own, rows) = (&vocab[rank.group.rank()], ids.len());
        let here = |&id: &u32| if own.contains(&(id as usize)) { id - own.start as u32 } else { 0 };
        let part = match own.is_empty() {
            true => rank.dev.alloc(rows, rank.dev.weight_shape(&self.weight)[1]),
            false => rank.dev.embed(&self.weight, &ids.iter().map(here).collect::<Vec<_>>()),
        };
        let parts = rank.calls(Part::Exchange).all_gather_alike(&part)?;
        let places = ids.iter().enumerate().map(|(row, &id)| (owner(vocab, id) * rows + row) as u32);
        Ok((parts, places.collect()))
    }
}

/// Rows of all ranks, and where each id's is.
type Gathered<D> = Result<(<D as Device>::Tensor, Vec<u32>), ModelError>;

/// The rank that has an id.
fn owner(vocab: &[Range<usize>], id: u32) -> usize {
    vocab.partition_point(|range| range.end <= id as usize)
}

/// The ids of each rank, if there are several and they don't all have all.
pub(super) fn split_vocab(layout: &Layout, module: Module) -> Option<Vec<Range<usize>>> {
    let replicated = match module {
        Module::Embed => layout.styles.embed_replicated,
        _ => layout.styles.head_replicated,
    };
    (layout.ranks() > 1 && !replicated).then(|| (0..layout.ranks()).map(|r| layout.split.vocab(r)).collect())
}
