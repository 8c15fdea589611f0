//! `/v1/models`.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::part::Part;
use crate::app::{App, Shared};
use crate::wire::errors::{ApiError, json_response};

/// All names.
pub async fn list(State(app): State<Shared>) -> Result<Response, ApiError> {
    let max_model_len = app.requests.info()?.max_model_len;
    let names = app.config.served_model_names.iter();
    let data: Vec<Value> = names.map(|name| card(&app, name, max_model_len)).collect();
    Ok(json_response(StatusCode::OK, &json!({"object": "list", "data": data})))
}

/// One of them.
pub async fn one(State(app): State<Shared>, Part(id): Part) -> Result<Response, ApiError> {
    let max_model_len = app.requests.info()?.max_model_len;
    app.model(Some(&id))?;
    Ok(json_response(StatusCode::OK, &card(&app, &id, max_model_len)))
}

fn card(app: &App, name: &str, max_model_len: usize) -> Value {
    json!({
        "id": name, "object": "model", "created": app.created_unix_s, "owned_by": "anysplit",
        "root": app.config.served_model_names[0], "parent": null, "max_model_len": max_model_len,
    })
}
