use serde_json::{Map, Value, json};

use super::conversations::CASES;
use super::snippets::SNIPPETS;
use crate::text::{ChatTemplate, Message, SpecialTokens, TextError};

/// 2026-11-05 09:07:03 UTC.
pub(super) const NOW: i64 = 1_793_869_623;

pub(super) fn template(source: &str) -> ChatTemplate {
    let tokens = SpecialTokens::from_iter([("bos_token", "<s>"), ("eos_token", "</s>")]);
    ChatTemplate::new(source, tokens).unwrap_or_else(|error| panic!("{source}: {error}")).at_time(NOW)
}

fn object(json: &str) -> Map<String, Value> {
    serde_json::from_str(json).unwrap()
}

#[test]
fn a_rendering_is_that_of_transformers_for_every_family() {
    for (source, messages, add_generation_prompt, kwargs, expected) in CASES {
        let messages: Vec<Value> = serde_json::from_str(messages).unwrap();
        let rendered = template(source).render_json(&messages, *add_generation_prompt, &object(kwargs));
        match (rendered, expected) {
            (Ok(text), Ok(expected)) => assert_eq!(&text, expected),
            (Err(TextError::TemplateRaised { message }), Err(expected)) => assert_eq!(&message, expected),
            (rendered, expected) => panic!("{rendered:?} is not {expected:?}, for {messages:?} and {source}"),
        }
    }
}

#[test]
fn every_feature_renders_as_in_transformers() {
    let messages = [Message::new("user", "hi"), Message::new("assistant", "ho"), Message::new("user", "é")];
    let mut wrong = Vec::new();
    for (source, expected) in SNIPPETS {
        let rendered = template(source).render(&messages, true, &Map::new());
        if rendered.as_deref() != Ok(*expected) {
            wrong.push(format!("{source}\n  expected {expected:?}\n  rendered {rendered:?}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn arguments_reach_the_template_and_win_over_special_tokens() {
    let kwargs = object(r#"{"enable": true, "bos_token": "B", "tools": [{"n": 1}]}"#);
    let rendered = template("{{ bos_token }}{{ enable }}{{ tools[0].n }}").render(&[], false, &kwargs);
    assert_eq!(rendered.unwrap(), "BTrue1");
}

#[test]
fn arguments_that_the_messages_set_are_refused() {
    for name in ["messages", "add_generation_prompt", "", "<budget>", "a b", "1a"] {
        let kwargs = Map::from_iter([(name.to_string(), json!([]))]);
        let error = template("x").render(&[], false, &kwargs).unwrap_err();
        assert!(matches!(error, TextError::TemplateArgument { .. }), "{name}: {error}");
    }
}

#[test]
fn errors_are_one_line_and_name_the_place() {
    let cases = [
        ("a\n{% if %}", "the chat template is malformed: "),
        ("{{ 'a }}", "the chat template is malformed: a text without an end (line 1)"),
        ("\n{# a", "the chat template is malformed: a comment without an end (line 2)"),
        ("{% raw %}", "the chat template is malformed: a raw block without an end"),
        ("{{ (a }}", "the chat template is malformed: "),
        ("{{ ) }}", "the chat template is malformed: a bracket that was not opened (line 1)"),
        ("{{ a", "the chat template is malformed: a tag without an end (line 1)"),
        ("{{ 'é' ~ é }}", "the chat template is malformed: a character that is in no expression"),
        ("\n\n{{ 'a' + 1 }}", "the chat template failed: invalid operation: tried to use + operator"),
        ("{{ nope.x }}", "the chat template failed: undefined value"),
        ("{{ nope | tojson }}", "the chat template failed: undefined value"),
        ("{{ nope() }}", "the chat template failed: "),
        ("{{ 'x'.nope() }}", "the chat template failed: unknown method"),
        ("{% include 'chat_templat' %}", "the chat template failed: template not found"),
        ("{{ raise_exception('no\nway') }}", "the chat template refuses these messages: no way"),
        ("{{ messages.append(1) }}", "the chat template failed: unknown method"),
    ];
    for (source, expected) in cases {
        let rendered = ChatTemplate::new(source, SpecialTokens::default())
            .and_then(|template| template.render(&[], false, &Map::new()));
        let error = rendered.expect_err(source).to_string();
        assert!(error.starts_with(expected) && !error.contains('\n'), "{source}: {error}");
    }
}

#[test]
fn dates_are_right_across_leap_years_and_before_1970() {
    for (unix_s, expected) in [
        (0, "1970-01-01 Thu 001 00:00:00"),
        (951_782_400, "2000-02-29 Tue 060 00:00:00"),
        (4_107_542_399, "2100-02-28 Sun 059 23:59:59"),
        (4_107_542_400, "2100-03-01 Mon 060 00:00:00"),
        (-1, "1969-12-31 Wed 365 23:59:59"),
    ] {
        let source = "{{ strftime_now('%F %a %j %T') }}";
        let rendered = template(source).at_time(unix_s).render(&[], false, &Map::new()).unwrap();
        assert_eq!(rendered, expected);
    }
    let odd = template("{{ strftime_now('%Q %% %-I %') }}").render(&[], false, &Map::new()).unwrap();
    assert_eq!(odd, "%Q % 9 %");
}
