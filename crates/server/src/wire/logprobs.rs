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
}

impl TokenNames {
    /// As text, or as `token_id:N`, which is all there is without a tokenizer.
    pub fn new(tokenizer: Option<Arc<Tokenizer>>, as_ids: bool) -> Self {
        TokenNames { tokenizer, as_ids }
    }

    /// A token by itself. Bytes that are no character alone are U+FFFD.
    pub fn name(&self, id: u32) -> String {
        match &self.tokenizer {
            Some(tokenizer) if !self.as_ids => tokenizer.decode(&[id], false).unwrap_or_default(),
            _ => format!("token_id:{id}"),
        }
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
        let name = names.name(id);
        // A part of a character has bytes that its text doesn't tell.
        let bytes = (!name.contains('\u{fffd}')).then(|| name.as_bytes().to_vec());
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
    pub fn push(&mut self, names: &TokenNames, id: u32, logprobs: Option<&Logprobs>, offset: &mut usize) {
        let name = names.name(id);
        self.text_offset.push((*offset).into());
        *offset += name.chars().count();
        self.tokens.push(name.clone().into());
        self.token_logprobs.push(logprobs.map_or(Value::Null, |l| number(l.logprob)));
        self.top_logprobs.push(logprobs.map_or(Value::Null, |logprobs| {
            let mut top = Map::new();
            for &(id, logprob) in &logprobs.top {
                // Of ids with the same text the most probable one counts: it comes first.
                top.entry(names.name(id)).or_insert_with(|| number(logprob));
            }
            top.entry(name).or_insert_with(|| number(logprobs.logprob));
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

/// vLLM's `prompt_logprobs`: for each token an object by id, null for the first. `rank` is null outside the most probable ones.
pub fn prompt_entries(names: &TokenNames, prompt: &[u32], logprobs: &[Option<Logprobs>]) -> Value {
    let place = |(&id, logprobs): (&u32, &Option<Logprobs>)| {
        let Some(logprobs) = logprobs else { return Value::Null };
        let entry = |id: u32, logprob: f32, rank: Option<usize>| json!({"logprob": number(logprob), "rank": rank, "decoded_token": names.name(id)});
        let rank = logprobs.top.iter().position(|&(top, _)| top == id).map(|i| i + 1);
        let mut place = Map::from_iter([(id.to_string(), entry(id, logprobs.logprob, rank))]);
        for (i, &(top, logprob)) in logprobs.top.iter().enumerate() {
            place.entry(top.to_string()).or_insert_with(|| entry(top, logprob, Some(i + 1)));
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

    #[test]
    fn offsets_count_characters_and_the_first_of_a_prompt_has_none() {
        let names = TokenNames::new(None, false);
        let (mut lists, mut offset) = (CompletionLogprobs::default(), 0);
        lists.push(&names, 7, None, &mut offset);
        let logprobs = Logprobs { logprob: -0.5, top: vec![(9, -0.25)] };
        lists.push(&names, 8, Some(&logprobs), &mut offset);
        let json = lists.into_json();
        assert_eq!(json["text_offset"], json!([0, 10]));
        assert_eq!(json["token_logprobs"], json!([null, -0.5]));
        assert_eq!(json["top_logprobs"], json!([null, {"token_id:9": -0.25, "token_id:8": -0.5}]));
    }
}
