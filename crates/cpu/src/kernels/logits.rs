//! What a token is chosen from.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use tensor::lanes::Lanes;
use tensor::{LogitEdit, Program, math};

use super::{Exec, grain};
use crate::simd::{F32x16, Kernel, LANES};

/// Changes logits one by one.
pub(crate) fn edit(exec: &Exec, logits: &mut [f32], cols: usize, edits: &[LogitEdit]) {
    let isa = exec.isa;
    for edit in edits {
        match *edit {
            LogitEdit::Add { row, col, by } => logits[row * cols + col] += by,
            LogitEdit::Repetition { row, cols: ref seen, by } => {
                let logits = &mut logits[row * cols..(row + 1) * cols];
                for &col in seen {
                    let logit = &mut logits[col as usize];
                    *logit = if *logit > 0.0 { *logit / by } else { *logit * by };
                }
            }
            LogitEdit::Allow { row, ref words } => {
                // Less work than waking a thread is worth.
                allow(&mut logits[row * cols..(row + 1) * cols], words);
            }
            LogitEdit::Divide { row, by } => {
                let row = &mut logits[row * cols..(row + 1) * cols];
                exec.pool.split_mut(row, LANES, grain(LANES * 2), |_, part| isa.run(Divide(part, by)));
            }
        }
    }
}

/// Columns of a word of a mask.
const WORD: usize = u32::BITS as usize;

/// Forbids what the words don't allow. In most words no bit is set, or every one.
fn allow(logits: &mut [f32], words: &[u32]) {
    let (within, beyond) = logits.split_at_mut(logits.len().min(words.len() * WORD));
    for (logits, &word) in within.chunks_mut(WORD).zip(words) {
        match word {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            word => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                }
            }
        }
    }
    beyond.fill(f32::NEG_INFINITY);
}

struct Divide<'a>(&'a mut [f32], f32);

impl Kernel for Divide<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let (groups, tail) = self.0.as_chunks_mut::<LANES>();
        for x in groups {
            V::load(x).div(V::splat(self.1)).store(x);
        }
        for x in tail {
            *x /= self.1;
        }
    }
}

/// The largest of each row.
pub(crate) fn row_max(exec: &Exec, logits: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let isa = exec.isa;
    let mut max = vec![f32::NEG_INFINITY; rows];
    exec.pool.split_mut(&mut max, 1, grain(cols), |first, max| {
        for (row, max) in (first..).zip(max) {
            *max = isa.run(Max(&logits[row * cols..(row + 1) * cols]));
        }
    });
    max
}

/// How many of each row come before a (logit, column), by logit descending, then column ascending.
pub(crate) fn count_before(exec: &Exec, logits: &[f32], cols: usize, places: &[(f32, usize)]) -> Vec<u32> {
    let mut counts = vec![0; places.len()];
    exec.pool.split_mut(&mut counts, 1, grain(cols), |first, counts| {
        for (row, count) in (first..).zip(counts) {
            let (logit, col) = places[row];
            let (before, behind) = logits[row * cols..(row + 1) * cols].split_at(col.min(cols));
            *count = before.iter().map(|&x| u32::from(x >= logit)).sum::<u32>()
                + behind.iter().map(|&x| u32::from(x > logit)).sum::<u32>();
        }
    });
    counts
}

struct Max<'a>(&'a [f32]);

impl Kernel for Max<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<V: F32x16>(self) -> f32 {
        let (quads, tail) = self.0.as_chunks::<{ 4 * LANES }>();
        let mut max = [V::splat(f32::NEG_INFINITY); 4];
        for quad in quads {
            for (x, max) in quad.as_chunks::<LANES>().0.iter().zip(&mut max) {
                *max = V::load(x).max(*max);
            }
        }
        let mut max = max[0].max(max[1]).max(max[2].max(max[3])).largest();
        for &x in tail {
            max = Lanes::max(x, max);
        }
        // The order decides only between +0 and −0: it is the first.
        if max == 0.0 {
            max = self.0.iter().copied().find(|&x| x == 0.0).unwrap_or(max);
        }
        max
    }
}

/// `[rows · nodes]`: sums of `exp(x − max)` over the nodes of a program over panels.
pub(crate) fn exp_sums(exec: &Exec, logits: &[f32], cols: usize, max: &[f32], program: &Program) -> Vec<f32> {
    let isa = exec.isa;
    let panels = cols.div_ceil(LANES);
    assert!(program.num_inputs() <= panels, "a program reads {} panels of {panels}", program.num_inputs());
    let mut sums = exec.scratch::<f32>(max.len() * panels);
    exec.pool.split_mut(sums.as_mut_slice(), 1, grain(LANES * 8), |first, mut sums| {
        let mut at = first;
        while !sums.is_empty() {
            let (row, panel) = (at / panels, at % panels);
            let len = sums.len().min(panels - panel);
            let (part, rest) = sums.split_at_mut(len);
            let x = &logits[row * cols..(row + 1) * cols];
            isa.run(ExpSums {
                x: &x[panel * LANES..cols.min((panel + len) * LANES)],
                max: max[row],
                sums: part,
            });
            (sums, at) = (rest, at + len);
        }
    });
    let sums = sums.as_slice();
    let panel_sum = |row: usize, panels_of_item: Range<usize>| {
        sums[row * panels..(row + 1) * panels][panels_of_item].iter().fold(0.0, |sum, x| sum + x)
    };
    (0..max.len()).flat_map(|row| program.run(|item| panel_sum(row, program.inputs[item].clone()))).collect()
}

struct ExpSums<'a> {
    x: &'a [f32],
    max: f32,
    /// One sum per panel.
    sums: &'a mut [f32],
}

impl Kernel for ExpSums<'_> {
    type Output = ();

    #[inline(always)]
    fn run<V: F32x16>(self) {
        let (groups, tail) = self.x.as_chunks::<LANES>();
        let max = V::splat(self.max);
        for (x, sum) in groups.iter().zip(&mut *self.sums) {
            *sum = math::exp(V::load(x).sub(max)).sum_by_halves();
        }
        if !tail.is_empty() {
            let sum =
                math::exp(V::load_first(tail).sub(max)).keep(0, tail.len(), V::splat(0.0)).sum_by_halves();
            self.sums[groups.len()] = sum;
        }
    }
}

/// Sorts by logit descending, then column ascending, if sorted descending. A NaN is below all numbers.
fn key(logit: f32, col: u32) -> u64 {
    let bits = (logit + 0.0).to_bits();
    let ordered = match (logit.is_nan(), bits >> 31) {
        (true, _) => 0,
        (false, 0) => bits | 1 << 31,
        (false, _) => !bits,
    };
    (ordered as u64) << 32 | !col as u64
}

fn col_of(key: u64) -> u32 {
    !(key as u32)
}

/// The `skip`-th to `skip + k`-th largest of each row.
pub(crate) fn top_k(
    exec: &Exec,
    logits: &[f32],
    rows: usize,
    cols: usize,
    skip: usize,
    k: usize,
) -> Vec<Vec<(f32, u32)>> {
    let isa = exec.isa;
    let wanted = skip.saturating_add(k).min(cols);
    if wanted == 0 || rows == 0 {
        return vec![Vec::new(); rows];
    }
    // Fewer rows than threads: threads share a row. Each part gives its largest, so parts must be far wider.
    let parts = exec.pool.threads().div_ceil(rows).min(cols / 4096).min(cols / (16 * wanted)).max(1);
    let mut found = vec![0u64; rows * parts * wanted];
    exec.pool.split_mut(&mut found, wanted, grain(cols / parts), |first, found| {
        for (unit, found) in (first..).zip(found.chunks_exact_mut(wanted)) {
            let (row, part) = (unit / parts, unit % parts);
            let part = cols * part / parts..cols * (part + 1) / parts;
            let x = &logits[row * cols..][part.clone()];
            let mut largest = isa.run(Largest { x, first_col: part.start as u32, wanted });
            largest.sort_unstable_by_key(|&key| Reverse(key));
            // Where there are fewer, zeros remain, which are below every key.
            found[..largest.len()].copy_from_slice(&largest);
        }
    });
    let row_of = |row: usize| {
        let found = &mut found[row * parts * wanted..(row + 1) * parts * wanted];
        if parts > 1 {
            found.sort_unstable_by_key(|&key| Reverse(key));
        }
        let chosen = found[skip.min(wanted)..wanted].iter();
        chosen.map(|&key| (logits[row * cols + col_of(key) as usize], col_of(key))).collect()
    };
    (0..rows).map(row_of).collect()
}

struct Largest<'a> {
    x: &'a [f32],
    first_col: u32,
    wanted: usize,
}

impl Kernel for Largest<'_> {
    type Output = Vec<u64>;

    #[inline(always)]
    fn run<V: F32x16>(self) -> Vec<u64> {
        if self.wanted > self.x.len() / MANY {
            return self.many();
        }
        let head = self.wanted.min(self.x.len()).next_multiple_of(LANES).min(self.x.len());
        let mut keys: Vec<u64> =
            (self.first_col..).zip(&self.x[..head]).map(|(col, &x)| key(x, col)).collect();
        keys.sort_unstable_by_key(|&key| Reverse(key));
        keys.truncate(self.wanted);
        let mut heap: BinaryHeap<Reverse<u64>> = keys.into_iter().map(Reverse).collect();
        let (groups, tail) = self.x[head..].as_chunks::<LANES>();
        let first = self.first_col + head as u32;
        let mut limit = V::splat(self.smallest(&heap));
        for (group, x) in groups.iter().enumerate() {
            if V::load(x).any_above(limit) {
                offer(&mut heap, x, first + (group * LANES) as u32);
                limit = V::splat(self.smallest(&heap));
            }
        }
        offer(&mut heap, tail, first + (groups.len() * LANES) as u32);
        heap.into_iter().map(|Reverse(key)| key).collect()
    }
}

/// A heap is for fewer than one of so many: its keys go in and out too often for more.
const MANY: usize = 48;

impl Largest<'_> {
    /// All keys, and the largest of them.
    fn many(&self) -> Vec<u64> {
        let mut keys: Vec<u64> = (self.first_col..).zip(self.x).map(|(col, &x)| key(x, col)).collect();
        if self.wanted < keys.len() {
            keys.select_nth_unstable_by_key(self.wanted, |&key| Reverse(key));
            keys.truncate(self.wanted);
        }
        keys
    }

    /// The logit that the next must exceed.
    #[inline(always)]
    fn smallest(&self, heap: &BinaryHeap<Reverse<u64>>) -> f32 {
        heap.peek().map_or(f32::NAN, |Reverse(key)| self.x[(col_of(*key) - self.first_col) as usize])
    }
}

/// Puts those of a few logits into the heap that are larger than its smallest.
#[inline(never)]
fn offer(heap: &mut BinaryHeap<Reverse<u64>>, x: &[f32], first_col: u32) {
    for (col, &x) in (first_col..).zip(x) {
        let new = Reverse(key(x, col));
        if let Some(mut smallest) = heap.peek_mut()
            && new < *smallest
        {
            *smallest = new;
        }
    }
}
