//! Values as they travel: in words of four bytes, group by group, so that any run of groups can be worked on by itself.
//!
//! A group is 64 values. As bfloat16 it is 32 words. As fp8 or int8 it is two blocks of 32 values with a scale each:
//! one word of two scales (bfloat16, rounded up), then a word per four values. A last group may be short.

use std::ops::Range;

use half::bf16;

use tensor::fp8;

/// What the values of all-reduces travel as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WireDType {
    /// As they are.
    #[default]
    Float32,
    /// 16 bits each: off by 1/256 at most.
    Bfloat16,
    /// 8 bits each, e4m3, and 16 for each 32: off by 1/16 at most, and less than 1/400,000 of the block's largest.
    Fp8,
    /// 8 bits each, and 16 for each 32: off by 1/252 of the block's largest at most.
    Int8,
}

/// Values of a group.
pub(super) const GROUP: usize = WireDType::GROUP;
/// Values that share a scale.
const BLOCK: usize = 32;

impl WireDType {
    /// All of them.
    pub const ALL: [WireDType; 4] =
        [WireDType::Float32, WireDType::Bfloat16, WireDType::Fp8, WireDType::Int8];

    /// Values of a group, which is encoded by itself.
    pub const GROUP: usize = 64;

    /// The elements that each rank sums of an all-reduce: whole groups, as even as they go.
    pub fn slices(elements: usize, ranks: usize) -> Vec<Range<usize>> {
        let groups = elements.div_ceil(GROUP);
        let at = |rank: usize| (groups * rank / ranks * GROUP).min(elements);
        (0..ranks).map(|rank| at(rank)..at(rank + 1)).collect()
    }

    /// Its name in flags.
    pub fn name(self) -> &'static str {
        match self {
            WireDType::Float32 => "float32",
            WireDType::Bfloat16 => "bfloat16",
            WireDType::Fp8 => "fp8",
            WireDType::Int8 => "int8",
        }
    }

    /// Words of four bytes that so many values are.
    pub fn words(self, values: usize) -> usize {
        match self {
            WireDType::Float32 => values,
            WireDType::Bfloat16 => values.div_ceil(2),
            WireDType::Fp8 | WireDType::Int8 => values.div_ceil(GROUP) + values.div_ceil(4),
        }
    }

    /// Writes `values` as words. A value that is infinite or NaN stays so, or makes its block NaN.
    pub fn encode(self, values: &[f32], words: &mut [f32]) {
        assert_eq!(words.len(), self.words(values.len()), "words for {} values", values.len());
        match self {
            WireDType::Float32 => words.copy_from_slice(values),
            WireDType::Bfloat16 => encode_bf16(values, words),
            WireDType::Fp8 => encode_blocks(values, words, fp8::MAX, fp8::from_f32),
            WireDType::Int8 => encode_blocks(values, words, 127.0, nearest_i8),
        }
    }

    /// What [`WireDType::encode`] wrote, as values.
    pub fn decode(self, words: &[f32], values: &mut [f32]) {
        assert_eq!(words.len(), self.words(values.len()), "words for {} values", values.len());
        match self {
            WireDType::Float32 => values.copy_from_slice(words),
            WireDType::Bfloat16 => decode_bf16(words, values),
            WireDType::Fp8 => decode_blocks(words, values, fp8::to_f32),
            WireDType::Int8 => decode_blocks(words, values, |code| f32::from(code as i8)),
        }
    }
}

fn encode_bf16(values: &[f32], words: &mut [f32]) {
    for (pair, word) in values.chunks(2).zip(words) {
        let bits = |i: usize| u32::from(bf16::from_f32(pair.get(i).copied().unwrap_or(0.0)).to_bits());
        *word = f32::from_bits((bits(0) | bits(1) << 16).to_le());
    }
}

fn decode_bf16(words: &[f32], values: &mut [f32]) {
    for (pair, word) in values.chunks_mut(2).zip(words) {
        let bits = u32::from_le(word.to_bits());
        for (value, bits) in pair.iter_mut().zip([bits << 16, bits & 0xFFFF_0000]) {
            *value = f32::from_bits(bits);
        }
    }
}

fn encode_blocks(values: &[f32], words: &mut [f32], largest: f32, code: impl Fn(f32) -> u8) {
    for (values, words) in values.chunks(GROUP).zip(words.chunks_mut(GROUP / 4 + 1)) {
        let (mut scales, mut codes) = (0, [0; GROUP]);
        for (block, (values, codes)) in values.chunks(BLOCK).zip(codes.chunks_mut(BLOCK)).enumerate() {
            let scale = scale_of(values, largest);
            scales |= u32::from(scale.to_bits()) << (16 * block);
            let scale = scale.to_f32();
            values.iter().zip(codes).for_each(|(value, to)| *to = code(value / scale));
        }
        words[0] = f32::from_bits(scales.to_le());
        let (codes, _) = codes.as_chunks::<4>();
        words[1..].iter_mut().zip(codes).for_each(|(word, codes)| *word = from_bytes(*codes));
    }
}

fn decode_blocks(words: &[f32], values: &mut [f32], value: impl Fn(u8) -> f32) {
    for (values, words) in values.chunks_mut(GROUP).zip(words.chunks(GROUP / 4 + 1)) {
        let scales = u32::from_le(words[0].to_bits());
        let mut codes = [0; GROUP];
        codes.as_chunks_mut::<4>().0.iter_mut().zip(&words[1..]).for_each(|(codes, w)| *codes = to_bytes(*w));
        for (block, (values, codes)) in values.chunks_mut(BLOCK).zip(codes.chunks(BLOCK)).enumerate() {
            let scale = f32::from_bits(scales >> (16 * block) << 16);
            values.iter_mut().zip(codes).for_each(|(to, code)| *to = value(*code) * scale);
        }
    }
}

fn from_bytes(bytes: [u8; 4]) -> f32 {
    f32::from_bits(u32::from_ne_bytes(bytes))
}

fn to_bytes(word: f32) -> [u8; 4] {
    word.to_bits().to_ne_bytes()
}

/// What a block is divided by: at least its largest value ÷ `largest`. NaN if a value is not finite.
fn scale_of(block: &[f32], largest: f32) -> bf16 {
    const INFINITE: u32 = f32::INFINITY.to_bits();
    // The bits of magnitudes are ordered as they are, and those of NaN come last.
    let most = block.iter().fold(0, |most, x| most.max(x.to_bits() & !(1 << 31)));
    match most {
        0 => bf16::ONE,
        INFINITE.. => bf16::NAN,
        _ => {
            let bits = (f32::from_bits(most) / largest).to_bits();
            bf16::from_bits((bits.max(1)).div_ceil(1 << 16) as u16)
        }
    }
}

/// The nearest whole number, ties to even, as the bits of an `i8`; `x` is from −128 to 127.
fn nearest_i8(x: f32) -> u8 {
    // Steps of numbers around this one are 1, so adding it rounds; its own lower bits are 0.
    const STEPS: f32 = 12_582_912.0;
    (x + STEPS).to_bits() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of all sizes that occur, some blocks among them of zeros or of the very small.
    fn values(len: usize, seed: u32) -> Vec<f32> {
        let one = |i: u32| {
            let h = (i ^ seed << 20).wrapping_mul(0x9E37_79B9).rotate_left(13).wrapping_mul(0x85EB_CA6B);
            let size = [1.0, 1e-3, 3e4, 1e-42, 0.0, 1e30][(i as usize / BLOCK + seed as usize) % 6];
            (h as f32 / u32::MAX as f32 - 0.5) * size * [1.0, 1.0, 0.01, 0.0][h as usize % 4]
        };
        (0..len as u32).map(one).collect()
    }

    fn there_and_back(dtype: WireDType, values: &[f32]) -> Vec<f32> {
        let mut words = vec![f32::NAN; dtype.words(values.len())];
        dtype.encode(values, &mut words);
        let mut back = vec![f32::NAN; values.len()];
        dtype.decode(&words, &mut back);
        back
    }

    #[test]
    fn every_value_is_off_by_no_more_than_promised() {
        for (len, seed) in [0, 1, 2, 3, 31, 32, 33, 63, 64, 65, 500, 4096].into_iter().zip(0..) {
            let values = values(len, seed);
            for dtype in WireDType::ALL {
                let back = there_and_back(dtype, &values);
                for (block, back) in values.chunks(BLOCK).zip(back.chunks(BLOCK)) {
                    let most = block.iter().fold(0f64, |m, x| m.max(f64::from(x.abs())));
                    // Scales cannot be finer than the finest number; that is 2⁻¹³³ in bfloat16.
                    let finest = 2f64.powi(-133);
                    for (x, y) in block.iter().map(|x| f64::from(*x)).zip(back) {
                        let off = (x - f64::from(*y)).abs();
                        let may = match dtype {
                            WireDType::Float32 => 0.0,
                            WireDType::Bfloat16 => (x.abs() / 256.0).max(finest / 2.0),
                            WireDType::Fp8 => (x.abs() / 16.0).max(most / 400_000.0).max(finest),
                            WireDType::Int8 => (most / 252.0).max(finest),
                        };
                        assert!(off <= may, "{dtype:?}: {x} came as {y}, the block's largest is {most}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_coarse_enough_arrives_exactly() {
        // Scales are powers of two where a block's largest value is the code's largest times one.
        for (dtype, largest) in WireDType::ALL.into_iter().zip([1.0, 1.0, fp8::MAX, 127.0]) {
            let value = |i: usize| if i.is_multiple_of(32) { -largest } else { (i % 16) as f32 - 8.0 };
            let values: Vec<f32> = (0..200).map(|i| value(i) / 64.0).collect();
            assert_eq!(there_and_back(dtype, &values), values, "{dtype:?}");
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN] {
            for at in [0, 31, 32, 70, 98] {
                let mut values = values(99, 1);
                values[at] = bad;
                for dtype in WireDType::ALL {
                    assert!(!there_and_back(dtype, &values)[at].is_finite(), "{dtype:?} {bad} at {at}");
                }
            }
        }
    }

    #[test]
    fn words_are_half_or_less() {
        for values in [64, 128, 2048, 4096] {
            let share = |dtype: WireDType| dtype.words(values) as f64 / values as f64;
            assert_eq!(WireDType::ALL.map(share), [1.0, 0.5, 17.0 / 64.0, 17.0 / 64.0]);
        }
    }
}
