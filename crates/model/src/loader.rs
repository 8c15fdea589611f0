//! Reading a rank's part of a checkpoint onto its device.

use std::cell::RefCell;
use std::ops::Range;

use checkpoint::{CheckpointError, Fill, ScaledBy, TensorView, WeightSource};
use tensor::{Concat, DType, Device, MatrixSource, NormKind, NormSpec, PackedPart, Slice, WeightSpec};

use crate::ModelError;
use crate::finite::{self, Finite};
use crate::norm::Norm;
use crate::parallel::{Held, Layout, Module, ModuleSpec};
use crate::quantization::{KeptAs, StoredAs};

/// What a rank has loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LoadStats {
    /// Elements times stored type, without padding.
    pub weight_bytes: u64,
    /// What packed weights take, padding included.
    pub packed_bytes: u64,
}

/// Loads one rank's weights.
pub struct Loader<'a, D: Device> {
    /// The rank's device.
    pub dev: &'a D,
    /// Where weights come from.
    pub source: &'a WeightSource,
    /// What is where.
    pub layout: &'a Layout,
    /// The rank.
    pub rank: usize,
    /// What weights are kept in.
    pub kept: KeptAs,
    /// Called with the bytes that each weight adds; an error ends the loading.
    pub progress: &'a dyn Fn(u64) -> Result<(), ModelError>,
    /// Whether weights that are NaN or infinite are refused.
    finite: bool,
    stats: RefCell<LoadStats>,
}

/// A tensor of the checkpoint that has a module's rows, from some row on.
struct Found<'a> {
    view: TensorView<'a>,
    first_row: usize,
}

impl<'a, D: Device> Loader<'a, D> {
    /// A loader that has loaded nothing yet.
    pub fn new(
        dev: &'a D,
        source: &'a WeightSource,
        layout: &'a Layout,
        rank: usize,
        kept: KeptAs,
        progress: &'a dyn Fn(u64) -> Result<(), ModelError>,
    ) -> Self {
        let finite = kept.quantization.is_some();
        Loader { dev, source, layout, rank, kept, progress, finite, stats: RefCell::default() }
    }

    /// Refuses weights that are NaN or infinite even if none is quantised, which costs a look at each.
    pub fn only_finite(self) -> Self {
        Loader { finite: true, ..self }
    }

    /// What has been loaded so far.
    pub fn stats(&self) -> LoadStats {
        *self.stats.borrow()
    }

    /// Packs this rank's parts of some modules of one width into one weight, one under the other, and their
    /// biases. `pad_to`: rows of zeros are added up to this number.
    pub fn linear(
        &self,
        modules: &[Module],
        layer: usize,
        pad_to: usize,
    ) -> Result<(D::Weight, Option<D::Tensor>), ModelError> {
        let specs: Vec<_> = modules.iter().map(|&m| (m, self.layout.spec(m, layer))).collect();
        let weight = self.weight(&specs, layer, pad_to)?;
        let mut bias = Vec::new();
        for (_, spec) in &specs {
            if let Some(part) = spec.bias {
                let held = self.layout.held(part, &spec.shape[..1], self.rank);
                bias.extend(self.vector(&format!("{}.bias", spec.name), spec.shape[0], &held, BIAS)?);
            }
        }
        if bias.is_empty() && specs.iter().all(|(_, spec)| spec.bias.is_none()) {
            return Ok((weight, None));
        }
        let rows = self.dev.weight_shape(&weight)[0];
        bias.resize(rows, 0.0);
        Ok((weight, Some(self.dev.upload(&bias, 1, rows))))
    }

    pub(crate) fn weight(
        &self,
        specs: &[(Module, ModuleSpec)],
        layer: usize,
        pad_to: usize,
    ) -> Result<D::Weight, ModelError> {
        let mut parts = Vec::new();
        for (module, spec) in specs {
            let held = self.layout.held(spec.part, &spec.shape, self.rank);
            let found = self.find(*module, spec, layer)?;
            parts.push((found, held));
        }
        let kept = |i: usize| {
            let ((module, spec), (found, held)) = (&specs[i], &parts[i]);
            self.kept_as(*module, &found.view).from_input(held.cols.start, spec.shape[1])
        };
        let mut packed_as = kept(0);
        for (i, (found, held)) in parts.iter().enumerate() {
            let (module, spec) = &specs[i];
            let period = self.layout.group_period(*module);
            let is = found.view.packed_as();
            let differs =
                |is: WeightSpec| kept(i) != packed_as || is.format.is_grouped() && is.period != period;
            if is.is_some_and(differs) {
                return Err(ModelError::PackedOtherwise { tensor: format!("{}.weight", spec.name) });
            }
            self.count(kept(i).bytes(held.num_rows(), held.cols.len()))?;
            if kept(i) != packed_as {
                // Several stored types in one weight.
                packed_as = DType::F32.into();
            }
        }
        let is_scaled = parts.iter().any(|(found, _)| found.view.scale_block().is_some());
        let finite: Vec<Finite> = match self.finite || is_scaled {
            true => parts.iter().map(|(found, _)| Finite::new(&found.view, packed_as.format)).collect(),
            false => Vec::new(),
        };
        let slices: Vec<Slice> = parts
            .iter()
            .enumerate()
            .map(|(i, (found, held))| {
                let shift = |r: &Range<usize>| found.first_row + r.start..found.first_row + r.end;
                Slice {
                    of: finite.get(i).map_or(&found.view as &dyn MatrixSource, |finite| finite),
                    rows: held.rows.iter().map(shift).collect(),
                    cols: held.cols.clone(),
                }
            })
            .collect();
        let rows: usize = slices.iter().map(|s| s.rows()).sum();
        let zeros = Zeros { rows: pad_to.saturating_sub(rows), cols: slices[0].cols() };
        let all =
            slices.iter().map(|s| s as &dyn MatrixSource).chain([&zeros as &dyn MatrixSource]).collect();
        let packed = self.dev.pack(&Concat(all), packed_as);
        for ((_, spec), finite) in specs.iter().zip(&finite) {
            finite.check(&format!("{}.weight", spec.name))?;
        }
        self.source.check()?;
        parts.iter().for_each(|(found, _)| found.view.release());
        self.stats.borrow_mut().packed_bytes += self.dev.packed_bytes(&packed) as u64;
        Ok(packed)
    }

    /// A norm's weight and bias.
    pub fn norm(&self, module: Module, layer: usize) -> Result<Norm<D>, ModelError> {
        let config = &self.layout.config;
        let spec = self.layout.spec(module, layer);
        let len = spec.shape[0];
        let whole = Held { rows: std::iter::once(0..len).collect(), cols: 0..1 };
        let weight = self.vector(&format!("{}.weight", spec.name), len, &whole, self.norm_fill())?;
        let bias = match spec.bias {
            Some(_) => Some(self.vector(&format!("{}.bias", spec.name), len, &whole, BIAS)?),
            None => None,
        };
        Ok(Norm {
            weight: self.dev.upload(&weight, 1, len),
            bias: bias.map(|b| self.dev.upload(&b, 1, len)),
            spec: NormSpec { kind: config.architecture.norm, eps: config.norm_eps },
        })
    }

    /// What a random norm's weight looks like.
    pub(crate) fn norm_fill(&self) -> Fill {
        match self.layout.config.architecture.norm {
            NormKind::Rms { weight_offset: 1.0 } => BIAS,
            _ => Fill::NORM,
        }
    }

    /// How a module's weight is packed.
    fn kept_as(&self, module: Module, view: &TensorView) -> WeightSpec {
        view.packed_as()
            .unwrap_or_else(|| self.kept.spec(self.layout, module, view.cols(), StoredAs::of(view)))
    }

    /// The same without its tensor at hand.
    pub(crate) fn packed_as(
        &self,
        module: Module,
        spec: &ModuleSpec,
        layer: usize,
    ) -> Result<WeightSpec, ModelError> {
        Ok(self.packed_and_stored_as(module, spec, layer)?.0)
    }

    /// The same, and bytes of the elements as they are stored.
    pub(crate) fn packed_and_stored_as(
        &self,
        module: Module,
        spec: &ModuleSpec,
        layer: usize,
    ) -> Result<(WeightSpec, u64), ModelError> {
        let view = self.find(module, spec, layer)?.view;
        Ok((self.kept_as(module, &view), (spec.shape[0] * spec.shape[1] * view.bytes_per_element()) as u64))
    }

    /// That the weights of a layer's experts, which are multiplied together, are packed alike: of all, so that every rank says the
    /// same.
    ///
    /// # Errors
    /// They are stored as different types.
    pub(crate) fn check_experts(&self, layer: usize) -> Result<(), ModelError> {
        let experts = self.layout.config.moe.map_or(0, |moe| moe.num_experts);
        for module in [Module::ExpertGate, Module::ExpertUp, Module::ExpertDown] {
            let mut first: Option<(String, WeightSpec)> = None;
            for expert in 0..experts {
                let spec = self.layout.spec(module(expert), layer);
                // One that is missing or misshapen is told of by the rank that loads it.
                let Ok(is) = self.packed_as(module(expert), &spec, layer) else { continue };
                let (name, of_first) = first.get_or_insert_with(|| (spec.name.clone(), is));
                if is != *of_first {
                    let formats = [of_first.format, is.format];
                    return Err(ModelError::ExpertsDiffer { names: [name.clone(), spec.name], formats });
                }
            }
        }
        Ok(())
    }

    fn vector(&self, name: &str, len: usize, held: &Held, fill: Fill) -> Result<Vec<f32>, ModelError> {
        let (kept, all) = self.rounded_vector(name, len, fill)?;
        self.count(held.num_rows() * kept.bytes())?;
        Ok(held.rows.iter().flat_map(|r| &all[r.clone()]).copied().collect())
    }

    /// A vector in the type that it is kept in.
    pub(crate) fn rounded_vector(
        &self,
        name: &str,
        len: usize,
        fill: Fill,
    ) -> Result<(DType, Vec<f32>), ModelError> {
        let name = self.spelling(name);
        let mut all = self.source.vector(&name, len, fill)?;
        let kept = self.kept.dtype.unwrap_or_else(|| self.source.stored_dtype(&name));
        if self.finite {
            finite::check_vector(&all, kept, &name)?;
        }
        all.iter_mut().for_each(|x| *x = kept.round(*x));
        Ok((kept, all))
    }

    fn count(&self, bytes: usize) -> Result<(), ModelError> {
        self.stats.borrow_mut().weight_bytes += bytes as u64;
        (self.progress)(bytes as u64)
    }

    /// The tensor that has a module's weight: its own, or one that holds all experts.
    fn find(&self, module: Module, spec: &ModuleSpec, layer: usize) -> Result<Found<'a>, CheckpointError> {
        let (rows, cols) = (spec.shape[0], spec.shape[1]);
        let name = self.spelling(&format!("{}.weight", spec.name));
        if let Some(moe) = self.layout.config.moe.filter(|_| self.source.contains(&name) == Some(false)) {
            let prefix = self.layout.config.architecture.names.layer.replace('*', &layer.to_string());
            let (router, experts) = moe.names.packed;
            let packed = |inner: &str| self.spelling(&format!("{prefix}.{experts}.{inner}"));
            let view = |inner: &str, e: usize, shape| {
                let name = packed(inner);
                (self.source.contains(&name) == Some(true))
                    .then(|| self.source.expert_matrix(&name, e, shape, Fill::LINEAR))
            };
            let both = [moe.num_experts, 2 * rows, cols];
            let (view, first_row) = match module {
                Module::ExpertGate(e) => (view("gate_up_proj", e, both), 0),
                Module::ExpertUp(e) => (view("gate_up_proj", e, both), rows),
                Module::ExpertDown(e) => (view("down_proj", e, [moe.num_experts, rows, cols]), 0),
                Module::Router => {
                    let name = self.spelling(&format!("{prefix}.{router}.weight"));
                    (Some(self.source.matrix(&name, [rows, cols], Fill::LINEAR)), 0)
                }
                _ => (None, 0),
            };
            if let Some(view) = view {
                return Ok(Found { view: view?, first_row });
            }
        }
        let shape = [rows, cols];
        let view = match self.scaled_by(module, spec, &name) {
            Some(by) => self.source.scaled_matrix(&name, shape, by, Fill::LINEAR)?,
            None => self.source.matrix(&name, shape, Fill::LINEAR)?,
        };
        Ok(Found { view, first_row: 0 })
    }

    /// How elements of a weight share scales, if it is in e4m3: a file's tensor says itself whether it is.
    fn scaled_by(&self, module: Module, spec: &ModuleSpec, tensor: &str) -> Option<ScaledBy> {
        match self.source.contains(tensor) {
            None => self.layout.scaled_by(module, &spec.name),
            Some(_) => self.layout.config.fp8.as_ref().map(|fp8| fp8.scaled_by),
        }
    }

    /// The name as the checkpoint spells it: bare models are saved without the leading `model.`.
    fn spelling(&self, name: &str) -> String {
        match name.strip_prefix("model.") {
            Some(bare)
                if self.source.contains(name) == Some(false) && self.source.contains(bare) == Some(true) =>
            {
                bare.into()
            }
            _ => name.into(),
        }
    }
}

/// Random biases are small.
pub(crate) const BIAS: Fill = Fill::LINEAR;

struct Zeros {
    rows: usize,
    cols: usize,
}

impl MatrixSource for Zeros {
    fn rows(&self) -> usize {
        self.rows
    }
    fn cols(&self) -> usize {
        self.cols
    }
    fn read(&self, _: usize, _: Range<usize>, out: &mut [f32]) {
        out.fill(0.0);
    }
    fn read_elements(&self, _: usize, _: Range<usize>, out: &mut [u8]) {
        out.fill(0);
    }
    fn scale(&self, _: usize, _: usize) -> f32 {
        0.0
    }
    fn packed(&self, rows: Range<usize>, cols: Range<usize>) -> Option<Vec<PackedPart>> {
        Some(vec![PackedPart { weight: None, rows, cols }])
    }
}
