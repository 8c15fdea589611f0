//! One rank's queue of work on a GPU.
//!
//! Work is collected until a result is read. A list of work that came before is then replayed as a graph: one call instead of one
//! per kernel, and less time between kernels. Any other list goes to the stream piece by piece. Exchanges by another library are in no
//! list: what was collected goes before them. Without graphs (`enforce_eager`) nothing is collected.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::mem;
use std::ptr::null_mut;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use cudarc::driver::sys::{self, CUstream};

use super::api::check;
use super::events::Events;
use super::gate;
use super::gpu::{Function, Gpu};
use super::graph::Graph;
use super::lists::Remembered;
use super::pending::Pending;
use super::pinned::{Pinned, PinnedPool};
use super::shared;
use super::staging::{PART_BYTES, Staging};
use crate::driver::{Address, Arguments, Driver, Fault, Foreign, Grid, Kernel, Mark, SharedMemory};
use crate::nvtx::Ranges;
use crate::step_graphs::StepGraphs;
use crate::work::{Work, WorkList};

/// Results up to this size are read through pinned memory too.
const READ_BYTES: usize = 256 << 10;
/// Larger writes are not collected, and no longer lists.
const MOST_WRITTEN: usize = 256 << 10;
const MOST_WORK: usize = 1 << 14;
/// Pieces of work of all lists that are known: of a step of some 500 a hundred lists, a few per eight rows and twice as many when block
/// tables or contexts have doubled.
const MOST_KNOWN: usize = 1 << 16;
const LEAST_WORK: usize = 8;
/// Room for all that graphs write; a list for which there is none left is no graph.
const GRAPH_BYTES: usize = 16 << 20;

/// From this compute capability on tensor cores multiply e4m3.
const FP8: (u32, u32) = (8, 9);

/// A rank's stream on a GPU. It stays on the thread that made it.
pub struct NvidiaDriver {
    pub(super) stream: CUstream,
    pub(super) pending: Pending,
    /// Whether memory can be had in the stream's order.
    has_pool: bool,
    functions: RefCell<HashMap<Kernel, Function>>,
    /// Nothing is collected without it.
    pub(super) graphs: Option<RefCell<StepGraphs<Graph, Remembered>>>,
    pub(super) list: RefCell<WorkList<Function>>,
    pub(super) staging: RefCell<Staging>,
    results: Pinned,
    pub(super) events: RefCell<Events>,
    pub(super) ranges: Option<Ranges>,
    /// Whether work goes to a graph that is being made.
    pub(super) captures: Cell<bool>,
    /// For what graphs write.
    pub(super) written: Rc<PinnedPool>,
    /// How often the stream was waited for.
    pub(super) waits: Cell<u64>,
    /// Kernels since then, and the last of them.
    pub(super) kernels: Cell<(usize, Option<Kernel>)>,
    /// What went wrong where nobody could be told.
    pub(super) late: RefCell<Option<Fault>>,
    /// Behind all else, which needs its context until it has been given back.
    pub(super) gpu: Arc<Gpu>,
}

impl NvidiaDriver {
    pub(super) fn new(gpu: Arc<Gpu>, enforce_eager: bool) -> Result<Self, Fault> {
        gpu.bind()?;
        let results = Pinned::new(READ_BYTES)?;
        let mut stream = null_mut();
        // It must not wait for the default stream, in which other libraries may work.
        let flags = sys::CUstream_flags_enum::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: it writes one pointer.
        check(unsafe { sys::cuStreamCreate(&mut stream, flags) })?;
        let has_pool = gpu.has_pool()?;
        let graphs = (!enforce_eager).then(|| RefCell::new(StepGraphs::new(MOST_KNOWN, LEAST_WORK)));
        let events = RefCell::new(Events::new(gpu.api));
        let staging = RefCell::new(Staging::new()?);
        let written = PinnedPool::new(GRAPH_BYTES)?;
        // Others look at it until it is dropped.
        Ok(NvidiaDriver {
            gpu,
            stream,
            pending: Pending::new(stream),
            has_pool,
            functions: RefCell::default(),
            graphs,
            list: RefCell::new(WorkList::new()),
            staging,
            results,
            events,
            ranges: Ranges::of_process(),
            captures: Cell::new(false),
            written,
            waits: Cell::new(0),
            kernels: Cell::new((0, None)),
            late: RefCell::default(),
        })
    }

    fn function(&self, kernel: Kernel) -> Result<Function, Fault> {
        if let Some(function) = self.functions.borrow().get(&kernel) {
            return Ok(*function);
        }
        let function = self.gpu.function(kernel)?;
        self.functions.borrow_mut().insert(kernel, function);
        Ok(function)
    }
}

impl Driver for NvidiaDriver {
    fn name(&self) -> String {
        self.gpu.info.name.clone()
    }

    fn flush(&self) -> Result<(), Fault> {
        self.gpu.bind()?;
        self.hand_over()
    }

    fn rest(&self) -> Result<(), Fault> {
        self.flush()?;
        self.wait_for_graphs()
    }

    fn multiprocessors(&self) -> usize {
        self.gpu.info.multiprocessors as usize
    }

    fn shared_bytes(&self) -> usize {
        self.gpu.info.shared_bytes as usize
    }

    fn cuda_major(&self) -> Option<u32> {
        Some(self.gpu.api.version.0)
    }

    fn multiplies_fp8(&self) -> bool {
        self.gpu.info.capability >= FP8
    }

    fn finish(&self) -> Result<(), Fault> {
        self.flush()?;
        self.wait()
    }

    fn ranks_on_gpu(&self) -> usize {
        self.gpu.ranks.load(Ordering::Relaxed)
    }

    fn processes_on_gpu(&self) -> usize {
        self.gpu.processes.load(Ordering::Relaxed)
    }

    fn free_bytes(&self) -> Option<u64> {
        self.gpu.free_bytes().ok()
    }

    fn graph_bytes(&self) -> u64 {
        self.graphs.as_ref().map_or(0, |graphs| graphs.borrow().all().map(|graph| graph.bytes).sum())
    }

    fn total_bytes(&self) -> Option<u64> {
        Some(self.gpu.info.memory_bytes)
    }

    fn alloc(&self, bytes: usize) -> Result<Address, Fault> {
        self.allocated(bytes, self.has_pool)
    }

    fn has_speed(&self) -> bool {
        true
    }

    fn ordinal(&self) -> Option<u32> {
        Some(self.gpu.info.ordinal)
    }

    fn gpu_number(&self) -> u64 {
        self.gpu.number()
    }

    fn runs_processes_together(&self) -> bool {
        self.gpu.runs_processes_together()
    }

    fn ends_long_kernels(&self) -> bool {
        self.gpu.ends_long_kernels()
    }

    fn open_shared(&self, handle: &[u8]) -> Result<Arc<dyn SharedMemory>, Fault> {
        self.gpu.bind()?;
        shared::opened(&self.gpu, handle)
    }

    fn shared(&self, bytes: usize) -> Result<Arc<dyn SharedMemory>, Fault> {
        shared::of_gpu(&self.gpu, self.allocated(bytes, false)?, bytes)
    }

    fn shared_of_host(&self, bytes: usize) -> Result<Arc<dyn SharedMemory>, Fault> {
        self.gpu.bind()?;
        shared::of_host(&self.gpu, bytes)
    }

    fn reach(&self, ordinal: u32) -> Result<(), Fault> {
        self.gpu.bind()?;
        shared::reach(&self.gpu, ordinal)
    }

    fn free(&self, at: Address) {
        // What was collected may still use it. The driver waits for what is in the stream, also for what never ends.
        let in_stream = || if self.pending.has_calls() { self.pending.wait() } else { Ok(()) };
        if let Err(fault) = self.gpu.bind().and_then(|()| self.hand_over()).and_then(|()| in_stream()) {
            self.late.borrow_mut().get_or_insert(fault);
        }
        if self.pending.is_stuck() {
            return;
        }
        // SAFETY: it was allocated in this way and is freed once.
        unsafe {
            match self.has_pool {
                true => sys::cuMemFreeAsync(at, self.stream),
                false => sys::cuMemFree_v2(at),
            }
        };
    }

    fn write(&self, to: Address, bytes: &[u8]) -> Result<(), Fault> {
        self.gpu.bind()?;
        if self.graphs.is_none() || bytes.len() > MOST_WRITTEN {
            self.hand_over()?;
            return self.stage(to, bytes);
        }
        if self.list.borrow().bytes.len() + bytes.len() > PART_BYTES {
            self.hand_over()?;
        }
        self.list.borrow_mut().write(to, bytes);
        Ok(())
    }

    fn read(&self, from: Address, bytes: &mut [u8]) -> Result<(), Fault> {
        self.gpu.bind()?;
        self.hand_over()?;
        let is_small = bytes.len() <= READ_BYTES;
        if !is_small {
            // A copy to memory that is not pinned waits in the driver, where nobody watches exchanges.
            self.wait()?;
        }
        let to = if is_small { self.results.at(0) } else { bytes.as_mut_ptr() };
        let copied = match bytes.len() {
            0 => Ok(()),
            // SAFETY: whoever asked for it says that there are so many bytes; the host has room for them.
            count => check(unsafe { sys::cuMemcpyDtoHAsync_v2(to.cast(), from, count, self.stream) }),
        };
        // An error of a kernel shows in either.
        self.wait().and(copied)?;
        if is_small {
            // SAFETY: the stream was waited for.
            unsafe { self.results.read(bytes) };
        }
        Ok(())
    }

    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Fault> {
        self.add(Work::Copy { from, to, bytes })
    }

    fn launch(&self, kernel: Kernel, grid: Grid, arguments: &Arguments) -> Result<(), Fault> {
        let (count, _) = self.kernels.get();
        self.kernels.set((count + 1, Some(kernel)));
        if self.functions.borrow().get(&kernel).is_none() {
            self.gpu.bind()?;
        }
        let function = self.function(kernel)?;
        self.add(Work::Launch { function, kernel, grid, arguments: *arguments })
    }

    fn mark(&self) -> Result<Mark, Fault> {
        self.gpu.bind()?;
        // What it makes into graphs may have marks.
        let idle = || self.hand_over().and_then(|()| self.wait_named());
        let number = self.events.borrow_mut().next(self.stream, idle)?;
        self.add(Work::Mark(number))?;
        Ok(Mark::Pending(number))
    }

    fn moments(&self) -> Result<Vec<Instant>, Fault> {
        self.finish()?;
        self.events.borrow_mut().moments()
    }

    fn prepare(&self, files: &[&'static str]) -> Result<(), Fault> {
        self.gpu.load(files)
    }

    fn takes_calls(&self) -> bool {
        true
    }

    fn call(&self, call: Rc<dyn Foreign>) -> Result<(), Fault> {
        let words = call.words();
        let is_exchange = words.is_none();
        if let (Some(words), Some(_)) = (words, &self.graphs) {
            self.list.borrow_mut().call(call, words);
            return self.bound();
        }
        self.gpu.bind()?;
        self.hand_over()?;
        if is_exchange {
            self.pending.add(call.clone());
        }
        let _gate = gate::open();
        call.enqueue(self.stream.cast())
    }

    fn bind(&self) -> Result<(), Fault> {
        self.gpu.bind()
    }

    fn has_pool(&self) -> bool {
        self.has_pool
    }

    fn meets_others(&self) {
        gate::add(self.own_stream());
    }
}

impl NvidiaDriver {
    fn add(&self, work: Work<Function>) -> Result<(), Fault> {
        if self.graphs.is_none() {
            self.pending.check()?;
            self.gpu.bind()?;
            let _gate = gate::open();
            return self.enqueue(&work, &self.list.borrow(), null_mut());
        }
        self.list.borrow_mut().work.push(work);
        self.bound()
    }

    /// No list becomes longer than any that comes again.
    fn bound(&self) -> Result<(), Fault> {
        if self.list.borrow().work.len() >= MOST_WORK {
            self.gpu.bind()?;
            self.hand_over()?;
        }
        Ok(())
    }
}

impl Drop for NvidiaDriver {
    fn drop(&mut self) {
        // What can't be given back is gone with the process. All that is given back by the fields is used no more.
        self.gpu.bind().and_then(|()| self.wait_named()).ok();
        if self.pending.is_stuck() {
            // All that the stream's work may use stays where it is.
            self.results.leave();
            self.written.leave();
            self.staging.get_mut().leave();
            mem::forget((self.graphs.take(), self.gpu.clone()));
            return;
        }
        self.leave_graphs();
        gate::remove(self.own_stream());
        // SAFETY: it was created and is destroyed once.
        unsafe { sys::cuStreamDestroy_v2(self.stream) };
    }
}
