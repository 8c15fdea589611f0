use tensor::{Activation, Device, Part};

use crate::ModelError;
use crate::architecture::FfnForm;
use crate::loader::Loader;
use crate::parallel::{ColumnParallelLinear, ExpertCounts, Module, ParallelExperts, Rank, RowParallelLinear};
use crate::residual::Addend;

/// A layer's feed-forward network.
pub enum Ffn<D: Device> {
    /// One network for all tokens.
    Dense(DenseFfn<D>),
    /// A mixture of experts.
    Experts(ParallelExperts<D>),
}

/// `down(act(gate(x)) · up(x))`, or `down(act(up(x)))`.
pub struct DenseFfn<D: Device> {
    up: ColumnParallelLinear<D>,
    gated: bool,
    activation: Activation,
    down: RowParallelLinear<D>,
}

impl<D: Device> Ffn<D> {
    /// Loads a layer's network.
    pub fn load(loader: &Loader<D>, layer: usize) -> Result<Self, ModelError> {
        let config = &loader.layout.config;
        if config.layers[layer].moe {
            return Ok(Ffn::Experts(ParallelExperts::load(loader, layer)?));
        }
        let form = loader.layout.styles.layers[layer].ffn;
        let up: &[Module] = match config.architecture.ffn {
            FfnForm::Gated => &[Module::Gate, Module::Up],
            FfnForm::GatedFused => &[Module::GateUp],
            FfnForm::Plain => &[Module::Up],
        };
        Ok(Ffn::Dense(DenseFfn {
            up: ColumnParallelLinear::load(loader, up, layer, form.up)?,
            gated: config.gated(),
            activation: config.activation,
            down: RowParallelLinear::load(loader, Module::Down, layer, form.down, &loader.layout.split.ffn)?,
        }))
    }

    /// What was counted of experts since the last call, if it has any.
    ///
    /// # Errors
    /// Whatever the device met since its results were read last.
    pub fn take_counts(&self, dev: &D) -> Result<Option<ExpertCounts>, ModelError> {
        match self {
            Ffn::Dense(_) => Ok(None),
            Ffn::Experts(experts) => experts.take_counts(dev).map(Some),
        }
    }

    /// `x [t, hidden_size]` → the same shape.
    pub fn forward(&self, rank: Rank<D>, x: &D::Tensor) -> Result<Addend<'_, D>, ModelError> {
        rank.dev.span(Part::Ffn, || match self {
            Ffn::Dense(dense) => dense.forward(rank, x),
            Ffn::Experts(experts) => experts.forward(rank, x).map(Addend::Sum),
        })
    }
}

impl<D: Device> DenseFfn<D> {
    fn forward(&self, rank: Rank<D>, x: &D::Tensor) -> Result<Addend<'_, D>, ModelError> {
        let hidden = if self.gated {
            self.up.forward_gated(rank, x, self.activation)?
        } else {
            let mut hidden = self.up.forward(rank, x)?;
            rank.dev.activate(&mut hidden, self.activation);
            hidden
        };
        self.down.forward(rank, &hidden)
    }
}
