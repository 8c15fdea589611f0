//! Steps of pretended machines have about the length that was asked for.

mod latency;
mod machine;
#[path = "../simulation/random.rs"]
mod random;

use machine::{MACHINES, Machine};
use random::Random;
use scheduler::StepBudget;

/// A machine, what it is told to do, and how noisy it is.
struct Run {
    machine: Machine,
    budget: StepBudget,
    random: Random,
    /// Steps take up to so much longer.
    noise: f64,
    /// One step of so many takes ten times as long.
    outlier: Option<usize>,
}

impl Run {
    fn new(machine: Machine) -> Run {
        Run { machine, budget: StepBudget::default(), random: Random(1), noise: 0.0, outlier: None }
    }

    fn noisy(machine: Machine) -> Run {
        Run { noise: 0.4, outlier: Some(30), ..Run::new(machine) }
    }

    /// A step with prompts, or without. Rows of prompts, and what the machine would take for the step when nobody
    /// disturbs it.
    fn step(&mut self, decoding: usize, prompts: bool) -> (usize, f64) {
        let rows = self.budget.rows(decoding, 8192);
        let prompt_rows = if prompts { rows - decoding } else { 0 };
        let quiet = self.machine.step_s(decoding + prompt_rows);
        let mut seconds = quiet * (1.0 + self.noise * self.random.between(0, 100) as f64 / 100.0);
        if self.outlier.is_some_and(|n| self.random.one_in(n)) {
            seconds *= 10.0;
        }
        self.budget.observe(decoding, prompt_rows, seconds);
        (prompt_rows, quiet)
    }

    /// The life of a server so far: a prompt, then its tokens.
    fn warm_up(&mut self, decoding: usize) {
        for _ in 0..10 {
            self.step(0, true);
        }
        for _ in 0..30 {
            self.step(decoding, false);
        }
    }

    /// What a step with prompts takes, of what it takes without; the mean of the last of many.
    fn slowdown(&mut self, decoding: usize) -> f64 {
        let without = self.machine.step_s(decoding);
        let steps: Vec<f64> = (0..120).map(|_| self.step(decoding, true).1 / without).collect();
        steps[20..].iter().sum::<f64>() / 100.0
    }
}

/// What eight prompt rows take, which no step goes below, of what a step takes without.
fn least(machine: Machine, decoding: usize) -> f64 {
    machine.step_s(decoding + 8) / machine.step_s(decoding)
}

#[test]
fn a_long_prompt_makes_a_step_two_and_a_half_times_as_long() {
    for machine in MACHINES {
        for decoding in [1, 4, 32] {
            let mut run = Run::new(machine);
            run.warm_up(decoding);
            let slowdown = run.slowdown(decoding);
            let ends = (2.25_f64.min(0.9 * machine.step_s(8192) / machine.step_s(decoding)), 2.6_f64);
            let ends = (ends.0, ends.1.max(1.05 * least(machine, decoding)));
            assert!((ends.0..ends.1).contains(&slowdown), "{machine:?} with {decoding} streams: {slowdown}");
        }
    }
}

#[test]
fn no_stream_waits_four_steps_once_its_machine_is_known() {
    for machine in MACHINES {
        let mut run = Run::new(machine);
        run.warm_up(1);
        // Streams come and go, and prompts all the time.
        for decoding in [1, 2, 8, 32, 20, 5, 1, 16] {
            for _ in 0..30 {
                run.step(decoding, false);
            }
            for step in 0..50 {
                let slowdown = run.step(decoding, true).1 / machine.step_s(decoding);
                let most = 4.0_f64.max(1.01 * least(machine, decoding));
                assert!(slowdown < most, "{machine:?}: step {step} with {decoding} streams: {slowdown}");
            }
        }
    }
}

#[test]
fn noise_and_outliers_neither_starve_prompts_nor_stall_streams() {
    for machine in MACHINES {
        for decoding in [1, 8] {
            let mut run = Run::noisy(machine);
            run.warm_up(decoding);
            for _ in 0..20 {
                let slowdown = run.slowdown(decoding);
                let ends = (1.8_f64.min(0.6 * machine.step_s(8192) / machine.step_s(decoding)), 4.0_f64);
                let ends = (ends.0, ends.1.max(1.1 * least(machine, decoding)));
                assert!((ends.0..ends.1).contains(&slowdown), "{machine:?} with {decoding}: {slowdown}");
            }
        }
    }
}

#[test]
fn without_streams_a_step_takes_about_a_second_or_has_64_rows() {
    for machine in MACHINES {
        for mut run in [Run::new(machine), Run::noisy(machine)] {
            assert_eq!(run.step(0, true).0, 64, "nothing is known yet");
            for step in 0..200 {
                let (rows, seconds) = run.step(0, true);
                assert!(
                    rows >= 64 && (seconds < 1.3 || rows == 64),
                    "{machine:?}: {rows} rows take {seconds} s"
                );
                let is_whole = seconds > 0.4 || rows == 8192;
                assert!(step < 30 || rows == 64 || is_whole, "{machine:?}: {rows} rows take {seconds} s");
            }
        }
    }
}

#[test]
fn prompts_get_rows_from_the_first_step_on_also_if_none_is_without_them() {
    for machine in MACHINES {
        let mut run = Run::new(machine);
        run.step(0, true);
        let mut worst = 0.0_f64;
        let mut rows = 0;
        for decoding in 1..=32 {
            for _ in 0..4 {
                let (prompt_rows, seconds) = run.step(decoding, true);
                worst = worst.max(seconds / machine.step_s(decoding) / least(machine, decoding).max(1.0));
                rows = prompt_rows;
            }
        }
        assert!(rows >= 8 && worst < 4.0, "{machine:?}: {rows} rows, at worst {worst}");
    }
}

#[test]
fn a_machine_that_becomes_slow_or_quick_is_known_anew() {
    let (quick, slow) = (MACHINES[3], Machine { weights_s: 0.5, row_s: 0.05, overlaps: false });
    let mut run = Run::new(quick);
    for machine in [quick, slow, quick] {
        run.machine = machine;
        run.warm_up(4);
        let slowdown = run.slowdown(4);
        assert!((2.1..2.7).contains(&slowdown), "{machine:?}: {slowdown}");
    }
}

#[test]
fn before_anything_was_observed_prompts_get_few_rows() {
    let budget = StepBudget::default();
    assert_eq!([budget.rows(0, 8192), budget.rows(0, 40), budget.rows(5, 8192)], [64, 40, 13]);
    let mut nonsense = budget.clone();
    for seconds in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        nonsense.observe(3, 0, seconds);
        nonsense.observe(0, 9, seconds);
        nonsense.observe(3, 9, seconds);
        nonsense.observe(0, 0, 1.0);
    }
    assert_eq!([nonsense.rows(0, 8192), nonsense.rows(5, 8192)], [64, 13]);
    assert_eq!(budget.rows(usize::MAX, usize::MAX), usize::MAX);
}
