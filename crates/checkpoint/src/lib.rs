//! Where weights come from: safetensors files on disk or on the hub, or a seed.
//!
//! [`Checkpoint`] is a mapped set of safetensors files, checked when it is opened. [`WeightSource`] is what a
//! loader reads: a checkpoint, seeded weights made from shapes alone, or shapes without values. Every matrix
//! is a [`TensorView`], so a rank reads only the rows and columns that are its own.
//!
//! Files are input from outside: whatever is wrong with them is a [`CheckpointError`] of one line, never a
//! panic, and no length that a file states is believed before it is compared with the file.

mod checkpoint;
mod config;
mod error;
mod files;
mod header;
pub mod hub;
pub mod packed;
mod random;
mod scaled;
mod source;
mod spelling;
mod storage;
mod view;

pub use checkpoint::Checkpoint;
pub use config::{config_file, generation_config_file, json_bytes, json_file, json_value_file};
pub use error::CheckpointError;
pub use packed::PackedCheckpoint;
pub use scaled::ScaledBy;
pub use source::{Fill, WeightSource};
pub use view::TensorView;
