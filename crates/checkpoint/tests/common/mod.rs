//! Small safetensors files, written by hand so that they can be wrong.
#![allow(dead_code)] // each test binary uses its part

use std::path::Path;

use tempfile::TempDir;

/// A file of `header` and `data`, whatever they say of each other.
pub fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

/// A good file of F32 tensors.
pub fn f32_file(tensors: &[(&str, &[usize], &[f32])]) -> Vec<u8> {
    let mut data = Vec::new();
    let entries = tensors.iter().map(|(name, shape, values)| {
        let start = data.len();
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        format!(r#""{name}":{{"dtype":"F32","shape":{shape:?},"data_offsets":[{start},{}]}}"#, data.len())
    });
    let header = format!("{{{}}}", entries.collect::<Vec<_>>().join(","));
    file_of(&header, &data)
}

/// A directory of these files.
pub fn dir_of(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        write(dir.path(), name, bytes);
    }
    dir
}

pub fn write(dir: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(dir.join(name), bytes).unwrap();
}
