//! Completions that conform to something: which tokens may come next, by llguidance.

mod conforming;
mod limits;
mod opened;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

pub(crate) use conforming::Conforming;
use conforming::Held;
use opened::Watch;

use crate::text::Tokenizer;
use crate::{EngineError, Grammar};

/// Makes grammars ready for a model. The vocabulary is sorted when the first one comes, or [`Grammars::warm_up`].
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// Ids of the model: with those that stand for nothing.
    vocab_size: usize,
    eos_token_ids: Vec<u32>,
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl Grammars {
    /// For a model whose logits have `vocab_size` ids, and whose completions end with `eos_token_ids`.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize, eos_token_ids: Vec<u32>) -> Self {
        Grammars { tokenizer, vocab_size, eos_token_ids, factory: OnceLock::new() }
    }

    /// Sorts the vocabulary now.
    pub fn warm_up(&self) {
        let _ = self.factory();
    }

    fn factory(&self) -> Result<&ParserFactory, EngineError> {
        let made = self.factory.get_or_init(|| self.make());
        made.as_ref().map_err(|why| EngineError::Request(format!("grammars can't be used: {why}")))
    }

    fn make(&self) -> Result<ParserFactory, String> {
        let eos = self.eos_token_ids.first().ok_or("the model has no token that ends a text")?;
        let words: Vec<Vec<u8>> = (0..self.vocab_size as u32)
            .map(|id| match self.tokenizer.is_special(id) {
                true => self.tokenizer.id_to_token(id).map_or(Vec::new(), |name| {
                    let mut word = vec![TokTrie::SPECIAL_TOKEN_MARKER];
                    word.extend_from_slice(name.as_bytes());
                    word
                }),
                false => self.tokenizer.token_bytes(id),
            })
            .collect();
        let trie = TokTrie::from(&TokRxInfo::new(self.vocab_size as u32, *eos), &words);
        let env: TokEnv = Arc::new(Vocabulary { trie });
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
        let mut factory = factory.map_err(|why| one_line(&why.to_string()))?;
        factory.quiet();
        limits::set(factory.limits_mut());
        Ok(factory)
    }

    /// Makes a grammar ready.
    ///
    /// # Errors
    /// It is none, or costs too much: one line.
    pub(crate) fn start(&self, grammar: &Grammar) -> Result<Conforming, EngineError> {
        let kind = match grammar {
            Grammar::JsonSchema(_) => "JSON schema",
            Grammar::Regex(_) => "regular expression",
            Grammar::Lark(_) | Grammar::Opened(_) => "grammar",
        };
        let refused =
            |why: String| EngineError::Request(format!("the {kind} can't be used: {}", one_line(&why)));
        let lark = |text: &str| {
            limits::check_lark(text)?;
            Ok(TopLevelGrammar::from_lark(text.to_owned()))
        };
        let top = match grammar {
            Grammar::JsonSchema(text) => {
                limits::check_schema_text(text).map_err(refused)?;
                let schema = serde_json::from_str(text).map_err(|why| refused(why.to_string()))?;
                limits::check_schema(&schema).map_err(refused)?;
                TopLevelGrammar::from_json_schema(Self::spaced(schema))
            }
            Grammar::Regex(text) => {
                limits::check_regex(text).map_err(refused)?;
                TopLevelGrammar::from_regex(text)
            }
            Grammar::Lark(text) => lark(text).map_err(refused)?,
            Grammar::Opened(opened) => lark(&opened.grammar).map_err(refused)?,
        };
        let matcher = Matcher::new(self.factory()?.create_parser(top));
        if let Some(why) = matcher.get_error() {
            return Err(refused(why));
        }
        let mut held = Held::new(matcher, self.eos_token_ids.clone());
        // The first mask shows whether it allows anything.
        held.mask().map_err(refused)?;
        Ok(match grammar {
            Grammar::Opened(opened) => {
                Conforming::Watched(Box::new(Watch::new(self.tokenizer.clone(), opened, held)))
            }
            _ => Conforming::Held(Box::new(held)),
        })
    }

    /// A schema whose JSON is as Python writes it, `{"a": 1, "b": [2, 3]}`, unless it says otherwise under `x-guidance`. With
    /// white space left open a model that has nothing to say writes it without end.
    pub fn spaced(mut schema: Value) -> Value {
        if schema == Value::Bool(true) {
            schema = json!({});
        }
        if let Some(schema) = schema.as_object_mut().filter(|schema| !schema.contains_key("x-guidance")) {
            let style = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ", "coerce_one_of": true});
            schema.insert("x-guidance".into(), style);
        }
        schema
    }

    /// Whether a grammar can be used.
    ///
    /// # Errors
    /// It is none, or costs too much: one line.
    pub fn check(&self, grammar: &Grammar) -> Result<(), EngineError> {
        self.start(grammar).map(drop)
    }
}

impl fmt::Debug for Grammars {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Grammars over {} ids", self.vocab_size)
    }
}

/// The vocabulary as llguidance wants it.
struct Vocabulary {
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.greedy_tokenize(bytes)
    }

    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}

/// What the library says, which may repeat all of a grammar, in a line that can be read.
fn one_line(text: &str) -> String {
    const CHARS_MAX: usize = 300;
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}
