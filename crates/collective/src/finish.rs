//! Finishes a reduction tree element by element, over blocks of contiguous elements.

use std::ops::Range;

use tensor::Program;

/// Elements that go through the tree at once: sums of a block stay in the nearest cache.
const BLOCK: usize = 512;

/// What a node of the tree is.
#[derive(Clone, Copy, Debug)]
enum Expr {
    /// An item of the program.
    Item(usize),
    /// The sum of two earlier expressions, left + right.
    Add(usize, usize),
}

/// A [`Program`] as an expression, so that a sum goes straight to where it is wanted.
#[derive(Clone, Debug, Default)]
pub(crate) struct Finish {
    exprs: Vec<Expr>,
    stack: Vec<usize>,
}

impl Finish {
    /// Takes a program over, reusing memory.
    ///
    /// # Panics
    /// If the program leaves more or less than one node.
    pub fn set(&mut self, program: &Program) {
        self.exprs.clear();
        self.stack.clear();
        for (item, &merges) in program.merges.iter().enumerate() {
            self.push(Expr::Item(item));
            for _ in 0..merges {
                let (right, left) = (self.stack.pop(), self.stack.pop());
                let (left, right) = left.zip(right).expect("a program merges only what it pushed");
                self.push(Expr::Add(left, right));
            }
        }
        assert_eq!(self.stack.len(), 1, "a program that finishes a tree leaves its root");
    }

    fn push(&mut self, expr: Expr) {
        self.stack.push(self.exprs.len());
        self.exprs.push(expr);
    }

    /// Writes the sums of the elements `range` to `out`. `item(i, r)` is item `i`'s elements `r`; `None` says that
    /// they are what `out` holds now.
    pub fn run<'a>(
        &self,
        range: Range<usize>,
        out: &mut [f32],
        item: impl Fn(usize, Range<usize>) -> Option<&'a [f32]>,
    ) {
        assert_eq!(range.len(), out.len(), "a sum for every element");
        match self.exprs[..] {
            [Expr::Item(0)] => copy(out, item(0, range)),
            // The common case, two ranks with a node each: one pass.
            [Expr::Item(0), Expr::Item(1), Expr::Add(..)] => add(out, item(0, range.clone()), item(1, range)),
            _ => {
                let mut held = [0.0; BLOCK];
                for (block, out) in out.chunks_mut(BLOCK).enumerate() {
                    let start = range.start + block * BLOCK;
                    let range = start..start + out.len();
                    held[..out.len()].copy_from_slice(out);
                    let held = &held[..out.len()];
                    self.eval(self.exprs.len() - 1, out, &|i| item(i, range.clone()).unwrap_or(held));
                }
            }
        }
    }

    /// Writes one expression's block to `out`.
    fn eval<'a>(&self, expr: usize, out: &mut [f32], item: &dyn Fn(usize) -> &'a [f32]) {
        match self.exprs[expr] {
            Expr::Item(i) => out.copy_from_slice(item(i)),
            Expr::Add(left, right) => match (self.exprs[left], self.exprs[right]) {
                (Expr::Item(l), Expr::Item(r)) => add(out, Some(item(l)), Some(item(r))),
                (Expr::Add(..), Expr::Item(r)) => {
                    self.eval(left, out, item);
                    add(out, None, Some(item(r)));
                }
                (Expr::Item(l), Expr::Add(..)) => {
                    self.eval(right, out, item);
                    add(out, Some(item(l)), None);
                }
                (Expr::Add(..), Expr::Add(..)) => {
                    let mut sums = [0.0; BLOCK];
                    let sums = &mut sums[..out.len()];
                    self.eval(left, out, item);
                    self.eval(right, sums, item);
                    add(out, None, Some(sums));
                }
            },
        }
    }
}

fn copy(out: &mut [f32], from: Option<&[f32]>) {
    if let Some(from) = from {
        out.copy_from_slice(from);
    }
}

/// `out = left + right`, where `None` is `out` itself. Wide loads have twice as many lines of another core's cache on
/// their way at a time.
#[multiversion::multiversion(targets("x86_64+avx2"))]
fn add(out: &mut [f32], left: Option<&[f32]>, right: Option<&[f32]>) {
    match (left, right) {
        (Some(l), Some(r)) => out.iter_mut().zip(l.iter().zip(r)).for_each(|(o, (l, r))| *o = l + r),
        (None, Some(r)) => out.iter_mut().zip(r).for_each(|(o, r)| *o += r),
        (Some(l), None) => out.iter_mut().zip(l).for_each(|(o, l)| *o += l), // addition commutes, bit for bit
        (None, None) => unreachable!("only one item is held in place"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tensor::ReductionTree;

    /// Numbers whose sums depend on the order.
    fn value(item: usize, element: usize) -> f32 {
        let h = (item as u32 * 7919 + element as u32).wrapping_mul(2654435761);
        (h as f32 / u32::MAX as f32 - 0.5) * 10f32.powi((h % 9) as i32 - 4)
    }

    #[test]
    fn blocks_give_the_bits_of_scalars_in_and_out_of_place() {
        let cuts: &[&[usize]] =
            &[&[0, 6], &[0, 3, 6], &[0, 2, 4, 6], &[0, 1, 1, 6], &[0, 1, 2, 3, 4, 5, 6], &[0, 5, 6]];
        for cuts in cuts {
            let ranks: Vec<_> = cuts.windows(2).map(|c| c[0]..c[1]).collect();
            let program = ReductionTree::over_heads(6, 4).finish(&ranks);
            let items = program.merges.len();
            for n in [1, 17, BLOCK, 2 * BLOCK + 3] {
                let data: Vec<Vec<f32>> = (0..items).map(|i| (0..n).map(|e| value(i, e)).collect()).collect();
                let expected: Vec<u32> = (0..n).map(|e| program.run(|i| data[i][e])[0].to_bits()).collect();
                let mut finish = Finish::default();
                finish.set(&program);
                for in_place in 0..=items {
                    let mut out = data.get(in_place).cloned().unwrap_or(vec![f32::NAN; n]);
                    finish.run(0..n, &mut out, |i, r| (i != in_place).then(|| &data[i][r]));
                    assert_eq!(
                        out.iter().map(|x| x.to_bits()).collect::<Vec<_>>(),
                        expected,
                        "{cuts:?} {n} {in_place}"
                    );
                }
            }
        }
    }
}
