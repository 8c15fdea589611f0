//! What happened in the last minute: tokens per second, and quantiles of latencies.
//!
//! One slot per second, and in it a histogram whose buckets grow by a tenth: memory is the same however busy the server is.

use std::time::{Duration, Instant};

use serde::Serialize;

const SLOTS: usize = 60;
const BUCKETS: usize = 160;
const SHORTEST_S: f64 = 50e-6;
const GROWTH: f64 = 1.1;

/// The last minute.
pub struct Rates {
    began: Instant,
    slots: Vec<Slot>,
}

#[derive(Clone)]
struct Slot {
    /// Which second since the beginning this is.
    second: u64,
    generated: u64,
    prompt: u64,
    ttft: [u32; BUCKETS],
    itl: [u32; BUCKETS],
}

/// What the page shows of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct RecentRates {
    /// Tokens chosen, per second.
    pub generation_tokens_per_s: f64,
    /// Prompt tokens of requests that gave their first token, per second.
    pub prompt_tokens_per_s: f64,
    /// Milliseconds to the first token: the median.
    pub ttft_ms_p50: Option<f64>,
    /// The same, that 99 of 100 keep.
    pub ttft_ms_p99: Option<f64>,
    /// Milliseconds between tokens: the median.
    pub itl_ms_p50: Option<f64>,
    /// The same, that 99 of 100 keep.
    pub itl_ms_p99: Option<f64>,
}

impl Rates {
    /// Nothing has happened.
    pub fn new(began: Instant) -> Self {
        let slot = Slot { second: u64::MAX, generated: 0, prompt: 0, ttft: [0; BUCKETS], itl: [0; BUCKETS] };
        Rates { began, slots: vec![slot; SLOTS] }
    }

    /// A request's first token, so long after it came.
    pub fn first_token(&mut self, now: Instant, ttft: Duration, prompt_tokens: usize) {
        let slot = self.slot(now);
        slot.generated += 1;
        slot.prompt += prompt_tokens as u64;
        slot.ttft[bucket(ttft)] += 1;
    }

    /// A further token; and if so many tokens' pace is known with it, that.
    pub fn token(&mut self, now: Instant, pace: Option<(Duration, u32)>) {
        let slot = self.slot(now);
        slot.generated += 1;
        if let Some((between, tokens)) = pace {
            slot.itl[bucket(between)] += tokens;
        }
    }

    /// The last ten seconds' tokens, and the last minute's latencies.
    pub fn recent(&self, now: Instant) -> RecentRates {
        const RATE_S: u64 = 10;
        let second = self.second(now);
        let age = |slot: &&Slot| second.checked_sub(slot.second);
        let lately =
            |within: u64| self.slots.iter().filter(move |slot| age(slot).is_some_and(|age| age < within));
        // The current second is not over: it counts as far as it went.
        let past = now.saturating_duration_since(self.began).as_secs_f64();
        let seconds = past.min((RATE_S - 1) as f64 + past.fract()).max(1.0);
        let quantile = |of: fn(&Slot) -> &[u32; BUCKETS], q: f64| {
            let mut sum = [0u64; BUCKETS];
            for slot in lately(SLOTS as u64) {
                sum.iter_mut().zip(of(slot)).for_each(|(sum, &n)| *sum += u64::from(n));
            }
            quantile_ms(&sum, q)
        };
        RecentRates {
            generation_tokens_per_s: lately(RATE_S).map(|slot| slot.generated).sum::<u64>() as f64 / seconds,
            prompt_tokens_per_s: lately(RATE_S).map(|slot| slot.prompt).sum::<u64>() as f64 / seconds,
            ttft_ms_p50: quantile(|slot| &slot.ttft, 0.5),
            ttft_ms_p99: quantile(|slot| &slot.ttft, 0.99),
            itl_ms_p50: quantile(|slot| &slot.itl, 0.5),
            itl_ms_p99: quantile(|slot| &slot.itl, 0.99),
        }
    }

    fn second(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.began).as_secs()
    }

    fn slot(&mut self, now: Instant) -> &mut Slot {
        let second = self.second(now);
        let slot = &mut self.slots[second as usize % SLOTS];
        if slot.second != second {
            *slot = Slot { second, generated: 0, prompt: 0, ttft: [0; BUCKETS], itl: [0; BUCKETS] };
        }
        slot
    }
}

/// How quickly a request's tokens come.
///
/// Where steps are quicker than their news travels, several tokens come at once, and what is between two of those says
/// nothing. So tokens are taken together until there is some time between them; those that end an answer before are left out.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    since: Instant,
    tokens: u32,
}

impl Pace {
    /// Behind a first token.
    pub fn new(first: Instant) -> Self {
        Pace { since: first, tokens: 0 }
    }

    /// A further token: the mean time between those that this one completes, and how many they are.
    pub fn token(&mut self, now: Instant) -> Option<(Duration, u32)> {
        const TOGETHER: Duration = Duration::from_millis(5);
        self.tokens += 1;
        let past = now.saturating_duration_since(self.since);
        if past < TOGETHER {
            return None;
        }
        let Pace { tokens, .. } = std::mem::replace(self, Pace::new(now));
        Some((past / tokens, tokens))
    }
}

fn bucket(time: Duration) -> usize {
    let bucket = (time.as_secs_f64() / SHORTEST_S).max(1.0).log(GROWTH);
    (bucket as usize).min(BUCKETS - 1)
}

/// The middle of the bucket that the quantile is in, in milliseconds.
fn quantile_ms(counts: &[u64; BUCKETS], q: f64) -> Option<f64> {
    let total: u64 = counts.iter().sum();
    let rank = ((total as f64 * q).ceil() as u64).max(1);
    let mut below = 0;
    let found = counts.iter().position(|&n| {
        below += n;
        below >= rank
    });
    found.map(|bucket| 1e3 * SHORTEST_S * GROWTH.powf(bucket as f64 + 0.5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_right_to_a_tenth_and_old_ones_are_forgotten() {
        let began = Instant::now();
        let mut rates = Rates::new(began);
        assert_eq!(rates.recent(began).itl_ms_p50, None);
        let at = |s: u64| began + Duration::from_secs(s);
        rates.first_token(at(1), Duration::from_millis(200), 30);
        for i in 0..100 {
            rates.token(at(1), Some((Duration::from_millis(if i < 98 { 10 } else { 100 }), 1)));
        }
        let recent = rates.recent(at(10));
        let near = |found: Option<f64>, ms: f64| (found.unwrap() / ms - 1.0).abs() < 0.1;
        assert!(near(recent.ttft_ms_p50, 200.0) && near(recent.itl_ms_p50, 10.0), "{recent:?}");
        assert!(near(recent.itl_ms_p99, 100.0), "{recent:?}");
        assert!((recent.generation_tokens_per_s - 101.0 / 9.0).abs() < 1e-9, "{recent:?}");
        assert_eq!(rates.recent(at(62)).itl_ms_p50, None);
    }

    #[test]
    fn tokens_that_come_in_bursts_have_the_pace_of_the_bursts() {
        let began = Instant::now();
        let at = |us: u64| began + Duration::from_micros(us);
        // Four at a time, every four milliseconds.
        let (mut pace, mut told) = (Pace::new(at(0)), 0);
        for i in 1..=40u64 {
            let now = at(i.div_ceil(4) * 4000 + i % 4);
            if let Some((between, tokens)) = pace.token(now) {
                assert!((500..2000).contains(&between.as_micros()), "{between:?}");
                told += tokens;
            }
        }
        assert!((36..=40).contains(&told), "{told}");
        // One at a time: each is told of.
        let mut pace = Pace::new(at(0));
        for i in 1..10 {
            assert_eq!(pace.token(at(i * 30_000)), Some((Duration::from_millis(30), 1)));
        }
    }
}
