//! A checkpoint's chat template: Jinja, rendered as transformers renders it.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::Value;
use minijinja::{Environment, ErrorKind};
use serde::Serialize;
use serde_json::Map;

use super::error::one_line;
use super::template_budget::{BUDGET_VARIABLE, Budget};
use super::{SpecialTokens, TextError, template_builtins, template_guard};
use crate::large_stack;

const NAME: &str = "chat_template";
/// Arguments that `render` gives itself; a caller's word for them would go unseen or do harm.
const RESERVED: [&str; 2] = ["messages", "add_generation_prompt"];

// What a rendering may cost: a part for any template, and a part that grows with what it is given.
const FUEL: u64 = 300_000;
const FUEL_PER_NODE: u64 = 2_000;
const FUEL_MAX: u64 = 20_000_000;
const BUDGET_BYTES: u64 = 64 << 20;
const BUDGET_BYTES_PER_BYTE: u64 = 32;
const BUDGET_BYTES_PER_NODE: u64 = 16 << 10;
const OUTPUT_BYTES: u64 = 1 << 20;
const OUTPUT_BYTES_PER_BYTE: u64 = 2;

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Message {
    /// Who speaks: `system`, `user`, `assistant`, or what else the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message of a role.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A compiled chat template.
///
/// It sees `messages`, `add_generation_prompt`, `tools` and `documents` (none unless given), the special tokens
/// (`bos_token`, …) and the caller's own arguments; `raise_exception`, `strftime_now` (UTC), `namespace` and
/// `tojson` as Hugging Face's have them, Python's string methods, `break` and `continue`.
///
/// A template is input from a stranger. It reaches no file and no other template, and a rendering has limits that
/// grow with its input: instructions, bytes of work, and 1 MiB of output plus twice the input. A rendering takes
/// milliseconds of computing, so keep it off threads that serve a network.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    env: Environment<'static>,
    special_tokens: SpecialTokens,
    now_unix_s: Option<i64>,
}

impl ChatTemplate {
    /// Compiles a template.
    ///
    /// # Errors
    /// [`TextError::TemplateSyntax`], and [`TextError::TooLarge`] above 256 KiB.
    pub fn new(source: &str, special_tokens: SpecialTokens) -> Result<Self, TextError> {
        let guarded = template_guard::guard(source)?;
        let compile = || {
            let mut env = template_builtins::environment();
            env.add_template_owned(NAME, guarded)
                .map_err(|error| TextError::TemplateSyntax { reason: reason(&error) })?;
            Ok(env)
        };
        // The parser calls itself as deep as the template nests.
        let env = catch_unwind(|| large_stack::run(compile));
        let unexpected = || TextError::TemplateSyntax { reason: "the parser gave up on it".to_string() };
        let env = env.map_err(|_| unexpected())?;
        let env = env.map_err(|error| TextError::TemplateSyntax { reason: error.to_string() })??;
        Ok(Self { source: source.to_owned(), env, special_tokens, now_unix_s: None })
    }

    /// The template's own text.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The same template with a fixed `strftime_now`, in seconds since 1970: for tests, and where the same messages
    /// must give the same prompt tomorrow.
    #[must_use]
    pub fn at_time(mut self, unix_s: i64) -> Self {
        self.now_unix_s = Some(unix_s);
        self
    }

    /// Renders messages to a prompt. It contains whatever special tokens the model wants, so encode it without adding
    /// any.
    ///
    /// `kwargs` are further variables, `tools` and `documents` among them; they win over the special tokens.
    ///
    /// # Errors
    /// [`TextError::TemplateRaised`] if the template refuses the messages, [`TextError::TemplateFailed`] if it fails
    /// on them, [`TextError::TemplateLimit`] if it does not end, [`TextError::TemplateArgument`].
    pub fn render(
        &self,
        messages: &[Message],
        add_generation_prompt: bool,
        kwargs: &Map<String, serde_json::Value>,
    ) -> Result<String, TextError> {
        let messages: Vec<_> = messages.iter().map(|message| serde_json::json!(message)).collect();
        self.render_json(&messages, add_generation_prompt, kwargs)
    }

    /// The same for messages with more than a role and a text: tool calls, parts, reasoning.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_json(
        &self,
        messages: &[serde_json::Value],
        add_generation_prompt: bool,
        kwargs: &Map<String, serde_json::Value>,
    ) -> Result<String, TextError> {
        check_arguments(kwargs)?;
        let mut size = Size::default();
        messages.iter().chain(kwargs.values()).for_each(|value| size.add(value, 0));
        if size.depth > 128 {
            return Err(TextError::TemplateLimit {
                reason: "its input nests more than 128 deep".to_string(),
            });
        }

        let budget = Value::from_object(Budget::new(
            BUDGET_BYTES + BUDGET_BYTES_PER_BYTE * size.bytes + BUDGET_BYTES_PER_NODE * size.nodes,
            self.now_unix_s.unwrap_or_else(now_unix_s),
        ));
        let mut variables: Vec<(String, Value)> = vec![
            (BUDGET_VARIABLE.to_string(), budget.clone()),
            ("messages".to_string(), Value::from_serialize(messages)),
            ("add_generation_prompt".to_string(), add_generation_prompt.into()),
            ("tools".to_string(), ().into()),
            ("documents".to_string(), ().into()),
        ];
        variables.extend(self.special_tokens.iter().map(|(name, text)| (name.to_string(), text.into())));
        variables.extend(kwargs.iter().map(|(name, value)| (name.clone(), Value::from_serialize(value))));

        let mut out = CappedOutput {
            bytes: Vec::new(),
            bytes_max: OUTPUT_BYTES + OUTPUT_BYTES_PER_BYTE * size.bytes,
            is_full: false,
        };
        let mut env = self.env.clone();
        env.set_fuel(Some((FUEL + FUEL_PER_NODE * size.nodes).min(FUEL_MAX)));
        let rendered = catch_unwind(AssertUnwindSafe(|| {
            let template = env.get_template(NAME)?;
            template.render_captured_to(Value::from_iter(variables), &mut out).map(drop)
        }));
        let budget = budget.downcast_object_ref::<Budget>().expect("the value is the budget");
        match rendered {
            Ok(Ok(())) => Ok(String::from_utf8(out.bytes).expect("a template writes text")),
            Ok(Err(error)) => Err(failure(&error, budget, out.is_full)),
            Err(_) => {
                Err(TextError::TemplateFailed { reason: "the template engine gave up on it".to_string() })
            }
        }
    }
}

fn check_arguments(kwargs: &Map<String, serde_json::Value>) -> Result<(), TextError> {
    for name in kwargs.keys() {
        let refuse = |reason| Err(TextError::TemplateArgument { name: name.clone(), reason });
        if RESERVED.contains(&name.as_str()) {
            return refuse("it is set by the messages");
        }
        let is_name = |char: char| char.is_ascii_alphanumeric() || char == '_';
        if name.is_empty()
            || !name.chars().all(is_name)
            || name.starts_with(|char: char| char.is_ascii_digit())
        {
            return refuse("it is no name");
        }
    }
    Ok(())
}

/// Why a rendering ended early. The template's own message and the limits come first: a template cannot catch an
/// error, so either is the cause.
fn failure(error: &minijinja::Error, budget: &Budget, is_full: bool) -> TextError {
    if let Some(message) = budget.raised() {
        return TextError::TemplateRaised { message: one_line(message) };
    }
    let limit = budget.exhausted().or_else(|| {
        if is_full {
            Some("its output has no end")
        } else if root_kind(error) == ErrorKind::OutOfFuel {
            Some("it runs far longer than its input asks for")
        } else {
            None
        }
    });
    match limit {
        Some(limit) => TextError::TemplateLimit { reason: limit.to_string() },
        None => TextError::TemplateFailed { reason: reason(error) },
    }
}

fn root_kind(error: &minijinja::Error) -> ErrorKind {
    let mut kind = error.kind();
    let mut source = std::error::Error::source(error);
    while let Some(inner) = source {
        if let Some(inner) = inner.downcast_ref::<minijinja::Error>() {
            kind = inner.kind();
        }
        source = inner.source();
    }
    kind
}

fn reason(error: &minijinja::Error) -> String {
    let mut text = error.kind().to_string();
    if let Some(detail) = error.detail() {
        text = format!("{text}: {detail}");
    }
    if let Some(line) = error.line() {
        text = format!("{text} (line {line})");
    }
    one_line(&text)
}

fn now_unix_s() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64)
}

/// How much a template is given.
#[derive(Default)]
struct Size {
    nodes: u64,
    bytes: u64,
    depth: usize,
}

impl Size {
    fn add(&mut self, value: &serde_json::Value, depth: usize) {
        self.nodes += 1;
        self.depth = self.depth.max(depth);
        if depth > 128 {
            return;
        }
        match value {
            serde_json::Value::String(text) => self.bytes += text.len() as u64,
            serde_json::Value::Array(items) => items.iter().for_each(|item| self.add(item, depth + 1)),
            serde_json::Value::Object(fields) => {
                for (key, item) in fields {
                    self.bytes += key.len() as u64;
                    self.add(item, depth + 1);
                }
            }
            _ => self.bytes += 8,
        }
    }
}

struct CappedOutput {
    bytes: Vec<u8>,
    bytes_max: u64,
    is_full: bool,
}

impl Write for CappedOutput {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        if (self.bytes.len() + text.len()) as u64 > self.bytes_max {
            self.is_full = true;
            return Err(io::Error::other("the output is full"));
        }
        self.bytes.extend_from_slice(text);
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
