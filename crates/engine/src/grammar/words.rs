//! What the library says of grammars that can't be used, for whoever wrote them.

use super::one_line;
use crate::Grammar;

/// Why a grammar can't be used, in a line.
pub fn refusal(grammar: &Grammar, why: &str) -> String {
    // Its words for a beginning at which no token is allowed.
    if why.contains("NoExtensionBias") {
        return "no text conforms to it; what refers to itself needs an alternative that ends".into();
    }
    match (grammar, place(why)) {
        (Grammar::Lark(_), Some((line, column, what))) => format!(
            "line {line}, column {column}: {}; a grammar is one of Lark, such as start: \"yes\" | \"no\", not GBNF or EBNF",
            one_line(what.lines().next().unwrap_or_default())
        ),
        _ => one_line(why),
    }
}

/// Line, column and what follows of `LINE(COLUMN): …`, which may stand behind `at`.
fn place(why: &str) -> Option<(&str, &str, &str)> {
    let why = why.trim_start();
    let (line, rest) = why.strip_prefix("at ").unwrap_or(why).split_once('(')?;
    let (column, what) = rest.split_once("): ")?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (is_number(line) && is_number(column)).then_some((line, column, what))
}
