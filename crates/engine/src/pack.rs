//! Writing a checkpoint in the layout of this machine's device.

use std::path::Path;

use checkpoint::WeightSource;
use checkpoint::packed::{PackedEntry, PackedInfo, PackedVector, PackedWriter};
use cpu::{CpuConfig, CpuDevice};
use model::{Layout, Loader, ModelConfig, StoredVector, StoredWeight, TpPlan};

use crate::prepared::check_threads;
use crate::{EngineError, EngineOptions, cpus, memory};

/// What a packed checkpoint became.
#[derive(Clone, Copy, Debug)]
pub struct Packed {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bytes of the tensors as they were stored.
    pub stored_bytes: u64,
}

/// Packs all weights of a model, quantised if the options say so, into a new file. One weight at a time is in memory.
/// `progress` gets the bytes that are written and those that will be.
///
/// # Errors
/// Weights that can't be read, or are NaN or infinite, a file that is there already, or a disk that is full. What was written is left
/// there, for the caller to throw away.
pub fn pack(
    config: ModelConfig,
    source: &WeightSource,
    options: &EngineOptions,
    path: &Path,
    progress: &dyn Fn(u64, u64),
) -> Result<Packed, EngineError> {
    let write = |source| EngineError::Write { path: path.to_owned(), source };
    let threads = options.threads_per_rank.unwrap_or_else(|| cpus::default_threads(1));
    check_threads(threads, 1)?;
    let dev = CpuDevice::new(CpuConfig { threads, isa: options.isa, ..CpuConfig::default() });
    let layout = Layout::new(config, &[1.0], &TpPlan::auto())?;
    let loader = Loader::new(&dev, source, &layout, 0, options.kept_as(), &|_| Ok(())).only_finite();
    let weights = loader.stored_weights()?;
    types_agree(&weights)?;
    let entry = |w: &StoredWeight| {
        PackedEntry::new(w.name.clone(), w.shape, w.spec, CpuDevice::packed_len(w.shape, w.spec))
    };
    let dtype = options.dtype.unwrap_or_else(|| source.dtype());
    let quantization = options.quantization.map(model::Quantization::name);
    let info = PackedInfo::new(cpu::PACKED_LAYOUT, quantization, dtype, weights.iter().map(entry).collect());
    let vectors: Vec<PackedVector> = loader
        .stored_vectors()?
        .into_iter()
        .map(|StoredVector { name, dtype, values }| PackedVector { name, dtype, values })
        .collect();
    let total: u64 = info.weights.iter().map(|weight| weight.bytes as u64).sum();
    let folder = path.parent().unwrap_or(path);
    if let Some(free) = memory::free_disk_bytes(folder).filter(|&free| free < total) {
        let full = format!("{total} bytes are needed, {free} are free");
        return Err(write(std::io::Error::new(std::io::ErrorKind::StorageFull, full)));
    }
    let mut writer = PackedWriter::create(path, &info, vectors).map_err(write)?;
    let mut done = 0;
    for (weight, entry) in weights.iter().zip(&info.weights) {
        writer.weight(loader.pack_stored(weight)?.as_bytes()).map_err(write)?;
        done += entry.bytes as u64;
        progress(done, total);
    }
    writer.finish().map_err(write)?;
    let stored_bytes = match source {
        // With scales, norms and biases.
        WeightSource::Files(checkpoint) => checkpoint.stored_bytes() as u64,
        _ => weights.iter().map(|weight| weight.stored_bytes).sum(),
    };
    Ok(Packed { bytes: std::fs::metadata(path).map_err(write)?.len(), stored_bytes })
}

/// Layers of several types that share their input would be widened to one when they are loaded, which packed ones can't be.
fn types_agree(weights: &[StoredWeight]) -> Result<(), EngineError> {
    // Those that lie together follow each other, three at most.
    let neighbours = |i: usize| weights[i + 1..].iter().take(2).map(move |other| (&weights[i], other));
    let differ = |(one, other): &(&StoredWeight, &StoredWeight)| {
        one.lies_with(other) && one.spec.format != other.spec.format
    };
    match (0..weights.len()).flat_map(neighbours).find(differ) {
        None => Ok(()),
        Some((one, other)) => {
            let is_grouped = one.spec.format.is_grouped() || other.spec.format.is_grouped();
            let by =
                if is_grouped { "--quantization int8, int4 or fp8" } else { "--dtype or --quantization" };
            Err(EngineError::Request(format!(
                "layers that share their input are stored in several types: {} is {}, {} is {}; say by {by} in which one to pack them",
                one.name, one.spec.format, other.name, other.spec.format
            )))
        }
    }
}
