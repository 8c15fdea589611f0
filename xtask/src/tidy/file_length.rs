//! A long file is two ideas in one place.

use super::Violation;
use super::repo::Repo;

const MAX_LINES: usize = 500;

/// Files that may be longer, up to so many lines, and why.
const ALLOWED: &[(&str, usize, &str)] = &[];

pub fn check(repo: &Repo) -> Vec<Violation> {
    check_with(repo, ALLOWED)
}

fn check_with(repo: &Repo, allowed: &[(&str, usize, &str)]) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in repo.texts().filter(|(path, _)| path.ends_with(".rs")) {
        let max = allowed.iter().find(|(file, ..)| *file == path).map_or(MAX_LINES, |(_, lines, _)| *lines);
        let lines = text.lines().count();
        if lines > max {
            let advice = format!("{lines} lines, {max} are allowed: split it where its second idea begins");
            violations.push(Violation::new(path, max + 1, advice));
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::*;

    #[test]
    fn a_file_of_more_than_500_lines_is_found() {
        assert_eq!(places(check, &[("crates/a/src/b.rs", &"\n".repeat(501))]), ["crates/a/src/b.rs:501"]);
        assert!(
            places(check, &[("crates/a/src/b.rs", &"\n".repeat(500)), ("a.md", &"\n".repeat(501))])
                .is_empty()
        );
    }

    #[test]
    fn an_exception_has_a_limit_too() {
        let long = "\n".repeat(601);
        let repo = Repo::of(&[("a.rs", &long)]);
        assert!(check_with(&repo, &[("a.rs", 700, "a table")]).is_empty());
        assert_eq!(check_with(&repo, &[("a.rs", 600, "a table")]).len(), 1);
    }
}
