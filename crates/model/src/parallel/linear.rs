//! Linear layers whose weights are split over ranks.

use std::ops::Range;

use collective::ReducePlan;
use tensor::{Activation, Device, Program};

use super::gather::ColumnGather;
use super::{DownForm, Module, Rank, SplitReduction, UpForm};
use crate::ModelError;
use crate::loader::Loader;
use crate::residual::Addend;

/// A linear layer, or several of the same input, whose outputs are split.
pub struct ColumnParallelLinear<D: Device> {
    weight: D::Weight,
    bias: Option<D::Tensor>,
    gather: Option<ColumnGather>,
}

impl<D: Device> ColumnParallelLinear<D> {
    /// Loads this rank's rows of `modules`, one under the other.
    pub fn load(
        loader: &Loader<D>,
        modules: &[Module],
        layer: usize,
        form: UpForm,
    ) -> Result<Self, ModelError> {
        let gather = (form == UpForm::Gathered).then(|| ColumnGather::new(loader.layout, modules, layer));
        let (weight, bias) = loader.linear(modules, layer, gather.as_ref().map_or(0, |g| g.width))?;
        Ok(ColumnParallelLinear { weight, bias, gather })
    }

    /// `x [t, k]` (this rank's rows of the stream) → this rank's columns of all rows, or all columns if they are
    /// gathered.
    pub fn forward(&self, rank: Rank<D>, x: &D::Tensor) -> Result<D::Tensor, ModelError> {
        let all = rank.enter(x)?;
        let y = rank.dev.linear(all.as_ref().unwrap_or(x), &self.weight, self.bias.as_ref());
        match &self.gather {
            Some(gather) => gather.run(rank, &y),
            None => Ok(y),
        }
    }

    /// The same of gates and what is behind them: `activation(gate) · up`, of half as many columns.
    pub fn forward_gated(
        &self,
        rank: Rank<D>,
        x: &D::Tensor,
        activation: Activation,
    ) -> Result<D::Tensor, ModelError> {
        if self.gather.is_some() {
            return Ok(rank.dev.gated(&self.forward(rank, x)?, activation));
        }
        let all = rank.enter(x)?;
        let x = all.as_ref().unwrap_or(x);
        Ok(rank.dev.linear_gated(x, &self.weight, self.bias.as_ref(), activation))
    }
}

/// A linear layer whose inputs are split; its outputs are summed over a tree that all ranks finish together.
pub struct RowParallelLinear<D: Device> {
    weight: D::Weight,
    bias: Option<D::Tensor>,
    program: Program,
    inputs: Option<Range<usize>>,
    reduce: Option<ReducePlan>,
    gather: Option<ColumnGather>,
}

impl<D: Device> RowParallelLinear<D> {
    /// Loads this rank's columns of `module`, whose inputs are cut by `split`.
    pub fn load(
        loader: &Loader<D>,
        module: Module,
        layer: usize,
        form: DownForm,
        split: &SplitReduction,
    ) -> Result<Self, ModelError> {
        let gather = (form == DownForm::Gathered).then(|| ColumnGather::new(loader.layout, &[module], layer));
        let (weight, bias) = loader.linear(&[module], layer, gather.as_ref().map_or(0, |g| g.width))?;
        let divided = matches!(form, DownForm::Split | DownForm::SplitInput);
        let program = if divided { split.program(loader.rank) } else { split.undivided().program(0) };
        Ok(RowParallelLinear {
            weight,
            bias,
            program,
            inputs: (form == DownForm::SplitInput).then(|| split.inputs(loader.rank)),
            reduce: divided.then(|| split.reduce_plan()),
            gather,
        })
    }

    /// `x [t, k]` (this rank's columns, or all) → `[t, n]`, this rank's rows of the stream.
    pub fn forward(&self, rank: Rank<D>, x: &D::Tensor) -> Result<Addend<'_, D>, ModelError> {
        let dev = rank.dev;
        let nodes = match &self.inputs {
            Some(own) => dev.linear_tree(&dev.gather_cols(x, own.clone()), &self.weight, &self.program),
            None => dev.linear_tree(x, &self.weight, &self.program),
        };
        let mut y = match &self.reduce {
            // The sum is all that the stream gets, so the group may add and norm it as well.
            Some(plan) if self.bias.is_none() && self.gather.is_none() && rank.fuses_norm() => {
                return Ok(Addend::Nodes(nodes, plan));
            }
            Some(plan) => rank.reduce(nodes, dev.shape(x)[0], plan)?,
            None => nodes,
        };
        if let Some(bias) = &self.bias {
            dev.add(&mut y, bias);
        }
        Ok(Addend::Sum(match (&self.gather, &self.reduce) {
            (Some(gather), _) => rank.keep(gather.run(rank, &y)?),
            (None, Some(_)) => y,
            (None, None) => rank.keep(y),
        }))
    }
}
