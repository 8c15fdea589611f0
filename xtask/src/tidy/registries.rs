//! Lock files and settings name no registry but the public ones, so that a fresh machine can build.

use super::Violation;
use super::repo::Repo;

/// Where packages may come from.
const ALLOWED: &[&str] = &["https://github.com/rust-lang/crates.io-index"];

/// Files that say where packages come from, by how their names end.
const FILES: &[&str] = &[
    ".lock",
    "-lock.json",
    "requirements.txt",
    ".cargo/config.toml",
    "pip.conf",
    ".npmrc",
    ".yarnrc",
    "deny.toml",
];

/// Settings that choose another registry, with or without an address.
const SETTINGS: &[&str] = &["replace-with", "--index-url", "--extra-index-url", "index-url"];

pub fn check(repo: &Repo) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in repo.texts().filter(|(path, _)| FILES.iter().any(|end| path.ends_with(end))) {
        for (i, line) in text.lines().enumerate() {
            let addresses: Vec<&str> = line.match_indices("://").map(|(at, _)| address(line, at)).collect();
            let foreign = addresses.iter().copied().find(|address| !ALLOWED.contains(address));
            let setting =
                SETTINGS.iter().copied().find(|setting| line.contains(setting) && addresses.is_empty());
            if let Some(what) = foreign.or(setting) {
                let advice = format!(
                    "{what} is only known here: resolve against the public registry and write no address"
                );
                violations.push(Violation::new(path, i + 1, advice));
            }
        }
    }
    violations
}

/// The address around its `://`.
fn address(line: &str, at: usize) -> &str {
    let start = line[..at].rfind(|c: char| !c.is_ascii_alphanumeric()).map_or(0, |i| i + 1);
    let end = line[at..].find(['"', '\'', ' ', '#', ',', '?']).map_or(line.len(), |i| at + i);
    &line[start..end]
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::check;

    #[test]
    fn other_registries_are_found() {
        let bad = "source = \"registry+https://mirror.example/index\"";
        assert_eq!(places(check, &[("Cargo.lock", bad)]), ["Cargo.lock:1"]);
        assert_eq!(places(check, &[("tools/golden/requirements.txt", "a==1\n--index-url x")]).len(), 1);
        assert_eq!(
            places(check, &[(".cargo/config.toml", "[source.crates-io]\nreplace-with = \"m\"")]).len(),
            1
        );
        assert_eq!(places(check, &[("tools/uv.lock", "url = \"http://10.0.0.1:8000/a.whl\"")]).len(), 1);
    }

    #[test]
    fn the_standard_one_is_fine() {
        let good = "source = \"registry+https://github.com/rust-lang/crates.io-index\"";
        assert!(places(check, &[("Cargo.lock", good), ("README.md", "https://mirror.example")]).is_empty());
    }
}
