//! When graphs are made and destroyed: while no other rank of the process has work under way.
//!
//! Ranks of a process are threads whose kernels wait for each other. While a graph is made or destroyed the driver may wait for all that
//! runs, or hold what a launch needs: a kernel that waits for this rank would then keep it from ever coming. So whatever puts work into a
//! stream that may wait holds the gate open, and graphs are made behind a gate that is closed, when all other streams are found to have
//! nothing to do. Who launches shares the gate with others who do, and nobody waits to close it, so that no launch waits for another one,
//! which may itself wait for room in its queue. With one rank there are no others, and the gate costs two atomic operations per list.

use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUcontext, CUresult, CUstream};

/// How long each of the other ranks is waited for where all end their work at about the same time: one may be making its own graphs.
const MOMENT: Duration = Duration::from_millis(2);
/// How long it is waited for between two looks.
const PAUSE: Duration = Duration::from_micros(50);

static GATE: RwLock<()> = RwLock::new(());
/// The streams of all ranks of the process that exchange something on GPUs: others, as of replicas that have a GPU each, wait for nobody.
static STREAMS: Mutex<Vec<Stream>> = Mutex::new(Vec::new());

/// A rank's stream, and the context that it is of.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Stream {
    pub stream: CUstream,
    pub context: CUcontext,
}

// SAFETY: streams and contexts may be used from any thread of the process.
unsafe impl Send for Stream {}

fn streams() -> MutexGuard<'static, Vec<Stream>> {
    STREAMS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A stream in which work may wait for other ranks', at which they look from now on, as long as it is there.
pub(super) fn add(stream: Stream) {
    let mut streams = streams();
    if !streams.contains(&stream) {
        streams.push(stream);
    }
}

/// A stream that nobody looks at any more.
pub(super) fn remove(stream: Stream) {
    streams().retain(|other| *other != stream);
}

/// Keeps the gate open while work is put into a stream.
pub(super) fn open() -> RwLockReadGuard<'static, ()> {
    GATE.read().unwrap_or_else(PoisonError::into_inner)
}

/// How long others are waited for at least.
pub(super) fn moment() -> Duration {
    MOMENT * u32::try_from(streams().len()).unwrap_or(u32::MAX)
}

/// Does what waits for all that runs, if all streams but this rank's have nothing to do within that time. `own` is of the current context.
pub(super) fn alone<R>(own: Stream, patience: Duration, work: impl FnOnce() -> R) -> Option<R> {
    let began = Instant::now();
    loop {
        let closed = match GATE.try_write() {
            Ok(closed) => Some(closed),
            Err(TryLockError::Poisoned(closed)) => Some(closed.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        };
        if closed.is_some() && others_are_idle(own) {
            return Some(work());
        }
        drop(closed);
        if began.elapsed() >= patience {
            return None;
        }
        thread::sleep(PAUSE);
    }
}

fn others_are_idle(own: Stream) -> bool {
    let streams = streams();
    let mut others = streams.iter().filter(|other| **other != own).peekable();
    if others.peek().is_none() {
        return true;
    }
    // SAFETY: streams that are looked at are there, and so are their contexts.
    let is_idle = |other: &Stream| unsafe {
        sys::cuCtxSetCurrent(other.context) == CUresult::CUDA_SUCCESS
            && sys::cuStreamQuery(other.stream) == CUresult::CUDA_SUCCESS
    };
    let are_idle = others.all(is_idle);
    // SAFETY: it was current before.
    let is_back = unsafe { sys::cuCtxSetCurrent(own.context) } == CUresult::CUDA_SUCCESS;
    are_idle && is_back
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn stream(number: usize) -> Stream {
        Stream { stream: number as CUstream, context: number as CUcontext }
    }

    #[test]
    fn nobody_is_alone_while_somebody_launches_and_no_launch_waits_for_another() {
        let own = stream(64);
        assert_eq!(alone(own, Duration::ZERO, || 7), Some(7));
        let (launching, launched) = (open(), mpsc::channel());
        thread::scope(|scope| {
            let made = scope.spawn(move || alone(own, Duration::from_millis(20), || ()));
            // Who wants to be alone is there all the time.
            for _ in 0..20 {
                scope.spawn(|| drop((open(), launched.0.clone().send(()).expect("somebody hears"))));
                launched.1.recv_timeout(Duration::from_secs(10)).expect("it launches");
            }
            assert_eq!(made.join().expect("a thread"), None);
        });
        drop(launching);
        assert_eq!(alone(own, Duration::ZERO, || 7), Some(7));
    }
}
