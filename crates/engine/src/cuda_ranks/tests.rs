//! The engine on GPUs that are emulated: what it computes in f32 has the processor's bits, on any split.

use std::path::Path;

use checkpoint::{Checkpoint, PackedCheckpoint, WeightSource, config_file};
use collective::WireDType;
use cuda::CudaDevice;
use model::ModelConfig;
use tensor::{DType, DeviceError};

use super::MakeCuda;
use crate::launch::MakeDevice;
use crate::places::Place;
use crate::prepared::{Local, Machine};
use crate::{Engine, EngineError, EngineOptions, GenerateRequest, SamplingParams};

#[path = "../../../cuda/tests/emulated/mod.rs"]
mod emulated;
use emulated::Emulated;

/// Makes emulated GPUs, for so many ranks.
struct MakeEmulated(usize);

impl MakeDevice for MakeEmulated {
    type Device = CudaDevice;
    fn make(&self, rank: usize) -> Result<CudaDevice, DeviceError> {
        let driver = Emulated::new(rank as u32).expect("there is a compiler: another device was made before");
        Ok(CudaDevice::new(Box::new(driver)))
    }
}

impl Machine for MakeEmulated {
    fn new(local: Local, _: &EngineOptions) -> Result<Self, EngineError> {
        Ok(MakeEmulated(local.ranks))
    }

    fn places(&self) -> Vec<Place> {
        vec![Place::host(self.0)]
    }

    fn check_packed(packed: &PackedCheckpoint) -> Result<(), EngineError> {
        MakeCuda::check_packed(packed)
    }
}

fn checkpoint(name: &str) -> (ModelConfig, WeightSource) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    let config = ModelConfig::parse(&config_file(&dir).unwrap(), None).unwrap();
    (config, WeightSource::Files(Checkpoint::open(&dir).unwrap()))
}

fn on_cpu(name: &str, options: &EngineOptions) -> Engine {
    let (config, source) = checkpoint(name);
    Engine::load(config, source, options, &|_, _| {}).unwrap()
}

fn on_cuda(name: &str, options: &EngineOptions) -> Result<Engine, EngineError> {
    let (config, source) = checkpoint(name);
    Engine::load_on::<MakeEmulated>(config, source, options, &|_, _| {})
}

fn can_emulate() -> bool {
    Emulated::new(0).is_some()
}

fn options(ranks: usize) -> EngineOptions {
    EngineOptions {
        rank_weights: vec![1.0; ranks],
        threads_per_rank: Some(1),
        dtype: Some(DType::F32),
        kv_cache_dtype: Some(DType::F32.into()),
        ..EngineOptions::default()
    }
}

/// Log-probabilities of a text, as bits.
fn scores(engine: &mut Engine) -> Vec<Option<u32>> {
    let vocab = engine.config().vocab_size as u32;
    let text: Vec<u32> = (0..23u32).map(|i| (i * i * 7 + 3 * i + 1) % vocab).collect();
    engine.score(&text).unwrap().iter().map(|score| score.map(f32::to_bits)).collect()
}

#[test]
fn every_architecture_has_the_processors_bits_in_f32() {
    if !can_emulate() {
        return;
    }
    for name in [
        "llama",
        "gemma2",
        "gemma3",
        "mistral",
        "opt",
        "phi3",
        "qwen2_sliding",
        "qwen3",
        "mixtral",
        "qwen3_moe",
    ] {
        let expected = scores(&mut on_cpu(name, &options(1)));
        assert_eq!(scores(&mut on_cuda(name, &options(1)).unwrap()), expected, "{name}");
    }
}

#[test]
fn ranks_on_gpus_have_the_bits_of_one() {
    if !can_emulate() {
        return;
    }
    for dtype in [DType::F32, DType::BF16] {
        let options = |ranks| EngineOptions {
            dtype: Some(dtype),
            kv_cache_dtype: Some(dtype.into()),
            ..options(ranks)
        };
        let alone = scores(&mut on_cuda("llama", &options(1)).unwrap());
        for ranks in [2, 3] {
            assert_eq!(
                scores(&mut on_cuda("llama", &options(ranks)).unwrap()),
                alone,
                "{dtype}, {ranks} ranks"
            );
        }
    }
}

/// Sums, their residual stream and norms in one operation, gathered and scattered rows, stages, and sums in fewer bits.
#[test]
fn ranks_on_gpus_have_the_processors_bits_however_they_are_split() {
    if !can_emulate() {
        return;
    }
    let with = |name, change: &dyn Fn(&mut EngineOptions)| {
        let mut options = options(2);
        change(&mut options);
        let expected = scores(&mut on_cpu(name, &options));
        assert_eq!(scores(&mut on_cuda(name, &options).unwrap()), expected, "{name}");
    };
    // Norms behind blocks, biases, experts.
    for name in ["gemma2", "opt", "mixtral"] {
        with(name, &|_| {});
    }
    with("llama", &|options| options.sequence_parallel = true);
    with("llama", &|options| options.pipeline_parallel_size = 2);
    for wire in [WireDType::Bfloat16, WireDType::Fp8, WireDType::Int8] {
        with("llama", &|options| options.all_reduce_dtype = wire);
    }
}

#[test]
fn a_completion_is_the_same_alone_and_in_a_batch_and_in_chunks() {
    if !can_emulate() {
        return;
    }
    let request = |seed: u64, length: u32| GenerateRequest {
        prompt: (0..length).map(|i| (i * 5 + seed as u32) % 60).collect(),
        max_tokens: 9,
        sampling: SamplingParams { temperature: 0.8, seed, ..SamplingParams::default() },
        ..GenerateRequest::default()
    };
    let requests: Vec<GenerateRequest> = (0..5).map(|i| request(i, 3 + 7 * i as u32)).collect();
    let half = |max_num_batched_tokens| EngineOptions {
        dtype: Some(DType::BF16),
        kv_cache_dtype: Some(DType::BF16.into()),
        max_num_batched_tokens,
        ..options(1)
    };
    let tokens = |options: &EngineOptions, requests: &[GenerateRequest]| -> Vec<Vec<u32>> {
        let mut engine = on_cuda("llama", options).unwrap();
        engine
            .generate(requests, &mut |_, _| true)
            .unwrap()
            .into_iter()
            .map(|completion| completion.token_ids)
            .collect()
    };
    let alone: Vec<Vec<u32>> =
        requests.iter().flat_map(|request| tokens(&half(2048), std::slice::from_ref(request))).collect();
    assert_eq!(tokens(&half(2048), &requests), alone, "in a batch");
    assert_eq!(tokens(&half(8), &requests), alone, "in chunks");
}
