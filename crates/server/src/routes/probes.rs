//! `/health` and `/ready`: for load balancers, without a key.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::json;

use crate::app::Shared;
use crate::wire::errors::{ApiError, json_response};
use crate::worker::Worker;

/// 200 unless the worker has failed, also while the server drains.
pub async fn health(State(app): State<Shared>) -> Result<Response, ApiError> {
    let status = match app.requests.worker() {
        Worker::Loading(..) => "loading",
        Worker::Ready(_) => "live",
        Worker::Failed(_) => {
            return Err(ApiError::unavailable("the engine has failed", "engine_failed"));
        }
    };
    Ok(json_response(StatusCode::OK, &json!({"status": status})))
}

/// 200 if requests are taken, and steps complete while there is work.
pub async fn ready(State(app): State<Shared>) -> Result<Response, ApiError> {
    app.requests.info()?;
    let (stalled, limit) = (app.requests.stalled(), app.config.timeouts.step);
    if stalled > limit {
        let message = format!("requests wait, and no step has completed for {:.0} s", stalled.as_secs_f64());
        return Err(ApiError::unavailable(message, "engine_stalled"));
    }
    Ok(json_response(StatusCode::OK, &json!({"status": "ready"})))
}
