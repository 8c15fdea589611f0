//! No names of architectures in control flow: what differs between them is data.

use super::Violation;
use super::repo::Repo;
use super::rust_source::has_word;

/// Words that begin so name an architecture (`qwen3`, `Llama`).
const FAMILIES: &[&str] = &["llama", "qwen", "gemma", "mixtral", "mistral"];
/// Words that do so only when they are whole, but for digits (`phi3`). They are searched in strings and in the names of
/// types, because lower-case `opt` and `phi` are good names of variables.
const SHORT_FAMILIES: &[&str] = &["phi", "opt"];

/// Names of something else.
const NO_ARCHITECTURES: &[(&str, &str)] = &[("llama3", "a kind of rope scaling in config.json")];

/// What makes a line control flow.
const WORDS: &[&str] = &["if", "match", "while", "matches"];
const OPERATORS: &[&str] = &["=>", "==", "!="];

const ALLOWED: &str = "crates/model/src/architectures";

pub fn check(repo: &Repo) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, number, line) in repo.rust_lines() {
        let decides =
            WORDS.iter().any(|w| has_word(&line.code, w)) || OPERATORS.iter().any(|o| line.code.contains(o));
        if line.is_test || !decides || path.starts_with(ALLOWED) {
            continue;
        }
        if let Some(name) = words(&line.code_and_strings).into_iter().find(|word| is_architecture(word)) {
            let advice = format!(
                "no decision by the name {}: give the architecture's data in {ALLOWED} a field that says what differs",
                name.trim_start_matches('"')
            );
            violations.push(Violation::new(path, number, advice));
        }
    }
    violations
}

/// The words of identifiers and texts: `OPTForCausalLM` is `OPT`, `For`, `Causal`, `LM`. A word in quotes keeps the
/// opening one.
fn words(line: &str) -> Vec<String> {
    let chars: Vec<char> = line.chars().collect();
    let mut words = vec![String::new()];
    for (i, &c) in chars.iter().enumerate() {
        let before = i.checked_sub(1).map(|i| chars[i]);
        let after = chars.get(i + 1);
        let starts_word = c.is_uppercase()
            && (before.is_some_and(|b| !b.is_uppercase()) || after.is_some_and(|a| a.is_lowercase()));
        if starts_word || c == '"' || !(c.is_alphanumeric() || words.last().is_some_and(|w| w == "\"")) {
            words.push(String::new());
        }
        if c.is_alphanumeric() || c == '"' {
            words.last_mut().expect("never empty").push(c);
        }
    }
    words
}

fn is_architecture(word: &str) -> bool {
    let bare = word.trim_start_matches('"').to_lowercase();
    if NO_ARCHITECTURES.iter().any(|(name, _)| *name == bare) {
        return false;
    }
    let is_name = word.starts_with(|c: char| c == '"' || c.is_uppercase());
    FAMILIES.iter().any(|family| bare.starts_with(family))
        || (is_name && SHORT_FAMILIES.contains(&bare.trim_end_matches(|c: char| c.is_ascii_digit())))
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::check;

    #[test]
    fn decisions_by_name_are_found() {
        for bad in [
            "if model_type == \"llama\" {",
            "if is_qwen3 {",
            "match x { \"GemmaForCausalLM\" => 1 }",
            "    Architecture::Mixtral => moe(),",
            "let a = name == \"opt\";",
            "    \"OPTForCausalLM\" => 1,",
            "while arch != Arch::Phi3 {",
            "matches!(arch, Arch::Mistral | Arch::Other)",
        ] {
            assert_eq!(
                places(check, &[("crates/model/src/a.rs", bad)]),
                ["crates/model/src/a.rs:1"],
                "{bad}"
            );
        }
    }

    #[test]
    fn data_comments_and_other_words_are_allowed() {
        for good in [
            "const LLAMA: Architecture = Architecture {",
            "if a { b } // as in Llama",
            "if let Some(opt) = option {",
            "match optimized { Options => phi }",
            "if text == \"options\" {",
            "match kind { \"llama3\" => scale() }",
        ] {
            assert!(places(check, &[("crates/model/src/a.rs", good)]).is_empty(), "{good}");
        }
        let bad = "if name == \"llama\" {";
        assert!(places(check, &[("crates/model/src/architectures/llama.rs", bad)]).is_empty());
        assert!(places(check, &[("crates/model/tests/a.rs", bad)]).is_empty());
    }
}
