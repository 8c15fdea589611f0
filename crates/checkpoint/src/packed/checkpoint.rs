use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};

use safetensors::SafeTensors;
use tensor::{DType, PackedBytes, PackedWeight, WeightSpec};

use super::{ALIGN, BLOCK, CHECKSUMS, PACKED_FILE, PackedInfo, VERSION, checksum};
use crate::header::{self, Entry};
use crate::storage::Storage;
use crate::{Checkpoint, CheckpointError};

/// A packed checkpoint, mapped. Clones share the map.
#[derive(Clone)]
pub struct PackedCheckpoint {
    inner: Arc<Mapped>,
    info: Arc<PackedInfo>,
    dtype: DType,
    weights: Arc<BTreeMap<String, PackedPlace>>,
    /// Vectors are read like those of any checkpoint.
    vectors: Checkpoint,
}

/// A weight's shape, spec and bytes of the file.
type PackedPlace = ([usize; 2], WeightSpec, Range<usize>);

struct Mapped {
    file: String,
    storage: Storage,
    /// Where the header ends.
    data_start: usize,
    checksums: Vec<u64>,
    /// Blocks that were compared with their checksum, right or wrong.
    verified: Vec<AtomicBool>,
    /// The first byte of a block that was wrong.
    damage: OnceLock<usize>,
}

impl PackedCheckpoint {
    /// Whether a directory holds one.
    pub fn is_in(dir: &Path) -> bool {
        dir.join(PACKED_FILE).is_file()
    }

    /// Opens that of a directory. Reads and checks the header; weights stay on disk until they are used, and are compared
    /// with their checksums then.
    ///
    /// # Errors
    /// The file is damaged, or of another version.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let path = dir.join(PACKED_FILE);
        let storage = Storage::map(&path)?;
        let file = path.display().to_string();
        let bad = |reason: String| CheckpointError::BadPacked { file: file.clone(), reason };
        let entries = header::parse(&file, storage.bytes()).map_err(|error| {
            let told = error.to_string();
            bad(format!("it is damaged ({})", told.strip_prefix(&format!("{file}: ")).unwrap_or(&told)))
        })?;
        let info = info(storage.bytes()).map_err(&bad)?;
        if info.version != VERSION {
            return Err(CheckpointError::PackedVersion { file, found: info.version, read: VERSION });
        }
        let dtype =
            DType::parse(&info.dtype).ok_or_else(|| bad(format!("type {:?} is unknown", info.dtype)))?;
        let Some(Entry { bytes: last, .. }) =
            entries.last().filter(|e| e.name == CHECKSUMS && e.dtype == "U64")
        else {
            return Err(bad("its checksums are missing".into()));
        };
        let data_start = entries.iter().map(|entry| entry.bytes.start).min().unwrap_or(0);
        let checksums: Vec<u64> =
            storage.bytes()[last.clone()].as_chunks::<8>().0.iter().map(|&b| u64::from_le_bytes(b)).collect();
        let blocks = (last.start - data_start).div_ceil(BLOCK);
        if checksums.len() != 1 + blocks || !data_start.is_multiple_of(ALIGN) {
            return Err(bad("its checksums are not as many as its data needs".into()));
        }
        if checksum(&storage.bytes()[..data_start]) != checksums[0] {
            return Err(bad("its header is damaged".into()));
        }
        let places: BTreeMap<&str, &Entry> = entries.iter().map(|entry| (&*entry.name, entry)).collect();
        let mut weights = BTreeMap::new();
        for entry in &info.weights {
            let spec = entry.spec().ok_or_else(|| bad(format!("{} is of an unknown format", entry.name)))?;
            let place = places.get(&*entry.name).filter(|place| place.bytes.len() == entry.bytes);
            let place = place.ok_or_else(|| bad(format!("{} is not where it should be", entry.name)))?;
            // No format takes less than half a byte. Whoever computes with the shape needs no more care than that.
            let [n, k] = entry.shape;
            if n == 0 || k == 0 || n.checked_mul(k).is_none_or(|elements| elements / 2 > entry.bytes) {
                return Err(bad(format!("{} can't be [{n}, {k}] in {} bytes", entry.name, entry.bytes)));
            }
            weights.insert(entry.name.clone(), (entry.shape, spec, place.bytes.clone()));
        }
        let mapped = Mapped {
            file,
            storage,
            data_start,
            checksums,
            verified: (0..blocks).map(|_| AtomicBool::new(false)).collect(),
            damage: OnceLock::new(),
        };
        // Vectors are small: they are compared at once.
        for Entry { bytes, .. } in
            entries.iter().filter(|e| !weights.contains_key(&e.name) && e.name != CHECKSUMS)
        {
            mapped.verify(bytes.clone());
        }
        let checkpoint = PackedCheckpoint {
            inner: Arc::new(mapped),
            info: Arc::new(info),
            dtype,
            weights: Arc::new(weights),
            vectors: Checkpoint::open_file(&path)?,
        };
        checkpoint.check()?;
        Ok(checkpoint)
    }

    /// What it holds.
    pub fn info(&self) -> &PackedInfo {
        &self.info
    }

    /// Name, shape, spec and bytes of each weight.
    pub fn weights(&self) -> impl Iterator<Item = (&str, [usize; 2], WeightSpec, usize)> {
        self.weights.iter().map(|(name, (shape, spec, range))| (&**name, *shape, *spec, range.len()))
    }

    /// The type of the weights that are not quantised.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// A weight of `shape`.
    ///
    /// # Errors
    /// There is none of that name, or it has another shape.
    pub(crate) fn weight(&self, name: &str, shape: [usize; 2]) -> Result<PackedWeight, CheckpointError> {
        let Some((found, spec, range)) = self.weights.get(name) else {
            return Err(self.vectors.missing(name));
        };
        if *found != shape {
            let (expected, found) = (shape.to_vec(), found.to_vec());
            let file = self.inner.file.clone();
            return Err(CheckpointError::Shape { tensor: name.into(), expected, found, file });
        }
        Ok(PackedWeight { memory: self.inner.clone(), range: range.clone(), shape, spec: *spec })
    }

    /// All tensors, weights as bytes.
    pub(crate) fn tensors(&self) -> &Checkpoint {
        &self.vectors
    }

    /// What was found to differ from its checksum so far.
    ///
    /// # Errors
    /// The file is damaged.
    pub(crate) fn check(&self) -> Result<(), CheckpointError> {
        match self.inner.damage.get() {
            None => Ok(()),
            Some(at) => Err(CheckpointError::BadPacked {
                file: self.inner.file.clone(),
                reason: format!("it is damaged around byte {at}"),
            }),
        }
    }
}

/// What the header says of it.
fn info(bytes: &[u8]) -> Result<PackedInfo, String> {
    let damaged = |e: &dyn std::fmt::Display| format!("its description of the weights is damaged ({e})");
    let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(|e| damaged(&e))?;
    let info = metadata.metadata().as_ref().and_then(|m| m.get("info"));
    let info = info.ok_or("it has no description of the weights")?;
    // The version first: the rest may be written in another way.
    #[derive(serde::Deserialize)]
    struct Version {
        version: u32,
    }
    let Version { version } = serde_json::from_str(info).map_err(|e| damaged(&e))?;
    match version {
        VERSION => serde_json::from_str(info).map_err(|e| damaged(&e)),
        version => Ok(PackedInfo {
            version,
            layout: String::new(),
            quantization: None,
            dtype: String::new(),
            weights: Vec::new(),
        }),
    }
}

impl PackedBytes for Mapped {
    fn bytes(&self) -> &[u8] {
        self.storage.bytes()
    }

    fn verify(&self, range: Range<usize>) {
        if range.is_empty() {
            return;
        }
        let data_end = self.storage.bytes().len() - 8 * self.checksums.len();
        let blocks = (range.start - self.data_start) / BLOCK..(range.end - self.data_start).div_ceil(BLOCK);
        for block in blocks {
            if self.verified[block].swap(true, Relaxed) {
                continue;
            }
            let start = self.data_start + block * BLOCK;
            let bytes = &self.storage.bytes()[start..(start + BLOCK).min(data_end)];
            if checksum(bytes) != self.checksums[1 + block] {
                let _ = self.damage.set(start);
            }
        }
    }
}
