//! Attention over a KV cache that several ranks share by position.

use std::ops::Range;

use super::agreement::ALL_BITS;
use super::attention::{Attention, spec, with_context};
use super::values::Values;
use super::{Agreements, Case, Found, compare};
use crate::{AttentionSpec, Device, KV_BLOCK, KvDType, KvShare, KvSpec, SEGMENT, StepMeta, seen_segments};

const SEGMENT_BLOCKS: usize = SEGMENT / KV_BLOCK;

/// [`Device::store_kv`], [`Device::attention_segments`] and [`Device::merge_segments`] of each of several owners; and
/// that together they give the bits of [`Device::attention`].
///
/// # Panics
/// If the device differs from [`crate::Reference`], or from itself with one owner.
pub fn context(dev: &impl Device) {
    context_agreeing(dev, ALL_BITS);
}

/// [`context`] of a device that does not have the reference's bits over every type of cache.
///
/// # Panics
/// If the device differs by more from [`crate::Reference`], or at all from itself with one owner.
pub fn context_agreeing(dev: &impl Device, agreements: Agreements<'_>) {
    let long = [[2047, 1], [1022, 4], [0, 30], [3000, 2], [40, 1], [2048, 1]];
    let mut dtypes = KvDType::ALL.into_iter().cycle();
    let mut next = |spec: AttentionSpec, sequences: &[[usize; 2]], owners: usize, cuts: &[usize]| {
        let dtype = dtypes.next().expect("a cycle does not end");
        let (agreement, steps) = (agreements(dtype), with_context(sequences));
        let case = Shared { base: Attention { spec, dtype, agreement, steps }, owners, cuts: cuts.to_vec() };
        agreement.check(dev, &case);
        case.is_what_one_owner_computes(dev);
    };
    let group = |heads, d| AttentionSpec { group: 8, ..spec(heads, 1, d) };
    next(group(4, 16), &long, 2, &[]);
    next(group(2, 8), &long, 1, &[5]);
    next(AttentionSpec { softcap: Some(30.0), ..group(6, 12) }, &long, 3, &[7, 8]);
    for window in [1, 100, 1024, 1500] {
        next(AttentionSpec { window: Some(window), ..group(3, 8) }, &long, 4, &[20]);
    }
    // Ranks whose heads begin inside of a group, and those that read two KV heads.
    next(AttentionSpec { first_in_group: 4, ..group(4, 40) }, &[[1100, 3], [0, 1]], 2, &[1]);
    next(spec(4, 2, 80), &[[1500, 1], [100, 2]], 2, &[]);
    next(group(2, 8), &[[1000, 1100]], 2, &[30, 1000]);
    next(group(2, 8), &[], 2, &[]);
    next(AttentionSpec { num_heads: 0, num_kv_heads: 0, ..group(2, 8) }, &[[3, 2]], 2, &[]);
}

/// Sequences whose segments are spread over owners, and their rows cut into ranges.
#[derive(Debug)]
struct Shared {
    base: Attention,
    owners: usize,
    /// Where one range of rows ends and the next begins.
    cuts: Vec<usize>,
}

impl Shared {
    /// How many blocks each owner has, and every sequence's blocks: those of a segment with one owner, which follows
    /// no rule, and mixed among each other.
    fn block_tables(&self) -> (usize, Vec<Vec<u32>>) {
        let lengths = self.base.lengths();
        let blocks: Vec<usize> = lengths.iter().map(|length| length.div_ceil(KV_BLOCK)).collect();
        let each = blocks.iter().sum::<usize>() + 1;
        let mut values = Values::new(each);
        let mut free: Vec<Vec<u32>> = (0..self.owners).map(|_| values.shuffled(each)).collect();
        let mut table = |blocks: usize| {
            let mut table = Vec::new();
            while table.len() < blocks {
                let owner = values.below(self.owners);
                let of_segment = SEGMENT_BLOCKS.min(blocks - table.len());
                let local = free[owner].drain(..of_segment);
                table.extend(local.map(|local| local * self.owners as u32 + owner as u32));
            }
            table
        };
        (each, blocks.iter().map(|&blocks| table(blocks)).collect())
    }

    fn cache<D: Device>(&self, dev: &D, blocks: usize, share: KvShare) -> D::Kv {
        let AttentionSpec { num_kv_heads, head_dim, .. } = self.base.spec;
        let mut kv = dev.alloc_kv(KvSpec { blocks, share, num_kv_heads, head_dim, dtype: self.base.dtype });
        self.base.leave_behind(dev, &mut kv, blocks * share.owners);
        kv
    }

    /// Fills the caches; the step that follows, and its rows.
    fn fill<D: Device>(&self, dev: &D, tables: &[Vec<u32>], caches: &mut [D::Kv]) -> (StepMeta, D::Tensor) {
        let mut last = (StepMeta::default(), dev.alloc(0, self.base.spec.qkv_cols()));
        for positions in &self.base.steps {
            let (meta, rows) = (self.base.meta(positions, tables), self.base.rows(positions));
            let qkv = dev.upload(&rows, meta.num_rows(), self.base.spec.qkv_cols());
            let step = dev.begin(&meta);
            caches.iter_mut().for_each(|kv| dev.store_kv(kv, &qkv, &step, &self.base.spec));
            last = (meta, qkv);
        }
        last
    }

    fn ranges(&self, rows: usize) -> Vec<Range<usize>> {
        let ends = self.cuts.iter().map(|&cut| cut.min(rows)).chain([rows]);
        ends.scan(0, |start, end| Some(std::mem::replace(start, end)..end)).collect()
    }

    /// Of all owners' parts the rows of some query heads, as an exchange brings them to the rank of those heads.
    fn of_heads<D: Device>(
        &self,
        dev: &D,
        parts: &[Found],
        counts: &[usize],
        heads: Range<usize>,
    ) -> D::Tensor {
        let cols = 2 + self.base.spec.head_dim;
        let data: Vec<f32> = parts
            .iter()
            .zip(counts)
            .flat_map(|(part, n)| &part.data[heads.start * n * cols..heads.end * n * cols])
            .copied()
            .collect();
        dev.upload(&data, data.len() / cols, cols)
    }

    fn is_what_one_owner_computes(&self, dev: &impl Device) {
        let (each, tables) = self.block_tables();
        let mut caches = [self.cache(dev, each * self.owners, KvShare::WHOLE)];
        let (meta, qkv) = self.fill(dev, &tables, &mut caches);
        let whole = dev.attention(&qkv, &caches[0], &dev.begin(&meta), &self.base.spec);
        let merged: Vec<Found> =
            self.run(dev).into_iter().filter(|found| found.op == "merge_segments").collect();
        let split = self.ranks().into_iter().map(|heads| {
            let cols = heads.start * self.base.spec.head_dim..heads.end * self.base.spec.head_dim;
            Found::tensor(dev, "merge_segments", &dev.gather_cols(&whole, cols))
        });
        let name = format!("{}, several owners against one", dev.name());
        compare(&name, self, &merged, &split.collect::<Vec<_>>());
    }

    /// The query heads of each rank of the group; not all have as many.
    fn ranks(&self) -> [Range<usize>; 2] {
        let heads = self.base.spec.num_heads;
        [0..heads / 3, heads / 3..heads]
    }
}

impl Case for Shared {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (spec, owners) = (&self.base.spec, self.owners);
        let (each, tables) = self.block_tables();
        let mut caches: Vec<D::Kv> =
            (0..owners).map(|owner| self.cache(dev, each, KvShare { owners, owner })).collect();
        let (meta, qkv) = self.fill(dev, &tables, &mut caches);
        let step = dev.begin(&meta);
        let q = dev.gather_cols(&qkv, 0..spec.num_heads * spec.head_dim);
        let of_rank = |heads: &Range<usize>| AttentionSpec { num_heads: heads.len(), ..*spec };
        let ranks = self.ranks();
        let mut outs = ranks.clone().map(|heads| dev.alloc(meta.num_rows(), heads.len() * spec.head_dim));
        let mut found = Vec::new();
        for rows in self.ranges(meta.num_rows()) {
            let mut counts = vec![0; owners];
            for seen in seen_segments(&meta.sequences, spec.window, rows.clone()) {
                counts[seen.owner(owners)] += 1;
            }
            let part = |kv| {
                let part = dev.attention_segments(&q, kv, &step, spec, rows.clone());
                Found::tensor(dev, "attention_segments", &part)
            };
            let parts: Vec<Found> = caches.iter().map(part).collect();
            for (heads, out) in ranks.iter().zip(&mut outs) {
                let parts = self.of_heads(dev, &parts, &counts, heads.clone());
                dev.merge_segments(&parts, owners, &step, &of_rank(heads), rows.clone(), out);
            }
            found.extend(parts);
        }
        found.extend(outs.iter().map(|out| Found::tensor(dev, "merge_segments", out)));
        found
    }
}
