//! Routing and the experts' weighted sum: the bits of the reference.

mod emulated;
mod random;

use std::ops::Range;

use cuda::CudaDevice;
use emulated::Emulated;
use random::Random;
use tensor::{DType, Device, ReductionTree, Reference, ReferenceTensor, RouterSpec};

/// A device for each order of threads; none without a C++ compiler.
fn devices() -> impl Iterator<Item = CudaDevice> {
    [0, 1, 7].into_iter().filter_map(|turn| Some(CudaDevice::new(Box::new(Emulated::new(turn)?))))
}

/// Within ±range; every third is a whole number that others are too, zeros of both signs among them.
fn numbers(random: &mut Random, count: usize, range: f32) -> Vec<f32> {
    let number = |_| match random.below(3) {
        0 => random.within(range).round(),
        _ => random.within(range),
    };
    (0..count).map(number).collect()
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() }).collect()
}

type Choices = Vec<Vec<(u32, f32)>>;

/// (id, bits of the weight)
fn bits_of(choices: &Choices) -> Vec<Vec<(u32, u32)>> {
    choices
        .iter()
        .map(|chosen| chosen.iter().map(|&(id, weight)| (id, bits(&[weight])[0])).collect())
        .collect()
}

/// Sorts by expert and sums up, in ranges of which each is what a rank has.
fn check_sums<D: Device>(
    dev: &D,
    routing: &D::Routing,
    choices: &Choices,
    experts: usize,
    ranges: &[Range<usize>],
) {
    let reference = Reference.routing_from_host(choices, experts);
    let no_inputs = dev.upload(&[], choices.len(), 0);
    let nothing = ReferenceTensor::from_fn(1, 0, |_, _| 0.0);
    let no_outputs: Vec<_> = (0..experts).map(|_| dev.pack(&nothing, DType::F32.into())).collect();
    for range in ranges {
        let of_range = |chosen: &Vec<(u32, f32)>| {
            chosen.iter().filter(|(id, _)| range.contains(&(*id as usize))).count()
        };
        let pairs: usize = choices.iter().map(of_range).sum();
        let assignment = dev.assign(routing, range.clone());
        let expected = Reference.assign(&reference, range.clone());
        let tree = ReductionTree::over_ids(experts);
        for n in if choices.len() < 3 { [0, 33, 600] } else { [0, 1, 33] } {
            let y = numbers(&mut Random(n as u64), pairs * n, 3.0);
            let program = tree.program(range.clone());
            // A row for each pair, and what nobody may read where there are more.
            let rows = dev.shape(&dev.grouped_linear(&no_inputs, &assignment, &no_outputs[range.clone()]))[0];
            let mut on_device = y.clone();
            on_device.resize(rows * n, f32::NAN);
            let sums = dev.combine(&dev.upload(&on_device, rows, n), &assignment, &program);
            let expected = Reference.combine(&Reference.upload(&y, pairs, n), &expected, &program);
            assert_eq!(dev.shape(&sums), [expected.rows, expected.cols]);
            assert!(
                bits(&dev.download(&sums).unwrap()) == bits(&expected.data),
                "{range:?} of {experts} experts, {} tokens, {n} columns",
                choices.len()
            );
        }
    }
}

#[test]
fn routings_and_sums_of_experts_are_those_of_the_reference() {
    for dev in devices() {
        for (experts, top_k) in [(1, 1), (4, 2), (4, 4), (33, 3), (128, 8), (70, 33)] {
            for tokens in [0, 1, 2, 33] {
                let logits = numbers(&mut Random((experts + tokens) as u64), tokens * experts, 6.0);
                let spec = RouterSpec { top_k, normalize: tokens % 2 == 0 };
                let routing = dev.route(&dev.upload(&logits, tokens, experts), spec);
                let expected = Reference.route(&Reference.upload(&logits, tokens, experts), spec);
                let expected = Reference.routing_to_host(&expected).unwrap();
                let found = dev.routing_to_host(&routing).unwrap();
                assert_eq!(bits_of(&found), bits_of(&expected), "{experts} experts, {tokens} tokens");
                let (a, b) = (experts / 3, experts - experts / 4);
                check_sums(&dev, &routing, &expected, experts, &[0..experts, a..b, 0..a, b..experts]);
            }
        }
    }
}

#[test]
fn logits_that_are_no_numbers_make_weights_none_and_choose_the_lowest_ids() {
    for dev in devices() {
        let mut logits = numbers(&mut Random(3), 40, 2.0);
        (logits[7], logits[15], logits[22]) = (f32::NAN, f32::INFINITY, f32::NEG_INFINITY);
        logits[30..].fill(f32::NEG_INFINITY);
        let spec = RouterSpec { top_k: 3, normalize: true };
        let found = dev.routing_to_host(&dev.route(&dev.upload(&logits, 4, 10), spec)).unwrap();
        let expected = Reference.route(&Reference.upload(&logits, 4, 10), spec);
        let expected = Reference.routing_to_host(&expected).unwrap();
        assert_eq!(bits_of(&found), bits_of(&expected));
        assert!(expected[3].iter().all(|(_, weight)| weight.is_nan()), "{expected:?}");
    }
}

/// Of some tokens none, of others all, of one expert everything.
fn choices(tokens: usize, experts: usize) -> Choices {
    let mut random = Random((tokens * experts) as u64);
    let of_token = |token: usize| -> Vec<(u32, f32)> {
        let weights = numbers(&mut random, experts, 1.0);
        let is_chosen = |id: usize, weight: f32| match token % 4 {
            0 => false,
            1 => true,
            _ => weight > 0.4 || id == experts / 2,
        };
        let all = weights.into_iter().enumerate().filter(|&(id, weight)| is_chosen(id, weight));
        all.map(|(id, weight)| (id as u32, weight)).collect()
    };
    (0..tokens).map(of_token).collect()
}

#[test]
fn choices_of_other_ranks_sum_as_the_reference_does() {
    for dev in devices() {
        for (tokens, experts) in [(0, 5), (1, 5), (2, 1), (33, 5), (7, 64), (40, 9)] {
            let choices = choices(tokens, experts);
            let routing = dev.routing_from_host(&choices, experts);
            assert_eq!(bits_of(&dev.routing_to_host(&routing).unwrap()), bits_of(&choices));
            let (a, b) = (experts / 3, experts - experts / 4);
            check_sums(&dev, &routing, &choices, experts, &[0..experts, a..b, b..b, experts / 2..experts]);
        }
    }
}

#[test]
fn more_tokens_than_a_block_has_threads_are_sorted_in_order() {
    for dev in devices() {
        let (tokens, experts) = (1_500, 6);
        let logits = numbers(&mut Random(1), tokens * experts, 4.0);
        let routing =
            dev.route(&dev.upload(&logits, tokens, experts), RouterSpec { top_k: 2, normalize: true });
        let choices = dev.routing_to_host(&routing).unwrap();
        // Rows of one column each, which say what pair they are of.
        let mut y = Vec::new();
        for expert in 0..experts as u32 {
            for (token, chosen) in choices.iter().enumerate() {
                y.extend(chosen.iter().any(|c| c.0 == expert).then_some(token as f32 + expert as f32 / 8.0));
            }
        }
        let assignment = dev.assign(&routing, 0..experts);
        let program = ReductionTree::over_ids(experts).program(0..experts);
        let sums = dev.combine(&dev.upload(&y, y.len(), 1), &assignment, &program);
        for (token, (found, chosen)) in dev.download(&sums).unwrap().iter().zip(&choices).enumerate() {
            let part = |&(id, weight): &(u32, f32)| weight * (token as f32 + id as f32 / 8.0);
            assert_eq!(*found, part(&chosen[0]) + part(&chosen[1]), "token {token}");
        }
    }
}
