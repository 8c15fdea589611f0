//! What `/status` tells the page. Numbers only: no prompts, no completions, no keys.

use serde_json::{Value, json};

use crate::app::App;
use crate::requests::Overview;
use crate::worker::Worker;

/// The state of a server.
pub fn status(app: &App) -> Value {
    let Overview { worker, is_draining, requests, rates } = app.requests.overview();
    let snapshot = app.requests.snapshot();
    let (state, loading) = match &worker {
        _ if is_draining => ("draining", None),
        Worker::Loading(done, total) => ("loading", Some(json!({"done_bytes": done, "total_bytes": total}))),
        Worker::Ready(_) => ("ready", None),
        Worker::Failed(_) => ("failed", None),
    };
    let failure = match &worker {
        Worker::Failed(message) => Some(message),
        _ => None,
    };
    let engine = snapshot.info.as_ref().map(|info| {
        let (tp, pp, dp, ep, sp) = info.parallel;
        json!({
            "max_model_len": info.max_model_len, "vocab_size": info.vocab_size,
            "max_num_seqs": info.max_num_seqs, "kv_cache_tokens": info.kv_cache_tokens,
            "kv_cache_bytes": info.kv_cache_bytes, "dtype": info.dtype, "quantization": info.quantization,
            "parallel": {"tp": tp, "pp": pp, "dp": dp, "ep": ep, "sp": sp}, "reduction": info.reduction,
            "load_s": info.load_s,
        })
    });
    json!({
        "model": app.config.served_model_names[0], "version": app.config.version,
        "state": state, "loading": loading, "failure": failure,
        "uptime_s": app.requests.began.elapsed().as_secs_f64(),
        "engine": engine, "load": snapshot.load, "queued": snapshot.queued,
        "rates": rates, "ranks": snapshot.ranks, "requests": requests,
    })
}
