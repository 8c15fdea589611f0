use std::fmt;

use crate::{OpCost, Part};

/// What listens to the operations of a [`Shapes`].
pub trait Recorder {
    /// The device's name.
    const NAME: &'static str;
    /// One operation: its name in [`Device`], what it costs, and its operands in words.
    fn record(&self, op: &'static str, cost: OpCost, detail: fmt::Arguments<'_>);
    /// A part of a step begins, maybe inside another.
    fn enter(&self, _part: Part) {}
    /// The part ends that began last.
    fn leave(&self) {}
    /// Bytes went to other ranks.
    fn exchanged(&self, _bytes: u64) {}
}
