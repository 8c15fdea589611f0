//! How a token is chosen: a request's parameters, and what they come to for one row of logits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use tensor::LogitEdit;

use crate::EngineError;

/// Temperatures below this are greedy, as they are for vLLM: dividing by them would overflow.
const GREEDY_BELOW: f32 = 1e-5;

/// A request's sampling parameters.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SamplingParams {
    /// 0, or so little that it comes to the same, takes the most probable token.
    pub temperature: f32,
    /// Only the k most probable tokens; 0: all.
    pub top_k: usize,
    /// Only the most probable tokens whose probabilities reach this sum.
    pub top_p: f32,
    /// Only tokens at least this times as probable as the most probable one.
    pub min_p: f32,
    /// Divides the positive logits of tokens that prompt or completion has, multiplies the negative ones.
    pub repetition_penalty: f32,
    /// Taken off the logits of tokens that the completion has.
    pub presence_penalty: f32,
    /// Taken off those logits once per occurrence.
    pub frequency_penalty: f32,
    /// The same seed gives the same completion.
    pub seed: u64,
}

impl Default for SamplingParams {
    fn default() -> Self {
        SamplingParams {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }
}

impl SamplingParams {
    /// # Errors
    /// Names the first parameter that can't be, and what could.
    pub fn check(&self) -> Result<(), EngineError> {
        let within = |name: &str, value: f32, ok: bool, range: &str| match ok {
            true => Ok(()),
            false => Err(EngineError::Request(format!("{name} is {value}; it must be {range}"))),
        };
        let t = self.temperature;
        within("temperature", t, t.is_finite() && t >= 0.0, "0 (greedy) or a positive number")?;
        let p = self.top_p;
        within("top_p", p, p > 0.0 && p <= 1.0, "above 0 and at most 1")?;
        within("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "from 0 to 1")?;
        let r = self.repetition_penalty;
        within("repetition_penalty", r, r.is_finite() && r > 0.0, "a positive number")?;
        for (name, value) in
            [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)]
        {
            within(name, value, (-2.0..=2.0).contains(&value), "from -2 to 2")?;
        }
        Ok(())
    }

    fn greedy(&self) -> bool {
        self.temperature < GREEDY_BELOW
    }

    /// What changes a row of logits before the choice: penalties, then temperature.
    pub(crate) fn edits(&self, row: usize, prompt: &[u32], completion: &[u32]) -> Vec<LogitEdit> {
        let mut edits = Vec::new();
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        for &id in completion {
            *counts.entry(id).or_default() += 1;
        }
        if self.repetition_penalty != 1.0 {
            let mut seen: Vec<u32> = prompt.iter().chain(completion).copied().collect();
            seen.sort_unstable();
            seen.dedup();
            let by = self.repetition_penalty;
            edits.extend(seen.iter().map(|&id| LogitEdit::Repetition { row, col: id as usize, by }));
        }
        if self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 {
            let by = |count: usize| -(self.presence_penalty + self.frequency_penalty * count as f32);
            edits.extend(counts.iter().map(|(&id, &n)| LogitEdit::Add { row, col: id as usize, by: by(n) }));
        }
        if !self.greedy() {
            edits.push(LogitEdit::Divide { row, by: self.temperature });
        }
        edits
    }

    /// What a rank needs to choose, `position` being that of the token to come.
    pub(crate) fn choice(&self, position: usize) -> Choice {
        Choice {
            greedy: self.greedy(),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            uniform: uniform(self.seed, position as u64, 0),
        }
    }
}

/// How one row's token is chosen, once its logits are edited.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Choice {
    pub greedy: bool,
    pub top_k: usize,
    pub top_p: f32,
    pub min_p: f32,
    /// From [0, 1).
    pub uniform: f64,
}

/// A number from [0, 1) that is a function of its key alone (SplitMix64's finaliser over the three words).
fn uniform(seed: u64, position: u64, choice: u64) -> f64 {
    let mut z = 0u64;
    for word in [seed, position, choice] {
        z = z.wrapping_add(word).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
    }
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn impossible_parameters_are_named() {
        let wrong = [
            SamplingParams { temperature: -1.0, ..Default::default() },
            SamplingParams { temperature: f32::NAN, ..Default::default() },
            SamplingParams { top_p: 0.0, ..Default::default() },
            SamplingParams { top_p: f32::NAN, ..Default::default() },
            SamplingParams { min_p: -0.1, ..Default::default() },
            SamplingParams { repetition_penalty: 0.0, ..Default::default() },
            SamplingParams { presence_penalty: f32::NAN, ..Default::default() },
            SamplingParams { frequency_penalty: 3.0, ..Default::default() },
        ];
        let names =
            ["temperature", "temperature", "top_p", "top_p", "min_p", "repetition", "presence", "frequency"];
        for (params, name) in wrong.iter().zip(names) {
            let error = params.check().unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(name), "{error}");
        }
        SamplingParams::default().check().unwrap();
    }

    #[test]
    fn uniform_numbers_are_uniform_and_keyed() {
        let mean = (0..10_000).map(|i| uniform(7, i, 0)).sum::<f64>() / 10_000.0;
        assert!((mean - 0.5).abs() < 0.01, "{mean}");
        assert_eq!(uniform(7, 3, 0), uniform(7, 3, 0));
        assert_ne!(uniform(7, 3, 0), uniform(8, 3, 0));
        assert_ne!(uniform(7, 3, 0), uniform(3, 7, 0));
    }
}
