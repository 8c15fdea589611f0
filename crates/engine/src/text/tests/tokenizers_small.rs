//! Tokenizers of a few hundred tokens, as `tokenizer.json`, one for each way of decoding.

use serde_json::{Value, json};

const SPECIAL: [&str; 3] = ["<unk>", "<s>", "</s>"];

fn tokenizer(tokens: impl IntoIterator<Item = String>, merges: &[[&str; 2]], parts: Value) -> Vec<u8> {
    let tokens = SPECIAL.iter().map(ToString::to_string).chain(tokens);
    let vocab: serde_json::Map<String, Value> =
        tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
        })
        .collect();
    let byte_fallback = parts["byte_fallback"].clone();
    let model = json!({"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": byte_fallback == json!(true),
        "vocab": vocab, "merges": merges});
    let template = json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}});
    serde_json::to_vec(&json!({"version": "1.0", "truncation": parts["truncation"], "padding": null,
        "added_tokens": added, "normalizer": parts["normalizer"], "pre_tokenizer": parts["pre_tokenizer"],
        "post_processor": if parts["bos"] == json!(true) { template } else { Value::Null },
        "decoder": parts["decoder"], "model": model}))
    .unwrap()
}

/// The character of GPT-2's alphabet for a byte.
pub(super) fn char_of_byte(byte: u8) -> char {
    let is_printable = |byte: u8| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if is_printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|&byte| !is_printable(byte)).count() as u32;
    char::from_u32(0x100 + before).unwrap()
}

/// As of GPT-2, Llama 3 and Qwen: every byte, a few merges, one of which ends inside a character.
pub(super) fn byte_level() -> Vec<u8> {
    let spelt = |bytes: &[u8]| bytes.iter().map(|&byte| char_of_byte(byte)).collect::<String>();
    let merges: Vec<[String; 2]> = [
        (&b"h"[..], &b"e"[..]),
        (b"l", b"l"),
        (b"he", b"ll"),
        (b" ", b"w"),
        (b"\xf0", b"\x9f"),
        (b"\xe4", b"\xbd"),
    ]
    .iter()
    .map(|(a, b)| [spelt(a), spelt(b)])
    .collect();
    let bytes = (0..=u8::MAX).map(|byte| spelt(&[byte]));
    let merged = merges.iter().map(|[a, b]| format!("{a}{b}"));
    // A token outside of the alphabet stands for its own text.
    let tokens = bytes.chain(merged).chain(["\u{4f60}\u{597d}".to_string()]);
    let merges: Vec<[&str; 2]> = merges.iter().map(|[a, b]| [a.as_str(), b.as_str()]).collect();
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    tokenizer(tokens, &merges, json!({"pre_tokenizer": byte_level, "decoder": byte_level}))
}

fn pieces() -> impl Iterator<Item = String> {
    let pieces = [
        "\u{2581}",
        "\u{2581}a",
        "a",
        "b",
        "\u{2581}he",
        "llo",
        "\u{fc}",
        ",",
        "\u{fffd}",
        "\u{2581}\u{2581}",
        "\u{1f600}",
        "",
    ];
    pieces.into_iter().map(str::to_string)
}

fn byte_tokens() -> impl Iterator<Item = String> {
    (0..=u8::MAX).map(|byte| format!("<0x{byte:02X}>"))
}

/// As of Llama 2 and Gemma: blanks are visible, unknown characters are bytes, and the first blank is dropped.
pub(super) fn byte_fallback(bos: bool) -> Vec<u8> {
    let decoder = json!({"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
    let normalizer = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "\u{2581}"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "\u{2581}"}]});
    tokenizer(
        byte_tokens().chain(pieces()),
        &[["\u{2581}", "a"]],
        json!({"decoder": decoder, "normalizer": normalizer, "byte_fallback": true, "bos": bos}),
    )
}

/// As of T5 and Mistral's first: a Metaspace at both ends.
pub(super) fn metaspace() -> Vec<u8> {
    let metaspace =
        json!({"type": "Metaspace", "replacement": "\u{2581}", "prepend_scheme": "always", "split": true});
    tokenizer(pieces(), &[], json!({"pre_tokenizer": metaspace, "decoder": metaspace}))
}

/// Decoders that are rare for language models, each with its own rule for neighbours.
pub(super) fn rare() -> Vec<Vec<u8>> {
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
    let decoders = [
        Value::Null,
        json!({"type": "Fuse"}),
        json!({"type": "BPEDecoder", "suffix": "a"}),
        json!({"type": "WordPiece", "prefix": "##", "cleanup": true}),
        json!({"type": "Sequence", "decoders": [byte_level, {"type": "Fuse"}]}),
    ];
    decoders
        .into_iter()
        .map(|decoder| {
            let alphabet = (0..=u8::MAX).map(|byte| char_of_byte(byte).to_string());
            let words = ["do n't", "##ing", " ."].into_iter().map(str::to_string);
            tokenizer(alphabet.chain(words), &[], json!({"decoder": decoder}))
        })
        .collect()
}

/// A tokenizer that kept the truncation of its training.
pub(super) fn truncating() -> Vec<u8> {
    let truncation = json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    tokenizer(pieces(), &[], json!({"truncation": truncation}))
}
