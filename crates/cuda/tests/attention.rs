//! Attention on a GPU: what it owes the reference, and what it owes itself.

mod emulated;
mod suite;

use std::collections::BTreeMap;
use std::ops::Range;

use cuda::CudaDevice;
use emulated::Emulated;
use suite::agreement;
use tensor::conformance;
use tensor::{AttentionSpec, Device, KV_BLOCK, KvDType, KvShare, KvSpec, SequenceSpan, StepMeta};

/// A device whose threads take turns in an order; none without a C++ compiler.
fn device(turn: u32) -> Option<CudaDevice> {
    Some(CudaDevice::new(Box::new(Emulated::new(turn)?)))
}

#[test]
fn attention_agrees_with_the_reference() {
    device(7).iter().for_each(|dev| conformance::attention_agreeing(dev, &agreement));
}

#[test]
fn heads_that_are_rotated_and_stored_at_once_have_the_same_bits() {
    device(1).iter().for_each(conformance::rotated);
}

#[test]
fn segments_of_several_owners_agree_with_the_reference() {
    device(1).iter().for_each(|dev| conformance::context_agreeing(dev, &agreement));
}

#[test]
fn values_that_a_row_does_not_see_change_none_of_its_bits() {
    device(7).iter().for_each(suite::unseen::unseen_values);
}

#[test]
fn copied_blocks_agree_with_the_reference() {
    device(0).iter().for_each(|dev| conformance::copies_agreeing(dev, &agreement));
}

/// Which rows of which sequences a step has.
type Step = Vec<(usize, Range<usize>)>;
/// The bits of each row, by sequence and position.
type Bits = BTreeMap<(usize, usize), Vec<u32>>;

fn spec(heads: [usize; 2], head_dim: usize) -> AttentionSpec {
    let [num_heads, num_kv_heads] = heads;
    AttentionSpec {
        num_heads,
        num_kv_heads,
        group: num_heads / num_kv_heads,
        first_in_group: 0,
        head_dim,
        scale: 1.5 / (head_dim as f32).sqrt(),
        softcap: None,
        window: None,
    }
}

/// Some number between -2 and 2.
fn number(seed: usize) -> f32 {
    let h = (seed as u32).wrapping_mul(0x9E37_79B9).rotate_left(15).wrapping_mul(0x85EB_CA6B);
    ((h ^ h >> 15).wrapping_mul(0xC2B2_AE35) >> 8) as f32 / (1 << 22) as f32 - 2.0
}

/// What attention gives in each of the steps, with a cache of its own.
fn run(dev: &CudaDevice, spec: &AttentionSpec, dtype: KvDType, steps: &[Step]) -> Bits {
    run_behind(dev, spec, dtype, 0, steps)
}

/// The same; of the first so many steps only keys and values are written.
fn run_behind(
    dev: &CudaDevice,
    spec: &AttentionSpec,
    dtype: KvDType,
    unasked: usize,
    steps: &[Step],
) -> Bits {
    const BLOCKS_EACH: usize = 110;
    const SEQUENCES: usize = 5;
    let AttentionSpec { num_kv_heads, head_dim, .. } = *spec;
    let blocks = BLOCKS_EACH * SEQUENCES;
    let mut kv = dev.alloc_kv(KvSpec { blocks, share: KvShare::WHOLE, num_kv_heads, head_dim, dtype });
    let (cols, width) = (spec.qkv_cols(), spec.num_heads * head_dim);
    let mut bits = Bits::new();
    for (i, step) in steps.iter().enumerate() {
        let (mut meta, mut data) = (StepMeta::default(), Vec::new());
        for (sequence, positions) in step {
            let first = meta.tokens.len();
            meta.tokens.resize(first + positions.len(), 0);
            let block_table =
                (0..positions.end.div_ceil(KV_BLOCK)).map(|i| (i * SEQUENCES + sequence) as u32);
            let rows = first..meta.tokens.len();
            let span = SequenceSpan { rows, start: positions.start, block_table: block_table.collect() };
            meta.sequences.push(span);
            for position in positions.clone() {
                data.extend((0..cols).map(|col| number((sequence * 5000 + position) * 4099 + col)));
            }
        }
        let qkv = dev.upload(&data, meta.num_rows(), cols);
        let on_device = dev.begin(&meta);
        dev.store_kv(&mut kv, &qkv, &on_device, spec);
        if i < unasked {
            continue;
        }
        let found = dev.download(&dev.attention(&qkv, &kv, &on_device, spec)).expect("attention");
        let places = step.iter().flat_map(|(sequence, positions)| positions.clone().map(|p| (*sequence, p)));
        bits.extend(places.zip(found.chunks(width).map(|row| row.iter().map(|x| x.to_bits()).collect())));
    }
    bits
}

fn assert_same(found: &Bits, expected: &Bits, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: rows");
    for (place, row) in found {
        assert_eq!(row, &expected[place], "{what}: sequence and position {place:?}");
    }
    let finite = |bits: &u32| f32::from_bits(*bits).is_finite();
    assert!(expected.values().flatten().all(finite), "{what}: a result is not a number");
}

/// Two sequences: at once; in chunks and steps of decode, of which some are short and some long, with more sequences beside them
/// in some. All have the same bits.
fn bits_do_not_depend_on_the_schedule(dev: &CudaDevice, spec: &AttentionSpec, dtype: KvDType, length: usize) {
    let what = format!("{dtype}, {spec:?}");
    let whole = run(dev, spec, dtype, &[vec![(0, 0..length)], vec![(1, 0..70)]]);
    let batch = run(dev, spec, dtype, &[vec![(1, 0..70), (0, 0..length)]]);
    assert_same(&batch, &whole, &format!("{what}, batched"));
    let cut = length / 2 + 3;
    let mut steps = vec![
        vec![(0, 0..cut), (2, 0..3)],
        vec![(1, 0..9), (2, 3..20), (0, cut..length - 10)],
        // More rows than a product has, of few tokens.
        vec![(0, length - 10..length - 3), (3, 0..1), (1, 9..69)],
    ];
    steps.extend((length - 3..length).map(|p| vec![(2, 20 + length - p..21 + length - p), (0, p..p + 1)]));
    steps[3].push((1, 69..70));
    let mut chunked = run(dev, spec, dtype, &steps);
    chunked.retain(|(sequence, _), _| *sequence < 2);
    assert_same(&chunked, &whole, &format!("{what}, in chunks"));
}

#[test]
fn chunks_batches_and_decode_have_the_same_bits_over_several_segments() {
    let Some(dev) = device(0) else { return };
    for dtype in KvDType::ALL {
        bits_do_not_depend_on_the_schedule(&dev, &spec([2, 1], 16), dtype, 1040);
        let windowed = AttentionSpec { window: Some(900), softcap: Some(4.0), ..spec([1, 1], 20) };
        bits_do_not_depend_on_the_schedule(&dev, &windowed, dtype, 1040);
    }
}

#[test]
fn chunks_batches_and_decode_have_the_same_bits_for_heads_of_every_size() {
    let Some(dev) = device(1) else { return };
    for dtype in KvDType::ALL {
        for (heads, head_dim) in [
            ([2, 1], 8),
            ([4, 2], 64),
            ([5, 1], 80),
            ([2, 1], 96),
            ([4, 2], 128),
            ([2, 1], 192),
            ([2, 1], 256),
        ] {
            bits_do_not_depend_on_the_schedule(&dev, &spec(heads, head_dim), dtype, 90);
        }
        // Ranks whose cut goes through a group; more heads than a product has rows.
        let cut = AttentionSpec { num_heads: 7, group: 5, first_in_group: 4, ..spec([15, 3], 24) };
        bits_do_not_depend_on_the_schedule(&dev, &cut, dtype, 90);
        let many = AttentionSpec { window: Some(33), ..spec([37, 1], 16) };
        bits_do_not_depend_on_the_schedule(&dev, &many, dtype, 90);
    }
}

#[test]
fn the_order_of_threads_changes_nothing() {
    let steps = [vec![(0, 0..150), (1, 0..5)], vec![(0, 150..151), (1, 5..6)]];
    let windowed = AttentionSpec { window: Some(100), ..spec([4, 2], 80) };
    // More tiles than a block has warps, more slices than one, more segments: what a block does again, and what several do.
    let long = [vec![(0, 0..1700), (1, 0..5)], vec![(0, 1700..1701), (1, 5..6)], vec![(0, 1701..1703)]];
    for dtype in KvDType::ALL {
        for (spec, unasked, steps) in [(&windowed, 0, &steps[..]), (&spec([1, 1], 80), 1, &long[..])] {
            let devices = [0, 1, 7, 13].into_iter().filter_map(device);
            let mut found = devices.map(|dev| run_behind(&dev, spec, dtype, unasked, steps));
            let Some(first) = found.next() else { return };
            found.for_each(|other| assert_same(&other, &first, &format!("{dtype}, another order")));
        }
    }
}
