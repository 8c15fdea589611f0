//! `/metrics`, `/status`, `/version`.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use crate::app::Shared;
use crate::wire::errors::json_response;
use crate::{metrics, status};

/// OpenMetrics text.
pub async fn metrics(State(app): State<Shared>) -> Response {
    app.requests.hear_ranks().await;
    let model = &app.config.served_model_names[0];
    let text = metrics::text(model, &app.requests.metrics, app.requests.snapshot());
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    ([(header::CONTENT_TYPE, kind)], text).into_response()
}

/// What the page shows.
pub async fn status(State(app): State<Shared>) -> Response {
    app.requests.hear_ranks().await;
    json_response(StatusCode::OK, &status::status(&app))
}

/// The server's version.
pub async fn version(State(app): State<Shared>) -> Response {
    json_response(StatusCode::OK, &json!({"version": app.config.version}))
}
