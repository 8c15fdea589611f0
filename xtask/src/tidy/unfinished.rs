//! Nothing half done is left behind.

use super::Violation;
use super::repo::Repo;

/// What code does not have, and what to do instead.
const IN_CODE: &[(&str, &str)] = &[
    ("todo!", "finish it, or return an error that says what is missing"),
    ("unimplemented!", "finish it, or return an error that says what is missing"),
    ("dbg!", "take it out"),
    ("#[ignore", "a test runs; what needs a device probes for one and says that it was skipped"),
];
/// What comments do not have.
const IN_COMMENTS: &[(&str, &str)] = &[("FIXME", "fix it, or open an issue and say what holds today")];

pub fn check(repo: &Repo) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, number, line) in repo.rust_lines() {
        for (rules, text) in [(IN_CODE, &line.code), (IN_COMMENTS, &line.comment)] {
            for (word, instead) in rules.iter().filter(|(word, _)| text.contains(word)) {
                violations.push(Violation::new(path, number, format!("no `{word}`: {instead}")));
            }
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::check;

    #[test]
    fn what_is_half_done_is_found() {
        let bad = "todo!()\nunimplemented!(\"x\")\ndbg!(x)\n#[ignore]\n#[ignore = \"slow\"]\n// FIXME later\n/* FIXME */";
        assert_eq!(places(check, &[("crates/a/tests/b.rs", bad)]).len(), 7);
    }

    #[test]
    fn talking_about_it_is_allowed() {
        assert!(
            places(check, &[("crates/a/src/b.rs", "// no todo!\n\"dbg! FIXME\"; fn ignore() {}")]).is_empty()
        );
    }
}
