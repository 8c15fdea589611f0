//! With a sliding window attention reads the KV blocks inside the window, and no other: what is outside may be gone.

use std::panic::{AssertUnwindSafe, catch_unwind};

use cpu::{CpuConfig, CpuDevice, CpuKv, CpuTensor};
use tensor::{
    AttentionSpec, Cost, DType, Device, HostDevice, KV_BLOCK, KvDType, KvShare, KvSpec, SequenceSpan,
    StepMeta,
};

/// The id of a block that is nowhere: who reads it panics.
const GONE: u32 = 1 << 30;

const SPEC: AttentionSpec = AttentionSpec {
    num_heads: 2,
    num_kv_heads: 1,
    group: 2,
    first_in_group: 0,
    head_dim: 8,
    scale: 0.35,
    softcap: None,
    window: None,
};

type Attend = fn(&CpuDevice, &CpuTensor, &CpuKv, &StepMeta, &AttentionSpec) -> CpuTensor;

/// Both ways to attend: all positions here, and the segments that are here.
const WAYS: [Attend; 2] = [
    |dev, qkv, kv, step, spec| dev.attention(qkv, kv, &dev.begin(step), spec),
    |dev, qkv, kv, step, spec| {
        let q = dev.gather_cols(qkv, 0..spec.num_heads * spec.head_dim);
        dev.attention_segments(&q, kv, &dev.begin(step), spec, 0..step.num_rows())
    },
];

/// A device of one thread, the keys and values of so many positions on it.
struct Context {
    dev: CpuDevice,
    kv: CpuKv,
    spec: KvSpec,
    positions: usize,
}

impl Context {
    fn new(positions: usize, dtype: KvDType) -> Self {
        let dev = CpuDevice::new(CpuConfig { threads: 1, ..CpuConfig::default() });
        let blocks = positions.div_ceil(KV_BLOCK);
        let spec = KvSpec {
            blocks,
            share: KvShare::WHOLE,
            num_kv_heads: SPEC.num_kv_heads,
            head_dim: SPEC.head_dim,
            dtype,
        };
        let mut context = Context { kv: dev.alloc_kv(spec), dev, spec, positions };
        let all = context.step(positions, context.table());
        let (rows, step) = (context.rows(positions), context.dev.begin(&all));
        context.dev.store_kv(&mut context.kv, &rows, &step, &SPEC);
        context
    }

    /// The blocks in order.
    fn table(&self) -> Vec<u32> {
        (0..self.spec.blocks as u32).collect()
    }

    /// The last `rows` positions as a step.
    fn step(&self, rows: usize, block_table: Vec<u32>) -> StepMeta {
        let sequence = SequenceSpan { rows: 0..rows, start: self.positions - rows, block_table };
        StepMeta { tokens: vec![0; rows], sequences: vec![sequence], logit_rows: vec![] }
    }

    fn rows(&self, rows: usize) -> CpuTensor {
        let number = |i: usize| ((i * 7919 + 13) % 1009) as f32 / 504.5 - 1.0;
        let data: Vec<f32> = (0..rows * SPEC.qkv_cols()).map(number).collect();
        self.dev.upload(&data, rows, SPEC.qkv_cols())
    }

    /// What the last `rows` positions see with these blocks; `None` if a block is missed.
    fn attend(&self, way: usize, rows: usize, blocks: Vec<u32>, window: Option<usize>) -> Option<Vec<f32>> {
        let (qkv, step) = (self.rows(rows), self.step(rows, blocks));
        let spec = AttentionSpec { window, ..SPEC };
        let attend = || WAYS[way](&self.dev, &qkv, &self.kv, &step, &spec);
        let out = catch_unwind(AssertUnwindSafe(attend)).ok()?;
        Some(self.dev.as_slice(&out).to_vec())
    }

    /// The blocks without which the last `rows` positions cannot be done.
    fn blocks_read(&self, way: usize, rows: usize, window: Option<usize>) -> Vec<usize> {
        let is_read = |&block: &usize| {
            let mut table = self.table();
            table[block] = GONE;
            self.attend(way, rows, table, window).is_none()
        };
        (0..self.spec.blocks).filter(is_read).collect()
    }

    /// Bytes of keys and values that are to be read.
    fn bytes_counted(&self, rows: usize, window: Option<usize>) -> u64 {
        let cost = Cost::new();
        let (kv, step) = (cost.alloc_kv(self.spec), cost.begin(&self.step(rows, self.table())));
        cost.attention(&cost.alloc(rows, SPEC.qkv_cols()), &kv, &step, &AttentionSpec { window, ..SPEC });
        cost.report().total().kv_bytes
    }
}

/// Contexts, rows at their ends, windows: inside a block, whole blocks, across tiles, across segments.
const CASES: [(usize, usize, usize); 8] = [
    (300, 1, 1),
    (300, 1, 16),
    (304, 1, 16),
    (300, 1, 70),
    (300, 40, 70),
    (300, 300, 20),
    (2100, 1, 1500),
    (2100, 30, 40),
];

#[test]
fn only_blocks_inside_the_window_are_read() {
    for dtype in [DType::F32.into(), DType::BF16.into(), KvDType::Fp8] {
        for (positions, rows, window) in CASES {
            let context = Context::new(positions, dtype);
            let first = (positions - rows + 1).saturating_sub(window);
            let inside: Vec<usize> = (first / KV_BLOCK..positions.div_ceil(KV_BLOCK)).collect();
            for way in 0..WAYS.len() {
                let case = format!("{rows} of {positions} positions, window {window}, {dtype:?}, way {way}");
                let read = context.blocks_read(way, rows, Some(window));
                assert_eq!(read, inside, "{case}");
                let block_bytes = (KV_BLOCK * 2 * SPEC.num_kv_heads * dtype.bytes(SPEC.head_dim)) as u64;
                let (bytes, counted) =
                    (read.len() as u64 * block_bytes, context.bytes_counted(rows, Some(window)));
                assert!(bytes >= counted && bytes < counted + 2 * block_bytes, "{case}: {bytes}, {counted}");
            }
        }
    }
}

#[test]
fn without_a_window_every_block_is_read() {
    let context = Context::new(300, DType::F32.into());
    for way in 0..WAYS.len() {
        assert_eq!(context.blocks_read(way, 1, None), (0..19).collect::<Vec<_>>());
    }
}

#[test]
fn what_is_seen_is_the_same_when_all_blocks_outside_of_the_window_are_gone() {
    for (positions, rows, window) in CASES {
        let context = Context::new(positions, DType::F32.into());
        let first = (positions - rows + 1).saturating_sub(window);
        let mut table = context.table();
        table[..first / KV_BLOCK].fill(GONE);
        for way in 0..WAYS.len() {
            let whole = context.attend(way, rows, context.table(), Some(window)).expect("all is there");
            let windowed = context.attend(way, rows, table.clone(), Some(window));
            assert_eq!(windowed.expect("what it sees is there"), whole, "{rows} of {positions}, {window}");
        }
    }
}
