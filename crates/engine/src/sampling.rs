//! How a token is chosen: a request's parameters, and what they come to for one row of logits.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use tensor::LogitEdit;

use crate::{EngineError, GenerateRequest, Logprobs};

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
    /// Divides the positive logits of tokens that prompt or completion has, multiplies the negative ones; from 0.01 to 100.
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
        // Beyond these a logit could become infinite.
        within("repetition_penalty", r, (0.01..=100.0).contains(&r), "from 0.01 to 100")?;
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

    /// Whether it matters which tokens there are already.
    fn repeats(&self) -> bool {
        self.repetition_penalty != 1.0
    }

    /// Whether it matters how often the completion has a token.
    fn counts(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
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

/// Whether what a request says of its logits can be, in a vocabulary of so many ids.
///
/// # Errors
/// Names the first parameter that can't, and what could.
pub(crate) fn check(request: &GenerateRequest, vocab_size: usize) -> Result<(), EngineError> {
    request.sampling.check()?;
    let refuse = |message: String| Err(EngineError::Request(message));
    for &(id, by) in &request.logit_bias {
        if id as usize >= vocab_size {
            return refuse(format!("logit_bias of id {id}; the model's ids are below {vocab_size}"));
        }
        if !(-100.0..=100.0).contains(&by) {
            return refuse(format!("logit_bias of id {id} is {by}; it must be from -100 to 100"));
        }
    }
    let stops: BTreeSet<u32> = request.stop_token_ids.iter().copied().collect();
    let ends_at_once = stops.range(..vocab_size as u32).count() == vocab_size;
    if request.min_tokens > 0 && ends_at_once {
        return refuse("min_tokens: all ids are stop_token_ids; leave some out".into());
    }
    Ok(())
}

/// What a request's tokens come to for the edits of its logits: counted once, as they come.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct History {
    /// Tokens of the completion so far.
    generated: usize,
    /// Ids that the prompt or the completion has, in order; empty without a repetition penalty.
    seen: Vec<u32>,
    /// How often the completion has each of its own; empty without presence and frequency penalties.
    counts: BTreeMap<u32, u32>,
}

impl History {
    /// That of a request whose completion begins.
    pub fn new(request: &GenerateRequest) -> Self {
        let mut seen = Vec::new();
        if request.sampling.repeats() {
            seen.clone_from(&request.prompt);
            seen.sort_unstable();
            seen.dedup();
            seen.shrink_to_fit();
        }
        History { seen, ..History::default() }
    }

    /// Tokens of the completion so far.
    pub fn generated(&self) -> usize {
        self.generated
    }

    /// Notes a token of the completion.
    pub fn add(&mut self, request: &GenerateRequest, token: u32) {
        self.generated += 1;
        if request.sampling.repeats()
            && let Err(place) = self.seen.binary_search(&token)
        {
            self.seen.insert(place, token);
        }
        if request.sampling.counts() {
            *self.counts.entry(token).or_default() += 1;
        }
    }

    /// What changes a row of logits before its token is chosen, in this order: biases; what is forbidden, by `mask` (one bit
    /// per id, see [`LogitEdit::Allow`]) or because the completion is shorter than `min_tokens`; penalties; temperature.
    pub fn edits(&self, request: &GenerateRequest, row: usize, mask: Option<Vec<u32>>) -> Vec<LogitEdit> {
        let sampling = &request.sampling;
        let bias = request.logit_bias.iter().map(|&(id, by)| LogitEdit::Add { row, col: id as usize, by });
        let mut edits: Vec<LogitEdit> = bias.collect();
        self.forbid(request, row, mask, &mut edits);
        if sampling.repeats() {
            let by = sampling.repetition_penalty;
            edits.push(LogitEdit::Repetition { row, cols: self.seen.clone(), by });
        }
        if sampling.counts() {
            let by = |n: u32| -(sampling.presence_penalty + sampling.frequency_penalty * n as f32);
            let seen = self.counts.iter();
            edits.extend(seen.map(|(&id, &n)| LogitEdit::Add { row, col: id as usize, by: by(n) }));
        }
        if !sampling.greedy() {
            edits.push(LogitEdit::Divide { row, by: sampling.temperature });
        }
        edits
    }

    /// A grammar goes before `min_tokens`: where it allows nothing but to end, the completion ends.
    fn forbid(
        &self,
        request: &GenerateRequest,
        row: usize,
        mask: Option<Vec<u32>>,
        edits: &mut Vec<LogitEdit>,
    ) {
        let is_short = self.generated < request.min_tokens;
        let stops = if is_short { &request.stop_token_ids[..] } else { &[] };
        match mask {
            None => {
                let by = f32::NEG_INFINITY;
                edits.extend(stops.iter().map(|&id| LogitEdit::Add { row, col: id as usize, by }));
            }
            Some(mut words) => {
                if !stops.is_empty() {
                    let mut others = words.clone();
                    for &id in stops.iter().filter(|&&id| LogitEdit::allows(&words, id as usize)) {
                        others[id as usize / 32] &= !(1 << (id % 32));
                    }
                    if others.iter().any(|&word| word != 0) {
                        words = others;
                    }
                }
                edits.push(LogitEdit::Allow { row, words });
            }
        }
    }
}

/// What is asked of one row of logits.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// A token; and, if wanted, its log-probability with those of so many of the most probable ones.
    Sample { choice: Choice, logprobs: Option<usize> },
    /// The log-probability of an id, and those of so many of the most probable ones.
    Score { target: u32, top: usize },
}

/// What a row of logits came to: a token that was chosen, or the one that was asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Sampled {
    pub token: u32,
    /// Of the model's own distribution, if asked for.
    pub logprobs: Option<Logprobs>,
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
    fn biases_that_can_not_be_are_named() {
        let with = |logit_bias| GenerateRequest { logit_bias, ..Default::default() };
        check(&with(vec![(9, 100.0), (0, -100.0)]), 10).unwrap();
        for bias in [(10, 1.0), (1, f32::NAN), (1, f32::NEG_INFINITY), (1, 100.5)] {
            let error = check(&with(vec![(3, 1.0), bias]), 10).unwrap_err();
            assert!(error.is_usage() && error.to_string().contains(&format!("id {}", bias.0)), "{error}");
        }
        let nothing_left =
            GenerateRequest { min_tokens: 1, stop_token_ids: (0..12).collect(), ..Default::default() };
        assert!(check(&nothing_left, 10).unwrap_err().to_string().contains("min_tokens"));
        check(&nothing_left, 13).unwrap();
    }

    /// One of everything.
    fn request() -> GenerateRequest {
        GenerateRequest {
            prompt: vec![5, 3, 5],
            sampling: SamplingParams {
                temperature: 0.5,
                repetition_penalty: 2.0,
                presence_penalty: 1.0,
                frequency_penalty: 0.5,
                ..Default::default()
            },
            stop_token_ids: vec![2, 70],
            min_tokens: 2,
            logit_bias: vec![(8, -3.0), (1, 4.0)],
            ..Default::default()
        }
    }

    #[test]
    fn edits_come_in_one_order_and_count_what_was_chosen() {
        let request = request();
        let mut history = History::new(&request);
        let add = |col, by| LogitEdit::Add { row: 6, col, by };
        let seen = |cols: &[u32]| LogitEdit::Repetition { row: 6, cols: cols.to_vec(), by: 2.0 };
        let biases = [add(8, -3.0), add(1, 4.0)];
        let short = [add(2, f32::NEG_INFINITY), add(70, f32::NEG_INFINITY)];
        let cool = LogitEdit::Divide { row: 6, by: 0.5 };
        let expected = [&biases[..], &short, &[seen(&[3, 5]), cool.clone()]].concat();
        assert_eq!(history.edits(&request, 6, None), expected);
        [7, 3, 7].into_iter().for_each(|token| history.add(&request, token));
        let counted = [seen(&[3, 5, 7]), add(3, -1.5), add(7, -2.0), cool];
        assert_eq!(history.edits(&request, 6, None), [&biases[..], &counted].concat());
    }

    #[test]
    fn a_request_that_asks_for_nothing_has_no_edits_and_remembers_no_token() {
        let request = GenerateRequest { prompt: vec![1, 2], ..Default::default() };
        let mut history = History::new(&request);
        (0..9).for_each(|token| history.add(&request, token));
        assert_eq!(history, History { generated: 9, ..History::default() });
        assert_eq!(history.edits(&request, 0, None), []);
    }

    #[test]
    fn a_grammar_that_allows_nothing_but_the_end_goes_before_min_tokens() {
        let request = request();
        let history = History::new(&request);
        let allowed = |ids: &[usize]| {
            let mut words = vec![0; 3];
            ids.iter().for_each(|id| words[id / 32] |= 1 << (id % 32));
            words
        };
        for (mask, left) in [(&[2, 5, 70][..], &[5][..]), (&[2, 70], &[2, 70]), (&[3, 95], &[3, 95])] {
            let edits = history.edits(&request, 1, Some(allowed(mask)));
            assert!(edits.contains(&LogitEdit::Allow { row: 1, words: allowed(left) }), "{edits:?}");
        }
        // A mask may be shorter than the vocabulary.
        let edits = history.edits(&request, 1, Some(vec![0b100]));
        assert!(edits.contains(&LogitEdit::Allow { row: 1, words: vec![0b100] }));
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
