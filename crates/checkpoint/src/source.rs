use tensor::DType;

use crate::random::RandomMatrix;
use crate::scaled::{Elements, Scaled};
use crate::{Checkpoint, CheckpointError, PackedCheckpoint, ScaledBy, TensorView};

/// Where a loader gets weights from.
pub enum WeightSource {
    /// Files on disk.
    Files(Checkpoint),
    /// A file in a device's own layout.
    Packed(PackedCheckpoint),
    /// Seeded values made from names and shapes alone, the same whichever part of a tensor is read.
    Random {
        /// Other seeds, other values.
        seed: u64,
        /// Values are exact in this type.
        dtype: DType,
    },
    /// Shapes without values, to plan with. Reading a matrix is a programmer's error.
    Meta {
        /// The type that the weights would be stored in.
        dtype: DType,
    },
}

/// What a seeded tensor should look like. Files ignore it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fill {
    /// Uniform around 0 with this standard deviation: a linear layer's weight, a bias, an embedding.
    Uniform {
        /// Standard deviation.
        std: f32,
    },
    /// Within 5 % of a value: a norm's weight, near 1.
    Near(f32),
}

impl Fill {
    /// What linear layers are initialised with.
    pub const LINEAR: Fill = Fill::Uniform { std: 0.02 };
    /// What a norm's weight looks like.
    pub const NORM: Fill = Fill::Near(1.0);

    /// The centre of the values, and how far they are from it at most.
    fn interval(self) -> [f32; 2] {
        match self {
            Fill::Uniform { std } => [0.0, std * 3f32.sqrt()],
            Fill::Near(centre) => [centre, 0.05 * centre.abs()],
        }
    }

    fn random(self, seed: u64, tensor: &str, part: usize) -> RandomMatrix {
        let [centre, spread] = self.interval();
        RandomMatrix::new(seed, tensor, part, centre, spread)
    }
}

impl WeightSource {
    /// The type in which most of the weights are stored.
    pub fn dtype(&self) -> DType {
        match self {
            WeightSource::Files(checkpoint) => checkpoint.dtype(),
            WeightSource::Packed(packed) => packed.dtype(),
            WeightSource::Random { dtype, .. } | WeightSource::Meta { dtype } => *dtype,
        }
    }

    /// What differs between weights: a hash of files, a seed of random values.
    pub fn fingerprint(&self) -> String {
        match self {
            WeightSource::Files(checkpoint) => format!("{:016x}", checkpoint.fingerprint()),
            WeightSource::Packed(packed) => format!("packed {:016x}", packed.tensors().fingerprint()),
            WeightSource::Random { seed, dtype } => format!("random {dtype}, seed {seed}"),
            WeightSource::Meta { dtype } => format!("shapes only, {dtype}"),
        }
    }

    /// Whether what was read so far was what had been written.
    ///
    /// # Errors
    /// A packed file is damaged.
    pub fn check(&self) -> Result<(), CheckpointError> {
        match self {
            WeightSource::Packed(packed) => packed.check(),
            _ => Ok(()),
        }
    }

    /// The type in which one tensor is stored; that of most, if there is no such tensor.
    pub fn stored_dtype(&self, name: &str) -> DType {
        match self {
            WeightSource::Files(checkpoint) => {
                checkpoint.dtype_of(name).unwrap_or_else(|| checkpoint.dtype())
            }
            WeightSource::Packed(packed) => packed.tensors().dtype_of(name).unwrap_or(packed.dtype()),
            _ => self.dtype(),
        }
    }

    /// Whether there is a tensor of that name; `None` where every name could be had, and the caller decides.
    pub fn contains(&self, name: &str) -> Option<bool> {
        match self {
            WeightSource::Files(checkpoint) => Some(checkpoint.contains(name)),
            WeightSource::Packed(packed) => Some(packed.tensors().contains(name)),
            WeightSource::Random { .. } | WeightSource::Meta { .. } => None,
        }
    }

    /// The matrix `name`, whose shape must be `shape`.
    ///
    /// # Shapes
    /// `shape` is `[rows, cols]`.
    ///
    /// # Errors
    /// If a checkpoint has no such tensor, or has it with another shape or of a type that is not read.
    pub fn matrix(
        &self,
        name: &str,
        shape: [usize; 2],
        fill: Fill,
    ) -> Result<TensorView<'_>, CheckpointError> {
        Ok(match self {
            WeightSource::Files(checkpoint) => checkpoint.matrix(name, shape)?,
            WeightSource::Packed(packed) => TensorView::packed(packed.weight(name, shape)?, packed.dtype()),
            WeightSource::Random { seed, dtype } => {
                TensorView::random(fill.random(*seed, name, 0), shape, *dtype)
            }
            WeightSource::Meta { dtype } => TensorView::meta(shape, *dtype),
        })
    }

    /// The matrix `name` with what scales it, if it is stored in e4m3; made in e4m3 where nothing is stored.
    ///
    /// # Shapes
    /// `shape` is `[rows, cols]`.
    ///
    /// # Errors
    /// As [`WeightSource::matrix`]. Also if its scales are missing, have another shape than `by` says, or can't be scales.
    pub fn scaled_matrix(
        &self,
        name: &str,
        shape: [usize; 2],
        by: ScaledBy,
        fill: Fill,
    ) -> Result<TensorView<'_>, CheckpointError> {
        Ok(match self {
            WeightSource::Files(checkpoint) => checkpoint.scaled_matrix(name, shape, by)?,
            WeightSource::Packed(_) => self.matrix(name, shape, fill)?,
            WeightSource::Random { seed, .. } => {
                let [centre, spread] = fill.interval();
                let spread = centre.abs() + spread;
                TensorView::scaled(Scaled::random(*seed, name, spread, by, shape), shape)
            }
            WeightSource::Meta { .. } => {
                TensorView::scaled(Scaled::new(Elements::Meta, Vec::new(), by, shape), shape)
            }
        })
    }

    /// Matrix `index` of the packed tensor `name` of one matrix per expert.
    ///
    /// # Shapes
    /// `shape` is `[experts, rows, cols]`; the view is `[rows, cols]`.
    ///
    /// # Errors
    /// As [`WeightSource::matrix`].
    pub fn expert_matrix(
        &self,
        name: &str,
        index: usize,
        shape: [usize; 3],
        fill: Fill,
    ) -> Result<TensorView<'_>, CheckpointError> {
        let [experts, rows, cols] = shape;
        assert!(index < experts, "expert {index} of {experts}");
        Ok(match self {
            WeightSource::Files(checkpoint) => checkpoint.expert_matrix(name, index, shape)?,
            // Each expert has tensors of its own there.
            WeightSource::Packed(packed) => return Err(packed.tensors().missing(name)),
            WeightSource::Random { seed, dtype } => {
                TensorView::random(fill.random(*seed, name, index), [rows, cols], *dtype)
            }
            WeightSource::Meta { dtype } => TensorView::meta([rows, cols], *dtype),
        })
    }

    /// The vector `name` of `len` elements, widened to f32. Of a `Meta` source: zeros.
    ///
    /// # Errors
    /// As [`WeightSource::matrix`].
    pub fn vector(&self, name: &str, len: usize, fill: Fill) -> Result<Vec<f32>, CheckpointError> {
        Ok(match self {
            WeightSource::Files(checkpoint) => checkpoint.vector(name, len)?,
            WeightSource::Packed(packed) => packed.tensors().vector(name, len)?,
            WeightSource::Random { seed, dtype } => {
                let mut out = vec![0.0; len];
                fill.random(*seed, name, 0).read(0, 0..len, *dtype, &mut out);
                out
            }
            WeightSource::Meta { .. } => vec![0.0; len],
        })
    }
}
