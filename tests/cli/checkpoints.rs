//! The golden checkpoints, and copies of them that can be damaged.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;
use tempfile::TempDir;

/// A golden checkpoint's directory.
pub fn golden(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden").join(name);
    assert!(dir.is_dir(), "{} is committed", dir.display());
    dir
}

/// What Hugging Face says of it.
pub fn golden_json(name: &str) -> Value {
    read_json(&golden(name).join("golden.json"))
}

/// The golden prompt, as `--prompt-ids` takes it.
pub fn golden_prompt(name: &str) -> String {
    comma_separated(&golden_json(name)["prompt_token_ids"])
}

/// An array of token ids as `--prompt-ids` takes them.
pub fn comma_separated(ids: &Value) -> String {
    ids.as_array().expect("ids are an array").iter().map(Value::to_string).collect::<Vec<_>>().join(",")
}

fn read_json(file: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(file).expect("the file is there")).expect("the file is JSON")
}

/// The demo model with room for so many tokens ([`ENDLESS_TOKENS`]) that making them takes longer than any test waits. So it is
/// still at work when a test does something to it, however long that was held up.
pub fn endless() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("endless-model");
        std::fs::create_dir_all(&dir).expect("cargo's directory for tests");
        for name in ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json"]
        {
            std::fs::copy(demo.join(name), dir.join(name)).expect("copied");
        }
        let mut config = read_json(&demo.join("config.json"));
        config["max_position_embeddings"] = (ENDLESS_TOKENS + 1000).into();
        std::fs::write(dir.join("config.json"), config.to_string()).expect("written");
        dir
    })
}

/// What to ask [`endless`] for: minutes of work, each token of which takes longer than the one before.
pub const ENDLESS_TOKENS: usize = 100_000;

/// A directory that goes away.
pub struct Copy {
    dir: TempDir,
}

impl Copy {
    pub fn empty() -> Self {
        Copy { dir: tempfile::tempdir().expect("there is room for temporary files") }
    }

    /// A golden checkpoint's files.
    pub fn of(name: &str) -> Self {
        let copy = Copy::empty();
        for entry in std::fs::read_dir(golden(name)).unwrap() {
            let from = entry.unwrap().path();
            std::fs::copy(&from, copy.file(from.file_name().unwrap().to_str().unwrap())).unwrap();
        }
        copy
    }

    /// Only a configuration.
    pub fn of_config(config: &Value) -> Self {
        let copy = Copy::empty();
        copy.write("config.json", config.to_string());
        copy
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.file(name)).unwrap()
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        std::fs::write(self.file(name), bytes).unwrap();
    }

    pub fn remove(&self, name: &str) {
        std::fs::remove_file(self.file(name)).unwrap();
    }

    /// Changes a JSON file.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = read_json(&self.file(name));
        change(&mut value);
        self.write(name, value.to_string());
    }

    /// Changes the header of a safetensors file, and its length with it.
    pub fn edit_header(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let (mut header, data) = split_safetensors(&self.read(name));
        change(&mut header);
        self.write(name, safetensors_of(&header.to_string(), &data));
    }
}

impl AsRef<Path> for Copy {
    fn as_ref(&self) -> &Path {
        self.path()
    }
}

/// Header and data.
pub fn split_safetensors(file: &[u8]) -> (Value, Vec<u8>) {
    let (length, rest) = file.split_at(8);
    let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
    (serde_json::from_slice(&rest[..length]).expect("the header is JSON"), rest[length..].to_vec())
}

/// A file of this header and this data, whatever they say of each other.
pub fn safetensors_of(header: &str, data: &[u8]) -> Vec<u8> {
    let length = (header.len() as u64).to_le_bytes();
    [&length, header.as_bytes(), data].concat()
}
