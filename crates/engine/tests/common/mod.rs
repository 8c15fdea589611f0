//! The golden checkpoints and what Hugging Face says of them.
#![allow(dead_code)] // Each test uses some of it.

use std::path::PathBuf;

use checkpoint::{Checkpoint, WeightSource};
use engine::{Engine, EngineOptions, GenerateRequest, SamplingParams};
use model::ModelConfig;
use serde_json::Value;

/// A golden checkpoint.
pub struct Golden {
    pub name: String,
    pub config: ModelConfig,
    pub prompt: Vec<u32>,
    /// Float32 log-probabilities of Hugging Face.
    pub logprobs: Vec<Option<f64>>,
    pub greedy: Vec<u32>,
    dir: PathBuf,
}

impl Golden {
    /// All but those that are refused.
    pub fn all() -> Vec<Golden> {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden");
        let mut dirs: Vec<PathBuf> = std::fs::read_dir(root).unwrap().map(|e| e.unwrap().path()).collect();
        dirs.retain(|dir| dir.is_dir() && !dir.ends_with("opt_post_norm"));
        dirs.sort();
        assert!(dirs.len() >= 29, "the golden checkpoints are committed");
        dirs.into_iter().map(Golden::open).collect()
    }

    /// One by name.
    pub fn named(name: &str) -> Golden {
        Golden::open(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name))
    }

    fn open(dir: PathBuf) -> Golden {
        let config = checkpoint::config_file(&dir).unwrap();
        let generation = checkpoint::generation_config_file(&dir).unwrap();
        let golden: Value = checkpoint::json_file(&dir.join("golden.json")).unwrap();
        let ids = |key: &str| -> Vec<u32> {
            golden[key].as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as u32).collect()
        };
        Golden {
            name: dir.file_name().unwrap().to_string_lossy().into_owned(),
            config: ModelConfig::parse(&config, generation.as_ref()).unwrap(),
            prompt: ids("prompt_token_ids"),
            logprobs: golden["logprobs"].as_array().unwrap().iter().map(Value::as_f64).collect(),
            greedy: ids("greedy_token_ids"),
            dir,
        }
    }

    /// Where its files are.
    pub fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    pub fn engine(&self, options: &EngineOptions) -> Engine {
        let source = WeightSource::Files(Checkpoint::open(&self.dir).unwrap());
        let engine = Engine::load(self.config.clone(), source, options, &|_, _| {});
        engine.unwrap_or_else(|e| panic!("{}: {e}", self.name))
    }

    pub fn request(&self, max_tokens: usize) -> GenerateRequest {
        GenerateRequest {
            prompt: self.prompt.clone(),
            max_tokens,
            sampling: SamplingParams::default(),
            stop_token_ids: Vec::new(),
            ..GenerateRequest::default()
        }
    }
}

/// Log-probabilities as bits, so that nothing counts as nearly equal.
pub fn bits(logprobs: &[Option<f32>]) -> Vec<Option<u32>> {
    logprobs.iter().map(|l| l.map(f32::to_bits)).collect()
}
