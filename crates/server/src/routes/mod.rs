//! All routes, in one table: the router, `/openapi.json` and the tests of keys read it.

mod chat;
mod completions;
mod info;
mod models;
mod openapi;
pub mod page;
mod probes;
mod tokenize;

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use crate::app::Shared;
use crate::guard::guard;
use crate::openapi::Doc;
use crate::wire::errors::ApiError;
use crate::wire::{chat::CHAT, common::SAMPLING, completions::COMPLETIONS};

/// A route.
pub struct Route {
    /// `GET` or `POST`.
    pub method: &'static str,
    /// With names of parts in braces.
    pub path: &'static str,
    /// What `/openapi.json` says.
    pub doc: Doc,
    handler: MethodRouter<Shared>,
}

/// All of them. Who adds one adds a line here; it needs a key like the others.
pub fn table() -> Vec<Route> {
    let get_ = |path, doc, handler| Route { method: "GET", path, doc, handler };
    let post_ = |path, doc, handler| Route { method: "POST", path, doc, handler };
    let doc = |summary, kind| Doc { summary, kind, body: None };
    let with =
        |summary, tables, required| Doc { summary, kind: "application/json", body: Some((tables, required)) };
    const JSON: &str = "application/json";
    const HTML: &str = "text/html";
    vec![
        post_(
            "/v1/chat/completions",
            with("The next message of a conversation", CHAT, &["messages"]),
            post(chat::create),
        ),
        post_(
            "/v1/completions",
            with("What follows a prompt", &[COMPLETIONS, SAMPLING], &["prompt"]),
            post(completions::create),
        ),
        get_("/v1/models", doc("The names of the served model", JSON), get(models::list)),
        get_("/v1/models/{id}", doc("One of them", JSON), get(models::one)),
        post_(
            "/tokenize",
            with("Token ids of a text or a conversation", tokenize::TOKENIZE, &[]),
            post(tokenize::tokenize),
        ),
        post_(
            "/detokenize",
            with("The text of token ids", tokenize::DETOKENIZE, &["tokens"]),
            post(tokenize::detokenize),
        ),
        get_("/health", doc("Whether the server lives", JSON), get(probes::health)),
        get_("/ready", doc("Whether it takes requests, and steps come", JSON), get(probes::ready)),
        get_(
            "/metrics",
            doc("Counters and histograms, as OpenMetrics", "application/openmetrics-text"),
            get(info::metrics),
        ),
        get_("/status", doc("What the page shows: load, rates, ranks, requests", JSON), get(info::status)),
        get_("/version", doc("The server's version", JSON), get(info::version)),
        get_("/openapi.json", doc("This document", JSON), get(openapi::document)),
        get_("/docs", doc("This document, as a page", HTML), get(page::docs)),
        get_("/", doc("The page", HTML), get(page::index)),
        get_("/page/{file}", doc("A file of the pages", "*/*"), get(page::file)),
    ]
}

/// The router, behind the guard.
pub fn router(app: Shared) -> Router {
    // Names of models are often paths, which many clients don't escape.
    let matched = |path: &str| path.replace("{id}", "{*id}");
    let add = |router: Router<Shared>, route: Route| router.route(&matched(route.path), route.handler);
    table()
        .into_iter()
        .fold(Router::new(), add)
        .fallback(not_found)
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(app.clone())
        .layer(from_fn_with_state(app, guard))
}

async fn not_found(uri: Uri) -> ApiError {
    let path = crate::wire::fields::shortened(uri.path());
    ApiError::new(StatusCode::NOT_FOUND, format!("there is no {path:?}; /docs lists what there is"))
        .code("not_found")
}

async fn method_not_allowed(uri: Uri) -> ApiError {
    let path = crate::wire::fields::shortened(uri.path());
    let message = format!("{path:?} does not take this method; /docs lists what there is");
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message).code("method_not_allowed")
}
