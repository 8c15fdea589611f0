//! A tokenizer or a chat template that can't be used is refused, and one that never ends is stopped.

use serde_json::json;

use crate::checkpoints::{Copy, golden};
use crate::child::anysplit;

#[test]
fn a_missing_tokenizer_is_named_with_what_works_without_one() {
    let without = golden("qwen2");
    for command in ["generate hello", "generate hello --chat", "score --text hello"] {
        anysplit(command).model(&without).refused(&["tokenizer.json", "--prompt-ids"]);
    }
    // Stop strings are found in text.
    anysplit("generate --prompt-ids 1 --stop x").model(&without).refused(&["tokenizer.json"]);
}

#[test]
fn a_malformed_tokenizer_is_named() {
    let copy = Copy::of("llama");
    let whole = copy.read("tokenizer.json");
    for bytes in [&whole[..whole.len() / 2], b"{}", b"", b"[1]", b"\xff"] {
        copy.write("tokenizer.json", bytes);
        anysplit("generate hello").model(&copy).refused(&["tokenizer.json"]);
        anysplit("score --text hello").model(&copy).refused(&["tokenizer.json"]);
    }
    copy.write("tokenizer.json", whole);
    copy.write("tokenizer_config.json", "{\"bos_token\":");
    anysplit("generate hello").model(&copy).refused(&["tokenizer_config.json"]);
}

#[test]
fn a_missing_chat_template_is_named() {
    let copy = Copy::of("llama");
    copy.edit("tokenizer_config.json", |config| {
        drop(config.as_object_mut().unwrap().remove("chat_template"))
    });
    anysplit("generate hello --chat").model(&copy).refused(&["no chat template"]);
    anysplit("generate hello --max-tokens 2").model(&copy).prints();
}

/// What is said of a chat template, in either place where it may be.
fn template_refused(template: &str, parts: &[&str]) {
    let old = Copy::of("llama");
    old.edit("tokenizer_config.json", |config| config["chat_template"] = json!(template));
    let told = anysplit("generate hello --chat").model(&old).refused(parts);
    let new = Copy::of("qwen3");
    new.write("chat_template.jinja", template);
    assert_eq!(told, anysplit("generate hello --chat").model(&new).refused(parts));
}

#[test]
fn a_template_that_never_ends_is_stopped() {
    let endless = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% for i in range(99999) %}{{ messages[0].content * 1000 }}{% endfor %}",
        "{% set ns = namespace(s='aaaaaaaa') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    ];
    for template in endless {
        template_refused(template, &["the chat template"]);
    }
}

#[test]
fn a_template_that_fails_says_why() {
    template_refused("{% for m in messages %}", &["the chat template is malformed"]);
    template_refused(
        "{{ raise_exception('only roles that\nalternate') }}",
        &["refuses", "only roles that alternate"],
    );
    template_refused("{{ messages[0].content.nothing() }}", &["the chat template failed", "line 1"]);
    template_refused("{% include '/etc/passwd' %}", &["the chat template"]);
    template_refused("{{ ''.__class__.__mro__ }}", &["the chat template"]);
}
