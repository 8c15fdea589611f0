//! A list of work as one thing that a GPU runs by itself.

use std::ptr::null_mut;
use std::rc::Rc;

use cudarc::driver::sys::{self, CUgraphExec, CUstream, CUstreamCaptureMode};

use super::api::check;
use super::pinned::{PinnedPart, PinnedPool};
use crate::driver::{Fault, Foreign};

/// A captured list, with host memory of its own for what it writes each time. It is not dropped while a launch is under way, which
/// reads that.
pub(crate) struct Graph {
    stream: CUstream,
    executable: CUgraphExec,
    written: PinnedPart,
    /// Which of the waits for the stream came before the last launch.
    launched: u64,
    /// What it takes of the GPU's memory.
    pub bytes: u64,
    /// Whose work is in it: what they are of must stay for as long as it does.
    _foreign: Vec<Rc<dyn Foreign>>,
}

impl Graph {
    /// Captures what `enqueue` puts into a stream, which does not run by that. It gets a place in the host's memory for as many
    /// bytes as there are to be written. Among it are these calls of other libraries. No other rank has work under way ([`super::gate`]),
    /// nor when it is dropped.
    pub fn capture(
        stream: CUstream,
        pinned: &Rc<PinnedPool>,
        bytes: usize,
        foreign: Vec<Rc<dyn Foreign>>,
        enqueue: impl FnOnce(*mut u8) -> Result<(), Fault>,
    ) -> Result<Self, Fault> {
        let written = pinned.part(bytes)?;
        let free = free_bytes();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is of this thread alone.
        check(unsafe { sys::cuStreamBeginCapture_v2(stream, mode) })?;
        let enqueued = enqueue(written.start());
        let mut graph = null_mut();
        // SAFETY: it writes one pointer. What was begun is ended, whatever came between.
        let ended = check(unsafe { sys::cuStreamEndCapture(stream, &mut graph) });
        let mut executable = null_mut();
        let made = enqueued.and(ended).and_then(|()| {
            // SAFETY: it writes one pointer; the graph is whole.
            check(unsafe { sys::cuGraphInstantiateWithFlags(&mut executable, graph, 0) })
        });
        if !graph.is_null() {
            // SAFETY: what was made of it does not need it.
            unsafe { sys::cuGraphDestroy(graph) };
        }
        made?;
        let mut graph =
            Graph { stream, executable, written, launched: u64::MAX, bytes: 0, _foreign: foreign };
        // Else its first launch does, which may wait for what runs as well.
        // SAFETY: it was instantiated.
        check(unsafe { sys::cuGraphUpload(executable, stream) })?;
        graph.bytes = free.saturating_sub(free_bytes());
        Ok(graph)
    }

    /// Whether the launch before may still read what it is to write. `waits` counts how often the stream was waited for.
    pub fn may_be_under_way(&self, waits: u64) -> bool {
        self.launched == waits
    }

    /// Runs it, behind all work so far, with these bytes to be written. It is not under way.
    pub fn launch(&mut self, bytes: &[u8], waits: u64) -> Result<(), Fault> {
        self.launched = waits;
        // SAFETY: no launch is under way, so no GPU reads there.
        unsafe { self.written.write(bytes) };
        // SAFETY: the graph and all it refers to are there until the stream has been waited for.
        check(unsafe { sys::cuGraphLaunch(self.executable, self.stream) })
    }
}

/// Of the current context's GPU; 0 if that can't be known.
fn free_bytes() -> u64 {
    let (mut free, mut total) = (0, 0);
    // SAFETY: it writes two numbers.
    unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) };
    free as u64
}

impl Graph {
    /// Leaves it to its context, which destroys it at its end.
    pub fn leave(&mut self) {
        self.executable = null_mut();
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.executable.is_null() {
            return;
        }
        // SAFETY: it was instantiated and is destroyed once.
        unsafe { sys::cuGraphExecDestroy(self.executable) };
    }
}
