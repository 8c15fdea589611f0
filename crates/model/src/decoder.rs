//! The forward pass, the same for every architecture and device.

use tensor::{Device, Part, StepMeta};

use crate::ModelError;
use crate::architecture::Positions;
use crate::attention::Attention;
use crate::ffn::Ffn;
use crate::kv_cache::KvCache;
use crate::loader::Loader;
use crate::norm::Norm;
use crate::parallel::{
    ExpertCounts, Layout, Logits, Module, ParallelLmHead, Pipeline, Rank, Stage, Stream,
    VocabParallelEmbedding,
};
use crate::residual::Residual;
use crate::step::StepContext;

/// A rank's part of a model: its share of the layers of one pipeline stage.
pub struct Decoder<D: Device> {
    layout: Layout,
    stage: Stage,
    input: Option<Input<D>>,
    layers: Vec<DecoderLayer<D>>,
    output: Option<Output<D>>,
}

/// What the first stage begins with.
struct Input<D: Device> {
    embedding: VocabParallelEmbedding<D>,
    positions: Option<LearnedPositions<D>>,
}

struct LearnedPositions<D: Device> {
    table: D::Weight,
    offset: u32,
}

/// What the last stage ends with.
struct Output<D: Device> {
    norm: Norm<D>,
    head: ParallelLmHead<D>,
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
    /// Loads a rank's part of a stage.
    ///
    /// # Errors
    /// A weight that is missing or has another shape than config.json says.
    pub fn load(loader: &Loader<D>, stage: &Stage) -> Result<Self, ModelError> {
        let config = &loader.layout.config;
        // A tied head needs the embedding, too.
        let holds_embedding = stage.is_first() || config.tied;
        let embedding = holds_embedding.then(|| VocabParallelEmbedding::load(loader)).transpose()?;
        let output = match stage.is_last() {
            true => {
                let head = ParallelLmHead::load(loader, embedding.as_ref())?;
                Some(Output { norm: loader.norm(Module::FinalNorm, 0)?, head })
            }
            false => None,
        };
        let input = match (stage.is_first(), embedding) {
            (true, Some(embedding)) => Some(Input { positions: LearnedPositions::load(loader)?, embedding }),
            _ => None,
        };
        let layers = stage.layers.clone().map(|layer| DecoderLayer::load(loader, layer));
        Ok(Decoder {
            layers: layers.collect::<Result<_, _>>()?,
            layout: loader.layout.clone(),
            stage: stage.clone(),
            input,
            output,
        })
    }

    /// The model's layout.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// The stage that this is.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// The output head.
    ///
    /// # Panics
    /// If this is not the last stage.
    pub fn head(&self) -> &ParallelLmHead<D> {
        &self.output.as_ref().expect("the last stage has the head").head
    }

    /// What this rank has counted of its layers' experts since the last call, by layer of the model.
    ///
    /// # Errors
    /// Whatever the device met since its results were read last.
    pub fn take_expert_counts(&self, dev: &D) -> Result<Vec<(usize, ExpertCounts)>, ModelError> {
        let of_layer = |(layer, own): (usize, &DecoderLayer<D>)| {
            own.ffn.take_counts(dev).map(|counts| Some((layer, counts?))).transpose()
        };
        self.stage.layers.clone().zip(&self.layers).filter_map(of_layer).collect()
    }

    /// Runs a step through all layers and returns the normed hidden states of the rows whose logits are wanted.
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
        let pipeline = Pipeline::new(rank.group, None, None);
        let hidden = self.forward_stage(rank, &pipeline, meta, kv)?;
        Ok(hidden.expect("the last stage has hidden states"))
    }

    /// Runs a step through this stage. The last one returns what [`Decoder::forward`] does; the others send what they
    /// have to the next and return nothing.
    ///
    /// # Errors
    /// A rank is missing or failed.
    pub fn forward_stage(
        &self,
        rank: Rank<D>,
        pipeline: &Pipeline<D>,
        meta: &StepMeta,
        kv: &mut KvCache<D>,
    ) -> Result<Option<D::Tensor>, ModelError> {
        let (dev, tokens) = (rank.dev, meta.num_rows());
        let stream = Stream::new(tokens, rank.group.size(), self.layout.sequence_parallel);
        let rank = Rank { stream: &stream, ..rank };
        let x = match &self.input {
            Some(input) => {
                dev.span(Part::Embedding, || input.forward(rank, meta, self.layout.config.embedding_scale))?
            }
            None => pipeline.receive(rank, &self.layout, tokens)?,
        };
        let step = dev.span(Part::Attention, || StepContext::new(dev, &self.layout.config, meta));
        let mut x = Residual::new(x);
        for (layer, kv) in self.layers.iter().zip(&mut kv.layers) {
            dev.span(Part::Layer, || layer.forward(rank, &mut x, kv, &step))?;
        }
        let x = x.into_sum(rank)?;
        match &self.output {
            Some(output) => {
                let collect = || rank.collect(&x, &meta.logit_rows, |x| output.norm.forward(dev, x));
                dev.span(Part::Head, collect).map(Some)
            }
            None => pipeline.send(rank, &x, tokens).map(|()| None),
        }
    }

    /// This rank's columns of the logits of some rows of [`Decoder::forward`]'s result.
    pub fn logits(&self, dev: &D, hidden: &D::Tensor) -> Logits<D> {
        self.head().forward(dev, hidden)
    }
}

impl<D: Device> Input<D> {
    /// This rank's rows of the stream.
    fn forward(&self, rank: Rank<D>, meta: &StepMeta, scale: Option<f32>) -> Result<D::Tensor, ModelError> {
        let dev = rank.dev;
        let mut x = self.embedding.forward(rank, &meta.tokens)?;
        if let Some(scale) = scale {
            dev.scale(&mut x, scale);
        }
        if let Some(positions) = &self.positions {
            let own = rank.stream.rows(rank.group.rank(), meta.num_rows());
            let rows: Vec<u32> = meta.positions()[own].iter().map(|p| p + positions.offset).collect();
            dev.add(&mut x, &dev.embed(&positions.table, &rows));
        }
        Ok(x)
    }
}

impl<D: Device> LearnedPositions<D> {
    fn load(loader: &Loader<D>) -> Result<Option<Self>, ModelError> {
        let Positions::Learned { offset } = loader.layout.config.architecture.positions else {
            return Ok(None);
        };
        let (table, _) = loader.linear(&[Module::Positions], 0, 0)?;
        Ok(Some(LearnedPositions { table, offset: offset as u32 }))
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
    fn forward<'a>(
        &'a self,
        rank: Rank<D>,
        x: &mut Residual<'a, D>,
        kv: &mut D::Kv,
        step: &StepContext<D>,
    ) -> Result<(), ModelError> {
        let normed = x.normed(rank, &self.pre_attention)?;
        x.add(self.attention.forward(rank, &normed, kv, step)?, self.post_attention.as_ref());
        let normed = x.normed(rank, &self.pre_ffn)?;
        x.add(self.ffn.forward(rank, &normed)?, self.post_ffn.as_ref());
        Ok(())
    }
}
