//! Products with weights that are kept in groups of 32 inputs.
//!
//! Whole numbers are multiplied by rows that were quantised likewise, once per operation (`rows.rs`). The sum of a
//! group is exact; it becomes a float, is scaled, and added to those of the groups before (`format.rs`). Panels, tiles
//! and threads are as in `kernels/linear.rs`.

pub(crate) mod format;
mod linear;
mod rows;
mod tile;

pub(crate) use linear::{Run, TALLEST, linear};
pub(crate) use rows::{prepare, tallest_tile};
