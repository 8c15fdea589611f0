//! Sixteen f32 numbers at a time: the only place that knows instruction sets.
//!
//! Every kernel is one generic function over [`F32x16`], written once. [`Isa::run`] instantiates it for an
//! instruction set inside a function that may use that set. Lanes are never mixed (but in
//! [`F32x16::sum_by_halves`], whose order is fixed), so all instantiations have the same bits.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod element;
pub(crate) mod int;
#[cfg(all(target_arch = "aarch64", target_endian = "little"))]
mod neon;
mod portable;

use tensor::lanes::Lanes;

pub(crate) use element::{Bf16, Element, F16, F32, Fp8, KvElement, with_element, with_kv_element};

/// Numbers in a vector, columns in a panel of weights, positions in a panel of keys.
pub(crate) const LANES: usize = 16;

/// A set of instructions that kernels exist for. All give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// What every machine has. Slow: fused multiply-adds may be calls of a library function.
    Portable,
    /// AVX2, FMA and F16C of x86-64.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI of x86-64: Intel since Cascade Lake, AMD since Zen 4.
    Avx512,
    /// NEON of little-endian AArch64, which all have.
    Neon,
}

/// Work that is written once and run with the vectors of any instruction set.
pub(crate) trait Kernel {
    type Output;
    /// Must be `#[inline(always)]`, like all that it calls with vectors.
    fn run<V: F32x16>(self) -> Self::Output;
}

impl Isa {
    const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Neon];

    /// The fastest set that this machine has. AVX-512 comes before AVX2 because on Zen 4, which runs both at the same
    /// number of products per cycle, it was as fast with one row and with hundreds and faster with 8 to 32.
    pub fn detect() -> Self {
        *Self::available().last().expect("every machine has the portable one")
    }

    /// All sets that this machine has, the fastest last.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// Whether this machine has this set.
    pub fn is_available(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::is_available(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::is_available(),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => false,
            Isa::Neon => cfg!(all(target_arch = "aarch64", target_endian = "little")),
        }
    }

    /// Runs a kernel with this set, which must be available: [`crate::CpuDevice::new`] checks it.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            Isa::Portable => portable::run(kernel),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: nobody gets to run kernels for a set that `is_available` denies.
            Isa::Avx2 => unsafe { avx2::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx512 => unsafe { avx512::run(kernel) },
            #[cfg(all(target_arch = "aarch64", target_endian = "little"))]
            Isa::Neon => neon::run(kernel),
            #[allow(unreachable_patterns)]
            isa => unreachable!("no {isa} on this machine"),
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Neon => "neon",
        })
    }
}

/// Sixteen f32 numbers.
pub(crate) trait F32x16: Lanes {
    /// Whether the registers hold more than one vector of sums. If not, all tiles are one row times one panel.
    const TILED: bool;
    /// Rows of the tallest tile of a linear layer.
    const TILE_ROWS: usize;

    /// Runs a part of a kernel as a function of its own, which keeps functions at a size that compiles fast.
    fn call<K: Kernel>(kernel: K) -> K::Output;
    fn load(from: &[f32; LANES]) -> Self;
    fn store(self, to: &mut [f32; LANES]);
    /// Widens bf16 in the order in which panels hold it: lane l is half-word 2 l, lane 8 + l half-word 2 l + 1.
    fn load_bf16(from: &[u16; LANES]) -> Self;
    /// Widens f16 in the order of memory.
    fn load_f16(from: &[u16; LANES]) -> Self;
    /// Widens e4m3 in the order of memory. Codes of NaN become any number: where they could be, a scale is NaN.
    fn load_fp8(from: &[u8; LANES]) -> Self;
    /// Whether any lane is not `<=` its limit (a NaN is not).
    fn any_above(self, limit: Self) -> bool;

    /// Asks for a cache line that will be read soon. Any address will do.
    #[inline(always)]
    fn prefetch(_at: *const u8) {}

    /// Asks for a cache line that will be read a little later: it comes as far as the second-level cache.
    #[inline(always)]
    fn prefetch_far(_at: *const u8) {}

    /// Up to 16 numbers; the lanes behind them are +0.
    #[inline(always)]
    fn load_first(from: &[f32]) -> Self {
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        Self::load(&lanes)
    }

    /// Stores the first `to.len()` lanes.
    #[inline(always)]
    fn store_first(self, to: &mut [f32]) {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        to.copy_from_slice(&lanes[..to.len()]);
    }

    /// Lanes `from..to` of `self`, the others of `fill`.
    #[inline(always)]
    fn keep(self, from: usize, to: usize, fill: Self) -> Self {
        let index = Self::load(&[0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.]);
        let low = index.select_lt(Self::splat(from as f32), fill, self);
        index.select_lt(Self::splat(to as f32), low, fill)
    }

    /// Lane l += lane l + 8, then + 4, + 2, + 1.
    #[inline(always)]
    fn sum_by_halves(self) -> f32 {
        let mut a = [0.0; LANES];
        self.store(&mut a);
        for width in [8, 4, 2, 1] {
            for l in 0..width {
                a[l] += a[l + width];
            }
        }
        a[0]
    }

    /// The lowest byte of each lane. All are whole numbers from −32,768 to 32,767.
    #[inline(always)]
    fn low_bytes(self) -> [u8; LANES] {
        let mut lanes = [0.0; LANES];
        self.store(&mut lanes);
        lanes.map(|lane| lane as i16 as u8)
    }

    /// The largest lane, by `if a > b`.
    #[inline(always)]
    fn largest(self) -> f32 {
        let mut a = [0.0; LANES];
        self.store(&mut a);
        for width in [8, 4, 2, 1] {
            for l in 0..width {
                a[l] = Lanes::max(a[l + width], a[l]);
            }
        }
        a[0]
    }
}

/// At most 32 numbers, filled up with +0.
#[inline(always)]
pub(crate) fn load_group<V: F32x16>(from: &[f32]) -> [V; 2] {
    match from.as_chunks::<LANES>() {
        ([low, high], []) => [V::load(low), V::load(high)],
        ([low], rest) => [V::load(low), V::load_first(rest)],
        (_, rest) => [V::load_first(rest), V::splat(0.0)],
    }
}
