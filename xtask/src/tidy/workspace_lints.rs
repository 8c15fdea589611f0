//! Every crate takes the workspace's lints.

use super::Violation;
use super::manifest::entries;
use super::repo::Repo;

pub fn check(repo: &Repo) -> Vec<Violation> {
    let lacks = repo.manifests().filter(|(_, text)| {
        !entries(text).iter().any(|e| e.table == "lints" && e.key == "workspace" && e.value == "=true")
    });
    lacks.map(|(path, _)| Violation::new(path, 1, "add `[lints]` with `workspace = true`")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::check;

    #[test]
    fn a_crate_without_the_lints_is_found() {
        for bad in ["[package]\nname = \"a\"", "[lints]\nworkspace = false", "[lints.rust]\nworkspace = true"]
        {
            assert_eq!(places(check, &[("crates/a/Cargo.toml", bad)]), ["crates/a/Cargo.toml:1"], "{bad}");
        }
    }

    #[test]
    fn a_crate_with_them_is_fine() {
        assert!(places(check, &[("crates/a/Cargo.toml", "[lints]\nworkspace = true")]).is_empty());
    }
}
