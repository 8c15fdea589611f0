//! When parts of steps and operations were done, on a GPU that does them later than they are asked for.
//!
//! Whoever asks and the GPU are one line of time: a part ends when it has been asked for and the GPU has done it. Where the GPU had
//! nothing to do, a part begins with its first work; the time in which work was only collected counts for what was open before, which is
//! the step itself. Moments come from marks in the GPU's queue, and are known when somebody has waited for it. So what happens is kept
//! until then and only then told to the [`Clock`] that a processor has too.

use std::cell::{Cell, RefCell};
use std::time::Instant;

use tensor::{Clock, Exchanged, Part, PartTimes, Timeline};

use crate::driver::{Driver, Fault, Mark};
use crate::nvtx::Ranges;

/// Calls from which on nobody waits longer for moments: what is kept must end somewhere.
const MOST_CALLS: usize = 1 << 16;

/// Watches one device.
pub(crate) struct Watch {
    clock: RefCell<Clock>,
    /// Whether the times of parts are wanted as the GPU spends them. Else they are those of asking and waiting.
    always: Cell<bool>,
    /// Whether the part that is open is recorded.
    records: Cell<bool>,
    /// Whether somebody records.
    recording: Cell<bool>,
    log: RefCell<Log>,
    ranges: Option<Ranges>,
}

/// What happened since moments were known.
#[derive(Default)]
struct Log {
    calls: Vec<Call>,
    /// The first call that no mark stands for.
    unplaced: usize,
    /// Whether the GPU has work that nobody has waited for.
    is_busy: bool,
    /// Whether there are marks whose moments nobody knows.
    has_marks: bool,
}

/// Something that happened.
struct Call {
    what: What,
    at: Instant,
    /// What came before was done then.
    mark: Option<Mark>,
}

enum What {
    Enter(Part),
    Leave,
    Exchanged(Exchanged),
    Begins,
    Ends(&'static str, Option<[usize; 2]>),
}

impl Watch {
    pub fn new() -> Self {
        Watch {
            clock: RefCell::default(),
            always: Cell::new(false),
            records: Cell::new(false),
            recording: Cell::new(false),
            log: RefCell::default(),
            ranges: Ranges::of_process(),
        }
    }

    /// From now on, also when nobody records.
    pub fn always(&self) {
        self.always.set(true);
    }

    fn marks(&self) -> bool {
        self.always.get() || self.recording.get()
    }

    /// Opens a part.
    ///
    /// # Errors
    /// Whatever the GPU met.
    pub fn enter(&self, driver: &dyn Driver, part: Part) -> Result<(), Fault> {
        if let Some(ranges) = &self.ranges {
            ranges.push(part.name());
        }
        if !self.marks() {
            self.clock.borrow_mut().enter(part, Instant::now());
            return Ok(());
        }
        if part.is_outermost() {
            // All before it is known, so that it is known at once whether this one is recorded.
            self.settle(driver)?;
            self.records.set(self.clock.borrow_mut().enter(part, Instant::now()));
            return Ok(());
        }
        self.note(driver, What::Enter(part))
    }

    /// Closes the part that was opened last.
    ///
    /// # Errors
    /// Whatever the GPU met.
    pub fn leave(&self, driver: &dyn Driver) -> Result<(), Fault> {
        if let Some(ranges) = &self.ranges {
            ranges.pop();
        }
        if !self.marks() {
            self.clock.borrow_mut().leave(Instant::now());
            return Ok(());
        }
        self.note(driver, What::Leave)
    }

    /// Says of the part that is open what ranks exchanged in it.
    ///
    /// # Errors
    /// Whatever the GPU met.
    pub fn exchanged(&self, driver: &dyn Driver, exchanged: Exchanged) -> Result<(), Fault> {
        if !self.marks() {
            self.clock.borrow_mut().exchanged(exchanged, Instant::now());
            return Ok(());
        }
        self.note(driver, What::Exchanged(exchanged))
    }

    /// An operation, and the shape of what it makes.
    pub fn op<T>(
        &self,
        driver: &dyn Driver,
        name: &'static str,
        run: impl FnOnce() -> T,
        made: impl FnOnce(&T) -> Option<[usize; 2]>,
    ) -> T {
        if !self.records.get() && self.ranges.is_none() {
            return run();
        }
        self.begins(driver, name);
        let result = run();
        self.ends(driver, name, made(&result));
        result
    }

    fn begins(&self, driver: &dyn Driver, name: &'static str) {
        if let Some(ranges) = &self.ranges {
            ranges.push(name);
        }
        if self.records.get() {
            // A fault is the GPU's: whoever reads next is told.
            self.note(driver, What::Begins).ok();
        }
    }

    fn ends(&self, driver: &dyn Driver, name: &'static str, made: Option<[usize; 2]>) {
        if let Some(ranges) = &self.ranges {
            ranges.pop();
        }
        if self.records.get() {
            self.note(driver, What::Ends(name, made)).ok();
        }
    }

    fn note(&self, driver: &dyn Driver, what: What) -> Result<(), Fault> {
        self.log.borrow_mut().calls.push(Call { what, at: Instant::now(), mark: None });
        if self.log.borrow().calls.len() < MOST_CALLS { Ok(()) } else { self.settle(driver) }
    }

    /// Work is about to be asked for.
    ///
    /// # Errors
    /// Whatever the GPU met.
    pub fn work(&self, driver: &dyn Driver) -> Result<(), Fault> {
        if !self.marks() {
            return Ok(());
        }
        let log = &mut *self.log.borrow_mut();
        if !log.is_busy {
            // Of an idle GPU only what begins with this work begins when the GPU does.
            log.unplaced = log.begin_of_work();
        }
        log.place(driver)?;
        log.is_busy = true;
        Ok(())
    }

    /// The GPU is about to be waited for.
    ///
    /// # Errors
    /// Whatever the GPU met.
    pub fn waits(&self, driver: &dyn Driver) -> Result<(), Fault> {
        let log = &mut *self.log.borrow_mut();
        if log.is_busy {
            log.place(driver)?;
        }
        Ok(())
    }

    /// The GPU was waited for.
    pub fn waited(&self) {
        let log = &mut *self.log.borrow_mut();
        log.is_busy = false;
        log.unplaced = log.calls.len();
    }

    /// Waits for the GPU, if that is needed to know all moments, and tells the clock.
    fn settle(&self, driver: &dyn Driver) -> Result<(), Fault> {
        if self.log.borrow().calls.is_empty() && !self.log.borrow().has_marks {
            return Ok(());
        }
        self.waits(driver)?;
        let moments = if self.log.borrow().has_marks { driver.moments() } else { Ok(Vec::new()) };
        let log = std::mem::take(&mut *self.log.borrow_mut());
        // Without moments there are still those of the host, and parts that were opened are closed.
        log.tell(&mut self.clock.borrow_mut(), moments.as_deref().unwrap_or(&[]));
        moments.map(drop)
    }

    /// How long parts took since the last call.
    ///
    /// # Errors
    /// Whatever the GPU met.
    pub fn take_times(&self, driver: &dyn Driver) -> Result<PartTimes, Fault> {
        let settled = self.settle(driver);
        let times = self.clock.borrow_mut().take_times();
        settled.map(|()| times)
    }

    /// Begins to record.
    pub fn record(&self) {
        self.clock.borrow_mut().record();
        self.recording.set(true);
    }

    /// Whether the part that is open is recorded.
    pub fn is_recording(&self) -> bool {
        self.records.get()
    }

    /// What was recorded.
    pub fn take_timeline(&self, driver: &dyn Driver) -> Timeline {
        // What the GPU met is told where results are read; what was recorded until then is all there is.
        self.settle(driver).ok();
        self.recording.set(false);
        self.records.set(false);
        let (events, dropped) = self.clock.borrow_mut().take_events();
        Timeline { events, threads: Vec::new(), dropped }
    }
}

impl Log {
    /// The first of the calls, all of them unplaced, that begin with the work that comes: operations, and the part they are in.
    fn begin_of_work(&self) -> usize {
        let is_begin = |call: &&Call| matches!(call.what, What::Begins);
        let operations = self.calls.iter().skip(self.unplaced).rev().take_while(is_begin).count();
        let first = self.calls.len() - operations;
        match first.checked_sub(1).filter(|&part| part >= self.unplaced).map(|part| &self.calls[part].what) {
            Some(What::Enter(_)) => first - 1,
            _ => first,
        }
    }

    /// Puts a mark behind all work so far, for all calls that have none.
    fn place(&mut self, driver: &dyn Driver) -> Result<(), Fault> {
        if self.unplaced == self.calls.len() {
            return Ok(());
        }
        let mark = driver.mark()?;
        self.has_marks |= matches!(mark, Mark::Pending(_));
        self.calls[self.unplaced..].iter_mut().for_each(|call| call.mark = Some(mark));
        self.unplaced = self.calls.len();
        Ok(())
    }

    /// Tells a clock what happened, now that the moments of marks are known.
    fn tell(self, clock: &mut Clock, moments: &[Instant]) {
        let mut now: Option<Instant> = None;
        let mut begun = Vec::new();
        for Call { what, at, mark } in self.calls {
            let done = match mark {
                None => None,
                Some(Mark::Passed(at)) => Some(at),
                Some(Mark::Pending(number)) => moments.get(number).copied(),
            };
            // Two clocks are compared, so a moment may lie a little before one that it follows.
            let moment = [Some(at), done, now].into_iter().flatten().max().unwrap_or(at);
            now = Some(moment);
            match what {
                What::Enter(part) => _ = clock.enter(part, moment),
                What::Leave => clock.leave(moment),
                What::Exchanged(exchanged) => clock.exchanged(exchanged, moment),
                What::Begins => begun.push(moment),
                What::Ends(name, made) => clock.op(name, made, begun.pop().unwrap_or(moment), moment),
            }
        }
    }
}

#[cfg(test)]
mod tests;
