//! The files that the rules look at.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use super::rust_source::{Line, scan};

/// Folders that hold no sources, where git is not there to say so.
const NOT_OURS: &[&str] = &["target", ".git", ".venv", "__pycache__"];

/// The text files of a repository, by their paths from its root.
pub struct Repo {
    texts: BTreeMap<String, String>,
    rust: BTreeMap<String, Vec<Line>>,
    /// Everything that a link may point to, texts or not.
    paths: Vec<String>,
}

impl Repo {
    /// The files that git tracks or would track; in a folder without git, all files.
    pub fn read(root: &Path) -> Result<Self, String> {
        let mut paths = match git_files(root) {
            Some(paths) => paths,
            None => walk(root, "")?,
        };
        paths.retain(|path| root.join(path).is_file());
        // What is not UTF-8 is no text.
        let texts =
            paths.iter().filter_map(|p| Some((p.clone(), fs::read_to_string(root.join(p)).ok()?))).collect();
        Ok(Self::new(texts, paths))
    }

    #[cfg(test)]
    pub fn of(files: &[(&str, &str)]) -> Self {
        let texts: BTreeMap<_, _> =
            files.iter().map(|&(path, text)| (path.to_string(), text.to_string())).collect();
        let paths = texts.keys().cloned().collect();
        Self::new(texts, paths)
    }

    fn new(texts: BTreeMap<String, String>, paths: Vec<String>) -> Self {
        let is_rust = |path: &&String| path.ends_with(".rs");
        let rust =
            texts.keys().filter(is_rust).map(|path| (path.clone(), scan(path, &texts[path]))).collect();
        Repo { texts, rust, paths }
    }

    pub fn num_files(&self) -> usize {
        self.paths.len()
    }

    /// `(path, text)` of each text file.
    pub fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    pub fn text(&self, path: &str) -> Option<&str> {
        self.texts.get(path).map(String::as_str)
    }

    /// `(path, number from 1, line)` of each line of Rust.
    pub fn rust_lines(&self) -> impl Iterator<Item = (&str, usize, &Line)> {
        self.rust
            .iter()
            .flat_map(|(path, lines)| lines.iter().enumerate().map(|(i, l)| (path.as_str(), i + 1, l)))
    }

    /// `(path, text)` of the manifests of crates; not the workspace's own.
    pub fn manifests(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts().filter(|(path, _)| path.ends_with("/Cargo.toml"))
    }

    /// Whether there is a file or folder of that path.
    pub fn has_path(&self, path: &str) -> bool {
        let inside = format!("{path}/");
        path.is_empty() || self.paths.iter().any(|p| p == path || p.starts_with(&inside))
    }
}

fn git_files(root: &Path) -> Option<Vec<String>> {
    let mut git = Command::new("git");
    git.current_dir(root).args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]);
    let output = git.output().ok().filter(|output| output.status.success())?;
    let mut paths: Vec<String> =
        String::from_utf8_lossy(&output.stdout).split('\0').map(String::from).collect();
    paths.retain(|path| !path.is_empty());
    Some(paths)
}

fn walk(root: &Path, folder: &str) -> Result<Vec<String>, String> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(root.join(folder)).map_err(|e| format!("tidy: {folder}: {e}"))? {
        let entry = entry.map_err(|e| format!("tidy: {folder}: {e}"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        match entry.file_type() {
            Ok(kind) if kind.is_dir() && !NOT_OURS.contains(&name.as_str()) => {
                paths.extend(walk(root, &path)?)
            }
            Ok(kind) if kind.is_file() => paths.push(path),
            _ => {}
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_repository_is_found_with_and_without_git() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
        let repo = Repo::read(root).expect("readable");
        assert!(repo.text("Cargo.toml").is_some() && repo.has_path("crates/scheduler"));
        let walked = walk(root, "xtask").expect("readable");
        assert!(walked.contains(&"xtask/src/tidy/repo.rs".to_string()), "{walked:?}");
    }

    #[test]
    fn folders_of_files_are_paths() {
        let repo = Repo::of(&[("a/b/c.md", "")]);
        assert!(repo.has_path("a") && repo.has_path("a/b") && repo.has_path("a/b/c.md") && repo.has_path(""));
        assert!(!repo.has_path("a/b/c") && !repo.has_path("b"));
    }
}
