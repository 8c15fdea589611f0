//! What a sampler asks of logits, on rows that many blocks work on: the bits of the reference.

mod emulated;
mod random;

use cuda::CudaDevice;
use emulated::Emulated;
use random::Random;
use tensor::{Device, LogitEdit, Program, ReductionTree, Reference, conformance};

/// A device for each order of threads; none without a C++ compiler.
fn devices() -> impl Iterator<Item = CudaDevice> {
    [0, 1, 7].into_iter().filter_map(|turn| Some(CudaDevice::new(Box::new(Emulated::new(turn)?))))
}

/// Many that others are too, zeros of both signs among them, and some that are forbidden.
fn logits(random: &mut Random, count: usize) -> Vec<f32> {
    let logit = |_| match random.below(16) {
        0 => f32::NEG_INFINITY,
        1 => 0.0,
        2 => -0.0,
        3..6 => random.below(9) as f32 - 4.0,
        _ => random.within(15.0),
    };
    (0..count).map(logit).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

fn bits_of_pairs(rows: Vec<Vec<(f32, u32)>>) -> Vec<Vec<(u32, u32)>> {
    rows.into_iter().map(|row| row.into_iter().map(|(logit, col)| (logit.to_bits(), col)).collect()).collect()
}

/// The whole tree, and parts of a wider one.
fn programs(cols: usize) -> Vec<Program> {
    let panels = cols.div_ceil(16);
    let (whole, wider) = (ReductionTree::over_ids(panels), ReductionTree::over_ids(3 * panels));
    vec![
        whole.program(0..panels),
        wider.program(panels..2 * panels),
        wider.program(panels / 2..panels / 2 + panels),
    ]
}

#[test]
fn logits_are_those_of_the_reference() {
    devices().for_each(|dev| conformance::logits(&dev));
}

#[test]
fn sums_of_exponentials_are_those_of_the_reference_whatever_the_vocabulary() {
    for dev in devices() {
        for (rows, cols) in [(0, 50_257), (1, 50_257), (1, 8_192), (1, 8_209), (33, 4_099), (2, 16_383)] {
            let mut data = logits(&mut Random(cols as u64), rows * cols);
            data.iter_mut().skip(cols / 2).step_by(2 * cols).for_each(|x| *x = f32::NAN);
            let max: Vec<f32> = (0..rows).map(|row| 15.0 - row as f32 * 0.3).collect();
            let (x, reference) = (dev.upload(&data, rows, cols), Reference.upload(&data, rows, cols));
            for program in programs(cols) {
                let found = dev.exp_sums(&x, &max, &program).unwrap();
                let expected = Reference.exp_sums(&reference, &max, &program).unwrap();
                assert_eq!(bits(&found), bits(&expected), "[{rows}, {cols}]");
            }
        }
    }
}

#[test]
fn candidates_are_those_of_the_reference_however_many() {
    for dev in devices() {
        for (rows, cols) in [(0, 9_001), (1, 9_001), (33, 300), (3, 8_192), (2, 8_450), (2, 4_097)] {
            let data = logits(&mut Random(cols as u64), rows * cols);
            let (x, reference) = (dev.upload(&data, rows, cols), Reference.upload(&data, rows, cols));
            for (skip, k) in
                [(0, 1), (0, 64), (100, 200), (0, 1024), (1, 1), (0, 1500), (2100, 900), (0, usize::MAX)]
            {
                let found = bits_of_pairs(dev.top_k(&x, skip, k).unwrap());
                let expected = bits_of_pairs(Reference.top_k(&reference, skip, k).unwrap());
                assert!(found == expected, "{k} from {skip} on of [{rows}, {cols}]");
            }
        }
    }
}

#[test]
fn rows_of_one_logit_alone_keep_the_order_of_columns() {
    for dev in devices().take(1) {
        let (rows, cols) = (2, 8_200);
        let data = [vec![f32::NEG_INFINITY; cols], vec![-0.0; cols]].concat();
        let x = dev.upload(&data, rows, cols);
        for k in [1, 40, 1_000, cols] {
            for (row, candidates) in dev.top_k(&x, 0, k).unwrap().into_iter().enumerate() {
                let expected: Vec<_> = (0..k as u32).map(|col| (data[row * cols].to_bits(), col)).collect();
                assert_eq!(bits_of_pairs(vec![candidates])[0], expected);
            }
        }
    }
}

#[test]
fn what_is_not_a_number_is_below_all_numbers() {
    for dev in devices().take(1) {
        let cols = 2_500;
        let mut data = logits(&mut Random(5), cols);
        data.iter_mut().step_by(3).for_each(|x| *x = f32::NAN);
        let x = dev.upload(&data, 1, cols);
        let mut order: Vec<u32> = (0..cols as u32).collect();
        let key = |&col: &u32| {
            let logit = data[col as usize];
            if logit.is_nan() { (1, 0.0) } else { (0, -(logit + 0.0)) }
        };
        order.sort_by(|a, b| key(a).partial_cmp(&key(b)).unwrap());
        for k in [1, 10, 1_024, cols] {
            let found: Vec<u32> = dev.top_k(&x, 0, k).unwrap()[0].iter().map(|found| found.1).collect();
            assert_eq!(found, order[..k], "{k}");
        }
        assert_eq!(dev.row_max(&x).unwrap(), [data[order[0] as usize]]);
        assert_eq!(dev.row_max(&dev.upload(&[f32::NAN; 9], 1, 9)).unwrap().len(), 1);
        // None comes before it, and it comes before none.
        let found = dev.count_before(&x, &[(f32::NAN, cols)]).unwrap();
        assert_eq!(found, [0]);
        let found = dev.count_before(&x, &[(f32::NEG_INFINITY, cols)]).unwrap();
        assert_eq!(found, [data.iter().filter(|x| !x.is_nan()).count() as u32]);
    }
}

#[test]
fn counts_and_single_logits_are_those_of_the_reference() {
    for dev in devices() {
        for (rows, cols) in [(0, 700), (1, 20_011), (33, 1_031), (4, 9_000)] {
            let mut random = Random(cols as u64);
            let data = logits(&mut random, rows * cols);
            let (x, reference) = (dev.upload(&data, rows, cols), Reference.upload(&data, rows, cols));
            let found: Vec<f32> = dev.row_max(&x).unwrap().iter().map(|max| max + 0.0).collect();
            let expected: Vec<f32> =
                Reference.row_max(&reference).unwrap().iter().map(|max| max + 0.0).collect();
            assert_eq!(bits(&found), bits(&expected));
            for col in [0, cols / 2, cols, usize::MAX] {
                let logit = |row: usize| [0.0, 3.0, f32::NEG_INFINITY, data[row * cols + cols / 3]][row % 4];
                let places: Vec<_> = (0..rows).map(|row| (logit(row), col)).collect();
                let expected = Reference.count_before(&reference, &places).unwrap();
                assert_eq!(dev.count_before(&x, &places).unwrap(), expected, "[{rows}, {cols}] at {col}");
            }
            let at: Vec<_> = (0..rows * 5).map(|i| (i % rows, random.below(cols))).collect();
            let expected = Reference.pick(&reference, &at).unwrap();
            assert_eq!(bits(&dev.pick(&x, &at).unwrap()), bits(&expected));
        }
    }
}

/// Edits of all kinds of all rows, mixed; lists that ascend, and lists that don't and name columns twice.
fn edits(random: &mut Random, rows: usize, cols: usize) -> Vec<LogitEdit> {
    let mut all = Vec::new();
    for i in 0..12 * rows {
        let row = random.below(rows);
        let mut some: Vec<u32> = (0..random.below(400)).map(|_| random.below(cols) as u32).collect();
        if i % 2 == 0 {
            some.sort();
            some.dedup();
        }
        match random.below(6) {
            0 | 1 => all.extend(some.iter().map(|&col| LogitEdit::Add {
                row,
                col: col as usize,
                by: i as f32 * 0.37,
            })),
            2 => all.push(LogitEdit::Repetition { row, cols: some, by: 1.3 }),
            3 => {
                let words = cols.div_ceil(32) + 1 - i % 3;
                let word = |_| random.bits() as u32 | random.bits() as u32 | random.bits() as u32;
                all.push(LogitEdit::Allow { row, words: (0..words).map(word).collect() });
            }
            4 => all.push(LogitEdit::Divide { row, by: 0.7 }),
            _ => all.push(LogitEdit::Add { row, col: random.below(cols), by: f32::NEG_INFINITY }),
        }
    }
    all
}

#[test]
fn edits_are_done_in_the_order_given() {
    for dev in devices() {
        for (rows, cols) in [(1, 9_001), (33, 1_003), (3, 4_096), (2, 33)] {
            let mut random = Random(cols as u64);
            let data = logits(&mut random, rows * cols);
            let (mut x, mut reference) = (dev.upload(&data, rows, cols), Reference.upload(&data, rows, cols));
            let edits = edits(&mut random, rows, cols);
            dev.edit_logits(&mut x, &edits);
            Reference.edit_logits(&mut reference, &edits);
            assert!(bits(&dev.download(&x).unwrap()) == bits(&reference.data), "[{rows}, {cols}]");
        }
        let mut nothing = dev.alloc(0, 1000);
        dev.edit_logits(&mut nothing, &[]);
    }
}
