//! The parts of a step, by the names that a reader of a paper would give them.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// A part of a step. What is inside another part counts for the inner one alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Part {
    /// Token ids to rows.
    Embedding,
    /// Norms and residual adds.
    Norm,
    /// Queries, keys and values: the product, their norms, their rotation.
    Qkv,
    /// The KV cache's new rows, and attention over it.
    Attention,
    /// The product behind attention.
    Output,
    /// The feed-forward network, experts and their router among it.
    Ffn,
    /// What finishes the sums of row-parallel layers.
    AllReduce,
    /// Everything else that ranks of a stage exchange.
    Exchange,
    /// The residual stream to the next stage.
    Send,
    /// The residual stream of the stage before, and waiting for it.
    Receive,
    /// Hidden states to logits.
    Head,
    /// Logits to tokens.
    Sampling,
    /// What runs next, and what became of it.
    Scheduler,
    /// What the caller does with a token: text, stops, printing.
    Text,
    /// A layer: of its own it has nothing.
    Layer,
    /// A whole step: of its own it has what is in no other part.
    Step,
    /// Waiting for something to do; in no step.
    Idle,
}

/// What kind of work something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Category {
    /// Arithmetic on a device.
    Compute,
    /// Data on its way between ranks.
    Communication,
    /// Nothing, because of another rank.
    Waiting,
    /// Decisions, and text.
    Host,
}

impl Part {
    /// All, in the order in which they are told.
    pub const ALL: [Part; 17] = [
        Part::Embedding,
        Part::Norm,
        Part::Qkv,
        Part::Attention,
        Part::Output,
        Part::AllReduce,
        Part::Ffn,
        Part::Exchange,
        Part::Receive,
        Part::Send,
        Part::Head,
        Part::Sampling,
        Part::Scheduler,
        Part::Text,
        Part::Layer,
        Part::Step,
        Part::Idle,
    ];

    /// Whether it is in no other: a step, and what is between steps.
    pub fn is_outermost(self) -> bool {
        matches!(self, Part::Step | Part::Scheduler | Part::Text | Part::Idle)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Part::Embedding => "embedding",
            Part::Norm => "norm",
            Part::Qkv => "qkv",
            Part::Attention => "attention",
            Part::Output => "output",
            Part::Ffn => "ffn",
            Part::AllReduce => "all-reduce",
            Part::Exchange => "exchange",
            Part::Send => "send",
            Part::Receive => "receive",
            Part::Head => "head",
            Part::Sampling => "sampling",
            Part::Scheduler => "scheduler",
            Part::Text => "text",
            Part::Layer => "layer",
            Part::Step => "step",
            Part::Idle => "idle",
        }
    }

    /// What kind of work it is.
    pub fn category(self) -> Category {
        match self {
            Part::AllReduce | Part::Exchange | Part::Send | Part::Receive => Category::Communication,
            Part::Idle => Category::Waiting,
            Part::Sampling | Part::Scheduler | Part::Text => Category::Host,
            _ => Category::Compute,
        }
    }
}

impl Category {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Category::Compute => "compute",
            Category::Communication => "communication",
            Category::Waiting => "waiting",
            Category::Host => "host",
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What ranks exchanged in the part that is open.
#[derive(Clone, Copy, Debug, Default)]
pub struct Exchanged {
    /// The operation: its method of a group.
    pub op: &'static str,
    /// Bytes that this rank gave to others, or got, if it only got some.
    pub bytes: u64,
    /// When it first waited for them, and how long it did in all.
    pub waited: Option<(Instant, Duration)>,
}

/// How long parts took.
#[derive(Clone, Copy, Debug, Default)]
pub struct PartTimes {
    times: [PartTime; Part::ALL.len()],
}

/// How long a part took, without those inside it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PartTime {
    /// How often it was opened.
    pub calls: u32,
    /// All of it.
    pub time: Duration,
    /// What of that was waiting for other ranks, as far as the transport knows.
    pub waited: Duration,
    /// Bytes that this rank gave to others in it, or got, if it only got some.
    pub bytes: u64,
}

impl PartTimes {
    /// A part's time.
    pub fn of(&self, part: Part) -> PartTime {
        self.times[part as usize]
    }

    /// A part's time, to be changed.
    pub fn of_mut(&mut self, part: Part) -> &mut PartTime {
        &mut self.times[part as usize]
    }

    /// The time of all parts that are of a step.
    pub fn total(&self) -> Duration {
        let of_step = Part::ALL.iter().filter(|&&part| part != Part::Idle);
        of_step.map(|&part| self.of(part).time).sum()
    }
}
