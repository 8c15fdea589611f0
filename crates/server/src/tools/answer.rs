//! Calls as answers have them.

use std::sync::Arc;

use engine::text::Tokenizer;
use serde_json::{Value, json};

use super::format::Format;
use super::parse::{Parser, Piece};
use super::{ToolChoice, Tools};
use crate::app::random;
use crate::wire::errors::ApiError;

/// The calls that a request's completions may make.
pub struct Calls {
    format: &'static Format,
    functions: Arc<[(String, Value)]>,
    /// Whether the client said which one.
    pub is_named: bool,
    /// Whether an answer may have several; else what is behind the first is dropped.
    are_several: bool,
    /// Whether there must be one.
    is_forced: bool,
}

impl Calls {
    /// Those of tools that are used.
    pub fn new(format: &'static Format, tools: &Tools) -> Self {
        let functions = tools.names().zip(tools.functions());
        let functions = functions.map(|(name, function)| (name.to_owned(), function["parameters"].clone()));
        Calls {
            format,
            functions: functions.collect(),
            is_named: matches!(tools.choice, ToolChoice::Named(_)),
            are_several: tools.parallel,
            is_forced: matches!(tools.choice, ToolChoice::Named(_) | ToolChoice::Required),
        }
    }

    /// The special tokens of calls, of which one may begin them: their text must be seen.
    pub fn shown(&self, tokenizer: &Tokenizer) -> Vec<(u32, String)> {
        let names = std::iter::once(&self.format.opener).chain(self.format.tokens);
        let found = names.filter_map(|name| Some((tokenizer.token_to_id(name)?, (*name).to_owned())));
        found.filter(|(id, _)| tokenizer.is_special(*id)).collect()
    }

    /// What reads one choice.
    pub fn reader(&self) -> Reader {
        let parser = Parser::new(self.format, self.functions.clone(), self.is_forced);
        Reader { parser: Some(parser), calls_max: if self.are_several { usize::MAX } else { 1 }, calls: 0 }
    }
}

/// Makes content and calls of one choice's text; without tools all of it is content.
#[derive(Default)]
pub struct Reader {
    parser: Option<Parser>,
    /// More are dropped.
    calls_max: usize,
    /// How many there were, with those.
    calls: usize,
}

impl Reader {
    /// Whether there were calls.
    pub fn has_calls(&self) -> bool {
        self.calls > 0
    }

    /// What further text comes to.
    pub fn read(&mut self, text: &str, is_last: bool) -> Vec<Piece> {
        let Some(parser) = &mut self.parser else {
            return match text {
                "" => Vec::new(),
                text => vec![Piece::Content(text.to_owned())],
            };
        };
        let mut pieces = parser.push(text);
        if is_last {
            pieces.extend(parser.finish());
        }
        pieces.retain(|piece| {
            self.calls += usize::from(matches!(piece, Piece::Call(_)));
            matches!(piece, Piece::Content(_)) || self.calls <= self.calls_max
        });
        pieces
    }

    /// The same as a stream's deltas.
    ///
    /// # Errors
    /// 500 if the system has no random bytes.
    pub fn deltas(&mut self, text: &str, is_last: bool) -> Result<Vec<Value>, ApiError> {
        let mut deltas = Vec::new();
        let mut calls = self.calls;
        for piece in self.read(text, is_last) {
            deltas.push(match piece {
                Piece::Content(text) => json!({"content": text}),
                Piece::Call(name) => {
                    calls += 1;
                    let mut call = call(&name, "")?;
                    call["index"] = (calls - 1).into();
                    json!({"tool_calls": [call]})
                }
                Piece::Arguments(text) => {
                    let index = calls.saturating_sub(1);
                    json!({"tool_calls": [{"index": index, "function": {"arguments": text}}]})
                }
            });
        }
        Ok(deltas)
    }
}

/// A call, with a new id.
///
/// # Errors
/// 500 if the system has no random bytes.
pub fn call(name: &str, arguments: &str) -> Result<Value, ApiError> {
    let id = format!("call_{:016x}{:08x}", random()?, random()? as u32);
    Ok(json!({"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}))
}
