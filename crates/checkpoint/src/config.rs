//! config.json and its kind: small JSON objects, read whole.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use crate::CheckpointError;

/// No config is near this.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// The object in `config.json` of a model's directory.
///
/// # Errors
/// If the file is missing, larger than 16 MB, or not a JSON object.
pub fn config_file(dir: &Path) -> Result<Value, CheckpointError> {
    let path = dir.join("config.json");
    if !path.exists()
        && let Some(name) = gguf_in(dir)
    {
        let found =
            format!("there is {name}, but GGUF is not read; config.json and safetensors files are needed");
        return Err(CheckpointError::NoWeights { dir: dir.to_owned(), found });
    }
    json_file(&path)
}

/// A GGUF file of a directory: they come without a config.json.
fn gguf_in(dir: &Path) -> Option<String> {
    let names = std::fs::read_dir(dir).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.filter(|name| name.ends_with(".gguf")).min()
}

/// The object in `generation_config.json` of a model's directory; `None` if there is no such file.
///
/// # Errors
/// If the file is there and is larger than 16 MB or not a JSON object.
pub fn generation_config_file(dir: &Path) -> Result<Option<Value>, CheckpointError> {
    let path = dir.join("generation_config.json");
    if path.exists() { json_file(&path).map(Some) } else { Ok(None) }
}

/// The object in a JSON file of at most 16 MB.
///
/// # Errors
/// If the file cannot be read, is too large, or is not a JSON object; the message names file and position.
pub fn json_file(path: &Path) -> Result<Value, CheckpointError> {
    json_file_of(path, CONFIG_BYTES_MAX)
}

/// Whatever a JSON file of at most 16 MB holds.
///
/// # Errors
/// If the file cannot be read, is too large, or is not JSON; the message names file and position.
pub fn json_value_file(path: &Path) -> Result<Value, CheckpointError> {
    let (file, bytes) = read(path, CONFIG_BYTES_MAX)?;
    parse(&file, &bytes)
}

/// The object in `bytes`; `file` is the name that errors give.
///
/// # Errors
/// If `bytes` are not a JSON object.
pub fn json_bytes(file: &str, bytes: &[u8]) -> Result<Value, CheckpointError> {
    let value = parse(file, bytes)?;
    let kind = match value {
        Value::Object(_) => return Ok(value),
        Value::Array(_) => "an array",
        Value::String(_) => "a string",
        Value::Number(_) => "a number",
        Value::Bool(_) => "a boolean",
        Value::Null => "null",
    };
    let reason = format!("expected a JSON object, found {kind}");
    Err(CheckpointError::BadJson { file: file.to_owned(), reason })
}

pub(crate) fn json_file_of(path: &Path, limit: u64) -> Result<Value, CheckpointError> {
    let (file, bytes) = read(path, limit)?;
    json_bytes(&file, &bytes)
}

fn parse(file: &str, bytes: &[u8]) -> Result<Value, CheckpointError> {
    let bad = |e| CheckpointError::BadJson { file: file.to_owned(), reason: format!("not valid JSON: {e}") };
    serde_json::from_slice(bytes).map_err(bad)
}

/// A file's name for people and its bytes, at most so many.
fn read(path: &Path, limit: u64) -> Result<(String, Vec<u8>), CheckpointError> {
    let read = CheckpointError::read;
    let metadata = std::fs::metadata(path).map_err(read(path))?;
    if !metadata.is_file() {
        let source = std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file");
        return Err(CheckpointError::Read { path: path.to_owned(), source });
    }
    let file = path.display().to_string();
    if metadata.len() > limit {
        return Err(CheckpointError::JsonTooLarge { file, bytes: metadata.len(), limit });
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit).read_to_end(&mut bytes)).map_err(read(path))?;
    Ok((file, bytes))
}
