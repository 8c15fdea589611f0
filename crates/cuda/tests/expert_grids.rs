//! Layers of experts: only the GPU knows whose rows there are, so grids have room for any of them, but for no more.

mod emulated;

use cuda::{CudaDevice, Reduction};
use emulated::{Emulated, Launches};
use tensor::{DType, Device, ReductionTree, ReferenceTensor, RouterSpec, WeightFormat};

const EXPERTS: usize = 40;
const N: usize = 72;
const K: usize = 160;

fn device(turn: u32, reduction: Reduction) -> Option<(CudaDevice, Launches)> {
    let driver = Emulated::new(turn)?;
    let launches = driver.launches.clone();
    Some((CudaDevice::with(Box::new(driver), reduction), launches))
}

/// Numbers that look random, between −1 and 1.
fn value(row: usize, col: usize) -> f32 {
    let bits = (row as u32 * 7919 + col as u32 * 104_729 + 13).wrapping_mul(2_654_435_761);
    (bits >> 8) as f32 / (1 << 23) as f32 - 1.0
}

fn bits(dev: &CudaDevice, x: &<CudaDevice as Device>::Tensor) -> Vec<u32> {
    dev.download(x).expect("no fault").iter().map(|x| x.to_bits()).collect()
}

/// The most blocks of layers of experts since the last time, over so many outputs.
fn most_blocks(launches: &Launches) -> usize {
    let mut launches = launches.borrow_mut();
    let most = launches.iter().filter(|(name, _)| name.ends_with("_experts")).map(|(_, [_, most])| *most);
    let most = most.max().expect("a layer ran");
    launches.clear();
    most as usize
}

/// 32 outputs of 8 rows for each block: one for each expert that can have rows, and one more for each 8 further rows.
fn bound(pairs: usize) -> usize {
    let filled = pairs.next_multiple_of(8);
    N.div_ceil(32) * (EXPERTS.min(filled) + filled / 8)
}

/// Experts of each token.
type Chosen = Vec<Vec<usize>>;

fn pairs_of(chosen: &Chosen) -> usize {
    chosen.iter().map(Vec::len).sum()
}

/// Three experts of each token, of which some are nobody's; one for all of them; all for one of them, and one for the others; the
/// last for one, and none for the others.
fn choices(tokens: usize) -> [Chosen; 4] {
    let three = |t: usize| (0..3).map(|i| (7 * t + 13 * i) % (EXPERTS - 3) + 1).collect::<Vec<_>>();
    let mut spread: Chosen = (0..tokens).map(three).collect();
    spread.iter_mut().for_each(|chosen| chosen.sort_unstable());
    let one = vec![vec![17]; tokens];
    let mut all = vec![vec![EXPERTS - 1]; tokens];
    all[tokens / 2] = (0..EXPERTS).collect();
    let mut none = vec![Vec::new(); tokens];
    none[0] = vec![EXPERTS - 1];
    [spread, one, all, none]
}

/// Each expert's rows have the bits that they have in a layer of their own, in so many blocks at most.
fn check(format: WeightFormat, turn: u32) {
    let Some((dev, launches)) = device(turn, Reduction::Canonical) else { return };
    let (fast, fast_launches) = device(turn, Reduction::Fast).expect("as the other");
    let tree = ReductionTree::over_granules(K, 5);
    let program = tree.program(0..tree.num_leaves());
    let matrix = |of: usize| ReferenceTensor::from_fn(N, K, |row, col| value(row + 31 * of, col));
    let packed =
        |dev: &CudaDevice| (0..EXPERTS).map(|of| dev.pack(&matrix(of), format.into())).collect::<Vec<_>>();
    let (weights, fast_weights) = (packed(&dev), packed(&fast));
    for tokens in [1, 2, 3, 5, 8, 70] {
        let x: Vec<f32> = (0..tokens * K).map(|at| value(at / K + 99, at % K)).collect();
        let (on_dev, on_fast) = (dev.upload(&x, tokens, K), fast.upload(&x, tokens, K));
        for (case, chosen) in choices(tokens).iter().enumerate() {
            let what = format!("{format}, {tokens} tokens, case {case}");
            let pair = |id: &usize| (*id as u32, 1.0);
            let with_weights: Vec<_> =
                chosen.iter().map(|chosen| chosen.iter().map(pair).collect::<Vec<_>>()).collect();
            let assign =
                |dev: &CudaDevice| dev.assign(&dev.routing_from_host(&with_weights, EXPERTS), 0..EXPERTS);
            let assignment = assign(&dev);
            launches.borrow_mut().clear();
            let together = bits(&dev, &dev.grouped_linear(&on_dev, &assignment, &weights));
            let blocks = most_blocks(&launches);
            assert!(blocks <= bound(pairs_of(chosen)), "{what}: {blocks} blocks");
            let tokens_of = |expert: usize| -> Vec<u32> {
                (0..tokens as u32).filter(|&t| chosen[t as usize].contains(&expert)).collect()
            };
            let tokens_of: Vec<_> = (0..EXPERTS).map(tokens_of).collect();
            let mut alone = Vec::new();
            for (own, weight) in tokens_of.iter().zip(&weights).filter(|(own, _)| !own.is_empty()) {
                alone.extend(bits(&dev, &dev.linear(&dev.gather_rows(&on_dev, own), weight, None)));
            }
            assert!(together == alone, "{what}");

            let of_fast = fast.grouped_linear(&on_fast, &assign(&fast), &fast_weights);
            assert!(bits(&fast, &of_fast) == together, "{what}, fast");
            assert!(most_blocks(&fast_launches) <= bound(pairs_of(chosen)), "{what}, fast");

            // Rows that are pairs already, over a tree.
            let rows: Vec<u32> = tokens_of.concat();
            let own = dev.gather_rows(&on_dev, &rows);
            launches.borrow_mut().clear();
            let sums = bits(&dev, &dev.grouped_linear_tree(&own, &assignment, &weights, &program));
            assert!(most_blocks(&launches) <= bound(pairs_of(chosen)), "{what}, over a tree");
            let mut alone = Vec::new();
            let all = tokens_of.iter().zip(&weights).filter(|(own, _)| !own.is_empty());
            for (own, weight) in all {
                alone.extend(bits(&dev, &dev.linear_tree(&dev.gather_rows(&on_dev, own), weight, &program)));
            }
            assert!(sums == alone, "{what}, over a tree");
        }
    }
}

#[test]
fn grids_are_bounded_and_bits_those_of_single_layers_of_f32() {
    check(DType::F32.into(), 0);
}

#[test]
fn grids_are_bounded_and_bits_those_of_single_layers_of_bf16() {
    check(DType::BF16.into(), 1);
}

#[test]
fn grids_are_bounded_and_bits_those_of_single_layers_of_fp8() {
    check(WeightFormat::Fp8, 7);
}

#[test]
fn grids_are_bounded_and_bits_those_of_single_layers_of_int8() {
    check(WeightFormat::Int8, 1);
}

#[test]
fn grids_are_bounded_and_bits_those_of_single_layers_of_int4() {
    check(WeightFormat::Int4, 0);
}

/// Of experts whom nobody chose, by a routing of which the host knows nothing: blocks find nothing to do.
#[test]
fn experts_whom_nobody_chose_are_no_work() {
    let Some((dev, launches)) = device(0, Reduction::Canonical) else { return };
    let (tokens, range) = (6, 8..20);
    let logits: Vec<f32> = (0..tokens * EXPERTS)
        .map(|at| if range.contains(&(at % EXPERTS)) { -9.0 } else { value(1, at) })
        .collect();
    let routing = dev.route(&dev.upload(&logits, tokens, EXPERTS), RouterSpec { top_k: 4, normalize: true });
    let x = dev.upload(&vec![0.5; tokens * K], tokens, K);
    for format in
        [DType::F32.into(), WeightFormat::Float(DType::BF16), WeightFormat::Int8, WeightFormat::Int4]
    {
        let matrix = ReferenceTensor::from_fn(N, K, value);
        let weights: Vec<_> = range.clone().map(|_| dev.pack(&matrix, format.into())).collect();
        let assignment = dev.assign(&routing, range.clone());
        launches.borrow_mut().clear();
        let y = dev.grouped_linear(&x, &assignment, &weights);
        assert!(most_blocks(&launches) <= bound(tokens * 4), "{format}");
        let program = ReductionTree::over_ids(EXPERTS).program(range.clone());
        let sums = dev.download(&dev.combine(&y, &assignment, &program)).expect("no fault");
        assert!(sums.iter().all(|&sum| sum == 0.0), "{format}");
    }
}
