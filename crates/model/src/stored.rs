//! A whole model's tensors as they are kept, one after the other: what a packed checkpoint is written from.

use tensor::{DType, Device, WeightSpec};

use crate::ModelError;
use crate::loader::{BIAS, Loader};
use crate::parallel::Module;

/// A weight of two dimensions.
#[derive(Clone, Debug)]
pub struct StoredWeight {
    /// Its tensor's name.
    pub name: String,
    /// `[n, k]`.
    pub shape: [usize; 2],
    /// How it is packed.
    pub spec: WeightSpec,
    /// Bytes of its elements before that.
    pub stored_bytes: u64,
    module: Module,
    layer: usize,
}

impl StoredWeight {
    /// Whether layers pack it together with another, because both have the same input.
    pub fn lies_with(&self, other: &StoredWeight) -> bool {
        let lies_in = |weight: &StoredWeight| match weight.module {
            Module::Q | Module::K | Module::V => Some((weight.layer, None)),
            Module::Gate | Module::Up => Some((weight.layer, Some(0))),
            Module::ExpertGate(expert) | Module::ExpertUp(expert) => Some((weight.layer, Some(expert))),
            _ => None,
        };
        lies_in(self).is_some() && lies_in(self) == lies_in(other)
    }
}

/// A norm's weight or a bias.
#[derive(Clone, Debug)]
pub struct StoredVector {
    /// Its tensor's name.
    pub name: String,
    /// The type in which it is kept.
    pub dtype: DType,
    /// Its elements, exact in that type.
    pub values: Vec<f32>,
}

impl<D: Device> Loader<'_, D> {
    /// All modules with their layers.
    fn modules(&self) -> impl Iterator<Item = (Module, usize)> {
        let layout = self.layout;
        let outer = layout.outer_modules().into_iter().map(|module| (module, 0));
        let of_layer =
            move |layer| layout.layer_modules(layer).into_iter().map(move |module| (module, layer));
        outer.chain((0..layout.config.num_layers()).flat_map(of_layer))
    }

    /// All weights of two dimensions. Their elements are not read.
    ///
    /// # Errors
    /// One is missing or misshapen, or experts of a layer are stored as different types.
    pub fn stored_weights(&self) -> Result<Vec<StoredWeight>, ModelError> {
        let config = &self.layout.config;
        let mut sparse = (0..config.num_layers()).filter(|&layer| config.layers[layer].moe);
        sparse.try_for_each(|layer| self.check_experts(layer))?;
        let mut weights = Vec::new();
        for (module, layer) in self.modules() {
            let spec = self.layout.spec(module, layer);
            if let [n, k] = spec.shape[..] {
                let (packed_as, stored_bytes) = self.packed_and_stored_as(module, &spec, layer)?;
                let name = format!("{}.weight", spec.name);
                weights.push(StoredWeight {
                    name,
                    shape: [n, k],
                    spec: packed_as,
                    stored_bytes,
                    module,
                    layer,
                });
            }
        }
        Ok(weights)
    }

    /// Packs a weight, whole.
    ///
    /// # Errors
    /// It can't be read, or not be quantised.
    pub fn pack_stored(&self, weight: &StoredWeight) -> Result<D::Weight, ModelError> {
        let spec = self.layout.spec(weight.module, weight.layer);
        self.weight(&[(weight.module, spec)], weight.layer, 0)
    }

    /// All norms and biases.
    ///
    /// # Errors
    /// One is missing or misshapen.
    pub fn stored_vectors(&self) -> Result<Vec<StoredVector>, ModelError> {
        let mut vectors = Vec::new();
        for (module, layer) in self.modules() {
            let spec = self.layout.spec(module, layer);
            let weight = (spec.shape.len() == 1).then(|| (format!("{}.weight", spec.name), self.norm_fill()));
            let bias = spec.bias.map(|_| (format!("{}.bias", spec.name), BIAS));
            for (name, fill) in weight.into_iter().chain(bias) {
                let (dtype, values) = self.rounded_vector(&name, spec.shape[0], fill)?;
                vectors.push(StoredVector { name, dtype, values });
            }
        }
        Ok(vectors)
    }
}
