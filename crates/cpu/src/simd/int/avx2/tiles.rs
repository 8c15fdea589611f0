//! A group of inputs times up to six rows, in assembly: 12 registers of sums, 2 of weights, 1 of `x` and 1 of products are
//! all that there are, and compilers, which move loads ahead and make trees of sums, spill a third of them.
//!
//! Vectors of weights are multiplied by all rows before the next are made of the same bytes, so that two registers are
//! enough for them.

use std::arch::asm;

use super::super::Group;
use crate::simd::avx2::Avx2;

#[repr(align(32))]
struct Words([u16; 16]);

static LOW_BYTES: Words = Words([0xFF; 16]);
static LOW_HALVES: Words = Words([0x0F0F; 16]);
static SIXTEEN: Words = Words([16; 16]);

/// Scales whole sums and adds them: the scales of the weights, widened to the outputs of either half, times that of each row.
macro_rules! scale {
    ($(($r:literal, $low:literal, $high:literal))*) => {
        concat!(
            "vmovdqu ymm15, [{w_scales}]\n",
            "vpslld ymm12, ymm15, 16\n",
            "vpsrld ymm13, ymm15, 16\n",
            "vpslld ymm13, ymm13, 16\n",
            $(
                "vbroadcastss ymm14, dword ptr [{x_scales} + 4*", $r, "]\n",
                "vcvtdq2ps ", $low, ", ", $low, "\n",
                "vcvtdq2ps ", $high, ", ", $high, "\n",
                "vmulps ymm15, ymm12, ymm14\n",
                "vmulps ymm14, ymm13, ymm14\n",
                "vfmadd213ps ", $low, ", ymm15, [{sums} + 64*", $r, "]\n",
                "vfmadd213ps ", $high, ", ymm14, [{sums} + 64*", $r, " + 32]\n",
                "vmovups [{sums} + 64*", $r, "], ", $low, "\n",
                "vmovups [{sums} + 64*", $r, " + 32], ", $high, "\n",
            )*
        )
    };
}

/// Defines `$int8` and `$int4` for so many rows, each with its number and the registers of its sums.
macro_rules! tiles {
    ($int8:ident, $int4:ident, $rows:literal: $(($r:literal, $low:literal, $high:literal))*) => {
        /// Adds one group of int8 weights: even bytes, then odd ones, are multiplied by half-words.
        ///
        /// # Safety
        /// As of [`super::Products::add_int8`], and there must be sums of so many rows.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        pub(super) unsafe fn $int8(sums: *mut Avx2, Group { w, w_scales, x, x_scales, starts, .. }: Group) {
            // SAFETY: reads 512 bytes of weights, their scales, 64 bytes of each row, a scale and a start per row; reads
            // and writes 64 bytes of sums per row.
            unsafe {
                asm!(
                    $(
                        concat!("vpbroadcastd ", $low, ", dword ptr [{starts} + 4*", $r, "]"),
                        concat!("vmovdqa ", $high, ", ", $low),
                    )*
                    "2:",
                    "vmovdqu ymm12, [{w}]",
                    "vmovdqu ymm13, [{w} + 32]",
                    "vpand ymm12, ymm12, [{bytes}]",
                    "vpand ymm13, ymm13, [{bytes}]",
                    $(
                        concat!("vpbroadcastd ymm14, dword ptr [{x} + 8*", $r, "]"),
                        "vpmaddwd ymm15, ymm12, ymm14",
                        "vpmaddwd ymm14, ymm13, ymm14",
                        concat!("vpaddd ", $low, ", ", $low, ", ymm15"),
                        concat!("vpaddd ", $high, ", ", $high, ", ymm14"),
                    )*
                    "vmovdqu ymm12, [{w}]",
                    "vmovdqu ymm13, [{w} + 32]",
                    "vpsrlw ymm12, ymm12, 8",
                    "vpsrlw ymm13, ymm13, 8",
                    $(
                        concat!("vpbroadcastd ymm14, dword ptr [{x} + 8*", $r, " + 4]"),
                        "vpmaddwd ymm15, ymm12, ymm14",
                        "vpmaddwd ymm14, ymm13, ymm14",
                        concat!("vpaddd ", $low, ", ", $low, ", ymm15"),
                        concat!("vpaddd ", $high, ", ", $high, ", ymm14"),
                    )*
                    "add {w}, 64",
                    concat!("add {x}, 8*", $rows),
                    "dec {chunks:e}",
                    "jnz 2b",
                    scale!($(($r, $low, $high))*),
                    w = inout(reg) w => _,
                    x = inout(reg) x => _,
                    chunks = inout(reg) 8 => _,
                    starts = in(reg) starts,
                    bytes = in(reg) &LOW_BYTES.0,
                    w_scales = in(reg) w_scales,
                    x_scales = in(reg) x_scales,
                    sums = in(reg) sums,
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
                    out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
                    out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nostack)
                );
            }
        }

        /// Adds one group of int4 weights, whose products are summed in half-words.
        ///
        /// # Safety
        /// As of [`super::Products::add_int4`], and there must be sums of so many rows.
        #[inline]
        #[target_feature(enable = "avx2,fma")]
        pub(super) unsafe fn $int4(sums: *mut Avx2, Group { w, w_scales, zeros, x, x_scales, starts }: Group) {
            // SAFETY: reads 256 bytes of weights, their scales, 16 zero points, 32 bytes of each row, a scale and a start
            // per row; reads and writes 64 bytes of sums per row.
            unsafe {
                asm!(
                    $(
                        concat!("vpxor ", $low, ", ", $low, ", ", $low),
                        concat!("vpxor ", $high, ", ", $high, ", ", $high),
                    )*
                    "2:",
                    "vmovdqu ymm12, [{w}]",
                    "vmovdqu ymm13, [{w} + 32]",
                    "vpand ymm12, ymm12, [{halves}]",
                    "vpand ymm13, ymm13, [{halves}]",
                    $(
                        concat!("vpbroadcastd ymm14, dword ptr [{x} + 4*", $r, "]"),
                        "vpmaddubsw ymm15, ymm12, ymm14",
                        "vpmaddubsw ymm14, ymm13, ymm14",
                        concat!("vpaddw ", $low, ", ", $low, ", ymm15"),
                        concat!("vpaddw ", $high, ", ", $high, ", ymm14"),
                    )*
                    "vmovdqu ymm12, [{w}]",
                    "vmovdqu ymm13, [{w} + 32]",
                    "vpsrlw ymm12, ymm12, 4",
                    "vpsrlw ymm13, ymm13, 4",
                    "vpand ymm12, ymm12, [{halves}]",
                    "vpand ymm13, ymm13, [{halves}]",
                    $(
                        concat!("vpbroadcastd ymm14, dword ptr [{x} + 4*", $r, " + 4*", $rows, "]"),
                        "vpmaddubsw ymm15, ymm12, ymm14",
                        "vpmaddubsw ymm14, ymm13, ymm14",
                        concat!("vpaddw ", $low, ", ", $low, ", ymm15"),
                        concat!("vpaddw ", $high, ", ", $high, ", ymm14"),
                    )*
                    "add {w}, 64",
                    concat!("add {x}, 8*", $rows),
                    "dec {pairs:e}",
                    "jnz 2b",
                    "vpmovzxbd ymm12, qword ptr [{zeros}]",
                    "vpmovzxbd ymm13, qword ptr [{zeros} + 8]",
                    // −Σ x fits the lower half-word; the upper one meets a zero.
                    $(
                        concat!("vpbroadcastd ymm14, dword ptr [{starts} + 4*", $r, "]"),
                        concat!("vpmaddwd ", $low, ", ", $low, ", [{sixteen}]"),
                        concat!("vpmaddwd ", $high, ", ", $high, ", [{sixteen}]"),
                        "vpmaddwd ymm15, ymm12, ymm14",
                        "vpmaddwd ymm14, ymm13, ymm14",
                        concat!("vpaddd ", $low, ", ", $low, ", ymm15"),
                        concat!("vpaddd ", $high, ", ", $high, ", ymm14"),
                    )*
                    scale!($(($r, $low, $high))*),
                    w = inout(reg) w => _,
                    x = inout(reg) x => _,
                    pairs = inout(reg) 4 => _,
                    zeros = in(reg) zeros,
                    starts = in(reg) starts,
                    halves = in(reg) &LOW_HALVES.0,
                    sixteen = in(reg) &SIXTEEN.0,
                    w_scales = in(reg) w_scales,
                    x_scales = in(reg) x_scales,
                    sums = in(reg) sums,
                    out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _,
                    out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
                    out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _,
                    out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _,
                    options(nostack)
                );
            }
        }
    };
}

tiles!(int8_1, int4_1, 1: (0, "ymm0", "ymm1"));
tiles!(int8_2, int4_2, 2: (0, "ymm0", "ymm1") (1, "ymm2", "ymm3"));
tiles!(int8_3, int4_3, 3: (0, "ymm0", "ymm1") (1, "ymm2", "ymm3") (2, "ymm4", "ymm5"));
tiles!(int8_4, int4_4, 4: (0, "ymm0", "ymm1") (1, "ymm2", "ymm3") (2, "ymm4", "ymm5") (3, "ymm6", "ymm7"));
tiles!(int8_5, int4_5, 5:
    (0, "ymm0", "ymm1") (1, "ymm2", "ymm3") (2, "ymm4", "ymm5") (3, "ymm6", "ymm7") (4, "ymm8", "ymm9"));
tiles!(int8_6, int4_6, 6:
    (0, "ymm0", "ymm1") (1, "ymm2", "ymm3") (2, "ymm4", "ymm5") (3, "ymm6", "ymm7") (4, "ymm8", "ymm9")
    (5, "ymm10", "ymm11"));
