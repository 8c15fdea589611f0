//! What one rendering may cost.
//!
//! Fuel bounds the instructions, not what one of them does: forty lines of `{% set s = s ~ s %}` make a terabyte. So
//! every operation whose cost grows with its operands pays for them from a budget of bytes, first; `template_guard`
//! puts the payments into the template.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use minijinja::value::{Object, Value, ValueKind};
use minijinja::{Error, ErrorKind, State};

/// The name of the budget among a template's variables: one that no template can write.
pub(super) const BUDGET_VARIABLE: &str = "<budget>";
/// What a value costs beside its text: to copy, and to look at.
const NODE_BYTES: u64 = 16;
const NODE_SCAN_BYTES: u64 = 8;
/// Comparing text is this much cheaper than copying it.
const SCAN_DISCOUNT: u64 = 64;
/// JSON from a request nests 128 deep at most.
const DEPTH_MAX: usize = 130;
/// The largest factor of `*` where texts or lists are multiplied, as a number and as a length.
const FACTOR_MAX: u64 = 4096;

/// What is left for one rendering, and why it ended.
#[derive(Debug)]
pub(super) struct Budget {
    left: AtomicU64,
    raised: OnceLock<String>,
    exhausted: OnceLock<&'static str>,
    has_large_factor: AtomicBool,
    has_text_factor: AtomicBool,
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
        Self {
            left: AtomicU64::new(bytes),
            raised: OnceLock::new(),
            exhausted: OnceLock::new(),
            has_large_factor: AtomicBool::new(false),
            has_text_factor: AtomicBool::new(false),
            now_unix_s,
        }
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
        let left =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
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

    /// Pays for an operand of `*`, as if the other were [`FACTOR_MAX`]. An operand does not know the other, so a
    /// rendering may multiply texts, or by larger numbers, but not do both.
    pub fn charge_factor(&self, value: &Value) -> Result<(), Error> {
        let refuse = || Err(self.exhaust("it repeats a text or a list more than 4096 times"));
        if value.kind() == ValueKind::Number {
            let is_large = f64::try_from(value.clone()).is_ok_and(|factor| factor > FACTOR_MAX as f64);
            self.has_large_factor.fetch_or(is_large, Ordering::Relaxed);
        } else if value.as_str().is_some() || value.as_object().is_some() {
            self.has_text_factor.store(true, Ordering::Relaxed);
            let len = value.as_str().map_or_else(|| value.len().unwrap_or(0), str::len) as u64;
            if len > FACTOR_MAX {
                return refuse();
            }
            self.charge(len * FACTOR_MAX)?;
        }
        let both =
            self.has_large_factor.load(Ordering::Relaxed) && self.has_text_factor.load(Ordering::Relaxed);
        if both { refuse() } else { Ok(()) }
    }

    fn walk(&self, value: &Value, depth: usize, price: Price) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(self.exhaust("its values nest too deep"));
        }
        let (node_bytes, discount) = match price {
            Price::Copy => (NODE_BYTES, 1),
            Price::Scan => (NODE_SCAN_BYTES, SCAN_DISCOUNT),
        };
        self.charge(node_bytes + value.as_str().map_or(0, str::len) as u64 / discount)?;
        let Some(object) = value.as_object() else { return Ok(()) };
        // A namespace can be changed, so it is the one thing that could contain itself.
        if object.type_name().ends_with("::Namespace") {
            return Err(self.exhaust("it puts a namespace into a value"));
        }
        match value.kind() {
            ValueKind::Map => {
                for (key, item) in object.try_iter_pairs().into_iter().flatten() {
                    self.walk(&key, depth + 1, price)?;
                    self.walk(&item, depth + 1, price)?;
                }
            }
            ValueKind::Seq | ValueKind::Iterable => {
                for item in object.try_iter().into_iter().flatten() {
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
