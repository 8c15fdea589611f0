//! How often a step waits for the GPU: a result is read, and everything before it must be done.

mod emulated;

use cuda::CudaDevice;
use emulated::Emulated;
use tensor::{DType, Device, ReductionTree, ReferenceTensor, RouterSpec};

#[test]
fn a_step_with_experts_is_read_once() {
    let Some(inner) = Emulated::new(0) else { return };
    let reads = inner.reads.clone();
    let dev = CudaDevice::new(Box::new(inner));
    let (width, experts, vocab) = (32, 8, 50);
    let number = |row: usize, col: usize| ((row * 31 + col * 7) % 23) as f32 / 23.0 - 0.5;
    let pack = |n| dev.pack(&ReferenceTensor::from_fn(n, width, number), DType::BF16.into());
    let (router, head) = (pack(experts), pack(vocab));
    // A rank's part of the experts: only the GPU knows how many pairs there are.
    let range = 2..5;
    let weights: Vec<_> = range.clone().map(|_| pack(width)).collect();
    let panels = vocab.div_ceil(16);
    // Few tokens, and so many that matrices are no longer small.
    for (tokens, k) in [(5, 1), (5, 40), (2100, 1)] {
        let before = reads.get();
        let mut x = dev.upload(&ReferenceTensor::from_fn(tokens, width, number).data, tokens, width);
        let mut counts = dev.upload(&vec![0.0; experts], 1, experts);
        for _ in 0..3 {
            let routing = dev.route(&dev.linear(&x, &router, None), RouterSpec { top_k: 2, normalize: true });
            dev.count_choices(&routing, &mut counts).expect("it is enqueued");
            let chosen = dev.assign(&routing, range.clone());
            let outputs = dev.grouped_linear(&x, &chosen, &weights);
            let sums = dev.combine(&outputs, &chosen, &ReductionTree::over_ids(3).program(0..3));
            dev.add(&mut x, &sums);
        }
        let logits = dev.linear(&x, &head, None);
        let program = ReductionTree::over_ids(panels).program(0..panels);
        let survey = dev.survey(&logits, &program, k).expect("numbers");
        assert_eq!(reads.get() - before, 1, "{k} candidates");
        assert!(survey.top.iter().all(|top| top.len() == k) && survey.max.len() == tokens);
        let all: f32 = dev.download(&counts).expect("numbers").iter().sum();
        assert_eq!(all, (3 * tokens * 2) as f32, "choices");
    }
}
