//! Links between our pages lead somewhere.

use super::Violation;
use super::repo::Repo;

pub fn check(repo: &Repo) -> Vec<Violation> {
    let mut violations = Vec::new();
    for (path, text) in repo.texts().filter(|(path, _)| path.ends_with(".md")) {
        for (line, target) in targets(text) {
            if let Some(problem) = problem(repo, path, &target) {
                violations.push(Violation::new(path, line, format!("the link to {target} {problem}")));
            }
        }
    }
    violations
}

/// `(line, target)` of each `[text](target)` and `[name]: target`, outside code.
fn targets(markdown: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in prose(markdown) {
        for (i, _) in line.match_indices("](") {
            let rest = &line[i + 2..];
            if let Some(end) = rest.find([')', ' ']) {
                found.push((number, rest[..end].trim_matches(['<', '>']).to_string()));
            }
        }
        if let Some((name, target)) = line.split_once("]: ")
            && name.starts_with('[')
        {
            found.push((number, target.trim().to_string()));
        }
    }
    found
}

/// The numbered lines outside fenced code, without their inline code.
fn prose(markdown: &str) -> Vec<(usize, String)> {
    let mut in_code = false;
    let mut lines = Vec::new();
    for (i, line) in markdown.lines().enumerate() {
        let is_fence = line.trim_start().starts_with("```");
        in_code ^= is_fence;
        if !in_code && !is_fence {
            // Every second piece between backticks is code.
            lines.push((i + 1, line.split('`').step_by(2).collect()));
        }
    }
    lines
}

fn problem(repo: &Repo, page: &str, target: &str) -> Option<String> {
    if target.contains("://") || target.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
    let path = if file.is_empty() { Some(page.to_string()) } else { resolve(page, file) };
    let Some(path) = path.filter(|path| repo.has_path(path)) else {
        return Some("leads nowhere: correct it, or add the file".into());
    };
    let text = repo.text(&path).filter(|_| path.ends_with(".md") && !anchor.is_empty())?;
    let anchors: Vec<String> = text.lines().filter(|l| l.starts_with('#')).map(slug).collect();
    (!anchors.iter().any(|a| a == anchor)).then(|| format!("names no heading of {path}"))
}

/// The path from the root that `target` means on `page`; none if it leaves the repository.
fn resolve(page: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    if target.starts_with('/') {
        parts.clear();
    }
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts.pop()?;
            }
            name => parts.push(name),
        }
    }
    Some(parts.join("/"))
}

/// A heading's anchor, as GitHub makes it.
fn slug(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::places;
    use super::check;

    #[test]
    fn links_that_lead_nowhere_are_found() {
        let page =
            "[a](b.md)\n[a](../../x)\n[a](d.md#no-such)\n[a]: gone.md\n[a](/gone/b.md \"t\")\n[a](#gone)";
        let files = [("docs/c.md", page), ("docs/d.md", "# Yes: it's here")];
        let lines: Vec<_> = (1..=6).map(|line| format!("docs/c.md:{line}")).collect();
        assert_eq!(places(check, &files), lines);
    }

    #[test]
    fn links_that_lead_somewhere_are_fine() {
        let page = "[a](d.md) [b](../README.md) [c](d.md#yes-its-here)\n[d](https://example.org/x) [e](/docs) `[f](g)`\n```\n[h](i)\n```\n[j](../docs/)";
        assert!(
            places(check, &[("docs/c.md", page), ("docs/d.md", "# Yes: it's here"), ("README.md", "")])
                .is_empty()
        );
    }
}
