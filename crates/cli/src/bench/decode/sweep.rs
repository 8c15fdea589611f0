//! What is swept over: lengths, batches, splits.

use std::fmt;

use cpu::Isa;

use crate::error::CliError;

/// More ranks, threads of one, or sequences than any machine has use for.
const MOST: usize = 4096;

/// One combination of lengths and batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    /// Tokens of each prompt.
    pub prompt: usize,
    /// Tokens that each sequence gets.
    pub generate: usize,
    /// Sequences at a time.
    pub batch: usize,
}

impl Point {
    /// Tokens of all sequences at their ends.
    pub fn tokens(&self) -> usize {
        self.batch.saturating_mul(self.prompt.saturating_add(self.generate))
    }
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {} + {} tokens", self.batch, self.prompt, self.generate)
    }
}

/// What a list has, in its order, each once.
pub fn distinct<T: PartialEq + Clone>(list: &[T]) -> Vec<T> {
    let mut distinct = Vec::new();
    list.iter().for_each(|item| {
        if !distinct.contains(item) {
            distinct.push(item.clone());
        }
    });
    distinct
}

/// All combinations.
pub fn points(
    prompts: &[usize],
    generated: &[usize],
    batches: &[usize],
    max_num_seqs: usize,
) -> Result<Vec<Point>, CliError> {
    if prompts.contains(&0) || generated.iter().any(|&n| n < 2) {
        return Err(CliError::Usage("--prompt-len must be at least 1, --gen-len at least 2".into()));
    }
    if let Some(batch) = batches.iter().find(|&batch| !(1..=MOST).contains(batch)) {
        return Err(CliError::Usage(format!("--batch-size {batch}: give 1 to {MOST} sequences")));
    }
    if let Some(batch) = batches.iter().find(|&&batch| batch > max_num_seqs) {
        return Err(CliError::Usage(format!(
            "--batch-size {batch} is more than --max-num-seqs {max_num_seqs}, which run at a time"
        )));
    }
    let mut points = Vec::new();
    for prompt in distinct(prompts) {
        for generate in distinct(generated) {
            points.extend(distinct(batches).into_iter().map(|batch| Point { prompt, generate, batch }));
        }
    }
    Ok(points)
}

/// `2x1`: ranks and threads of each.
pub fn parse_split(text: &str) -> Result<(usize, usize), String> {
    let parts = text.split_once('x').map(|(r, t)| (r.parse(), t.parse()));
    match parts {
        Some((Ok(ranks), Ok(threads))) if (1..=MOST).contains(&ranks) && (1..=MOST).contains(&threads) => {
            Ok((ranks, threads))
        }
        _ => Err(format!("give ranks and threads per rank, such as 2x1, each from 1 to {MOST}")),
    }
}

/// An instruction set of this machine, by name.
pub fn parse_isa(text: &str) -> Result<Isa, String> {
    let available = Isa::available();
    let found = available.iter().copied().find(|isa| isa.to_string() == text);
    found.ok_or_else(|| {
        let names: Vec<String> = available.iter().map(Isa::to_string).collect();
        format!("this machine has {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_list_has_twice_is_run_once() {
        let points = points(&[8, 4, 8], &[2, 2], &[1, 3, 1], 256).unwrap();
        let of = |p: &Point| (p.prompt, p.generate, p.batch);
        assert_eq!(points.iter().map(of).collect::<Vec<_>>(), [(8, 2, 1), (8, 2, 3), (4, 2, 1), (4, 2, 3)]);
    }
}
