//! The KV cache and attention.

use super::agreement::ALL_BITS;
use super::values::Values;
use super::{Agreement, Agreements, Case, Found, compare};
use crate::{AttentionSpec, Device, KV_BLOCK, KvDType, KvShare, KvSpec, SequenceSpan, StepMeta};

/// [`Device::store_kv`] and [`Device::attention`]; and that the cut of a prompt into chunks changes nothing.
///
/// # Panics
/// If the device differs from [`crate::Reference`].
pub fn attention(dev: &impl Device) {
    attention_agreeing(dev, ALL_BITS);
}

/// [`attention`] of a device that does not have the reference's bits over every type of cache.
///
/// # Panics
/// If the device differs by more from [`crate::Reference`], or at all from itself.
pub fn attention_agreeing(dev: &impl Device, agreements: Agreements<'_>) {
    let mut dtypes = KvDType::ALL.into_iter().cycle();
    let mut next = |spec, sequences: &[[usize; 2]]| {
        let dtype = dtypes.next().expect("a cycle does not end");
        let steps = with_context(sequences);
        let agreement = agreements(dtype);
        agreement.check(dev, &Attention { spec, dtype, agreement, steps });
    };
    // Decode and prefill side by side; contexts below, at and above a tile.
    let mixed = [[70, 1], [0, 9], [130, 1], [60, 10], [63, 1], [64, 1], [15, 2], [0, 1], [127, 3]];
    for spec in specs() {
        next(spec, &mixed);
        next(spec, &[[0, 70]]);
        next(spec, &[[33, 1]]);
        next(spec, &[]);
    }
    // Contexts that several segments hold.
    let long = [[1022, 4], [1100, 1], [2047, 1], [2048, 1], [3000, 2], [40, 1]];
    for window in [None, Some(8), Some(100), Some(1500)] {
        next(AttentionSpec { window, ..spec(4, 2, 16) }, &long);
        next(AttentionSpec { window, softcap: Some(30.0), ..spec(1, 1, 8) }, &long);
    }
    next(spec(1, 1, 8), &[[0, 1100]]);
    next(AttentionSpec { window: Some(64), ..spec(2, 1, 12) }, &[[0, 300]]);

    for dtype in KvDType::ALL {
        what_is_not_finite_shows(dev, dtype, agreements(dtype));
    }
    for spec in [spec(2, 1, 8), AttentionSpec { window: Some(100), softcap: Some(20.0), ..spec(3, 3, 12) }] {
        for (i, chunks) in
            [&[150, 20][..], &[64, 64, 42], &[1, 63, 2, 84, 20], &[7, 9, 33, 121]].iter().enumerate()
        {
            let dtype = KvDType::ALL[i];
            let agreement = agreements(dtype);
            let whole_steps = vec![vec![[0, chunks.iter().sum()], [0, 40 + chunks.len()]]];
            let whole = Attention { spec, dtype, agreement, steps: whole_steps };
            a_chunked_prefill_is_a_whole_one(dev, &whole, chunks);
        }
    }
}

pub(super) fn spec(num_heads: usize, num_kv_heads: usize, head_dim: usize) -> AttentionSpec {
    AttentionSpec {
        num_heads,
        num_kv_heads,
        group: num_heads / num_kv_heads,
        first_in_group: 0,
        head_dim,
        scale: 1.0 / (head_dim as f32).sqrt(),
        softcap: None,
        window: None,
    }
}

fn specs() -> Vec<AttentionSpec> {
    vec![
        spec(1, 1, 8),
        spec(4, 2, 16),
        spec(8, 1, 12),
        spec(2, 2, 64),
        AttentionSpec { scale: 0.3, ..spec(3, 1, 80) },
        AttentionSpec { window: Some(1), ..spec(2, 1, 8) },
        AttentionSpec { window: Some(8), softcap: Some(50.0), ..spec(4, 2, 16) },
        AttentionSpec { window: Some(64), ..spec(2, 1, 16) },
        AttentionSpec { window: Some(100), softcap: Some(2.0), ..spec(2, 2, 12) },
        // A rank without heads, and ranks whose cut goes through a group.
        AttentionSpec { num_heads: 0, num_kv_heads: 0, ..spec(4, 2, 8) },
        AttentionSpec { num_heads: 3, group: 2, first_in_group: 1, ..spec(4, 2, 8) },
        AttentionSpec { num_heads: 3, group: 4, first_in_group: 2, ..spec(8, 2, 16) },
        AttentionSpec { num_heads: 7, group: 5, first_in_group: 4, window: Some(8), ..spec(15, 3, 12) },
    ]
}

/// Per step the sequences' positions: sequence `i` has the rows of `positions[i]`, maybe none.
pub(super) type Steps = Vec<Vec<[usize; 2]>>;

/// From (positions in the cache, rows) per sequence: a step that fills the cache, then the step itself.
pub(super) fn with_context(sequences: &[[usize; 2]]) -> Steps {
    let fill = sequences.iter().map(|&[context, _]| [0, context]).collect();
    let step = sequences.iter().map(|&[context, rows]| [context, context + rows]).collect();
    vec![fill, step]
}

/// Steps of the same sequences, one after the other. Their rows are a function of sequence and position only.
#[derive(Debug)]
pub(super) struct Attention {
    pub(super) spec: AttentionSpec,
    pub(super) dtype: KvDType,
    pub(super) agreement: Agreement,
    pub(super) steps: Steps,
}

impl Attention {
    pub(super) fn lengths(&self) -> Vec<usize> {
        self.steps.last().map_or(Vec::new(), |step| step.iter().map(|&[_, end]| end).collect())
    }

    /// Every sequence's blocks, mixed among each other.
    fn block_tables(&self) -> (usize, Vec<Vec<u32>>) {
        let blocks: Vec<usize> = self.lengths().iter().map(|length| length.div_ceil(KV_BLOCK)).collect();
        let total = blocks.iter().sum::<usize>() + 3;
        let shuffled = Values::new(total).shuffled(total);
        let mut free = shuffled.into_iter();
        (total, blocks.iter().map(|&blocks| free.by_ref().take(blocks).collect()).collect())
    }

    /// All rows of a sequence.
    fn qkv(&self, sequence: usize) -> Vec<f32> {
        let cols = self.spec.qkv_cols();
        let mut values = Values::new(sequence * 100 + cols);
        // Sequences in which one position takes all, and sequences in which many count.
        let by = [1.0, 0.25, 0.06][sequence % 3];
        self.agreement.round_queries(values.scaled(self.lengths()[sequence] * cols, by), &self.spec)
    }

    /// The rows of a step.
    pub(super) fn rows(&self, positions: &[[usize; 2]]) -> Vec<f32> {
        let cols = self.spec.qkv_cols();
        let of = |(sequence, &[start, end]): (usize, &[usize; 2])| {
            self.qkv(sequence)[start * cols..end * cols].to_vec()
        };
        positions.iter().enumerate().flat_map(of).collect()
    }

    /// Fills the whole cache as an earlier sequence would: what it left in places that are not seen is to
    /// have no influence, not even where it is NaN.
    pub(super) fn leave_behind<D: Device>(&self, dev: &D, kv: &mut D::Kv, blocks: usize) {
        let (rows, cols) = (blocks * KV_BLOCK, self.spec.qkv_cols());
        let block_table = (0..blocks as u32).collect();
        let sequences = vec![SequenceSpan { rows: 0..rows, start: 0, block_table }];
        let meta = StepMeta { tokens: vec![0; rows], sequences, logit_rows: Vec::new() };
        let qkv = dev.upload(&vec![f32::NAN; rows * cols], rows, cols);
        dev.store_kv(kv, &qkv, &dev.begin(&meta), &self.spec);
    }

    pub(super) fn meta(&self, step: &[[usize; 2]], tables: &[Vec<u32>]) -> StepMeta {
        let mut meta = StepMeta::default();
        for (&[start, end], table) in step.iter().zip(tables).filter(|([start, end], _)| start < end) {
            let first = meta.tokens.len();
            meta.tokens.resize(first + end - start, 0);
            meta.sequences.push(SequenceSpan {
                rows: first..meta.tokens.len(),
                start,
                block_table: table.clone(),
            });
        }
        meta
    }
}

impl Case for Attention {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let spec = &self.spec;
        let AttentionSpec { num_kv_heads, head_dim, .. } = *spec;
        let (blocks, tables) = self.block_tables();
        let mut kv =
            dev.alloc_kv(KvSpec { blocks, share: KvShare::WHOLE, num_kv_heads, head_dim, dtype: self.dtype });
        self.leave_behind(dev, &mut kv, blocks);
        let mut found = Vec::new();
        for (i, positions) in self.steps.iter().enumerate() {
            let (cols, rows) = (spec.qkv_cols(), self.rows(positions));
            let meta = self.meta(positions, &tables);
            let step = dev.begin(&meta);
            let qkv = dev.upload(&rows, meta.num_rows(), cols);
            dev.store_kv(&mut kv, &qkv, &step, spec);
            // The first of several steps fills the cache: what it holds, the others show.
            if i > 0 || self.steps.len() == 1 {
                found.push(Found::tensor(dev, "attention", &dev.attention(&qkv, &kv, &step, spec)));
            }
        }
        found
    }
}

/// Two sequences, of which one is decoded while the other's prompt is cut into chunks.
fn a_chunked_prefill_is_a_whole_one(dev: &impl Device, whole: &Attention, chunks: &[usize]) {
    let total: usize = chunks.iter().sum();
    let mut chunked = Attention { steps: vec![vec![[0, 0], [0, 40]]], ..*whole };
    let mut start = 0;
    for (i, chunk) in chunks.iter().enumerate() {
        chunked.steps.push(vec![[start, start + chunk], [40 + i, 41 + i]]);
        start += chunk;
    }
    chunked.agreement.check(dev, &chunked);
    let at_once = whole.run(dev).remove(0);
    let cols = at_once.shape[1];
    let row = |at: usize| at_once.data[at * cols..(at + 1) * cols].to_vec();
    let mut expected = Vec::new();
    for step in &chunked.steps[1..] {
        let rows = (step[0][0]..step[0][1]).chain([total + step[1][0]]);
        let data: Vec<f32> = rows.flat_map(row).collect();
        expected.push(Found { op: "attention in chunks", shape: [data.len() / cols.max(1), cols], data });
    }
    let name = format!("{}, whole against chunked", dev.name());
    compare(&name, &chunked, &chunked.run(dev), &expected);
}

/// Keys or values of one position that are not finite.
#[derive(Debug)]
struct NotFinite {
    dtype: KvDType,
    agreement: Agreement,
    position: usize,
    col: usize,
    bad: f32,
}

const NOT_FINITE: AttentionSpec = AttentionSpec {
    num_heads: 2,
    num_kv_heads: 1,
    group: 2,
    first_in_group: 0,
    head_dim: 20,
    scale: 0.25,
    softcap: None,
    window: None,
};
const NOT_FINITE_ROWS: usize = 90;

impl Case for NotFinite {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let (rows, cols) = (NOT_FINITE_ROWS, NOT_FINITE.qkv_cols());
        let AttentionSpec { num_kv_heads, head_dim, .. } = NOT_FINITE;
        let (blocks, share, dtype) = (rows.div_ceil(KV_BLOCK), KvShare::WHOLE, self.dtype);
        let mut kv = dev.alloc_kv(KvSpec { blocks, share, num_kv_heads, head_dim, dtype });
        let mut qkv = self.agreement.round_queries(Values::new(rows).vec(rows * cols), &NOT_FINITE);
        qkv[self.position * cols + self.col] = self.bad;
        let qkv = dev.upload(&qkv, rows, cols);
        let block_table = (0..blocks as u32).collect();
        let sequences = vec![SequenceSpan { rows: 0..rows, start: 0, block_table }];
        let step = dev.begin(&StepMeta { tokens: vec![0; rows], sequences, logit_rows: Vec::new() });
        dev.store_kv(&mut kv, &qkv, &step, &NOT_FINITE);
        vec![Found::tensor(dev, "attention", &dev.attention(&qkv, &kv, &step, &NOT_FINITE))]
    }
}

/// Rows before a position are not harmed by what it holds. Those that see it are what the reference says, which is
/// NaN if the keys and values have scales.
fn what_is_not_finite_shows(dev: &impl Device, dtype: KvDType, agreement: Agreement) {
    for (position, col, bad) in [
        (0, NOT_FINITE.k().first_col, f32::INFINITY),
        (33, NOT_FINITE.k().first_col + 19, f32::NAN),
        (64, NOT_FINITE.v().first_col + 7, f32::NEG_INFINITY),
        (89, NOT_FINITE.v().first_col + 16, f32::NAN),
    ] {
        let case = NotFinite { dtype, agreement, position, col, bad };
        agreement.check(dev, &case);
        let found = case.run(dev).remove(0);
        let (before, after) = found.data.split_at(position * found.shape[1]);
        assert!(
            before.iter().all(|x| x.is_finite()),
            "{}: a row sees what is behind it: {case:?}",
            dev.name()
        );
        let shows = after.iter().all(|x| x.is_nan());
        assert!(shows || dtype != KvDType::Fp8, "{}: {bad} is lost: {case:?}", dev.name());
    }
}
