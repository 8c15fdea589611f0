use tensor::{AttentionSpec, Device, HeadSpan, Part};

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
        let qkv = dev.span(Part::Qkv, || self.queries_keys_values(rank, x, step))?;
        let mixed = dev.span(Part::Attention, || {
            dev.store_kv(kv, &qkv, &step.device, &self.spec);
            self.context.forward(rank, &qkv, kv, step)
        })?;
        dev.span(Part::Output, || self.o.forward(rank, &mixed))
    }

    /// Normed and rotated, side by side.
    fn queries_keys_values(
        &self,
        rank: Rank<D>,
        x: &D::Tensor,
        step: &StepContext<D>,
    ) -> Result<D::Tensor, ModelError> {
        let (dev, spec) = (rank.dev, &self.spec);
        let mut qkv = self.qkv.forward(rank, x)?;
        let table = self.rope.map(|rope| &step.rope_tables[rope]);
        match (&self.qk_norm, table) {
            (Some((q_norm, k_norm)), Some(table)) => {
                debug_assert_eq!(q_norm.spec, k_norm.spec, "queries and keys have norms of one kind");
                let heads = [(spec.q(), &q_norm.weight), (spec.k(), &k_norm.weight)];
                dev.head_norm_rope(&mut qkv, heads, q_norm.spec, table);
            }
            (Some((q_norm, k_norm)), None) => {
                q_norm.forward_heads(dev, &mut qkv, spec.q());
                k_norm.forward_heads(dev, &mut qkv, spec.k());
            }
            (None, Some(table)) => {
                let heads = HeadSpan { heads: spec.num_heads + spec.num_kv_heads, ..spec.q() };
                dev.rope(&mut qkv, heads, table);
            }
            (None, None) => {}
        }
        Ok(qkv)
    }
}
