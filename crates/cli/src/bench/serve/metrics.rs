//! What a run's answers say of the server.

use std::time::Duration;

use clap::ValueEnum;

use super::load::{Outcome, Run};
use super::statistics::{Values, busiest_window, most_at_a_time};
use super::stream::Timing;

/// The window of the peak of output, seconds.
const PEAK_WINDOW: f64 = 1.0;

/// What is measured of each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Metric {
    /// Time to the first token
    Ttft,
    /// Time per output token after the first
    Tpot,
    /// Time between one chunk of tokens and the next
    Itl,
    /// Time to the end
    E2el,
}

impl Metric {
    /// As it is called in flags and results.
    pub fn key(self) -> &'static str {
        match self {
            Metric::Ttft => "ttft",
            Metric::Tpot => "tpot",
            Metric::Itl => "itl",
            Metric::E2el => "e2el",
        }
    }

    /// Milliseconds of one answer: none, one, or of [`Metric::Itl`] many. One token has no time per further token.
    fn of(self, timing: &Timing) -> Vec<f64> {
        match self {
            Metric::Ttft => vec![ms(timing.ttft)],
            Metric::Tpot => tpot(timing).into_iter().collect(),
            Metric::Itl => timing.itls.iter().copied().map(ms).collect(),
            Metric::E2el => vec![ms(timing.e2el)],
        }
    }
}

fn ms(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// Milliseconds of each token after the first.
fn tpot(timing: &Timing) -> Option<f64> {
    let further = timing.output_tokens.checked_sub(1).filter(|&n| n > 0)?;
    Some(ms(timing.e2el - timing.ttft) / further as f64)
}

/// A request is good if it took no longer than this.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Goal {
    pub metric: Metric,
    pub ms: f64,
}

impl Goal {
    /// Reads `ttft:500`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("\"{text}\" is no goal; give ttft, tpot or e2el and milliseconds, such as ttft:500");
        let (key, ms) = text.trim().split_once(':').ok_or_else(wrong)?;
        let metric = match key {
            "ttft" => Metric::Ttft,
            "tpot" => Metric::Tpot,
            "e2el" => Metric::E2el,
            _ => return Err(wrong()),
        };
        match ms.parse::<f64>() {
            Ok(ms) if ms > 0.0 && ms.is_finite() => Ok(Goal { metric, ms }),
            _ => Err(wrong()),
        }
    }

    /// A request of one token meets each goal of time per further token.
    fn is_met(&self, timing: &Timing) -> bool {
        self.metric.of(timing).iter().all(|&ms| ms <= self.ms)
    }
}

/// A run in numbers.
pub struct Summary {
    pub duration_s: f64,
    pub completed: usize,
    pub failed: usize,
    pub input_tokens: usize,
    pub output_tokens: usize,
    /// Requests that met all goals, if there are goals.
    pub good: Option<usize>,
    /// The most output tokens of a second.
    pub peak_output_throughput: f64,
    /// The most requests that ran at a time.
    pub peak_concurrency: usize,
}

impl Summary {
    pub fn of(run: &Run, goals: &[Goal]) -> Self {
        let answers = || timings(run).map(|(_, timing)| timing);
        let duration_s = run.duration.as_secs_f64().max(1e-9);
        let good = answers().filter(|timing| goals.iter().all(|goal| goal.is_met(timing))).count();
        // A run of less than a second is one window.
        let window = duration_s.min(PEAK_WINDOW);
        Summary {
            duration_s,
            completed: answers().count(),
            failed: run.outcomes.iter().filter(|outcome| outcome.timing.is_err()).count(),
            input_tokens: answers().filter_map(|timing| timing.prompt_tokens).sum(),
            output_tokens: answers().map(|timing| timing.output_tokens).sum(),
            good: (!goals.is_empty()).then_some(good),
            peak_output_throughput: busiest_window(timings(run).flat_map(tokens).collect(), window) / window,
            peak_concurrency: most_at_a_time(
                run.outcomes.iter().map(|o| (o.sent.as_secs_f64(), o.ended.as_secs_f64())),
            ),
        }
    }

    /// So much of something per second of the run.
    pub fn per_second(&self, amount: usize) -> f64 {
        amount as f64 / self.duration_s
    }
}

/// All values of a metric, milliseconds.
pub fn values(run: &Run, metric: Metric) -> Values {
    Values::new(timings(run).flat_map(|(_, timing)| metric.of(timing)).collect())
}

fn timings(run: &Run) -> impl Iterator<Item = (&Outcome, &Timing)> {
    run.outcomes.iter().filter_map(|outcome| Some((outcome, outcome.timing.as_ref().ok()?)))
}

/// When how many tokens came. A server may send several in a chunk: they are counted evenly.
fn tokens((outcome, timing): (&Outcome, &Timing)) -> Vec<(f64, f64)> {
    let each = timing.output_tokens as f64 / (timing.itls.len() + 1) as f64;
    let mut now = outcome.sent + timing.ttft;
    let mut times = vec![now];
    times.extend(timing.itls.iter().map(|&itl| {
        now += itl;
        now
    }));
    times.into_iter().map(|time| (time.as_secs_f64(), each)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(ttft: u64, itls: &[u64], output_tokens: usize) -> Timing {
        let itls: Vec<Duration> = itls.iter().copied().map(Duration::from_millis).collect();
        let ttft = Duration::from_millis(ttft);
        Timing { ttft, e2el: ttft + itls.iter().sum(), itls, prompt_tokens: Some(7), output_tokens }
    }

    fn run() -> Run {
        let outcome = |index, sent: u64, timing: Result<Timing, String>| {
            let sent = Duration::from_millis(sent);
            let took = timing.as_ref().map_or(Duration::from_millis(50), |timing| timing.e2el);
            Outcome { index, sent, ended: sent + took, timing }
        };
        let outcomes = vec![
            outcome(0, 0, Ok(timing(100, &[200, 300], 5))),
            outcome(1, 0, Ok(timing(400, &[], 1))),
            outcome(2, 500, Err("broken".into())),
        ];
        Run { outcomes, duration: Duration::from_millis(2000), stopped_by: None }
    }

    #[test]
    fn counts_and_rates_are_of_answers() {
        let summary = Summary::of(&run(), &[]);
        assert_eq!((summary.completed, summary.failed, summary.good), (2, 1, None));
        assert_eq!((summary.input_tokens, summary.output_tokens), (14, 6));
        assert_eq!(summary.per_second(summary.output_tokens), 3.0);
        assert!((summary.peak_output_throughput - 6.0).abs() < 1e-9);
        assert_eq!(summary.peak_concurrency, 2);
    }

    #[test]
    fn time_per_token_leaves_out_the_first_and_answers_of_one() {
        let of = |metric| values(&run(), metric);
        assert_eq!(of(Metric::Tpot).percentile(50.0), 125.0);
        assert_eq!((of(Metric::Ttft).percentile(0.0), of(Metric::Ttft).percentile(100.0)), (100.0, 400.0));
        assert_eq!(of(Metric::Itl).mean(), 250.0);
        assert_eq!(of(Metric::E2el).mean(), 500.0);
    }

    #[test]
    fn a_request_is_good_if_it_meets_all_goals() {
        let goals = |texts: &[&str]| texts.iter().map(|text| Goal::parse(text).unwrap()).collect::<Vec<_>>();
        let good = |texts: &[&str]| Summary::of(&run(), &goals(texts)).good;
        assert_eq!(good(&["ttft:400"]), Some(2));
        assert_eq!(good(&["ttft:399.9"]), Some(1));
        assert_eq!(good(&["tpot:1"]), Some(1), "one token has no further one");
        assert_eq!(good(&["ttft:399", "tpot:1"]), Some(0));
        assert_eq!(good(&["e2el:500"]), Some(1));
    }

    #[test]
    fn what_is_no_goal_is_refused() {
        for text in
            ["", "ttft", "ttft:", "ttft:0", "ttft:-1", "ttft:inf", "ttft:nan", "itl:5", "x:5", "5:ttft"]
        {
            assert!(Goal::parse(text).unwrap_err().contains("ttft:500"), "{text}");
        }
    }
}
