//! What ranks of a group do together, as a part of a step.

use collective::{Collective, CollectiveError, CollectiveStats};
use tensor::{Device, Exchanged, Part};

use super::Rank;

impl<D: Device> Rank<'_, D> {
    /// A call of the tensor-parallel group.
    pub(super) fn with_group<T>(
        &self,
        part: Part,
        call: impl FnOnce(&dyn Collective<D>) -> Result<T, CollectiveError>,
    ) -> Result<T, CollectiveError> {
        with_group(self.dev, self.group, part, call)
    }
}

/// A call of any group. The device hears what it moved and how long this rank waited in it.
pub(super) fn with_group<D: Device, T>(
    dev: &D,
    group: &dyn Collective<D>,
    part: Part,
    call: impl FnOnce(&dyn Collective<D>) -> Result<T, CollectiveError>,
) -> Result<T, CollectiveError> {
    dev.span(part, || {
        let before = group.stats();
        let result = call(group);
        dev.exchanged(between(&before, &group.stats()));
        result
    })
}

fn between(before: &CollectiveStats, after: &CollectiveStats) -> Exchanged {
    let sent = |stats: &CollectiveStats| stats.all_reduce_bytes + stats.sent_bytes;
    let waited = after.waits != before.waits;
    Exchanged {
        bytes: sent(after) - sent(before),
        waited: after.waiting_since.filter(|_| waited).map(|since| (since, after.waited - before.waited)),
    }
}
