//! What a forward pass does, as text.

use std::cell::RefCell;
use std::fmt;

use crate::OpCost;
use crate::shapes::{Recorder, Shapes};

/// A device that computes nothing and writes down one line per operation.
///
/// Memory operations (`upload`, `alloc`, `pack`, `alloc_kv`, `begin`) leave no line, so loading a model does not.
pub type Trace = Shapes<TraceLog>;

/// The lines of a [`Trace`].
#[derive(Debug, Default)]
pub struct TraceLog(RefCell<Vec<String>>);

impl Recorder for TraceLog {
    const NAME: &'static str = "trace";

    fn record(&self, op: &'static str, _cost: OpCost, detail: fmt::Arguments<'_>) {
        self.0.borrow_mut().push(format!("{op} {detail}"));
    }
}

impl Trace {
    /// An empty log.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a line for something that is not an operation of a device, a collective for example.
    pub fn note(&self, line: String) {
        self.recorder().0.borrow_mut().push(line);
    }

    /// The lines since the last call.
    pub fn take(&self) -> Vec<String> {
        self.recorder().0.take()
    }
}
