//! Templates that would never end, or fill the memory. Each ends in an error, soon.

use std::time::{Duration, Instant};

use serde_json::{Map, json};

use super::chat::template;
use crate::text::{ChatTemplate, Message, SpecialTokens, TextError};

/// Wide enough for a busy machine and an unoptimised build.
const SOON: Duration = Duration::from_secs(10);

fn assert_stopped(source: &str) {
    assert_stopped_with(source, &[Message::new("user", "x".repeat(1000))]);
}

fn assert_stopped_with(source: &str, messages: &[Message]) {
    let start = Instant::now();
    let shown: String = source.chars().take(200).collect();
    let error = template(source).render(messages, true, &Map::new()).expect_err(&shown);
    assert!(start.elapsed() < SOON, "{shown}: took {:?}", start.elapsed());
    let is_limit = match &error {
        TextError::TemplateLimit { .. } => true,
        TextError::TemplateFailed { reason } => {
            ["range has too many", "recursion limit", "could not render include"]
                .iter()
                .any(|words| reason.contains(words))
        }
        _ => false,
    };
    assert!(is_limit, "{shown}: {error:?}");
}

#[test]
fn loops_without_an_end_are_stopped() {
    assert_stopped("{% for i in range(10**9) %}{% endfor %}");
    assert_stopped("{% for i in range(99999) %}{% for i in range(99999) %}{% endfor %}{% endfor %}");
    assert_stopped("{% for i in range(99999) %}{% for i in range(99999) %}{{ i }}{% endfor %}{% endfor %}");
    assert_stopped("{% for i in [0] * 4000 * 4000 %}{% endfor %}");
    assert_stopped("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}");
}

#[test]
fn recursion_is_stopped_before_the_stack_ends() {
    assert_stopped("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}");
    assert_stopped("{% macro m(n) %}{{ m(n ~ n) }}{{ m(n ~ n) }}{% endmacro %}{{ m('x') }}");
    assert_stopped(
        "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% else %}a{% endif %}{% endmacro %}{{ m(60) }}",
    );
    assert_stopped("{% include 'chat_template' %}");
    assert_stopped("{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}{{ ns == ns }}");
    assert_stopped("{% set a = namespace() %}{% set b = namespace(x=[a]) %}{% set a.x = b %}{{ a == b }}");
    assert_stopped(
        "{% set ns = namespace(x=[]) %}{% for i in range(99999) %}{% set ns.x = [ns.x] %}{% endfor %}",
    );
    assert_stopped(
        "{% set ns = namespace(x=[1]) %}{% for i in range(99999) %}{% set ns.x = ns.x|batch(1)|list %}{% endfor %}",
    );
    assert_stopped(
        "{% set ns = namespace(x=1) %}{% for i in range(99999) %}{% set ns.x = dict(a=ns.x) %}{% endfor %}",
    );
}

#[test]
fn deep_sources_do_not_end_the_stack() {
    let units = [
        "(",
        "[",
        "{'a':",
        "-",
        "not ",
        "x and ",
        "x or ",
        "x|upper|",
        "x.",
        "x[0][",
        "x(",
        "x is not ",
        "x if x else ",
        "x ~ ",
        "x ** ",
        "x == ",
        "x,",
        "'a' ",
    ];
    for unit in units {
        for count in [100, 1000, 20_000] {
            let _ =
                ChatTemplate::new(&format!("{{{{ {}x }}}}", unit.repeat(count)), SpecialTokens::default());
            let _ = ChatTemplate::new(
                &format!("{{% if {}x %}}{{% endif %}}", unit.repeat(count)),
                SpecialTokens::default(),
            );
        }
    }
    for chain in ["|upper", ".x", "[0]", " is string", " and x", "()", "[1:]", " ~ x", " if x else x"] {
        for count in [100, 250, 1000, 20_000] {
            let compiled =
                ChatTemplate::new(&format!("{{{{ x{} }}}}", chain.repeat(count)), SpecialTokens::default());
            let _ = compiled.map(|template| template.render(&[], true, &Map::new()));
        }
    }
    let blocks = [
        "if x",
        "for x in y",
        "macro m()",
        "set x",
        "with",
        "filter upper",
        "call x()",
        "block x",
        "generation",
    ];
    for block in blocks {
        for count in [100, 1000, 10_000] {
            let _ = ChatTemplate::new(&format!("{{% {block} %}}").repeat(count), SpecialTokens::default());
            let end = block.split(' ').next().unwrap();
            let source = format!(
                "{}{}",
                format!("{{% {block} %}}").repeat(count),
                format!("{{% end{end} %}}").repeat(count)
            );
            let compiled = ChatTemplate::new(&source, SpecialTokens::default());
            let _ = compiled.map(|template| template.render(&[], true, &Map::new()));
        }
    }
    for count in [100, 1000, 10_000] {
        let _ = ChatTemplate::new(
            &format!("{{% if x %}}{}{{% endif %}}", "{% elif x %}".repeat(count)),
            SpecialTokens::default(),
        );
    }
}

#[test]
fn texts_that_double_are_stopped() {
    let doubles = [
        "@ ~ @",
        "@ + @",
        "@ * 2",
        "@|replace('x', 'xx')",
        "@.replace('x', 'xx')",
        "[@, @]|join",
        "''.join([@, @])",
        "'%s%s'|format(@, @)",
        "'{}{}'.format(@, @)",
        "@.join(['', '', ''])",
        "(@ ~ @)|upper",
        "[@, @]|string",
        "[@, @]|tojson",
        "@ ~ @[::-1]",
        "[@, @]|map('upper')|join",
        "(@, @)|join",
        "{'a': @, 'b': @}|string",
        "@ if false else @ ~ @",
        "(@ ~ @)[0:]",
        "@.split('y')[0] ~ @",
        "-1 ~ @ ~ @",
    ];
    for double in doubles {
        let once = format!("{{% set s = {} %}}", double.replace('@', "s"));
        assert_stopped(&format!("{{% set s = 'x' %}}{}{{{{ s|length }}}}", once.repeat(64)));
        let stored = format!("{{% set ns.s = {} %}}", double.replace('@', "ns.s"));
        assert_stopped(&format!(
            "{{% set ns = namespace(s='x') %}}{{% for i in range(99999) %}}{stored}{{% endfor %}}"
        ));
    }
    assert_stopped(&format!(
        "{{% set s = 'x' %}}{}{{{{ s }}}}",
        "{% set s %}{{ s }}{{ s }}{% endset %}".repeat(64)
    ));
    assert_stopped(&format!("{{% set s = ['x'] %}}{}{{{{ s|length }}}}", "{% set s = s + s %}".repeat(64)));
    assert_stopped(&format!(
        "{{% set s = ['x'] %}}{}{{{{ s|list|length }}}}",
        "{% set s = s + s %}".repeat(64)
    ));
    assert_stopped(&format!("{{% set s = ['x'] %}}{}{{{{ 1 in s }}}}", "{% set s = [s, s] %}".repeat(64)));
}

#[test]
fn widths_and_factors_have_limits() {
    assert_stopped("{{ 'x' * 1000000000 }}");
    assert_stopped("{{ 1000000000 * 'x' }}");
    assert_stopped("{{ 'x' * 4000 * 4000 }}");
    assert_stopped("{{ [0] * 1000000000 }}");
    assert_stopped("{{ ' '|indent(1000000000, true) }}");
    assert_stopped("{{ {}|tojson(indent=1000000000) }}");
    assert_stopped("{{ '%1000000000d'|format(1) }}");
    assert_stopped("{{ '{:>1000000000}'.format(1) }}");
    assert_stopped("{{ [1]|batch(1000000000, 'x')|list }}");
    assert_stopped("{{ [1]|slice(1000000000)|list }}");
}

#[test]
fn hidden_work_on_a_long_message_is_stopped() {
    let long = [Message::new("user", "ab ".repeat(1 << 18))];
    for work in [
        "s[::-1]|length",
        "s|upper|length",
        "s == s ~ ''",
        "'c' in s",
        "s.split('a')|length",
        "s.count('a')",
        "s|trim|length",
        "s.find('c')",
        "s.strip()",
        "s[1:][0]",
        "s|list|length",
        "[s]|tojson",
        "s|string",
        "(s ~ 'x')[0]",
        "s.splitlines()",
    ] {
        let source = format!(
            "{{% set s = messages[0].content %}}{{% for i in range(99999) %}}{{% set x = {work} %}}{{% endfor %}}"
        );
        assert_stopped_with(&source, &long);
    }
}

#[test]
fn output_without_an_end_is_stopped() {
    let text = "word ".repeat(4000);
    assert_stopped(&format!("{{% for i in range(99999) %}}{text}{{% endfor %}}"));
    assert_stopped(&format!("{{% set x %}}{{% for i in range(99999) %}}{text}{{% endfor %}}{{% endset %}}"));
    assert_stopped("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}");
    assert_stopped(
        "{% set ns = namespace(s='x') %}{% for i in range(99999) %}{% set ns.s = ns.s|indent(1000, true) %}{% endfor %}",
    );
}

#[test]
fn counting_the_empty_text_ends() {
    assert_eq!(template("{{ 'abc'.count('') }}").render(&[], false, &Map::new()).unwrap(), "4");
}

#[test]
fn sources_and_inputs_have_limits() {
    let new = |source: &str| ChatTemplate::new(source, SpecialTokens::default());
    assert!(matches!(new(&"x".repeat(300_000)), Err(TextError::TooLarge { .. })));
    assert!(matches!(new(&" ".repeat(20_000)), Err(TextError::TemplateSyntax { .. })));
    assert!(matches!(
        new(&format!("{{{{ s{} }}}}", "~s".repeat(300))),
        Err(TextError::TemplateSyntax { .. })
    ));
    let deep = (0..500).fold(json!(1), |value, _| json!([value]));
    let kwargs = Map::from_iter([("deep".to_string(), deep)]);
    assert!(matches!(template("x").render(&[], false, &kwargs), Err(TextError::TemplateLimit { .. })));
}

#[test]
fn the_templates_own_text_is_unchanged_by_its_payments() {
    let text = "Lorem {ipsum} } { dolor\n\n  sit amet, \u{fc}ber\u{2028}alles. ".repeat(400);
    assert_eq!(template(&text).render(&[], false, &Map::new()).unwrap(), text);
    let source = format!("{text}  \n  {{% if true %}}\n{text}{{% endif %}}\n{text}");
    let expected = format!("{text}  \n{text}{text}");
    assert_eq!(template(&source).render(&[], false, &Map::new()).unwrap(), expected);
}

#[test]
fn a_long_conversation_is_no_attack() {
    let messages: Vec<Message> = (0..4001)
        .map(|turn| {
            Message::new(
                if turn % 2 == 0 { "user" } else { "assistant" },
                format!("turn {turn} ").repeat(100),
            )
        })
        .collect();
    for (source, ..) in super::conversations::CASES {
        template(source).render(&messages, true, &Map::new()).unwrap();
    }
    let big = [Message::new("user", "word ".repeat(1 << 20))];
    for (source, ..) in super::conversations::CASES {
        let rendered = template(source).render(&big, true, &Map::new()).unwrap();
        assert!(rendered.len() > 5 << 20);
    }
}
