//! Steps of a rank that are told of: the last with a prompt, and the median of those without.

use std::time::Duration;

use tensor::{Part, PartTimes, StepMeta};

use crate::sampling::Ask;

/// Steps of which one is kept at most. When there are more, every second is let go, and from then on fewer are kept.
const MOST: usize = 64;

/// What is made of a step's logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// Nothing.
    Logits,
    /// A token for each row.
    Tokens,
    /// A log-probability for each row.
    Logprobs,
}

impl Asked {
    /// What is made of most of a step's logits.
    pub fn of(asks: &[Ask]) -> Self {
        let scored = asks.iter().filter(|ask| matches!(ask, Ask::Score { .. })).count();
        match asks.len() {
            0 => Asked::Logits,
            all if 2 * scored > all => Asked::Logprobs,
            _ => Asked::Tokens,
        }
    }
}

/// One step, as it went.
#[derive(Clone, Debug)]
pub(crate) struct StepTime {
    pub meta: StepMeta,
    pub asked: Asked,
    pub parts: PartTimes,
}

/// All of a step that was not waiting for the stage before.
pub(crate) fn time(parts: &PartTimes) -> Duration {
    parts.total().saturating_sub(parts.of(Part::Receive).waited)
}

/// Steps since the last mark.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    pub prefill: Option<StepTime>,
    /// Evenly over all that there were.
    decode: Vec<StepTime>,
    /// Of so many one is kept: a power of two; 0: none was seen yet.
    every: usize,
    pub decodes: usize,
    /// All of them together.
    pub decode_time: Duration,
    /// All-reduces of all steps, also of those with prompts.
    pub all_reduce: Duration,
}

impl Steps {
    /// Notes a step. Of a long run few are copied.
    pub fn note(&mut self, meta: &StepMeta, asked: Asked, parts: PartTimes) {
        self.all_reduce += parts.of(Part::AllReduce).time;
        let step = || StepTime { meta: meta.clone(), asked, parts };
        if has_prompt(meta) {
            self.prefill = Some(step());
            return;
        }
        let every = self.every.max(1);
        self.decode_time += time(&parts);
        if self.decodes.is_multiple_of(every) {
            self.decode.push(step());
        }
        self.decodes += 1;
        self.every = every;
        if self.decode.len() > MOST {
            let mut index = 0..;
            self.decode.retain(|_| index.next().is_some_and(|i: usize| i.is_multiple_of(2)));
            self.every *= 2;
        }
    }

    /// The step without a prompt that half of the others take longer than.
    pub fn median_decode(&self) -> Option<&StepTime> {
        let mut steps: Vec<&StepTime> = self.decode.iter().collect();
        steps.sort_by_key(|step| time(&step.parts));
        steps.get(steps.len() / 2).copied()
    }
}

/// Whether a step has several tokens of a sequence, or the first.
fn has_prompt(meta: &StepMeta) -> bool {
    meta.sequences.iter().any(|sequence| sequence.start == 0 || sequence.rows.len() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::SequenceSpan;

    /// Notes steps of one sequence: (start, rows, milliseconds).
    fn note(steps: &mut Steps, (start, rows, ms): (usize, usize, u64)) {
        let sequences = vec![SequenceSpan { rows: 0..rows, start, block_table: Vec::new() }];
        let mut parts = PartTimes::default();
        parts.of_mut(Part::Ffn).time = Duration::from_millis(ms);
        steps.note(&StepMeta { sequences, ..StepMeta::default() }, Asked::Tokens, parts);
    }

    #[test]
    fn the_last_prompt_and_the_median_of_the_rest_are_kept() {
        let mut steps = Steps::default();
        [(0, 9, 50), (9, 4, 40), (13, 1, 3), (14, 1, 90), (15, 1, 4)]
            .into_iter()
            .for_each(|step| note(&mut steps, step));
        assert_eq!(steps.prefill.as_ref().map(|s| s.meta.sequences[0].start), Some(9));
        assert_eq!(steps.median_decode().map(|s| s.meta.sequences[0].start), Some(15));
        assert_eq!((steps.decodes, steps.decode_time), (3, Duration::from_millis(97)));
    }

    #[test]
    fn a_long_run_keeps_few_steps_evenly_over_all() {
        let mut steps = Steps::default();
        (1..=10_000).for_each(|i| note(&mut steps, (i, 1, i as u64)));
        assert!(steps.decode.len() <= MOST && steps.decode.len() > MOST / 2);
        let median = steps.median_decode().unwrap().meta.sequences[0].start;
        assert!((4700..=5300).contains(&median), "{median}");
    }
}
