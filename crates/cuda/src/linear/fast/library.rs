//! Very many rows by NVIDIA's library. It wants weights row by row, so they are unpacked, a slice of outputs after the other: what is
//! written of a slice is still in the GPU's second cache when the library reads it.
//!
//! Weights in e4m3 with one scale per output are multiplied as they are where the GPU can: rows of activations are rounded to e4m3
//! too, each with a scale of its own, and the scales of both come to the sums. Other weights in e4m3 are unpacked as bf16.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::fmt;
use std::rc::Rc;

use ::tensor::{DType, Scales, WeightFormat};

use super::super::plan::Nodes;
use super::super::tiles::{Layout, PANEL};
use super::super::{CudaWeight, Layer};
use super::cublaslt::{Algorithm, CublasLt, Described, Element, Product};
use crate::driver::{Address, Arguments, Fault, Foreign, Grid, Kernel};
use crate::memory::Block;
use crate::rows;
use crate::tensor::{CudaTensor, Queue};

/// What the library may use besides.
pub(super) const WORKSPACE: usize = 32 << 20;
/// The most bytes of a weight that are unpacked at a time.
const SLICE: usize = 32 << 20;
/// Rows of inputs begin at multiples of so many bytes.
const STRIDE: usize = 16;
/// Sizes of products of e4m3 are multiples of this.
const SIDE: usize = 16;

/// The library, and what was asked of it.
pub(super) struct Library {
    cublaslt: Rc<CublasLt>,
    workspace: Block,
    /// Products that came, and how; `None` where the library has no way. An algorithm is for exactly what was asked for: that it does
    /// for other numbers of rows the library doesn't promise.
    ways: RefCell<HashMap<Product, Option<Way>>>,
}

/// How a product is computed.
type Way = (Rc<Described>, Algorithm);

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
        // The first product of a size makes the library load kernels, for which the driver may wait for kernels of a rank that waits
        // for this one's.
        if let ranks @ 2.. = driver.ranks_on_gpu() {
            return Err(Fault(format!(
                "cuBLASLt is for ranks with a GPU of their own, and {ranks} share this one"
            )));
        }
        driver.bind()?;
        Ok(Library {
            cublaslt: CublasLt::open(driver.cuda_major())?,
            workspace: queue.exact_block(WORKSPACE),
            ways: RefCell::default(),
        })
    }

    /// Computes a layer; false if the library has no way to do so.
    pub fn compute(&self, layer: &Layer<'_>, nodes: &Nodes) -> bool {
        let Layer { queue, w, .. } = *layer;
        let takes_fp8 = queue.0.driver.multiplies_fp8() && w.n.is_multiple_of(SIDE);
        let is_half = w.spec.format == WeightFormat::Float(DType::F16);
        let sixteen = if is_half { Element::Half } else { Element::Bfloat };
        // One after the other, in case the library can't.
        (takes_fp8
            && w.spec.format == WeightFormat::Scaled(Scales::OUTPUT)
            && self.multiply(layer, nodes, Element::Fp8))
            || self.multiply(layer, nodes, sixteen)
    }

    fn multiply(&self, layer: &Layer<'_>, nodes: &Nodes, element: Element) -> bool {
        let Layer { queue, x, rows, w, y, .. } = *layer;
        let layout = Layout::new(w.spec, w.k);
        let input_stride = w.k.next_multiple_of(STRIDE / element.bytes());
        // Whole panels.
        let outputs =
            (SLICE / element.bytes() / input_stride).next_multiple_of(16).min(w.n.next_multiple_of(16));
        let ends = |tile: usize| (tile * layout.width).min(w.k);
        let parts: Vec<Part> = (0..w.n)
            .step_by(outputs)
            .flat_map(|first| {
                let n = outputs.min(w.n - first);
                nodes.tiles.windows(2).enumerate().map(move |(node, tiles)| {
                    let (start, end) = (ends(tiles[0]), ends(tiles[1]));
                    // Behind the last input are zeros.
                    let k = match element {
                        Element::Fp8 => (end - start).next_multiple_of(SIDE),
                        Element::Half | Element::Bfloat => end - start,
                    };
                    let product = Product { element, rows, n, k, input_stride, output_stride: w.n };
                    Part { product, first, node, start }
                })
            })
            .collect();
        let Some(ways) = parts.iter().map(|part| self.way(part.product)).collect::<Option<Vec<_>>>() else {
            return false;
        };
        let inputs = Inputs::new(queue, x, rows, input_stride, element);
        let weights = queue.block(element.bytes() * outputs * input_stride);
        let mut unpacked = None;
        for (Part { product, first, node, start }, (described, algorithm)) in parts.into_iter().zip(ways) {
            if unpacked.replace(first) != Some(first) {
                unpack(queue, w, layout, (first, product.n), product, weights.at);
            }
            let start = (element.bytes() * start) as u64;
            let operands = [
                weights.at + start,
                inputs.elements.at + start,
                y.at() + 4 * (node * rows * w.n + first) as u64,
            ];
            let workspace = (self.workspace.at, WORKSPACE);
            let called = queue.call(Rc::new(Call { described, algorithm, product, operands, workspace }));
            queue.0.note(called);
        }
        match inputs.scales {
            Some(scales) => scale_products(layer, nodes, scales.at),
            None => {
                if let Some(bias) = layer.bias {
                    rows::add(queue, y, bias);
                }
            }
        }
        true
    }

    fn way(&self, product: Product) -> Option<Way> {
        let mut ways = self.ways.borrow_mut();
        if let Some(known) = ways.get(&product) {
            return known.clone();
        }
        if ways.len() >= MOST_KEPT {
            ways.clear();
        }
        ways.entry(product).insert_entry(self.asked_for(product).ok()).get().clone()
    }

    /// # Errors
    /// The library has no way to compute it.
    fn asked_for(&self, product: Product) -> Result<Way, Fault> {
        // Nodes and slices begin at multiples of 16 elements.
        let outputs = if product.output_stride.is_multiple_of(4) { 16 } else { 4 };
        let described = Described::new(&self.cublaslt, product)?;
        let algorithm = described.algorithm([16, 16, outputs], WORKSPACE)?;
        Ok((Rc::new(described), algorithm))
    }
}

/// Rows of activations as the library takes them.
struct Inputs {
    elements: Block,
    /// Of each row, of e4m3.
    scales: Option<Block>,
}

impl Inputs {
    fn new(queue: &Queue, x: &CudaTensor, rows: usize, stride: usize, element: Element) -> Self {
        let elements = queue.block(element.bytes() * rows * stride);
        let kernel = |name| Kernel { file: "unpack", name };
        let to = Arguments::new().address(elements.at);
        if element == Element::Fp8 {
            let scales = queue.block(4 * rows);
            let arguments = to.address(scales.at).address(x.at()).count(x.cols).count(stride);
            queue.launch(kernel("quantize_rows"), Grid::flat(rows, 256), arguments);
            return Inputs { elements, scales: Some(scales) };
        }
        let arguments = to.address(x.at()).count(rows).count(x.cols).count(stride);
        let arguments = arguments.count(usize::from(element == Element::Half));
        queue.launch(kernel("round_rows"), queue.over_each(rows * stride / 2), arguments);
        Inputs { elements, scales: None }
    }
}

/// Multiplies sums of e4m3 by the scales of their rows and outputs, and adds the bias.
fn scale_products(layer: &Layer<'_>, nodes: &Nodes, row_scales: Address) {
    let Layer { queue, rows, w, y, .. } = *layer;
    let count = (nodes.tiles.len() - 1) * rows * w.n;
    let arguments = Arguments::new().address(y.at()).address(row_scales).address(w.scales.at).long(count);
    let arguments = arguments.count(rows).count(w.n).address(layer.bias());
    queue.launch(Kernel { file: "unpack", name: "scale_products" }, queue.over_each(count), arguments);
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
    Product { element, input_stride: stride, .. }: Product,
    to: Address,
) {
    let panels = w.n.div_ceil(PANEL);
    let kernel = |name| Kernel { file: "unpack", name };
    if element == Element::Fp8 {
        let arguments = Arguments::new().address(to).address(w.elements.at).count(first).count(n).count(w.k);
        let arguments = arguments.count(layout.tiles()).count(stride);
        return queue.launch(kernel("unpack_bytes"), queue.over_each(n * stride / 16), arguments);
    }
    let format = match layout.format {
        WeightFormat::Float(DType::F16) => 0,
        WeightFormat::Float(_) => 1,
        WeightFormat::Scaled(_) => 3,
        _ => 2,
    };
    let arguments = Arguments::new()
        .address(to)
        .address(w.elements.at)
        .address(w.scales.at)
        .address(w.zeros.at)
        .count(first)
        .count(n)
        .count(w.k)
        .count(layout.tiles())
        .count(panels)
        .count(stride)
        .count(format);
    queue.launch(kernel("unpack_weight"), queue.over_each(n * stride / 8), arguments);
}

/// A product in the GPU's queue.
pub(super) struct Call {
    described: Rc<Described>,
    algorithm: Algorithm,
    product: Product,
    /// w, x and y.
    operands: [Address; 3],
    workspace: (Address, usize),
}

impl Call {
    /// One whose operands (w, x and y) begin at multiples of 16 bytes, beside so much memory for the library.
    ///
    /// # Errors
    /// The library has no way to compute it.
    pub fn new(
        of: &Rc<CublasLt>,
        product: Product,
        operands: [Address; 3],
        workspace: (Address, usize),
    ) -> Result<Self, Fault> {
        let described = Rc::new(Described::new(of, product)?);
        let algorithm = described.algorithm([16; 3], workspace.1)?;
        Ok(Call { described, algorithm, product, operands, workspace })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Product { rows, n, k, .. } = self.product;
        write!(f, "cublasLtMatmul of {rows} rows, {k} inputs and {n} outputs")
    }
}

impl Foreign for Call {
    fn words(&self) -> Option<Vec<u64>> {
        let Product { element, rows, n, k, input_stride, output_stride } = self.product;
        let sizes =
            [element.number() as usize, rows, n, k, input_stride, output_stride].map(|size| size as u64);
        // The algorithm is a function of these.
        let words = [0x6d61_746d_756c].into_iter().chain(sizes).chain(self.operands);
        Some(words.chain([self.workspace.0]).collect())
    }

    fn enqueue(&self, stream: *mut c_void) -> Result<(), Fault> {
        let done = self.described.multiply(self.operands, &self.algorithm, self.workspace, stream);
        done.map_err(|Fault(error)| Fault(format!("{self}: {error}")))
    }
}
