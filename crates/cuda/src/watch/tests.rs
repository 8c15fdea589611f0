use std::time::Duration;

use super::*;
use crate::driver::{Address, Arguments, Grid, Kernel};

const MS: Duration = Duration::from_millis(1);

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
        let reached = self.reached.borrow_mut().drain(..count).map(|ms| self.began + ms * MS).collect();
        if self.fails.get() { Err(Fault("it fell off the bus".into())) } else { Ok(reached) }
    }
}

fn always() -> Watch {
    let watch = Watch::new();
    watch.always();
    watch
}

/// A step of two parts with work, whose result is read in a third.
fn step(watch: &Watch, gpu: &Script) {
    watch.enter(gpu, Part::Step).unwrap();
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
}

fn ms(times: &PartTimes, part: Part) -> f64 {
    times.of(part).time.as_secs_f64() * 1e3
}

/// What the host itself takes here is a fraction of a millisecond, if it isn't held up.
fn is_about(found: f64, wanted: f64) -> bool {
    (wanted - 1.0..wanted + 1.0).contains(&found)
}

#[test]
fn parts_take_what_the_gpu_took_and_the_step_what_it_waited_for_work() {
    let (watch, gpu) = (always(), Script::new(&[200, 230, 270]));
    step(&watch, &gpu);
    let times = watch.take_times(&gpu).unwrap();
    let found = [Part::Step, Part::Norm, Part::Ffn].map(|part| ms(&times, part));
    assert!(is_about(found[0], 200.0) && found[1..] == [30.0, 40.0], "{found:?}");
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
    let (watch, gpu) = (always(), Script::new(&[100, 110, 400, 450]));
    watch.enter(&gpu, Part::Step).unwrap();
    for part in [Part::Qkv, Part::Ffn] {
        watch.enter(&gpu, part).unwrap();
        watch.work(&gpu).unwrap();
        watch.leave(&gpu).unwrap();
        watch.waits(&gpu).unwrap();
        watch.waited();
    }
    watch.leave(&gpu).unwrap();
    let times = watch.take_times(&gpu).unwrap();
    // From 110 to 400 there was no work, which is nobody's but the step's.
    assert_eq!([ms(&times, Part::Qkv), ms(&times, Part::Ffn)], [10.0, 50.0]);
    assert!(is_about(ms(&times, Part::Step), 100.0 + 290.0));
}

#[test]
fn what_the_host_does_while_the_gpu_does_nothing_counts() {
    let (watch, gpu) = (always(), Script::new(&[0, 0, 400, 410]));
    let work = |part| {
        watch.enter(&gpu, part).unwrap();
        watch.work(&gpu).unwrap();
        watch.leave(&gpu).unwrap();
        watch.waits(&gpu).unwrap();
        watch.waited();
    };
    watch.enter(&gpu, Part::Step).unwrap();
    work(Part::Qkv);
    watch.enter(&gpu, Part::Exchange).unwrap();
    let began = Instant::now();
    while began.elapsed() < 3 * MS {}
    watch.leave(&gpu).unwrap();
    work(Part::Ffn);
    watch.leave(&gpu).unwrap();
    let times = watch.take_times(&gpu).unwrap();
    assert!(ms(&times, Part::Exchange) >= 3.0 && ms(&times, Part::Ffn) == 10.0, "{times:?}");
}

#[test]
fn what_is_recorded_nests_and_has_the_gpus_moments() {
    let (watch, gpu) = (Watch::new(), Script::new(&[200, 230, 240, 270]));
    watch.record();
    step(&watch, &gpu);
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
    let since = |at: Instant| (at - gpu.began).as_millis();
    let spans: Vec<_> = timeline.events.iter().map(|e| (since(e.began), since(e.ended))).collect();
    assert_eq!(spans[1..6], [(200, 230), (200, 230), (230, 270), (230, 240), (240, 270)]);
    assert!(spans[0].0 < 100 && spans[0].1 == 270 && spans[6] == (270, 270), "{spans:?}");
    assert!(timeline.events.is_sorted_by_key(|event| event.began));
}

#[test]
fn steps_without_results_are_known_at_their_end() {
    let (watch, gpu) = (always(), Script::new(&[200, 260]));
    watch.enter(&gpu, Part::Step).unwrap();
    watch.enter(&gpu, Part::Ffn).unwrap();
    watch.work(&gpu).unwrap();
    watch.leave(&gpu).unwrap();
    watch.leave(&gpu).unwrap();
    assert_eq!(ms(&watch.take_times(&gpu).unwrap(), Part::Ffn), 60.0);
}

#[test]
fn a_gpu_that_fails_leaves_no_part_open() {
    let (watch, gpu) = (always(), Script::new(&[200, 230, 270, 500, 510, 530]));
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
    let (watch, gpu) = (always(), Script::new(&[200, 199, 230]));
    step(&watch, &gpu);
    let times = watch.take_times(&gpu).unwrap();
    assert_eq!([ms(&times, Part::Norm), ms(&times, Part::Ffn)], [0.0, 30.0]);
}
