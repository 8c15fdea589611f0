//! A rank's end of a communicator. Everything that is asked of the library returns at once, and whoever waits gives up after a while:
//! nothing that another rank does or leaves out holds this one up for longer.

use std::ffi::c_void;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use collective::Watched;

use super::api::{Handle, ID_BYTES, Nccl, Progress, Transfer};
use crate::driver::Fault;

/// How long whoever waits for the library does nothing else.
const SPINS_FOR: Duration = Duration::from_micros(500);
/// What bringing a communicator to its end together may take: nobody waits for what it would give.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What a rank exchanges by. It is given back when it is dropped.
pub(super) struct Communicator {
    nccl: Arc<Nccl>,
    /// This rank.
    pub rank: usize,
    deadline: Duration,
    /// The group by which the ranks found each other: it knows when one of them has failed, and tells the others.
    watched: Arc<dyn Watched>,
    state: Mutex<State>,
}

struct State {
    handle: Handle,
    /// Why it can't be used any more.
    lost: Option<Fault>,
}

// SAFETY: a communicator may be used from any thread, by one at a time.
unsafe impl Send for State {}

impl Communicator {
    /// A rank's end of the communicator with an id, on the GPU of the calling thread. All ranks call it.
    ///
    /// # Errors
    /// What the library says, or that it took longer than `patience`.
    pub fn new(
        nccl: Arc<Nccl>,
        id: [u8; ID_BYTES],
        (rank, ranks): (usize, usize),
        watched: Arc<dyn Watched>,
        deadline: Duration,
        patience: Duration,
    ) -> Result<Self, Fault> {
        let handle = nccl.begin(id, rank, ranks)?;
        let state = Mutex::new(State { handle, lost: None });
        let communicator = Communicator { nccl, rank, deadline, watched, state };
        let mut state = communicator.state();
        if let Err(Fault(why)) = communicator.settle(&state, patience) {
            let fault = Fault(format!("no communicator of NCCL: {why}"));
            communicator.give_up(&mut state, fault.clone());
            return Err(fault);
        }
        drop(state);
        Ok(communicator)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until the library has done what it began.
    fn settle(&self, state: &State, deadline: Duration) -> Result<(), Fault> {
        // SAFETY: it is there.
        unsafe { settle(&self.nccl, state.handle, &*self.watched, deadline) }
    }

    /// Puts transfers into a stream, together. `name` is what errors call them.
    ///
    /// # Errors
    /// What the library says, or that it took too long; the communicator is aborted then.
    pub fn enqueue(&self, transfers: &[Transfer], stream: *mut c_void) -> Result<(), Fault> {
        let mut state = self.state();
        state.lost.clone().map_or(Ok(()), Err)?;
        // SAFETY: it is there, and made progress with all before; whoever has memory waits for the stream before giving it back.
        let begun = unsafe { self.nccl.enqueue(state.handle, transfers, stream) };
        let done = begun.and_then(|()| self.settle(&state, self.deadline));
        done.inspect_err(|fault| self.give_up(&mut state, fault.clone()))
    }

    /// Whether what is under way will end, if somebody has waited for it for so long.
    ///
    /// # Errors
    /// The library or another rank says that it won't; or it has been too long.
    pub fn watch(&self, waited: Duration) -> Result<(), Fault> {
        let state = self.state();
        state.lost.clone().map_or(Ok(()), Err)?;
        // SAFETY: it is there.
        unsafe { self.nccl.progress(state.handle) }?;
        watch_group(&*self.watched, waited, self.deadline)
    }

    /// Tells all ranks that this one can't go on, unless they know of a failure already.
    pub fn tell(&self, why: &str) {
        self.watched.abort(self.rank, why);
    }

    /// Ends all that is under way.
    pub fn abort(&self) {
        self.give_up(&mut self.state(), Fault("its communicator was aborted".into()));
    }

    fn give_up(&self, state: &mut State, why: Fault) {
        if state.lost.replace(why).is_none() {
            let (nccl, abandoned) = (self.nccl.clone(), Abandoned(state.handle));
            // What is under way ends at once; giving all back waits for it, which nobody here does.
            // SAFETY: whoever has the state finds that it is lost.
            thread::spawn(move || unsafe { nccl.abort(abandoned.handle()) });
        }
    }
}

/// A communicator that is nobody's any more.
struct Abandoned(Handle);

// SAFETY: see `State`.
unsafe impl Send for Abandoned {}

impl Abandoned {
    fn handle(self) -> Handle {
        self.0
    }
}

/// Waits until the library has done what it began.
///
/// # Safety
/// The communicator is there.
unsafe fn settle(
    nccl: &Nccl,
    handle: Handle,
    watched: &dyn Watched,
    deadline: Duration,
) -> Result<(), Fault> {
    let began = Instant::now();
    // SAFETY: the caller promises it.
    while unsafe { nccl.progress(handle) }? == Progress::UnderWay {
        let waited = began.elapsed();
        watch_group(watched, waited, deadline)?;
        match waited < SPINS_FOR {
            true => std::hint::spin_loop(),
            false => thread::yield_now(),
        }
    }
    Ok(())
}

/// Whether waiting makes sense.
fn watch_group(watched: &dyn Watched, waited: Duration, deadline: Duration) -> Result<(), Fault> {
    watched.check().map_err(|error| Fault(error.to_string()))?;
    if waited < deadline {
        return Ok(());
    }
    let seconds = deadline.as_secs_f64();
    Err(Fault(format!("not done within {seconds} s, and no rank has said why; it is aborted")))
}

/// Brings a communicator to its end together with the other ranks, or alone if they don't come.
///
/// # Safety
/// It is there, and nobody else uses it any more.
unsafe fn end(nccl: &Nccl, handle: Handle, watched: &dyn Watched, deadline: Duration) {
    // SAFETY: the caller promises it.
    unsafe {
        let ended = nccl.finalize(handle).and_then(|()| settle(nccl, handle, watched, deadline));
        match ended {
            Ok(()) => nccl.destroy(handle),
            Err(_) => nccl.abort(handle),
        }
    }
}

impl Drop for Communicator {
    fn drop(&mut self) {
        let state = self.state();
        if state.lost.is_some() {
            return;
        }
        let (nccl, watched, abandoned) = (self.nccl.clone(), self.watched.clone(), Abandoned(state.handle));
        let (patience, (ended, all)) = (self.deadline.min(LAST_WAIT), mpsc::channel::<()>());
        // None of the library's calls is sure to return: whoever goes on without them leaves that to the thread.
        thread::spawn(move || {
            // SAFETY: who drops it was the last to have it.
            unsafe { end(&nccl, abandoned.handle(), &*watched, patience) };
            drop(ended);
        });
        // It ends by the sender that is dropped, or by the time.
        all.recv_timeout(patience).ok();
    }
}
