//! Text in, text out: what lies between a user's words and a model's token ids.
//!
//! ```text
//!  messages ─▶ ChatTemplate::render ─▶ text ─▶ Tokenizer::encode ─▶ ids ─▶ the model
//!                                                                            │
//!  user ◀── StopMatcher::push ◀── StreamDecoder::push ◀── one id at a time ◀─┘
//! ```
//!
//! A tokenizer and its template come with a checkpoint, so they are input like any other: a malformed one is an
//! error, and a template can neither run for ever nor fill the memory (see [`ChatTemplate`]).

mod chat_template;
mod config;
mod detokenize;
mod error;
mod stop;
mod template_budget;
mod template_builtins;
mod template_guard;
mod template_methods;
mod template_python;
mod template_tags;
mod template_time;
mod tokenizer;

#[cfg(test)]
mod tests;

pub use chat_template::{ChatTemplate, Message};
pub use config::SpecialTokens;
pub use detokenize::StreamDecoder;
pub use error::TextError;
pub use stop::{StopMatcher, Stopped};
pub use tokenizer::Tokenizer;
