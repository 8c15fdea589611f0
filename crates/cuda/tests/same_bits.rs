//! What a row gives depends neither on the rows beside it nor on how a layer is split.

mod emulated;

use cuda::{CudaDevice, CudaWeight, Reduction};
use emulated::Emulated;
use tensor::{
    Activation, DType, Device, GROUP, MatrixSource, Program, ReductionTree, ReferenceTensor, ScaledMatrix,
    Scales, Slice, WeightFormat, WeightSpec,
};

/// All formats of weights whose groups begin anew at each period, where they have one.
fn formats(period: Option<usize>) -> [WeightFormat; 8] {
    let every = Scales::every(3 * period.unwrap_or(GROUP), period).expect("whole groups");
    [
        WeightFormat::Float(DType::F32),
        WeightFormat::Float(DType::F16),
        WeightFormat::Float(DType::BF16),
        WeightFormat::Fp8,
        WeightFormat::Scaled(Scales::OUTPUT),
        WeightFormat::Scaled(every),
        WeightFormat::Int8,
        WeightFormat::Int4,
    ]
}

/// A matrix as a checkpoint of a format has it.
fn stored(matrix: ReferenceTensor, spec: WeightSpec) -> Box<dyn MatrixSource> {
    match spec.format {
        WeightFormat::Scaled(_) => Box::new(ScaledMatrix::of(&matrix, spec)),
        _ => Box::new(matrix),
    }
}

fn pack(dev: &CudaDevice, matrix: ReferenceTensor, format: WeightFormat) -> CudaWeight {
    dev.pack(&*stored(matrix, format.into()), format.into())
}

/// A device whose threads run in an order of their own.
fn device(turn: u32) -> Option<CudaDevice> {
    Some(CudaDevice::new(Box::new(Emulated::new(turn)?)))
}

/// Numbers that look random, between −1 and 1.
fn value(row: usize, col: usize) -> f32 {
    let bits = (row as u32 * 7919 + col as u32 * 104_729 + 13).wrapping_mul(2_654_435_761);
    (bits >> 8) as f32 / (1 << 23) as f32 - 1.0
}

fn bits(dev: &CudaDevice, x: &<CudaDevice as Device>::Tensor) -> Vec<u32> {
    dev.download(x).expect("no fault").iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_row_alone_gives_what_it_gives_among_others() {
    let Some(dev) = device(7) else { return };
    let (n, k, rows) = (40, 300, 200);
    for format in formats(None) {
        let weight = pack(&dev, ReferenceTensor::from_fn(n, k, value), format);
        let x: Vec<f32> = (0..rows).flat_map(|row| (0..k).map(move |col| value(row + 99, col))).collect();
        let all = bits(&dev, &dev.linear(&dev.upload(&x, rows, k), &weight, None));
        for row in (0..rows).step_by(11) {
            let alone = dev.upload(&x[row * k..(row + 1) * k], 1, k);
            assert_eq!(
                bits(&dev, &dev.linear(&alone, &weight, None)),
                all[row * n..(row + 1) * n],
                "{format}, row {row}"
            );
        }
        for part in [0..1, 1..9, 9..72, 72..136, 135..200] {
            let chunk = dev.upload(&x[part.start * k..part.end * k], part.len(), k);
            let found = bits(&dev, &dev.linear(&chunk, &weight, None));
            assert_eq!(found, all[part.start * n..part.end * n], "{format}, rows {part:?}");
        }
    }
}

#[test]
fn gates_that_are_put_together_at_once_give_what_two_steps_give() {
    let fast = || Some(CudaDevice::with(Box::new(Emulated::new(7)?), Reduction::Fast));
    for dev in [device(7), fast()].into_iter().flatten() {
        gates_give_what_two_steps_give(&dev);
    }
}

fn gates_give_what_two_steps_give(dev: &CudaDevice) {
    let k = 96;
    for (format, half) in formats(None).into_iter().flat_map(|format| [(format, 80), (format, 20)]) {
        let packed = |of: usize| {
            pack(dev, ReferenceTensor::from_fn(2 * half, k, |row, col| value(row + of, col)), format)
        };
        let weights: Vec<_> = (0..3).map(packed).collect();
        let bias: Vec<f32> = (0..2 * half).map(|col| value(7, col)).collect();
        let bias = dev.upload(&bias, 1, 2 * half);
        for (rows, activation) in [(1, Activation::Silu), (12, Activation::GeluTanh), (130, Activation::Relu)]
        {
            let x: Vec<f32> = (0..rows * k).map(|at| value(at / k + 99, at % k)).collect();
            let x = dev.upload(&x, rows, k);
            for bias in [None, Some(&bias)] {
                let two = dev.gated(&dev.linear(&x, &weights[0], bias), activation);
                let one = dev.linear_gated(&x, &weights[0], bias, activation);
                assert_eq!(dev.shape(&one), [rows, half]);
                assert_eq!(bits(dev, &one), bits(dev, &two), "{format}, {rows} rows of {half}");
            }
            // Each token chose the first expert and one of the others.
            let choices: Vec<_> = (0..rows).map(|t| vec![(0, 0.5), (1 + t as u32 % 2, 0.5)]).collect();
            let assignment = dev.assign(&dev.routing_from_host(&choices, 3), 0..3);
            let two = dev.gated(&dev.grouped_linear(&x, &assignment, &weights), activation);
            let one = dev.grouped_linear_gated(&x, &assignment, &weights, activation);
            assert_eq!(bits(dev, &one), bits(dev, &two), "{format}, experts, {rows} rows of {half}");
        }
    }
}

#[test]
fn an_experts_rows_give_what_they_give_in_a_layer_of_their_own() {
    let Some(dev) = device(1) else { return };
    let (n, k, tokens, experts) = (40, 136, 150, 3);
    let tree = ReductionTree::over_granules(k, 4);
    let program = tree.program(0..tree.num_leaves());
    for format in formats(None) {
        let packed = |of: usize| {
            pack(&dev, ReferenceTensor::from_fn(n, k, |row, col| value(row + 31 * of, col)), format)
        };
        let weights: Vec<_> = (0..experts).map(packed).collect();
        // Few pairs, and more per expert than are few: most of the first, none of the second.
        for count in [20, tokens] {
            let of_token = |t: usize| match t % 5 {
                0 => vec![(0, 0.5), (2, 0.5)],
                _ => vec![(0, 1.0)],
            };
            let choices: Vec<_> = (0..count).map(of_token).collect();
            let x: Vec<f32> = (0..count * k).map(|at| value(at / k + 99, at % k)).collect();
            let x = dev.upload(&x, count, k);
            for range in [0..3, 0..1] {
                let assignment = dev.assign(&dev.routing_from_host(&choices, experts), range.clone());
                let all = dev.grouped_linear(&x, &assignment, &weights[range.clone()]);
                let all = bits(&dev, &all);
                let mut first = 0;
                let mut pairs = Vec::new();
                for expert in range.clone() {
                    let chose = |t: &u32| choices[*t as usize].iter().any(|&(id, _)| id as usize == expert);
                    let own: Vec<u32> = (0..count as u32).filter(chose).collect();
                    let alone = bits(&dev, &dev.linear(&dev.gather_rows(&x, &own), &weights[expert], None));
                    assert_eq!(all[first * n..(first + own.len()) * n], alone, "{format}, expert {expert}");
                    first += own.len();
                    pairs.extend(own.iter().map(|&t| (expert, t)));
                }
                // Rows that are pairs already, over a tree.
                let rows: Vec<u32> = pairs.iter().map(|&(_, t)| t).collect();
                let own = dev.gather_rows(&x, &rows);
                let sums = bits(&dev, &dev.grouped_linear_tree(&own, &assignment, &weights[range], &program));
                for (at, (expert, t)) in pairs.iter().enumerate().step_by(7) {
                    let alone = dev.linear_tree(&dev.gather_rows(&x, &[*t]), &weights[*expert], &program);
                    assert_eq!(sums[at * n..(at + 1) * n], bits(&dev, &alone), "{format}, pair {at}");
                }
            }
        }
    }
}

/// What a GPU's blocks of many rows look like depends on how many multiprocessors and how much shared memory it has.
#[test]
fn large_blocks_give_what_small_ones_give() {
    // Two parts of the result per block and more; sums of three levels; outputs and rows that fill no block.
    let (n, k, rows) = (560, 8 * 24, 270);
    let tree = ReductionTree::over_heads(8, 24);
    let program = tree.program(0..8);
    // All but one of the heads: three nodes.
    let part = tree.program(1..8);
    let x: Vec<f32> = (0..rows * k).map(|at| value(at / k + 99, at % k)).collect();
    for &format in &formats(Some(24))[2..] {
        let spec = WeightSpec { format, period: Some(24) };
        let matrix = stored(ReferenceTensor::from_fn(n, k, value), spec);
        let (mut whole, mut nodes, mut plain, mut gated) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        // Blocks of 256 outputs with shared memory for sums that wait, and without; blocks of 128.
        for (multiprocessors, shared_bytes) in [(2, 227 << 10), (2, 99 << 10), (6, 99 << 10)] {
            let Some(mut driver) = Emulated::new(5) else { return };
            (driver.multiprocessors, driver.shared_bytes) = (multiprocessors, shared_bytes);
            let dev = CudaDevice::new(Box::new(driver));
            let weight = dev.pack(&*matrix, spec);
            let x = dev.upload(&x, rows, k);
            whole.push(bits(&dev, &dev.linear_tree(&x, &weight, &program)));
            let (all, cols) = (0..n, 24..k);
            let of_part = Slice { of: &*matrix, rows: vec![all], cols };
            let of_part = dev.pack(&of_part, spec.from_input(24, k));
            nodes.push(bits(&dev, &dev.linear_tree(&dev.gather_cols(&x, 24..k), &of_part, &part)));
            let weight = pack(&dev, ReferenceTensor::from_fn(n, k, value), format);
            plain.push(bits(&dev, &dev.linear(&x, &weight, None)));
            gated.push(bits(&dev, &dev.linear_gated(&x, &weight, None, Activation::Silu)));
            // And a few rows give what they give there.
            for row in [0, 127, 128, 269] {
                let alone = dev.gather_rows(&x, &[row as u32]);
                let found = bits(&dev, &dev.linear(&alone, &weight, None));
                assert_eq!(found, plain[0][row * n..(row + 1) * n], "{format}, row {row}");
            }
        }
        for found in [whole, nodes, plain, gated] {
            assert!(found.windows(2).all(|two| two[0] == two[1]), "{format}");
        }
    }
}

#[test]
fn an_output_gives_what_it_gives_among_others() {
    let Some(dev) = device(7) else { return };
    let (n, k) = (100, 300);
    for format in formats(None) {
        let matrix = stored(ReferenceTensor::from_fn(n, k, value), format.into());
        for rows in [3, 80] {
            let x: Vec<f32> = (0..rows * k).map(|at| value(at / k + 99, at % k)).collect();
            let x = dev.upload(&x, rows, k);
            let y = |own: std::ops::Range<usize>| {
                let source = Slice { of: &*matrix, rows: vec![own], cols: 0..k };
                bits(&dev, &dev.linear(&x, &dev.pack(&source, format.into()), None))
            };
            let all = y(0..n);
            for own in [0..16, 16..100, 33..50] {
                let part: Vec<u32> = all.chunks(n).flat_map(|row| row[own.clone()].to_vec()).collect();
                assert_eq!(y(own.clone()), part, "{format}, {rows} rows, outputs {own:?}");
            }
        }
    }
}

#[test]
fn ranks_of_any_share_give_what_one_gives() {
    let heads = || ReductionTree::over_heads(6, 24);
    let granules = || ReductionTree::over_granules(300, 16);
    // Few rows, and many.
    let cases = [
        (heads(), Some(24), 33, 11),
        (granules(), None, 33, 11),
        (heads(), Some(24), 130, 70),
        (granules(), None, 20, 70),
    ];
    let Some(dev) = device(1) else { return };
    for (tree, period, n, rows) in &cases {
        let (n, rows) = (*n, *rows);
        let (k, leaves) = (tree.num_inputs(), tree.num_leaves());
        let x = |inputs: std::ops::Range<usize>| -> Vec<f32> {
            (0..rows).flat_map(|row| inputs.clone().map(move |col| value(row + 50, col))).collect()
        };
        for format in formats(*period) {
            let spec = WeightSpec { format, period: *period };
            let matrix = stored(ReferenceTensor::from_fn(n, k, value), spec);
            let sums = |own: std::ops::Range<usize>| {
                let inputs = tree.inputs_of(own.clone());
                let (all, cols) = (0..n, inputs.clone());
                let source = Slice { of: &*matrix, rows: vec![all], cols };
                let weight = dev.pack(&source, spec.from_input(inputs.start, k));
                let program: Program = tree.program(own);
                let y =
                    dev.linear_tree(&dev.upload(&x(inputs.clone()), rows, inputs.len()), &weight, &program);
                dev.download(&y).expect("no fault")
            };
            let whole = sums(0..leaves);
            for cuts in [vec![0, leaves / 2, leaves], vec![0, 1, leaves - 2, leaves], (0..=leaves).collect()]
            {
                let ranks: Vec<_> = cuts.windows(2).map(|cut| cut[0]..cut[1]).collect();
                let nodes: Vec<f32> = ranks.iter().flat_map(|own| sums(own.clone())).collect();
                let finish = tree.finish(&ranks);
                for at in 0..rows * n {
                    let sum = finish.run(|node| nodes[node * rows * n + at])[0];
                    assert_eq!(sum.to_bits(), whole[at].to_bits(), "{format}, {k} inputs, {ranks:?}");
                }
            }
        }
    }
}
