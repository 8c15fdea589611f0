//! What a GPU is to do, in order.

use std::rc::Rc;

use xxhash_rust::xxh3::Xxh3Default;

use crate::driver::{Address, Arguments, Foreign, Grid, Kernel};

/// One piece of work. `F` is a kernel's function as the driver knows it.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are launches")]
pub(crate) enum Work<F> {
    /// Runs a kernel.
    Launch { function: F, kernel: Kernel, grid: Grid, arguments: Arguments },
    /// Writes bytes that lie from `from` on in [`WorkList::bytes`].
    Write { to: Address, from: usize, bytes: usize },
    /// Copies within the GPU.
    Copy { from: Address, to: Address, bytes: usize },
    /// A mark of this number.
    Mark(usize),
    /// Has another library work, by its number in [`WorkList::foreign`].
    Call(usize),
}

/// Work that was asked for and has not begun.
pub(crate) struct WorkList<F> {
    pub work: Vec<Work<F>>,
    /// What is to be written, all one after the other.
    pub bytes: Vec<u8>,
    /// Calls of other libraries, in order, and what they are ([`Foreign::words`]).
    pub foreign: Vec<(Rc<dyn Foreign>, Vec<u64>)>,
}

impl<F> WorkList<F> {
    pub fn new() -> Self {
        WorkList { work: Vec::new(), bytes: Vec::new(), foreign: Vec::new() }
    }

    /// Bytes to be written, read now.
    pub fn write(&mut self, to: Address, bytes: &[u8]) {
        self.work.push(Work::Write { to, from: self.bytes.len(), bytes: bytes.len() });
        self.bytes.extend_from_slice(bytes);
    }

    /// A call of another library, which has these words.
    pub fn call(&mut self, call: Rc<dyn Foreign>, words: Vec<u64>) {
        self.work.push(Work::Call(self.foreign.len()));
        self.foreign.push((call, words));
    }

    pub fn clear(&mut self) {
        self.work.clear();
        self.bytes.clear();
        self.foreign.clear();
    }

    /// What the list is, but for the bytes to be written: lists of the same number do the same at the same addresses.
    pub fn number(&self) -> u128 {
        let mut hash = Xxh3Default::new();
        let mut words = |words: &[u64]| words.iter().for_each(|word| hash.update(&word.to_le_bytes()));
        for work in &self.work {
            match work {
                Work::Launch { kernel, grid, arguments, .. } => {
                    // Texts of sources lie where they are for as long as the process runs.
                    let text = |text: &'static str| [text.as_ptr() as u64, text.len() as u64];
                    words(&[0, arguments.slots().len() as u64]);
                    words(&text(kernel.file));
                    words(&text(kernel.name));
                    words(&grid.blocks.map(u64::from));
                    words(&[u64::from(grid.threads), u64::from(grid.shared)]);
                    words(arguments.slots());
                }
                Work::Write { to, bytes, .. } => words(&[1, *to, *bytes as u64]),
                Work::Copy { from, to, bytes } => words(&[2, *from, *to, *bytes as u64]),
                Work::Call(number) => {
                    let (_, call) = &self.foreign[*number];
                    words(&[3, call.len() as u64]);
                    words(call);
                }
                Work::Mark(number) => words(&[4, *number as u64]),
            }
        }
        hash.digest128()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn launch(name: &'static str, blocks: u32, argument: usize) -> Work<()> {
        let kernel = Kernel { file: "elements", name };
        let grid = Grid { blocks: [blocks, 1, 1], threads: 256, shared: 0 };
        Work::Launch { function: (), kernel, grid, arguments: Arguments::new().count(argument) }
    }

    fn number(work: &[Work<()>], written: &[&[u8]]) -> u128 {
        let mut list = WorkList { work: work.to_vec(), ..WorkList::new() };
        written.iter().for_each(|bytes| list.write(512, bytes));
        list.number()
    }

    /// A call that differs from others of its kind in what is no part of it.
    struct Call(&'static str);

    impl std::fmt::Display for Call {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
    }

    impl Foreign for Call {
        fn words(&self) -> Option<Vec<u64>> {
            None
        }
        fn enqueue(&self, _: *mut std::ffi::c_void) -> Result<(), crate::Fault> {
            Ok(())
        }
    }

    #[test]
    fn calls_of_other_libraries_are_their_words() {
        let number = |calls: &[(&[u64], &'static str)]| {
            let mut list = WorkList::<()>::new();
            calls.iter().for_each(|(words, name)| list.call(Rc::new(Call(name)), words.to_vec()));
            list.number()
        };
        assert_eq!(
            number(&[(&[1, 2], "number 3"), (&[4], "5")]),
            number(&[(&[1, 2], "number 9"), (&[4], "10")])
        );
        assert_ne!(number(&[(&[1, 2], "")]), number(&[(&[1, 3], "")]));
        assert_ne!(number(&[(&[1, 2], "")]), number(&[(&[1], ""), (&[2], "")]));
        assert_ne!(number(&[(&[1], "")]), number(&[(&[1], ""), (&[1], "")]));
    }

    #[test]
    fn a_list_is_its_work_and_not_the_bytes_that_are_written() {
        let add = [launch("add", 1, 5)];
        assert_eq!(number(&add, &[&[1, 2, 3]]), number(&add, &[&[4, 5, 6]]));
        let others = [
            number(&add, &[&[1, 2]]),
            number(&add, &[&[1], &[2, 3]]),
            number(&add, &[]),
            number(&[launch("scale", 1, 5)], &[]),
            number(&[launch("add", 2, 5)], &[]),
            number(&[launch("add", 1, 6)], &[]),
            number(&[launch("add", 1, 5), launch("add", 1, 5)], &[]),
            number(&[Work::Copy { from: 1, to: 2, bytes: 3 }], &[]),
            number(&[Work::Copy { from: 2, to: 1, bytes: 3 }], &[]),
            number(&[Work::Mark(1)], &[]),
            number(&[Work::Mark(2)], &[]),
        ];
        let mut all = others.to_vec();
        all.push(number(&add, &[&[1, 2, 3]]));
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), others.len() + 1);
    }
}
