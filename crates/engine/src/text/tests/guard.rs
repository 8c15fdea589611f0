//! A template renders with its payments as it does without.

use minijinja::value::Value;
use serde_json::Map;

use super::chat::{NOW, template};
use super::random::Random;
use crate::text::template_budget::{BUDGET_VARIABLE, Budget};
use crate::text::{ChatTemplate, Message, SpecialTokens, template_builtins};

const VALUES: [&str; 14] = [
    "'a'",
    "\"b c\"",
    "3",
    "1.5",
    "m.content",
    "m['role']",
    "none",
    "true",
    "nope",
    "[1, 'b'][1]",
    "{'k': 2}.k",
    "m|length",
    "loop.index",
    "ns.x",
];
const OPERATORS: [&str; 16] =
    ["+", "~", "-", "*", "/", "//", "%", "==", "!=", "in", "not in", "if", "is", "is not", "~", "+"];
const AFTER: [&str; 14] = [
    "|upper",
    "|length",
    "|trim|lower",
    "|list|length",
    "|string",
    "[1:]",
    "[:-1]",
    "[0]",
    ".strip()",
    ".split('o')[-1]",
    "|default('d')",
    "|join('-')",
    ".k",
    "|tojson",
];

fn expression(random: &mut Random, depth: usize) -> String {
    if depth == 0 || random.below(4) == 0 {
        return VALUES[random.below(VALUES.len())].to_string();
    }
    let (left, right) = (expression(random, depth - 1), expression(random, depth - 1));
    match random.below(6) {
        0 => format!("({left}){}", AFTER[random.below(AFTER.len())]),
        1 => format!("{left}{}", AFTER[random.below(AFTER.len())]),
        2 => format!("[{left}, {right}]|join('-')"),
        3 => format!("({left}, -{right})[0]"),
        _ => match OPERATORS[random.below(OPERATORS.len())] {
            "if" => format!("{left} if {right} else {left}"),
            operator @ ("is" | "is not") => format!("{left} {operator} string"),
            operator => format!("{left} {operator} {right}"),
        },
    }
}

/// What the source renders to without payments. No list is made a text, which minijinja does in its own way.
fn render_plainly(source: &str, messages: &[Message]) -> Option<String> {
    let mut env = template_builtins::environment();
    env.add_template_owned("plain", source.to_string()).ok()?;
    let variables = [
        (BUDGET_VARIABLE, Value::from_object(Budget::new(1 << 30, NOW))),
        ("messages", Value::from_serialize(messages)),
    ];
    env.get_template("plain").ok()?.render(Value::from_iter(variables)).ok()
}

#[test]
fn payments_change_nothing() {
    let messages = [Message::new("user", " Hello, world! "), Message::new("assistant", "no")];
    let mut random = Random::new(3);
    let mut rendered = 0;
    for _ in 0..20_000 {
        let parts = [(); 3].map(|()| expression(&mut random, 3));
        let source = format!(
            "{{% set ns = namespace(x='y') %}}\n{{%- for m in messages if m.role in ['user', {}] %}}\n  {{%- set ns.x = {} %}}\n \
             {{% set z = {} -%}} <{{{{ z }}}}|{{{{- ns.x -}}}}>\n{{% endfor %}}",
            VALUES[random.below(VALUES.len())],
            parts[0],
            parts[1],
        );
        let Some(expected) = render_plainly(&source, &messages) else { continue };
        match template(&source).render(&messages, true, &Map::new()) {
            Ok(text) => assert_eq!(text, expected, "{source}"),
            // Here minijinja takes nothing for an empty list, and Python does not.
            Err(_) if source.contains(":]") || source.contains("[:") => continue,
            Err(error) => panic!("{source}: {error}"),
        }
        rendered += 1;
    }
    assert!(rendered > 2_000, "only {rendered} of the expressions are valid");
}

#[test]
fn no_source_ends_the_process() {
    const PIECES: [&str; 40] = [
        "{{",
        "}}",
        "{%",
        "%}",
        "{#",
        "#}",
        "{{-",
        "-%}",
        "set ",
        "x",
        "=",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ".",
        "|",
        "~",
        "+",
        "*",
        "'",
        "\"",
        "\\",
        " ",
        "\n",
        "1",
        "1.",
        "0x",
        "in ",
        "not ",
        "is ",
        "for ",
        "raw",
        "{% raw %}",
        "{% endraw %}",
        ":",
        "\u{e9}",
        "-",
    ];
    let mut random = Random::new(5);
    for round in 0..50_000 {
        let len = 1 + random.below(16);
        let mut source: String = (0..len).map(|_| PIECES[random.below(PIECES.len())]).collect();
        if round % 2 == 0 {
            source = format!("{{{{ {source} }}}}");
        }
        let compiled = ChatTemplate::new(&source, SpecialTokens::default());
        let _ = compiled.map(|template| template.render(&[], true, &Map::new()));
    }
}
