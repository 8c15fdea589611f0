//! How a model is split over the ranks of a tensor-parallel group.
//!
//! The only code that knows what a rank holds, and the only code of this crate that calls a [`Collective`].

mod context;
mod cuts;
mod embedding;
mod exchange;
mod experts;
mod gather;
mod head;
mod layout;
mod linear;
mod placement;
mod sequence;
mod split;
mod stage;
mod styles;

pub use context::ContextAttention;
pub use embedding::VocabParallelEmbedding;
pub use exchange::Calls;
pub use experts::{ExpertBytes, ExpertCounts, ParallelExperts, expert_bytes};
pub use head::{Candidates, Logits, ParallelLmHead};
pub use layout::{Held, Layout, Module, ModuleSpec, Part};
pub use linear::{ColumnParallelLinear, RowParallelLinear};
pub use placement::{ExpertOptions, ExpertPlacement, Placement, imbalance};
pub use sequence::{Stream, even_rows};
pub use split::{ExpertSplit, Split, SplitReduction, VOCAB_PANEL};
pub use stage::{Pipeline, Stage};
pub use styles::{BlockForm, DownForm, ExpertForm, LayerForms, Styles, UpForm, pattern, patterns};

use collective::Collective;
use tensor::Device;

/// One rank: its device and its place in the group.
pub struct Rank<'a, D: Device> {
    /// The rank's device.
    pub dev: &'a D,
    /// The rank's handle on its tensor-parallel group.
    pub group: &'a dyn Collective<D>,
    /// The ranks of that group with which it shares its KV cache by position; none if it has all of its own.
    pub context: Option<&'a dyn Collective<D>>,
    /// How the residual stream lies over that group in the step at hand.
    pub stream: &'a Stream,
}

impl<'a, D: Device> Rank<'a, D> {
    /// A rank whose group has no step at hand, or one whose stream is replicated.
    pub fn new(dev: &'a D, group: &'a dyn Collective<D>) -> Self {
        Rank { dev, group, context: None, stream: &Stream::Replicated }
    }

    /// The same rank in a context group ([`Layout::context_group`]).
    pub fn in_context(self, context: &'a dyn Collective<D>) -> Self {
        Rank { context: Some(context), ..self }
    }
}

// Derived, these would ask the device to be copied.
impl<D: Device> Clone for Rank<'_, D> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<D: Device> Copy for Rank<'_, D> {}
