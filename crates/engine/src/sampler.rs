//! Choosing tokens from logits that no rank has whole (NUMERICS.md, rule 6), and weighing those that were chosen already.
//!
//! Candidates are ordered by (logit descending, id ascending). Every rank sees the same candidates and so asks
//! for more of them, or stops, as all others do; what the first rank of the last stage chose is what all run on.

use model::{Decoder, Logits, ModelError, Rank};
use tensor::{Device, DeviceError, LogitEdit, Part, math};

use crate::Logprobs;
use crate::sampling::{Ask, Choice, Sampled};

/// How many candidates are asked for at first, and how many times more when they don't reach.
const FIRST_CANDIDATES: usize = 64;
const MORE_CANDIDATES: usize = 8;

/// Rows of logits that are made at a time when a whole prompt is scored.
const SCORED_ROWS: usize = 32;

/// What is asked of each row of hidden states. Only rows whose tokens are sampled are edited.
///
/// # Errors
/// A rank is missing, a logit isn't a number, or no token of a row is allowed.
pub(crate) fn answer<D: Device>(
    rank: Rank<D>,
    decoder: &Decoder<D>,
    hidden: &D::Tensor,
    edits: &[LogitEdit],
    asks: &[Ask],
) -> Result<Vec<Sampled>, ModelError> {
    let scored: Vec<u32> = rows_of(asks, |ask| matches!(ask, Ask::Score { .. }));
    let sampled: Vec<u32> = rows_of(asks, |ask| matches!(ask, Ask::Sample { .. }));
    let mut answers = vec![None; asks.len()];
    score_rows(rank.dev, decoder, hidden, &scored, |rows, logits| {
        let of = |&row: &u32| match asks[row as usize] {
            Ask::Score { target, top } => Some((target, top)),
            Ask::Sample { .. } => None,
        };
        let of: Vec<(u32, usize)> = rows.iter().filter_map(of).collect();
        let logprobs = logprobs(rank, decoder, logits, &of)?;
        for ((&row, (token, _)), logprobs) in rows.iter().zip(of).zip(logprobs) {
            answers[row as usize] = Some(Sampled { token, logprobs: Some(logprobs) });
        }
        Ok(())
    })?;
    if !sampled.is_empty() {
        let tokens = choose_tokens(rank, decoder, hidden, edits, asks, &sampled)?;
        for (row, token) in sampled.into_iter().zip(tokens) {
            answers[row as usize] = Some(token);
        }
    }
    Ok(answers.into_iter().map(|answer| answer.expect("every row is scored or sampled")).collect())
}

fn rows_of(asks: &[Ask], is: impl Fn(&Ask) -> bool) -> Vec<u32> {
    (0..).zip(asks).filter(|(_, ask)| is(ask)).map(|(row, _)| row).collect()
}

/// The logits of some rows of hidden states, some at a time: `each` gets the rows and them.
///
/// # Errors
/// That of `each`.
pub(crate) fn score_rows<D: Device>(
    dev: &D,
    decoder: &Decoder<D>,
    hidden: &D::Tensor,
    rows: &[u32],
    mut each: impl FnMut(&[u32], &Logits<D>) -> Result<(), ModelError>,
) -> Result<(), ModelError> {
    for rows in rows.chunks(SCORED_ROWS) {
        let hidden = dev.span(Part::Head, || dev.gather_rows(hidden, rows));
        let logits = decoder.logits(dev, &hidden);
        dev.span(Part::Sampling, || each(rows, &logits))?;
    }
    Ok(())
}

/// The log-probability and the rank of an id for each row of logits, and the log-probabilities
/// of so many of the most probable ids.
fn logprobs<D: Device>(
    rank: Rank<D>,
    decoder: &Decoder<D>,
    logits: &Logits<D>,
    of: &[(u32, usize)],
) -> Result<Vec<Logprobs>, ModelError> {
    let head = decoder.head();
    let most = of.iter().map(|&(_, top)| top).max().unwrap_or(0).min(head.vocab_size());
    let (candidates, sums) = head.survey(rank, logits, most, true)?;
    let sums = sums.expect("it was asked to weigh");
    let at: Vec<(usize, u32)> = of.iter().map(|&(id, _)| id).enumerate().collect();
    let picked = head.pick(rank, logits, &at)?;
    if let Some(&logit) = picked.iter().find(|logit| !logit.is_finite()) {
        return Err(not_finite(rank, logit));
    }
    let places: Vec<(f32, u32)> = picked.into_iter().zip(of).map(|(logit, &(id, _))| (logit, id)).collect();
    let before = head.count_before(rank, logits, &places)?;
    let rows = of.iter().zip(&sums).zip(places.iter().zip(before).zip(candidates));
    Ok(rows
        .map(|((&(_, top), sum), ((&(logit, _), before), candidates))| {
            let logprob = |logit: f32| (f64::from(logit) - sum) as f32;
            let candidates = candidates.into_iter().take(top).filter(|(logit, _)| logit.is_finite());
            let top = candidates.map(|(logit, id)| (id, logprob(logit))).collect();
            Logprobs { logprob: logprob(logit), rank: before + 1, top }
        })
        .collect())
}

/// A token for each of some rows.
fn choose_tokens<D: Device>(
    rank: Rank<D>,
    decoder: &Decoder<D>,
    hidden: &D::Tensor,
    edits: &[LogitEdit],
    asks: &[Ask],
    rows: &[u32],
) -> Result<Vec<Sampled>, ModelError> {
    let (dev, head) = (rank.dev, decoder.head());
    let (mut choices, mut weighed, mut tops) = (Vec::new(), Vec::new(), Vec::new());
    for (at, &row) in (0..).zip(rows) {
        let Ask::Sample { choice, logprobs } = asks[row as usize] else { unreachable!("it is sampled") };
        choices.push(choice);
        if let Some(top) = logprobs {
            weighed.push(at);
            tops.push(top);
        }
    }
    let mut logits = match rows.len() == asks.len() {
        true => decoder.logits(dev, hidden),
        false => decoder.logits(dev, &dev.span(Part::Head, || dev.gather_rows(hidden, rows))),
    };
    dev.span(Part::Sampling, || {
        // Log-probabilities are of what the logits were before edits.
        let unedited = (!weighed.is_empty()).then(|| logits.rows(dev, &weighed));
        if !edits.is_empty() {
            head.edit(dev, &mut logits, edits, |row| rows.binary_search(&(row as u32)).ok());
        }
        let tokens = sample(rank, decoder, &logits, &choices)?;
        let mut sampled: Vec<Sampled> =
            tokens.into_iter().map(|token| Sampled { token, logprobs: None }).collect();
        if let Some(unedited) = unedited {
            let of: Vec<(u32, usize)> =
                weighed.iter().map(|&at| sampled[at as usize].token).zip(tops).collect();
            for (&at, found) in weighed.iter().zip(logprobs(rank, decoder, &unedited, &of)?) {
                sampled[at as usize].logprobs = Some(found);
            }
        }
        Ok(sampled)
    })
}

/// One token per row.
fn sample<D: Device>(
    rank: Rank<D>,
    decoder: &Decoder<D>,
    logits: &Logits<D>,
    choices: &[Choice],
) -> Result<Vec<u32>, ModelError> {
    let head = decoder.head();
    let greedy = choices.iter().all(|c| c.greedy);
    // Cuts but top-p leave nothing of the sum.
    let weighs = choices.iter().any(|c| !c.greedy && c.min_p == 0.0 && c.top_k == 0);
    let mut tokens = vec![None; choices.len()];
    // Rows without a token yet, and a copy of them once they are fewer.
    let mut left: Vec<u32> = (0..choices.len() as u32).collect();
    let mut fewer = None;
    let mut k = if greedy { 1 } else { FIRST_CANDIDATES.min(head.vocab_size()) };
    let (mut candidates, sums) = head.survey(rank, logits, k, weighs)?;
    loop {
        let all = k >= head.vocab_size();
        k *= MORE_CANDIDATES;
        for (&row, candidates) in left.iter().zip(&candidates) {
            check_finite(rank, candidates)?;
            let row = row as usize;
            match choices[row].greedy {
                true => tokens[row] = candidates.first().map(|c| c.1),
                false => match choose(&choices[row], candidates, sums.as_ref().map(|sums| sums[row]), all) {
                    Ok(token) => tokens[row] = Some(token),
                    Err(needed) => k = k.max(needed),
                },
            }
        }
        let before = left.len();
        left.retain(|&row| tokens[row as usize].is_none());
        if left.is_empty() {
            return Ok(tokens.into_iter().map(|token| token.expect("no row is left")).collect());
        }
        if left.len() < before {
            fewer = Some(logits.rows(rank.dev, &left));
        }
        k = k.min(head.vocab_size());
        candidates = head.top_k(rank, fewer.as_ref().unwrap_or(logits), k)?;
    }
}

fn check_finite<D: Device>(rank: Rank<D>, candidates: &[(f32, u32)]) -> Result<(), ModelError> {
    match candidates.first() {
        Some((logit, _)) if logit.is_finite() => Ok(()),
        other => Err(not_finite(rank, other.map_or(f32::NAN, |c| c.0))),
    }
}

pub(crate) fn not_finite<D: Device>(rank: Rank<D>, logit: f32) -> ModelError {
    ModelError::Device(DeviceError {
        device: rank.dev.name(),
        message: format!("a logit is {logit}, which is not a finite number; the weights may be damaged"),
    })
}

/// The token of a row; or, if more candidates are needed, how many at least. `all`: there are no more.
///
/// `log_sum_exp` is there if neither min-p nor top-k cuts. They cut the candidates first; top-p then keeps the fewest whose probabilities reach p.
fn choose(
    choice: &Choice,
    candidates: &[(f32, u32)],
    log_sum_exp: Option<f64>,
    all: bool,
) -> Result<u32, usize> {
    // Those that are forbidden come last.
    let allowed = candidates.partition_point(|(logit, _)| *logit > f32::NEG_INFINITY);
    let (all, candidates) = (all || allowed < candidates.len(), &candidates[..allowed]);
    let first = f64::from(candidates[0].0);
    let weight = |i: usize| math::exp_f64((f64::from(candidates[i].0) - first).max(-690.0));
    let likely =
        candidates.iter().enumerate().take_while(|(i, _)| weight(*i) >= f64::from(choice.min_p)).count();
    let wanted = if choice.top_k == 0 { usize::MAX } else { choice.top_k };
    let cut = likely.min(wanted);
    let is_cut = cut < candidates.len() || wanted == cut || all;
    // The mass that probabilities are relative to: the cut's own, or everything.
    let total = match (choice.min_p > 0.0 || choice.top_k > 0, is_cut) {
        (true, true) => (0..cut).map(weight).sum(),
        (true, false) => return Err(candidates.len() + 1),
        (false, _) => math::exp_f64(log_sum_exp.expect("such a choice weighs") - first),
    };
    // Those that follow weigh no more than the last.
    let needed = |missing: f64| {
        let more = missing / weight(candidates.len() - 1);
        candidates.len().saturating_add((more as usize).max(1))
    };
    let cut = cut.min(candidates.len());
    let mut kept = cut;
    let mut mass = total;
    if choice.top_p < 1.0 {
        let goal = f64::from(choice.top_p) * total;
        let mut sum = 0.0;
        let reached = (0..cut).find(|&i| {
            sum += weight(i);
            sum >= goal
        });
        match reached {
            Some(last) => (kept, mass) = (last + 1, sum),
            None if is_cut => mass = sum,
            None => return Err(needed(goal - sum)),
        }
    }
    let goal = choice.uniform * mass;
    let mut sum = 0.0;
    let found = (0..kept).find(|&i| {
        sum += weight(i);
        sum > goal
    });
    match found {
        Some(i) => Ok(candidates[i].1),
        // Rounding may leave the goal just above the sum of all.
        None if is_cut || kept < cut => Ok(candidates[kept - 1].1),
        None => Err(needed(goal - sum)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn params(top_k: usize, top_p: f32, min_p: f32, uniform: f64) -> Choice {
        Choice { greedy: false, top_k, top_p, min_p, uniform }
    }

    /// Four tokens with probabilities 0.5, 0.25, 0.125, 0.125.
    fn four() -> (Vec<(f32, u32)>, Option<f64>) {
        let ln2 = std::f32::consts::LN_2;
        (vec![(0.0, 9), (-ln2, 2), (-2.0 * ln2, 4), (-2.0 * ln2, 5)], Some(std::f64::consts::LN_2))
    }

    #[test]
    fn the_whole_distribution_is_walked_in_order() {
        let (c, lse) = four();
        let token = |u| choose(&params(0, 1.0, 0.0, u), &c, lse, true);
        assert_eq!([0.0, 0.49, 0.51, 0.74, 0.76, 0.88, 0.999].map(token), [9, 9, 2, 2, 4, 5, 5].map(Ok));
    }

    #[test]
    fn cuts_renormalise() {
        let (c, lse) = four();
        assert_eq!(choose(&params(1, 1.0, 0.0, 0.99), &c, lse, true), Ok(9));
        assert_eq!(choose(&params(2, 1.0, 0.0, 0.6), &c, lse, true), Ok(9));
        assert_eq!(choose(&params(2, 1.0, 0.0, 0.7), &c, lse, true), Ok(2));
        assert_eq!(choose(&params(0, 0.7, 0.0, 0.99), &c, lse, true), Ok(2));
        assert_eq!(choose(&params(0, 1.0, 0.3, 0.99), &c, lse, true), Ok(2));
        assert_eq!(choose(&params(0, 1e-9, 0.0, 0.99), &c, lse, true), Ok(9));
    }

    #[test]
    fn more_candidates_are_asked_for_only_when_they_matter() {
        let (c, lse) = four();
        let two = &c[..2];
        assert_eq!(choose(&params(0, 1.0, 0.0, 0.6), two, lse, false), Ok(2));
        assert_eq!(choose(&params(0, 1.0, 0.0, 0.8), two, lse, false), Err(3));
        assert_eq!(choose(&params(0, 0.7, 0.0, 0.8), two, lse, false), Ok(2));
        assert_eq!(choose(&params(0, 0.8, 0.0, 0.1), two, lse, false), Err(3));
        assert_eq!(choose(&params(3, 1.0, 0.0, 0.1), two, lse, false), Err(3));
        assert_eq!(choose(&params(2, 1.0, 0.0, 0.1), two, lse, false), Ok(9));
        assert_eq!(choose(&params(0, 1.0, 0.2, 0.1), two, lse, false), Err(3));
        assert_eq!(choose(&params(0, 1.0, 0.6, 0.1), two, lse, false), Ok(9));
    }

    #[test]
    fn as_many_more_are_asked_for_as_it_takes_at_least() {
        // A thousand that are equally probable: the first two say how many it takes.
        let two = [(1.0, 7), (1.0, 8)];
        let lse = Some(1.0 + 1000f64.ln());
        assert_eq!(choose(&params(0, 1.0, 0.0, 0.5004), &two, lse, false), Err(500));
        assert_eq!(choose(&params(0, 0.7506, 0.0, 0.1), &two, lse, false), Err(750));
    }

    #[test]
    fn what_is_forbidden_is_not_chosen_even_by_rounding() {
        let c = [(0.5, 3), (f32::NEG_INFINITY, 0), (f32::NEG_INFINITY, 1)];
        for uniform in [0.0, 0.999_999_999_999] {
            // The sum is a little more than the only one that is allowed.
            assert_eq!(choose(&params(0, 1.0, 0.0, uniform), &c, Some(0.500_001), false), Ok(3));
            assert_eq!(choose(&params(2, 0.9, 0.1, uniform), &c, Some(0.5), true), Ok(3));
        }
    }

    #[test]
    fn frequencies_follow_probabilities() {
        let (c, lse) = four();
        let mut counts = [0; 10];
        for i in 0..8000 {
            let u = (i as f64 + 0.5) / 8000.0;
            counts[choose(&params(0, 1.0, 0.0, u), &c, lse, true).unwrap() as usize] += 1;
        }
        assert_eq!([counts[9], counts[2], counts[4], counts[5]], [4000, 2000, 1000, 1000]);
    }
}
