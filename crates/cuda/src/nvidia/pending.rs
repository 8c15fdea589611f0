//! Waiting for a stream in which ranks exchange by another library: for as long as its calls say that they will end.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUresult, CUstream};

use super::api::check;
use crate::driver::{Fault, Foreign};

/// How often calls are asked whether they will end.
const ASKED_EVERY: Duration = Duration::from_millis(1);
/// Until then whoever waits does nothing else.
const SPINS_FOR: Duration = Duration::from_micros(500);
/// How long calls that were aborted have to end.
const GRACE: Duration = Duration::from_secs(5);

/// A stream, and what is known of the work in it.
pub(super) struct Pending {
    stream: CUstream,
    /// Exchanges since the stream was last waited for.
    calls: RefCell<Vec<Rc<dyn Foreign>>>,
    /// Why nothing more is done: calls were aborted, so what lies in memory is not what was asked for.
    lost: RefCell<Option<Fault>>,
    /// Calls that were aborted did not even end by that.
    is_stuck: Cell<bool>,
}

impl Pending {
    pub fn new(stream: CUstream) -> Self {
        Pending { stream, calls: RefCell::default(), lost: RefCell::default(), is_stuck: Cell::new(false) }
    }

    /// An exchange that is put into the stream now.
    pub fn add(&self, call: Rc<dyn Foreign>) {
        self.calls.borrow_mut().push(call);
    }

    /// Whether an exchange may be under way.
    pub fn has_calls(&self) -> bool {
        !self.calls.borrow().is_empty()
    }

    /// Whether the stream can go on.
    ///
    /// # Errors
    /// Calls were aborted, as it was told when they were.
    pub fn check(&self) -> Result<(), Fault> {
        self.lost.borrow().clone().map_or(Ok(()), Err)
    }

    /// Whether work is in the stream that nobody may wait for. All that it uses has to stay.
    pub fn is_stuck(&self) -> bool {
        self.is_stuck.get()
    }

    /// Returns when all work is done.
    ///
    /// # Errors
    /// Whatever the GPU met; or calls had to be aborted, now or before.
    pub fn wait(&self) -> Result<(), Fault> {
        self.check()?;
        if !self.has_calls() {
            // SAFETY: the stream is there.
            return check(unsafe { sys::cuStreamSynchronize(self.stream) });
        }
        let began = Instant::now();
        let mut asked = began;
        while !self.is_done()? {
            let now = Instant::now();
            if now - asked >= ASKED_EVERY {
                asked = now;
                let ask = |call: &Rc<dyn Foreign>| call.watch(now - began);
                let asked = self.calls.borrow().iter().try_for_each(ask);
                asked.map_err(|why| self.give_up(&why))?;
            }
            match now - began < SPINS_FOR {
                true => std::hint::spin_loop(),
                false => thread::yield_now(),
            }
        }
        self.calls.borrow_mut().clear();
        Ok(())
    }

    fn is_done(&self) -> Result<bool, Fault> {
        // SAFETY: the stream is there.
        match unsafe { sys::cuStreamQuery(self.stream) } {
            CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check(result).map(|()| true),
        }
    }

    /// Aborts all calls, and gives their GPU a moment to end them.
    fn give_up(&self, why: &Fault) -> Fault {
        let calls = self.calls.take();
        calls.iter().for_each(|call| call.abort());
        let which = match &calls[..] {
            [first, .., last] => format!("one of {} calls from {first} to {last}", calls.len()),
            [one] => one.to_string(),
            [] => unreachable!("only calls give up"),
        };
        let fault = Fault(format!("{which}: {why}"));
        self.lost.replace(Some(fault.clone()));
        let began = Instant::now();
        while matches!(self.is_done(), Ok(false)) {
            if began.elapsed() > GRACE {
                self.is_stuck.set(true);
                break;
            }
            thread::yield_now();
        }
        fault
    }
}
