//! Seeded weights: an element is a function of seed, tensor, row and column, so every rank's slice of a
//! tensor has the values that the whole has.

use std::ops::Range;

use tensor::DType;

/// The distribution of a seeded tensor, and the key of its rows.
#[derive(Clone, Copy)]
pub(crate) struct RandomMatrix {
    key: u64,
    centre: f32,
    /// Half the width of the interval.
    spread: f32,
}

impl RandomMatrix {
    /// Elements are uniform in `centre ± spread`.
    pub(crate) fn new(seed: u64, tensor: &str, part: usize, centre: f32, spread: f32) -> Self {
        // FNV-1a: a hash that is the same in every build, which std's does not promise.
        let name = tensor
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325, |h: u64, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
        RandomMatrix { key: split_mix(split_mix(seed ^ name) ^ part as u64), centre, spread }
    }

    /// Writes elements of a row, each rounded to `dtype`.
    pub(crate) fn read(&self, row: usize, cols: Range<usize>, dtype: DType, out: &mut [f32]) {
        let key = split_mix(self.key ^ (row as u64).wrapping_mul(0xd6e8_feb8_6659_fd93));
        let (low, high) = (key as u32, (key >> 32) as u32);
        let (centre, scale) = (self.centre, self.spread / (1 << 23) as f32);
        for (x, col) in out.iter_mut().zip(cols.start as u32..) {
            // The upper 24 bits, signed: they convert to f32 exactly.
            let bits = mix(low ^ col.wrapping_mul(0x9e37_79b1)) ^ high;
            *x = centre + ((bits as i32) >> 8) as f32 * scale;
        }
        round(dtype, out);
    }
}

/// SplitMix64's finaliser (Steele, Lea, Flood, 2014).
fn split_mix(x: u64) -> u64 {
    let x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// A 32-bit mixer of low bias (Wellons, "Prospecting for hash functions", lowbias32).
fn mix(x: u32) -> u32 {
    let x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    let x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Rounds finite values to `dtype` (nearest, ties to even).
fn round(dtype: DType, out: &mut [f32]) {
    match dtype {
        DType::F32 => {}
        DType::BF16 => {
            for x in out {
                let bits = x.to_bits();
                *x = f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000);
            }
        }
        DType::F16 => {
            use half::slice::HalfFloatSliceExt;
            let mut halves = [half::f16::ZERO; 256];
            for out in out.chunks_mut(256) {
                let halves = &mut halves[..out.len()];
                halves.convert_from_f32_slice(out);
                halves.convert_to_f32_slice(out);
            }
        }
    }
}
