//! Changes of logits, in the words in which they travel to the GPU.

use tensor::LogitEdit;

use crate::driver::{Arguments, Grid, Kernel};
use crate::tensor::{CudaTensor, Queue};

/// Columns that a block works on.
const WIDTH: usize = 4096;
const THREADS: usize = 256;

/// What an edit does, in the order of `kernels/logits_edit.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Add,
    Repetition,
    Allow,
    Divide,
}

/// Edits row by row. All threads of a block work on one edit, so its columns are different ones: they ascend, and where a list
/// doesn't, it becomes several. Additions that follow each other so are one edit.
#[derive(Debug, Default)]
struct Edits {
    /// (row, first edit, end edit)
    rows: Vec<[u32; 3]>,
    /// (kind, first word, count, number)
    edits: Vec<[u32; 4]>,
    words: Vec<u32>,
    /// Additions that aren't among the edits yet: columns, and bits of numbers.
    added: (Vec<u32>, Vec<u32>),
}

impl Edits {
    fn of(edits: &[LogitEdit], [rows, cols]: [usize; 2]) -> Self {
        let mut in_order: Vec<&LogitEdit> = edits.iter().collect();
        // Stable: a row's edits stay in their order.
        in_order.sort_by_key(|edit| row_of(edit));
        let mut all = Edits::default();
        for of_row in in_order.chunk_by(|a, b| row_of(a) == row_of(b)) {
            let (row, first) = (row_of(of_row[0]), all.edits.len());
            assert!(row < rows, "row {row} of [{rows}, {cols}]");
            of_row.iter().for_each(|edit| all.push(edit, cols));
            all.flush();
            all.rows.push([row as u32, first as u32, all.edits.len() as u32]);
        }
        all
    }

    fn push(&mut self, edit: &LogitEdit, cols: usize) {
        let check = |col: usize| assert!(col < cols, "column {col} of {cols}");
        match *edit {
            LogitEdit::Add { col, by, .. } => {
                check(col);
                if self.added.0.last().is_some_and(|&last| last as usize >= col) {
                    self.flush();
                }
                self.added.0.push(col as u32);
                self.added.1.push(by.to_bits());
            }
            LogitEdit::Repetition { ref cols, by, .. } => {
                self.flush();
                for ascending in cols.chunk_by(|a, b| a < b) {
                    check(ascending[ascending.len() - 1] as usize);
                    self.list(Kind::Repetition, ascending, by);
                }
            }
            LogitEdit::Allow { ref words, .. } => {
                self.flush();
                self.list(Kind::Allow, &words[..words.len().min(cols.div_ceil(32))], 0.0);
            }
            LogitEdit::Divide { by, .. } => {
                self.flush();
                self.list(Kind::Divide, &[], by);
            }
        }
    }

    fn list(&mut self, kind: Kind, words: &[u32], by: f32) {
        self.edits.push([kind as u32, self.words.len() as u32, words.len() as u32, by.to_bits()]);
        self.words.extend_from_slice(words);
    }

    fn flush(&mut self) {
        let (cols, by) = std::mem::take(&mut self.added);
        if !cols.is_empty() {
            self.list(Kind::Add, &cols, 0.0);
            self.words.extend(by);
        }
    }
}

fn row_of(edit: &LogitEdit) -> usize {
    let (LogitEdit::Add { row, .. }
    | LogitEdit::Repetition { row, .. }
    | LogitEdit::Allow { row, .. }
    | LogitEdit::Divide { row, .. }) = *edit;
    row
}

/// Changes logits, in the order given.
pub(crate) fn edit(queue: &Queue, x: &CudaTensor, edits: &[LogitEdit]) {
    if edits.is_empty() {
        return;
    }
    // What is edited differs from step to step: what was asked for so far is to be a list that comes again.
    queue.flush();
    let Edits { rows, edits, words, .. } = Edits::of(edits, [x.rows, x.cols]);
    // One upload, edits first, whose words lie at multiples of 16 bytes. Masks make it some megabytes for many rows.
    let mut bytes = Vec::with_capacity(16 * edits.len() + 12 * rows.len() + 4 * words.len());
    let all = edits.as_flattened().iter().chain(rows.as_flattened()).chain(&words);
    all.for_each(|word| bytes.extend_from_slice(&word.to_le_bytes()));
    let uploaded = queue.uploaded(&bytes);
    let rows_at = uploaded.at + 16 * edits.len() as u64;
    let words_at = rows_at + 12 * rows.len() as u64;
    let arguments = Arguments::new().address(x.at()).address(rows_at).address(uploaded.at).address(words_at);
    let grid = Grid::plane(rows.len(), x.cols.div_ceil(WIDTH), THREADS);
    let kernel = Kernel { file: "logits_edit", name: "logits_edit_rows" };
    queue.launch(kernel, grid, arguments.count(x.cols).count(WIDTH));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_ascend_and_additions_that_follow_each_other_are_one_edit() {
        let add = |row, col| LogitEdit::Add { row, col, by: 1.0 };
        let repetition = LogitEdit::Repetition { row: 1, cols: vec![4, 5, 5, 3, 9], by: 2.0 };
        let edits = [add(2, 3), add(1, 7), add(2, 8), repetition, add(2, 8), add(1, 0)];
        let found = Edits::of(&edits, [3, 10]);
        assert_eq!(found.rows, [[1, 0, 5], [2, 5, 7]]);
        let kinds = [0, 1, 1, 1, 0, 0, 0];
        let counts = [1, 2, 1, 2, 1, 2, 1];
        assert_eq!(found.edits.iter().map(|edit| edit[0]).collect::<Vec<_>>(), kinds);
        assert_eq!(found.edits.iter().map(|edit| edit[2]).collect::<Vec<_>>(), counts);
        let one = 1f32.to_bits();
        assert_eq!(found.words, [7, one, 4, 5, 5, 3, 9, 0, one, 3, 8, one, one, 8, one]);
    }
    #[test]
    #[should_panic(expected = "column 9 of 9")]
    fn a_column_beyond_the_last_is_refused() {
        Edits::of(&[LogitEdit::Repetition { row: 0, cols: vec![3, 9, 4], by: 1.3 }], [1, 9]);
    }
}
