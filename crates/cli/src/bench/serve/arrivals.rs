//! When requests are sent.

use super::random::Random;

/// The sequence of a seed that arrivals are made of; those of prompts count up from 0.
const SEQUENCE: u64 = 1 << 63;

/// Seconds from the start at which each request is due, never less than the one before.
///
/// The times between them are of a gamma distribution of shape `burstiness` (1: a Poisson process; less: bursts; more: evenly
/// spread) and mean 1 / `rate`. As in vLLM they are then stretched so that the last request is due at count / `rate`: every seed
/// offers the same load. A rate of infinity: all at once.
pub fn arrivals(count: usize, rate: f64, burstiness: f64, seed: u64) -> Vec<f64> {
    if rate.is_infinite() {
        return vec![0.0; count];
    }
    let mut random = Random::new(seed, SEQUENCE);
    let gaps = (0..count)
        .map(|_| if burstiness.is_infinite() { 1.0 } else { random.gamma(burstiness) / burstiness });
    let mut due: Vec<f64> = gaps
        .scan(0.0, |now, gap| {
            *now += gap;
            Some(*now)
        })
        .collect();
    let last = due.last().copied().unwrap_or(0.0);
    for (i, time) in due.iter_mut().enumerate() {
        // Gaps so bursty that all of them are 0 have nothing to stretch.
        *time = if last > 0.0 { *time / last * count as f64 } else { (i + 1) as f64 } / rate;
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(due: &[f64]) -> Vec<f64> {
        due.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// Standard deviation as a fraction of the mean.
    fn variation(values: &[f64]) -> f64 {
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        (values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64).sqrt() / mean
    }

    #[test]
    fn without_a_rate_all_are_due_at_once() {
        assert_eq!(arrivals(3, f64::INFINITY, 1.0, 0), [0.0; 3]);
    }

    #[test]
    fn a_seed_says_when_and_every_seed_offers_the_same_load() {
        let due = arrivals(200, 10.0, 1.0, 1);
        assert_eq!(due, arrivals(200, 10.0, 1.0, 1));
        assert_ne!(due, arrivals(200, 10.0, 1.0, 2));
        for seed in 0..5 {
            let due = arrivals(200, 10.0, 1.0, seed);
            assert!((due[199] - 20.0).abs() < 1e-9 && due.is_sorted() && due[0] > 0.0, "{due:?}");
        }
    }

    #[test]
    fn less_burstiness_is_more_bursty() {
        let of = |burstiness| variation(&gaps(&arrivals(5000, 10.0, burstiness, 0)));
        for burstiness in [0.25, 1.0, 4.0] {
            let expected = 1.0 / f64::sqrt(burstiness);
            assert!((of(burstiness) / expected - 1.0).abs() < 0.1, "{burstiness}: {}", of(burstiness));
        }
        assert!(of(f64::INFINITY) < 1e-9);
        assert!(arrivals(10, 1.0, 1e-6, 0).iter().all(|due| due.is_finite()));
    }
}
