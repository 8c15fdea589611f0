//! The KV cache: one piece of memory per layer, block after block, in each one record per KV head (kernels/attention.cuh).

use tensor::{AttentionSpec, DType, Heads, KV_BLOCK, KvDType, KvSpec};

use crate::driver::{Arguments, Grid, Kernel};
use crate::memory::Block;
use crate::rows::kind_of;
use crate::step::CudaStep;
use crate::tensor::{CudaTensor, Queue};

/// One layer's keys and values.
pub struct CudaKv {
    pub(crate) block: Block,
    pub(crate) spec: KvSpec,
}

/// Elements of a head are filled up to a multiple of this, where they meet tensor cores.
pub(crate) const TILE: usize = 16;

const THREADS: usize = 256;
const WARPS: usize = THREADS / 32;

impl CudaKv {
    pub(crate) fn new(queue: &Queue, spec: KvSpec) -> Self {
        CudaKv { block: queue.exact_block(spec.blocks * block_bytes(&spec)), spec }
    }

    /// That it fits what attention is told.
    pub(crate) fn check(&self, spec: &AttentionSpec) {
        let found = (self.spec.num_kv_heads, self.spec.head_dim);
        assert_eq!(found, (spec.num_kv_heads, spec.head_dim), "heads of the cache");
    }

    /// A cache whose elements are f32 has the bits of every other device.
    pub(crate) fn is_exact(&self) -> bool {
        self.spec.dtype == KvDType::Float(DType::F32)
    }

    /// Of one thing for each type, in the order of [`KvDType::ALL`], that of its own.
    pub(crate) fn own<T: Copy>(&self, of_types: [T; 4]) -> T {
        of_type(self.spec.dtype, of_types)
    }

    pub(crate) fn share(&self, arguments: Arguments) -> Arguments {
        arguments.count(self.spec.share.owners).count(self.spec.share.owner)
    }
}

/// Of one thing for each type, in the order of [`KvDType::ALL`], that of this type.
pub(crate) fn of_type<T: Copy>(dtype: KvDType, of_types: [T; 4]) -> T {
    let at = KvDType::ALL.iter().position(|other| *other == dtype);
    of_types[at.expect("all types are there")]
}

/// Bytes of a block: of keys and values of all heads, and in fp8 of their scales.
fn block_bytes(spec: &KvSpec) -> usize {
    let filled_up = spec.head_dim.next_multiple_of(TILE);
    let of_position = match spec.dtype {
        KvDType::Float(DType::F32) => spec.dtype.bytes(spec.head_dim),
        dtype => dtype.bytes(filled_up),
    };
    spec.num_kv_heads * 2 * KV_BLOCK * of_position
}

pub(crate) fn store(queue: &Queue, kv: &CudaKv, qkv: &CudaTensor, step: &CudaStep, spec: &AttentionSpec) {
    let name = kv.own(["store_exact", "store_bfloat", "store_half", "store_fp8"]);
    let grid = blocks(qkv, 2 * spec.num_kv_heads);
    queue.launch(Kernel { file: "kv", name }, grid, arguments(kv, qkv, step, spec));
}

/// Heads are normed, rotated and stored.
pub(crate) fn rotate_store(
    queue: &Queue,
    kv: &CudaKv,
    qkv: &CudaTensor,
    heads: Heads<'_, CudaTensor>,
    step: &CudaStep,
    spec: &AttentionSpec,
) {
    let names = ["rotate_store_exact", "rotate_store_bfloat", "rotate_store_half", "rotate_store_fp8"];
    let weight = |which: usize| {
        heads.norms.map_or(0, |(weights, _)| {
            assert_eq!(weights[which].cols, spec.head_dim, "a norm of heads has a weight per element");
            weights[which].vector()
        })
    };
    let (is_layer, offset, eps) = heads.norms.map_or((0, 0.0, 0.0), |(_, norm)| {
        let (is_layer, offset) = kind_of(norm);
        (is_layer, offset, norm.eps)
    });
    let (table, pairs) = heads.table.map_or((0, 0), |table| {
        assert_eq!(table.rows, qkv.rows, "rows of queries and of the table of rotations");
        assert!(table.cols <= spec.head_dim, "rotated elements lie in a head");
        (table.at(), table.cols / 2)
    });
    let arguments = arguments(kv, qkv, step, spec).address(weight(0)).address(weight(1));
    let arguments = arguments.count(is_layer).float(offset).float(eps).address(table).count(pairs);
    let grid = blocks(qkv, spec.num_heads + 2 * spec.num_kv_heads).with_shared(4 * WARPS * spec.head_dim);
    queue.launch(Kernel { file: "kv", name: kv.own(names) }, grid, arguments);
}

/// A warp for each of the heads of each row.
fn blocks(qkv: &CudaTensor, heads: usize) -> Grid {
    Grid::flat((qkv.filled_rows() * heads).div_ceil(WARPS), THREADS)
}

/// What both are told.
fn arguments(kv: &CudaKv, qkv: &CudaTensor, step: &CudaStep, spec: &AttentionSpec) -> Arguments {
    assert_eq!([qkv.rows, qkv.cols], [step.rows, spec.qkv_cols()], "shape of qkv");
    kv.check(spec);
    let highest = step.highest_block.map_or(0, |block| block as usize / kv.spec.share.owners);
    assert!(step.rows == 0 || highest < kv.spec.blocks, "block {highest} of {}", kv.spec.blocks);
    let arguments = Arguments::new()
        .address(kv.block.at)
        .address(qkv.at())
        .count(qkv.filled_rows())
        .count(qkv.cols)
        .address(step.positions)
        .address(step.table_of_row)
        .address(step.tables)
        .count(spec.num_heads)
        .count(spec.num_kv_heads)
        .count(spec.head_dim);
    kv.share(arguments)
}

pub(crate) fn copy(queue: &Queue, kv: &CudaKv, pairs: &[(u32, u32)]) {
    let local: Vec<(u32, u32)> = kv.spec.share.local_pairs(pairs).collect();
    let is_there = |block: u32| (block as usize) < kv.spec.blocks;
    assert!(local.iter().all(|&(from, to)| is_there(from) && is_there(to)), "a block beyond the last");
    let sixteens = block_bytes(&kv.spec) / 16;
    let per_pair = sixteens.div_ceil(4 * THREADS);
    let numbers = queue.numbers(local.iter().flat_map(|&(from, to)| [from, to]));
    let arguments = Arguments::new().address(kv.block.at).address(numbers.at).long(sixteens).count(per_pair);
    let kernel = Kernel { file: "kv", name: "copy_blocks" };
    queue.launch(kernel, Grid::flat(local.len() * per_pair, THREADS), arguments);
}
