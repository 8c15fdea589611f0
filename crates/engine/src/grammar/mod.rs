//! Completions that conform to something: which tokens may come next, by llguidance.

mod cache;
mod conforming;
mod depth;
mod lark;
mod limits;
mod opened;
#[cfg(test)]
mod tests;
mod words;

use std::fmt;
use std::sync::{Arc, OnceLock};

use llguidance::api::TopLevelGrammar;
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value, json};
use toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use cache::{Cache, Compiled};
pub(crate) use conforming::Conforming;
use conforming::Held;
use opened::Watch;

use crate::text::Tokenizer;
use crate::{EngineError, Grammar, large_stack};

/// Makes grammars ready for a model. The vocabulary is sorted while the model loads, or when the first one comes.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    /// Ids of the model: with those that stand for nothing.
    vocab_size: usize,
    eos_token_ids: Vec<u32>,
    factory: OnceLock<Result<ParserFactory, String>>,
    cache: Cache,
}

/// Where a completion conforms from, and which tokens may be first; `None`: all.
pub(crate) type Start = (Conforming, Option<Vec<u32>>);

impl Grammars {
    /// For a model whose logits have `vocab_size` ids, and whose completions end with `eos_token_ids`.
    pub fn new(tokenizer: Arc<Tokenizer>, vocab_size: usize, eos_token_ids: Vec<u32>) -> Self {
        Grammars { tokenizer, vocab_size, eos_token_ids, factory: OnceLock::new(), cache: Cache::default() }
    }

    /// Sorts the vocabulary now.
    pub(crate) fn warm_up(&self) {
        let _ = self.factory();
    }

    fn factory(&self) -> Result<&ParserFactory, String> {
        let made = self.factory.get_or_init(|| self.make());
        made.as_ref().map_err(|why| format!("grammars can't be used: {why}"))
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

    /// Begins a completion under a grammar. That takes some hundred milliseconds for a large one that wasn't used lately. Each
    /// completion has all of its own, so none depends on others that have the same grammar.
    ///
    /// # Errors
    /// It is none, or costs too much: one line.
    pub(crate) fn start(&self, grammar: &Grammar) -> Result<Start, EngineError> {
        self.with_compiled(grammar, |held, first| match grammar {
            Grammar::Opened(opened) => {
                let watch = Watch::new(self.tokenizer.clone(), opened, held.fresh());
                (Conforming::Watched(Box::new(watch)), None)
            }
            _ => (Conforming::Held(Box::new(held.fresh())), Some(first.to_vec())),
        })
    }

    /// Whether a grammar can be used.
    ///
    /// # Errors
    /// It is none, or costs too much: one line.
    pub fn check(&self, grammar: &Grammar) -> Result<(), EngineError> {
        self.with_compiled(grammar, |_, _| ())
    }

    /// Keeps a grammar from being ready until `until` is done.
    #[cfg(test)]
    pub fn hold(&self, grammar: &Grammar, until: impl FnOnce()) {
        let compile = || {
            until();
            self.compile(grammar)
        };
        self.cache.with(grammar, compile, |_| ());
    }

    fn with_compiled<T>(
        &self,
        grammar: &Grammar,
        with: impl FnOnce(&Held, &[u32]) -> T,
    ) -> Result<T, EngineError> {
        let with = |compiled: &Compiled| match compiled {
            Ok((held, first)) => Ok(with(held, first)),
            Err(why) => Err(EngineError::Request(why.clone())),
        };
        self.cache.with(grammar, || self.compile(grammar), with)
    }

    /// The library calls itself as deep as a grammar nests.
    fn compile(&self, grammar: &Grammar) -> Compiled {
        large_stack::run(|| self.compile_here(grammar))
            .unwrap_or_else(|error| Err(format!("a grammar can't be made ready: {error}")))
    }

    fn compile_here(&self, grammar: &Grammar) -> Compiled {
        let kind = match grammar {
            Grammar::JsonSchema(_) => "JSON schema",
            Grammar::Regex(_) => "regular expression",
            Grammar::Lark(_) | Grammar::Opened(_) => "grammar",
        };
        let refused = |why: String| format!("the {kind} can't be used: {}", words::refusal(grammar, &why));
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
        let first = held.mask().map_err(refused)?;
        Ok((held, first))
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
