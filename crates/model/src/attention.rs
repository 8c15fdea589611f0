use tensor::{AttentionSpec, Device, Heads, Part};

use crate::ModelError;
use crate::architecture::Qkv;
use crate::loader::Loader;
use crate::norm::Norm;
use crate::parallel::{ColumnParallelLinear, ContextAttention, Module, Rank, RowParallelLinear};
use crate::residual::Addend;
use crate::step::StepContext;

/// Attention with grouped query heads over a paged KV cache.
pub struct Attention<D: Device> {
    qkv: ColumnParallelLinear<D>,
    qk_norm: Option<(Norm<D>, Norm<D>)>,
    o: RowParallelLinear<D>,
    rope: Option<usize>,
    spec: AttentionSpec,
    context: ContextAttention,
}

impl<D: Device> Attention<D> {
    /// Loads a layer's attention.
    pub fn load(loader: &Loader<D>, layer: usize) -> Result<Self, ModelError> {
        let config = &loader.layout.config;
        let form = loader.layout.styles.layers[layer].attention;
        let qkv: &[Module] = match config.architecture.qkv {
            Qkv::Separate => &[Module::Q, Module::K, Module::V],
            Qkv::Fused => &[Module::Qkv],
        };
        let qk_norm = match config.architecture.qk_norm {
            true => Some((loader.norm(Module::QNorm, layer)?, loader.norm(Module::KNorm, layer)?)),
            false => None,
        };
        Ok(Attention {
            qkv: ColumnParallelLinear::load(loader, qkv, layer, form.up)?,
            qk_norm,
            o: RowParallelLinear::load(loader, Module::O, layer, form.down, &loader.layout.split.heads)?,
            rope: config.layers[layer].rope,
            spec: loader.layout.attention(layer, loader.rank),
            context: ContextAttention::new(loader.layout, layer, loader.rank),
        })
    }

    /// `x [t, hidden_size]` → the same shape.
    pub fn forward(
        &self,
        rank: Rank<D>,
        x: &D::Tensor,
        kv: &mut D::Kv,
        step: &StepContext<D>,
    ) -> Result<Addend<'_, D>, ModelError> {
        let dev = rank.dev;
        let mut qkv = dev.span(Part::Qkv, || self.qkv.forward(rank, x))?;
        let mixed = dev.span(Part::Attention, || {
            dev.rotate_store(kv, &mut qkv, self.heads(step), &step.device, &self.spec);
            self.context.forward(rank, &qkv, kv, step)
        })?;
        dev.span(Part::Output, || self.o.forward(rank, &mixed))
    }

    /// What its heads go through.
    fn heads<'a>(&'a self, step: &'a StepContext<D>) -> Heads<'a, D::Tensor> {
        let norms = self.qk_norm.as_ref().map(|(q, k)| {
            debug_assert_eq!(q.spec, k.spec, "queries and keys have norms of one kind");
            ([&q.weight, &k.weight], q.spec)
        });
        Heads { norms, table: self.rope.map(|rope| &step.rope_tables[rope]) }
    }
}
