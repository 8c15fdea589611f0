//! Experts over ranks: every expert sliced, or whole experts.

use collective::ReducePlan;
use tensor::{Activation, Device, Program, RouterSpec};

use super::{ExpertSplit, Module, Rank, SplitReduction};
use crate::ModelError;
use crate::loader::Loader;

/// The router and this rank's part of the experts of one layer.
pub struct ParallelExperts<D: Device> {
    router: D::Weight,
    spec: RouterSpec,
    activation: Activation,
    own: std::ops::Range<usize>,
    gate_up: Vec<D::Weight>,
    down: Vec<D::Weight>,
    down_program: Program,
    combine_program: Program,
    /// Where ranks meet: each chosen expert's output, or the sum of a token's experts.
    reduce_outputs: Option<ReducePlan>,
    reduce_tokens: Option<ReducePlan>,
}

impl<D: Device> ParallelExperts<D> {
    /// Loads the router and this rank's part of the experts.
    pub fn load(loader: &Loader<D>, layer: usize) -> Result<Self, ModelError> {
        let layout = loader.layout;
        let moe = layout.config.moe.expect("a layer of experts is in a mixture of experts");
        let split = layout.split.experts.as_ref().expect("a mixture's experts are cut");
        let own = layout.own_experts(loader.rank);
        let gate_up = own
            .clone()
            .map(|e| Ok(loader.linear(&[Module::ExpertGate(e), Module::ExpertUp(e)], layer, 0)?.0));
        let down = own.clone().map(|e| Ok(loader.linear(&[Module::ExpertDown(e)], layer, 0)?.0));
        let all_ids = || SplitReduction::over_ids(moe.num_experts);
        let inside = || SplitReduction::over_granules(moe.intermediate_size, layout.config.num_heads);
        let (down_program, combine_program, reduce_outputs, reduce_tokens) = match split {
            ExpertSplit::Sliced(inputs) => {
                (inputs.program(loader.rank), all_ids().program(0), Some(inputs.reduce_plan()), None)
            }
            ExpertSplit::Whole(ids) => {
                (inside().program(0), ids.program(loader.rank), None, Some(ids.reduce_plan()))
            }
        };
        Ok(ParallelExperts {
            router: loader.linear(&[Module::Router], layer, 0)?.0,
            spec: RouterSpec { top_k: moe.top_k, normalize: moe.normalize },
            activation: layout.config.activation,
            gate_up: gate_up.collect::<Result<_, ModelError>>()?,
            down: down.collect::<Result<_, ModelError>>()?,
            own,
            down_program,
            combine_program,
            reduce_outputs,
            reduce_tokens,
        })
    }

    /// `x [t, hidden_size]` → the same shape: this rank's rows of the stream.
    pub fn forward(&self, rank: Rank<D>, x: &D::Tensor) -> Result<D::Tensor, ModelError> {
        let dev = rank.dev;
        let all = rank.enter(x)?;
        let x = all.as_ref().unwrap_or(x);
        let [rows, hidden_size] = dev.shape(x);
        if let (true, Some(plan)) = (self.own.is_empty(), &self.reduce_tokens) {
            // More ranks than experts: this one has nothing to say, not even zeros.
            return rank.reduce(dev.alloc(0, hidden_size), rows, plan);
        }
        let routing = dev.route(&dev.linear(x, &self.router, None), self.spec);
        let chosen = dev.assign(&routing, self.own.clone());
        let hidden = dev.gated(&dev.grouped_linear(x, &chosen, &self.gate_up), self.activation);
        let mut outputs = dev.grouped_linear_tree(&hidden, &chosen, &self.down, &self.down_program);
        if let Some(plan) = &self.reduce_outputs {
            outputs = rank.group.all_reduce(dev, outputs, rows * self.spec.top_k, plan)?;
        }
        let tokens = dev.combine(&outputs, &chosen, &self.combine_program);
        match &self.reduce_tokens {
            Some(plan) => rank.reduce(tokens, rows, plan),
            None => Ok(rank.keep(tokens)),
        }
    }
}
