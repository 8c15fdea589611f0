//! `tokenizer.json`, with what `tokenizer_config.json` and `chat_template.jinja` add to it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::fs::File;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use tokenizers::processors::template::TemplateProcessing;

use super::config::TokenizerConfig;
use super::{ChatTemplate, SpecialTokens, TextError};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const TEMPLATE: &str = "chat_template.jinja";
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;
const CONFIG_BYTES_MAX: u64 = 32 << 20;
const TEMPLATE_BYTES_MAX: u64 = 1 << 20;

/// A checkpoint's tokenizer and its chat templates.
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    special_tokens: SpecialTokens,
    /// By name. One that does not compile is an error only for whoever asks for it.
    chat_templates: BTreeMap<String, Result<ChatTemplate, TextError>>,
}

impl Tokenizer {
    /// Reads a checkpoint's folder: `tokenizer.json`, and `tokenizer_config.json` and `chat_template.jinja` if there.
    ///
    /// # Errors
    /// [`TextError::MissingTokenizer`], or what is wrong with a file.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self, TextError> {
        let dir = dir.as_ref();
        let Some(tokenizer) = read(dir, TOKENIZER, TOKENIZER_BYTES_MAX)? else {
            return Err(TextError::MissingTokenizer { dir: dir.to_path_buf() });
        };
        let config = read(dir, CONFIG, CONFIG_BYTES_MAX)?;
        let template = read(dir, TEMPLATE, TEMPLATE_BYTES_MAX)?
            .map(|bytes| String::from_utf8(bytes).map_err(|error| TextError::malformed(TEMPLATE, error)))
            .transpose()?;
        Self::from_bytes(&tokenizer, config.as_deref(), template.as_deref())
    }

    /// The same from the files' contents.
    ///
    /// `chat_template_jinja` wins over the config's default template.
    ///
    /// # Errors
    /// What is wrong with a file. A chat template that does not compile is reported by [`Tokenizer::chat_template`].
    pub fn from_bytes(
        tokenizer_json: &[u8],
        tokenizer_config_json: Option<&[u8]>,
        chat_template_jinja: Option<&str>,
    ) -> Result<Self, TextError> {
        let config = tokenizer_config_json.map(TokenizerConfig::parse).transpose()?.unwrap_or_default();
        // The library trusts its files in places, so a panic is one more way to say that one is malformed.
        let mut inner = catch(|| tokenizers::Tokenizer::from_bytes(tokenizer_json))
            .map_err(|reason| TextError::malformed(TOKENIZER, reason))?;
        // Kept from training, these would cut or fill prompts unasked; transformers drops them too.
        inner.with_truncation(None).map_err(|error| TextError::malformed(TOKENIZER, error))?;
        inner.with_padding(None);
        add_boundaries(&mut inner, &config)?;

        let mut sources = config.chat_templates;
        if let Some(source) = chat_template_jinja {
            sources.insert("default".to_string(), source.to_string());
        }
        let special_tokens = config.special_tokens;
        let chat_templates = sources
            .into_iter()
            .map(|(name, source)| (name, ChatTemplate::new(&source, special_tokens.clone())))
            .collect();
        Ok(Self { inner, special_tokens, chat_templates })
    }

    /// Token ids of a text. Special tokens that are spelt out in it become one token each.
    ///
    /// `add_special` adds what the tokenizer puts around a prompt, such as the token that begins a text: true for a
    /// plain prompt, false for a rendered chat, which has them already.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] if the model has no token for a part of the text and none for the unknown.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        catch(|| self.inner.encode_fast(text, add_special))
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|reason| TextError::Tokenizer { action: "encode", reason })
    }

    /// The text of token ids. Ids that the tokenizer does not have are left out, bytes that are no UTF-8 become
    /// U+FFFD; `skip_special` leaves out special tokens.
    ///
    /// # Errors
    /// [`TextError::Tokenizer`] if the decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        // Some decoders take no tokens for a mistake.
        if !ids.iter().any(|&id| self.text_token(id, skip_special).is_some()) {
            return Ok(String::new());
        }
        catch(|| self.inner.decode(ids, skip_special))
            .map_err(|reason| TextError::Tokenizer { action: "decode", reason })
    }

    /// One more than the largest token id, added tokens included. A model's own vocabulary may be larger: padded.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab(true).into_values().max().map_or(0, |id| id as usize + 1)
    }

    /// The id of a token's exact text, added tokens included.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Whether an id is that of a special token.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner
            .id_to_token(id)
            .is_some_and(|token| self.inner.get_added_vocabulary().is_special_token(&token))
    }

    /// The special tokens that the config names.
    pub fn special_tokens(&self) -> &SpecialTokens {
        &self.special_tokens
    }

    /// The id of the token that begins a text.
    pub fn bos_token_id(&self) -> Option<u32> {
        self.special_tokens.get("bos_token").and_then(|token| self.token_to_id(token))
    }

    /// The id of the token that ends a text. A model may have more of them, in its `generation_config.json`.
    pub fn eos_token_id(&self) -> Option<u32> {
        self.special_tokens.get("eos_token").and_then(|token| self.token_to_id(token))
    }

    /// The chat template: the one for tools if there is one and tools are used, else the default.
    ///
    /// # Errors
    /// [`TextError::NoChatTemplate`], or why it does not compile.
    pub fn chat_template(&self, with_tools: bool) -> Result<&ChatTemplate, TextError> {
        let for_tools = with_tools.then(|| self.chat_templates.get("tool_use")).flatten();
        match for_tools.or_else(|| self.chat_templates.get("default")) {
            Some(template) => template.as_ref().map_err(TextError::clone),
            None => Err(TextError::NoChatTemplate),
        }
    }

    /// The token of an id, unless it has no text: unknown, or special and to be skipped.
    pub(super) fn text_token(&self, id: u32, skip_special: bool) -> Option<String> {
        let token = self.inner.id_to_token(id)?;
        let is_skipped = skip_special && self.inner.get_added_vocabulary().is_special_token(&token);
        (!is_skipped).then_some(token)
    }

    pub(super) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }
}

/// A file of the folder, or `None` if it is not there.
fn read(dir: &Path, name: &str, bytes_max: u64) -> Result<Option<Vec<u8>>, TextError> {
    let path = dir.join(name);
    let unreadable =
        |error: std::io::Error| TextError::Unreadable { path: path.clone(), reason: error.to_string() };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unreadable(error)),
    };
    let mut bytes = Vec::new();
    file.take(bytes_max + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > bytes_max {
        let bytes = path.metadata().map_or(bytes.len() as u64, |metadata| metadata.len());
        return Err(TextError::TooLarge { name: name.to_string(), bytes, bytes_max });
    }
    Ok(Some(bytes))
}

/// Where the config says whether a text gets its first and last token, its word wins over `tokenizer.json`'s
/// post-processor, as in transformers; a token that is not in the vocabulary is not added.
fn add_boundaries(inner: &mut tokenizers::Tokenizer, config: &TokenizerConfig) -> Result<(), TextError> {
    let token = |name: &str| {
        let text = config.special_tokens.get(name)?;
        Some((text.to_string(), inner.token_to_id(text)?))
    };
    let (bos, eos) = (token("bos_token"), token("eos_token"));
    let around =
        catch(|| inner.encode_fast("", true)).map_err(|reason| TextError::malformed(TOKENIZER, reason))?;
    let ids = around.get_ids();
    let is_at = |id: Option<&u32>, token: &Option<(String, u32)>| {
        id.zip(token.as_ref()).is_some_and(|(id, token)| *id == token.1)
    };
    let has_bos = is_at(ids.first(), &bos);
    let has_eos = is_at(ids.last(), &eos) && !(has_bos && ids.len() == 1);
    let wants_bos = bos.is_some() && config.add_bos_token.unwrap_or(has_bos);
    let wants_eos = eos.is_some() && config.add_eos_token.unwrap_or(has_eos);
    if (has_bos, has_eos) == (wants_bos, wants_eos) {
        return Ok(());
    }
    let (bos, eos) = (bos.filter(|_| wants_bos), eos.filter(|_| wants_eos));
    let piece = |token: &Option<(String, u32)>, sequence| {
        token.as_ref().map(|(text, _)| format!("{text}:{sequence}")).into_iter()
    };
    let around = |name: &str, sequence| {
        piece(&bos, sequence)
            .chain([format!("{name}:{sequence}")])
            .chain(piece(&eos, sequence))
            .collect::<Vec<_>>()
    };
    let processor = TemplateProcessing::builder()
        .try_single(around("$A", 0))
        .and_then(|builder| builder.try_pair([around("$A", 0), around("$B", 1)].concat()))
        .map_err(|error| TextError::malformed(CONFIG, error))?
        .special_tokens(bos.into_iter().chain(eos).collect::<Vec<_>>())
        .build()
        .map_err(|error| TextError::malformed(CONFIG, error))?;
    inner.with_post_processor(Some(processor));
    Ok(())
}

/// Runs the library, and makes an error of a panic.
fn catch<T, E: Display>(function: impl FnOnce() -> Result<T, E>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(function)) {
        Ok(result) => result.map_err(|error| super::error::one_line(&error.to_string())),
        Err(_) => Err("the tokenizer's library gave up on it".to_string()),
    }
}
