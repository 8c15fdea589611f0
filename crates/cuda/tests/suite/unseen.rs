//! What no GPU promises in writing: that a product with a weight of 0 changes no bit of a sum, however large the value is.
//!
//! Rows that a warp has together meet each other's positions, with weights of 0. Tensor cores add up products in steps of the
//! largest one's last bits; if a product with 0 took part by the exponent of its other factor, a row would give other bits beside rows
//! that see more than it does.

use cuda::CudaDevice;
use tensor::{AttentionSpec, DType, Device, KV_BLOCK, KvDType, KvShare, KvSpec, SequenceSpan, StepMeta};

/// Positions; those from `LARGE` on have values that are 2^10 times as large.
const LENGTH: usize = 64;
const LARGE: usize = 40;

/// Between −1 and 1.
fn number(position: usize, col: usize) -> f32 {
    let h =
        ((position * 331 + col) as u32).wrapping_mul(0x9E37_79B9).rotate_left(15).wrapping_mul(0x85EB_CA6B);
    ((h ^ h >> 15).wrapping_mul(0xC2B2_AE35) >> 8) as f32 / (1 << 23) as f32 - 1.0
}

/// A query, a key and a value: the first position's key takes nearly all, and its value is 0; all others have weights around 2^-20.
fn row(position: usize, head_dim: usize) -> Vec<f32> {
    let query = |col: usize| if col == 0 { 1.0 } else { 0.0 };
    let key = |col: usize| match (position, col) {
        (0, 0) => 20.0 * std::f32::consts::LN_2,
        _ => number(position, col) / 2.0,
    };
    let size = if position < LARGE { 1.0 } else { 1024.0 };
    let value = |col: usize| if position == 0 { 0.0 } else { size * number(position, head_dim + col) };
    (0..head_dim).map(query).chain((0..head_dim).map(key)).chain((0..head_dim).map(value)).collect()
}

/// The bits of all rows, in steps that end at these positions.
fn bits(dev: &CudaDevice, dtype: DType, head_dim: usize, ends: &[usize]) -> Vec<u32> {
    let spec = AttentionSpec {
        num_heads: 1,
        num_kv_heads: 1,
        group: 1,
        first_in_group: 0,
        head_dim,
        scale: 1.0,
        softcap: None,
        window: None,
    };
    let (blocks, dtype) = (LENGTH.div_ceil(KV_BLOCK), KvDType::Float(dtype));
    let mut kv = dev.alloc_kv(KvSpec { blocks, share: KvShare::WHOLE, num_kv_heads: 1, head_dim, dtype });
    let mut bits = Vec::new();
    let mut start = 0;
    for &end in ends {
        let block_table = (0..end.div_ceil(KV_BLOCK) as u32).collect();
        let span = SequenceSpan { rows: 0..end - start, start, block_table };
        let meta = StepMeta { tokens: vec![0; end - start], sequences: vec![span], ..StepMeta::default() };
        let data: Vec<f32> = (start..end).flat_map(|position| row(position, head_dim)).collect();
        let qkv = dev.upload(&data, end - start, 3 * head_dim);
        let step = dev.begin(&meta);
        dev.store_kv(&mut kv, &qkv, &step, &spec);
        let found = dev.download(&dev.attention(&qkv, &kv, &step, &spec)).expect("attention");
        bits.extend(found.iter().map(|x| x.to_bits()));
        start = end;
    }
    bits
}

/// A prompt at once, whose rows meet large values that they do not see, in two chunks, which end before those, and position by position.
///
/// # Panics
/// If a bit differs.
pub fn unseen_values(dev: &CudaDevice) {
    for dtype in [DType::F16, DType::BF16] {
        for head_dim in [64, 128, 80] {
            let whole = bits(dev, dtype, head_dim, &[LENGTH]);
            let small = whole[head_dim..LARGE * head_dim].iter().map(|&bits| f32::from_bits(bits).abs());
            assert!(small.fold(0.0, f32::max) < 1e-4, "{dtype:?}: rows that see none of the large values");
            let steps: Vec<usize> = (1..=LENGTH).collect();
            for (how, ends) in [("in chunks", &[LARGE, LENGTH][..]), ("row by row", &steps)] {
                let found = bits(dev, dtype, head_dim, ends);
                let differ = (0..LENGTH).find(|row| {
                    let of = row * head_dim..(row + 1) * head_dim;
                    found[of.clone()] != whole[of]
                });
                assert_eq!(
                    differ, None,
                    "{dtype:?}, heads of {head_dim}, {how}: a row that has other bits than at once"
                );
            }
        }
    }
}
