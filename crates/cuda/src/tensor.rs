//! What lies in a GPU's memory.

use std::rc::Rc;

use crate::driver::{Address, Arguments, Driver, Fault, Foreign, Grid, Kernel};
use crate::memory::{Block, Memory};

/// As many rows as kernels work on where there are so many. Tensor cores take eight at a time; and steps with a few rows more or
/// fewer have the same launches, so that one graph serves them. What is computed of rows that are not there, nobody reads.
pub(crate) fn filled_up(rows: usize) -> usize {
    if rows > 1 { rows.next_multiple_of(8) } else { rows }
}

/// A row-major matrix of f32, with memory for as many rows as [`filled_up`] says.
pub struct CudaTensor {
    block: Block,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
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
        filled_up(self.rows)
    }

    /// Number of elements of those.
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
    pub fn tensor(&self, rows: usize, cols: usize) -> CudaTensor {
        CudaTensor { block: self.0.block(4 * filled_up(rows) * cols), rows, cols }
    }

    /// The same with room for so many elements at least.
    pub fn tensor_with_room(&self, rows: usize, cols: usize, room: usize) -> CudaTensor {
        CudaTensor { block: self.0.block(4 * room.max(filled_up(rows) * cols)), rows, cols }
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
