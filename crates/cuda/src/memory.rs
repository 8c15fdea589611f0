//! A GPU's memory, kept for the next tensor of about the same size: all work is in one queue, so what is dropped can be written
//! anew by the next kernel. After the first steps nothing is asked of the driver, and the same steps get the same addresses: of what
//! is free the lowest one, whatever was given back first.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::driver::{Address, Driver, Fault};
use crate::reduction::Reduction;
use crate::watch;

/// Sizes are rounded up to one of these per power of two.
const SIZES_PER_DOUBLING: usize = 8;
const LEAST: usize = 256;

/// The memory of one device.
pub(crate) struct Memory {
    pub driver: Box<dyn Driver>,
    pub reduction: Reduction,
    pub watch: watch::Watch,
    /// What nobody uses, by size.
    free: RefCell<BTreeMap<usize, BTreeSet<Address>>>,
    in_use: Cell<usize>,
    /// In blocks that stay long.
    held: Cell<usize>,
    /// What asks for memory now.
    asks: Cell<&'static str>,
    most: Cell<usize>,
    /// The first thing that went wrong since it was last asked for.
    fault: RefCell<Option<Fault>>,
    /// Who may know that what was read is nothing, though the driver saw no fault.
    watches: RefCell<Vec<Watch>>,
}

/// Asked behind each read.
type Watch = Box<dyn Fn() -> Result<(), Fault>>;

/// Some of it.
pub(crate) struct Block {
    memory: Rc<Memory>,
    pub at: Address,
    bytes: usize,
    /// Whether it is kept for others when it is dropped.
    is_kept: bool,
}

/// Bytes as people read them.
pub(crate) fn in_words(bytes: usize) -> String {
    let bytes = bytes as f64;
    match bytes {
        ..1e6 => format!("{:.1} kB", bytes / 1e3),
        ..1e9 => format!("{:.1} MB", bytes / 1e6),
        _ => format!("{:.1} GB", bytes / 1e9),
    }
}

impl Memory {
    pub fn new(driver: Box<dyn Driver>, reduction: Reduction) -> Rc<Self> {
        Rc::new(Memory {
            driver,
            reduction,
            watch: watch::Watch::new(),
            free: RefCell::default(),
            in_use: Cell::new(0),
            held: Cell::new(0),
            asks: Cell::new("an upload"),
            most: Cell::new(0),
            fault: RefCell::default(),
            watches: RefCell::default(),
        })
    }

    /// At least so many bytes of unspecified content. If there are none that are free, all that nobody uses is given back
    /// first; if that doesn't help, the fault is kept and the block has no memory.
    pub fn block(self: &Rc<Self>, bytes: usize) -> Block {
        let bytes = rounded(bytes);
        let kept = self.free.borrow_mut().get_mut(&bytes).and_then(BTreeSet::pop_first);
        let at = kept.or_else(|| self.new_memory(bytes));
        self.in_use.set(self.in_use.get() + bytes);
        self.most.set(self.most.get().max(self.in_use.get()));
        Block { memory: self.clone(), at: at.unwrap_or(0), bytes, is_kept: true }
    }

    /// Memory of this size for what stays long: weights, caches. It is given back when it is dropped, and does not count as what
    /// steps need.
    pub fn exact_block(self: &Rc<Self>, bytes: usize) -> Block {
        let bytes = bytes.next_multiple_of(LEAST).max(LEAST);
        let at = self.new_memory(bytes);
        self.held.set(self.held.get() + bytes);
        Block { memory: self.clone(), at: at.unwrap_or(0), bytes, is_kept: false }
    }

    fn new_memory(&self, bytes: usize) -> Option<Address> {
        if let Ok(at) = self.driver.alloc(bytes) {
            return Some(at);
        }
        self.give_back();
        // What was given back is there when the work before it is done.
        self.note(self.driver.finish())?;
        let lacking = |Fault(why)| {
            let [held, in_use] = [&self.held, &self.in_use].map(|bytes| in_words(bytes.get()));
            Fault(format!(
                "out of memory for {}: {why}; weights and caches have {held}, work at hand {in_use}",
                self.asks.get()
            ))
        };
        self.note(self.driver.alloc(bytes).map_err(lacking))
    }

    /// Says what asks for memory from now on.
    pub fn for_op(&self, name: &'static str) {
        self.asks.set(name);
    }

    /// Keeps what went wrong until it is asked for; of several faults the first.
    pub fn note<T>(&self, result: Result<T, Fault>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(fault) => {
                self.fault.borrow_mut().get_or_insert(fault);
                None
            }
        }
    }

    /// What went wrong since the last call, if anything did.
    pub fn take_fault(&self) -> Result<(), Fault> {
        match self.fault.borrow_mut().take() {
            Some(fault) => Err(fault),
            None => Ok(()),
        }
    }

    /// Has `watch` asked behind each read.
    pub fn watch(&self, watch: Watch) {
        self.watches.borrow_mut().push(watch);
    }

    /// Whether what was read is what it should be.
    pub fn ask_watches(&self) -> Result<(), Fault> {
        self.watches.borrow().iter().try_for_each(|watch| watch())
    }

    /// Whether nothing has gone wrong: else nothing more is asked of the driver.
    pub fn is_sound(&self) -> bool {
        self.fault.borrow().is_none()
    }

    /// The most bytes that were in use at a time.
    pub fn most(&self) -> usize {
        self.most.get()
    }

    fn give_back(&self) {
        for (_, blocks) in std::mem::take(&mut *self.free.borrow_mut()) {
            blocks.into_iter().for_each(|at| self.driver.free(at));
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        self.give_back();
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if !self.is_kept {
            self.memory.held.set(self.memory.held.get() - self.bytes);
            if self.at != 0 {
                self.memory.driver.free(self.at);
            }
            return;
        }
        self.memory.in_use.set(self.memory.in_use.get() - self.bytes);
        if self.at != 0 {
            self.memory.free.borrow_mut().entry(self.bytes).or_default().insert(self.at);
        }
    }
}

/// The size that a request gets.
fn rounded(bytes: usize) -> usize {
    let bytes = bytes.max(LEAST);
    let step = (bytes.next_power_of_two() / 2 / SIZES_PER_DOUBLING).max(LEAST);
    bytes.next_multiple_of(step)
}
