//! A large checkpoint of numbers that mean nothing, to load: as files have them, not made up while they are loaded.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

/// Numbers that differ; weights take theirs from one place in it or another.
const NUMBERS: usize = 8 << 20;

/// A checkpoint on disk, until it is dropped.
pub struct Written {
    folder: PathBuf,
    /// Of its weights.
    pub bytes: u64,
}

impl Drop for Written {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.folder).ok();
    }
}

/// Each weight of a Llama, `[rows, columns]`, vectors with one row.
fn weights(config: &Value) -> Option<Vec<(String, [u64; 2])>> {
    let size = |key: &str| config[key].as_u64();
    let (hidden, inner, vocab) = (size("hidden_size")?, size("intermediate_size")?, size("vocab_size")?);
    let (q, kv) = (size("num_attention_heads")?, size("num_key_value_heads")?);
    let head = size("head_dim")?;
    let mut all = vec![
        ("model.embed_tokens.weight".into(), [vocab, hidden]),
        ("model.norm.weight".into(), [1, hidden]),
        ("lm_head.weight".into(), [vocab, hidden]),
    ];
    for layer in 0..size("num_hidden_layers")? {
        let of_layer = [
            ("input_layernorm", [1, hidden]),
            ("post_attention_layernorm", [1, hidden]),
            ("self_attn.q_proj", [q * head, hidden]),
            ("self_attn.k_proj", [kv * head, hidden]),
            ("self_attn.v_proj", [kv * head, hidden]),
            ("self_attn.o_proj", [hidden, q * head]),
            ("mlp.gate_proj", [inner, hidden]),
            ("mlp.up_proj", [inner, hidden]),
            ("mlp.down_proj", [hidden, inner]),
        ];
        all.extend(of_layer.map(|(name, shape)| (format!("model.layers.{layer}.{name}.weight"), shape)));
    }
    Some(all)
}

/// Writes a checkpoint of this shape, in bfloat16, in one file. `is_over` is asked again and again whether to give up.
///
/// # Errors
/// There is no room, or no time. Nothing is left behind then.
pub fn write(folder: &Path, config: &Value, is_over: &dyn Fn() -> bool) -> Result<Written, String> {
    let told = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let weights = weights(config).ok_or("the shape is no Llama's")?;
    let (mut header, mut end) = (Map::new(), 0);
    for (name, [rows, cols]) in &weights {
        let from = end;
        end += 2 * rows * cols;
        let shape = if *rows == 1 { json!([cols]) } else { json!([rows, cols]) };
        header.insert(name.clone(), json!({ "dtype": "BF16", "shape": shape, "data_offsets": [from, end] }));
    }
    fs::create_dir_all(folder).map_err(|error| told(folder, &error))?;
    let written = Written { folder: folder.to_owned(), bytes: end };
    let about = folder.join("config.json");
    fs::write(&about, config.to_string()).map_err(|error| told(&about, &error))?;
    let path = folder.join("model.safetensors");
    let fill = || -> std::io::Result<()> {
        let mut file = File::create(&path)?;
        let header = Value::Object(header).to_string();
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let numbers = numbers();
        let mut left = end;
        while left > 0 {
            if is_over() {
                return Err(std::io::Error::other(format!("no time was left with {left} bytes to write")));
            }
            let bytes = left.min(numbers.len() as u64);
            file.write_all(&numbers[..bytes as usize])?;
            left -= bytes;
        }
        Ok(())
    };
    fill().map_err(|error| told(&path, &error))?;
    Ok(written)
}

/// bfloat16 of 1/128 to 1/64 and their negatives.
fn numbers() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bits = (state >> 40) as u16;
        (bits & 0x8000) | 0x3c00 | (bits & 0x7f)
    };
    (0..NUMBERS).flat_map(|_| next().to_le_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape() -> Value {
        json!({ "hidden_size": 8, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 1, "head_dim": 4, "vocab_size": 32 })
    }

    #[test]
    fn a_header_tells_of_every_byte_and_nothing_is_left_behind() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("loaded");
        let written = write(&folder, &shape(), &|| false).expect("a checkpoint");
        let file = fs::read(folder.join("model.safetensors")).expect("a file");
        let length = u64::from_le_bytes(file[..8].try_into().expect("eight bytes")) as usize;
        let header: Value = serde_json::from_slice(&file[8..8 + length]).expect("JSON");
        assert_eq!(file.len() as u64, 8 + length as u64 + written.bytes);
        let tensors = header.as_object().expect("an object");
        assert_eq!(tensors.len(), 3 + 2 * 9);
        let k = &tensors["model.layers.1.self_attn.k_proj.weight"];
        assert_eq!(k["shape"], json!([4, 8]));
        let offsets = |t: &Value| (t["data_offsets"][0].as_u64(), t["data_offsets"][1].as_u64());
        let (from, to) = offsets(k);
        assert_eq!(to.zip(from).map(|(to, from)| to - from), Some(64));
        let most = tensors.values().filter_map(|tensor| offsets(tensor).1).max();
        assert_eq!(most, Some(written.bytes));
        drop(written);
        assert!(!folder.exists());
    }

    #[test]
    fn what_cannot_be_written_is_no_checkpoint() {
        let parent = tempfile::tempdir().expect("a folder");
        let folder = parent.path().join("loaded");
        let error = write(&folder, &shape(), &|| true).err().expect("no time");
        assert!(error.contains("model.safetensors: no time was left with"), "{error}");
        assert!(!folder.exists());
        assert!(write(&folder, &json!({}), &|| false).is_err());
    }
}
