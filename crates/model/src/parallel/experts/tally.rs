//! Counting on the device: nothing waits for it until somebody asks what was counted.

use tensor::{Device, DeviceError};

use super::ExpertCounts;

/// A device counts in f32, exactly up to this.
const MOST_TOKENS: usize = 1 << 24;

/// Counts that are still on the device.
pub(super) struct Tally<T> {
    /// Of each expert how many tokens chose it, `[1, experts]`.
    counts: T,
    /// How many tokens there were.
    tokens: usize,
    /// Whether this rank counts all choices, and not only those of its own experts.
    leads: bool,
}

impl<T> Tally<T> {
    /// Counts the choices of so many tokens; what was counted before goes `to` the host's counts where it is too much.
    ///
    /// # Errors
    /// Whatever the device met since its results were read last.
    pub fn count<D: Device<Tensor = T>>(
        tally: &mut Option<Self>,
        dev: &D,
        routing: &D::Routing,
        (tokens, leads): (usize, bool),
        own: &[usize],
        to: &mut ExpertCounts,
    ) -> Result<(), DeviceError> {
        if let Some(full) = tally.take_if(|tally| tally.tokens + tokens > MOST_TOKENS) {
            full.add_to(dev, own, to)?;
        }
        let experts = to.tokens_per_expert.len();
        let nothing = || Tally { counts: dev.upload(&vec![0.0; experts], 1, experts), tokens: 0, leads };
        let tally = tally.get_or_insert_with(nothing);
        tally.tokens += tokens;
        dev.count_choices(routing, &mut tally.counts)
    }

    /// Adds it to the host's counts. `own` are this rank's experts.
    ///
    /// # Errors
    /// Whatever the device met since its results were read last.
    pub fn add_to<D: Device<Tensor = T>>(
        self,
        dev: &D,
        own: &[usize],
        to: &mut ExpertCounts,
    ) -> Result<(), DeviceError> {
        let counts = dev.download(&self.counts)?;
        to.worked += own.iter().map(|&expert| counts[expert] as u64).sum::<u64>();
        if self.leads {
            for (sum, &count) in to.tokens_per_expert.iter_mut().zip(&counts) {
                *sum += count as u64;
            }
        }
        Ok(())
    }
}
