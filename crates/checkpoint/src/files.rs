//! Which files of a directory are the checkpoint.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;

use crate::CheckpointError;
use crate::config::json_file_of;

/// The file of an unsharded checkpoint.
pub(crate) const SINGLE: &str = "model.safetensors";
/// The index of a sharded one.
pub(crate) const INDEX: &str = "model.safetensors.index.json";

/// An index grows with the number of tensors; a model of 60,000 has one of about 9 MB.
const INDEX_BYTES_MAX: u64 = 256 << 20;

/// A checkpoint's files.
pub(crate) struct Files {
    /// Names of the safetensors files, sorted.
    pub shards: Vec<String>,
    /// What the index says: tensor to shard. Empty without an index.
    pub weight_map: BTreeMap<String, String>,
}

/// Finds `model.safetensors`, an index with its shards, or a single other `*.safetensors`.
pub(crate) fn find(dir: &Path) -> Result<Files, CheckpointError> {
    let found = std::fs::metadata(dir).map_err(|source| match source.kind() {
        std::io::ErrorKind::NotFound => {
            CheckpointError::NoDirectory { path: dir.to_owned(), hint: "it does not exist".to_owned() }
        }
        _ => CheckpointError::Read { path: dir.to_owned(), source },
    })?;
    if !found.is_dir() {
        let hint = "it is a file; give the directory that holds config.json and the *.safetensors".to_owned();
        return Err(CheckpointError::NoDirectory { path: dir.to_owned(), hint });
    }
    if dir.join(SINGLE).exists() {
        return Ok(Files { shards: vec![SINGLE.to_owned()], weight_map: BTreeMap::new() });
    }
    if dir.join(INDEX).exists() {
        return from_index(&dir.join(INDEX));
    }
    let listing = std::fs::read_dir(dir).map_err(CheckpointError::read(dir))?;
    let names = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    match sole(names.collect()) {
        Ok(name) => Ok(Files { shards: vec![name], weight_map: BTreeMap::new() }),
        Err(found) => Err(CheckpointError::NoWeights { dir: dir.to_owned(), found }),
    }
}

/// The only `*.safetensors` among `names`, or what there is instead.
pub(crate) fn sole(mut names: Vec<String>) -> Result<String, String> {
    names.sort();
    let ends = |endings: &[&str]| -> Vec<&String> {
        names.iter().filter(|name| endings.iter().any(|ending| name.ends_with(ending))).collect()
    };
    if let Some(name) = names.iter().find(|name| name.ends_with(".safetensors.index.json")) {
        return Err(format!("there is {name}, but an index must be called {INDEX}"));
    }
    let (safetensors, gguf) = (ends(&[".safetensors"]), ends(&[".gguf"]));
    let pickles = ends(&[".bin", ".pt", ".pth", ".ckpt"]);
    match (safetensors.as_slice(), gguf.first(), pickles.first()) {
        ([name], _, _) => Ok((*name).clone()),
        ([first, ..], _, _) => {
            let count = safetensors.len();
            Err(format!(
                "there are {count} *.safetensors ({first}, …) and no {INDEX} that says what they hold"
            ))
        }
        (_, Some(name), _) => {
            Err(format!("there is {name}, but GGUF is not read; safetensors files are needed"))
        }
        (_, _, Some(name)) => Err(format!(
            "there is {name}, but PyTorch files are not read (they can run code); \
             safetensors files are needed, convert with save_pretrained(…, safe_serialization=True)"
        )),
        _ => Err(format!("{SINGLE}, or {INDEX} with its shards, is needed")),
    }
}

fn from_index(path: &Path) -> Result<Files, CheckpointError> {
    let index = path.display().to_string();
    let weight_map = read_index(path)?;
    let mut shards: Vec<String> = weight_map.values().cloned().collect();
    shards.sort();
    shards.dedup();
    let dir = path.parent().unwrap_or(Path::new("."));
    let missing: Vec<&String> = shards.iter().filter(|shard| !dir.join(shard).exists()).collect();
    if let Some(first) = missing.first() {
        let (shard, missing) = ((*first).clone(), missing.len());
        return Err(CheckpointError::MissingShard { index, shard, missing, shards: shards.len() });
    }
    Ok(Files { shards, weight_map })
}

/// Reads an index: which shard holds which tensor. Every shard's name is a plain file name.
pub(crate) fn read_index(path: &Path) -> Result<BTreeMap<String, String>, CheckpointError> {
    let index = path.display().to_string();
    let bad = |reason: String| CheckpointError::BadJson { file: index.clone(), reason };
    let Value::Object(mut object) = json_file_of(path, INDEX_BYTES_MAX)? else {
        unreachable!("json_file_of returns objects")
    };
    let Some(Value::Object(map)) = object.remove("weight_map") else {
        return Err(bad("no object \"weight_map\"".to_owned()));
    };
    let mut weight_map = BTreeMap::new();
    for (tensor, shard) in map {
        let Value::String(shard) = shard else {
            return Err(bad(format!(
                "weight_map: the shard of {} is not a string",
                crate::spelling::quote(&tensor)
            )));
        };
        if !is_plain(&shard) {
            return Err(CheckpointError::ShardName { index, shard });
        }
        weight_map.insert(tensor, shard);
    }
    if weight_map.is_empty() {
        return Err(bad("weight_map is empty".to_owned()));
    }
    Ok(weight_map)
}

/// Whether `name` stays in its directory whatever the platform: no separators, no drive, no parent.
fn is_plain(name: &str) -> bool {
    let stem = name.strip_suffix(".safetensors");
    stem.is_some_and(|stem| !stem.is_empty())
        && !name.contains(|c: char| "/\\:".contains(c) || c.is_control())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shard_names_stay_in_their_directory() {
        assert!(is_plain("model-00001-of-00002.safetensors"));
        for name in
            ["../x.safetensors", "/x.safetensors", "a/b.safetensors", "a\\b.safetensors", "c:x.safetensors"]
        {
            assert!(!is_plain(name), "{name}");
        }
        for name in ["", "..", ".safetensors", "model.bin", "a\0.safetensors"] {
            assert!(!is_plain(name), "{name:?}");
        }
    }
}
