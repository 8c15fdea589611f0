//! Every dependency stands in one place, with the reason why it is there.

use super::Violation;
use super::manifest::entries;
use super::repo::Repo;

pub fn check(repo: &Repo) -> Vec<Violation> {
    let mut violations = Vec::new();
    let workspace = repo.text("Cargo.toml").map(entries).unwrap_or_default();
    for entry in workspace.iter().filter(|e| e.table == "workspace.dependencies") {
        let is_ours = entry.value.contains("path =");
        if !is_ours && entry.comment.is_empty() {
            let advice = format!("say behind {} why it is needed: `# reason`", entry.key);
            violations.push(Violation::new("Cargo.toml", entry.line, advice));
        }
    }
    for (path, text) in repo.manifests() {
        for entry in entries(text) {
            let is_whole_table = entry.table.ends_with("dependencies");
            if is_whole_table && entry.dependency().is_some() && !entry.value.contains("workspace") {
                let advice = format!(
                    "write `{0}.workspace = true` and put {0} into [workspace.dependencies]",
                    entry.key
                );
                violations.push(Violation::new(path, entry.line, advice));
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
    fn a_dependency_without_a_reason_is_found() {
        let bad = "[workspace.dependencies]\na = { path = \"a\" }\n\nb = \"1\" # why b\nc = \"1\"\n# why d\nd = \"1\"\ne = \"1\"";
        assert_eq!(places(check, &[("Cargo.toml", bad)]), ["Cargo.toml:5", "Cargo.toml:8"]);
    }

    #[test]
    fn a_dependency_outside_the_list_is_found() {
        let bad = "[dependencies]\na.workspace = true\nb = \"1\"\nc = { workspace = true, features = [] }";
        assert_eq!(places(check, &[("crates/x/Cargo.toml", bad)]), ["crates/x/Cargo.toml:3"]);
    }
}
