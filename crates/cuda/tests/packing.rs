//! Weights that are laid out on the GPU, of rows as they are stored.

mod emulated;
mod random;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use cuda::CudaDevice;
use emulated::Emulated;
use random::Random;
use tensor::{
    Concat, DType, Device, MatrixSource, Reference, ReferenceTensor, Slice, Stored, WeightFormat, WeightSpec,
};

/// A matrix in memory, as a file has it.
struct Matrix {
    rows: usize,
    cols: usize,
    dtype: DType,
    bytes: Vec<u8>,
    /// How often a row was read element by element.
    reads: AtomicUsize,
}

impl Matrix {
    fn new(rows: usize, cols: usize, dtype: DType) -> Self {
        let mut random = Random((rows * 1000 + cols) as u64);
        let mut bytes = Vec::new();
        for at in 0..rows * cols {
            // Of all sizes; groups of zeros, of one sign, and among them numbers that a type has no normal ones for.
            let exponent = random.below(24) as i32 - if at % 7 == 0 { 30 } else { 14 };
            let x = random.within(1.0) * 2f32.powi(exponent);
            let x = match at / 32 % 5 {
                0 => 0.0,
                1 => x.abs(),
                2 => -x.abs(),
                _ => x,
            };
            match dtype {
                DType::F32 => bytes.extend(x.to_le_bytes()),
                DType::BF16 => bytes.extend(half::bf16::from_f32(x).to_le_bytes()),
                DType::F16 => bytes.extend(half::f16::from_f32(x).to_le_bytes()),
            }
        }
        Matrix { rows, cols, dtype, bytes, reads: AtomicUsize::new(0) }
    }

    fn at(&self, row: usize, col: usize) -> usize {
        (row * self.cols + col) * self.dtype.bytes()
    }
}

impl MatrixSource for Matrix {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn read(&self, row: usize, cols: Range<usize>, out: &mut [f32]) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        for (x, col) in out.iter_mut().zip(cols) {
            let bytes = &self.bytes[self.at(row, col)..];
            *x = match self.dtype {
                DType::F32 => f32::from_le_bytes(bytes[..4].try_into().expect("four bytes")),
                DType::BF16 => half::bf16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
                DType::F16 => half::f16::from_le_bytes([bytes[0], bytes[1]]).to_f32(),
            };
        }
    }
    fn stored(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Stored<'_>> {
        let bytes = &self.bytes[self.at(rows.start, cols.start)..self.at(rows.end - 1, cols.end)];
        Some(Stored { dtype: self.dtype, bytes, stride: self.cols * self.dtype.bytes() })
    }
}

const FORMATS: [WeightFormat; 6] = [
    WeightFormat::Float(DType::F32),
    WeightFormat::Float(DType::F16),
    WeightFormat::Float(DType::BF16),
    WeightFormat::Fp8,
    WeightFormat::Int8,
    WeightFormat::Int4,
];
const DTYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

fn device() -> Option<CudaDevice> {
    Some(CudaDevice::new(Box::new(Emulated::new(7)?)))
}

/// All elements, as they are when they are widened, are those of the reference.
fn check(dev: &CudaDevice, source: &dyn MatrixSource, spec: WeightSpec) {
    let rows: Vec<u32> = (0..source.rows() as u32).collect();
    let found = dev.download(&dev.embed(&dev.pack(source, spec), &rows)).expect("numbers");
    let expected = Reference.embed(&Reference.pack(source, spec), &rows).data;
    let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
    assert_eq!(found.len(), expected.len());
    if let Some(at) = found.iter().zip(&expected).position(differs) {
        panic!("{spec:?}: element {at} is {:e}, should be {:e}", found[at], expected[at]);
    }
}

#[test]
fn what_is_stored_is_laid_out_as_it_is() {
    let Some(dev) = device() else { return };
    for dtype in DTYPES {
        for (n, k, period) in
            [(1, 1, None), (16, 32, None), (35, 100, None), (40, 96, Some(24)), (17, 160, Some(80))]
        {
            let matrix = Matrix::new(n, k, dtype);
            for format in FORMATS {
                dev.pack(&matrix, WeightSpec { format, period });
                assert_eq!(matrix.reads.load(Ordering::Relaxed), 0, "rows that are stored are not read");
                check(&dev, &matrix, WeightSpec { format, period });
                matrix.reads.store(0, Ordering::Relaxed);
            }
        }
    }
}

#[test]
fn parts_of_several_matrices_are_put_together() {
    let Some(dev) = device() else { return };
    let (a, b) = (Matrix::new(50, 90, DType::BF16), Matrix::new(20, 90, DType::BF16));
    let other = Matrix::new(8, 90, DType::F16);
    let read = ReferenceTensor::from_fn(5, 64, |row, col| (row * 64 + col) as f32 / 100.0);
    let slice = |of, rows: Vec<Range<usize>>| Slice { of, rows, cols: 10..74 };
    let several = slice(&a, vec![3..20, 40..50, 0..1]);
    let (one, others) =
        (slice(&b, std::iter::once(1..20).collect()), slice(&other, std::iter::once(0..8).collect()));
    for format in FORMATS {
        check(&dev, &several, format.into());
        check(&dev, &Concat(vec![&several, &one]), format.into());
        // Of several types, and one that is stored nowhere.
        check(&dev, &Concat(vec![&several, &others]), format.into());
        check(&dev, &Concat(vec![&one, &read, &several]), format.into());
    }
}

#[test]
fn a_weight_comes_piece_by_piece() {
    let Some(dev) = device() else { return };
    // More than is brought at a time.
    let matrix = Matrix::new(17, 270_000, DType::BF16);
    let spec = WeightFormat::Float(DType::BF16).into();
    let packed = dev.pack(&matrix, spec);
    for row in [0, 15, 16] {
        let found = dev.download(&dev.embed(&packed, &[row])).expect("numbers");
        let mut expected = vec![0.0; matrix.cols];
        matrix.read(row as usize, 0..matrix.cols, &mut expected);
        assert!(found == expected, "row {row}");
    }
}
