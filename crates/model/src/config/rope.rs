//! Rotary embeddings out of config.json: inverse frequencies, scaled and rounded as Hugging Face does.

use serde_json::{Map, Value};
use tensor::{RopeSpec, math};

use super::json::{Json, positive};
use crate::ModelError;
use crate::architecture::Positions;

/// The ropes of a model, and which of them each layer uses.
pub(super) fn ropes(
    json: &Json,
    positions: Positions,
    head_dim: usize,
    windows: &[Option<usize>],
) -> Result<(Vec<RopeSpec>, Vec<Option<usize>>), ModelError> {
    let local_base = match positions {
        Positions::Learned { .. } => return Ok((Vec::new(), vec![None; windows.len()])),
        Positions::Rope => None,
        Positions::RopePerLayerType(key, default) => Some((key, default)),
    };
    let parameters = json.object("rope_parameters")?;
    let scaling = json.object("rope_scaling")?; // Where both generations' keys are there, the older rules.
    let of_type = |name: &str| parameters.and_then(|p| p.get(name)).and_then(Value::as_object);
    let none = Map::new();
    let Some((key, default)) = local_base else {
        let found = scaling.or_else(|| of_type("full_attention")).or(parameters).unwrap_or(&none);
        let rope = rope(json, found, json.positive("rope_theta"), head_dim)?;
        return Ok((vec![rope], vec![Some(0); windows.len()]));
    };
    let full = scaling.or_else(|| of_type("full_attention")).unwrap_or(&none);
    let local = of_type("sliding_attention").unwrap_or(&none);
    let full = rope(json, full, json.positive("rope_theta"), head_dim)?;
    let base = json.maybe_positive(key).map(|base| base.unwrap_or(default));
    let local = rope(json, local, base, head_dim)?;
    let of_layer = windows.iter().map(|window| Some(usize::from(window.is_some()))).collect();
    Ok((vec![full, local], of_layer))
}

fn rope(
    json: &Json,
    parameters: &Map<String, Value>,
    base: Result<f32, ModelError>,
    head_dim: usize,
) -> Result<RopeSpec, ModelError> {
    let number = |key: &str| -> Result<f32, ModelError> {
        let value =
            parameters.get(key).ok_or_else(|| json.error(format!("rope scaling: {key} is missing")))?;
        positive(key, value).map_err(|e| json.error(format!("rope scaling: {e}")))
    };
    let base = if parameters.contains_key("rope_theta") { number("rope_theta")? } else { base? };
    let partial = match parameters.contains_key("partial_rotary_factor") {
        true => number("partial_rotary_factor")?,
        false => json.maybe_positive("partial_rotary_factor")?.unwrap_or(1.0),
    };
    let rotated = (f64::from(partial) * head_dim as f64) as usize;
    if rotated == 0 || rotated > head_dim || !rotated.is_multiple_of(2) {
        return Err(json.error(format!(
            "{rotated} of head_dim {head_dim} columns would be rotated (partial_rotary_factor {partial}); it must be an even number of them"
        )));
    }
    let mut inv_freq = inverse_frequencies(base, rotated);
    let kind = ["rope_type", "type"].iter().find_map(|k| parameters.get(*k).map(|kind| (*k, kind)));
    match kind.map_or(Ok("default"), |(key, kind)| json.is_text(key, kind))? {
        "default" => {}
        "linear" => {
            let factor = number("factor")?;
            inv_freq.iter_mut().for_each(|f| *f /= factor);
        }
        "llama3" => {
            let (factor, low, high) =
                (number("factor")?, number("low_freq_factor")?, number("high_freq_factor")?);
            let key = "original_max_position_embeddings";
            let original = match json.maybe_positive(key)? {
                Some(original) => original,
                None if parameters.contains_key(key) => number(key)?,
                None => json.positive("max_position_embeddings")?,
            };
            if low >= high {
                return Err(json.error("rope scaling: low_freq_factor must be below high_freq_factor"));
            }
            inv_freq.iter_mut().for_each(|f| *f = llama3(*f, factor, low, high, original));
        }
        other => {
            return Err(json.error(format!(
                "rope type \"{other}\" is not supported; supported are default, linear, llama3"
            )));
        }
    }
    Ok(RopeSpec { inv_freq })
}

/// `1 / base^(2i / rotated)`, each step rounded to f32.
fn inverse_frequencies(base: f32, rotated: usize) -> Vec<f32> {
    let pair = |i: usize| {
        let exponent = (2 * i) as f32 / rotated as f32;
        1.0 / math::pow_f64(f64::from(base), f64::from(exponent)) as f32
    };
    (0..rotated / 2).map(pair).collect()
}

/// Llama 3.1's scaling (transformers, `modeling_rope_utils._compute_llama3_parameters`).
fn llama3(inv_freq: f32, factor: f32, low: f32, high: f32, original: f32) -> f32 {
    let wavelength = (2.0 * std::f64::consts::PI) as f32 / inv_freq;
    if wavelength > original / low {
        return inv_freq / factor;
    }
    if wavelength < original / high {
        return inv_freq;
    }
    let smooth = (original / wavelength - low) / (high - low);
    (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
}
