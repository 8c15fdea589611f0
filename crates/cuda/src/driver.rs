//! What a device asks of a GPU, or of what stands for one: memory, and kernels in the order of their launches.

use std::fmt;

/// A place in a GPU's memory.
pub type Address = u64;

/// What went wrong, in one line.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Fault(pub String);

/// A kernel of one of the files in `kernels/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Kernel {
    /// The file, without its ending.
    pub file: &'static str,
    /// The kernel.
    pub name: &'static str,
}

impl fmt::Display for Kernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// How often a kernel runs at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Blocks along each axis.
    pub blocks: [u32; 3],
    /// Threads of each block.
    pub threads: u32,
    /// Bytes of shared memory of each block, besides what the kernel says itself.
    pub shared: u32,
}

/// The most arguments of a kernel.
const MOST: usize = 26;

/// A kernel's arguments, in its order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arguments {
    /// Each in the first bytes of its own slot.
    slots: [u64; MOST],
    len: usize,
}

impl Arguments {
    /// None.
    pub fn new() -> Self {
        Arguments::default()
    }

    /// A pointer.
    pub fn address(self, at: Address) -> Self {
        self.slot(at)
    }

    /// A `u32`.
    ///
    /// # Panics
    /// If the number is larger than that.
    pub fn count(self, x: usize) -> Self {
        self.slot(u64::from(u32::try_from(x).expect("a kernel's numbers fit in 32 bits")))
    }

    /// A `u64`.
    pub fn long(self, x: usize) -> Self {
        self.slot(x as u64)
    }

    /// A `float`.
    pub fn float(self, x: f32) -> Self {
        self.slot(u64::from(x.to_bits()))
    }

    fn slot(mut self, bits: u64) -> Self {
        self.slots[self.len] = bits;
        self.len += 1;
        self
    }

    /// All slots, also those of no argument.
    pub(crate) fn all_slots(&self) -> &[u64; MOST] {
        &self.slots
    }

    /// The arguments' bits.
    pub fn slots(&self) -> &[u64] {
        &self.slots[..self.len]
    }
}

/// A GPU's memory and its one queue of work. Used from one thread.
pub trait Driver {
    /// A GPU's name.
    fn name(&self) -> String;
    /// Multiprocessors.
    fn multiprocessors(&self) -> usize;
    /// The most bytes of shared memory that a block can have.
    fn shared_bytes(&self) -> usize;
    /// New memory of unspecified content. Its address is a multiple of 256.
    ///
    /// # Errors
    /// There is not as much.
    fn alloc(&self, bytes: usize) -> Result<Address, Fault>;
    /// Gives memory back, behind all work.
    fn free(&self, at: Address);
    /// Writes from host memory, behind all work so far. The bytes have been read when this returns.
    ///
    /// # Errors
    /// Whatever the GPU met since the last call; so for all that follow.
    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), Fault>;
    /// Reads to host memory, behind all work so far, for which it waits.
    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), Fault>;
    /// Copies within the GPU, behind all work so far. The two don't overlap.
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Fault>;
    /// Says that what follows is of another shape each time: what was asked for so far is a list of its own.
    ///
    /// # Errors
    /// See [`Driver::write`].
    fn cut(&self) -> Result<(), Fault> {
        Ok(())
    }
    /// Runs a kernel, behind all work so far.
    fn launch(&self, kernel: Kernel, grid: Grid, arguments: &Arguments) -> Result<(), Fault>;
}
