//! Numbers that are a function of a seed: the same workload for everyone who names the same one.

/// A sequence of pseudo-random numbers (SplitMix64: Steele, Lea, Flood, 2014).
pub struct Random(u64);

/// SplitMix64's step, from the same paper.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

impl Random {
    /// One of many sequences of a seed.
    pub fn new(seed: u64, sequence: u64) -> Self {
        let mut random = Random(seed);
        // Neighbouring seeds and sequences begin far from each other.
        random.0 = random.next() ^ sequence.wrapping_mul(STEP);
        random.0 = random.next();
        random
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A whole number from `from` to `to`, both included.
    pub fn between(&mut self, from: usize, to: usize) -> usize {
        assert!(from <= to, "{from} is more than {to}");
        let count = (to - from) as u128 + 1;
        from + ((u128::from(self.next()) * count) >> 64) as usize
    }

    /// A number above 0, up to and with 1.
    fn unit(&mut self) -> f64 {
        ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }

    /// Of the standard normal distribution (Box, Muller, 1958).
    fn normal(&mut self) -> f64 {
        let radius = (-2.0 * self.unit().ln()).sqrt();
        radius * (std::f64::consts::TAU * self.unit()).cos()
    }

    /// Of the gamma distribution with this shape and scale 1 (Marsaglia, Tsang, 2000).
    pub fn gamma(&mut self, shape: f64) -> f64 {
        if shape < 1.0 {
            let boost = self.unit().powf(1.0 / shape);
            return self.gamma(shape + 1.0) * boost;
        }
        let d = shape - 1.0 / 3.0;
        let c = 1.0 / (9.0 * d).sqrt();
        loop {
            let x = self.normal();
            let v = (1.0 + c * x).powi(3);
            if v > 0.0 && self.unit().ln() < 0.5 * x * x + d - d * v + d * v.ln() {
                return d * v;
            }
        }
    }

    /// Puts things in another order (Fisher, Yates).
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for last in (1..things.len()).rev() {
            things.swap(last, self.between(0, last));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequence_is_a_function_of_seed_and_number() {
        let first = |seed, sequence| Random::new(seed, sequence).next();
        assert_eq!(first(1, 2), first(1, 2));
        let mut all: Vec<u64> = (0..100).flat_map(|seed| (0..100).map(move |s| first(seed, s))).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 10_000);
    }

    #[test]
    fn whole_numbers_reach_both_ends() {
        let mut random = Random::new(0, 0);
        let mut seen = [0; 3];
        (0..300).for_each(|_| seen[random.between(5, 7) - 5] += 1);
        assert!(seen.iter().all(|&n| n > 50), "{seen:?}");
        assert_eq!(random.between(9, 9), 9);
        random.between(0, usize::MAX);
    }

    #[test]
    fn gamma_has_its_mean_and_variance() {
        for shape in [0.25, 0.9, 1.0, 4.0, 100.0] {
            let mut random = Random::new(3, 0);
            let values: Vec<f64> = (0..20_000).map(|_| random.gamma(shape)).collect();
            let mean = values.iter().sum::<f64>() / values.len() as f64;
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / values.len() as f64;
            assert!((mean / shape - 1.0).abs() < 0.05, "shape {shape}: mean {mean}");
            assert!((variance / shape - 1.0).abs() < 0.15, "shape {shape}: variance {variance}");
        }
    }

    #[test]
    fn shuffling_loses_nothing() {
        let mut things: Vec<usize> = (0..50).collect();
        Random::new(7, 0).shuffle(&mut things);
        assert_ne!(things, (0..50).collect::<Vec<_>>());
        things.sort_unstable();
        assert_eq!(things, (0..50).collect::<Vec<_>>());
    }
}
