//! Which part of a step is open on a rank, how long parts took, and, if someone wants to know, every event.

use std::time::{Duration, Instant};

use crate::part::{Exchanged, Part, PartTimes};
use crate::timeline::{Event, MOST_EVENTS, What};

/// The open parts of one thread. It is told when they are opened and closed: moments in the order in which they were.
#[derive(Debug)]
pub struct Clock {
    /// Each with its event, if it is recorded.
    open: Vec<(Part, Option<usize>)>,
    /// When a part was last opened or closed.
    turned: Instant,
    times: PartTimes,
    recorder: Option<Recorder>,
}

/// Events of a thread, up to a limit.
#[derive(Debug, Default)]
struct Recorder {
    events: Vec<Event>,
    dropped: u64,
    /// Whether the outermost part that is open began with room left: a step is recorded whole or not at all.
    has_room: bool,
}

impl Clock {
    /// Nothing is open, and nothing recorded.
    pub fn new() -> Self {
        Clock { open: Vec::new(), turned: Instant::now(), times: PartTimes::default(), recorder: None }
    }

    /// Charges the time since the last turn to the innermost part that is open.
    fn turn(&mut self, now: Instant) {
        if let Some(&(part, _)) = self.open.last() {
            self.times.of_mut(part).time += now - self.turned;
        }
        self.turned = now;
    }

    /// Opens a part. Says whether it is recorded.
    pub fn enter(&mut self, part: Part, now: Instant) -> bool {
        if part.is_outermost() {
            // What is open still was left by a panic, and would take what is not its own.
            self.open.clear();
        }
        self.turn(now);
        self.times.of_mut(part).calls += 1;
        let outermost = self.open.is_empty();
        let event = self.recorder.as_mut().and_then(|recorder| {
            recorder.has_room &= !outermost;
            recorder.has_room |= outermost && recorder.events.len() < MOST_EVENTS;
            recorder.add(What::Part { part, exchanged: None }, now, now)
        });
        self.open.push((part, event));
        event.is_some()
    }

    /// Closes the part that was opened last. Parts are opened and closed in pairs, around what they are of.
    ///
    /// # Panics
    /// If none is open: a programmer's mistake.
    pub fn leave(&mut self, now: Instant) {
        self.turn(now);
        let (_, event) = self.open.pop().expect("a part is closed that was opened");
        if let (Some(at), Some(recorder)) = (event, &mut self.recorder) {
            recorder.events[at].ended = now;
        }
    }

    /// Says of the part that is open what ranks exchanged in it until now.
    pub fn exchanged(&mut self, exchanged: Exchanged, now: Instant) {
        let Some(&(part, event)) = self.open.last() else { return };
        let time = self.times.of_mut(part);
        time.bytes += exchanged.bytes;
        time.waited += exchanged.waited.map_or(Duration::ZERO, |(_, by)| by);
        let (Some(at), Some(recorder)) = (event, &mut self.recorder) else { return };
        let Exchanged { op, bytes, .. } = exchanged;
        recorder.events[at].what = What::Part { part, exchanged: Some((op, bytes)) };
        if let Some((since, by)) = exchanged.waited {
            let began = since.max(recorder.events[at].began);
            recorder.add(What::Wait, began, (began + by).min(now.max(began)));
        }
    }

    /// Notes an operation, if events are recorded.
    pub fn op(&mut self, name: &'static str, made: Option<[usize; 2]>, began: Instant, ended: Instant) {
        if let Some(recorder) = &mut self.recorder {
            recorder.add(What::Op { name, made }, began, ended);
        }
    }

    /// How long parts took since the last call.
    pub fn take_times(&mut self) -> PartTimes {
        std::mem::take(&mut self.times)
    }

    /// Begins to record.
    pub fn record(&mut self) {
        self.recorder = Some(Recorder::default());
    }

    /// Stops recording: the events, and how many found no room.
    /// Parts that are open, as they are where something failed, end here.
    pub fn take_events(&mut self) -> (Vec<Event>, u64) {
        let Some(mut recorder) = self.recorder.take() else { return Default::default() };
        let now = Instant::now();
        for at in self.open.iter_mut().filter_map(|(_, event)| event.take()) {
            recorder.events[at].ended = now;
        }
        (recorder.events, recorder.dropped)
    }
}

impl Default for Clock {
    fn default() -> Self {
        Clock::new()
    }
}

impl Recorder {
    /// The new event's place.
    fn add(&mut self, what: What, began: Instant, ended: Instant) -> Option<usize> {
        if !self.has_room {
            self.dropped += 1;
            return None;
        }
        self.events.push(Event { what, began, ended });
        Some(self.events.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_counts_for_the_innermost_part_and_nothing_is_lost() {
        let mut clock = Clock::new();
        let began = Instant::now();
        clock.enter(Part::Step, Instant::now());
        clock.enter(Part::Ffn, Instant::now());
        clock.enter(Part::AllReduce, Instant::now());
        clock.exchanged(
            Exchanged { op: "barrier", bytes: 3, waited: Some((began, Duration::from_nanos(5))) },
            Instant::now(),
        );
        clock.leave(Instant::now());
        clock.leave(Instant::now());
        clock.leave(Instant::now());
        let times = clock.take_times();
        assert!(times.total() <= began.elapsed());
        let moved = times.of(Part::AllReduce);
        assert_eq!((moved.calls, moved.waited, moved.bytes), (1, Duration::from_nanos(5), 3));
        let of = [Part::Step, Part::Ffn, Part::AllReduce].map(|part| times.of(part).time);
        assert_eq!(of.iter().sum::<Duration>(), times.total());
        assert_eq!(clock.take_times().total(), Duration::ZERO);
    }

    #[test]
    fn parts_that_a_panic_has_left_open_take_nothing_of_later_steps() {
        let mut clock = Clock::new();
        clock.record();
        clock.enter(Part::Step, Instant::now());
        clock.enter(Part::Ffn, Instant::now());
        let before = clock.take_times().of(Part::Ffn).time;
        // Nobody closes them. Later there is another step.
        while clock.turned.elapsed() < Duration::from_micros(50) {}
        assert!(clock.enter(Part::Step, Instant::now()), "it is recorded");
        clock.leave(Instant::now());
        let times = clock.take_times();
        assert_eq!((before, times.of(Part::Ffn).time), (Duration::ZERO, Duration::ZERO));
        assert_eq!(times.total(), times.of(Part::Step).time);
        assert!(clock.open.is_empty());
    }

    #[test]
    fn steps_are_recorded_whole_until_there_is_no_room() {
        let mut clock = Clock::new();
        clock.record();
        let step = |clock: &mut Clock| {
            let recorded = clock.enter(Part::Step, Instant::now());
            (0..MOST_EVENTS).for_each(|_| clock.op("add", None, Instant::now(), Instant::now()));
            clock.leave(Instant::now());
            recorded
        };
        assert!(step(&mut clock));
        assert!(!step(&mut clock));
        let (events, dropped) = clock.take_events();
        assert_eq!((events.len(), dropped), (MOST_EVENTS + 1, MOST_EVENTS as u64 + 1));
        assert!(events[0].ended >= events[MOST_EVENTS].ended);
    }

    #[test]
    fn parts_that_are_open_end_where_recording_does() {
        let mut clock = Clock::new();
        clock.record();
        clock.enter(Part::Step, Instant::now());
        clock.enter(Part::Ffn, Instant::now());
        clock.op("linear", None, Instant::now(), Instant::now());
        let (events, _) = clock.take_events();
        assert!(events[0].ended == events[1].ended && events[1].ended >= events[2].ended);
        // What is left of them disturbs no other recording.
        clock.record();
        clock.leave(Instant::now());
        clock.leave(Instant::now());
        assert!(clock.take_events().0.is_empty());
    }

    #[test]
    fn a_wait_lies_inside_its_part() {
        let mut clock = Clock::new();
        clock.record();
        let before = Instant::now();
        clock.enter(Part::Send, Instant::now());
        clock.exchanged(
            Exchanged { op: "send", bytes: 7, waited: Some((before, Duration::from_secs(9))) },
            Instant::now(),
        );
        clock.leave(Instant::now());
        let (events, _) = clock.take_events();
        assert_eq!(events[0].what, What::Part { part: Part::Send, exchanged: Some(("send", 7)) });
        assert_eq!(events[1].what, What::Wait);
        assert!(events[0].began <= events[1].began && events[1].ended <= events[0].ended);
    }
}
