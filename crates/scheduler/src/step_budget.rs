/// Chooses how many rows a step has, from the times that steps before it took.
#[derive(Clone, Debug, Default)]
pub struct StepBudget {}

impl StepBudget {
    /// Notes what a step took.
    pub fn observe(&mut self, decode_rows: usize, prompt_rows: usize, seconds: f64) {
        let _ = (decode_rows, prompt_rows, seconds);
    }

    /// Rows of the next step, at most `max`: one for each of the sequences that decode now, the rest for prompts.
    pub fn rows(&self, decoding_now: usize, max: usize) -> usize {
        let _ = decoding_now;
        max
    }
}
