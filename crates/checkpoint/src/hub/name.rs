use std::path::{Path, PathBuf};

use super::settings::expand;
use crate::CheckpointError;

/// What `--model` names.
pub(super) enum ModelName {
    /// A directory, or a config's JSON file.
    Path(PathBuf),
    /// A model of the hub.
    Hub(RepoName),
}

/// `id@revision`.
pub(super) struct RepoName {
    /// `org/name`, or `name`.
    pub id: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl ModelName {
    /// Reads a name: what exists as a path is one, and so is what looks like one.
    pub fn parse(model: &str) -> Result<Self, CheckpointError> {
        let bad = |reason: &str| {
            Err(CheckpointError::ModelName { model: model.to_owned(), reason: reason.to_owned() })
        };
        if model.is_empty() {
            return bad("the name is empty");
        }
        let path = expand(model, &std::env::home_dir().unwrap_or_default());
        if path.exists() || looks_like_path(model) {
            return existing(path).map(ModelName::Path);
        }
        let (id, revision) = model.split_once('@').unwrap_or((model, "main"));
        if !id.split('/').all(is_id_part) || id.len() > 96 {
            return bad("neither an existing directory nor an id of the hub");
        }
        if !is_revision(revision) {
            return bad("the revision after @ is not a branch, tag or commit");
        }
        Ok(ModelName::Hub(RepoName { id: id.to_owned(), revision: revision.to_owned() }))
    }
}

/// Whether a name that isn't there is meant as a path: `./x`, `/x`, `~/x`, `x/`, `a/b/c`.
fn looks_like_path(model: &str) -> bool {
    let id = model.split_once('@').map_or(model, |(id, _)| id);
    model.starts_with(['.', '/', '~'])
        || model.ends_with('/')
        || model.contains('\\')
        || id.matches('/').count() > 1
}

fn existing(path: PathBuf) -> Result<PathBuf, CheckpointError> {
    let hint = if path.is_dir() || is_json(&path) && path.is_file() {
        return Ok(path);
    } else if path.extension().is_some_and(|extension| extension == "gguf") && path.exists() {
        "it is a GGUF file, and GGUF is not read; give a directory that holds config.json and *.safetensors"
    } else if path.exists() {
        "it is a file; give the directory that holds config.json and the *.safetensors"
    } else {
        "it does not exist (a hub id is org/name, without further slashes)"
    };
    Err(CheckpointError::NoDirectory { path, hint: hint.to_owned() })
}

fn is_json(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "json")
}

/// The hub's own rule for names: letters, digits, `-`, `_`, `.`, not at the ends, and never `..` or `--`.
fn is_id_part(part: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    !part.is_empty()
        && part.chars().all(inner)
        && !part.starts_with(['-', '.'])
        && !part.ends_with(['-', '.'])
        && !part.contains("..")
        && !part.contains("--")
}

/// A name that is safe in a URL and as a path below `refs/`.
fn is_revision(revision: &str) -> bool {
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    revision.split('/').all(|part| !part.is_empty() && part != "." && part != ".." && part.chars().all(inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(model: &str) -> String {
        match ModelName::parse(model) {
            Ok(ModelName::Hub(repo)) => format!("hub {} at {}", repo.id, repo.revision),
            Ok(ModelName::Path(path)) => format!("path {}", path.display()),
            Err(error) => {
                assert!(error.is_usage());
                error.to_string()
            }
        }
    }

    #[test]
    fn ids_and_revisions_are_read() {
        assert_eq!(parsed("Qwen/Qwen3-0.6B"), "hub Qwen/Qwen3-0.6B at main");
        assert_eq!(parsed("gpt2@refs/pr/7"), "hub gpt2 at refs/pr/7");
    }

    #[test]
    fn what_looks_like_a_path_is_never_fetched() {
        for path in ["./qwen", "/no/where", "~/no/where", "models/qwen/7b", "qwen/", "../x", "a\\b"] {
            assert!(parsed(path).contains("it does not exist"), "{path}: {}", parsed(path));
        }
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().to_str().unwrap();
        assert_eq!(parsed(name), format!("path {name}"));
        std::fs::write(dir.path().join("model.gguf"), "").unwrap();
        assert!(parsed(&format!("{name}/model.gguf")).contains("GGUF is not read; give a directory"));
        std::fs::write(dir.path().join("model.safetensors"), "").unwrap();
        assert!(parsed(&format!("{name}/model.safetensors")).contains("it is a file"));
    }

    #[test]
    fn what_is_neither_says_what_would_do() {
        for model in
            ["", "a b", "org/na?me", "org/..", "-x", "org/name@", "org/name@../..", "org/name@a//b", "é/x"]
        {
            let line = parsed(model);
            assert!(line.contains("give a directory (./dir) or a hub id (org/name"), "{model}: {line}");
        }
    }
}
