//! What all answers of completions have: an id, a time, a model, and usage.

use serde_json::{Value, json};

use crate::app::unix_s;
use crate::wire::common::{Streaming, Usage};

/// The same in all chunks of an answer.
pub struct Head {
    /// Names the answer.
    pub id: String,
    created_unix_s: u64,
    model: String,
    streaming: Streaming,
}

impl Head {
    /// A new answer, whose id is its request's behind `kind`.
    pub fn new(kind: &str, request_id: &str, model: &str, streaming: Streaming) -> Self {
        let id = format!("{kind}-{request_id}");
        Head { id, created_unix_s: unix_s(), model: model.to_owned(), streaming }
    }

    fn with(&self, object: &str, choices: Value) -> Value {
        json!({
            "id": self.id, "object": object, "created": self.created_unix_s, "model": self.model, "choices": choices,
        })
    }

    /// A whole answer.
    pub fn answer(&self, object: &str, choices: Value, usage: Usage) -> Value {
        let mut answer = self.with(object, choices);
        answer["usage"] = usage.to_json();
        answer
    }

    /// A chunk of one choice, whose usage so far comes with it if that is wanted.
    pub fn chunk(&self, object: &str, choice: Value, usage: impl FnOnce() -> Usage) -> Value {
        let mut chunk = self.with(object, Value::Array(vec![choice]));
        if self.streaming.continuous_usage {
            chunk["usage"] = usage().to_json();
        } else if self.streaming.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The chunk without a choice that ends a stream, if it was asked for.
    pub fn usage_chunk(&self, object: &str, usage: Usage) -> Option<Value> {
        self.streaming.include_usage.then(|| self.answer(object, json!([]), usage))
    }
}
