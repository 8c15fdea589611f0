//! How the worker is, as far as the front knows.

use std::sync::Arc;
use std::time::Instant;

use engine::serving::EngineInfo;

use crate::wire::errors::ApiError;

/// Seconds that loading may take where nothing is known of it.
const LOADING_S: f64 = 5.0;

/// How the worker is.
#[derive(Debug, Clone)]
pub enum Worker {
    /// Bytes of weights that are loaded, and all.
    Loading(u64, u64),
    /// Takes requests.
    Ready(Arc<EngineInfo>),
    /// Has ended. Why.
    Failed(String),
}

impl Worker {
    /// What is loaded, if it is. The server began at `began`.
    ///
    /// # Errors
    /// 503.
    pub fn ready(&self, began: Instant) -> Result<&Arc<EngineInfo>, ApiError> {
        let (message, done) = match self {
            Worker::Ready(info) => return Ok(info),
            Worker::Failed(message) => {
                return Err(ApiError::unavailable(format!("the engine failed: {message}"), "engine_failed"));
            }
            Worker::Loading(_, 0) => ("the model is loading".into(), 0.0),
            Worker::Loading(done, total) => {
                (format!("the model is loading: {} %", done * 100 / total), *done as f64 / *total as f64)
            }
        };
        // The rest takes as long as what is loaded did.
        let left_s = if done > 0.0 { began.elapsed().as_secs_f64() * (1.0 - done) / done } else { LOADING_S };
        Err(ApiError::unavailable(message, "model_loading").retry_after_s(retry_after_s(left_s)))
    }
}

/// What a client is told that asks too early.
pub fn retry_after_s(seconds: f64) -> u64 {
    seconds.clamp(1.0, 60.0) as u64
}
