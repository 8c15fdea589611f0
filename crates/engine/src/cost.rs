//! What a step costs: the real forward pass, run on a device that only counts.

use checkpoint::WeightSource;
use collective::ShapeGroup;
use model::{Decoder, KvCache, Layout, Loader, ModelError, Rank};
use tensor::{Cost, CostReport, DType, StepMeta};

/// Counts one rank's part of a step, up to the logits of the rows that want them.
///
/// # Errors
/// None that a model which was loaded could have.
pub fn cost_of_step(
    layout: &Layout,
    rank: usize,
    dtype: DType,
    kv_dtype: DType,
    meta: &StepMeta,
) -> Result<CostReport, ModelError> {
    let dev = Cost::new();
    let source = WeightSource::Meta { dtype };
    let decoder = Decoder::load(&Loader::new(&dev, &source, layout, rank, None, &|_| Ok(())))?;
    let group = ShapeGroup::new(rank, layout.ranks(), |_| {});
    let blocks = meta.sequences.iter().flat_map(|s| &s.block_table).max().map_or(0, |&b| b as usize + 1);
    let mut kv = KvCache::new(&dev, layout, rank, blocks, kv_dtype);
    dev.reset();
    let hidden = decoder.forward(Rank { dev: &dev, group: &group }, meta, &mut kv)?;
    decoder.logits(&dev, &hidden);
    Ok(dev.report())
}
