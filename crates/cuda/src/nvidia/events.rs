//! Marks of a stream as events, whose moments are told by the host's clock.
//!
//! A step's marks have the same events in every step, so a list of work with marks is the same list again and can be a graph.

use std::ptr::null_mut;
use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUevent, CUresult, CUstream};

use super::api::{Api, check};
use crate::driver::Fault;

/// The GPU's clock is compared with the host's again after so long: the driver tells times between events as floats.
const FRESH: Duration = Duration::from_secs(1);

/// What tells the milliseconds between two events. Drivers have it by two names.
pub(super) type Elapsed = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;

/// The events of one stream.
pub(super) struct Events {
    api: Api,
    /// By the numbers of marks.
    all: Vec<CUevent>,
    used: usize,
    base: Option<Base>,
}

/// An event whose moment is known.
struct Base {
    event: CUevent,
    at: Instant,
}

impl Events {
    pub fn new(api: Api) -> Self {
        Events { api, all: Vec::new(), used: 0, base: None }
    }

    /// Whether the next mark is the first and the clocks have to be compared before.
    fn is_stale(&self) -> bool {
        self.used == 0 && self.base.as_ref().is_none_or(|base| base.at.elapsed() > FRESH)
    }

    /// Compares clocks. The stream has nothing to do.
    fn compare(&mut self, stream: CUstream) -> Result<(), Fault> {
        let event = match self.base.take() {
            Some(base) => base.event,
            None => event()?,
        };
        let before = Instant::now();
        // SAFETY: the event and the stream are there.
        let done = check(unsafe { sys::cuEventRecord(event, stream) })
            // SAFETY: see above.
            .and_then(|()| check(unsafe { sys::cuEventSynchronize(event) }));
        // In the middle: the event was between the two moments.
        self.base = Some(Base { event, at: before + before.elapsed() / 2 });
        done
    }

    /// The next mark: its number. `idle` waits until the stream has nothing to do.
    pub fn next(
        &mut self,
        stream: CUstream,
        idle: impl FnOnce() -> Result<(), Fault>,
    ) -> Result<usize, Fault> {
        if self.is_stale() {
            idle()?;
            self.compare(stream)?;
        }
        if self.used == self.all.len() {
            self.all.push(event()?);
        }
        self.used += 1;
        Ok(self.used - 1)
    }

    /// Puts a mark into a stream, or, of a stream that is captured, into the graph.
    pub fn record(&self, number: usize, stream: CUstream, is_captured: bool) -> Result<(), Fault> {
        use sys::CUevent_record_flags_enum::{CU_EVENT_RECORD_DEFAULT, CU_EVENT_RECORD_EXTERNAL};
        let flags = if is_captured { CU_EVENT_RECORD_EXTERNAL } else { CU_EVENT_RECORD_DEFAULT };
        // SAFETY: the event and the stream are there; events outlive the graphs in which they are.
        check(unsafe { sys::cuEventRecordWithFlags(self.all[number], stream, flags as u32) })
    }

    /// The moments of all marks, which are in the past, and begins anew.
    pub fn moments(&mut self) -> Result<Vec<Instant>, Fault> {
        let used = std::mem::take(&mut self.used);
        let Some(base) = &self.base else { return Ok(Vec::new()) };
        let moment = |&event: &CUevent| {
            let mut ms = 0.0;
            // SAFETY: it writes one number; the events are there.
            check(unsafe { (self.api.elapsed)(&mut ms, base.event, event) })?;
            Ok(base.at + Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
        };
        self.all[..used].iter().map(moment).collect()
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        for event in self.all.drain(..).chain(self.base.take().map(|base| base.event)) {
            // SAFETY: it was created and is destroyed once.
            unsafe { sys::cuEventDestroy_v2(event) };
        }
    }
}

/// One that has a time.
fn event() -> Result<CUevent, Fault> {
    let mut event = null_mut();
    // SAFETY: it writes one pointer.
    check(unsafe { sys::cuEventCreate(&mut event, sys::CUevent_flags_enum::CU_EVENT_DEFAULT as u32) })?;
    Ok(event)
}
