//! Steps of a model as graphs.

mod process;

use cuda::CudaDevice;
use process::{counted, driver, graph_launches, with_libraries};
use tensor::{
    Activation, AttentionSpec, DType, Device, HeadSpan, KV_BLOCK, KvShare, KvSpec, NormKind, NormSpec,
    Program, ReductionTree, ReferenceTensor, RopeSpec, RouterSpec, SequenceSpan, StepMeta,
};

/// A model of one layer, and what its sequences have in the cache.
struct Model {
    dev: CudaDevice,
    spec: AttentionSpec,
    kv: <CudaDevice as Device>::Kv,
    weights: Vec<<CudaDevice as Device>::Weight>,
    ones: <CudaDevice as Device>::Tensor,
}

impl Model {
    const WIDTH: usize = 64;
    const VOCAB: usize = 200;
    const MOST_BLOCKS: usize = 3;

    fn new(enforce_eager: bool) -> Self {
        let dev = CudaDevice::new(Box::new(driver(enforce_eager)));
        let (num_heads, num_kv_heads, head_dim) = (4, 2, 16);
        let spec = AttentionSpec {
            num_heads,
            num_kv_heads,
            group: 2,
            first_in_group: 0,
            head_dim,
            scale: 0.3,
            softcap: None,
            window: None,
        };
        let blocks = 40 * Self::MOST_BLOCKS;
        let dtype = DType::BF16.into();
        let kv = dev.alloc_kv(KvSpec { blocks, share: KvShare::WHOLE, num_kv_heads, head_dim, dtype });
        let number = |row: usize, col: usize| ((row * 37 + col * 101) % 29) as f32 / 29.0 - 0.5;
        let width = Self::WIDTH;
        let shapes = [(Self::VOCAB, width), (spec.qkv_cols(), width), (width, width), (Self::VOCAB, width)];
        let pack = |(n, k)| dev.pack(&ReferenceTensor::from_fn(n, k, number), DType::BF16.into());
        let (weights, ones) = (shapes.map(pack).into(), dev.upload(&[1.0; Self::WIDTH], 1, width));
        Model { dev, spec, kv, weights, ones }
    }

    /// The next token's bits of each sequence: (which, position), whose token follows from both.
    fn step(&mut self, sequences: &[(usize, usize)]) -> Vec<(u32, u32, u32)> {
        let Model { dev, spec, kv, weights, ones } = self;
        let rows = sequences.len();
        let span = |(row, &(which, start)): (usize, &(usize, usize))| SequenceSpan {
            rows: row..row + 1,
            start,
            block_table: (0..=start / KV_BLOCK).map(|i| (which * Self::MOST_BLOCKS + i) as u32).collect(),
        };
        let meta = StepMeta {
            tokens: sequences
                .iter()
                .map(|(which, at)| ((which * 31 + at * 7) % Self::VOCAB) as u32)
                .collect(),
            sequences: sequences.iter().enumerate().map(span).collect(),
            logit_rows: (0..rows as u32).collect(),
        };
        let step = dev.begin(&meta);
        let norm = NormSpec { kind: NormKind::Rms { weight_offset: 0.0 }, eps: 1e-5 };
        let mut x = dev.embed(&weights[0], &meta.tokens);
        let table = dev.rope_table(&step, &RopeSpec { inv_freq: (0..8).map(|i| 0.3f32.powi(i)).collect() });
        let mut qkv = dev.linear(&dev.norm(&x, ones, None, norm), &weights[1], None);
        let heads =
            HeadSpan { first_col: 0, heads: spec.num_heads + spec.num_kv_heads, head_dim: spec.head_dim };
        dev.rope(&mut qkv, heads, &table);
        dev.store_kv(kv, &qkv, &step, spec);
        let mixed = dev.attention(&qkv, kv, &step, spec);
        let out = dev.linear_tree(&mixed, &weights[2], &ReductionTree::over_heads(4, 16).program(0..4));
        dev.add(&mut x, &out);
        let hidden = dev.gather_rows(&x, &meta.logit_rows);
        let logits = dev.linear(&hidden, &weights[3], None);
        let panels = Self::VOCAB.div_ceil(16);
        let survey =
            dev.survey(&logits, &ReductionTree::over_ids(panels).program(0..panels), 3).expect("numbers");
        let bits = |row: usize| (survey.max[row].to_bits(), survey.sums[row].to_bits(), survey.top[row][0].1);
        (0..rows).map(bits).collect()
    }
}

#[test]
fn steps_of_a_few_sequences_more_or_fewer_are_one_graph() {
    with_libraries("steps_of_a_few_sequences_more_or_fewer_are_one_graph", &[], || {
        let batches = [5, 7, 6, 8, 3, 7, 2];
        let [mut graphs, mut eager, mut alone] = [false, true, true].map(Model::new);
        let before = graph_launches();
        let mut at = [0; 8];
        for (i, rows) in batches.into_iter().enumerate() {
            // Other sequences each time, whose positions differ.
            let which: Vec<usize> = (0..rows).map(|row| (row * 3 + i) % 8).collect();
            let sequences: Vec<(usize, usize)> = which.iter().map(|&which| (which, at[which])).collect();
            let found = graphs.step(&sequences);
            assert_eq!(found, eager.step(&sequences), "step {i}: a graph and not");
            let one_by_one: Vec<_> = sequences.iter().flat_map(|one| alone.step(&[*one])).collect();
            assert_eq!(found, one_by_one, "step {i}: together and alone");
            which.iter().for_each(|&which| at[which] += 1);
        }
        // The first uploads what stays, the next two run piece by piece, and behind them a graph is made that serves all others.
        assert_eq!(graph_launches() - before, batches.len() as u32 - 3);
    });
}

/// What a rank has of a layer of experts, and of one whose sum other ranks finish.
struct Share {
    dev: CudaDevice,
    router: <CudaDevice as Device>::Weight,
    gate_up: Vec<<CudaDevice as Device>::Weight>,
    down: Vec<<CudaDevice as Device>::Weight>,
    /// Of several nodes each.
    over_inputs: Program,
    over_experts: Program,
}

impl Share {
    const WIDTH: usize = 64;
    const EXPERTS: usize = 6;

    fn new(enforce_eager: bool) -> Self {
        let dev = CudaDevice::new(Box::new(driver(enforce_eager)));
        let pack = |seed: usize, n, k| {
            let number = |row: usize, col: usize| ((row * 37 + col * 101 + seed) % 29) as f32 / 29.0 - 0.5;
            dev.pack(&ReferenceTensor::from_fn(n, k, number), DType::BF16.into())
        };
        let own = 1..Self::EXPERTS;
        let over_inputs = ReductionTree::over_heads(4, 16).program(1..4);
        let k = over_inputs.num_inputs();
        let over_experts = ReductionTree::over_ids(Self::EXPERTS).program(own.clone());
        assert!(over_inputs.num_nodes() > 1 && over_experts.num_nodes() > 1);
        Share {
            router: pack(3, Self::EXPERTS, Self::WIDTH),
            gate_up: own.clone().map(|e| pack(e, 2 * k, Self::WIDTH)).collect(),
            down: own.map(|e| pack(e * 5, Self::WIDTH, k)).collect(),
            over_inputs,
            over_experts,
            dev,
        }
    }

    /// Of each token, whose numbers follow from its own: bits of the nodes over experts, and of those over inputs.
    fn step(&self, tokens: &[usize]) -> Vec<Vec<u32>> {
        let Share { dev, router, gate_up, down, over_inputs, over_experts } = self;
        let numbers =
            |&token: &usize| (0..Self::WIDTH).map(move |i| ((token * 53 + i * 17) % 31) as f32 - 15.0);
        let x: Vec<f32> = tokens.iter().flat_map(numbers).collect();
        let x = dev.upload(&x, tokens.len(), Self::WIDTH);
        let routing = dev.route(&dev.linear(&x, router, None), RouterSpec { top_k: 2, normalize: true });
        let chosen = dev.assign(&routing, 1..Self::EXPERTS);
        let hidden = dev.grouped_linear_gated(&x, &chosen, gate_up, Activation::Silu);
        let undivided = ReductionTree::over_heads(1, over_inputs.num_inputs()).program(0..1);
        let outputs = dev.grouped_linear_tree(&hidden, &chosen, down, &undivided);
        let combined = dev.combine(&outputs, &chosen, over_experts);
        let inner = dev.gather_cols(&x, 0..over_inputs.num_inputs());
        let nodes = dev.linear_tree(&inner, &down[0], over_inputs);
        let mut of_tokens = vec![Vec::new(); tokens.len()];
        for sums in [combined, nodes] {
            let all = dev.download(&sums).expect("numbers");
            for (row, numbers) in all.chunks_exact(Self::WIDTH).enumerate() {
                of_tokens[row % tokens.len()].extend(numbers.iter().map(|x| x.to_bits()));
            }
        }
        of_tokens
    }
}

#[test]
fn shares_of_sums_and_of_experts_are_one_graph_for_a_few_tokens_more_or_fewer() {
    let test = "shares_of_sums_and_of_experts_are_one_graph_for_a_few_tokens_more_or_fewer";
    with_libraries(test, &[], || {
        let [graphs, eager, alone] = [false, true, true].map(Share::new);
        let (made, launched) = (counted("libcuda.so.1", "fake_graphs_made"), graph_launches());
        let batches = [9, 12, 16, 10, 15, 11];
        for (i, rows) in batches.into_iter().enumerate() {
            let tokens: Vec<usize> = (0..rows).map(|row| row * (i + 3) + i).collect();
            let found = graphs.step(&tokens);
            assert_eq!(found, eager.step(&tokens), "{rows} tokens: a graph and not");
            let one_by_one: Vec<_> = tokens.iter().flat_map(|one| alone.step(&[*one])).collect();
            assert_eq!(found, one_by_one, "{rows} tokens: together and alone");
        }
        assert_eq!(counted("libcuda.so.1", "fake_graphs_made") - made, 1);
        // The first uploads what stays, the next two run piece by piece.
        assert_eq!(graph_launches() - launched, batches.len() as u32 - 3);
    });
}
