//! No path of somebody's machine in the repository.

use super::Violation;
use super::repo::Repo;

/// Starts of such paths, in two halves so that this file does not have them. A name must follow.
const STARTS: &[&str] =
    &[concat!("/ho", "me/"), concat!("/ro", "ot/"), concat!("/Us", "ers/"), concat!("\\Us", "ers\\")];

pub fn check(repo: &Repo) -> Vec<Violation> {
    let lines = repo
        .texts()
        .flat_map(|(path, text)| text.lines().enumerate().map(move |(i, line)| (path, i + 1, line)));
    let bad = lines.filter(|(_, _, line)| STARTS.iter().any(|start| has_path(line, start)));
    bad.map(|(path, number, _)| {
        Violation::new(path, number, "a path of one machine: make it relative, or an option")
    })
    .collect()
}

/// Whether `start` begins a path here: nothing of a path before it, a name behind it.
fn has_path(line: &str, start: &str) -> bool {
    line.match_indices(start).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + start.len()..].chars().next();
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '.');
        !before.is_some_and(|c| c.is_alphanumeric() && !start.starts_with('\\')) && after.is_some_and(is_name)
    })
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::{STARTS, check};

    #[test]
    fn paths_of_machines_are_found_in_any_file() {
        for start in STARTS {
            let bad = format!("first\nrun {start}jane/model");
            assert_eq!(places(check, &[("docs/a.md", &bad)]), ["docs/a.md:2"], "{start}");
            assert_eq!(places(check, &[(".ci/run", &bad)]).len(), 1);
        }
    }

    #[test]
    fn other_paths_are_fine() {
        let good = format!("a/b, https://example.org{}x, {} alone", STARTS[0], STARTS[1]);
        assert!(places(check, &[("docs/a.md", &good)]).is_empty());
    }
}
