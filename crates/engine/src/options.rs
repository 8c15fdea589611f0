use std::sync::Arc;
use std::time::Duration;

use collective::WireDType;
use cuda::Reduction;
use model::parallel::ExpertOptions;
use model::{KeptAs, Quantization, TpPlan};
use tensor::{DType, KvDType};

use crate::Grammars;

/// What ranks are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceKind {
    /// Parts of the processor.
    #[default]
    Cpu,
    /// NVIDIA GPUs, or parts of one.
    Cuda,
    /// The same, or the processor if there is none, or if they can't have the model: [`crate::Engine::not_on_gpus`] then says why.
    Auto,
}

/// How a model is run.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// One weight per rank of the tensor-parallel group: ranks get work in proportion.
    pub rank_weights: Vec<f64>,
    /// What is split otherwise than automatically.
    pub tp_plan: TpPlan,
    /// Stages of consecutive layers.
    pub pipeline_parallel_size: usize,
    /// Layers of each stage; `None`: balanced.
    pub pp_layers: Option<Vec<usize>>,
    /// Replicas of the model.
    pub data_parallel_size: usize,
    /// Whether the residual stream is split by token between the parallel regions.
    pub sequence_parallel: bool,
    /// How a mixture's experts are split.
    pub experts: ExpertOptions,
    /// Tensor-parallel ranks that share a KV cache by position; 1: each has all of its own.
    pub decode_context_parallel_size: usize,
    /// What the sums of all-reduces travel as. All but float32 give up the promise of equal bits.
    pub all_reduce_dtype: WireDType,
    /// What ranks are.
    pub device: DeviceKind,
    /// In which order sums are made. The processor has one order only, the canonical.
    pub reduction: Reduction,
    /// Whether GPUs get each kernel by itself, without graphs.
    pub enforce_eager: bool,
    /// Whether GPUs tell how long they were at each part of a step, which takes them some microseconds per part. Processors always
    /// do; what is recorded always has it.
    pub times_parts: bool,
    /// The share of memory that may be used, above 0 and at most 1. On the processor: for keys and values, of what is left, by
    /// default half. On GPUs: for all that ranks have there, of all memory, by default 0.9.
    pub memory_share: Option<f64>,
    /// Threads of each rank; `None`: the cores, shared out.
    pub threads_per_rank: Option<usize>,
    /// What weights are kept in; `None`: as stored.
    pub dtype: Option<DType>,
    /// What linear layers are quantised to, if at all.
    pub quantization: Option<Quantization>,
    /// What keys and values are kept in; `None`: what most weights are kept in.
    pub kv_cache_dtype: Option<KvDType>,
    /// Longest sequence; `None`: the model's.
    pub max_model_len: Option<usize>,
    /// Sequences that run at a time.
    pub max_num_seqs: usize,
    /// Tokens of a step. Longer prompts go in chunks.
    pub max_num_batched_tokens: usize,
    /// A rank that keeps the others waiting longer is an error.
    pub comm_timeout: Duration,
    /// What requests' grammars need; `None`: they can have none.
    pub grammars: Option<Arc<Grammars>>,
    /// Kernels of this instruction set; `None`: the best that the machine has.
    pub isa: Option<cpu::Isa>,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions {
            rank_weights: vec![1.0],
            tp_plan: TpPlan::auto(),
            pipeline_parallel_size: 1,
            pp_layers: None,
            data_parallel_size: 1,
            sequence_parallel: false,
            experts: ExpertOptions::default(),
            decode_context_parallel_size: 1,
            all_reduce_dtype: WireDType::Float32,
            device: DeviceKind::Cpu,
            reduction: Reduction::Canonical,
            enforce_eager: false,
            times_parts: false,
            memory_share: None,
            threads_per_rank: None,
            dtype: None,
            quantization: None,
            kv_cache_dtype: None,
            max_model_len: None,
            max_num_seqs: 256,
            max_num_batched_tokens: 2048,
            comm_timeout: Duration::from_secs(30),
            grammars: None,
            isa: None,
        }
    }
}

impl EngineOptions {
    /// What weights are kept in.
    pub fn kept_as(&self) -> KeptAs {
        KeptAs { dtype: self.dtype, quantization: self.quantization }
    }
}
