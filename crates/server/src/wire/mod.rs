//! OpenAI's requests and answers, as JSON and as types. The only place, with `routes`, that knows their fields.

pub mod answers;
pub mod chat;
pub mod common;
pub mod completions;
pub mod errors;
pub mod fields;
pub mod grammar;
pub mod logprobs;
pub mod messages;
