use std::sync::Arc;
use std::time::Instant;

use super::random::Random;
use super::tokenizers_small::{byte_fallback, byte_level, metaspace, rare};
use crate::text::{StreamDecoder, Tokenizer};

fn tokenizer(json: &[u8]) -> Arc<Tokenizer> {
    Arc::new(Tokenizer::from_bytes(json, None, None).unwrap())
}

fn stream(decoder: &mut StreamDecoder, ids: &[u32]) -> Vec<String> {
    ids.iter().filter_map(|&id| decoder.push(id)).collect()
}

fn all(tokenizer: &Arc<Tokenizer>, ids: &[u32], skip_special: bool) -> String {
    let mut decoder = StreamDecoder::new(Arc::clone(tokenizer), skip_special);
    let text = stream(&mut decoder, ids).concat();
    text + &decoder.finish().unwrap_or_default()
}

/// Ids that prefer the first and the last tokens, unknown ones among them: special tokens, bytes and words meet often.
fn random_ids(random: &mut Random, vocab_size: usize) -> Vec<u32> {
    let len = random.below(24);
    (0..len)
        .map(|_| match random.below(6) {
            0 => random.below(4) as u32,
            1 | 2 => (vocab_size + 1 - random.below(14.min(vocab_size))) as u32,
            // For a byte-level alphabet and for byte tokens alike: the bytes above 0x7f.
            3 => (3 + 0x80 + random.below(0x80)) as u32,
            _ => random.below(vocab_size) as u32,
        })
        .collect()
}

#[test]
fn pieces_together_are_the_text_of_all_ids() {
    let mut tokenizers = vec![byte_level(), byte_fallback(false), metaspace()];
    tokenizers.extend(rare());
    for (which, json) in tokenizers.iter().enumerate() {
        let tokenizer = tokenizer(json);
        let mut random = Random::new(11);
        for _ in 0..5_000 {
            let ids = random_ids(&mut random, tokenizer.vocab_size());
            for skip_special in [false, true] {
                let expected = tokenizer.decode(&ids, skip_special).unwrap();
                assert_eq!(all(&tokenizer, &ids, skip_special), expected, "{ids:?} of tokenizer {which}");
            }
        }
    }
}

#[test]
fn text_that_was_encoded_comes_back() {
    let text = "hello world \u{4f60}\u{597d} \u{1f600}\u{1f468}\u{200d}\u{1f469} na\u{ef}ve";
    for json in [byte_level(), byte_fallback(false)] {
        let tokenizer = tokenizer(&json);
        let ids = tokenizer.encode(text, false).unwrap();
        assert_eq!(all(&tokenizer, &ids, true), text);
    }
}

#[test]
fn a_character_of_several_tokens_comes_out_whole() {
    let tokenizer = tokenizer(&byte_level());
    let ids = tokenizer.encode("a\u{1f600}b", false).unwrap();
    assert!(ids.len() > 3);
    let mut decoder = StreamDecoder::new(Arc::clone(&tokenizer), true);
    assert_eq!(stream(&mut decoder, &ids), ["a", "\u{1f600}", "b"]);
    assert_eq!(decoder.finish(), None);
}

#[test]
fn incomplete_bytes_at_the_end_become_a_replacement() {
    for json in [byte_level(), byte_fallback(false)] {
        let tokenizer = tokenizer(&json);
        let ids = tokenizer.encode("\u{1f680}", false).unwrap();
        let ids = &ids[..ids.len() - 1];
        let mut decoder = StreamDecoder::new(Arc::clone(&tokenizer), true);
        let text = stream(&mut decoder, ids).concat() + &decoder.finish().unwrap();
        assert_eq!(text, tokenizer.decode(ids, true).unwrap());
        assert!(text.ends_with('\u{fffd}'));
    }
}

#[test]
fn a_word_comes_out_at_once() {
    for json in [byte_fallback(false), metaspace()] {
        let tokenizer = tokenizer(&json);
        let ids = ["\u{2581}a", "\u{2581}he", "llo", ","].map(|token| tokenizer.token_to_id(token).unwrap());
        let mut decoder = StreamDecoder::new(Arc::clone(&tokenizer), true);
        assert_eq!(stream(&mut decoder, &ids), ["a", " he", "llo", ","]);
    }
}

#[test]
fn after_a_prompt_the_first_word_keeps_its_blank() {
    for json in [byte_fallback(true), metaspace(), byte_level()] {
        let tokenizer = tokenizer(&json);
        let prompt = tokenizer.encode("a b", true).unwrap();
        let answer = tokenizer
            .token_to_id("\u{2581}he")
            .map(|id| vec![id])
            .unwrap_or_else(|| tokenizer.encode(" he", false).unwrap());
        let mut decoder = StreamDecoder::after_prompt(Arc::clone(&tokenizer), true, &prompt);
        let text = stream(&mut decoder, &answer).concat() + &decoder.finish().unwrap_or_default();
        assert_eq!(text, " he");
    }
}

#[test]
fn the_cost_of_a_token_does_not_grow() {
    for (json, token) in [
        (byte_level(), "a"),
        (byte_level(), "\u{f0}"),
        (byte_fallback(false), "a"),
        (byte_fallback(false), "<0xF0>"),
        (metaspace(), "\u{2581}"),
        (byte_fallback(false), "\u{2581}"),
    ] {
        let tokenizer = tokenizer(&json);
        let ids = vec![tokenizer.token_to_id(token).unwrap(); 100_000];
        let start = Instant::now();
        assert!(all(&tokenizer, &ids, true).len() >= ids.len() - 1);
        assert!(start.elapsed().as_secs() < 20, "{token} took {:?}", start.elapsed());
    }
}
