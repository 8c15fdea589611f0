//! The golden checkpoints' configurations.
#![allow(dead_code)] // Each test uses some of it.

use std::path::PathBuf;

use model::{ModelConfig, ModelError};

/// The folder of golden checkpoints.
pub fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden")
}

/// Names of all golden checkpoints.
pub fn all() -> Vec<String> {
    let entries = std::fs::read_dir(golden()).expect("the golden checkpoints are committed");
    let dirs = entries.map(|e| e.unwrap()).filter(|e| e.path().is_dir());
    let mut names: Vec<String> = dirs.map(|e| e.file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A golden checkpoint's configuration.
pub fn config(name: &str) -> Result<ModelConfig, ModelError> {
    let dir = golden().join(name);
    let config = checkpoint::config_file(&dir).unwrap();
    ModelConfig::parse(&config, checkpoint::generation_config_file(&dir).unwrap().as_ref())
}
