//! A thread that does one kind of thing for another thread, in order.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::time::Duration;

use crate::{EngineError, cpus};

/// A thread that makes a `Done` of each `Task`. It ends when this is dropped.
pub(crate) struct Helper<Task, Done> {
    tasks: Sender<Task>,
    done: Receiver<Done>,
    name: &'static str,
}

impl<Task: Send + 'static, Done: Send + 'static> Helper<Task, Done> {
    /// Starts it, on any core: what starts it may be held to one.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(
        name: &'static str,
        mut work: impl FnMut(Task) -> Done + Send + 'static,
    ) -> Result<Self, EngineError> {
        let (tasks, to_do) = channel::<Task>();
        let (finished, done) = channel();
        let live = move || {
            for task in to_do {
                // Without an answer whoever waits for one hears that this has ended.
                let Ok(made) = catch_unwind(AssertUnwindSafe(|| work(task))) else { return };
                if finished.send(made).is_err() {
                    return;
                }
            }
        };
        let spawned = cpus::on_all(|| std::thread::Builder::new().name(name.into()).spawn(live));
        let failed = |why| EngineError::Panicked { rank: 0, message: format!("no thread for {name}: {why}") };
        spawned.map_err(failed)?;
        Ok(Helper { tasks, done, name })
    }

    /// Gives it something to do.
    pub fn give(&self, task: Task) {
        // If it has ended that is heard where the answer is waited for.
        let _ = self.tasks.send(task);
    }

    /// What it has made next. `None` if that isn't there within `patience`.
    ///
    /// # Errors
    /// It has ended.
    pub fn next_within(&self, patience: Duration) -> Result<Option<Done>, EngineError> {
        let next = match patience.is_zero() {
            true => self.done.try_recv().map_err(|error| error == TryRecvError::Empty),
            false => self.done.recv_timeout(patience).map_err(|error| error == RecvTimeoutError::Timeout),
        };
        match next {
            Ok(done) => Ok(Some(done)),
            Err(true) => Ok(None),
            Err(false) => Err(self.ended()),
        }
    }

    /// What it makes next, however long that takes.
    ///
    /// # Errors
    /// It has ended.
    pub fn next(&self) -> Result<Done, EngineError> {
        self.done.recv().map_err(|_| self.ended())
    }

    fn ended(&self) -> EngineError {
        EngineError::Panicked { rank: 0, message: format!("the thread for {} has panicked", self.name) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_comes_back_in_order() {
        let helper = Helper::start("doubles", |n: u32| 2 * n).unwrap();
        [1, 2, 3].into_iter().for_each(|n| helper.give(n));
        assert_eq!([(); 3].map(|()| helper.next().unwrap()), [2, 4, 6]);
        assert_eq!(helper.next_within(Duration::ZERO).unwrap(), None);
        assert_eq!(helper.next_within(Duration::from_micros(1)).unwrap(), None);
    }

    #[test]
    fn a_helper_that_panics_is_an_error_for_who_waits_for_it() {
        let helper = Helper::start("nothing", |_: u32| -> u32 { panic!("as it should") }).unwrap();
        helper.give(1);
        assert!(helper.next().unwrap_err().to_string().contains("the thread for nothing has panicked"));
        helper.give(2);
        assert!(helper.next_within(Duration::ZERO).is_err());
    }
}
