//! All routes, in one table: the router, `/openapi.json` and the tests of keys read it.

mod chat;
mod completions;
mod info;
mod models;
mod openapi;
pub mod page;
mod part;
mod probes;
mod tokenize;

use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use crate::app::Shared;
use crate::guard::guard;
use crate::openapi::{Answer, Doc};
use crate::wire::errors::ApiError;
use crate::wire::{answers, chat::CHAT, common::SAMPLING, completions::COMPLETIONS};

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
    let doc = |summary, answer| Doc { summary, answer, body: None };
    let with = |summary, answer, tables, required| Doc { summary, answer, body: Some((tables, required)) };
    let html = || Answer::Text("text/html");
    vec![
        post_(
            "/v1/chat/completions",
            with(
                "The next message of a conversation",
                Answer::Streamed(answers::chat, "ChatCompletionChunk", answers::chat_chunk),
                CHAT,
                &["messages"],
            ),
            post(chat::create),
        ),
        post_(
            "/v1/completions",
            with(
                "What follows a prompt",
                Answer::Streamed(answers::completion, "CompletionChunk", answers::completion_chunk),
                &[COMPLETIONS, SAMPLING],
                &["prompt"],
            ),
            post(completions::create),
        ),
        get_(
            "/v1/models",
            doc("The names of the served model", Answer::Json(answers::models)),
            get(models::list),
        ),
        get_("/v1/models/{id}", doc("One of them", Answer::Json(answers::model)), get(models::one)),
        post_(
            "/tokenize",
            with(
                "Token ids of a text or a conversation",
                Answer::Json(answers::tokenize),
                tokenize::TOKENIZE,
                &[],
            ),
            post(tokenize::tokenize),
        ),
        post_(
            "/detokenize",
            with(
                "The text of token ids",
                Answer::Json(answers::detokenize),
                tokenize::DETOKENIZE,
                &["tokens"],
            ),
            post(tokenize::detokenize),
        ),
        get_("/health", doc("Whether the server lives", Answer::Json(answers::health)), get(probes::health)),
        get_(
            "/ready",
            doc(
                "Whether it takes requests, and steps come: 503 while one waits and none has come for 60 s",
                Answer::Json(answers::health),
            ),
            get(probes::ready),
        ),
        get_(
            "/metrics",
            doc("Counters and histograms, as OpenMetrics", Answer::Text("application/openmetrics-text")),
            get(info::metrics),
        ),
        get_(
            "/status",
            doc("What the page shows: load, rates, ranks, requests", Answer::Json(answers::status)),
            get(info::status),
        ),
        get_("/version", doc("The server's version", Answer::Json(answers::version)), get(info::version)),
        get_("/openapi.json", doc("This document", Answer::Json(answers::any)), get(openapi::document)),
        get_("/docs", doc("This document, as a page", html()), get(page::docs)),
        get_("/", doc("The page", html()), get(page::index)),
        get_("/page/{file}", doc("A file of the pages", Answer::Text("*/*")), get(page::file)),
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
