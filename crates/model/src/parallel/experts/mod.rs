//! Experts over ranks: every expert sliced, or whole experts on ranks.
//!
//! Whole experts meet in one of two ways, with the same bits: every rank has all tokens and the sums over its experts
//! are reduced, or each rank has tokens of its own and sends them to the experts that they chose. What is sent then is known when
//! the choices are, so where a device runs behind its host sums are reduced if they can be.

mod counts;
mod exchange;
mod tally;
#[cfg(test)]
mod tests;
mod traffic;

pub use counts::ExpertCounts;
pub use traffic::{ExpertBytes, expert_bytes};

use std::cell::RefCell;

use collective::ReducePlan;
use tensor::{Activation, Device, Part, Program, RouterSpec};

use self::exchange::Exchange;
use self::tally::Tally;
use self::traffic::Traffic;
use super::sequence::{Stream, even_rows};
use super::{ExpertForm, Module, Rank, SplitReduction};
use crate::ModelError;
use crate::loader::Loader;

/// The router and this rank's part of the experts of one layer.
pub struct ParallelExperts<D: Device> {
    router: D::Weight,
    spec: RouterSpec,
    activation: Activation,
    /// This rank's experts, ascending; all, if they are sliced.
    own: Vec<usize>,
    gate_up: Vec<D::Weight>,
    down: Vec<D::Weight>,
    down_program: Program,
    meeting: Meeting,
    counts: RefCell<ExpertCounts>,
    tally: RefCell<Option<Tally<D::Tensor>>>,
}

/// Where ranks meet.
enum Meeting {
    /// Each chosen expert's output is reduced, then it is weighted and summed.
    Outputs { reduce: ReducePlan, combine: Program },
    /// The sums of tokens over whole experts.
    Tokens(Box<Whole>),
}

/// Whole experts.
struct Whole {
    /// What a rank sums of its own experts, and what finishes the sum, if its experts are consecutive.
    reduce: Option<(Program, ReducePlan)>,
    exchange: Exchange,
    always_exchange: bool,
    traffic: Traffic,
}

impl<D: Device> ParallelExperts<D> {
    /// Loads the router and this rank's part of the experts.
    pub fn load(loader: &Loader<D>, layer: usize) -> Result<Self, ModelError> {
        let (layout, rank) = (loader.layout, loader.rank);
        let moe = layout.config.moe.expect("a layer of experts is in a mixture of experts");
        let split = layout.split.experts.as_ref().expect("a mixture's experts are cut");
        let own = layout.own_experts(layer, rank);
        loader.check_experts(layer)?;
        let gate_up = own
            .iter()
            .map(|&e| Ok(loader.linear(&[Module::ExpertGate(e), Module::ExpertUp(e)], layer, 0)?.0));
        let down = own.iter().map(|&e| Ok(loader.linear(&[Module::ExpertDown(e)], layer, 0)?.0));
        let (down_program, meeting) = match split.form {
            ExpertForm::Sliced => {
                let reduce = split.sliced.reduce_plan();
                let combine = SplitReduction::over_ids(moe.num_experts).program(0);
                (split.sliced.program(rank), Meeting::Outputs { reduce, combine })
            }
            ExpertForm::Whole => {
                let of_ids = split.placement.reduction(layer);
                let whole = Whole {
                    reduce: of_ids.map(|ids| (ids.program(rank), ids.reduce_plan())),
                    exchange: Exchange::new(split.placement.ranks_of(layer), rank),
                    always_exchange: split.always_exchange,
                    traffic: Traffic::new(layout, layer).expect("a layer of experts"),
                };
                (split.sliced.undivided().program(0), Meeting::Tokens(Box::new(whole)))
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
            meeting,
            counts: RefCell::new(ExpertCounts::new(moe.num_experts)),
            tally: RefCell::default(),
        })
    }

    /// What this rank has counted since the last call. Sums over the ranks of the group are the whole.
    ///
    /// # Errors
    /// Whatever the device met since its results were read last.
    pub fn take_counts(&self, dev: &D) -> Result<ExpertCounts, ModelError> {
        let mut counts = self.counts.borrow_mut();
        if let Some(tally) = self.tally.take() {
            tally.add_to(dev, &self.own, &mut counts)?;
        }
        let nothing = ExpertCounts::new(counts.tokens_per_expert.len());
        Ok(std::mem::replace(&mut counts, nothing))
    }

    /// `x [t, hidden_size]` → the same shape: this rank's rows of the stream.
    pub fn forward(&self, rank: Rank<D>, x: &D::Tensor) -> Result<D::Tensor, ModelError> {
        match &self.meeting {
            Meeting::Outputs { reduce, combine } => self.forward_sliced(rank, x, reduce, combine),
            Meeting::Tokens(whole) => {
                let tokens = match rank.stream {
                    Stream::Replicated => rank.dev.shape(x)[0],
                    Stream::Split(rows) => rows.iter().sum(),
                };
                let may_exchange = rank.group.sizes_by_numbers();
                match &whole.reduce {
                    Some((program, plan))
                        if !(may_exchange && whole.exchanges(rank.group.size(), tokens)) =>
                    {
                        self.forward_reduced(rank, x, program, plan)
                    }
                    _ => self.forward_exchanged(rank, x, &whole.exchange),
                }
            }
        }
    }

    /// Every rank has a slice of every expert.
    fn forward_sliced(
        &self,
        rank: Rank<D>,
        x: &D::Tensor,
        reduce: &ReducePlan,
        combine: &Program,
    ) -> Result<D::Tensor, ModelError> {
        let dev = rank.dev;
        let all = rank.enter(x)?;
        let x = all.as_ref().unwrap_or(x);
        let chosen = dev.assign(&self.route_of_all(rank, x)?, 0..self.own.len());
        let outputs = self.outputs(dev, x, &chosen);
        let rows = dev.shape(x)[0] * self.spec.top_k;
        let outputs = rank.calls(Part::AllReduce).all_reduce(outputs, rows, reduce)?;
        Ok(rank.keep(dev.combine(&outputs, &chosen, combine)))
    }

    /// Every rank has all tokens and sums up over its experts, which are consecutive.
    fn forward_reduced(
        &self,
        rank: Rank<D>,
        x: &D::Tensor,
        program: &Program,
        plan: &ReducePlan,
    ) -> Result<D::Tensor, ModelError> {
        let dev = rank.dev;
        let all = rank.enter(x)?;
        let x = all.as_ref().unwrap_or(x);
        let [rows, hidden_size] = dev.shape(x);
        let nodes = match self.own[..] {
            [first, .., last] | [first @ last] => {
                let chosen = dev.assign(&self.route_of_all(rank, x)?, first..last + 1);
                dev.combine(&self.outputs(dev, x, &chosen), &chosen, program)
            }
            // No expert, so there is nothing to say, not even zeros. But who counts has to know the choices.
            [] if rank.group.rank() == 0 => {
                self.route_of_all(rank, x)?;
                dev.alloc(0, hidden_size)
            }
            [] => dev.alloc(0, hidden_size),
        };
        rank.reduce(nodes, rows, plan)
    }

    /// Each rank has tokens of its own and sends them to the experts that they chose.
    fn forward_exchanged(
        &self,
        rank: Rank<D>,
        x: &D::Tensor,
        exchange: &Exchange,
    ) -> Result<D::Tensor, ModelError> {
        let Stream::Replicated = rank.stream else { return self.exchange(rank, x, exchange) };
        let rows = even_rows(rank.dev.shape(x)[0], rank.group.size());
        let own = self.exchange(rank, &rank.own_rows(x, &rows), exchange)?;
        Ok(rank.calls(Part::Exchange).all_gather(&own, &rows)?)
    }

    /// The choices of tokens that every rank has. Rank 0 counts them all, other ranks those of their experts, if no other rank has
    /// the same ones.
    fn route_of_all(&self, rank: Rank<D>, x: &D::Tensor) -> Result<D::Routing, ModelError> {
        let dev = rank.dev;
        let routing = dev.route(&dev.linear(x, &self.router, None), self.spec);
        let leads = rank.group.rank() == 0;
        if leads || matches!(self.meeting, Meeting::Tokens(_)) {
            let mut counts = self.counts.borrow_mut();
            Tally::count(
                &mut self.tally.borrow_mut(),
                dev,
                &routing,
                (dev.shape(x)[0], leads),
                &self.own,
                &mut counts,
            )?;
        }
        Ok(routing)
    }

    /// The outputs of this rank's experts, not weighted yet: a row per pair (and node, if they are sliced).
    fn outputs(&self, dev: &D, x: &D::Tensor, chosen: &D::Assignment) -> D::Tensor {
        let hidden = dev.grouped_linear_gated(x, chosen, &self.gate_up, self.activation);
        dev.grouped_linear_tree(&hidden, chosen, &self.down, &self.down_program)
    }
}

impl Whole {
    /// Whether tokens go to their experts in a step. The same on every rank.
    fn exchanges(&self, ranks: usize, tokens: usize) -> bool {
        ranks > 1 && (self.always_exchange || self.traffic.exchange_is_cheaper(tokens))
    }
}
