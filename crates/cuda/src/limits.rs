//! What a GPU does at best, measured: how fast its memory is copied and read, how fast its tensor cores multiply, how long a kernel
//! takes to start. A kernel's speed means something only beside these.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::driver::{Address, Arguments, Driver, Fault, Grid, Kernel, Mark};
use crate::linear;
use crate::nvidia::Gpu;

/// What one GPU does at best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GpuLimits {
    /// Bytes read and written, both counted, while memory is copied.
    pub copy_bytes_per_s: f64,
    /// Bytes read, while memory is only read.
    pub read_bytes_per_s: f64,
    /// Operations (an FMA counts as two) of `mma.sync` on bfloat16 from registers. On GPUs that have faster instructions that is not
    /// all that their tensor cores can do: see [`library_rate`].
    pub bf16_flops_per_s: f64,
    /// From one kernel that does nothing to the next, launched one by one.
    pub launch: Duration,
    /// The same in a graph.
    pub graph_launch: Duration,
}

/// Bytes that are copied: far more than any cache. Less where there is less, or where a GPU is only emulated.
const BYTES: usize = 1 << 30;
const FEW_BYTES: usize = 16 << 20;
/// Copying few bytes takes every GPU less.
const AT_ONCE: Duration = Duration::from_millis(2);
/// Threads of a block, and blocks per multiprocessor, that keep either busy.
const THREADS: usize = 256;
const COPY_BLOCKS: usize = 8;
const MMA_BLOCKS: usize = 2;
/// Of `limits_mma`: products of a warp in a step, and what each does.
const PRODUCTS: usize = 16;
const PRODUCT_FLOPS: usize = 2 * 16 * 8 * 16;
const LAUNCHES: usize = 1000;
const REPEATS: usize = 5;
/// What no sum is.
const UNEXPECTED: u32 = 0x5bd1_e995;

const fn kernel(name: &'static str) -> Kernel {
    Kernel { file: "limits", name }
}

/// Measures, in well under a second on a GPU. `eager` collects nothing; `graphs` replays what comes again.
///
/// # Errors
/// Whatever the GPU met.
pub(crate) fn measure(eager: &dyn Driver, graphs: &dyn Driver) -> Result<GpuLimits, Fault> {
    let mut memory = Memory { driver: eager, from: 0, to: 0, bytes: 0 };
    memory.take(FEW_BYTES)?;
    memory.copy()?;
    let few = memory.copy()?;
    if few < AT_ONCE {
        // Half, and half of that, where there is less memory.
        let sizes = std::iter::successors(Some(BYTES), |bytes| Some(bytes / 2))
            .take_while(|&bytes| bytes > FEW_BYTES);
        let mut taken = Err(Fault(String::new()));
        for bytes in sizes {
            taken = memory.take(bytes);
            if taken.is_ok() {
                break;
            }
        }
        taken?;
        memory.copy()?;
    }
    let best = |times: Vec<Duration>| times.into_iter().min().unwrap_or_default().as_secs_f64().max(1e-9);
    let copy = best((0..REPEATS).map(|_| memory.copy()).collect::<Result<_, _>>()?);
    let read = best((0..REPEATS).map(|_| memory.read()).collect::<Result<_, _>>()?);
    let bytes = memory.bytes as f64;
    let bf16_flops_per_s = bf16(eager, memory.to)?;
    Ok(GpuLimits {
        copy_bytes_per_s: 2.0 * bytes / copy,
        read_bytes_per_s: bytes / read,
        bf16_flops_per_s,
        launch: launch(eager, memory.to)?,
        graph_launch: launch(graphs, memory.to)?,
    })
}

/// Operations per second (an FMA counts as two) of NVIDIA's library, multiplying large matrices of bfloat16.
///
/// # Errors
/// There is no library that works on this GPU, with what was looked for; or whatever the GPU met.
pub fn library_rate(gpu: &Arc<Gpu>) -> Result<f64, Fault> {
    linear::library_rate(&gpu.driver(true)?)
}

/// How long the GPU takes for some work.
pub(crate) fn timed(
    driver: &dyn Driver,
    work: impl FnOnce() -> Result<(), Fault>,
) -> Result<Duration, Fault> {
    let began = driver.mark()?;
    work()?;
    let ended = driver.mark()?;
    let moments = driver.moments()?;
    let moment = |mark| -> Instant {
        match mark {
            Mark::Passed(at) => at,
            Mark::Pending(number) => moments[number],
        }
    };
    Ok(moment(ended) - moment(began))
}

/// Two buffers.
struct Memory<'a> {
    driver: &'a dyn Driver,
    from: Address,
    to: Address,
    bytes: usize,
}

impl Memory<'_> {
    fn take(&mut self, bytes: usize) -> Result<(), Fault> {
        self.give_back();
        self.from = self.driver.alloc(bytes)?;
        self.to = self.driver.alloc(bytes)?;
        self.bytes = bytes;
        Ok(())
    }

    fn give_back(&mut self) {
        for at in [std::mem::take(&mut self.from), std::mem::take(&mut self.to)] {
            if at != 0 {
                self.driver.free(at);
            }
        }
    }

    fn run(&self, name: &'static str, arguments: Arguments) -> Result<Duration, Fault> {
        let grid = Grid::flat(COPY_BLOCKS * self.driver.multiprocessors(), THREADS);
        timed(self.driver, || self.driver.launch(kernel(name), grid, &arguments))
    }

    fn copy(&self) -> Result<Duration, Fault> {
        self.run("limits_copy", Arguments::new().address(self.to).address(self.from).long(self.bytes / 16))
    }

    fn read(&self) -> Result<Duration, Fault> {
        let arguments = Arguments::new().address(self.to).address(self.from).long(self.bytes / 16);
        self.run("limits_read", arguments.count(UNEXPECTED as usize))
    }
}

impl Drop for Memory<'_> {
    fn drop(&mut self) {
        self.give_back();
    }
}

fn bf16(driver: &dyn Driver, to: Address) -> Result<f64, Fault> {
    let blocks = MMA_BLOCKS * driver.multiprocessors();
    let run = |steps: usize| {
        let arguments = Arguments::new().address(to).count(steps).float(f32::from_bits(UNEXPECTED));
        timed(driver, || driver.launch(kernel("limits_mma"), Grid::flat(blocks, THREADS), &arguments))
    };
    // Some milliseconds each, so that the clock is what it is under load.
    let mut steps = 1;
    while run(steps)? < Duration::from_millis(5) {
        steps *= 2;
    }
    let times = (0..REPEATS).map(|_| run(steps)).collect::<Result<Vec<Duration>, _>>()?;
    let best = times.into_iter().min().unwrap_or_default();
    let flops = steps * PRODUCTS * PRODUCT_FLOPS * (THREADS / 32) * blocks;
    Ok(flops as f64 / best.as_secs_f64().max(1e-9))
}

fn launch(driver: &dyn Driver, to: Address) -> Result<Duration, Fault> {
    let arguments = Arguments::new().address(to);
    let all = || {
        (0..LAUNCHES).try_for_each(|_| driver.launch(kernel("limits_nothing"), Grid::flat(1, 32), &arguments))
    };
    // After the second time it is made a graph, if it is at all.
    let times = (0..2 + REPEATS).map(|_| timed(driver, all)).collect::<Result<Vec<Duration>, _>>()?;
    Ok(times[2..].iter().min().copied().unwrap_or_default() / LAUNCHES as u32)
}
