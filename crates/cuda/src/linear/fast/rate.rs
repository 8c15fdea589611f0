//! How fast NVIDIA's library multiplies bfloat16: what a GPU's tensor cores give at best, also where `mma.sync` has but a part of it.

use std::rc::Rc;
use std::time::Duration;

use super::cublaslt::{CublasLt, Element, Product};
use super::library::{Call, WORKSPACE};
use crate::driver::{Address, Driver, Fault};
use crate::limits::timed;

/// Rows, outputs and inputs of what is measured. Less where a GPU is only emulated.
const SIDE: usize = 8192;
const FEW: usize = 128;
/// A product of few takes every GPU less.
const AT_ONCE: Duration = Duration::from_micros(500);
/// Products that follow each other, and how often they are measured.
const PRODUCTS: usize = 4;
const REPEATS: usize = 7;
/// Bytes that are written at a time.
const CHUNK: usize = 1 << 20;

/// Operations per second (an FMA counts as two) of a large product: the median of several. `driver` collects nothing.
///
/// # Errors
/// There is no library, no memory for it, or whatever the GPU met.
pub fn measure(driver: &dyn Driver) -> Result<f64, Fault> {
    if !driver.takes_calls() {
        return Err(Fault(format!("{} has no queue that other libraries know", driver.name())));
    }
    driver.bind()?;
    let library = CublasLt::open(driver.cuda_major())?;
    let few = median(driver, &library, FEW, 1)?;
    let side = if few < AT_ONCE { SIDE } else { FEW };
    let time = median(driver, &library, side, PRODUCTS)?;
    Ok(2.0 * (side * side * side) as f64 / time.as_secs_f64().max(1e-9))
}

/// How long one product takes, of so many that follow each other.
fn median(
    driver: &dyn Driver,
    library: &Rc<CublasLt>,
    side: usize,
    products: usize,
) -> Result<Duration, Fault> {
    let product = Product {
        element: Element::Bfloat,
        rows: side,
        n: side,
        k: side,
        input_stride: side,
        output_stride: side,
    };
    let rooms = [2, 2, 4].map(|bytes| Room::new(driver, bytes * side * side));
    let [w, x, y] = rooms;
    let (w, x, y, workspace) = (w?, x?, y?, Room::new(driver, WORKSPACE)?);
    [&w, &x].into_iter().try_for_each(|room| room.fill(2 * side * side))?;
    let operands = [w.at, x.at, y.at];
    let call = Rc::new(Call::new(library, product, operands, (workspace.at, WORKSPACE))?);
    let once = || timed(driver, || (0..products).try_for_each(|_| driver.call(call.clone())));
    // The first time the library loads what it needs.
    once()?;
    let mut times = (0..REPEATS).map(|_| once()).collect::<Result<Vec<Duration>, _>>()?;
    times.sort();
    Ok(times[REPEATS / 2] / products as u32)
}

/// Memory of the GPU.
struct Room<'a> {
    driver: &'a dyn Driver,
    at: Address,
}

impl<'a> Room<'a> {
    fn new(driver: &'a dyn Driver, bytes: usize) -> Result<Self, Fault> {
        Ok(Room { driver, at: driver.alloc(bytes)? })
    }

    /// Numbers that are as different as those of models: zeros would take less power and a higher clock.
    fn fill(&self, bytes: usize) -> Result<(), Fault> {
        let number = |i: u32| {
            let random = i.wrapping_mul(2_654_435_761) ^ (i.wrapping_mul(0x9e37_79b9) >> 15);
            // Any sign and mantissa, from 1/4 to 1.
            let bits = (random >> 16) as u16 & 0x80ff;
            (bits + 0x3e80).to_le_bytes()
        };
        let some: Vec<u8> = (0..(CHUNK / 2) as u32).flat_map(number).collect();
        let chunks = (0..bytes).step_by(CHUNK);
        chunks.into_iter().try_for_each(|at| {
            let count = CHUNK.min(bytes - at);
            self.driver.write(self.at + at as u64, &some[..count])
        })
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.driver.free(self.at);
    }
}
