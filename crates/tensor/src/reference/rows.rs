//! Norms, rotary positions and activations.

use super::{ReferenceTensor, sum_of_lanes};
use crate::{Activation, NormKind, NormSpec, math};

/// One row, or one head of it, in place.
pub(super) fn norm(x: &mut [f32], weight: &[f32], bias: Option<&[f32]>, spec: NormSpec) {
    assert_eq!(x.len(), weight.len(), "norm: elements and weights");
    let count = x.len() as f32;
    match spec.kind {
        NormKind::Rms { weight_offset } => {
            assert!(bias.is_none(), "an RMS norm has no bias");
            let r = 1.0 / (sum_of_squares(x) / count + spec.eps).sqrt();
            for (x, w) in x.iter_mut().zip(weight) {
                *x = (*x * r) * (w + weight_offset);
            }
        }
        NormKind::Layer => {
            let mean = sum(x) / count;
            x.iter_mut().for_each(|x| *x -= mean);
            let r = 1.0 / (sum_of_squares(x) / count + spec.eps).sqrt();
            for (i, x) in x.iter_mut().enumerate() {
                *x = f32::mul_add(*x * r, weight[i], bias.map_or(0.0, |bias| bias[i]));
            }
        }
    }
}

fn sum(x: &[f32]) -> f32 {
    let mut lanes = [0.0; 16];
    for (i, x) in x.iter().enumerate() {
        lanes[i % 16] += x;
    }
    sum_of_lanes(lanes)
}

fn sum_of_squares(x: &[f32]) -> f32 {
    let mut lanes = [0.0; 16];
    for (i, x) in x.iter().enumerate() {
        lanes[i % 16] = f32::mul_add(*x, *x, lanes[i % 16]);
    }
    sum_of_lanes(lanes)
}

pub(super) fn rope_table(positions: &[u32], inv_freq: &[f32]) -> ReferenceTensor {
    let pairs = inv_freq.len();
    ReferenceTensor::from_fn(positions.len(), 2 * pairs, |row, col| {
        let angle = positions[row] as f32 * inv_freq[col % pairs];
        let (sin, cos) = math::sin_cos_f64(angle as f64);
        (if col < pairs { cos } else { sin }) as f32
    })
}

/// One head, in place, by one row of the table.
pub(super) fn rotate(head: &mut [f32], table: &[f32]) {
    let (cos, sin) = table.split_at(table.len() / 2);
    let pairs = cos.len();
    for i in 0..pairs {
        let (a, b) = (head[i], head[i + pairs]);
        head[i] = f32::mul_add(a, cos[i], -(b * sin[i]));
        head[i + pairs] = f32::mul_add(b, cos[i], a * sin[i]);
    }
}

pub(super) fn activation(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::Silu => math::silu(x),
        Activation::GeluTanh => math::gelu_tanh(x),
        Activation::GeluErf => math::gelu_erf(x),
        Activation::Relu => math::relu(x),
    }
}

pub(super) fn softcap(x: f32, cap: f32) -> f32 {
    cap * math::tanh(x / cap)
}
