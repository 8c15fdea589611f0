//! What a device promises about the order of its sums.

use std::fmt;

/// In which order sums over many numbers are made, where that is a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Reduction {
    /// The order that NUMERICS.md says: a function of a layer's shape. A completion has the same bits whatever the batch, the
    /// chunks of its prompt and the number of ranks are.
    #[default]
    Canonical,
    /// The fastest that there is for a number of rows: CUDA cores for few, NVIDIA's libraries for many. The bits depend on how many
    /// rows there are, on the versions of libraries, and on the number of ranks; each sum is as near to the exact one as any in f32.
    /// Only many rows that meet a checkpoint's e4m3 with one scale per output are rounded to e4m3 first (NUMERICS.md, rule 11).
    Fast,
}

impl fmt::Display for Reduction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reduction::Canonical => "canonical",
            Reduction::Fast => "fast",
        })
    }
}
