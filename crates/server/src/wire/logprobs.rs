//! Log-probabilities in the three shapes that clients expect: chat's, completions', and vLLM's of prompts.

use std::sync::Arc;

use engine::Logprobs;
use engine::text::Tokenizer;
use serde_json::{Map, Value, json};

/// Writes ids as clients want to read them.
#[derive(Clone)]
pub struct TokenNames {
    tokenizer: Option<Arc<Tokenizer>>,
    as_ids: bool,
    skip_special: bool,
}

/// A token, as it is written.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Named {
    name: String,
    /// What it adds to the text, a part of a character too; none without a tokenizer.
    bytes: Option<Vec<u8>>,
    /// Characters that begin with it in the text.
    chars: usize,
}

impl TokenNames {
    /// As text, or as `token_id:N`, which is all there is without a tokenizer. `skip_special` says whether special tokens
    /// are missing in the text; they have names in any case.
    pub fn new(tokenizer: Option<Arc<Tokenizer>>, as_ids: bool, skip_special: bool) -> Self {
        TokenNames { tokenizer, as_ids, skip_special }
    }

    /// Where a text's first token begins, so that its last one ends where the text of these tokens does: most decoders
    /// drop a blank before the first word.
    pub fn start(&self, text: &str, ids: &[u32]) -> isize {
        let chars: usize = ids.iter().map(|&id| self.of(id).chars).sum();
        text.chars().count() as isize - chars as isize
    }

    fn of(&self, id: u32) -> Named {
        let by_id = || format!("token_id:{id}");
        let Some(tokenizer) = &self.tokenizer else {
            return Named { name: by_id(), bytes: None, chars: 0 };
        };
        let bytes = tokenizer.token_bytes(id);
        let is_shown = !(self.skip_special && tokenizer.is_special(id));
        let begins = |byte: &&u8| **byte & 0xc0 != 0x80;
        let chars = if is_shown { bytes.iter().filter(begins).count() } else { 0 };
        let name = if self.as_ids { by_id() } else { spelled(&bytes) };
        Named { name, bytes: Some(bytes), chars }
    }

    fn name(&self, id: u32) -> String {
        self.of(id).name
    }
}

/// Text, or `bytes:\xf0\x9f` for parts of characters: those that differ must have names that differ.
fn spelled(bytes: &[u8]) -> String {
    match str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().fold("bytes:".to_owned(), |name, byte| format!("{name}\\x{byte:02x}")),
    }
}

/// JSON has no infinities; a log-probability below this is as good as none. vLLM's clients know the number.
const LEAST: f32 = -9999.0;

fn number(logprob: f32) -> Value {
    // The exact value of the float32, digit for digit what `anysplit score` prints.
    json!(f64::from(logprob.max(LEAST)))
}

/// One entry of a chat choice's `logprobs.content`.
pub fn chat_entry(names: &TokenNames, id: u32, logprobs: &Logprobs) -> Value {
    let entry = |id: u32, logprob: f32| {
        let Named { name, bytes, .. } = names.of(id);
        json!({"token": name, "logprob": number(logprob), "bytes": bytes})
    };
    let mut token = entry(id, logprobs.logprob);
    token["top_logprobs"] = logprobs.top.iter().map(|&(id, logprob)| entry(id, logprob)).collect();
    token
}

/// A completion choice's `logprobs`: four lists, one place per token.
#[derive(Default)]
pub struct CompletionLogprobs {
    tokens: Vec<Value>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<Value>,
}

impl CompletionLogprobs {
    /// Adds a token; `offset`, in characters, moves behind it. The first of a prompt has no log-probability.
    pub fn push(&mut self, names: &TokenNames, id: u32, logprobs: Option<&Logprobs>, offset: &mut isize) {
        let Named { name, chars, .. } = names.of(id);
        self.text_offset.push((*offset).max(0).into());
        *offset += chars as isize;
        self.tokens.push(name.clone().into());
        self.token_logprobs.push(logprobs.map_or(Value::Null, |l| number(l.logprob)));
        self.top_logprobs.push(logprobs.map_or(Value::Null, |logprobs| {
            let mut top = Map::new();
            for &(id, logprob) in &logprobs.top {
                // Of ids with the same text the most probable one counts: it comes first.
                top.entry(names.name(id)).or_insert_with(|| number(logprob));
            }
            // But the chosen one's number is its own.
            top.insert(name, number(logprobs.logprob));
            top.into()
        }));
    }

    /// Whether there is nothing to tell.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// OpenAI's shape.
    pub fn into_json(self) -> Value {
        json!({
            "tokens": self.tokens, "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs, "text_offset": self.text_offset,
        })
    }
}

/// vLLM's `prompt_logprobs`: for each token an object by id, null for the first.
pub fn prompt_entries(names: &TokenNames, prompt: &[u32], logprobs: &[Option<Logprobs>]) -> Value {
    let place = |(&id, logprobs): (&u32, &Option<Logprobs>)| {
        let Some(logprobs) = logprobs else { return Value::Null };
        let entry = |id: u32, logprob: f32, rank: u32| json!({"logprob": number(logprob), "rank": rank, "decoded_token": names.name(id)});
        let mut place = Map::from_iter([(id.to_string(), entry(id, logprobs.logprob, logprobs.rank))]);
        for (rank, &(top, logprob)) in (1..).zip(&logprobs.top) {
            place.entry(top.to_string()).or_insert_with(|| entry(top, logprob, rank));
        }
        place.into()
    };
    prompt.iter().zip(logprobs).map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_parse_back_to_the_same_float_and_are_finite() {
        for logprob in [-0.1f32, -1.2345678e-7, -17.25, 0.0] {
            assert_eq!(number(logprob).as_f64().unwrap() as f32, logprob);
        }
        assert_eq!(number(f32::NEG_INFINITY), json!(-9999.0));
    }

    /// A tokenizer that decodes as Llama 2's: blanks are `▁`, bytes are tokens, and the first blank of a text is dropped.
    fn llama2() -> TokenNames {
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "pre_tokenizer": null,
            "post_processor": null,
            "added_tokens": [{"id": 0, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true}],
            "decoder": {"type": "Sequence", "decoders": [
                {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"},
                {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
            "model": {"type": "BPE", "byte_fallback": true, "merges": [], "vocab": {
                "<s>": 0, "\u{2581}the": 1, "the": 2, "<0xF0>": 3, "<0x9F>": 4, "<0x99>": 5, "<0x82>": 6, "<0xC3>": 7}},
        });
        let tokenizer = Tokenizer::from_bytes(json.to_string().as_bytes(), None, None).unwrap();
        TokenNames::new(Some(Arc::new(tokenizer)), false, true)
    }

    #[test]
    fn the_bytes_of_tokens_are_those_of_the_text_also_where_a_character_has_several() {
        let names = llama2();
        let none = Logprobs { logprob: -1.0, rank: 5, top: Vec::new() };
        let entries: Vec<Value> = [1, 3, 4, 5, 6, 2].map(|id| chat_entry(&names, id, &none)).into();
        let bytes = entries.iter().flat_map(|entry| entry["bytes"].as_array().unwrap());
        let bytes: Vec<u8> = bytes.map(|byte| byte.as_u64().unwrap() as u8).collect();
        assert_eq!(str::from_utf8(&bytes), Ok(" the\u{1f642}the"));
        assert_eq!((&entries[0]["token"], &entries[1]["token"]), (&json!(" the"), &json!("bytes:\\xf0")));
        assert_eq!(chat_entry(&TokenNames::new(None, false, true), 3, &none)["bytes"], Value::Null);
    }

    #[test]
    fn tokens_that_differ_keep_their_own_numbers() {
        let (names, mut lists, mut offset) = (llama2(), CompletionLogprobs::default(), 0);
        let logprobs =
            Logprobs { logprob: -2.0, rank: 5, top: vec![(1, -0.25), (2, -2.0), (3, -3.0), (7, -4.0)] };
        lists.push(&names, 2, Some(&logprobs), &mut offset);
        let expected = json!([{" the": -0.25, "the": -2.0, "bytes:\\xf0": -3.0, "bytes:\\xc3": -4.0}]);
        assert_eq!(lists.into_json()["top_logprobs"], expected);
        // Two ids of one text: that which was chosen tells of itself.
        let names = TokenNames { as_ids: true, ..names };
        let mut lists = CompletionLogprobs::default();
        lists.push(&names, 2, Some(&Logprobs { logprob: -2.0, rank: 5, top: vec![(2, -1.0)] }), &mut offset);
        assert_eq!(lists.into_json()["top_logprobs"], json!([{"token_id:2": -2.0}]));
    }

    #[test]
    fn offsets_are_characters_of_the_text() {
        let names = llama2();
        let text = "the the\u{1f642}the";
        let ids = [0, 1, 1, 3, 4, 5, 6, 2];
        let (mut lists, mut offset) = (CompletionLogprobs::default(), names.start(text, &ids));
        ids.iter().for_each(|&id| lists.push(&names, id, None, &mut offset));
        assert_eq!(offset as usize, text.chars().count());
        assert_eq!(lists.into_json()["text_offset"], json!([0, 0, 3, 7, 8, 8, 8, 8]));
    }

    #[test]
    fn without_a_tokenizer_tokens_are_ids_and_the_first_of_a_prompt_has_no_number() {
        let names = TokenNames::new(None, false, true);
        let (mut lists, mut offset) = (CompletionLogprobs::default(), 0);
        lists.push(&names, 7, None, &mut offset);
        let logprobs = Logprobs { logprob: -0.5, rank: 5, top: vec![(9, -0.25)] };
        lists.push(&names, 8, Some(&logprobs), &mut offset);
        let json = lists.into_json();
        assert_eq!(
            (&json["tokens"], &json["text_offset"]),
            (&json!(["token_id:7", "token_id:8"]), &json!([0, 0]))
        );
        assert_eq!(json["token_logprobs"], json!([null, -0.5]));
        assert_eq!(json["top_logprobs"], json!([null, {"token_id:9": -0.25, "token_id:8": -0.5}]));
    }
}
