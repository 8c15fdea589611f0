//! The header of a safetensors file: 8 bytes of length (little endian), that much JSON, then the data.
//!
//! `{"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [0, 12]}, …, "__metadata__": {…}}`
//! The offsets count from the end of the header. The tensors must cover the data without gap or overlap.

use std::fmt;
use std::ops::Range;

use safetensors::SafeTensors;
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use crate::CheckpointError;
use crate::spelling::quote;

/// The same limit as the safetensors crate's.
const HEADER_BYTES_MAX: u64 = 100_000_000;

/// What a header says of one tensor, checked.
pub(crate) struct Entry {
    pub name: String,
    /// As the file spells it.
    pub dtype: String,
    pub shape: Vec<usize>,
    /// Bytes of the file, not of its data.
    pub bytes: Range<usize>,
}

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

/// Parses and checks the header of a whole file; `file` names it in errors. Entries come in order of their offsets.
pub(crate) fn parse(file: &str, bytes: &[u8]) -> Result<Vec<Entry>, CheckpointError> {
    let data_start = header_end(file, bytes)?;
    let bad = |reason: String| CheckpointError::BadHeader { file: file.to_owned(), reason };
    let json = std::str::from_utf8(&bytes[8..data_start]).map_err(|e| bad(e.to_string()))?;
    let Entries(mut raw) = serde_json::from_str(json).map_err(|e| bad(e.to_string()))?;

    raw.sort_by_key(|(_, entry)| entry.data_offsets);
    let data_len = check(file, &raw)?;
    let expected = (data_start as u64).saturating_add(data_len);
    let found = bytes.len() as u64;
    if expected != found {
        return Err(CheckpointError::FileLength { file: file.to_owned(), expected, found });
    }
    // The format's own implementation has the last word.
    SafeTensors::read_metadata(bytes).map_err(|e| bad(e.to_string()))?;

    let entries = raw.into_iter().map(|(name, entry)| {
        let (start, end) = entry.data_offsets;
        // No cast can lose bits: the offsets lie inside the file, and the crate read the shape as usize.
        let bytes = data_start + start as usize..data_start + end as usize;
        let shape = entry.shape.iter().map(|&n| n as usize).collect();
        Entry { name, dtype: entry.dtype, shape, bytes }
    });
    Ok(entries.collect())
}

/// Where the header ends.
fn header_end(file: &str, bytes: &[u8]) -> Result<usize, CheckpointError> {
    if bytes.starts_with(b"version https://git-lfs") {
        let reason =
            "this is a Git LFS pointer, not the weights; run `git lfs pull` where it was cloned".to_owned();
        return Err(CheckpointError::BadHeader { file: file.to_owned(), reason });
    }
    let found = bytes.len() as u64;
    let Some((length, _)) = bytes.split_first_chunk::<8>() else {
        return Err(CheckpointError::HeaderCut { file: file.to_owned(), needed: 8, found });
    };
    let length = u64::from_le_bytes(*length);
    if length > HEADER_BYTES_MAX {
        let (file, limit) = (file.to_owned(), HEADER_BYTES_MAX);
        return Err(CheckpointError::HeaderTooLong { file, bytes: length, limit });
    }
    if 8 + length > found {
        return Err(CheckpointError::HeaderCut { file: file.to_owned(), needed: 8 + length, found });
    }
    Ok(8 + length as usize)
}

/// Checks tensors sorted by offset, and returns the length of the data.
fn check(file: &str, raw: &[(String, RawEntry)]) -> Result<u64, CheckpointError> {
    let mut seen = std::collections::HashSet::with_capacity(raw.len());
    let mut covered = 0u64;
    let mut previous = "";
    for (name, entry) in raw {
        let bad =
            |reason| CheckpointError::BadOffsets { tensor: name.clone(), reason, file: file.to_owned() };
        if !seen.insert(name.as_str()) {
            let (first, second) = (file.to_owned(), file.to_owned());
            return Err(CheckpointError::Duplicate { tensor: name.clone(), first, second });
        }
        let Some(bits) = bits_of(&entry.dtype) else {
            let (dtype, file) = (entry.dtype.clone(), file.to_owned());
            return Err(CheckpointError::UnsupportedDtype { tensor: name.clone(), dtype, file });
        };
        let (start, end) = entry.data_offsets;
        if end < start {
            return Err(bad(format!("data_offsets [{start}, {end}] run backwards")));
        }
        let needed = entry.shape.iter().try_fold(bits, |product, &n| product.checked_mul(n));
        let Some(needed) = needed.map(|bits| bits.div_ceil(8)) else {
            return Err(bad(format!("shape {:?} is larger than any file", entry.shape)));
        };
        if end - start != needed {
            let (dtype, shape, held) = (&entry.dtype, &entry.shape, end - start);
            return Err(bad(format!(
                "{dtype} {shape:?} takes {needed} bytes, data_offsets [{start}, {end}] hold {held}"
            )));
        }
        if start < covered {
            return Err(bad(format!("data_offsets [{start}, {end}] overlap tensor {}", quote(previous))));
        }
        if start > covered {
            return Err(bad(format!(
                "data_offsets [{start}, {end}] leave bytes {covered} to {start} unused"
            )));
        }
        covered = end;
        previous = name;
    }
    Ok(covered)
}

/// Bits of one element, of every type that the format knows.
fn bits_of(dtype: &str) -> Option<u64> {
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};
    let dtype: StrDeserializer<'_, Error> = dtype.into_deserializer();
    safetensors::Dtype::deserialize(dtype).ok().map(|dtype| dtype.bitsize() as u64)
}

/// The tensors of a header, a name that comes twice kept twice.
struct Entries(Vec<(String, RawEntry)>);

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Entries;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Vec::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                    } else {
                        entries.push((name, map.next_value()?));
                    }
                }
                Ok(Entries(entries))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}
