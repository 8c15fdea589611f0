//! What a row gives depends neither on the rows beside it nor on how a layer is split.

mod emulated;

use cuda::CudaDevice;
use emulated::Emulated;
use tensor::{DType, Device, Program, ReductionTree, ReferenceTensor, WeightFormat, WeightSpec};

const FORMATS: [WeightFormat; 6] = [
    WeightFormat::Float(DType::F32),
    WeightFormat::Float(DType::F16),
    WeightFormat::Float(DType::BF16),
    WeightFormat::Fp8,
    WeightFormat::Int8,
    WeightFormat::Int4,
];

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
    let (n, k, rows) = (40, 300, 137);
    for format in FORMATS {
        let weight = dev.pack(&ReferenceTensor::from_fn(n, k, value), format.into());
        let x: Vec<f32> = (0..rows).flat_map(|row| (0..k).map(move |col| value(row + 99, col))).collect();
        let all = bits(&dev, &dev.linear(&dev.upload(&x, rows, k), &weight, None));
        for row in (0..rows).step_by(5) {
            let alone = dev.upload(&x[row * k..(row + 1) * k], 1, k);
            assert_eq!(
                bits(&dev, &dev.linear(&alone, &weight, None)),
                all[row * n..(row + 1) * n],
                "{format}, row {row}"
            );
        }
        for part in [0..9, 9..26, 26..37, 37..137] {
            let chunk = dev.upload(&x[part.start * k..part.end * k], part.len(), k);
            let found = bits(&dev, &dev.linear(&chunk, &weight, None));
            assert_eq!(found, all[part.start * n..part.end * n], "{format}, rows {part:?}");
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
        for format in FORMATS {
            let sums = |own: std::ops::Range<usize>| {
                let inputs = tree.inputs_of(own.clone());
                let source =
                    ReferenceTensor::from_fn(n, inputs.len(), |row, col| value(row, inputs.start + col));
                let weight = dev.pack(&source, WeightSpec { format, period: *period });
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
