//! The front of `anysplit serve`: OpenAI's API over HTTP, before an engine that is reached by a pair of channels.
//!
//! ```text
//!  connection.rs   HTTP/1.1, deadlines for slow clients (patient.rs), clients that leave
//!  guard.rs        limits of the head, Host, origin, key; request ids and lines (ticket.rs); the deadline (arrival.rs)
//!  routes/         one file per route, all in one table
//!    body.rs       bytes ─▶ JSON, within limits
//!    wire/         JSON ─▶ typed requests, by tables that /openapi.json reads too; and back
//!    prompt.rs     messages ─▶ text ─▶ token ids
//!    tools/        functions that a model may call: described, held to, parsed
//!    session.rs    engine requests of a HTTP request; events ─▶ text (choice.rs)
//!    stream.rs     server-sent events
//!  requests.rs     ToEngine / FromEngine: who waits for what, queue limits, times of requests
//!  metrics/, ranks.rs, rates.rs, status.rs   what is told of all that
//! ```
//!
//! Nobody else knows HTTP or its JSON. The threads that serve connections only move bytes: text is worked on by others, those
//! of `work.rs`.

mod answer;
mod app;
mod arrival;
mod auth;
mod body;
mod choice;
mod config;
mod connection;
mod grammar_check;
mod guard;
mod host;
mod log;
mod metrics;
mod openapi;
mod patient;
mod prompt;
mod ranks;
mod rates;
mod requests;
mod routes;
mod run;
mod serve;
mod session;
mod status;
mod stream;
mod ticket;
mod timeline;
mod tools;
mod wire;
mod work;
mod worker;

pub use config::{Limits, Link, LogLevel, SamplingDefaults, ServerConfig, TextModel, Timeouts};
pub use serve::{ServeError, serve};

/// Method and path of each route.
pub fn routes() -> Vec<(&'static str, &'static str)> {
    routes::table().iter().map(|route| (route.method, route.path)).collect()
}
