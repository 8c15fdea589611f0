//! Tests do not sleep: a test that waits for a time is slow on a fast machine and fails on a slow one.

use super::Violation;
use super::repo::Repo;

/// Functions that wait for a time.
const SLEEPS: &[&str] = &["sleep", "sleep_ms", "park_timeout"];

pub fn check(repo: &Repo) -> Vec<Violation> {
    let bad = repo
        .rust_lines()
        .filter(|(_, _, line)| line.is_test && SLEEPS.iter().any(|name| uses(&line.code, name)));
    let advice = "a test does not sleep: wait for the event itself (a channel, a barrier, a line of output)";
    bad.map(|(path, number, _)| Violation::new(path, number, advice)).collect()
}

/// Whether `name` is called or imported. A method of that name is something else: a futex sleeps until it is woken.
fn uses(code: &str, name: &str) -> bool {
    code.match_indices(name).any(|(at, _)| {
        let (before, after) = (&code[..at], code[at + name.len()..].chars().next());
        let starts = !before.ends_with(|c: char| c.is_alphanumeric() || matches!(c, '_' | '.'))
            && !before.ends_with("fn ");
        starts && !after.is_some_and(|c| c.is_alphanumeric() || c == '_')
    })
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::check;

    #[test]
    fn sleeping_tests_are_found() {
        let bad = "use std::thread::sleep;\nfn a() { std::thread::sleep(x) }";
        assert_eq!(places(check, &[("crates/a/tests/b.rs", bad)]).len(), 2);
        let bad = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() { thread::sleep(x); }\n}";
        assert_eq!(places(check, &[("crates/a/src/b.rs", bad)]), ["crates/a/src/b.rs:4"]);
    }

    #[test]
    fn a_futex_may_sleep_and_so_may_what_is_no_test() {
        let futex = "fn sleep(&self) {}\nfn a() { word.sleep(1); sleepy() }";
        assert!(places(check, &[("crates/a/tests/b.rs", futex)]).is_empty());
        assert!(places(check, &[("crates/a/src/b.rs", "fn a() { thread::sleep(x) }")]).is_empty());
    }
}
