//! What is said of a launch that failed.

use crate::driver::{Fault, Grid, Kernel};

/// An error at a kernel's launch.
pub(super) fn told(kernel: Kernel, grid: Grid, error: &str) -> Fault {
    let Grid { blocks: [x, y, z], threads, shared } = grid;
    Fault(format!(
        "kernel {kernel} ({x} × {y} × {z} blocks of {threads} threads, {shared} bytes shared): {error}"
    ))
}
