use std::time::Duration;

use super::*;
use crate::driver::{Address, Arguments, Grid, Kernel};

const MS: Duration = Duration::from_millis(1);
/// An hour in milliseconds. However long a busy machine holds the host up, what the GPU does an hour later is later.
const HOUR: u32 = 3_600_000;

/// A GPU that does what a script says: the milliseconds from the beginning at which its marks were reached.
struct Script {
    began: Instant,
    marks: Cell<usize>,
    reached: RefCell<Vec<u32>>,
    /// How often it was waited for to know moments.
    waits: Cell<usize>,
    fails: Cell<bool>,
}

impl Script {
    fn new(reached: &[u32]) -> Self {
        Script {
            began: Instant::now(),
            marks: Cell::new(0),
            reached: RefCell::new(reached.to_vec()),
            waits: Cell::new(0),
            fails: Cell::new(false),
        }
    }

    /// That many milliseconds from the beginning.
    fn at(&self, ms: u32) -> Instant {
        self.began + ms * MS
    }
}

impl Driver for Script {
    fn name(&self) -> String {
        "script".into()
    }
    fn multiprocessors(&self) -> usize {
        1
    }
    fn shared_bytes(&self) -> usize {
        0
    }
    fn alloc(&self, _: usize) -> Result<Address, Fault> {
        Ok(256)
    }
    fn free(&self, _: Address) {}
    fn write(&self, _: Address, _: &[u8]) -> Result<(), Fault> {
        Ok(())
    }
    fn read(&self, _: Address, _: &mut [u8]) -> Result<(), Fault> {
        Ok(())
    }
    fn copy(&self, _: Address, _: Address, _: usize) -> Result<(), Fault> {
        Ok(())
    }
    fn launch(&self, _: Kernel, _: Grid, _: &Arguments) -> Result<(), Fault> {
        Ok(())
    }
    fn mark(&self) -> Result<Mark, Fault> {
        Ok(Mark::Pending(self.marks.replace(self.marks.get() + 1)))
    }
    fn moments(&self) -> Result<Vec<Instant>, Fault> {
        self.waits.set(self.waits.get() + 1);
        let count = self.marks.take();
        let reached = self.reached.borrow_mut().drain(..count).map(|ms| self.at(ms)).collect();
        if self.fails.get() { Err(Fault("it fell off the bus".into())) } else { Ok(reached) }
    }
}

fn always() -> Watch {
    let watch = Watch::new();
    watch.always();
    watch
}

/// The host's moments just before and just after something.
fn around(work: impl FnOnce()) -> [Instant; 2] {
    let before = Instant::now();
    work();
    [before, Instant::now()]
}

/// A step of two parts with work, whose result is read in a third. Around when it began.
fn step(watch: &Watch, gpu: &Script) -> [Instant; 2] {
    let begun = around(|| watch.enter(gpu, Part::Step).unwrap());
    watch.enter(gpu, Part::Norm).unwrap();
    watch.op(gpu, "norm", || watch.work(gpu).unwrap(), |()| Some([1, 2]));
    watch.leave(gpu).unwrap();
    watch.enter(gpu, Part::Ffn).unwrap();
    watch.op(gpu, "linear", || watch.work(gpu).unwrap(), |()| None);
    watch.op(gpu, "gated", || watch.work(gpu).unwrap(), |()| None);
    watch.leave(gpu).unwrap();
    watch.enter(gpu, Part::Sampling).unwrap();
    watch.waits(gpu).unwrap();
    watch.waited();
    watch.leave(gpu).unwrap();
    watch.leave(gpu).unwrap();
    begun
}

fn ms(times: &PartTimes, part: Part) -> f64 {
    times.of(part).time.as_secs_f64() * 1e3
}

/// That a part took from when the host began it until the GPU's moment, and a time more.
fn assert_took_from(
    times: &PartTimes,
    part: Part,
    [before, after]: [Instant; 2],
    until: Instant,
    more: Duration,
) {
    let found = times.of(part).time;
    assert!((until - after + more..=until - before + more).contains(&found), "{found:?}");
}

#[test]
fn parts_take_what_the_gpu_took_and_the_step_what_it_waited_for_work() {
    let (watch, gpu) = (always(), Script::new(&[HOUR, HOUR + 30, HOUR + 70]));
    let begun = step(&watch, &gpu);
    let times = watch.take_times(&gpu).unwrap();
    assert_eq!([ms(&times, Part::Norm), ms(&times, Part::Ffn)], [30.0, 40.0]);
    assert_took_from(&times, Part::Step, begun, gpu.at(HOUR), Duration::ZERO);
    assert_eq!(gpu.waits.get(), 1);
    assert_eq!(watch.take_times(&gpu).unwrap().total(), Duration::ZERO);
}

#[test]
fn nobody_marks_anything_whose_time_nobody_wants() {
    let (watch, gpu) = (Watch::new(), Script::new(&[]));
    step(&watch, &gpu);
    let times = watch.take_times(&gpu).unwrap();
    assert!(gpu.marks.get() == 0 && gpu.waits.get() == 0);
    assert!(times.total() > Duration::ZERO, "the host's time is told anyway");
    assert!(watch.take_timeline(&gpu).events.is_empty());
}

#[test]
fn a_gpu_that_was_waited_for_does_nothing_until_it_is_asked_again() {
    let (watch, gpu) = (always(), Script::new(&[HOUR, HOUR + 10, HOUR + 300, HOUR + 350]));
    let begun = around(|| watch.enter(&gpu, Part::Step).unwrap());
    for part in [Part::Qkv, Part::Ffn] {
        watch.enter(&gpu, part).unwrap();
        watch.work(&gpu).unwrap();
        watch.leave(&gpu).unwrap();
        watch.waits(&gpu).unwrap();
        watch.waited();
    }
    watch.leave(&gpu).unwrap();
    let times = watch.take_times(&gpu).unwrap();
    // From 10 to 300 there was no work, which is nobody's but the step's.
    assert_eq!([ms(&times, Part::Qkv), ms(&times, Part::Ffn)], [10.0, 50.0]);
    assert_took_from(&times, Part::Step, begun, gpu.at(HOUR), 290 * MS);
}

#[test]
fn what_the_host_does_while_the_gpu_does_nothing_counts() {
    let (watch, gpu) = (always(), Script::new(&[0, 0, HOUR, HOUR + 10]));
    let work = |part| {
        watch.enter(&gpu, part).unwrap();
        watch.work(&gpu).unwrap();
        watch.leave(&gpu).unwrap();
        watch.waits(&gpu).unwrap();
        watch.waited();
    };
    watch.enter(&gpu, Part::Step).unwrap();
    work(Part::Qkv);
    let [before, after] = around(|| {
        watch.enter(&gpu, Part::Exchange).unwrap();
        let began = Instant::now();
        while began.elapsed() < 3 * MS {}
        watch.leave(&gpu).unwrap();
    });
    work(Part::Ffn);
    watch.leave(&gpu).unwrap();
    let times = watch.take_times(&gpu).unwrap();
    assert!((3 * MS..=after - before).contains(&times.of(Part::Exchange).time), "{times:?}");
    assert_eq!(ms(&times, Part::Ffn), 10.0);
}

#[test]
fn what_is_recorded_nests_and_has_the_gpus_moments() {
    let (watch, gpu) = (Watch::new(), Script::new(&[HOUR, HOUR + 30, HOUR + 40, HOUR + 70]));
    watch.record();
    let [before, after] = step(&watch, &gpu);
    assert!(watch.is_recording());
    let timeline = watch.take_timeline(&gpu);
    assert!(!watch.is_recording());
    let told: Vec<String> = timeline
        .events
        .iter()
        .map(|event| match event.what {
            tensor::What::Part { part, .. } => part.name().to_owned(),
            tensor::What::Op { name, made } => format!("{name} {made:?}"),
            tensor::What::Wait => "wait".into(),
        })
        .collect();
    assert_eq!(told, ["step", "norm", "norm Some([1, 2])", "ffn", "linear None", "gated None", "sampling"]);
    let spans: Vec<_> = timeline.events.iter().map(|e| (e.began, e.ended)).collect();
    let expected = [(0, 30), (0, 30), (30, 70), (30, 40), (40, 70)];
    assert_eq!(spans[1..6], expected.map(|(began, ended)| (gpu.at(HOUR + began), gpu.at(HOUR + ended))));
    let end = gpu.at(HOUR + 70);
    assert!(
        (before..=after).contains(&spans[0].0) && spans[0].1 == end && spans[6] == (end, end),
        "{spans:?}"
    );
    assert!(timeline.events.is_sorted_by_key(|event| event.began));
}

#[test]
fn steps_without_results_are_known_at_their_end() {
    let (watch, gpu) = (always(), Script::new(&[HOUR, HOUR + 60]));
    watch.enter(&gpu, Part::Step).unwrap();
    watch.enter(&gpu, Part::Ffn).unwrap();
    watch.work(&gpu).unwrap();
    watch.leave(&gpu).unwrap();
    watch.leave(&gpu).unwrap();
    assert_eq!(ms(&watch.take_times(&gpu).unwrap(), Part::Ffn), 60.0);
}

#[test]
fn a_gpu_that_fails_leaves_no_part_open() {
    let later = [0, 30, 70, 300, 310, 330].map(|ms| HOUR + ms);
    let (watch, gpu) = (always(), Script::new(&later));
    gpu.fails.set(true);
    step(&watch, &gpu);
    assert_eq!(watch.take_times(&gpu).map(drop), Err(Fault("it fell off the bus".into())));
    gpu.fails.set(false);
    step(&watch, &gpu);
    let times = watch.take_times(&gpu).unwrap();
    assert_eq!([ms(&times, Part::Norm), ms(&times, Part::Ffn)], [10.0, 20.0]);
}

#[test]
fn moments_never_run_backwards() {
    // The second mark lies before the first, as two clocks may have it.
    let (watch, gpu) = (always(), Script::new(&[HOUR, HOUR - 1, HOUR + 30]));
    step(&watch, &gpu);
    let times = watch.take_times(&gpu).unwrap();
    assert_eq!([ms(&times, Part::Norm), ms(&times, Part::Ffn)], [0.0, 30.0]);
}
