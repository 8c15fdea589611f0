//! What is told when a server starts: a few lines to stderr.

use std::net::SocketAddr;

use engine::serving::EngineInfo;

use crate::report::{bytes, count};

/// What is known before the model is loaded.
#[derive(Clone)]
pub struct Lines {
    /// What was asked for.
    pub model: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// What clients call it.
    pub names: Vec<String>,
    /// Whether requests need a key.
    pub has_keys: bool,
}

impl Lines {
    /// The lines that tell what is served and how, once it is loaded.
    pub fn of(&self, info: &EngineInfo) -> Vec<String> {
        let mut lines = lines(&self.model, info);
        let is_local = self.address.ip().is_loopback();
        let who = match (self.has_keys, is_local) {
            (true, _) => "holders of a key",
            (false, true) => "programs of this machine",
            (false, false) => "anyone",
        };
        if !self.has_keys && !is_local {
            lines.push(
                "warning: anyone who reaches this address can use the server; --api-key or --api-key-file asks for a key"
                    .into(),
            );
        }
        lines.push(format!(
            "listening on http://{} for {who}, as {}: the API at /v1, a page at /, what the API is like at /docs",
            self.address,
            self.names.join(", ")
        ));
        lines
    }
}

fn lines(name: &str, info: &EngineInfo) -> Vec<String> {
    let (tp, pp, dp, ep, sp) = info.parallel;
    let ranks = info.ranks.len();
    let axes = [("tp", tp), ("pp", pp), ("dp", dp), ("ep", ep)];
    let axes: Vec<String> =
        axes.iter().filter(|(_, n)| *n > 1).map(|(axis, n)| format!("{axis} {n}")).collect();
    let axes = if axes.is_empty() { String::new() } else { format!(" ({})", axes.join(", ")) };
    let sp = if sp { ", sequence parallel" } else { "" };
    let kept = match &info.quantization {
        Some(quantization) => format!("{quantization} weights, the rest {}", info.dtype),
        None => info.dtype.clone(),
    };
    let weights: u64 = info.ranks.iter().map(|rank| rank.packed_bytes).sum();
    let full = info.kv_cache_tokens as f64 / info.max_model_len as f64;
    let mut lines = vec![
        format!("model {name}: {kept}, {} of weights, loaded in {:.1} s", bytes(weights), info.load_s),
        format!("{}{}{axes}{sp}", count(ranks, "rank"), devices(info)),
        format!(
            "KV cache: {} for {} tokens, {full:.1} sequences of the longest, {} tokens, at a time",
            bytes(info.kv_cache_bytes),
            info.kv_cache_tokens,
            info.max_model_len
        ),
    ];
    lines.extend(info.kv_cache_warnings.iter().map(|warning| format!("warning: {warning}")));
    lines
}

/// Which GPUs ranks are on, and in which order sums are made; nothing of the processor, which has one order only.
fn devices(info: &EngineInfo) -> String {
    let mut names: Vec<&str> = info.ranks.iter().map(|rank| rank.device.as_str()).collect();
    names.dedup();
    match names[..] {
        ["cpu"] => String::new(),
        _ => format!(" on {}, {} sums", names.join(", "), info.reduction),
    }
}
