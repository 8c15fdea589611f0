//! What a model's weights are kept in.

use std::fmt;

use checkpoint::TensorView;
use tensor::{DType, Scales, WeightFormat, WeightSpec};

use crate::config::ModelConfig;
use crate::parallel::{Layout, Module};

/// What the weights of linear layers are quantised to when they are loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Quantization {
    /// e4m3 with a power of two per 32 inputs.
    Fp8,
    /// 8-bit integers with a scale per 32 inputs.
    Int8,
    /// 4-bit integers with a scale and a zero point per 32 inputs; the head and an embedding that it is tied to as
    /// [`Quantization::Int8`].
    Int4,
}

impl Quantization {
    /// All of them.
    pub const ALL: [Quantization; 3] = [Quantization::Fp8, Quantization::Int8, Quantization::Int4];

    /// The name that users write and read: `fp8`, `int8`, `int4`.
    pub fn name(self) -> &'static str {
        self.format().name()
    }

    /// What the layers' weights become.
    pub fn format(self) -> WeightFormat {
        match self {
            Quantization::Fp8 => WeightFormat::Fp8,
            Quantization::Int8 => WeightFormat::Int8,
            Quantization::Int4 => WeightFormat::Int4,
        }
    }

    /// What the head's weight becomes.
    fn head(self) -> WeightFormat {
        match self {
            Quantization::Int4 => WeightFormat::Int8,
            other => other.format(),
        }
    }
}

impl fmt::Display for Quantization {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a weight of two dimensions is stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoredAs {
    /// As floats.
    Float(DType),
    /// As e4m3, with a scale per so many outputs and inputs.
    Scaled([usize; 2]),
}

impl StoredAs {
    /// What a tensor is stored as.
    pub fn of(view: &TensorView) -> Self {
        match view.scale_block() {
            Some(block) => StoredAs::Scaled(block),
            None => StoredAs::Float(view.dtype()),
        }
    }

    /// How the weight is packed if it stays as it is. `k`: its inputs. Groups that scales cut are kept as products.
    fn format(self, k: usize, period: Option<usize>) -> WeightFormat {
        match self {
            StoredAs::Float(dtype) => dtype.into(),
            StoredAs::Scaled([_, inputs]) if inputs >= k => WeightFormat::Scaled(Scales::OUTPUT),
            StoredAs::Scaled([_, inputs]) => {
                Scales::every(inputs, period).map_or(DType::F32.into(), WeightFormat::Scaled)
            }
        }
    }
}

/// What weights are kept in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeptAs {
    /// The type of those that are not quantised; `None`: as stored.
    pub dtype: Option<DType>,
    /// What linear layers are quantised to, if at all. A router, norms, biases, positions, and an embedding that is not the
    /// head, too, are not.
    pub quantization: Option<Quantization>,
}

/// In words: `bfloat16`, or `int4 (the rest bfloat16)`.
impl fmt::Display for KeptAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dtype = self.dtype.map_or("as stored", DType::name);
        match self.quantization {
            None => f.write_str(dtype),
            Some(quantization) => write!(f, "{quantization} (the rest {dtype})"),
        }
    }
}

/// The name of what an FP8 checkpoint's layers are kept in.
const E4M3: &str = WeightFormat::Scaled(Scales::OUTPUT).name();

impl KeptAs {
    /// The name of what linear layers are kept in, if that is not what the rest is: what they are quantised to, or `e4m3` of an FP8
    /// checkpoint.
    pub fn layers(&self, config: &ModelConfig) -> Option<&'static str> {
        self.quantization.map(Quantization::name).or(config.fp8.is_some().then_some(E4M3))
    }

    /// What the weights of most linear layers are packed as, if floats are stored as `stored`.
    pub fn of_layers(&self, layout: &Layout, stored: DType) -> WeightFormat {
        let inputs = layout.spec(Module::O, 0).shape[1];
        self.spec(layout, Module::O, inputs, layout.stored_as(Module::O, 0, stored)).format
    }

    /// How a module's weight of two dimensions and `k` inputs, stored as `stored`, is packed.
    pub fn spec(&self, layout: &Layout, module: Module, k: usize, stored: StoredAs) -> WeightSpec {
        let period = layout.group_period(module);
        let as_stored = match (self.dtype, stored) {
            (Some(dtype), StoredAs::Float(_)) => dtype.into(),
            _ => stored.format(k, period),
        };
        WeightSpec { format: self.format(module, as_stored, layout.config.tied), period }
    }

    /// `tied`: the embedding is the head.
    fn format(&self, module: Module, as_stored: WeightFormat, tied: bool) -> WeightFormat {
        let Some(quantization) = self.quantization else { return as_stored };
        match module {
            Module::Embed if !tied => as_stored,
            Module::Positions | Module::Router => as_stored,
            Module::Embed | Module::Head => quantization.head(),
            _ => quantization.format(),
        }
    }
}
