//! The part of a path that a route names.

use axum::extract::{FromRequestParts, Path};
use axum::http::StatusCode;
use axum::http::request::Parts;

use crate::wire::errors::ApiError;

/// It, unescaped. What it can't be does not exist.
pub struct Part(pub String);

impl<S: Send + Sync> FromRequestParts<S> for Part {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let found = Path::<String>::from_request_parts(parts, state).await;
        found.map(|Path(part)| Part(part)).map_err(|rejection| {
            ApiError::new(StatusCode::NOT_FOUND, format!("there is no such path: {}", rejection.body_text()))
                .code("not_found")
        })
    }
}
