//! The scheduler is a function: no clock, no I/O, no threads, no randomness.

use super::Violation;
use super::manifest::entries;
use super::repo::Repo;
use super::rust_source::has_word;

const SOURCES: &str = "crates/scheduler/src/";
const MANIFEST: &str = "crates/scheduler/Cargo.toml";

/// Words that its code does not have, and what they would bring in.
const FORBIDDEN: &[(&str, &str)] = &[
    ("time", "a clock"),
    ("Instant", "a clock"),
    ("SystemTime", "a clock"),
    ("fs", "I/O"),
    ("io", "I/O"),
    ("net", "I/O"),
    ("env", "I/O"),
    ("process", "I/O"),
    ("println", "I/O"),
    ("eprintln", "I/O"),
    ("thread", "threads"),
    ("sync", "threads"),
    ("spawn", "threads"),
    ("async", "threads"),
    ("rand", "randomness"),
    ("random", "randomness"),
    ("HashMap", "randomness (an order that differs from run to run; a BTreeMap has none)"),
    ("HashSet", "randomness (an order that differs from run to run; a BTreeSet has none)"),
];

/// Dependencies that bring in nothing.
const DEPENDENCIES: &[&str] = &["thiserror"];

pub fn check(repo: &Repo) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, number, line) in
        repo.rust_lines().filter(|(path, _, l)| path.starts_with(SOURCES) && !l.is_test)
    {
        for (word, what) in FORBIDDEN.iter().filter(|(word, _)| has_word(&line.code, word)) {
            let advice = format!("`{word}` is {what}: let the engine do it and pass in the result");
            violations.push(Violation::new(path, number, advice));
        }
    }
    for entry in repo.text(MANIFEST).map(entries).unwrap_or_default() {
        let Some(name) = entry.dependency().filter(|name| !DEPENDENCIES.contains(name)) else { continue };
        if !entry.table.contains("dev-dependencies") {
            let advice =
                format!("the scheduler does without {name}: it depends on {} only", DEPENDENCIES.join(", "));
            violations.push(Violation::new(MANIFEST, entry.line, advice));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::check;

    #[test]
    fn clocks_io_threads_and_randomness_are_found() {
        let path = "crates/scheduler/src/a.rs";
        for bad in [
            "use std::time::Duration;",
            "use std::{fs, mem};",
            "std::net::TcpStream",
            "std::thread::spawn(f)",
            "rand::rng()",
            "HashMap::new()",
        ] {
            assert!(!places(check, &[(path, bad)]).is_empty(), "{bad}");
        }
        let bad = "[package]\nname = \"scheduler\"\n[dependencies]\nrand.workspace = true";
        assert_eq!(places(check, &[("crates/scheduler/Cargo.toml", bad)]), ["crates/scheduler/Cargo.toml:4"]);
    }

    #[test]
    fn other_crates_tests_and_comments_may() {
        for path in ["crates/engine/src/a.rs", "crates/scheduler/tests/a.rs"] {
            assert!(places(check, &[(path, "use std::time::Instant;")]).is_empty(), "{path}");
        }
        let good = "// takes time\nfn timeline() {}";
        assert!(places(check, &[("crates/scheduler/src/a.rs", good)]).is_empty());
    }
}
