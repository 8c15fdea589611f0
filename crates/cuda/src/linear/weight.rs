//! Weights as kernels take them.

use std::cell::RefCell;
use std::rc::Rc;

use ::tensor::{
    DType, Fp8Group, GROUP, Int4Group, Int8Group, MatrixSource, Program, WeightFormat, WeightSpec,
};
use half::{bf16, f16};

use super::plan::{Plan, Plans};
use super::tiles::{Layout, PANEL, Place};
use crate::driver::Address;
use crate::memory::Block;
use crate::tensor::Queue;

/// Bytes that are brought to the GPU at a time.
const CHUNK: usize = 64 << 20;

/// A packed weight `[n, k]`.
pub struct CudaWeight {
    pub(crate) n: usize,
    pub(crate) k: usize,
    pub(crate) spec: WeightSpec,
    /// Elements in tiles, `[panel][tile]`; in f32 `[k][n]`.
    pub(super) elements: Block,
    /// `[panel][tile][16]`, of formats with groups.
    pub(super) scales: Block,
    pub(super) zeros: Block,
    bytes: usize,
    plans: Plans,
    /// What [`CudaWeight::experts`] gave last, and of what.
    experts: RefCell<Option<(Vec<Address>, Rc<Block>)>>,
}

impl CudaWeight {
    pub(crate) fn pack(queue: &Queue, source: &dyn MatrixSource, spec: WeightSpec) -> Self {
        let (n, k) = (source.rows(), source.cols());
        let mut weight = CudaWeight {
            n,
            k,
            spec,
            elements: queue.block(0),
            scales: queue.block(0),
            zeros: queue.block(0),
            bytes: 0,
            plans: Plans::default(),
            experts: RefCell::default(),
        };
        match spec.format {
            WeightFormat::Float(DType::F32) => weight.pack_columns(queue, source),
            _ => weight.pack_tiles(queue, source),
        }
        weight
    }

    /// Bytes, padding included.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn pack_columns(&mut self, queue: &Queue, source: &dyn MatrixSource) {
        let (n, k) = (self.n, self.k);
        self.bytes = 4 * n * k;
        self.elements = queue.block(self.bytes);
        let columns_at_once = (CHUNK / 4 / n.max(1)).max(1);
        let mut row = Vec::new();
        for first in (0..k).step_by(columns_at_once) {
            let inputs = first..k.min(first + columns_at_once);
            let mut bytes = vec![0; 4 * n * inputs.len()];
            row.resize(inputs.len(), 0.0);
            for output in 0..n {
                source.read(output, inputs.clone(), &mut row);
                for (i, x) in row.iter().enumerate() {
                    bytes[4 * (i * n + output)..][..4].copy_from_slice(&x.to_le_bytes());
                }
            }
            queue.write(self.elements.at + (4 * first * n) as u64, &bytes);
        }
    }

    fn pack_tiles(&mut self, queue: &Queue, source: &dyn MatrixSource) {
        let layout = Layout::new(self.spec, self.k);
        let (panels, tiles, places) = (self.n.div_ceil(PANEL), layout.tiles(), layout.places());
        let [scale_bytes, zero_bytes] = group_bytes(self.spec.format).map(|bytes| bytes * PANEL * tiles);
        let panel_bytes = layout.tile_bytes() * tiles;
        self.bytes = panels * (panel_bytes + scale_bytes + zero_bytes);
        self.elements = queue.block(panels * panel_bytes);
        self.scales = queue.block(panels * scale_bytes);
        self.zeros = queue.block(panels * zero_bytes);
        let panels_at_once = (CHUNK / panel_bytes.max(1)).max(1);
        for first in (0..panels).step_by(panels_at_once) {
            let mut packed = Packed::default();
            for panel in first..panels.min(first + panels_at_once) {
                let outputs = panel * PANEL..self.n.min((panel + 1) * PANEL);
                let mut rows = vec![vec![0.0; self.k]; PANEL];
                outputs.zip(&mut rows).for_each(|(output, row)| source.read(output, 0..self.k, row));
                for tile in 0..tiles {
                    let inputs = layout.inputs(tile);
                    let rows: Vec<&[f32]> = rows.iter().map(|row| &row[inputs.clone()]).collect();
                    packed.tile(self.spec.format, &rows, &places);
                }
            }
            let to = |block: &Block, bytes: usize| block.at + (first * bytes) as u64;
            queue.write(to(&self.elements, panel_bytes), &packed.elements);
            queue.write(to(&self.scales, scale_bytes), &packed.scales);
            queue.write(to(&self.zeros, zero_bytes), &packed.zeros);
        }
    }

    /// What a kernel is told of a program; without one, its inputs belong to no tree.
    pub(super) fn plan(&self, queue: &Queue, program: Option<&Program>) -> Rc<Plan> {
        self.plans.get(queue, self.spec, self.k, program)
    }

    /// Where the elements, scales and zero points of experts' weights lie, of which this is the first.
    pub(super) fn experts(&self, queue: &Queue, weights: &[CudaWeight]) -> Rc<Block> {
        let addresses: Vec<Address> =
            weights.iter().flat_map(|w| [w.elements.at, w.scales.at, w.zeros.at]).collect();
        let mut last = self.experts.borrow_mut();
        if let Some((of, block)) = &*last
            && *of == addresses
        {
            return block.clone();
        }
        let bytes: Vec<u8> = addresses.iter().flat_map(|at| at.to_le_bytes()).collect();
        let block = Rc::new(queue.uploaded(&bytes));
        *last = queue.0.is_sound().then(|| (addresses, block.clone()));
        block
    }
}

/// Bytes of a group's scale and zero point.
pub(super) fn group_bytes(format: WeightFormat) -> [usize; 2] {
    match format {
        WeightFormat::Float(_) => [0, 0],
        WeightFormat::Fp8 => [1, 0],
        WeightFormat::Int8 => [2, 0],
        WeightFormat::Int4 => [2, 1],
    }
}

#[derive(Default)]
struct Packed {
    elements: Vec<u8>,
    scales: Vec<u8>,
    zeros: Vec<u8>,
}

impl Packed {
    /// Adds a tile: of 16 outputs their inputs there, at most as many as it is wide.
    fn tile(&mut self, format: WeightFormat, rows: &[&[f32]], places: &[Place]) {
        let at = |&(row, input): &Place| rows[row].get(input).copied().unwrap_or(0.0);
        match format {
            WeightFormat::Float(DType::F32) => unreachable!("weights in f32 have no tiles"),
            WeightFormat::Float(DType::F16) => {
                self.elements.extend(places.iter().flat_map(|place| f16::from_f32(at(place)).to_le_bytes()));
            }
            WeightFormat::Float(DType::BF16) => {
                self.elements.extend(places.iter().flat_map(|place| bf16::from_f32(at(place)).to_le_bytes()));
            }
            WeightFormat::Fp8 => {
                let groups: Vec<_> = rows.iter().map(|row| Fp8Group::of(row)).collect();
                self.elements.extend(places.iter().map(|place| groups[place.0].quantize(at(place))));
                self.scales.extend(groups.iter().map(|group| group.exponent));
            }
            WeightFormat::Int8 => {
                let groups: Vec<_> = rows.iter().map(|row| Int8Group::of(row)).collect();
                self.elements.extend(places.iter().map(|place| groups[place.0].quantize(at(place)) as u8));
                self.scale(groups.iter().map(|group| group.scale));
            }
            WeightFormat::Int4 => {
                let groups: Vec<_> = rows.iter().map(|row| Int4Group::of(row)).collect();
                // What is not there is multiplied by 0.
                let q = |place: &Place| groups[place.0].quantize(at(place));
                self.elements.extend(places.chunks(2).map(|pair| q(&pair[0]) | q(&pair[1]) << 4));
                self.scale(groups.iter().map(|group| group.scale));
                self.zeros.extend(groups.iter().map(|group| group.zero));
            }
        }
        debug_assert!(rows.iter().all(|row| row.len() <= GROUP));
    }

    fn scale(&mut self, scales: impl Iterator<Item = f32>) {
        self.scales.extend(scales.flat_map(|scale| bf16::from_f32(scale).to_le_bytes()));
    }
}
