//! A real server on a free port, a scripted engine behind it, and clients that speak raw TCP.

mod answers;
mod auth;
mod bad_input;
mod chat;
mod client;
mod completions;
mod connections;
mod engine;
mod info;
mod life;
mod tools;
