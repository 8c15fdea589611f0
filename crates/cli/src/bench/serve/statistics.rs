//! Numbers out of many numbers.

/// Sorted values, of which none is no number.
pub struct Values(Vec<f64>);

impl Values {
    pub fn new(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        Values(values)
    }

    /// 0 where there are none, as in vLLM's results.
    pub fn mean(&self) -> f64 {
        match self.0.is_empty() {
            true => 0.0,
            false => self.0.iter().sum::<f64>() / self.0.len() as f64,
        }
    }

    /// The standard deviation of all there are, not of a sample.
    pub fn std(&self) -> f64 {
        let mean = self.mean();
        Values(self.0.iter().map(|value| (value - mean).powi(2)).collect()).mean().sqrt()
    }

    /// The value that so many percent are not above, with linear interpolation between neighbours, as numpy has it.
    pub fn percentile(&self, percent: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return 0.0 };
        let at = percent / 100.0 * last as f64;
        let below = (at.floor() as usize).min(last);
        let (low, high) = (self.0[below], self.0[(below + 1).min(last)]);
        low + (high - low) * (at - below as f64)
    }
}

/// The most that came within a window of this length. Each event is a time and how much came then.
pub fn busiest_window(mut events: Vec<(f64, f64)>, window: f64) -> f64 {
    events.sort_by(|a, b| a.0.total_cmp(&b.0));
    let (mut first, mut within, mut most) = (0, 0.0, 0.0f64);
    for &(time, amount) in &events {
        within += amount;
        // A window has its beginning and not its end, so that a second has no more than a second's tokens.
        while time - events[first].0 >= window && first < events.len() - 1 && events[first].0 < time {
            within -= events[first].1;
            first += 1;
        }
        most = most.max(within);
    }
    most
}

/// The most of these spans that there were at a time. One that begins when another ends is not there at the same time.
pub fn most_at_a_time(spans: impl Iterator<Item = (f64, f64)>) -> usize {
    let mut changes: Vec<(f64, i64)> = spans.flat_map(|(from, to)| [(from, 1), (to, -1)]).collect();
    changes.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let now = changes.iter().scan(0, |now, (_, change)| {
        *now += change;
        Some(*now)
    });
    now.max().unwrap_or(0).max(0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_numpys() {
        // numpy.percentile([15, 20, 35, 40, 50], p)
        let values = Values::new(vec![50.0, 15.0, 40.0, 20.0, 35.0]);
        let cases = [(0.0, 15.0), (5.0, 16.0), (40.0, 29.0), (50.0, 35.0), (99.0, 49.6), (100.0, 50.0)];
        for (percent, expected) in cases {
            assert!((values.percentile(percent) - expected).abs() < 1e-9, "p{percent}");
        }
        assert_eq!(Values::new(vec![3.0]).percentile(99.0), 3.0);
        assert_eq!(Values::new(vec![1.0, 2.0]).percentile(50.0), 1.5);
    }

    #[test]
    fn mean_and_deviation_are_of_all_values() {
        let values = Values::new(vec![2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
        assert_eq!((values.mean(), values.std()), (5.0, 2.0));
        let none = Values::new(Vec::new());
        assert_eq!((none.mean(), none.std(), none.percentile(50.0)), (0.0, 0.0, 0.0));
    }

    #[test]
    fn the_busiest_second_may_begin_anywhere() {
        let events = vec![(0.9, 2.0), (0.0, 1.0), (1.1, 3.0), (1.8, 4.0), (1.95, 5.0), (5.0, 1.0)];
        assert_eq!(busiest_window(events, 1.0), 12.0);
        assert_eq!(busiest_window(vec![(0.0, 1.0), (1.0, 1.0)], 1.0), 1.0);
        assert_eq!(busiest_window(vec![(3.0, 2.0), (3.0, 2.0)], 0.0), 4.0);
        assert_eq!(busiest_window(Vec::new(), 1.0), 0.0);
    }

    #[test]
    fn what_ends_is_gone_when_the_next_begins() {
        let most = |spans: &[(f64, f64)]| most_at_a_time(spans.iter().copied());
        assert_eq!(most(&[(0.0, 1.0), (1.0, 2.0)]), 1);
        assert_eq!(most(&[(0.0, 3.0), (1.0, 2.0), (1.5, 4.0)]), 3);
        assert_eq!(most(&[]), 0);
    }
}
