use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use tensor::DType;

use crate::files::{self, INDEX};
use crate::header::{self, Entry};
use crate::scaled::{self, Elements, Scaled};
use crate::spelling::nearest;
use crate::storage::Storage;
use crate::view::widen;
use crate::{CheckpointError, ScaledBy, TensorView};

/// How many names an error suggests.
const SUGGESTIONS: usize = 3;

/// A model's weights in safetensors files, mapped into memory and checked. Clones share the maps.
#[derive(Clone)]
pub struct Checkpoint {
    inner: Arc<Inner>,
}

struct Inner {
    /// The directory, or the name of embedded bytes: for messages.
    place: String,
    files: Vec<(String, Storage)>,
    tensors: BTreeMap<String, Tensor>,
}

/// A tensor's place.
struct Tensor {
    file: usize,
    /// As the file spells it.
    dtype: String,
    shape: Vec<usize>,
    /// Of the file.
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or `model.safetensors.index.json` with its shards, or the only other
    /// `*.safetensors` of a directory. Reads the headers; the weights stay on disk until they are asked for.
    ///
    /// # Errors
    /// If there are none, or if anything about the files is not as the format says.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let files = files::find(dir)?;
        let mut checkpoint =
            Inner { place: dir.display().to_string(), files: Vec::new(), tensors: BTreeMap::new() };
        for shard in files.shards {
            let storage = Storage::map(&dir.join(&shard))?;
            checkpoint.add(shard, storage)?;
        }
        for (tensor, shard) in files.weight_map {
            let found = checkpoint.tensors.get(&tensor).map(|found| &checkpoint.files[found.file].0);
            if found != Some(&shard) {
                let index = dir.join(INDEX).display().to_string();
                return Err(CheckpointError::NotInShard { index, tensor, shard });
            }
        }
        Ok(Checkpoint { inner: Arc::new(checkpoint) })
    }

    /// One file.
    pub(crate) fn open_file(path: &Path) -> Result<Self, CheckpointError> {
        let place = path.display().to_string();
        let mut checkpoint = Inner { place: place.clone(), files: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add(place, Storage::map(path)?)?;
        Ok(Checkpoint { inner: Arc::new(checkpoint) })
    }

    /// That there is no such tensor.
    pub(crate) fn missing(&self, name: &str) -> CheckpointError {
        self.inner.missing(name)
    }

    /// A whole safetensors file that is part of the program; `name` is what errors call it.
    ///
    /// # Errors
    /// If anything about the bytes is not as the format says.
    pub fn from_bytes(name: &str, bytes: &'static [u8]) -> Result<Self, CheckpointError> {
        let mut checkpoint = Inner { place: name.to_owned(), files: Vec::new(), tensors: BTreeMap::new() };
        checkpoint.add(name.to_owned(), Storage::Static(bytes))?;
        Ok(Checkpoint { inner: Arc::new(checkpoint) })
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.inner.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.inner.tensors.contains_key(name)
    }

    /// The shape of a tensor, if there is one of that name.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.inner.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// The type in which a tensor is stored, if there is one of that name and the type is read.
    pub fn dtype_of(&self, name: &str) -> Option<DType> {
        self.inner.tensors.get(name).and_then(|tensor| DType::parse(&tensor.dtype))
    }

    /// The matrix `name`, whose shape must be `shape`.
    ///
    /// # Shapes
    /// `shape` is `[rows, cols]`.
    ///
    /// # Errors
    /// If there is no such tensor, or it has another shape, or is of a type that is not read.
    pub fn matrix(&self, name: &str, shape: [usize; 2]) -> Result<TensorView<'_>, CheckpointError> {
        let (bytes, storage, dtype) = self.inner.bytes(name, &shape)?;
        Ok(TensorView::stored(bytes, storage, shape, dtype))
    }

    /// Matrix `index` of the packed tensor `name` of one matrix per expert.
    ///
    /// # Shapes
    /// `shape` is `[experts, rows, cols]`; the view is `[rows, cols]`.
    ///
    /// # Errors
    /// As [`Checkpoint::matrix`].
    pub fn expert_matrix(
        &self,
        name: &str,
        index: usize,
        shape: [usize; 3],
    ) -> Result<TensorView<'_>, CheckpointError> {
        let [experts, rows, cols] = shape;
        assert!(index < experts, "expert {index} of {experts}");
        let (bytes, storage, dtype) = self.inner.bytes(name, &shape)?;
        let expert = bytes.len() / experts;
        Ok(TensorView::stored(&bytes[index * expert..][..expert], storage, [rows, cols], dtype))
    }

    /// The matrix `name`; with its scales, if it is stored in e4m3.
    ///
    /// # Shapes
    /// `shape` is `[rows, cols]`.
    ///
    /// # Errors
    /// As [`Checkpoint::matrix`]. Also if its scales are missing, have another shape than `by` says, or can't be scales.
    pub(crate) fn scaled_matrix(
        &self,
        name: &str,
        shape: [usize; 2],
        by: ScaledBy,
    ) -> Result<TensorView<'_>, CheckpointError> {
        let inner = &*self.inner;
        if inner.tensors.get(name).is_none_or(|tensor| tensor.dtype != E4M3) {
            return self.matrix(name, shape);
        }
        let (found, file, storage) = inner.find(name, &shape)?;
        let names = by.endings().map(|ending| format!("{name}{ending}"));
        let Some(of_scales) = names.iter().find(|name| inner.tensors.contains_key(*name)) else {
            return Err(CheckpointError::NoScales { tensor: name.into(), file: file.into(), names });
        };
        let shapes = by.shapes(shape);
        let its = &inner.tensors[of_scales].shape;
        let (bytes, _, dtype) =
            inner.bytes(of_scales, shapes.iter().find(|s| *s == its).unwrap_or(&shapes[0]))?;
        let mut scales = vec![0.0; bytes.len() / dtype.bytes()];
        widen(bytes, dtype, &mut scales);
        if let Some((at, value)) = scaled::first_bad(&scales) {
            let file = inner.files[inner.tensors[of_scales].file].0.clone();
            return Err(CheckpointError::BadScale { tensor: of_scales.clone(), at, value, file });
        }
        let elements = Elements::Stored(&storage.bytes()[found.bytes.clone()], storage);
        Ok(TensorView::scaled(Scaled::new(elements, scales, by, shape), shape))
    }

    /// The vector `name` of `len` elements, widened to f32.
    ///
    /// # Errors
    /// As [`Checkpoint::matrix`].
    pub fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, CheckpointError> {
        let (bytes, _, dtype) = self.inner.bytes(name, &[len])?;
        let mut out = vec![0.0; len];
        widen(bytes, dtype, &mut out);
        Ok(out)
    }

    /// A number that differs between checkpoints: of every tensor's name, type, shape and bytes (FNV-1a). Of a large
    /// tensor only samples are read, all over it: what has been trained differs nearly everywhere.
    pub fn fingerprint(&self) -> u64 {
        const WHOLE_BYTES: usize = 16 << 10;
        const SAMPLE_BYTES: usize = 64;
        // Each costs a read of the disk, if the page is not in memory.
        let samples = (16_384 / self.inner.tensors.len().max(1)).clamp(2, 64);
        self.inner.files.iter().for_each(|(_, file)| file.expect_samples(true));
        let mut hash = 0xcbf2_9ce4_8422_2325u64;
        let mut add = |bytes: &[u8]| {
            hash = bytes.iter().fold(hash, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
        };
        for (name, tensor) in &self.inner.tensors {
            add(name.as_bytes());
            add(tensor.dtype.as_bytes());
            tensor.shape.iter().for_each(|n| add(&n.to_le_bytes()));
            let bytes = &self.inner.files[tensor.file].1.bytes()[tensor.bytes.clone()];
            if bytes.len() <= WHOLE_BYTES {
                add(bytes);
                continue;
            }
            // The last one ends where the tensor does.
            for sample in 0..samples {
                let at = (bytes.len() - SAMPLE_BYTES) * sample / (samples - 1);
                add(&bytes[at..at + SAMPLE_BYTES]);
            }
        }
        self.inner.files.iter().for_each(|(_, file)| file.expect_samples(false));
        hash
    }

    /// Bytes of all tensors as they are stored.
    pub fn stored_bytes(&self) -> usize {
        self.inner.tensors.values().map(|tensor| tensor.bytes.len()).sum()
    }

    /// The type in which most bytes are stored, of those that are read; `F32` if there are none.
    pub fn dtype(&self) -> DType {
        // Scales of quantised weights say nothing of the others.
        let is_scale = |name: &str| name.ends_with("_scale") || name.ends_with("_scale_inv");
        let bytes_of = |dtype: DType| -> usize {
            let others = self.inner.tensors.iter().filter(|(name, _)| !is_scale(name));
            let of_type = others.filter(|(_, tensor)| stored_dtype(&tensor.dtype) == Some(dtype));
            of_type.map(|(_, tensor)| tensor.bytes.len()).sum()
        };
        let most = [DType::F16, DType::BF16, DType::F32].into_iter().max_by_key(|&dtype| bytes_of(dtype));
        most.unwrap_or(DType::F32)
    }
}

impl std::fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Inner { place, files, tensors } = &*self.inner;
        write!(f, "Checkpoint({place}: {} files, {} tensors)", files.len(), tensors.len())
    }
}

impl Inner {
    /// Adds the tensors of one file.
    fn add(&mut self, name: String, storage: Storage) -> Result<(), CheckpointError> {
        let file = self.files.len();
        let entries = header::parse(&name, storage.bytes())?;
        for Entry { name: tensor, dtype, shape, bytes } in entries {
            if let Some(other) = self.tensors.get(&tensor) {
                let first = self.files[other.file].0.clone();
                return Err(CheckpointError::Duplicate { tensor, first, second: name });
            }
            self.tensors.insert(tensor, Tensor { file, dtype, shape, bytes });
        }
        self.files.push((name, storage));
        Ok(())
    }

    fn missing(&self, name: &str) -> CheckpointError {
        let nearest = nearest(name, self.tensors.keys().map(String::as_str), SUGGESTIONS);
        CheckpointError::MissingTensor { tensor: name.to_owned(), place: self.place.clone(), nearest }
    }

    /// A tensor, its shape checked, its file's name, and what holds that.
    fn find(&self, name: &str, shape: &[usize]) -> Result<(&Tensor, &str, &Storage), CheckpointError> {
        let Some(found) = self.tensors.get(name) else { return Err(self.missing(name)) };
        let (tensor, (file, storage)) = (name.to_owned(), &self.files[found.file]);
        if found.shape != shape {
            let (expected, found) = (shape.to_vec(), found.shape.clone());
            return Err(CheckpointError::Shape { tensor, expected, found, file: file.clone() });
        }
        Ok((found, file, storage))
    }

    /// A tensor's bytes, what holds them, and type, its shape checked.
    fn bytes(&self, name: &str, shape: &[usize]) -> Result<(&[u8], &Storage, DType), CheckpointError> {
        let (found, file, storage) = self.find(name, shape)?;
        let Some(dtype) = stored_dtype(&found.dtype) else {
            let (tensor, dtype, file) = (name.to_owned(), found.dtype.clone(), file.to_owned());
            return Err(CheckpointError::UnsupportedDtype { tensor, dtype, file });
        };
        Ok((&storage.bytes()[found.bytes.clone()], storage, dtype))
    }
}

/// What the format calls e4m3.
pub(crate) const E4M3: &str = "F8_E4M3";

/// The type of that name in a safetensors header, if it is read.
fn stored_dtype(name: &str) -> Option<DType> {
    match name {
        "F32" => Some(DType::F32),
        "F16" => Some(DType::F16),
        "BF16" => Some(DType::BF16),
        _ => None,
    }
}
