//! What lies in a GPU's memory.

use std::rc::Rc;

use crate::driver::{Address, Arguments, Driver, Fault, Foreign, Grid, Kernel};
use crate::memory::{Block, Memory};
use crate::reduction::Reduction;

/// A row-major matrix of f32, with memory for as many rows as [`Queue::filled_up`] says. It may be several that lie one behind the
/// other, as nodes of a tree do: then each is filled up for itself.
pub struct CudaTensor {
    block: Block,
    /// Of all parts, as its shape says.
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    parts: usize,
    /// Rows from one part to the next.
    part_rows: usize,
}

impl CudaTensor {
    pub(crate) fn at(&self) -> Address {
        self.block.at
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// As many rows as kernels work on.
    pub(crate) fn filled_rows(&self) -> usize {
        self.parts * self.part_rows
    }

    /// How many matrices lie one behind the other.
    pub(crate) fn parts(&self) -> usize {
        self.parts
    }

    /// Rows of each, filled up.
    pub(crate) fn part_rows(&self) -> usize {
        self.part_rows
    }

    /// Number of elements of each, filled up.
    pub(crate) fn part_len(&self) -> usize {
        self.part_rows * self.cols
    }

    /// In which row of memory a row is.
    pub(crate) fn place_of(&self, row: usize) -> usize {
        match self.rows / self.parts.max(1) {
            0 => 0,
            rows => row / rows * self.part_rows + row % rows,
        }
    }

    /// Number of elements of all rows that kernels work on.
    pub(crate) fn filled_len(&self) -> usize {
        self.filled_rows() * self.cols
    }

    /// Where the elements of a matrix of one row lie.
    pub(crate) fn vector(&self) -> Address {
        assert_eq!(self.rows, 1, "a vector is a matrix of one row");
        self.at()
    }
}

/// How operations reach the GPU: its memory and its queue. What goes wrong is kept until results are read; from then on nothing
/// is launched.
#[derive(Clone)]
pub(crate) struct Queue(pub Rc<Memory>);

/// Threads of a block where each element is worked on for itself.
const THREADS: usize = 256;

impl Queue {
    /// As many rows as kernels work on where there are so many: steps with a few rows more or fewer have the same launches, so that
    /// one graph serves them. Tensor cores take eight at a time; where sums may have any order, there are kernels for 2 and 4 too.
    /// What is computed of rows that are not there, nobody reads.
    pub fn filled_up(&self, rows: usize) -> usize {
        match rows {
            0 | 1 => rows,
            2..=4 if self.0.reduction == Reduction::Fast => rows.next_power_of_two(),
            _ => rows.next_multiple_of(8),
        }
    }

    pub fn tensor(&self, rows: usize, cols: usize) -> CudaTensor {
        self.tensor_of(1, rows, self.filled_up(rows), cols)
    }

    /// A matrix of several parts with so many rows each, filled up to `part_rows`.
    pub fn tensor_of(&self, parts: usize, rows: usize, part_rows: usize, cols: usize) -> CudaTensor {
        assert!(rows <= part_rows, "{rows} rows are filled up to {part_rows}");
        CudaTensor {
            block: self.0.block(4 * parts * part_rows * cols),
            rows: parts * rows,
            cols,
            parts,
            part_rows,
        }
    }

    /// A matrix with a row for each of x's.
    pub fn tensor_like(&self, x: &CudaTensor, cols: usize) -> CudaTensor {
        self.tensor_of(x.parts, x.rows / x.parts.max(1), x.part_rows, cols)
    }

    /// One with room for so many elements at least.
    pub fn tensor_with_room(&self, rows: usize, part_rows: usize, cols: usize, room: usize) -> CudaTensor {
        let block = self.0.block(4 * room.max(part_rows * cols));
        CudaTensor { block, rows, cols, parts: 1, part_rows }
    }

    /// The same in so many parts of `rows` each, as kernels leave nodes of a tree.
    pub fn in_parts(&self, x: CudaTensor, parts: usize, rows: usize) -> CudaTensor {
        assert_eq!(x.rows, parts * rows, "rows of {parts} parts");
        if x.parts == parts {
            return x;
        }
        assert_eq!(x.parts, 1, "what has parts has these");
        let y = self.tensor_of(parts, rows, self.filled_up(rows), x.cols);
        for part in 0..parts {
            let at = |x: &CudaTensor, row: usize| x.at() + 4 * (row * x.cols) as u64;
            let copied = self.copy(at(&x, part * rows), at(&y, part * y.part_rows), 4 * rows * x.cols);
            self.0.note(copied);
        }
        y
    }

    /// Memory of `bytes`.
    pub fn block(&self, bytes: usize) -> Block {
        self.0.block(bytes)
    }

    /// Memory of `bytes` that stays long.
    pub fn exact_block(&self, bytes: usize) -> Block {
        self.0.exact_block(bytes)
    }

    /// Bytes of the host, in memory of the GPU.
    pub fn uploaded(&self, bytes: &[u8]) -> Block {
        let block = self.0.block(bytes.len());
        self.write(block.at, bytes);
        block
    }

    /// A matrix of the host, filled up with zeros.
    pub fn matrix(&self, data: &[f32], rows: usize, cols: usize) -> CudaTensor {
        let x = self.tensor(rows, cols);
        let mut bytes = Vec::with_capacity(4 * x.filled_len());
        data.iter().for_each(|x| bytes.extend_from_slice(&x.to_le_bytes()));
        bytes.resize(4 * x.filled_len(), 0);
        self.write(x.at(), &bytes);
        x
    }

    /// What a matrix is, behind all work.
    ///
    /// # Errors
    /// Whatever went wrong since the last call.
    pub fn read_matrix(&self, x: &CudaTensor) -> Result<Vec<f32>, Fault> {
        let (rows, parts) = (x.rows / x.parts.max(1), x.parts);
        if parts <= 1 || rows == x.part_rows || x.len() == 0 {
            return self.read(x.at(), x.len());
        }
        let mut all = self.read(x.at(), (parts - 1) * x.part_len() + rows * x.cols)?;
        for part in 1..parts {
            let from = part * x.part_len();
            all.copy_within(from..from + rows * x.cols, part * rows * x.cols);
        }
        all.truncate(x.len());
        Ok(all)
    }

    /// Numbers of the host, in memory of the GPU.
    pub fn numbers(&self, numbers: impl IntoIterator<Item = u32>) -> Block {
        self.uploaded(&numbers.into_iter().flat_map(u32::to_le_bytes).collect::<Vec<_>>())
    }

    pub fn write(&self, to: Address, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.work(|driver| driver.write(to, bytes));
        }
    }

    /// Numbers from the GPU, behind all work.
    ///
    /// # Errors
    /// Whatever went wrong since the last call.
    pub fn read(&self, from: Address, count: usize) -> Result<Vec<f32>, Fault> {
        Ok(self.read_numbers(from, count)?.into_iter().map(f32::from_bits).collect())
    }

    /// The same of whole numbers.
    pub fn read_numbers(&self, from: Address, count: usize) -> Result<Vec<u32>, Fault> {
        let mut bytes = vec![0; 4 * count];
        let Memory { driver, watch, .. } = &*self.0;
        self.0.take_fault()?;
        watch.waits(&**driver)?;
        driver.read(from, &mut bytes)?;
        watch.waited();
        self.0.ask_watches()?;
        let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes each"));
        Ok(bytes.chunks_exact(4).map(number).collect())
    }

    /// Hands all work to the GPU, without waiting.
    pub fn flush(&self) {
        if self.0.is_sound() {
            self.0.note(self.0.driver.flush());
        }
    }

    /// The same where the rank goes on to wait for others or for work.
    pub fn rest(&self) {
        if self.0.is_sound() {
            self.0.note(self.0.driver.rest());
        }
    }

    /// Has files of kernels loaded before they are needed.
    pub fn prepare(&self, files: &[&'static str]) {
        if self.0.is_sound() {
            self.0.note(self.0.driver.prepare(files));
        }
    }

    /// Runs a kernel, unless it has no blocks.
    pub fn launch(&self, kernel: Kernel, grid: Grid, arguments: Arguments) {
        if !grid.blocks.contains(&0) {
            self.work(|driver| driver.launch(kernel, grid, &arguments));
        }
    }

    /// Asks the driver for work, unless something has gone wrong before.
    pub fn work(&self, ask: impl FnOnce(&dyn Driver) -> Result<(), Fault>) {
        self.0.note(self.asked(ask));
    }

    /// The same, of which whoever asks is told.
    fn asked(&self, ask: impl FnOnce(&dyn Driver) -> Result<(), Fault>) -> Result<(), Fault> {
        let Memory { driver, watch, .. } = &*self.0;
        if self.0.is_sound() { watch.work(&**driver).and_then(|()| ask(&**driver)) } else { Ok(()) }
    }

    /// Has another library work, behind all work so far.
    ///
    /// # Errors
    /// It can't. What went wrong before surfaces where results are read.
    pub fn call(&self, call: Rc<dyn Foreign>) -> Result<(), Fault> {
        self.asked(|driver| driver.call(call))
    }

    /// Copies within the GPU.
    ///
    /// # Errors
    /// As for [`Queue::call`].
    pub fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), Fault> {
        self.asked(|driver| driver.copy(from, to, bytes))
    }

    /// A grid of about a thread per element, for kernels whose threads go on with other elements.
    pub fn over_elements(&self, count: usize) -> Grid {
        let most = 8 * self.0.driver.multiprocessors();
        Grid::flat(count.div_ceil(THREADS).min(most), THREADS)
    }

    /// A grid of a thread per element, for kernels whose threads work on one.
    pub fn over_each(&self, count: usize) -> Grid {
        Grid::flat(count.div_ceil(THREADS), THREADS)
    }
}

impl Grid {
    /// Blocks along one axis, without shared memory.
    pub fn flat(blocks: usize, threads: usize) -> Self {
        let blocks = u32::try_from(blocks).expect("a grid has fewer than 2^32 blocks");
        Grid { blocks: [blocks, 1, 1], threads: threads as u32, shared: 0 }
    }

    /// Blocks along two axes. Of the second there are at most 65,535.
    pub fn plane(blocks: usize, others: usize, threads: usize) -> Self {
        let others = u16::try_from(others).expect("a grid's second axis has fewer than 2^16 blocks");
        Grid {
            blocks: [Self::flat(blocks, threads).blocks[0], u32::from(others), 1],
            ..Self::flat(0, threads)
        }
    }

    /// With bytes of shared memory.
    pub fn with_shared(self, bytes: usize) -> Self {
        Grid { shared: u32::try_from(bytes).expect("shared memory is some kilobytes"), ..self }
    }
}
