//! What a step costs: the real forward pass, run on a device that only counts.

use checkpoint::WeightSource;
use collective::ShapeGroup;
use model::{Decoder, KeptAs, KvCache, Layout, Loader, ModelError, Pipeline, Rank, Stage};
use tensor::{
    Cost, CostReport, DType, Device, KvDType, Part, PartCost, PartCosts, Recorder, Shapes, StepMeta,
};

use crate::sampler::score_rows;
use crate::steps::Asked;

/// Counts what one rank of a stage does for a step, up to the logits of the rows that want them.
///
/// # Errors
/// None that a model which was loaded could have.
pub fn cost_of_step(
    layout: &Layout,
    stage: &Stage,
    rank: usize,
    kept: KeptAs,
    kv_dtype: KvDType,
    meta: &StepMeta,
) -> Result<CostReport, ModelError> {
    let dev = Cost::new();
    let paper = OnPaper::new(&dev, layout, stage, rank, kept, kv_dtype)?;
    dev.reset();
    paper.step(meta, Asked::Logits)?;
    Ok(dev.report())
}

/// Counts what each part of steps costs a rank.
pub(crate) struct StepCosts<'a> {
    dev: PartCosts,
    layout: &'a Layout,
    stage: &'a Stage,
    rank: usize,
    kept: KeptAs,
    kv_dtype: KvDType,
}

impl<'a> StepCosts<'a> {
    pub fn new(layout: &'a Layout, stage: &'a Stage, rank: usize, kept: KeptAs, kv_dtype: KvDType) -> Self {
        StepCosts { dev: PartCosts::new(), layout, stage, rank, kept, kv_dtype }
    }

    /// Has `each` get the parts of each of some steps, by their beginnings. Each comes with what is
    /// made of its logits.
    ///
    /// # Errors
    /// None that a model which was loaded could have.
    pub fn of<'m>(
        &self,
        steps: impl Iterator<Item = (&'m StepMeta, Asked)>,
        mut each: impl FnMut(Vec<PartCost>),
    ) -> Result<(), ModelError> {
        let paper = OnPaper::new(&self.dev, self.layout, self.stage, self.rank, self.kept, self.kv_dtype)?;
        self.dev.take();
        for (meta, asked) in steps {
            paper.step(meta, asked)?;
            each(self.dev.take());
        }
        Ok(())
    }
}

/// A rank of a stage whose tensors have shapes only.
struct OnPaper<'a, R: Recorder> {
    dev: &'a Shapes<R>,
    layout: &'a Layout,
    stage: &'a Stage,
    rank: usize,
    kv_dtype: KvDType,
    decoder: Decoder<Shapes<R>>,
}

impl<'a, R: Recorder> OnPaper<'a, R> {
    fn new(
        dev: &'a Shapes<R>,
        layout: &'a Layout,
        stage: &'a Stage,
        rank: usize,
        kept: KeptAs,
        kv_dtype: KvDType,
    ) -> Result<Self, ModelError> {
        let source = WeightSource::Meta { dtype: kept.dtype.unwrap_or(DType::BF16) };
        let decoder = Decoder::load(&Loader::new(dev, &source, layout, rank, kept, &|_| Ok(())), stage)?;
        Ok(OnPaper { dev, layout, stage, rank, kv_dtype, decoder })
    }

    fn step(&self, meta: &StepMeta, asked: Asked) -> Result<(), ModelError> {
        let (dev, layout, stage, decoder) = (self.dev, self.layout, self.stage, &self.decoder);
        let blocks = meta.sequences.iter().flat_map(|s| &s.block_table).max().map_or(0, |&b| b as usize + 1);
        let mut kv = KvCache::new(dev, layout, stage, self.rank, blocks, self.kv_dtype);
        let group = ShapeGroup::new(self.rank, layout.ranks(), |_| {});
        let pipeline =
            Pipeline::new(&group, (!stage.is_first()).then_some(0), (!stage.is_last()).then_some(0));
        let share = layout.kv_share(self.rank);
        let context = ShapeGroup::new(share.owner, share.owners, |_| {});
        let rank = match share.owners {
            1 => Rank::new(dev, &group),
            _ => Rank::new(dev, &group).in_context(&context),
        };
        let Some(hidden) = decoder.forward_stage(rank, &pipeline, meta, &mut kv)? else { return Ok(()) };
        match asked {
            Asked::Logits => {
                decoder.logits(dev, &hidden);
                Ok(())
            }
            // On paper nobody knows what other ranks sum up to, so nothing comes of what is exchanged.
            Asked::Tokens => {
                let logits = decoder.logits(dev, &hidden);
                dev.span(Part::Sampling, || decoder.head().survey(rank, &logits, 1, false).map(drop))
            }
            Asked::Logprobs => {
                let weigh = |_: &[u32], logits: &_| decoder.head().exp_sums(rank, logits).map(drop);
                let rows: Vec<u32> = (0..meta.logit_rows.len() as u32).collect();
                score_rows(dev, decoder, &hidden, &rows, weigh)
            }
        }
    }
}
