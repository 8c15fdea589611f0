//! Lists of work on their way to a rank's stream: piece by piece, or as graphs.

use std::mem;
use std::ptr::null_mut;
use std::time::{Duration, Instant};

use cudarc::driver::sys;

use super::api::check;
use super::driver::NvidiaDriver;
use super::faults::told;
use super::gate::{self, Stream};
use super::gpu::Function;
use super::graph::Graph;
use crate::driver::{Address, Fault};
use crate::nvtx::Ranges;
use crate::step_graphs::{StepGraphs, Way};
use crate::work::{Work, WorkList};

/// A rank that never reads waits for others' work for as long as for so many times its own, which is what stages behind it take, and no
/// longer than that.
const TIMES_OWN: u32 = 4;
const MOST_PATIENCE: Duration = Duration::from_millis(100);
/// How long a rank that ends waits for others' work, to destroy its graphs.
const LAST_PATIENCE: Duration = Duration::from_secs(1);

/// A list that ran and is to be a graph: all but what it wrote, of which only the size counts.
pub(super) struct Remembered {
    list: WorkList<Function>,
    bytes: usize,
}

impl NvidiaDriver {
    /// Hands collected work to the GPU. It is current.
    pub(super) fn hand_over(&self) -> Result<(), Fault> {
        self.pending.check()?;
        if let Some(fault) = self.late.borrow_mut().take() {
            return Err(fault);
        }
        let list = &mut *self.list.borrow_mut();
        let Some(graphs) = self.graphs.as_ref().filter(|_| !list.work.is_empty()) else { return Ok(()) };
        let name = || format!("launch {}", list.work.len());
        let number = list.number();
        let ran = Ranges::around(self.ranges, name, || self.run(number, list, &mut graphs.borrow_mut()));
        if let Ok(true) = ran {
            let mut list = mem::replace(list, WorkList::new());
            let bytes = mem::take(&mut list.bytes).len();
            graphs.borrow_mut().remember(number, Remembered { list, bytes });
        }
        list.clear();
        ran.map(drop)
    }

    /// Whether it is to be remembered.
    fn run(
        &self,
        number: u128,
        list: &WorkList<Function>,
        graphs: &mut StepGraphs<Graph, Remembered>,
    ) -> Result<bool, Fault> {
        let _gate = gate::open();
        let is_remembered = match graphs.way(number, list.work.len()) {
            Way::Eager => false,
            Way::Remember => true,
            Way::Replay(graph) => {
                if graph.may_be_under_way(self.waits.get()) {
                    self.wait_for_earlier()?;
                }
                return graph.launch(&list.bytes, self.waits.get()).map(|()| false);
            }
        };
        for work in &list.work {
            match *work {
                Work::Write { to, from, bytes } => self.stage(to, &list.bytes[from..from + bytes])?,
                _ => self.enqueue(work, list, null_mut())?,
            }
        }
        Ok(is_remembered)
    }

    /// Puts work of a list into the stream. What is to be written lies from `written` on and stays there until it has been.
    pub(super) fn enqueue(
        &self,
        work: &Work<Function>,
        list: &WorkList<Function>,
        written: *mut u8,
    ) -> Result<(), Fault> {
        match work {
            Work::Launch { function, kernel, grid, arguments } => function
                .start(grid, arguments, self.stream)
                .map_err(|Fault(error)| told(*kernel, *grid, &error)),
            // SAFETY: whoever asked for it says that the places are of so many bytes; the host's are pinned.
            Work::Write { to, from, bytes } => check(unsafe {
                sys::cuMemcpyHtoDAsync_v2(*to, written.wrapping_add(*from).cast(), *bytes, self.stream)
            }),
            Work::Copy { from, to, bytes } => {
                // SAFETY: see above.
                check(unsafe { sys::cuMemcpyDtoDAsync_v2(*to, *from, *bytes, self.stream) })
            }
            Work::Call(number) => list.foreign[*number].0.enqueue(self.stream.cast()),
            Work::Mark(number) => self.events.borrow().record(*number, self.stream, self.captures.get()),
        }
    }

    /// Writes bytes by way of pinned memory.
    pub(super) fn stage(&self, to: Address, bytes: &[u8]) -> Result<(), Fault> {
        self.staging.borrow_mut().write(&self.pending, self.stream, to, bytes)
    }

    pub(super) fn own_stream(&self) -> Stream {
        Stream { stream: self.stream, context: self.gpu.context() }
    }

    /// Waits for the stream. What then is to be a graph becomes one.
    pub(super) fn wait(&self) -> Result<(), Fault> {
        self.wait_named()?;
        self.make_graphs(gate::moment);
        Ok(())
    }

    /// Waits for the stream if something is to be a graph and nobody waits otherwise, as in the first stages of a pipeline.
    pub(super) fn wait_for_graphs(&self) -> Result<(), Fault> {
        if self.graphs.as_ref().is_some_and(|graphs| graphs.borrow().is_never_waited_for()) {
            let began = Instant::now();
            self.wait_named()?;
            let own = began.elapsed();
            self.make_graphs(|| (TIMES_OWN * own).min(MOST_PATIENCE).max(gate::moment()));
        }
        Ok(())
    }

    /// Makes graphs of what was remembered, and drops those that made room for others, unless other ranks have work under way for longer
    /// than that. The stream was waited for.
    fn make_graphs(&self, patience: impl FnOnce() -> Duration) {
        let Some(graphs) = &self.graphs else { return };
        let graphs = &mut *graphs.borrow_mut();
        let (mut wanted, is_worth_a_wait) = graphs.waited();
        if wanted.is_empty() && !graphs.has_left() {
            return;
        }
        let patience = if is_worth_a_wait { patience() } else { Duration::ZERO };
        gate::alone(self.own_stream(), patience, || {
            graphs.drop_left();
            for (number, remembered) in wanted.drain(..) {
                if let Ok(graph) = self.captured(remembered) {
                    graphs.keep(number, graph);
                }
            }
        });
        graphs.put_back(wanted);
    }

    fn captured(&self, Remembered { list, bytes }: Remembered) -> Result<Graph, Fault> {
        let capture = |written| list.work.iter().try_for_each(|work| self.enqueue(work, &list, written));
        let foreign = list.foreign.iter().map(|(call, _)| call.clone()).collect();
        self.captures.set(true);
        let captured = Graph::capture(self.stream, &self.written, bytes, foreign, capture);
        self.captures.set(false);
        captured
    }

    /// Destroys all graphs, or leaves them to their context if other ranks have work under way. The stream was waited for.
    pub(super) fn leave_graphs(&mut self) {
        let Some(graphs) = self.graphs.take() else { return };
        let mut graphs: Vec<Graph> = graphs.into_inner().into_all().collect();
        if !graphs.is_empty() && gate::alone(self.own_stream(), LAST_PATIENCE, || graphs.clear()).is_none() {
            graphs.iter_mut().for_each(Graph::leave);
        }
    }

    /// Waits for all that was launched before the list at hand, whose kernels are still to be named.
    fn wait_for_earlier(&self) -> Result<(), Fault> {
        let kernels = self.kernels.get();
        self.wait_named()?;
        self.kernels.set(kernels);
        Ok(())
    }

    /// Waits for the stream's work; a fault names the kernel that it is in.
    pub(super) fn wait_named(&self) -> Result<(), Fault> {
        let (count, last) = self.kernels.replace((0, None));
        self.waits.set(self.waits.get() + 1);
        self.pending.check()?;
        self.pending.wait().map_err(|Fault(error)| match last {
            // Exchanges say themselves what they are.
            _ if self.pending.check().is_err() => Fault(error),
            Some(last) if count > 1 => Fault(format!(
                "{error}, in one of {count} kernels up to {last}; with CUDA_LAUNCH_BLOCKING=1 and --enforce-eager it is the one \
                 that is named"
            )),
            Some(last) => Fault(format!("{error}, in kernel {last}")),
            None => Fault(error),
        })
    }
}
