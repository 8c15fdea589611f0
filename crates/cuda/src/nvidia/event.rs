//! One event of the driver.

use std::ptr::null_mut;

use cudarc::driver::sys::{self, CUevent, CUevent_flags_enum, CUevent_record_flags_enum, CUstream};

use super::api::check;
use crate::driver::Fault;

/// Destroyed with its owner, also while it is in a stream.
pub(super) struct Event(CUevent);

impl Event {
    /// One that has a time.
    pub fn timed() -> Result<Self, Fault> {
        Event::new(CUevent_flags_enum::CU_EVENT_DEFAULT)
    }

    /// One that only says whether it was reached.
    pub fn untimed() -> Result<Self, Fault> {
        Event::new(CUevent_flags_enum::CU_EVENT_DISABLE_TIMING)
    }

    fn new(flags: CUevent_flags_enum) -> Result<Self, Fault> {
        let mut event = null_mut();
        // SAFETY: it writes one pointer.
        check(unsafe { sys::cuEventCreate(&mut event, flags as u32) })?;
        Ok(Event(event))
    }

    pub fn raw(&self) -> CUevent {
        self.0
    }

    /// Puts it behind a stream's work.
    pub fn record(&self, stream: CUstream) -> Result<(), Fault> {
        self.record_as(stream, CUevent_record_flags_enum::CU_EVENT_RECORD_DEFAULT)
    }

    pub fn record_as(&self, stream: CUstream, flags: CUevent_record_flags_enum) -> Result<(), Fault> {
        // SAFETY: the event and the stream are there.
        check(unsafe { sys::cuEventRecordWithFlags(self.0, stream, flags as u32) })
    }

    /// Returns when it was reached; at once if it was never recorded.
    pub fn wait(&self) -> Result<(), Fault> {
        // SAFETY: the event is there.
        check(unsafe { sys::cuEventSynchronize(self.0) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: it was created and is destroyed once.
        unsafe { sys::cuEventDestroy_v2(self.0) };
    }
}
