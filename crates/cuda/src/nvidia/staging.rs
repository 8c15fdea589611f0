//! Host memory through which bytes go to the GPU.

use cudarc::driver::sys::{self, CUstream};

use super::api::check;
use super::event::Event;
use super::pending::Pending;
use super::pinned::Pinned;
use crate::driver::{Address, Fault};
use crate::ring::{Place, Ring};

/// It is pinned, because a copy from other host memory waits for all the stream's work first; it is a ring, because such a copy reads
/// its bytes later. Large enough for a weight to be copied into one part while the GPU reads others.
const PARTS: usize = 4;
pub(super) const PART_BYTES: usize = 4 << 20;

/// Bytes on their way to the GPU.
pub(super) struct Staging {
    ring: Ring,
    memory: Pinned,
    /// When what was in a part has arrived.
    arrived: Vec<Event>,
}

impl Staging {
    pub fn new() -> Result<Self, Fault> {
        let arrived = (0..PARTS).map(|_| Event::untimed()).collect::<Result<_, _>>()?;
        Ok(Staging { ring: Ring::new(PARTS, PART_BYTES), memory: Pinned::new(PARTS * PART_BYTES)?, arrived })
    }

    /// Writes bytes behind the stream's work.
    pub fn write(
        &mut self,
        pending: &Pending,
        stream: CUstream,
        to: Address,
        bytes: &[u8],
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < bytes.len() {
            let Place { at, turn } = self.ring.place(bytes.len() - done);
            if let Some((left, entered)) = turn {
                self.arrived[left].record(stream)?;
                match pending.has_calls() {
                    true => pending.wait()?,
                    false => self.arrived[entered].wait()?,
                }
            }
            // SAFETY: what was in this part has arrived.
            unsafe { self.memory.write(at.start, &bytes[done..done + at.len()]) };
            // SAFETY: whoever asked for it says that the place is of so many bytes.
            check(unsafe {
                sys::cuMemcpyHtoDAsync_v2(to + done as u64, self.memory.at(at.start).cast(), at.len(), stream)
            })?;
            done += at.len();
        }
        Ok(())
    }

    /// As [`Pinned::leave`].
    pub fn leave(&mut self) {
        self.memory.leave();
    }
}
