//! As much TOML as a manifest needs: the keys of its tables.

/// One key of a table.
#[derive(Debug, PartialEq, Eq)]
pub struct Entry {
    /// The table's header: `dependencies`, `target.'cfg(unix)'.dependencies`, `workspace.dependencies`, ….
    pub table: String,
    /// Up to the first `.` or `=`.
    pub key: String,
    /// What follows the `=`, without its comment. Over several lines while brackets are open.
    pub value: String,
    /// All comments on its lines, or the one on the line above.
    pub comment: String,
    /// From 1.
    pub line: usize,
}

impl Entry {
    /// The crate that this entry makes a dependency, if it does.
    pub fn dependency(&self) -> Option<&str> {
        let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
        // `[dependencies.name]` is a table of its own.
        let (parent, name) = self.table.rsplit_once('.').unwrap_or(("", &self.table));
        let is_kind = |table: &str| kinds.contains(&table.rsplit('.').next().unwrap_or(table));
        if self.table.starts_with("workspace.") {
            None
        } else if is_kind(&self.table) {
            Some(&self.key)
        } else {
            is_kind(parent).then_some(name)
        }
    }
}

/// The entries of a manifest, in their order.
pub fn entries(manifest: &str) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let (mut table, mut above, mut open) = (String::new(), String::new(), 0i32);
    for (i, line) in manifest.lines().enumerate() {
        let (code, comment) = split_comment(line);
        let code = code.trim();
        if open > 0 {
            let entry = entries.last_mut().expect("brackets are open in an entry");
            entry.value.push_str(code);
            entry.comment.push_str(comment);
            open += brackets(code);
        } else if let Some(header) = code.strip_prefix('[') {
            table = header.trim_end_matches(']').trim_start_matches('[').into();
        } else if let Some((key, value)) = code.split_once('=') {
            let comment = if comment.is_empty() { &above } else { comment };
            entries.push(Entry {
                table: table.clone(),
                key: key.split('.').next().unwrap_or(key).trim().trim_matches('"').into(),
                // `name.workspace = true` reads as `workspace = true`.
                value: format!(
                    "{}={}",
                    key.split_once('.').map_or("", |(_, rest)| rest.trim()),
                    value.trim()
                ),
                comment: comment.into(),
                line: i + 1,
            });
            open = brackets(value);
        }
        above = if code.is_empty() { comment.into() } else { String::new() };
    }
    entries
}

/// The line before its comment, and the comment's text.
fn split_comment(line: &str) -> (&str, &str) {
    let mut quoted = false;
    for (i, c) in line.char_indices() {
        match c {
            '"' => quoted = !quoted,
            '#' if !quoted => return (&line[..i], line[i + 1..].trim()),
            _ => {}
        }
    }
    (line, "")
}

fn brackets(code: &str) -> i32 {
    let count = |of: [char; 2]| code.matches(of).count() as i32;
    count(['[', '{']) - count([']', '}'])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_values_and_comments_are_found() {
        let found = entries(
            "[workspace.dependencies]\n# why a\na = \"1\"\nb = { version = \"#2\", features = [\n  \"x\", # why b\n] }\nc = \"3\"\n",
        );
        let short: Vec<_> = found.iter().map(|e| (e.key.as_str(), e.comment.as_str(), e.line)).collect();
        assert_eq!(short, [("a", "why a", 3), ("b", "why b", 4), ("c", "", 7)]);
        assert!(found[1].value.contains("#2") && found[1].value.ends_with("] }"));
    }

    #[test]
    fn dependencies_of_every_kind_are_found() {
        let source = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true\n[dev-dependencies]\nb = { workspace = true }\n[target.'cfg(unix)'.build-dependencies]\nc = \"1\"\n[dependencies.d]\nversion = \"1\"\n[workspace.dependencies]\ne = \"1\"";
        let found = entries(source);
        let names: Vec<_> = found.iter().filter_map(Entry::dependency).collect();
        assert_eq!(names, ["a", "b", "c", "d"]);
        assert_eq!(found[1].value, "workspace=true");
    }
}
