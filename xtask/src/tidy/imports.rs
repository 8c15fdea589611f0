//! Which crate may import which: the arrows of ARCHITECTURE.md.

use super::Violation;
use super::manifest::{Entry, entries};
use super::repo::Repo;

/// A crate and what it may import besides `tensor`, which everyone may.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("tensor", &[]),
    ("cpu", &[]),
    ("collective", &[]),
    ("job", &["collective"]),
    ("checkpoint", &[]),
    ("cuda", &["collective"]),
    ("model", &["checkpoint", "collective"]),
    ("engine", &["scheduler", "model", "checkpoint", "collective", "job", "cpu", "cuda"]),
    ("planner", &["scheduler", "model", "checkpoint"]),
    ("server", &["engine"]),
    // cpu and cuda: what the machine can do at best, for `bench limits` and `bench comm`.
    ("cli", &["server", "planner", "engine", "model", "checkpoint", "collective", "job", "cpu", "cuda"]),
    ("scheduler", &[]),
    ("xtask", &[]),
];

/// Crates that may not even use `tensor`.
const ALONE: &[&str] = &["tensor", "scheduler", "xtask"];

pub fn check(repo: &Repo) -> Vec<Violation> {
    repo.manifests().flat_map(|(path, text)| check_manifest(path, &entries(text))).collect()
}

fn check_manifest(path: &str, entries: &[Entry]) -> Vec<Violation> {
    let Some(package) = entries.iter().find(|e| e.table == "package" && e.key == "name") else {
        return Vec::new();
    };
    let name = package.value.trim_matches(['=', '"']);
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(from, _)| *from == name) else {
        let advice = format!("say in xtask/src/tidy/imports.rs what the new crate {name} may import");
        return vec![Violation::new(path, package.line, advice)];
    };
    let is_ours = |to: &str| MAY_IMPORT.iter().any(|(ours, _)| *ours == to);
    let may = |to: &str| allowed.contains(&to) || (to == "tensor" && !ALONE.contains(&name));
    let forbidden =
        entries.iter().filter_map(|e| Some((e, e.dependency()?))).filter(|(_, to)| is_ours(to) && !may(to));
    forbidden
        .map(|(entry, to)| {
            let list = if allowed.is_empty() { "no other crate of ours".into() } else { allowed.join(", ") };
            let advice =
                format!("{name} may not import {to} (only {list}): pass in what it needs, or move the code");
            Violation::new(path, entry.line, advice)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::check;

    fn manifest(name: &str, dependencies: &str) -> String {
        format!("[package]\nname = \"{name}\"\n\n[dependencies]\n{dependencies}\n")
    }

    #[test]
    fn a_forbidden_arrow_is_found() {
        for (from, to) in
            [("model", "engine"), ("cpu", "collective"), ("scheduler", "tensor"), ("planner", "cpu")]
        {
            let bad = manifest(from, &format!("{to}.workspace = true"));
            assert_eq!(
                places(check, &[("crates/x/Cargo.toml", &bad)]),
                ["crates/x/Cargo.toml:5"],
                "{from} → {to}"
            );
        }
        let dev = "[package]\nname = \"scheduler\"\n[dev-dependencies]\nmodel = { workspace = true }";
        assert_eq!(places(check, &[("crates/x/Cargo.toml", dev)]), ["crates/x/Cargo.toml:4"]);
    }

    #[test]
    fn a_crate_that_the_table_does_not_know_is_found() {
        assert_eq!(places(check, &[("crates/x/Cargo.toml", &manifest("x", ""))]), ["crates/x/Cargo.toml:2"]);
    }

    #[test]
    fn the_arrows_of_the_design_are_allowed() {
        let good =
            manifest("model", "tensor.workspace = true\ncollective.workspace = true\nserde.workspace = true");
        assert!(places(check, &[("crates/model/Cargo.toml", &good)]).is_empty());
    }
}
