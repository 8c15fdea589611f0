//! With `--reduction fast` very many rows meet weights in e4m3 in the library, as e4m3 themselves where the GPU multiplies it.

use cuda::{CudaDevice, Reduction};
use tensor::{
    DType, Device, MatrixSource, Program, ReductionTree, Reference, ReferenceTensor, ScaledMatrix, Scales,
    WeightFormat, WeightSpec, fp8,
};

mod process;
use process::{counted, driver, graph_launches, with_libraries};

const ROWS: usize = 513;

/// Numbers of several sizes, between −1 and 1; of row 3 all are 0.
fn activation(row: usize, col: usize) -> f32 {
    let bits = (row as u32 * 7919 + col as u32 * 104_729 + 13).wrapping_mul(2_654_435_761);
    let x = (bits >> 8) as f32 / (1 << 23) as f32 - 1.0;
    if row == 3 { 0.0 } else { x * 2f32.powi(-((bits % 11) as i32)) }
}

fn weight(row: usize, col: usize) -> f32 {
    activation(col + 1000, row) * 0.05 * (1 + row % 5) as f32
}

fn spec(every: Option<usize>) -> WeightSpec {
    let scales = every.map_or(Scales::OUTPUT, |every| Scales::every(every, None).expect("whole groups"));
    WeightFormat::Scaled(scales).into()
}

fn times_of_e4m3() -> u32 {
    counted("libcublasLt.so.13", "fake_multiplied_e4m3")
}

/// What a row becomes, and by what that was divided.
fn rounded(row: &[f32]) -> (Vec<f32>, f32) {
    let largest = row.iter().fold(0f32, |most, x| most.max(x.abs()));
    let inverse = if largest > 0.0 { fp8::MAX / largest } else { 0.0 };
    (row.iter().map(|x| fp8::to_f32(fp8::from_f32(x * inverse))).collect(), largest / fp8::MAX)
}

/// How a layer's results differ from those of the reference: the most that a result is off by, in parts of what rounding
/// activations to e4m3 allows; and the most that it is off by from what activations rounded so give.
fn differences(n: usize, k: usize, spec: WeightSpec, program: Option<&Program>, bias: bool) -> (f32, f32) {
    let dev = CudaDevice::with(Box::new(driver(false)), Reduction::Fast);
    let source = ScaledMatrix::of(&ReferenceTensor::from_fn(n, k, weight), spec);
    let x: Vec<f32> = (0..ROWS * k).map(|at| activation(at / k, at % k)).collect();
    let bias: Vec<f32> = (0..n).map(|col| if bias { weight(col, 5) } else { 0.0 }).collect();
    let (on_gpu, on_host) = (dev.upload(&x, ROWS, k), Reference.upload(&x, ROWS, k));
    let packed = dev.pack(&source, spec);
    let (y, expected) = match program {
        None => (
            dev.linear(&on_gpu, &packed, Some(&dev.upload(&bias, 1, n))),
            Reference.linear(&on_host, &Reference.pack(&source, spec), Some(&Reference.upload(&bias, 1, n))),
        ),
        Some(program) => (
            dev.linear_tree(&on_gpu, &packed, program),
            Reference.linear_tree(&on_host, &Reference.pack(&source, spec), program),
        ),
    };
    let found = dev.download(&y).expect("numbers");
    assert_eq!(found.len(), expected.data.len());
    let mut weights = vec![0.0; n * k];
    weights.chunks_mut(k).enumerate().for_each(|(row, out)| source.read(row, 0..k, out));
    let (mut of_allowed, mut of_rounded) = (0f32, 0f32);
    for (at, (found, expected)) in found.iter().zip(&expected.data).enumerate() {
        let (row, output) = (at / n % ROWS, at % n);
        let (x, w) = (&x[row * k..][..k], &weights[output * k..][..k]);
        let (q, scale) = rounded(x);
        // Half a step of e4m3 is 1/16 of a number, or of its smallest ones 2^-10.
        let allowed: f32 = x.iter().zip(w).map(|(x, w)| (x.abs() / 16.0 + scale / 1024.0) * w.abs()).sum();
        of_allowed = of_allowed.max((found - expected).abs() / (allowed + 1e-6));
        if program.is_none() {
            let sum: f64 = q.iter().zip(w).map(|(q, w)| f64::from(*q) * f64::from(*w)).sum();
            of_rounded = of_rounded.max((found - (sum as f32 * scale + bias[output])).abs());
        }
    }
    (of_allowed, of_rounded)
}

#[test]
fn one_scale_per_output_is_multiplied_as_e4m3() {
    with_libraries("one_scale_per_output_is_multiplied_as_e4m3", &[], || {
        // Inputs that have to be filled up to a multiple of 16, too.
        for (n, k, bias) in [(48, 96, true), (16, 40, false), (80, 33, true)] {
            let before = times_of_e4m3();
            let (of_allowed, of_rounded) = differences(n, k, spec(None), None, bias);
            assert!(of_allowed <= 1.0 && of_rounded <= 1e-5, "{n} x {k}: {of_allowed} {of_rounded}");
            // Activations that were not rounded would be nearer.
            assert!(of_allowed > 0.05, "{n} x {k}: {of_allowed}");
            assert_eq!(times_of_e4m3() - before, 1, "{n} x {k}");
        }
        let tree = ReductionTree::over_granules(144, 5);
        for leaves in [0..5, 1..5] {
            let program = tree.program(leaves);
            let before = times_of_e4m3();
            let (of_allowed, _) = differences(32, program.num_inputs(), spec(None), Some(&program), false);
            assert!(of_allowed <= 1.0, "{of_allowed}");
            assert_eq!(times_of_e4m3() - before, program.num_nodes() as u32, "a product for each node");
        }
    });
}

#[test]
fn other_scales_and_sizes_are_multiplied_as_bfloat16() {
    with_libraries("other_scales_and_sizes_are_multiplied_as_bfloat16", &[], || {
        for (n, k, every) in [(48, 96, Some(32)), (36, 288, Some(128)), (36, 96, None)] {
            let before = counted("libcublasLt.so.13", "fake_multiplied");
            let (of_allowed, _) = differences(n, k, spec(every), None, true);
            // bfloat16 has 4 bits of mantissa more; so have weights.
            assert!(of_allowed <= 0.15, "{n} x {k}, {every:?}: {of_allowed}");
            let times = counted("libcublasLt.so.13", "fake_multiplied") - before;
            assert_eq!((times, times_of_e4m3()), (1, 0), "{n} x {k}, {every:?}");
        }
    });
}

#[test]
fn gpus_that_do_not_multiply_e4m3_are_not_asked_to() {
    let test = "gpus_that_do_not_multiply_e4m3_are_not_asked_to";
    with_libraries(test, &[("FAKE_CAPABILITY", "80")], || {
        let (of_allowed, _) = differences(48, 96, spec(None), None, true);
        assert!(of_allowed <= 0.15, "{of_allowed}");
        assert_eq!((counted("libcublasLt.so.13", "fake_multiplied"), times_of_e4m3()), (1, 0));
    });
}

#[test]
fn products_of_e4m3_are_replayed_with_the_rest() {
    with_libraries("products_of_e4m3_are_replayed_with_the_rest", &[], || {
        let (n, k) = (32, 48);
        let source = ScaledMatrix::of(&ReferenceTensor::from_fn(n, k, weight), spec(None));
        let all = [false, true].map(|enforce_eager| {
            let dev = CudaDevice::with(Box::new(driver(enforce_eager)), Reduction::Fast);
            let packed = dev.pack(&source, spec(None));
            let step = |step: usize| {
                let x: Vec<f32> = (0..512 * k).map(|at| activation(at / k + step, at % k)).collect();
                let mut x = dev.upload(&x, 512, k);
                // A list that is long enough to be replayed.
                (0..8).for_each(|_| dev.scale(&mut x, 1.0));
                dev.download(&dev.linear(&x, &packed, None)).expect("numbers")
            };
            (0..5).map(step).collect::<Vec<_>>()
        });
        assert!(all[0] == all[1], "graphs give what single calls give");
        assert!(all[0][3] != all[0][4] && graph_launches() >= 2);
        assert!((1..=4 + 5).contains(&times_of_e4m3()), "{} calls", times_of_e4m3());
    });
}

#[test]
fn a_row_that_is_not_finite_makes_no_other_row_so() {
    with_libraries("a_row_that_is_not_finite_makes_no_other_row_so", &[], || {
        let dev = CudaDevice::with(Box::new(driver(false)), Reduction::Fast);
        let (n, k) = (16, 64);
        let packed =
            dev.pack(&ScaledMatrix::of(&ReferenceTensor::from_fn(n, k, weight), spec(None)), spec(None));
        let mut x: Vec<f32> = (0..ROWS * k).map(|at| activation(at / k, at % k)).collect();
        (x[5 * k + 7], x[9 * k]) = (f32::NAN, f32::NEG_INFINITY);
        let y = dev.download(&dev.linear(&dev.upload(&x, ROWS, k), &packed, None)).expect("numbers");
        assert_eq!(times_of_e4m3(), 1);
        for (row, y) in y.chunks(n).enumerate() {
            assert!(y.iter().all(|y| y.is_nan() == [5, 9].contains(&row)), "row {row}: {y:?}");
        }
        assert!(y[3 * n..4 * n].iter().all(|&y| y == 0.0), "a row of zeros");
        // What is in between goes another way.
        let few = dev.linear(&dev.upload(&x[..100 * k], 100, k), &packed, None);
        assert_eq!(dev.download(&few).expect("numbers").len(), 100 * n);
        assert_eq!(times_of_e4m3(), 1);
        let other = dev.pack(&ReferenceTensor::from_fn(n, k, weight), DType::BF16.into());
        dev.download(&dev.linear(&dev.upload(&x, ROWS, k), &other, None)).expect("numbers");
        assert_eq!(times_of_e4m3(), 1, "weights of 16 bits are not rounded to e4m3");
    });
}
