//! What each part of a step costs, in the order in which they begin.

use std::cell::RefCell;
use std::fmt;

use crate::shapes::{Recorder, Shapes};
use crate::{OpCost, Part};

/// A device that computes nothing and counts, by the rules of [`crate::Cost`], what each part of a step has to do.
pub type PartCosts = Shapes<PartLog>;

/// The counts of a [`PartCosts`].
#[derive(Debug, Default)]
pub struct PartLog(RefCell<Open>);

#[derive(Debug, Default)]
struct Open {
    parts: Vec<PartCost>,
    /// Where in `parts` those are that are open.
    open: Vec<usize>,
    outside: OpCost,
}

/// One part, without those inside it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartCost {
    /// Which.
    pub part: Part,
    /// What its operations cost. What it gave to other ranks counts as activations.
    pub cost: OpCost,
    /// Its operations in words, one after the other.
    pub ops: String,
}

impl Recorder for PartLog {
    const NAME: &'static str = "cost";

    fn record(&self, op: &'static str, cost: OpCost, detail: fmt::Arguments<'_>) {
        let Open { parts, open, outside } = &mut *self.0.borrow_mut();
        let Some(&at) = open.last() else { return *outside += cost };
        let part = &mut parts[at];
        part.cost += cost;
        let comma = if part.ops.is_empty() { "" } else { "; " };
        part.ops += &format!("{comma}{op} {detail}");
    }

    fn enter(&self, part: Part) {
        let Open { parts, open, .. } = &mut *self.0.borrow_mut();
        open.push(parts.len());
        parts.push(PartCost { part, cost: OpCost::default(), ops: String::new() });
    }

    fn leave(&self) {
        self.0.borrow_mut().open.pop().expect("a part is closed that was opened");
    }

    fn exchanged(&self, bytes: u64) {
        let Open { parts, open, .. } = &mut *self.0.borrow_mut();
        if let Some(&at) = open.last() {
            parts[at].cost.activation_bytes += bytes;
        }
    }
}

impl PartCosts {
    /// Nothing counted yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The parts since the last call, by their beginnings.
    pub fn take(&self) -> Vec<PartCost> {
        std::mem::take(&mut self.recorder().0.borrow_mut().parts)
    }

    /// What was in no part so far.
    pub fn outside(&self) -> OpCost {
        self.recorder().0.borrow().outside
    }
}
