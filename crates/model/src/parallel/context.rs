//! A KV cache that is split by position over ranks which read the same KV heads, instead of replicated on each.
//!
//! ```text
//!   tensor-parallel ranks      0    1    2    3        of a model with 2 KV heads
//!   read KV head               0    0    1    1
//!   context groups            [0    1]  [2    3]       of 2: each rank keeps half of the positions
//! ```
//!
//! A segment of 1,024 positions lives on one rank of the group, which its block ids say. Every rank computes the
//! segments that it has for the query heads of the whole group; an exchange brings to each what concerns its own
//! query heads, and it merges that in ascending order, as one rank would.

use std::ops::Range;

use tensor::{AttentionSpec, Device, KvShare, Part, SequenceSpan, seen_segments};

use super::exchange::Calls;
use super::{Layout, Rank, Split, UpForm};
use crate::ModelError;
use crate::step::StepContext;

/// Numbers that a rank computes before it exchanges them. A step of many rows is done in pieces of this size, so that
/// a long prompt needs no more memory than a short one.
const PIECE: usize = 1 << 21;

impl Layout {
    /// Splits the KV cache by position over groups of `size` consecutive ranks; 1 splits nothing.
    ///
    /// # Errors
    /// Ranks of a group would not read the same KV heads.
    pub fn with_context_parallel(mut self, size: usize) -> Result<Self, ModelError> {
        let sizes = self.context_parallel_sizes();
        if !sizes.contains(&size) {
            let sizes: Vec<String> = sizes.iter().map(usize::to_string).collect();
            return Err(ModelError::Split(format!(
                "decode context parallel size {size}: every {size} consecutive ranks must read the same KV heads, \
                 which at tensor parallel size {} of a model with {} KV heads works for {}",
                self.ranks(),
                self.config.num_kv_heads,
                sizes.join(", ")
            )));
        }
        self.context_parallel = size;
        Ok(self)
    }

    /// Ranks that share a KV cache by position; 1 if each has all of its own.
    pub fn context_parallel(&self) -> usize {
        self.context_parallel
    }

    /// What [`Layout::with_context_parallel`] takes.
    pub fn context_parallel_sizes(&self) -> Vec<usize> {
        let splits_heads = self.styles.layers.iter().all(|layer| layer.attention.up == UpForm::Split);
        let works = |&size: &usize| size == 1 || splits_heads && reads_alike(&self.split, size);
        (1..=self.ranks()).filter(works).collect()
    }

    /// The tensor-parallel ranks of a rank's context group.
    pub fn context_group(&self, rank: usize) -> Range<usize> {
        let first = rank / self.context_parallel * self.context_parallel;
        first..first + self.context_parallel
    }

    /// Which KV blocks a rank has.
    pub fn kv_share(&self, rank: usize) -> KvShare {
        KvShare { owners: self.context_parallel, owner: rank % self.context_parallel }
    }
}

/// Whether ranks can be grouped so that all of a group read the same KV heads.
fn reads_alike(split: &Split, size: usize) -> bool {
    let heads: Vec<Range<usize>> = (0..split.ranks()).map(|rank| split.kv_heads(rank)).collect();
    heads.len().is_multiple_of(size) && heads.chunks(size).all(|group| group.iter().all(|h| *h == group[0]))
}

/// Attention of one layer over a context group's KV cache.
pub struct ContextAttention {
    own: AttentionSpec,
    /// With the query heads of all ranks of the group.
    group: AttentionSpec,
    heads_of_rank: Vec<usize>,
    /// This rank within the group.
    at: usize,
}

impl ContextAttention {
    /// A layer's attention on a rank.
    pub fn new(layout: &Layout, layer: usize, rank: usize) -> Self {
        let specs: Vec<AttentionSpec> =
            layout.context_group(rank).map(|rank| layout.attention(layer, rank)).collect();
        let heads_of_rank: Vec<usize> = specs.iter().map(|spec| spec.num_heads).collect();
        let at = layout.kv_share(rank).owner;
        let group = AttentionSpec { num_heads: heads_of_rank.iter().sum(), ..specs[0] };
        ContextAttention { own: specs[at], group, heads_of_rank, at }
    }

    /// Attention of this rank's query heads, whose keys and values are stored already.
    ///
    /// # Shapes
    /// `qkv [t, qkv_cols]` → `[t, num_heads · head_dim]`
    ///
    /// # Errors
    /// A rank is missing or failed.
    pub fn forward<D: Device>(
        &self,
        rank: Rank<D>,
        qkv: &D::Tensor,
        kv: &D::Kv,
        step: &StepContext<D>,
    ) -> Result<D::Tensor, ModelError> {
        let (dev, owners) = (rank.dev, self.heads_of_rank.len());
        let Some(context) = rank.context else {
            assert_eq!(owners, 1, "a rank that shares its KV cache knows with whom");
            return Ok(dev.attention(qkv, kv, &step.device, &self.own));
        };
        assert_eq!((context.rank(), context.size()), (self.at, owners), "the layout's context group");
        let rows = dev.shape(qkv)[0];
        let q = self.gather_queries(rank, qkv)?;
        let mut out = dev.alloc(rows, self.own.num_heads * self.own.head_dim);
        for rows in self.pieces(&step.meta.sequences, rows) {
            let mut segments_of = vec![0; owners];
            for seen in seen_segments(&step.meta.sequences, self.own.window, rows.clone()) {
                segments_of[seen.owner(owners)] += 1;
            }
            let part = dev.attention_segments(&q, kv, &step.device, &self.group, rows.clone());
            let to: Vec<usize> =
                self.heads_of_rank.iter().map(|heads| heads * segments_of[self.at]).collect();
            let from: Vec<usize> = segments_of.iter().map(|n| self.own.num_heads * n).collect();
            let parts = Calls { dev, group: context, part: Part::Exchange }.all_to_all(&part, &to, &from)?;
            dev.merge_segments(&parts, owners, &step.device, &self.own, rows, &mut out);
        }
        Ok(out)
    }

    /// The query heads of all ranks of the group, side by side.
    fn gather_queries<D: Device>(&self, rank: Rank<D>, qkv: &D::Tensor) -> Result<D::Tensor, ModelError> {
        let (dev, d) = (rank.dev, self.own.head_dim);
        let rows = dev.shape(qkv)[0];
        let width = self.heads_of_rank.iter().max().copied().unwrap_or(0) * d;
        let own = self.own.num_heads * d;
        let q = match own == width {
            true => dev.gather_cols(qkv, 0..width),
            // Every rank brings as many columns; what is beyond its own heads nobody reads.
            false => {
                let columns: Vec<(u32, u32)> = (0..width).map(|col| (0, col.min(own - 1) as u32)).collect();
                dev.regroup(qkv, rows, &columns)?
            }
        };
        let context = rank.context.expect("asked for in a context group only");
        let rows_of_rank = vec![rows; context.size()];
        let all = Calls { dev, group: context, part: Part::Exchange }.all_gather(&q, &rows_of_rank)?;
        let of_rank = |(rank, &heads): (usize, &usize)| (0..heads * d).map(move |c| (rank as u32, c as u32));
        let columns: Vec<(u32, u32)> = self.heads_of_rank.iter().enumerate().flat_map(of_rank).collect();
        Ok(dev.regroup(&all, rows, &columns)?)
    }

    /// Rows that are worked on at a time; the same on every rank of the group.
    fn pieces(&self, sequences: &[SequenceSpan], rows: usize) -> Vec<Range<usize>> {
        let of_segment = self.group.num_heads * (2 + self.group.head_dim);
        let mut seen_by = vec![0; rows];
        for seen in seen_segments(sequences, self.own.window, 0..rows) {
            seen_by[seen.row] += 1;
        }
        let (mut pieces, mut start, mut numbers) = (Vec::new(), 0, 0);
        for (row, seen) in seen_by.into_iter().enumerate() {
            let of_row = of_segment * seen;
            if row > start && numbers + of_row > PIECE {
                pieces.push(start..row);
                (start, numbers) = (row, 0);
            }
            numbers += of_row;
        }
        pieces.push(start..rows);
        pieces
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_hold_every_row_once_and_not_more_than_fits_unless_it_is_one_row() {
        let spec = AttentionSpec {
            num_heads: 16,
            num_kv_heads: 1,
            group: 16,
            first_in_group: 0,
            head_dim: 126,
            scale: 1.0,
            softcap: None,
            window: None,
        };
        let block_table = (0..8192).collect();
        let sequences = [SequenceSpan { rows: 0..3000, start: 4096, block_table }];
        let attention =
            |spec: AttentionSpec| ContextAttention { own: spec, group: spec, heads_of_rank: vec![16], at: 0 };
        // 2,048 numbers per row and segment, of which a row sees 5 to 7.
        let pieces = attention(spec).pieces(&sequences, 3000);
        assert_eq!(pieces[0], 0..204);
        assert_eq!((pieces[0].start, pieces.last().map(|p| p.end)), (0, Some(3000)));
        assert!(pieces.windows(2).all(|p| p[0].end == p[1].start && p[0].len() * 2048 * 5 <= PIECE));
        let wide = attention(AttentionSpec { head_dim: 1 << 17, ..spec }).pieces(&sequences, 3);
        assert_eq!(wide, [0..1, 1..2, 2..3]);
        assert_eq!(attention(spec).pieces(&[], 0), [0..0]);
    }
}
