//! Text of tokens that come one at a time.
//!
//! What a token adds depends on its neighbours: a character can spread over several tokens, and some decoders drop a
//! blank before the first. Three ways, by the tokenizer's decoder:
//!
//! ```text
//! ByteLevel     bytes of each token ─▶ complete characters go out, at most three bytes wait
//! ByteFallback  a run of byte tokens waits for its end (one bad byte spoils the whole run), then as the rest
//! the rest      decode(context + new) minus decode(context), where the context is the piece before
//! ```
//!
//! Each costs the same for every token, however long the text.

use std::sync::{Arc, OnceLock};

use tokenizers::decoders::DecoderWrapper;

use super::Tokenizer;

/// A window that waits for more bytes is decoded at every token up to this many, then more rarely.
const HELD_TOKENS_MAX: usize = 16;
/// Tokens without any text do not make the context longer than this.
const CONTEXT_TOKENS_MAX: usize = 64;

/// Turns a stream of token ids into pieces of text that, put together, are exactly [`Tokenizer::decode`] of all ids.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Arc<Tokenizer>,
    skip_special: bool,
    way: Way,
}

#[derive(Debug, Clone)]
enum Way {
    Bytes { pending: Vec<u8> },
    Window(Window),
}

#[derive(Debug, Clone, Default)]
struct Window {
    /// Tokens whose text went out, as many as the next ones' text depends on.
    context: Vec<u32>,
    context_text: String,
    /// Tokens whose text has not gone out.
    held: Vec<u32>,
    /// Whether a run of byte tokens is decoded as a whole.
    has_byte_fallback: bool,
    /// Whether an incomplete character ends the text with U+FFFD.
    has_byte_level: bool,
}

impl StreamDecoder {
    /// A decoder at the beginning of a text.
    pub fn new(tokenizer: Arc<Tokenizer>, skip_special: bool) -> Self {
        let way = match tokenizer.inner().get_decoder() {
            Some(DecoderWrapper::ByteLevel(_)) => Way::Bytes { pending: Vec::new() },
            decoder => Way::Window(Window {
                has_byte_fallback: has(decoder, |decoder| matches!(decoder, DecoderWrapper::ByteFallback(_))),
                has_byte_level: has(decoder, |decoder| matches!(decoder, DecoderWrapper::ByteLevel(_))),
                ..Window::default()
            }),
        };
        Self { tokenizer, skip_special, way }
    }

    /// A decoder that goes on after a prompt: prompt and pieces make the text of all ids, so a first word keeps the
    /// blank before it. The prompt's own last character should be complete.
    pub fn after_prompt(tokenizer: Arc<Tokenizer>, skip_special: bool, prompt_ids: &[u32]) -> Self {
        const CONTEXT_TOKENS: usize = 8;
        let mut decoder = Self::new(tokenizer, skip_special);
        if let Way::Window(window) = &mut decoder.way {
            let has_text = |id: &u32| decoder.tokenizer.text_token(*id, skip_special).is_some();
            window.held = prompt_ids.iter().rev().copied().filter(has_text).take(CONTEXT_TOKENS).collect();
            window.held.reverse();
            window.advance(&decoder.tokenizer, true);
        }
        decoder
    }

    /// Takes the next id. `None` if no text is sure yet, or if the token has none.
    pub fn push(&mut self, id: u32) -> Option<String> {
        let token = self.tokenizer.text_token(id, self.skip_special)?;
        let piece = match &mut self.way {
            Way::Bytes { pending } => {
                push_token_bytes(pending, &token);
                take_complete(pending)
            }
            Way::Window(window) => {
                window.held.push(id);
                if window.must_wait(&token) {
                    return None;
                }
                window.advance(&self.tokenizer, false)
            }
        };
        Some(piece).filter(|piece| !piece.is_empty())
    }

    /// The ids are over: what was held back, with U+FFFD for bytes that make no character.
    pub fn finish(&mut self) -> Option<String> {
        let piece = match &mut self.way {
            Way::Bytes { pending } => {
                let piece = String::from_utf8_lossy(pending).into_owned();
                pending.clear();
                piece
            }
            Way::Window(window) => window.advance(&self.tokenizer, true),
        };
        Some(piece).filter(|piece| !piece.is_empty())
    }
}

impl Tokenizer {
    /// The bytes that a token adds to a text, where it has any before it; none for an id that stands for nothing.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.text_token(id, false) else { return Vec::new() };
        let mut bytes = Vec::new();
        let decoder = self.inner().get_decoder();
        if has(decoder, |decoder| matches!(decoder, DecoderWrapper::ByteLevel(_))) {
            push_token_bytes(&mut bytes, &token);
        } else if is_byte_token(&token)
            && has(decoder, |decoder| matches!(decoder, DecoderWrapper::ByteFallback(_)))
        {
            bytes.extend(u8::from_str_radix(&token[3..5], 16));
        } else {
            // A blank at the start of a word.
            bytes.extend_from_slice(token.replace('\u{2581}', " ").as_bytes());
        }
        bytes
    }
}

fn has(decoder: Option<&DecoderWrapper>, is: fn(&DecoderWrapper) -> bool) -> bool {
    match decoder {
        Some(DecoderWrapper::Sequence(sequence)) => {
            sequence.get_decoders().iter().any(|decoder| has(Some(decoder), is))
        }
        Some(decoder) => is(decoder),
        None => false,
    }
}

impl Window {
    fn must_wait(&self, last_token: &str) -> bool {
        let is_rare =
            self.held.len() > HELD_TOKENS_MAX && !self.held.len().is_multiple_of(4 * HELD_TOKENS_MAX);
        (self.has_byte_fallback && is_byte_token(last_token)) || is_rare
    }

    /// The text that the held tokens add to the context; they become the context. Without `is_end` an incomplete
    /// character stays held.
    fn advance(&mut self, tokenizer: &Tokenizer, is_end: bool) -> String {
        if self.held.is_empty() {
            return String::new();
        }
        let all = [self.context.as_slice(), self.held.as_slice()].concat();
        // Special tokens that are to be skipped never come here.
        let Ok(text) = tokenizer.decode(&all, false) else { return String::new() };
        if !is_end && self.has_byte_level && text.ends_with('\u{fffd}') {
            return String::new();
        }
        let piece = match text.strip_prefix(&self.context_text) {
            Some(piece) => piece.to_string(),
            None if !is_end => return String::new(),
            None => text[common_prefix_len(&text, &self.context_text)..].to_string(),
        };
        // The next context has text of its own: what a decoder drops before a first token is dropped in there.
        let mut context_len = self.held.len();
        let longest = all.len().min(context_len.max(CONTEXT_TOKENS_MAX));
        self.held.clear();
        loop {
            let context = &all[all.len() - context_len..];
            match tokenizer.decode(context, false) {
                Ok(context_text) if context_len >= longest || !context_text.is_empty() => {
                    (self.context, self.context_text) = (context.to_vec(), context_text);
                    break;
                }
                _ if context_len >= longest => break,
                _ => context_len += 1,
            }
        }
        piece
    }
}

fn common_prefix_len(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

/// `<0x0A>`, as the library recognises it.
fn is_byte_token(token: &str) -> bool {
    token.len() == 6
        && token.starts_with("<0x")
        && token.ends_with('>')
        && token.get(3..5).is_some_and(|digits| u8::from_str_radix(digits, 16).is_ok())
}

/// Takes off the text that more bytes cannot change.
fn take_complete(pending: &mut Vec<u8>) -> String {
    let mut complete_len = 0;
    let mut rest = pending.as_slice();
    while let Err(error) = std::str::from_utf8(rest) {
        match error.error_len() {
            Some(len) => {
                complete_len += error.valid_up_to() + len;
                rest = &pending[complete_len..];
            }
            None => {
                rest = &rest[..error.valid_up_to()];
                break;
            }
        }
    }
    complete_len += rest.len();
    let text = String::from_utf8_lossy(&pending[..complete_len]).into_owned();
    pending.drain(..complete_len);
    text
}

/// The bytes that a byte-level token stands for; a token with a character that stands for no byte is its own text.
fn push_token_bytes(bytes: &mut Vec<u8>, token: &str) {
    let table = byte_of_char();
    let start = bytes.len();
    for char in token.chars() {
        match table.get(char as usize).copied().flatten() {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.truncate(start);
                bytes.extend_from_slice(token.as_bytes());
                return;
            }
        }
    }
}

/// The inverse of GPT-2's `bytes_to_unicode`: printable bytes stand for themselves, and the others, in order, for the
/// characters from U+0100 on.
fn byte_of_char() -> &'static [Option<u8>; 0x144] {
    static TABLE: OnceLock<[Option<u8>; 0x144]> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut table = [None; 0x144];
        let mut next = 0x100;
        for byte in 0..=u8::MAX {
            if matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) {
                table[usize::from(byte)] = Some(byte);
            } else {
                table[next] = Some(byte);
                next += 1;
            }
        }
        table
    })
}
