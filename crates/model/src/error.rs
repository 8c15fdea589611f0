use checkpoint::CheckpointError;
use collective::CollectiveError;
use tensor::{DType, DeviceError, WeightFormat};

/// Why a model can't be loaded, split or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// config.json can't be used.
    #[error("config.json: {0}")]
    Config(String),
    /// generation_config.json can't be used.
    #[error("generation_config.json: {0}")]
    GenerationConfig(String),
    /// The tensor-parallel plan can't be used.
    #[error("tp plan: {0}")]
    Plan(String),
    /// The model can't be split that way.
    #[error("{0}")]
    Split(String),
    /// The step can't be run on this model.
    #[error("{0}")]
    Step(String),
    /// Weights can't be read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A weight that is to be quantised or packed is NaN or infinite.
    #[error(
        "{tensor}: element {at:?} is {value}, which can't be quantised or packed; mend the checkpoint, or run it without --quantization"
    )]
    NotFinite {
        /// Its tensor.
        tensor: String,
        /// Its row and column, or its place in a vector.
        at: Vec<usize>,
        /// What it is.
        value: f32,
    },
    /// An element in e4m3 is NaN.
    #[error("{tensor}: element {at:?} is NaN, which no weight in e4m3 may be; mend the checkpoint")]
    NanElement {
        /// Its tensor.
        tensor: String,
        /// Its row and column.
        at: [usize; 2],
    },
    /// A weight that is to be quantised or packed is finite, but not in the type that it would be kept in.
    #[error("{tensor}: element {at:?} is {value:e}, too large for {dtype}; another --dtype would work")]
    BeyondType {
        /// Its tensor.
        tensor: String,
        /// Its row and column, or its place in a vector.
        at: Vec<usize>,
        /// What it is.
        value: f32,
        /// What it would be kept in.
        dtype: DType,
    },
    /// Experts of a layer are stored as different types.
    #[error(
        "experts of a layer must be stored alike: {} is {}, {} is {}; --quantization int8, int4 or fp8 would make them so",
        .names[0], .formats[0], .names[1], .formats[1]
    )]
    ExpertsDiffer {
        /// Two of them.
        names: [String; 2],
        /// What they are kept as.
        formats: [WeightFormat; 2],
    },
    /// A packed weight doesn't fit the configuration.
    #[error("{tensor} is packed for another config.json; pack the original again with `anysplit quantize`")]
    PackedOtherwise {
        /// Its tensor.
        tensor: String,
    },
    /// A rank is missing or failed.
    #[error(transparent)]
    Collective(#[from] CollectiveError),
    /// A device failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
}

impl ModelError {
    /// Whether the user's input is the cause (exit status 2), rather than a failure at run time (1).
    pub fn is_usage(&self) -> bool {
        match self {
            ModelError::Config(_)
            | ModelError::GenerationConfig(_)
            | ModelError::Plan(_)
            | ModelError::Split(_)
            | ModelError::Step(_)
            | ModelError::NotFinite { .. }
            | ModelError::NanElement { .. }
            | ModelError::ExpertsDiffer { .. }
            | ModelError::BeyondType { .. }
            | ModelError::PackedOtherwise { .. } => true,
            ModelError::Checkpoint(e) => e.is_usage(),
            ModelError::Collective(_) | ModelError::Device(_) => false,
        }
    }
}
