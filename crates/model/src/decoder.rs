//! The forward pass, the same for every architecture and device.

use tensor::{Device, StepMeta};

use crate::ModelError;
use crate::architecture::Positions;
use crate::attention::Attention;
use crate::ffn::Ffn;
use crate::kv_cache::KvCache;
use crate::loader::Loader;
use crate::norm::Norm;
use crate::parallel::{Layout, Logits, Module, ParallelLmHead, Rank, VocabParallelEmbedding};
use crate::step::StepContext;

/// A rank's part of a model.
pub struct Decoder<D: Device> {
    layout: Layout,
    embedding: VocabParallelEmbedding<D>,
    positions: Option<LearnedPositions<D>>,
    layers: Vec<DecoderLayer<D>>,
    final_norm: Norm<D>,
    head: ParallelLmHead<D>,
}

struct LearnedPositions<D: Device> {
    table: D::Weight,
    offset: u32,
}

struct DecoderLayer<D: Device> {
    pre_attention: Norm<D>,
    attention: Attention<D>,
    post_attention: Option<Norm<D>>,
    pre_ffn: Norm<D>,
    ffn: Ffn<D>,
    post_ffn: Option<Norm<D>>,
}

impl<D: Device> Decoder<D> {
    /// Loads a rank's part.
    ///
    /// # Errors
    /// A weight that is missing or has another shape than config.json says.
    pub fn load(loader: &Loader<D>) -> Result<Self, ModelError> {
        let config = &loader.layout.config;
        let embedding = VocabParallelEmbedding::load(loader)?;
        let head = ParallelLmHead::load(loader, &embedding)?;
        let positions = match config.architecture.positions {
            Positions::Learned { offset } => {
                let (table, _) = loader.linear(&[Module::Positions], 0, 0)?;
                Some(LearnedPositions { table, offset: offset as u32 })
            }
            _ => None,
        };
        let layers = (0..config.num_layers()).map(|layer| DecoderLayer::load(loader, layer));
        Ok(Decoder {
            layers: layers.collect::<Result<_, _>>()?,
            final_norm: loader.norm(Module::FinalNorm, 0)?,
            layout: loader.layout.clone(),
            embedding,
            positions,
            head,
        })
    }

    /// The model's layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The output head.
    pub fn head(&self) -> &ParallelLmHead<D> {
        &self.head
    }

    /// Runs a step and returns the normed hidden states of the rows whose logits are wanted.
    ///
    /// # Shapes
    /// → `[logit_rows, hidden_size]`
    ///
    /// # Errors
    /// A rank is missing or failed.
    pub fn forward(
        &self,
        rank: Rank<D>,
        meta: &StepMeta,
        kv: &mut KvCache<D>,
    ) -> Result<D::Tensor, ModelError> {
        let dev = rank.dev;
        let step = StepContext::new(dev, &self.layout.config, meta);
        let mut x = self.embedding.forward(rank, &meta.tokens)?;
        if let Some(scale) = self.layout.config.embedding_scale {
            dev.scale(&mut x, scale);
        }
        if let Some(positions) = &self.positions {
            let rows: Vec<u32> = meta.positions().iter().map(|p| p + positions.offset).collect();
            dev.add(&mut x, &dev.embed(&positions.table, &rows));
        }
        for (layer, kv) in self.layers.iter().zip(&mut kv.layers) {
            layer.forward(rank, &mut x, kv, &step)?;
        }
        let wanted = dev.gather_rows(&x, &meta.logit_rows);
        Ok(self.final_norm.forward(dev, &wanted))
    }

    /// This rank's columns of the logits of some rows of [`Decoder::forward`]'s result.
    pub fn logits(&self, dev: &D, hidden: &D::Tensor) -> Logits<D> {
        self.head.forward(dev, hidden)
    }
}

impl<D: Device> DecoderLayer<D> {
    fn load(loader: &Loader<D>, layer: usize) -> Result<Self, ModelError> {
        let names = &loader.layout.config.architecture.names;
        let behind = |name: Option<&str>, module| name.map(|_| loader.norm(module, layer)).transpose();
        Ok(DecoderLayer {
            pre_attention: loader.norm(Module::PreAttention, layer)?,
            attention: Attention::load(loader, layer)?,
            post_attention: behind(names.post_attention, Module::PostAttention)?,
            pre_ffn: loader.norm(Module::PreFfn, layer)?,
            ffn: Ffn::load(loader, layer)?,
            post_ffn: behind(names.post_ffn, Module::PostFfn)?,
        })
    }

    /// `x += attention(norm(x))`, `x += ffn(norm(x))`, with a norm of each sum's right side where the
    /// architecture has one.
    fn forward(
        &self,
        rank: Rank<D>,
        x: &mut D::Tensor,
        kv: &mut D::Kv,
        step: &StepContext<D>,
    ) -> Result<(), ModelError> {
        let dev = rank.dev;
        let normed = |y: D::Tensor, norm: &Option<Norm<D>>| match norm {
            Some(norm) => norm.forward(dev, &y),
            None => y,
        };
        let y = self.attention.forward(rank, &self.pre_attention.forward(dev, x), kv, step)?;
        dev.add(x, &normed(y, &self.post_attention));
        let y = self.ffn.forward(rank, &self.pre_ffn.forward(dev, x))?;
        dev.add(x, &normed(y, &self.post_ffn));
        Ok(())
    }
}
