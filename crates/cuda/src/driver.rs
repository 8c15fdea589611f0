//! What a device asks of a GPU, or of what stands for one: memory, and kernels in the order of their launches.

use std::ffi::c_void;
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

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

/// A place in the queue of work: when all before it was done, and what follows could begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// That was then.
    Passed(Instant),
    /// It will be told by [`Driver::moments`], at this place.
    Pending(usize),
}

/// A call of another library, which puts work into a GPU's queue by itself. Its name and number are what errors say of it.
pub trait Foreign: fmt::Display {
    /// What it is: calls of the same words put the same work there, at the same addresses. So a graph that was made of one does for
    /// the others. `None` if it exchanges with other ranks: such a call is in no graph, for all ranks would have to have it in one, or none,
    /// and each knows only its own list.
    fn words(&self) -> Option<Vec<u64>>;
    /// Puts its work into a stream, which may be one that is being captured if the call has words. The GPU is that of the calling thread.
    ///
    /// # Errors
    /// Whatever the library says.
    fn enqueue(&self, stream: *mut c_void) -> Result<(), Fault>;
    /// Asked of exchanges again and again while somebody waits for the stream, with how long that has been. All else ends by itself.
    ///
    /// # Errors
    /// It will not end by itself any more, or takes too long.
    fn watch(&self, _waited: Duration) -> Result<(), Fault> {
        Ok(())
    }
    /// Makes an exchange end, without what it was to do. Nobody waits for it longer than for a moment from then on.
    fn abort(&self) {}
}

/// Memory that several ranks use, of a GPU or of the host. It stays as long as anyone has it.
pub trait SharedMemory: Send + Sync {
    /// Where it is, for all of this process and for the GPUs that reach it.
    fn at(&self) -> Address;
    /// By what another process of this host opens it.
    ///
    /// # Errors
    /// None can.
    fn handle(&self) -> Result<Vec<u8>, Fault> {
        Err(Fault("its memory is no other process's".into()))
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
    /// The major version of CUDA that it is of; `None` where other libraries need not know.
    fn cuda_major(&self) -> Option<u32> {
        None
    }
    /// Whether its tensor cores multiply e4m3.
    fn multiplies_fp8(&self) -> bool {
        false
    }
    /// Waits for all work.
    ///
    /// # Errors
    /// Whatever the GPU met since the last call.
    fn finish(&self) -> Result<(), Fault> {
        Ok(())
    }
    /// How many ranks have this GPU, this one among them.
    fn ranks_on_gpu(&self) -> usize {
        1
    }
    /// How many processes those are.
    fn processes_on_gpu(&self) -> usize {
        1
    }
    /// Bytes of its memory that nobody has; `None` where nobody counts.
    fn free_bytes(&self) -> Option<u64> {
        None
    }
    /// Bytes of its memory that work takes which is replayed.
    fn graph_bytes(&self) -> u64 {
        0
    }
    /// Bytes of all its memory; `None` where nobody counts.
    fn total_bytes(&self) -> Option<u64> {
        None
    }
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
    /// Loads files of kernels, so that their first launch does not have to.
    ///
    /// # Errors
    /// One does not compile, or can't be loaded.
    fn prepare(&self, _files: &[&'static str]) -> Result<(), Fault> {
        Ok(())
    }
    /// Runs a kernel, behind all work so far.
    fn launch(&self, kernel: Kernel, grid: Grid, arguments: &Arguments) -> Result<(), Fault>;
    /// Marks a place in the queue, behind all work so far. The same work with the same marks is still the same work.
    ///
    /// # Errors
    /// Whatever the GPU met since the last call. This default is for drivers that have done what they were asked for when they return.
    fn mark(&self) -> Result<Mark, Fault> {
        Ok(Mark::Passed(Instant::now()))
    }
    /// The moments of all pending marks since the last call, for which it waits. Their numbers begin anew.
    fn moments(&self) -> Result<Vec<Instant>, Fault> {
        Ok(Vec::new())
    }
    /// Whether other libraries know the queue ([`Driver::call`]).
    fn takes_calls(&self) -> bool {
        false
    }
    /// Has another library work, behind all work so far.
    ///
    /// # Errors
    /// See [`Driver::bind`]; or whatever the library says.
    fn call(&self, _: Rc<dyn Foreign>) -> Result<(), Fault> {
        Err(Fault(format!("{} has no queue that other libraries know", self.name())))
    }
    /// Makes the GPU that of the calling thread, for other libraries, which ask which it is.
    ///
    /// # Errors
    /// There is none that they know.
    fn bind(&self) -> Result<(), Fault> {
        Err(Fault(format!("{} is no GPU that other libraries know", self.name())))
    }
    /// Hands all work so far to the GPU, which may have been collected, and waits for nothing.
    ///
    /// # Errors
    /// As of [`Driver::write`].
    fn flush(&self) -> Result<(), Fault> {
        Ok(())
    }
    /// The same where its rank goes on to wait for others or for work, and has told others all that they need. Now and then this waits for
    /// the work so far, if nobody does otherwise, so that what comes again costs less.
    ///
    /// # Errors
    /// As of [`Driver::write`].
    fn rest(&self) -> Result<(), Fault> {
        self.flush()
    }
    /// Whether asking for memory waits for nothing that runs.
    fn has_pool(&self) -> bool {
        true
    }
    /// Work in it may wait for that of other ranks from now on.
    fn meets_others(&self) {}
    /// Whether it is worth to measure what is faster.
    fn has_speed(&self) -> bool {
        false
    }
    /// The GPU's number in this process, if ranks of the process can share memory of it.
    fn ordinal(&self) -> Option<u32> {
        None
    }
    /// A number that is this GPU's in all processes of this host.
    fn gpu_number(&self) -> u64 {
        self.ordinal().map_or(0, u64::from)
    }
    /// Whether kernels of several processes run on it at the same time; else one's wait until another's have had their turn.
    fn runs_processes_together(&self) -> bool {
        false
    }
    /// Whether kernels that run for seconds are ended there.
    fn ends_long_kernels(&self) -> bool {
        false
    }
    /// Memory of the GPU that other ranks use too, all 0.
    ///
    /// # Errors
    /// There is not as much, or no such thing.
    fn shared(&self, bytes: usize) -> Result<Arc<dyn SharedMemory>, Fault> {
        Err(Fault(format!("{} has no memory to share, so no {bytes} bytes", self.name())))
    }
    /// Memory of the host that GPUs read and write by themselves, all 0.
    ///
    /// # Errors
    /// See [`Driver::shared`].
    fn shared_of_host(&self, bytes: usize) -> Result<Arc<dyn SharedMemory>, Fault> {
        self.shared(bytes)
    }
    /// Memory that another process of this host shares, by its [handle](SharedMemory::handle).
    ///
    /// # Errors
    /// There is no way to it.
    fn open_shared(&self, _handle: &[u8]) -> Result<Arc<dyn SharedMemory>, Fault> {
        Err(Fault(format!("{} does not open memory of other processes", self.name())))
    }
    /// Lets kernels of this GPU use shared memory of another one of the process.
    ///
    /// # Errors
    /// There is no way between them.
    fn reach(&self, ordinal: u32) -> Result<(), Fault> {
        match self.ordinal() == Some(ordinal) {
            true => Ok(()),
            false => Err(Fault(format!("{} does not reach GPU {ordinal}", self.name()))),
        }
    }
}
