//! What a step costs: the real forward pass, run on a device that only counts.

use checkpoint::WeightSource;
use collective::ShapeGroup;
use model::{Decoder, KeptAs, KvCache, Layout, Loader, ModelError, Pipeline, Rank, Stage};
use tensor::{Cost, CostReport, DType, KvDType, StepMeta};

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
    let source = WeightSource::Meta { dtype: kept.dtype.unwrap_or(DType::BF16) };
    let decoder = Decoder::load(&Loader::new(&dev, &source, layout, rank, kept, &|_| Ok(())), stage)?;
    let group = ShapeGroup::new(rank, layout.ranks(), |_| {});
    let blocks = meta.sequences.iter().flat_map(|s| &s.block_table).max().map_or(0, |&b| b as usize + 1);
    let mut kv = KvCache::new(&dev, layout, stage, rank, blocks, kv_dtype);
    dev.reset();
    let pipeline = Pipeline::new(&group, (!stage.is_first()).then_some(0), (!stage.is_last()).then_some(0));
    let share = layout.kv_share(rank);
    let context = ShapeGroup::new(share.owner, share.owners, |_| {});
    let rank = match share.owners {
        1 => Rank::new(&dev, &group),
        _ => Rank::new(&dev, &group).in_context(&context),
    };
    if let Some(hidden) = decoder.forward_stage(rank, &pipeline, meta, &mut kv)? {
        decoder.logits(&dev, &hidden);
    }
    Ok(dev.report())
}
