//! kernels/attention_tiles.cuh.

use tensor::KvDType;

use super::split;
use crate::kernels;
use crate::kv::{CudaKv, TILE, of_type};

/// Positions of a tile.
const POSITIONS: usize = 64;

/// A size of heads that there is a kernel for, or up to which there is one.
#[derive(Clone, Copy)]
pub(super) enum Shape {
    Of64,
    Of128,
    Of256,
    To128,
    To256,
}

/// For each type of cache and each shape; each in a file of its own. Over f32 there is another (kernels/attention_exact.cu).
const KERNELS: [[&str; 5]; 4] = [
    [""; 5],
    [
        "attention_tiles_bfloat_64",
        "attention_tiles_bfloat_128",
        "attention_tiles_bfloat_256",
        "attention_tiles_bfloat_to_128",
        "attention_tiles_bfloat_to_256",
    ],
    [
        "attention_tiles_half_64",
        "attention_tiles_half_128",
        "attention_tiles_half_256",
        "attention_tiles_half_to_128",
        "attention_tiles_half_to_256",
    ],
    [
        "attention_tiles_fp8_64",
        "attention_tiles_fp8_128",
        // One for just this size has too few registers.
        "attention_tiles_fp8_to_256",
        "attention_tiles_fp8_to_128",
        "attention_tiles_fp8_to_256",
    ],
];

impl Shape {
    pub fn of(head_dim: usize) -> Self {
        match head_dim.next_multiple_of(TILE) {
            64 => Shape::Of64,
            128 => Shape::Of128,
            256 => Shape::Of256,
            0..=128 => Shape::To128,
            _ => Shape::To256,
        }
    }

    /// Rows of a block: a row is a token with one of the heads that read a KV head.
    pub fn rows(self) -> usize {
        match self {
            Shape::Of64 | Shape::Of128 | Shape::To128 => 128,
            Shape::Of256 | Shape::To256 => 64,
        }
    }

    /// Threads of a block: warps have 16 rows each, or 32 where they have registers for as many; as kernels.rs has it.
    pub fn threads(self, kv: &CudaKv) -> usize {
        let rows_of_warp = match self {
            Shape::Of64 if kv.spec.dtype != KvDType::Fp8 => 32,
            _ => 16,
        };
        32 * self.rows() / rows_of_warp
    }

    /// Tiles of keys and values that a block has at a time.
    fn buffers(self) -> usize {
        match self {
            Shape::Of64 | Shape::Of128 | Shape::To128 => 2,
            Shape::Of256 | Shape::To256 => 1,
        }
    }

    /// Bytes of shared memory: keys and values of tiles, their scales, and queries.
    pub fn shared_bytes(self, head_dim: usize, kv: &CudaKv) -> usize {
        let filled_up = head_dim.next_multiple_of(TILE);
        let tile = 2 * POSITIONS * kv.spec.dtype.bytes(filled_up);
        self.buffers() * tile + 2 * self.rows() * filled_up
    }

    pub fn kernel(self, kv: &CudaKv) -> &'static str {
        kv.own(KERNELS)[self as usize]
    }
}

/// Files of kernels that a model with such a cache needs, whatever its weights are: those of their formats are loaded with them.
/// `ranks`: of a replica; what one alone does not need is a fifth of all that is compiled.
pub fn kernels_for(dtype: KvDType, head_dim: usize, ranks: usize) -> Vec<&'static str> {
    let tiles = of_type(dtype, KERNELS)[Shape::of(head_dim) as usize];
    let split = of_type(dtype, split::KERNELS);
    let is_needed = |file: &&str| match file {
        file if file.starts_with("attention_tiles_") => *file == tiles,
        file if file.starts_with("attention_split_") => *file == split,
        file if file.starts_with("all_reduce") || *file == "moves" => ranks > 1,
        file => !kernels::is_of_format(file),
    };
    kernels::FILES.iter().map(|(file, _)| *file).filter(is_needed).collect()
}

#[cfg(test)]
mod tests {
    use tensor::DType;

    use super::*;

    #[test]
    fn a_model_gets_the_kernels_of_its_cache_and_those_of_ranks_if_there_are_some() {
        let of = |dtype: KvDType, tp| kernels_for(dtype, 128, tp);
        let of_kind = |files: &[&'static str], kind: &str| -> Vec<&'static str> {
            files.iter().copied().filter(|file| file.starts_with(kind)).collect()
        };
        let (alone, of_two) = (of(DType::BF16.into(), 1), of(KvDType::Fp8, 2));
        assert_eq!(of_kind(&alone, "attention_split"), ["attention_split_bfloat"]);
        assert_eq!(of_kind(&alone, "attention_tiles"), ["attention_tiles_bfloat_128"]);
        assert_eq!([of_kind(&alone, "all_reduce"), of_kind(&alone, "moves")], [[""; 0]; 2]);
        assert_eq!(of_kind(&of_two, "attention_split"), ["attention_split_fp8"]);
        assert_eq!([of_kind(&of_two, "all_reduce").len(), of_kind(&of_two, "moves").len()], [3, 1]);
        assert!(of_kind(&of(DType::F32.into(), 1), "attention_split").is_empty());
        assert!(alone.contains(&"norm") && alone.contains(&"logits"));
    }
}
