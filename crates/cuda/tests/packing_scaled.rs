//! Weights that checkpoints have in e4m3, laid out on the GPU with their scales.

mod emulated;
mod random;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use cuda::CudaDevice;
use emulated::Emulated;
use random::Random;
use tensor::{
    Concat, Device, MatrixSource, Reference, Scales, Slice, StoredElements, WeightFormat, WeightSpec, fp8,
};

/// A matrix as a file has it: a scale for each block of some outputs and some inputs.
struct Checkpoint {
    rows: usize,
    cols: usize,
    block: [usize; 2],
    elements: Vec<u8>,
    scales: Vec<f32>,
    /// Whether elements have to be read row by row, and how often they were.
    is_apart: bool,
    reads: AtomicUsize,
}

impl Checkpoint {
    fn new(rows: usize, cols: usize, block: [usize; 2]) -> Self {
        let mut random = Random((rows * 1000 + cols) as u64);
        // All of them but NaN.
        let elements = (0..rows * cols).map(|at| (at * 89 % 127 + 128 * random.below(2)) as u8).collect();
        let count = rows.div_ceil(block[0]) * cols.div_ceil(block[1]);
        let scales =
            (0..count).map(|_| random.within(1.0).abs() * 2f32.powi(random.below(40) as i32 - 30)).collect();
        Checkpoint { rows, cols, block, elements, scales, is_apart: false, reads: AtomicUsize::new(0) }
    }
}

impl MatrixSource for Checkpoint {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        for (out, col) in out.iter_mut().zip(cols) {
            *out = fp8::to_f32(self.elements[row * self.cols + col]) * self.scale(row, col);
        }
    }
    fn read_elements(&self, row: usize, cols: Range<usize>, out: &mut [u8]) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        out.copy_from_slice(&self.elements[row * self.cols..][cols]);
    }
    fn scale(&self, row: usize, col: usize) -> f32 {
        let [outputs, inputs] = self.block;
        self.scales[row / outputs * self.cols.div_ceil(inputs) + col / inputs]
    }
    fn stored_elements(&self, rows: Range<usize>, cols: Range<usize>) -> Option<StoredElements<'_>> {
        let at = |row: usize, col: usize| row * self.cols + col;
        let own = at(rows.start, cols.start)..at(rows.end - 1, cols.end);
        (!self.is_apart).then(|| StoredElements { bytes: &self.elements[own], stride: self.cols })
    }
}

fn device() -> Option<CudaDevice> {
    Some(CudaDevice::new(Box::new(Emulated::new(7)?)))
}

/// All elements, as they are when they are widened, are those of the reference and of the source.
fn check(dev: &CudaDevice, source: &dyn MatrixSource, spec: WeightSpec) {
    let rows: Vec<u32> = (0..source.rows() as u32).collect();
    let weight = dev.pack(source, spec);
    let found = dev.download(&dev.embed(&weight, &rows)).expect("numbers");
    let expected = Reference.embed(&Reference.pack(source, spec), &rows).data;
    let mut read = vec![0.0; expected.len()];
    for (row, out) in read.chunks_mut(source.cols()).enumerate() {
        source.read(row, 0..source.cols(), out);
    }
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert!(bits(&read) == bits(&expected), "{spec:?}: the reference");
    assert!(bits(&found) == bits(&expected), "{spec:?}");
}

fn spec(every: Option<usize>, period: Option<usize>) -> WeightSpec {
    let scales = every.map_or(Scales::OUTPUT, |every| Scales::every(every, period).expect("whole groups"));
    WeightSpec { format: WeightFormat::Scaled(scales), period }
}

#[test]
fn elements_and_scales_are_laid_out_as_they_are() {
    let Some(dev) = device() else { return };
    for (n, k, period) in
        [(1, 1, None), (16, 32, None), (35, 100, None), (140, 300, None), (17, 160, Some(80))]
    {
        // One for all, one per output, one per block of both.
        for block in [[n, k], [1, k], [128, 128]] {
            let every = (block[1] < k).then_some(block[1]);
            if every.is_some_and(|every| Scales::every(every, period).is_none()) {
                continue;
            }
            let mut matrix = Checkpoint::new(n, k, block);
            check(&dev, &matrix, spec(every, period));
            assert_eq!(matrix.reads.load(Ordering::Relaxed), n, "only the reference reads");
            matrix.is_apart = true;
            check(&dev, &matrix, spec(every, period));
        }
    }
    check(&dev, &Checkpoint::new(20, 96, [16, 48]), spec(Some(48), Some(24)));
}

#[test]
fn a_ranks_part_may_begin_within_a_block() {
    let Some(dev) = device() else { return };
    let (n, k) = (150, 480);
    let matrix = Checkpoint::new(n, k, [128, 128]);
    for (period, cols) in [(None, 0..96), (None, 96..480), (None, 160..352), (Some(16), 208..480)] {
        let source = Slice { of: &matrix, rows: vec![100..150, 0..30], cols: cols.clone() };
        check(&dev, &source, spec(Some(128), period).from_input(cols.start, k));
    }
}

#[test]
fn matrices_that_are_put_together_keep_their_scales() {
    let Some(dev) = device() else { return };
    for block in [[64, 256], [1, 256], [128, 128]] {
        let (a, b) = (Checkpoint::new(40, 256, block), Checkpoint::new(25, 256, block));
        let every = (block[1] < 256).then_some(block[1]);
        check(&dev, &Concat(vec![&a, &b]), spec(every, None));
    }
}

#[test]
fn scales_cost_little_memory() {
    let Some(dev) = device() else { return };
    let (n, k) = (64, 4096);
    let bytes =
        |every| dev.packed_bytes(&dev.pack(&Checkpoint::new(n, k, [1, every]), spec(Some(every), None)));
    // And four bytes per tile, of which all panels have the same.
    assert_eq!(bytes(128), n * k + 4 * n * k / 128 + 4 * k / 32);
    let one = dev.pack(&Checkpoint::new(n, k, [1, k]), spec(None, None));
    assert_eq!(dev.packed_bytes(&one), n * k + 4 * n + 4 * k / 32);
}
