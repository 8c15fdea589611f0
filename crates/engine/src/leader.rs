//! A replica's leader: the rank that says what the others do.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use collective::{CollectiveError, Group};
use model::ModelError;
use tensor::{HostDevice, Part};

use crate::EngineError;
use crate::pulse::RankPulse;
use crate::report::RankReport;
use crate::trace::RankTrace;
use crate::worker::{Command, LateEdits, NoEdits, Reply, Worker};

/// A replica's leader, whatever its device.
pub(crate) trait Leader {
    /// Has all ranks of the replica do something. For a step, [`Leader::collect`] must be called once.
    fn issue(&mut self, command: &Command) -> Result<(), EngineError> {
        self.issue_step(command, &mut NoEdits)
    }
    /// The same. If the command doesn't have the step's edits, `late` makes them when this rank's forward pass is done.
    fn issue_step(&mut self, command: &Command, late: &mut dyn LateEdits) -> Result<(), EngineError>;
    /// What the oldest step came to that was not collected yet.
    fn collect(&mut self) -> Result<Reply, EngineError>;
    /// What each rank of the replica holds and has spent.
    fn reports(&mut self) -> Result<Vec<RankReport>, EngineError>;
    /// What each rank of the replica has done. Steps may be on their way.
    fn pulses(&mut self) -> Result<Vec<RankPulse>, EngineError>;
    /// Puts what each rank of the replica recorded into `traces`. On an error, or when one takes longer than `deadline` to
    /// answer, what could be had is there.
    fn traces(&mut self, traces: &mut Vec<RankTrace>, deadline: Option<Duration>) -> Result<(), EngineError>;
    /// How long this rank has been at forward passes and choices, since some moment.
    fn worked(&self) -> Duration;
    /// Opens a part of what the leader does between steps; it counts for the next step.
    fn enter(&self, part: Part);
    /// Closes it.
    fn leave(&self);
    /// Does something in the group of all replicas' leaders.
    fn between_replicas(
        &mut self,
        work: &mut dyn FnMut(&dyn Group) -> Result<(), CollectiveError>,
    ) -> Result<(), EngineError>;
}

/// The leading rank's worker, and replies of a single stage, which are there at once.
pub(crate) struct Leading<D: HostDevice> {
    pub worker: Worker<D>,
    replies: VecDeque<Reply>,
}

impl<D: HostDevice> Leading<D> {
    pub fn new(worker: Worker<D>) -> Self {
        Leading { worker, replies: VecDeque::new() }
    }

    /// Runs something as this rank; if it fails, all its groups hear of it.
    fn as_rank<T>(
        &mut self,
        work: impl FnOnce(&mut Worker<D>) -> Result<T, ModelError>,
    ) -> Result<T, EngineError> {
        let rank = self.worker.groups.rank;
        let worker = &mut self.worker;
        guarded(rank, || work(worker)).inspect_err(|error| match error {
            EngineError::Rank { source, .. } => self.worker.groups.fail(source),
            other => self.worker.groups.fail_with(&other.to_string()),
        })
    }
}

impl<D: HostDevice> Leader for Leading<D> {
    fn issue_step(&mut self, command: &Command, late: &mut dyn LateEdits) -> Result<(), EngineError> {
        let reply = self.as_rank(|worker| worker.lead_step(command, late))?;
        self.replies.extend(reply);
        Ok(())
    }

    fn collect(&mut self) -> Result<Reply, EngineError> {
        match self.replies.pop_front() {
            Some(reply) => Ok(reply),
            None => self.as_rank(|worker| worker.collect()),
        }
    }

    fn reports(&mut self) -> Result<Vec<RankReport>, EngineError> {
        self.as_rank(Worker::reports)
    }

    fn pulses(&mut self) -> Result<Vec<RankPulse>, EngineError> {
        let mut replies = VecDeque::new();
        let pulses = self.as_rank(|worker| worker.pulses(&mut replies));
        self.replies.append(&mut replies);
        pulses
    }

    fn traces(&mut self, traces: &mut Vec<RankTrace>, deadline: Option<Duration>) -> Result<(), EngineError> {
        self.as_rank(|worker| worker.traces(traces, deadline))
    }

    fn worked(&self) -> Duration {
        self.worker.worked()
    }

    fn enter(&self, part: Part) {
        self.worker.dev.enter(part);
    }

    fn leave(&self) {
        self.worker.dev.leave();
    }

    fn between_replicas(
        &mut self,
        work: &mut dyn FnMut(&dyn Group) -> Result<(), CollectiveError>,
    ) -> Result<(), EngineError> {
        self.as_rank(|worker| {
            let leaders = worker.groups.leaders.as_ref().expect("there are several replicas");
            Ok(work(leaders)?)
        })
    }
}

/// A rank's error with its name; a panic is an error too.
pub(crate) fn guarded<T>(
    rank: usize,
    body: impl FnOnce() -> Result<T, ModelError>,
) -> Result<T, EngineError> {
    match catch_unwind(AssertUnwindSafe(body)) {
        Ok(result) => result.map_err(|source| EngineError::Rank { rank, source: Box::new(source) }),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let message = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked").into();
            Err(EngineError::Panicked { rank, message })
        }
    }
}
