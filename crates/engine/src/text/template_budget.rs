//! What one rendering may cost.
//!
//! Fuel bounds the instructions, not what one of them does: forty lines of `{% set s = s ~ s %}` make a terabyte. So
//! every operation whose cost grows with its operands pays for them from a budget of bytes, first; `template_guard`
//! puts the payments into the template.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use minijinja::value::{Object, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// The name of the budget among a template's variables: one that no template can write.
pub(super) const BUDGET_VARIABLE: &str = "<budget>";
/// What a value costs beside its text.
const NODE_BYTES: u64 = 16;
/// Comparing is this much cheaper than copying.
const SCAN_DISCOUNT: u64 = 64;
/// JSON from a request nests 128 deep at most.
const DEPTH_MAX: usize = 130;
/// The largest factor of `*`, as a number and as a length.
const FACTOR_MAX: u64 = 4096;

/// What is left for one rendering, and why it ended.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicU64,
    raised: OnceLock<String>,
    exhausted: OnceLock<&'static str>,
    pub now_unix_s: i64,
}

impl Object for Budget {}

#[derive(Clone, Copy, PartialEq)]
enum Price {
    Copy,
    Scan,
}

impl Budget {
    pub fn new(bytes: u64, now_unix_s: i64) -> Self {
        Self { left: AtomicU64::new(bytes), raised: OnceLock::new(), exhausted: OnceLock::new(), now_unix_s }
    }

    /// The message of `raise_exception`, if the template called it.
    pub fn raised(&self) -> Option<&str> {
        self.raised.get().map(String::as_str)
    }

    pub fn raise(&self, message: String) -> Error {
        let error = Error::new(ErrorKind::InvalidOperation, message.clone());
        let _ = self.raised.set(message);
        error
    }

    /// The limit that was met, if one was.
    pub fn exhausted(&self) -> Option<&'static str> {
        self.exhausted.get().copied()
    }

    pub fn exhaust(&self, limit: &'static str) -> Error {
        Error::new(ErrorKind::InvalidOperation, *self.exhausted.get_or_init(|| limit))
    }

    /// Pays for bytes.
    pub fn charge(&self, bytes: u64) -> Result<(), Error> {
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        left.map(|_| ()).map_err(|_| self.exhaust("it makes far more text than it was given"))
    }

    /// Pays for a value written out in full: parts that are shared are paid for each time.
    pub fn charge_text(&self, value: &Value) -> Result<(), Error> {
        self.walk(value, 0, Price::Copy)
    }

    /// Pays for looking through a value.
    pub fn charge_scan(&self, value: &Value) -> Result<(), Error> {
        self.walk(value, 0, Price::Scan)
    }

    /// Pays for a copy that shares the parts.
    pub fn charge_shallow(&self, value: &Value) -> Result<(), Error> {
        match value.as_str() {
            Some(text) => self.charge(text.len() as u64),
            None => self.charge(NODE_BYTES.saturating_mul(value.len().unwrap_or(1) as u64)),
        }
    }

    /// Pays for an operand of `*`: with both at most [`FACTOR_MAX`], the product is paid for.
    pub fn charge_factor(&self, value: &Value) -> Result<(), Error> {
        let size = match value.kind() {
            ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).map_or(u64::MAX, |factor| {
                u64::try_from(factor.max(0)).unwrap_or(u64::MAX)
            }),
            ValueKind::Number => return Ok(()),
            ValueKind::String => value.as_str().map_or(0, |text| text.len() as u64),
            _ => value.len().unwrap_or(0) as u64,
        };
        if size > FACTOR_MAX {
            return Err(self.exhaust("a factor of * is larger than 4096"));
        }
        if value.kind() == ValueKind::Number { Ok(()) } else { self.charge(size * FACTOR_MAX) }
    }

    fn walk(&self, value: &Value, depth: usize, price: Price) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(self.exhaust("its values nest too deep"));
        }
        if let Some(text) = value.as_str() {
            let bytes = text.len() as u64;
            return self.charge(if price == Price::Scan { bytes / SCAN_DISCOUNT + 1 } else { bytes });
        }
        let Some(object) = value.as_object() else { return self.charge(1) };
        // A namespace can be changed, so it is the one thing that could contain itself.
        if object.type_name().ends_with("::Namespace") {
            return Err(self.exhaust("it puts a namespace into a value"));
        }
        self.charge(NODE_BYTES)?;
        match value.kind() {
            ValueKind::Map => {
                for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                    self.charge(NODE_BYTES)?;
                    self.walk(&key, depth + 1, price)?;
                    self.walk(&item, depth + 1, price)?;
                }
            }
            ValueKind::Seq | ValueKind::Iterable => {
                for item in object.try_iter().into_iter().flatten() {
                    self.charge(NODE_BYTES)?;
                    self.walk(&item, depth + 1, price)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// Calls a function with the budget of the rendering that is going on.
pub(super) fn with_budget<R>(
    state: &State,
    function: impl FnOnce(&Budget) -> Result<R, Error>,
) -> Result<R, Error> {
    let variable = state.lookup(BUDGET_VARIABLE);
    match variable.as_ref().and_then(|value| value.downcast_object_ref::<Budget>()) {
        Some(budget) => function(budget),
        None => Err(Error::new(ErrorKind::InvalidOperation, "a template is rendered without a budget")),
    }
}
