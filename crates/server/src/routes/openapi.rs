//! `/openapi.json`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;

use crate::app::Shared;
use crate::wire::errors::json_response;

/// The document.
pub async fn document(State(app): State<Shared>) -> Response {
    let needs_key = !app.config.api_keys.is_empty();
    json_response(StatusCode::OK, &crate::openapi::document(&super::table(), &app.config.version, needs_key))
}
