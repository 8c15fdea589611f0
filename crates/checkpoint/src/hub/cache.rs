//! What the cache already holds: `models--org--name/{blobs,refs,snapshots}`, as huggingface_hub lays it out.

use std::path::{Path, PathBuf};

use hf_hub::{Cache, CacheRepo, Repo, RepoType};

use super::name::RepoName;
use super::{HubConfig, Parts};
use crate::files::{self, INDEX, SINGLE};

/// The cached directories of a model.
pub(super) fn repo(config: &HubConfig, name: &RepoName) -> CacheRepo {
    let repo = Repo::with_revision(name.id.clone(), RepoType::Model, name.revision.clone());
    Cache::new(config.cache.clone()).repo(repo)
}

/// The snapshot of a model, if it is complete; else what is missing.
pub(super) fn find(config: &HubConfig, name: &RepoName, parts: Parts) -> Result<PathBuf, String> {
    let repo = repo(config, name);
    // `get` goes by way of refs/; a commit is a snapshot's own name.
    let commit = repo.pointer_path(&name.revision);
    let by_ref = || repo.get("config.json").and_then(|file| file.parent().map(Path::to_owned));
    let snapshot = Some(commit).filter(|dir| dir.is_dir()).or_else(by_ref);
    let snapshot = snapshot.ok_or_else(|| format!("nothing of revision {} is there", name.revision))?;
    complete(&snapshot, parts).map(|()| snapshot)
}

/// Whether a snapshot has all of a model's files; else the name of one that is missing.
pub(super) fn complete(snapshot: &Path, parts: Parts) -> Result<(), String> {
    let has = |file: &str| snapshot.join(file).exists();
    if !has("config.json") {
        return Err("config.json is missing".to_owned());
    }
    if parts == Parts::WithoutWeights || has(SINGLE) {
        return Ok(());
    }
    if has(INDEX) {
        let shards = files::read_index(&snapshot.join(INDEX)).map_err(|error| error.to_string())?;
        return match shards.values().find(|shard| !has(shard)) {
            Some(shard) => Err(format!("{shard} is missing")),
            None => Ok(()),
        };
    }
    let listing = std::fs::read_dir(snapshot).map_err(|error| error.to_string())?;
    let names = listing.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    files::sole(names.collect()).map(|_| ())
}
