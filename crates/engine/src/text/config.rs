//! `tokenizer_config.json`, as far as it says something that `tokenizer.json` does not.

use std::collections::BTreeMap;

use serde_json::Value;

use super::TextError;

const NAME: &str = "tokenizer_config.json";
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"];

/// The special tokens that a checkpoint names, as text. A template sees each one it has by its field's name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    by_name: BTreeMap<String, String>,
}

impl SpecialTokens {
    /// The text of a token by its name in the config, such as `eos_token`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.by_name.get(name).map(String::as_str)
    }

    /// Every name and its text, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.by_name.iter().map(|(name, text)| (name.as_str(), text.as_str()))
    }
}

impl<N: Into<String>, T: Into<String>> FromIterator<(N, T)> for SpecialTokens {
    fn from_iter<I: IntoIterator<Item = (N, T)>>(pairs: I) -> Self {
        Self { by_name: pairs.into_iter().map(|(name, text)| (name.into(), text.into())).collect() }
    }
}

/// What is taken from the file.
#[derive(Debug, Default)]
pub(super) struct TokenizerConfig {
    pub special_tokens: SpecialTokens,
    /// `Some` only where the file says so: the post-processor is then rebuilt, as transformers does.
    pub add_bos_token: Option<bool>,
    pub add_eos_token: Option<bool>,
    /// Templates by name; a template that is a bare string is `default`.
    pub chat_templates: BTreeMap<String, String>,
}

impl TokenizerConfig {
    pub fn parse(bytes: &[u8]) -> Result<Self, TextError> {
        let root: Value = serde_json::from_slice(bytes).map_err(|error| TextError::malformed(NAME, error))?;
        let Some(fields) = root.as_object() else {
            return Err(TextError::malformed(NAME, "it holds no object"));
        };
        let mut config = Self {
            add_bos_token: flag(fields.get("add_bos_token"), "add_bos_token")?,
            add_eos_token: flag(fields.get("add_eos_token"), "add_eos_token")?,
            chat_templates: templates(fields.get("chat_template"))?,
            ..Self::default()
        };
        for name in NAMED {
            if let Some(text) = token_text(fields.get(name), name)? {
                config.special_tokens.by_name.insert(name.to_string(), text);
            }
        }
        Ok(config)
    }
}

fn flag(value: Option<&Value>, name: &str) -> Result<Option<bool>, TextError> {
    match value {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(TextError::malformed(NAME, format!("{name} is neither true nor false"))),
    }
}

/// A token is a string, or an object whose `content` is one.
fn token_text(value: Option<&Value>, name: &str) -> Result<Option<String>, TextError> {
    let text = match value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(token)) => token.get("content"),
        other => other,
    };
    match text.and_then(Value::as_str) {
        Some(text) => Ok(Some(text.to_string())),
        None => Err(TextError::malformed(
            NAME,
            format!("{name} is neither a string nor an object with a content"),
        )),
    }
}

/// A string, or a list of `{name, template}`.
fn templates(value: Option<&Value>) -> Result<BTreeMap<String, String>, TextError> {
    let malformed = || {
        TextError::malformed(NAME, "chat_template is neither a string nor a list of objects {name, template}")
    };
    match value {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::String(source)) => Ok(BTreeMap::from([("default".to_string(), source.clone())])),
        Some(Value::Array(entries)) => entries
            .iter()
            .map(|entry| {
                let field = |name| entry.get(name).and_then(Value::as_str).map(str::to_string);
                field("name").zip(field("template")).ok_or_else(malformed)
            })
            .collect(),
        Some(_) => Err(malformed()),
    }
}
