//! What a sampler asks of logits.

use super::values::Values;
use super::{Case, Found, check};
use crate::{Device, LogitEdit, ReductionTree};

/// Edits, maxima, sums of exponentials, candidates.
///
/// # Panics
/// If the device differs from [`crate::Reference`].
pub fn logits(dev: &impl Device) {
    for cols in [0, 1, 15, 16, 17, 48, 259, 1000] {
        for rows in [0, 1, 3, 6] {
            check(dev, &Logits { rows, cols });
        }
    }
}

#[derive(Debug)]
struct Logits {
    rows: usize,
    cols: usize,
}

impl Logits {
    /// Every row has ties, zeros of both signs, and one logit that is forbidden.
    fn data(&self) -> Vec<f32> {
        let mut values = Values::new(self.rows * 10_000 + self.cols);
        let mut data = values.scaled(self.rows * self.cols, 3.0);
        for i in (0..data.len()).step_by(5) {
            data[i] = data[values.below(data.len())];
        }
        if self.cols > 1 {
            data.iter_mut().step_by(self.cols).for_each(|x| *x = f32::NEG_INFINITY);
        }
        data
    }

    /// Words of ones, of zeros and of both; fewer, as many or more than there are columns; once none at all.
    fn mask(&self, row: usize) -> Vec<u32> {
        let mut values = Values::new(self.cols + row);
        let words = [self.cols / 32, self.cols.div_ceil(32), self.cols.div_ceil(32) + 2, 0];
        let word = |_| match values.below(4) {
            0 => 0,
            1 => u32::MAX,
            _ => values.bits() as u32,
        };
        (0..words[row % words.len()]).map(word).collect()
    }

    fn edits(&self) -> Vec<LogitEdit> {
        let mut edits = Vec::new();
        for row in (0..self.rows).filter(|_| self.cols > 0) {
            for i in 0..8 {
                let col = (row * 7 + i * i * 13) % self.cols;
                edits.push(match i % 3 {
                    0 => LogitEdit::Add { row, col, by: 1.7 - i as f32 },
                    _ => LogitEdit::Repetition { row, cols: vec![col as u32, self.cols as u32 / 3], by: 1.3 },
                });
            }
            if row % 3 > 0 {
                edits.push(LogitEdit::Allow { row, words: self.mask(row) });
            }
            if row % 2 == 0 {
                edits.push(LogitEdit::Divide { row, by: 0.7 });
                edits.push(LogitEdit::Add { row, col: self.cols / 2, by: 100.0 });
            }
        }
        edits
    }
}

impl Case for Logits {
    fn run<D: Device>(&self, dev: &D) -> Vec<Found> {
        let mut logits = dev.upload(&self.data(), self.rows, self.cols);
        let mut found = ask(dev, &logits, self);
        dev.edit_logits(&mut logits, &self.edits());
        found.push(Found::tensor(dev, "edit_logits", &logits));
        found.extend(ask(dev, &logits, self));
        found
    }
}

fn ask<D: Device>(dev: &D, logits: &D::Tensor, &Logits { rows, cols }: &Logits) -> Vec<Found> {
    let max = dev.row_max(logits).expect("row_max");
    // Which zero is the largest depends on the order, and no exponential of a difference does on that.
    let mut found = vec![Found::host("row_max", max.iter().map(|max| max + 0.0).collect())];

    let panels = cols.div_ceil(16);
    if panels > 0 {
        let whole = ReductionTree::over_ids(panels);
        // A tree over more panels, of which these are a part that several nodes cover.
        let wider = ReductionTree::over_ids(panels + 4);
        for program in [whole.program(0..panels), wider.program(1..panels + 1), wider.program(3..panels + 3)]
        {
            found.push(Found::host("exp_sums", dev.exp_sums(logits, &max, &program).expect("exp_sums")));
            for k in [1, 3, 64] {
                let survey = dev.survey(logits, &program, k).expect("survey");
                found.push(Found::host("survey: maxima", survey.max.iter().map(|max| max + 0.0).collect()));
                found.push(Found::host("survey: sums", survey.sums));
                let top = survey.top.iter().flatten().flat_map(|&(logit, col)| [logit, col as f32]);
                found.push(Found::host("survey: candidates", top.collect()));
            }
        }
    }
    for (skip, k) in [(0, 1), (0, 5), (3, 20), (0, 300), (cols, 1), (cols.saturating_sub(2), 5), (7, 0)] {
        let rows = dev.top_k(logits, skip, k).expect("top_k");
        found.push(Found::host(
            "top_k: number of candidates",
            rows.iter().map(|row| row.len() as f32).collect(),
        ));
        let pairs = rows.into_iter().flatten();
        let (logit, col): (Vec<f32>, Vec<f32>) = pairs.map(|(logit, col)| (logit, col as f32)).unzip();
        found.push(Found::host("top_k: columns", col));
        found.push(Found::host("top_k: logits", logit));
    }
    let every: Vec<_> = (0..rows).flat_map(|row| (0..cols).step_by(7).map(move |col| (row, col))).collect();
    found.push(Found::host("pick", dev.pick(logits, &every).expect("pick")));
    found.push(Found::host("pick", dev.pick(logits, &[]).expect("pick")));
    for col in [0, cols / 2, cols, cols + 9] {
        let places: Vec<(f32, usize)> = max.iter().map(|max| (max * 0.5, col)).collect();
        let equal: Vec<(f32, usize)> = max.iter().map(|&max| (max, col)).collect();
        for places in [places, equal] {
            let before = dev.count_before(logits, &places).expect("count_before");
            found.push(Found::host("count_before", before.into_iter().map(|n| n as f32).collect()));
        }
    }
    found
}
