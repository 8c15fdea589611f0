//! Checkpoints whose weights lie in a device's own layout, so that loading is mapping a file.
//!
//! ```text
//!  anysplit-packed.safetensors
//!   header      what each tensor is; __metadata__: version, layout, types, and each weight's shape and format
//!   weights     bytes as the device packed them, each a multiple of 64 long
//!   vectors     norms and biases
//!   checksums   of the header, then of every MiB behind it (XXH3, 64 bits)
//! ```
//! Any rank of any split maps the panels that are its own.

mod checkpoint;
mod writer;

pub use checkpoint::PackedCheckpoint;
pub use writer::{PackedVector, PackedWriter};

use serde::{Deserialize, Serialize};
use tensor::{DType, Scales, WeightFormat, WeightSpec};

/// The file of a packed checkpoint.
pub const PACKED_FILE: &str = "anysplit-packed.safetensors";
/// What is written today. Others are refused.
const VERSION: u32 = 1;
/// The tensor of checksums, the last of the file.
const CHECKSUMS: &str = "anysplit.checksums";
/// Bytes behind the header that have a checksum.
const BLOCK: usize = 1 << 20;
/// What weights' lengths and the beginning of the first are multiples of.
const ALIGN: usize = 64;

/// What a packed checkpoint holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackedInfo {
    version: u32,
    /// The layout, by the name that its device gives it.
    pub layout: String,
    /// What weights were quantised to, if at all: `int8`, `int4`, `fp8`.
    pub quantization: Option<String>,
    /// The type of the weights that are not quantised: `float32`, `float16`, `bfloat16`.
    pub dtype: String,
    /// The weights, in the order of the file.
    pub weights: Vec<PackedEntry>,
}

/// A packed weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PackedEntry {
    /// The tensor's name in the checkpoint that it was made from, or that it would have there.
    pub name: String,
    /// `[n, k]`.
    pub shape: [usize; 2],
    format: String,
    period: Option<usize>,
    /// Groups that share a scale, where those of an output have several, in the format of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    groups_per_scale: Option<usize>,
    /// Bytes, a multiple of 64.
    pub bytes: usize,
}

impl PackedInfo {
    /// Of this version.
    pub fn new(
        layout: &str,
        quantization: Option<&str>,
        dtype: DType,
        weights: Vec<PackedEntry>,
    ) -> PackedInfo {
        PackedInfo {
            version: VERSION,
            layout: layout.into(),
            quantization: quantization.map(Into::into),
            dtype: dtype.name().into(),
            weights,
        }
    }
}

impl PackedEntry {
    /// A weight whose packed bytes, without padding, are `bytes`.
    pub fn new(name: String, shape: [usize; 2], spec: WeightSpec, bytes: usize) -> PackedEntry {
        let WeightSpec { format, period } = spec;
        let bytes = bytes.next_multiple_of(ALIGN);
        let groups_per_scale = format.scales().and_then(Scales::groups);
        PackedEntry { name, shape, format: format.name().into(), period, groups_per_scale, bytes }
    }

    /// How it is packed, if this version knows its format.
    fn spec(&self) -> Option<WeightSpec> {
        let scales = match self.groups_per_scale {
            None => Scales::OUTPUT,
            Some(groups) => Scales::of_groups(groups)?,
        };
        let grouped =
            [WeightFormat::Fp8, WeightFormat::Scaled(scales), WeightFormat::Int8, WeightFormat::Int4];
        let format = grouped.into_iter().find(|format| format.name() == self.format);
        let format = format.or_else(|| DType::parse(&self.format).map(WeightFormat::Float))?;
        Some(WeightSpec { format, period: self.period })
    }
}

/// The checksum of a block.
fn checksum(block: &[u8]) -> u64 {
    xxhash_rust::xxh3::xxh3_64(block)
}
