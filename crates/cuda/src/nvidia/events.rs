//! Marks of a stream as events, whose moments are told by the host's clock.
//!
//! A step's marks have the same events in every step, so a list of work with marks is the same list again and can be a graph.

use std::time::{Duration, Instant};

use cudarc::driver::sys::{self, CUevent, CUresult, CUstream};

use super::api::{Api, check};
use super::event::Event;
use crate::driver::Fault;

/// The GPU's clock is compared with the host's again after so long: the driver tells times between events as floats.
const FRESH: Duration = Duration::from_secs(1);

/// Clocks are compared to this, if a machine that does other things lets it in so many times.
const NARROW: Duration = Duration::from_micros(50);
const MOST_COMPARED: usize = 8;

/// What tells the milliseconds between two events. Drivers have it by two names.
pub(super) type Elapsed = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> CUresult;

/// The events of one stream.
pub(super) struct Events {
    api: Api,
    /// By the numbers of marks.
    all: Vec<Event>,
    used: usize,
    base: Option<Base>,
}

/// An event whose moment is known.
struct Base {
    event: Event,
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

    /// Compares clocks, again if a thread was stopped in between. The stream has nothing to do.
    fn compare(&mut self, stream: CUstream) -> Result<(), Fault> {
        let mut best: Option<(Duration, Base)> = None;
        for _ in 0..MOST_COMPARED {
            let (event, before) = (Event::timed()?, Instant::now());
            event.record(stream)?;
            event.wait()?;
            let took = before.elapsed();
            if best.as_ref().is_none_or(|(least, _)| took < *least) {
                // In the middle: the event was between the two moments.
                best = Some((took, Base { event, at: before + took / 2 }));
            }
            if took < NARROW {
                break;
            }
        }
        self.base = best.map(|(_, base)| base);
        Ok(())
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
            self.all.push(Event::timed()?);
        }
        self.used += 1;
        Ok(self.used - 1)
    }

    /// Puts a mark into a stream, or, of a stream that is captured, into the graph.
    pub fn record(&self, number: usize, stream: CUstream, is_captured: bool) -> Result<(), Fault> {
        use sys::CUevent_record_flags_enum::{CU_EVENT_RECORD_DEFAULT, CU_EVENT_RECORD_EXTERNAL};
        let flags = if is_captured { CU_EVENT_RECORD_EXTERNAL } else { CU_EVENT_RECORD_DEFAULT };
        // Events outlive the graphs in which they are.
        self.all[number].record_as(stream, flags)
    }

    /// The moments of all marks, which are in the past, and begins anew.
    pub fn moments(&mut self) -> Result<Vec<Instant>, Fault> {
        let used = std::mem::take(&mut self.used);
        let Some(base) = &self.base else { return Ok(Vec::new()) };
        let moment = |event: &Event| {
            let mut ms = 0.0;
            // SAFETY: it writes one number; the events are there.
            check(unsafe { (self.api.elapsed)(&mut ms, base.event.raw(), event.raw()) })?;
            Ok(base.at + Duration::from_secs_f64(f64::from(ms.max(0.0)) / 1e3))
        };
        self.all[..used].iter().map(moment).collect()
    }
}
