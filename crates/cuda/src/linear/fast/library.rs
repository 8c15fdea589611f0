//! Very many rows by NVIDIA's library. It wants weights row by row, so they are unpacked, a slice of outputs after the other: what is
//! written of a slice is still in the GPU's second cache when the library reads it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::rc::Rc;
use std::time::Duration;

use ::tensor::{DType, WeightFormat};

use super::super::plan::Nodes;
use super::super::tiles::Layout;
use super::super::{CudaWeight, Layer};
use super::cublaslt::{Algorithm, CublasLt, Described, Product};
use crate::driver::{Address, Arguments, Fault, Foreign, Kernel};
use crate::memory::Block;
use crate::rows;
use crate::tensor::Queue;

/// What the library may use besides.
const WORKSPACE: usize = 32 << 20;
/// The most bytes of a weight that are unpacked at a time.
const SLICE: usize = 32 << 20;
/// Rows of inputs begin at multiples of so many elements, 16 bytes.
const STRIDE: usize = 8;

/// The library, and what was asked of it.
pub(super) struct Library {
    cublaslt: Rc<CublasLt>,
    workspace: Block,
    /// By products whose rows are rounded up to a power of two; `None` where the library has no way.
    algorithms: RefCell<HashMap<Product, Option<Algorithm>>>,
    /// Products that came, and how.
    described: RefCell<HashMap<Product, Rc<Described>>>,
}

/// The most products that are kept: a prompt's last chunk can have any number of rows.
const MOST_KEPT: usize = 1024;

impl Library {
    /// # Errors
    /// There is none, or the driver has no queue for it.
    pub fn load(queue: &Queue) -> Result<Self, Fault> {
        let driver = &queue.0.driver;
        if !driver.takes_calls() {
            return Err(Fault(format!("{} has no queue that other libraries know", driver.name())));
        }
        driver.bind()?;
        Ok(Library {
            cublaslt: CublasLt::open()?,
            workspace: queue.exact_block(WORKSPACE),
            algorithms: RefCell::default(),
            described: RefCell::default(),
        })
    }

    /// Computes a layer; false if the library has no way to do so.
    pub fn compute(&self, layer: &Layer<'_>, nodes: &Nodes) -> bool {
        let Layer { queue, x, rows, w, y, .. } = *layer;
        let layout = Layout::new(w.spec, w.k);
        let is_half = layout.format == WeightFormat::Float(DType::F16);
        let input_stride = w.k.next_multiple_of(STRIDE);
        // Whole panels.
        let outputs = (SLICE / 2 / input_stride).next_multiple_of(16).min(w.n.next_multiple_of(16));
        let ends = |tile: usize| (tile * layout.width).min(w.k);
        let parts: Vec<Part> = (0..w.n)
            .step_by(outputs)
            .flat_map(|first| {
                let n = outputs.min(w.n - first);
                nodes.tiles.windows(2).enumerate().map(move |(node, tiles)| {
                    let (start, end) = (ends(tiles[0]), ends(tiles[1]));
                    let product =
                        Product { is_half, rows, n, k: end - start, input_stride, output_stride: w.n };
                    Part { product, first, node, start }
                })
            })
            .collect();
        let Some(ways) = parts.iter().map(|part| self.way(part.product)).collect::<Option<Vec<_>>>() else {
            return false;
        };
        let inputs = queue.block(2 * rows * input_stride);
        let arguments = Arguments::new().address(inputs.at).address(x.at()).count(rows).count(w.k);
        let arguments = arguments.count(input_stride).count(usize::from(is_half));
        let grid = queue.over_each(rows * input_stride / 2);
        queue.launch(Kernel { file: "unpack", name: "round_rows" }, grid, arguments);
        let weights = queue.block(2 * outputs * input_stride);
        let mut unpacked = None;
        for (Part { product, first, node, start }, (described, algorithm)) in parts.into_iter().zip(ways) {
            if unpacked.replace(first) != Some(first) {
                unpack(queue, w, layout, (first, product.n), input_stride, weights.at);
            }
            let operands = [
                weights.at + 2 * start as u64,
                inputs.at + 2 * start as u64,
                y.at() + 4 * (node * rows * w.n + first) as u64,
            ];
            let workspace = (self.workspace.at, WORKSPACE);
            let called = queue.call(Rc::new(Call { described, algorithm, product, operands, workspace }));
            queue.0.note(called);
        }
        if let Some(bias) = layer.bias {
            rows::add(queue, y, bias);
        }
        true
    }

    fn way(&self, product: Product) -> Option<(Rc<Described>, Algorithm)> {
        let algorithm = self.algorithm(product)?;
        let mut described = self.described.borrow_mut();
        if let Some(known) = described.get(&product) {
            return Some((known.clone(), algorithm));
        }
        let new = Rc::new(Described::new(&self.cublaslt, product).ok()?);
        if described.len() >= MOST_KEPT {
            described.clear();
        }
        described.insert(product, new.clone());
        Some((new, algorithm))
    }

    /// The same for all rows up to a power of two.
    fn algorithm(&self, product: Product) -> Option<Algorithm> {
        let bucket = Product { rows: product.rows.next_power_of_two(), ..product };
        *self.algorithms.borrow_mut().entry(bucket).or_insert_with(|| {
            // Nodes and slices begin at multiples of 16 elements.
            let outputs = if product.output_stride.is_multiple_of(4) { 16 } else { 4 };
            let described = Described::new(&self.cublaslt, bucket).ok()?;
            described.algorithm([16, 16, outputs], WORKSPACE).ok()
        })
    }
}

/// A node of some outputs.
struct Part {
    product: Product,
    /// The first output, the node, and its first input.
    first: usize,
    node: usize,
    start: usize,
}

fn unpack(
    queue: &Queue,
    w: &CudaWeight,
    layout: Layout,
    (first, n): (usize, usize),
    stride: usize,
    to: Address,
) {
    let format = match layout.format {
        WeightFormat::Float(DType::F16) => 0,
        WeightFormat::Float(_) => 1,
        _ => 2,
    };
    let arguments = Arguments::new()
        .address(to)
        .address(w.elements.at)
        .address(w.scales.at)
        .count(first)
        .count(n)
        .count(w.k)
        .count(layout.tiles())
        .count(stride)
        .count(format);
    let grid = queue.over_each(n * stride / 8);
    queue.launch(Kernel { file: "unpack", name: "unpack_weight" }, grid, arguments);
}

/// A product in the GPU's queue.
struct Call {
    described: Rc<Described>,
    algorithm: Algorithm,
    product: Product,
    /// w, x and y.
    operands: [Address; 3],
    workspace: (Address, usize),
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Product { rows, n, k, .. } = self.product;
        write!(f, "cublasLtMatmul of {rows} rows, {k} inputs and {n} outputs")
    }
}

impl Foreign for Call {
    fn words(&self) -> Vec<u64> {
        let Product { is_half, rows, n, k, input_stride, output_stride } = self.product;
        let sizes = [usize::from(is_half), rows, n, k, input_stride, output_stride].map(|size| size as u64);
        // The algorithm is a function of these.
        [0x6d61_746d_756c].into_iter().chain(sizes).chain(self.operands).chain([self.workspace.0]).collect()
    }

    fn enqueue(&self, stream: *mut c_void) -> Result<(), Fault> {
        let done = self.described.multiply(self.operands, &self.algorithm, self.workspace, stream);
        done.map_err(|Fault(error)| Fault(format!("{self}: {error}")))
    }

    fn watch(&self, _: Duration) -> Result<(), Fault> {
        // Like a kernel, it ends by itself.
        Ok(())
    }

    fn abort(&self) {}
}
