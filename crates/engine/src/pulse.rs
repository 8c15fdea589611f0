//! What one rank has done since it was loaded: a few numbers that are quick to read between two steps.

use collective::Coordinates;
use serde::{Deserialize, Serialize};
use tensor::{Category, Part, PartTime, PartTimes};

use crate::steps;

/// What one rank has done since it was loaded, and what it holds. Sums only grow.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct RankPulse {
    /// The rank.
    pub rank: usize,
    /// Its replica, stage, and place in its tensor-parallel group.
    pub place: (usize, usize, usize),
    /// The host that it runs on.
    pub host: String,
    /// Steps.
    pub steps: u64,
    /// Seconds that it worked: computed, chose tokens, and, if it leads, scheduled.
    pub busy_s: f64,
    /// Seconds in which it and other ranks exchanged something, without waiting for them.
    pub communication_s: f64,
    /// Seconds of steps in which it waited for other ranks, as far as the transport knows, or, if it leads, for what a grammar
    /// allows. Between steps it waits for work, which is the rest of its time.
    pub waiting_s: f64,
    /// Bytes that it gave to other ranks, as far as the transport counts them.
    pub sent_bytes: u64,
    /// Bytes of activations that it took over from the stage before.
    pub received_bytes: u64,
    /// Elements of its weights times stored type.
    pub weight_bytes: u64,
    /// What its KV cache takes.
    pub kv_cache_bytes: u64,
    /// The most that activations took at a time, in bytes.
    pub activation_bytes: u64,
    /// The most that operations took for themselves at a time, in bytes.
    pub scratch_bytes: u64,
    /// The most memory that its process has had, in bytes; 0 where the system doesn't say.
    pub peak_rss_bytes: u64,
    /// Bytes that its device has left for it: on CPUs what is available on its host, within its container, to all of the
    /// host's ranks together; none where the system doesn't say.
    pub free_bytes: Option<u64>,
    /// Seconds of its last step, without waiting for the stage before.
    pub last_step_s: f64,
}

impl RankPulse {
    /// Counts a step, and what the rank did to get to it from the one before.
    pub(crate) fn step(&mut self, parts: &PartTimes) {
        self.count(parts);
        self.steps += 1;
        self.last_step_s = steps::time(parts).as_secs_f64();
    }

    /// Counts what parts took.
    pub(crate) fn count(&mut self, parts: &PartTimes) {
        // Nothing of a step: it waits for work.
        for part in Part::ALL.into_iter().filter(|&part| part != Part::Idle) {
            let PartTime { time, waited, bytes, .. } = parts.of(part);
            let sum = match part.category() {
                Category::Communication => &mut self.communication_s,
                _ => &mut self.busy_s,
            };
            *sum += time.saturating_sub(waited).as_secs_f64();
            self.waiting_s += waited.as_secs_f64();
            match part {
                Part::Receive => self.received_bytes += bytes,
                _ => self.sent_bytes += bytes,
            }
        }
    }

    /// Its place in the mesh.
    pub fn coordinates(&self) -> Coordinates {
        Coordinates { dp: self.place.0, pp: self.place.1, tp: self.place.2 }
    }
}
