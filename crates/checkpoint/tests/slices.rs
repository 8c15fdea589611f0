//! Every part of a weight has the values of the whole.

mod common;

use checkpoint::{Checkpoint, Fill, ScaledBy, WeightSource};
use common::{f32_file, file_of};
use half::{bf16, f16};
use tensor::{DType, MatrixSource, Slice, fp8};

/// Row-major values of a whole matrix.
fn read_all(matrix: &dyn MatrixSource) -> Vec<f32> {
    let cols = matrix.cols();
    let mut all = vec![0.0; matrix.rows() * cols];
    for (row, out) in all.chunks_exact_mut(cols).enumerate() {
        matrix.read(row, 0..cols, out);
    }
    all
}

/// Rows 2..4 and 0..1, columns `cols`, by way of a rank's slice and of the whole.
fn assert_slice_is_part_of_whole(matrix: &dyn MatrixSource, cols: std::ops::Range<usize>) {
    let whole = read_all(matrix);
    let slice = Slice { of: matrix, rows: vec![2..4, 0..1], cols: cols.clone() };
    let want: Vec<f32> =
        [2, 3, 0].iter().flat_map(|row| whole[row * matrix.cols()..][cols.clone()].to_vec()).collect();
    assert_eq!(read_all(&slice), want);
}

#[test]
fn a_ranks_slice_of_a_file_has_the_files_values() {
    let values: Vec<f32> = (0..600).map(|i| i as f32 * 0.25).collect();
    let bytes = f32_file(&[("pad", &[1], &[0.0]), ("w", &[5, 120], &values)]);
    let checkpoint = Checkpoint::from_bytes("demo", bytes.leak()).unwrap();
    let matrix = checkpoint.matrix("w", [5, 120]).unwrap();
    assert_eq!(read_all(&matrix), values);
    assert_slice_is_part_of_whole(&matrix, 30..60);
    assert_eq!((matrix.dtype(), matrix.stored_bytes()), (DType::F32, 2400));
}

#[test]
fn halves_are_widened_where_they_are_not_aligned() {
    // One byte before them, so that no element is aligned.
    for (name, dtype) in [("F16", DType::F16), ("BF16", DType::BF16)] {
        let values: Vec<f32> = (0..1500).map(|i| (i as f32 - 700.0) / 64.0).collect();
        let halves = values.iter().flat_map(|&x| match dtype {
            DType::F16 => f16::from_f32(x).to_le_bytes(),
            _ => bf16::from_f32(x).to_le_bytes(),
        });
        let data: Vec<u8> = [7].into_iter().chain(halves).collect();
        let header = format!(
            r#"{{"a":{{"dtype":"U8","shape":[1],"data_offsets":[0,1]}},
                "w":{{"dtype":"{name}","shape":[3,500],"data_offsets":[1,3001]}}}}"#
        );
        let checkpoint = Checkpoint::from_bytes("demo", file_of(&header, &data).leak()).unwrap();
        assert_eq!(checkpoint.dtype(), dtype);
        let matrix = checkpoint.matrix("w", [3, 500]).unwrap();
        let want: Vec<f32> = values.iter().map(|&x| dtype.round(x)).collect();
        assert_eq!(read_all(&matrix), want);
        let mut part = [0.0; 7];
        matrix.read(2, 490..497, &mut part);
        assert_eq!(part, want[1490..1497]);
        assert_eq!(matrix.bytes_per_element(), 2);
    }
}

#[test]
fn an_expert_is_one_matrix_of_the_packed_tensor() {
    let values: Vec<f32> = (0..24).map(|i| i as f32).collect();
    let bytes = f32_file(&[("experts", &[4, 2, 3], &values)]);
    let checkpoint = Checkpoint::from_bytes("demo", bytes.leak()).unwrap();
    let expert = checkpoint.expert_matrix("experts", 2, [4, 2, 3]).unwrap();
    assert_eq!(read_all(&expert), values[12..18]);
    let wrong = checkpoint.expert_matrix("experts", 0, [4, 3, 2]).err().unwrap().to_string();
    assert_eq!(wrong, r#"tensor "experts": expected [4, 3, 2], found [4, 2, 3] in demo"#);
}

#[test]
fn the_type_of_a_checkpoint_is_that_of_most_bytes() {
    let header = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},
                     "b":{"dtype":"BF16","shape":[6],"data_offsets":[8,20]},
                     "c":{"dtype":"I64","shape":[4],"data_offsets":[20,52]}}"#;
    let checkpoint = Checkpoint::from_bytes("demo", file_of(header, &[0; 52]).leak()).unwrap();
    assert_eq!(checkpoint.dtype(), DType::BF16);
    assert_eq!(checkpoint.stored_bytes(), 52);
}

#[test]
fn a_ranks_slice_of_seeded_weights_has_the_values_of_the_whole() {
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let source = WeightSource::Random { seed: 7, dtype };
        let matrix = source.matrix("w", [5, 1000], Fill::LINEAR).unwrap();
        assert_slice_is_part_of_whole(&matrix, 300..907);
        assert!(read_all(&matrix).iter().all(|&x| x == dtype.round(x)), "{dtype}");
    }
}

#[test]
fn a_ranks_slice_of_weights_in_e4m3_has_elements_and_scales_of_the_whole() {
    let source = WeightSource::Random { seed: 7, dtype: DType::BF16 };
    for by in [ScaledBy::Tensor, ScaledBy::Output, ScaledBy::Block([2, 96])] {
        let matrix = source.scaled_matrix("w", [5, 1000], by, Fill::LINEAR).unwrap();
        assert_slice_is_part_of_whole(&matrix, 300..907);
        let slice = Slice { of: &matrix, rows: vec![3..5], cols: 300..907 };
        let (mut elements, mut values) = ([0; 607], [0.0; 607]);
        slice.read_elements(1, 0..607, &mut elements);
        slice.read(1, 0..607, &mut values);
        for (col, (element, value)) in elements.iter().zip(values).enumerate() {
            let scale = slice.scale(1, col);
            assert_eq!(scale, matrix.scale(4, 300 + col));
            assert_eq!(fp8::to_f32(*element) * scale, value, "{by:?}, column {col}");
        }
        let scales: Vec<f32> = (0..1000).map(|col| matrix.scale(4, col)).collect();
        let changes = scales.windows(2).filter(|two| two[0] != two[1]).count();
        assert_eq!(changes, if by == ScaledBy::Block([2, 96]) { 10 } else { 0 }, "{by:?}");
        let all = read_all(&matrix);
        let deviation = (all.iter().map(|x| x * x).sum::<f32>() / all.len() as f32).sqrt();
        assert!((0.01..0.03).contains(&deviation), "{by:?}: {deviation}");
    }
}

#[test]
fn seeded_weights_are_spread_as_asked_and_differ_by_seed_name_row_and_expert() {
    let dtype = DType::BF16;
    let source = WeightSource::Random { seed: 0, dtype };
    let all = read_all(&source.matrix("w", [256, 1024], Fill::Uniform { std: 0.02 }).unwrap());
    let mean = all.iter().map(|&x| f64::from(x)).sum::<f64>() / all.len() as f64;
    let variance = all.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / all.len() as f64;
    assert!(mean.abs() < 2e-4 && (variance.sqrt() - 0.02).abs() < 2e-4, "{mean} {variance}");
    let lag = |d: usize| all.iter().zip(&all[d..]).map(|(&a, &b)| f64::from(a * b)).sum::<f64>() / variance;
    for d in [1, 2, 1024, 1025] {
        let correlation = lag(d) / all.len() as f64;
        assert!(correlation.abs() < 0.01, "lag {d}: {correlation}");
    }
    assert_ne!(all[..1024], all[1024..2048]);
    let others = [
        read_all(&source.matrix("v", [1, 1024], Fill::LINEAR).unwrap()),
        read_all(&WeightSource::Random { seed: 1, dtype }.matrix("w", [1, 1024], Fill::LINEAR).unwrap()),
        read_all(&source.expert_matrix("w", 1, [2, 1, 1024], Fill::LINEAR).unwrap()),
    ];
    assert!(others.iter().all(|other| other[..] != all[..1024]));
    let norm = source.vector("norm", 512, Fill::NORM).unwrap();
    assert!(norm.iter().all(|x| (0.94..=1.06).contains(x)) && norm[0] != norm[1]);
}

#[test]
fn seeded_weights_are_the_same_in_every_build() {
    let source = WeightSource::Random { seed: 42, dtype: DType::F32 };
    let first = source.vector("model.norm.weight", 4, Fill::LINEAR).unwrap();
    let bits: Vec<u32> = first.iter().map(|x| x.to_bits()).collect();
    assert_eq!(
        bits,
        [1018088007, 3148890926, 3140123544, 3171775729],
        "the hash changed: every seeded model changed with it"
    );
}

#[test]
fn meta_weights_have_shapes() {
    let source = WeightSource::Meta { dtype: DType::BF16 };
    let matrix = source.matrix("w", [3, 4], Fill::LINEAR).unwrap();
    assert_eq!((matrix.rows(), matrix.cols(), matrix.stored_bytes()), (3, 4, 24));
    assert_eq!(source.vector("norm", 3, Fill::NORM).unwrap(), [0.0; 3]);
    assert_eq!(source.contains("w"), None);
}

#[test]
#[should_panic(expected = "shapes and no values")]
fn reading_meta_weights_is_a_programmers_error() {
    let source = WeightSource::Meta { dtype: DType::BF16 };
    source.matrix("w", [1, 1], Fill::LINEAR).unwrap().read(0, 0..1, &mut [0.0]);
}
