//! Fetching a model's files into the cache.

use std::path::{Path, PathBuf};

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Repo, RepoType};

use super::name::RepoName;
use super::progress::{Meter, Progress};
use super::transfer::{self, Event, Failure};
use super::{HubConfig, Parts, cache};
use crate::CheckpointError;
use crate::files::{self, INDEX, SINGLE};

/// Files that come along if the model has them. Small, and before the weights.
const COMPANIONS: [&str; 4] =
    ["generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"];

/// How often to wait five seconds for another process that downloads the same file: an hour.
const LOCK_WAITS_MAX: u32 = 720;

/// One model on the hub.
pub(super) struct Hub<'a> {
    config: &'a HubConfig,
    name: &'a RepoName,
    api: Api,
}

/// A commit of a model, and its files.
pub(super) struct Listing {
    commit: String,
    files: Vec<String>,
}

impl<'a> Hub<'a> {
    pub fn new(config: &'a HubConfig, name: &'a RepoName) -> Result<Self, CheckpointError> {
        let endpoint = config.endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            return Err(CheckpointError::HubEndpoint { endpoint });
        }
        // `from_cache` and `from_env` would look for a token of their own.
        let builder = ApiBuilder::from_cache(hf_hub::Cache::new(config.cache.clone()))
            .with_endpoint(endpoint)
            .with_token(config.token.clone())
            .with_user_agent("anysplit", env!("CARGO_PKG_VERSION"))
            // Its own repetitions start again from zero, after what is already there.
            .with_retries(0)
            .with_progress(false);
        let hub = builder.build();
        let api = hub.map_err(|error| network(config, &name.id, &error.to_string()))?;
        Ok(Hub { config, name, api })
    }

    /// Asks for the revision's commit and files.
    pub fn listing(&self) -> Result<Listing, CheckpointError> {
        let mut failures = 0;
        let info = loop {
            let repo = self.api.repo(self.repo_at(&self.name.revision));
            match transfer::request(self.config.stall, move || repo.info()) {
                Ok(info) => break info,
                Err(Failure::Status(429 | 500..) | Failure::Broken(_))
                    if failures < self.config.retries.min(2) =>
                {
                    self.pause(failures);
                    failures += 1;
                }
                Err(failure) => return Err(self.error("the model's list of files", failure)),
            }
        };
        let is_commit = !info.sha.is_empty() && info.sha.chars().all(|c| c.is_ascii_alphanumeric());
        if !is_commit {
            return Err(network(self.config, &self.name.id, "the answer names no commit"));
        }
        let files = info.siblings.into_iter().map(|file| file.rfilename).collect();
        Ok(Listing { commit: info.sha, files })
    }

    /// Fetches what the cache lacks, and returns the snapshot's directory.
    pub fn fetch(
        &self,
        listing: &Listing,
        parts: Parts,
        progress: &mut dyn Progress,
    ) -> Result<PathBuf, CheckpointError> {
        let has = |file: &str| listing.files.iter().any(|other| other == file);
        let unusable = |reason: String| CheckpointError::HubUnusable { model: self.name.id.clone(), reason };
        if !has("config.json") {
            return Err(unusable("it has no config.json".to_owned()));
        }
        // What can't be used is refused before anything is fetched.
        let weights = match parts {
            Parts::WithoutWeights => None,
            Parts::All if has(SINGLE) => Some(SINGLE.to_owned()),
            Parts::All if has(INDEX) => Some(INDEX.to_owned()),
            Parts::All => {
                let top = listing.files.iter().filter(|file| !file.contains('/')).cloned();
                Some(files::sole(top.collect()).map_err(unusable)?)
            }
        };
        let snapshot = cache::repo(self.config, self.name).pointer_path(&listing.commit);
        let companions = COMPANIONS.into_iter().filter(|file| has(file));
        for file in ["config.json"].into_iter().chain(companions).chain(weights.as_deref()) {
            self.file(file, listing, &snapshot, progress)?;
        }
        if weights.as_deref() == Some(INDEX) {
            self.shards(listing, &snapshot, progress)?;
        }
        // The revision is this commit from now on, and not before all of it is there.
        let done = cache::repo(self.config, self.name).create_ref(&listing.commit);
        done.map_err(|source| self.error("", Failure::Cache(source)))?;
        Ok(snapshot)
    }

    fn shards(
        &self,
        listing: &Listing,
        snapshot: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), CheckpointError> {
        let mut shards: Vec<String> = files::read_index(&snapshot.join(INDEX))?.into_values().collect();
        shards.sort();
        shards.dedup();
        let missing: Vec<&String> = shards.iter().filter(|shard| !listing.files.contains(shard)).collect();
        if let Some(first) = missing.first() {
            let (index, shard) = (format!("{}/{INDEX}", self.name.id), (*first).clone());
            return Err(CheckpointError::MissingShard {
                index,
                shard,
                missing: missing.len(),
                shards: shards.len(),
            });
        }
        shards.iter().try_for_each(|shard| self.file(shard, listing, snapshot, progress))
    }

    /// Fetches one file, unless the snapshot has it. An attempt that breaks off is followed by one that asks for
    /// the rest, until `retries` attempts in a row have brought nothing.
    fn file(
        &self,
        file: &str,
        listing: &Listing,
        snapshot: &Path,
        progress: &mut dyn Progress,
    ) -> Result<(), CheckpointError> {
        let target = snapshot.join(file);
        let mut meter = Meter::new(file, progress);
        let (mut failures, mut waits) = (0, 0);
        // Looked for before every attempt: another process may have fetched it meanwhile.
        while !target.exists() {
            let before = meter.done;
            let failure = match self.attempt(file, listing, &mut meter) {
                Ok(()) if target.exists() => break,
                Ok(()) => Failure::Broken("the hub answers with another commit than it listed".to_owned()),
                Err(failure) => failure,
            };
            match failure {
                Failure::Locked if waits < LOCK_WAITS_MAX => waits += 1,
                Failure::Broken(_) | Failure::Overlong | Failure::Status(416 | 429 | 500..)
                    if meter.done > before || failures < self.config.retries =>
                {
                    failures = if meter.done > before { 0 } else { failures + 1 };
                    if matches!(failure, Failure::Overlong | Failure::Status(416)) {
                        self.forget_part(file, listing);
                    }
                    self.pause(failures);
                }
                failure => return Err(self.error(file, failure)),
            }
        }
        meter.finish();
        Ok(())
    }

    /// Downloads one file, or the rest of it, and checks its length, which hf-hub doesn't.
    fn attempt(&self, file: &str, listing: &Listing, meter: &mut Meter<'_>) -> Result<(), Failure> {
        let repo = self.api.repo(self.repo_at(&listing.commit));
        let tell = |event| match event {
            Event::Begin(size) => meter.begin(size),
            Event::Advance(bytes) => meter.advance(bytes),
        };
        let name = file.to_owned();
        let pointer = transfer::download(self.config.stall, tell, move |relay| {
            repo.download_with_progress(&name, relay)
        })?;
        let found = std::fs::metadata(&pointer).map_err(Failure::Cache)?.len();
        if found != meter.size {
            // A server that answers a request for the rest with the whole leaves such a file.
            if let Ok(blob) = pointer.canonicalize() {
                let _ = std::fs::remove_file(blob);
            }
            let _ = std::fs::remove_file(&pointer);
            return Err(Failure::Broken(format!("{found} bytes came, {} were announced", meter.size)));
        }
        Ok(())
    }

    /// Removes a partial file that can't be continued.
    fn forget_part(&self, file: &str, listing: &Listing) {
        let url = self.api.repo(self.repo_at(&listing.commit)).url(file);
        let api = self.api.clone();
        if let Ok(metadata) = transfer::request(self.config.stall, move || api.metadata(&url)) {
            let blob = cache::repo(self.config, self.name).blob_path(metadata.etag());
            let _ = std::fs::remove_file(blob.with_extension("part"));
        }
    }

    fn repo_at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.name.id.clone(), RepoType::Model, revision.to_owned())
    }

    fn pause(&self, failures: u32) {
        std::thread::sleep(self.config.retry_pause * (1 << failures.min(4)));
    }

    fn error(&self, what: &str, failure: Failure) -> CheckpointError {
        let (endpoint, model) = (self.config.endpoint.clone(), self.name.id.clone());
        let reason = match failure {
            Failure::Status(status @ (401 | 403)) => {
                let with_token = self.config.token.is_some();
                return CheckpointError::HubAccess { endpoint, model, status, with_token };
            }
            Failure::Status(404) => {
                return CheckpointError::HubNoModel { endpoint, model, revision: self.name.revision.clone() };
            }
            Failure::Cache(source) => {
                return CheckpointError::HubCache { cache: self.config.cache.clone(), source };
            }
            Failure::Status(status) => format!("HTTP {status}"),
            Failure::Broken(reason) => reason,
            Failure::Stalled(stall) => format!("nothing came for {} s; run again to go on", stall.as_secs()),
            Failure::Locked => "another process has been downloading it for an hour".to_owned(),
            Failure::Overlong => "the partial file in the cache is longer than the file".to_owned(),
        };
        network(self.config, &format!("{model} ({what})"), &reason)
    }
}

fn network(config: &HubConfig, what: &str, reason: &str) -> CheckpointError {
    let reason = reason.lines().collect::<Vec<_>>().join(" ");
    CheckpointError::HubNetwork { endpoint: config.endpoint.clone(), what: what.to_owned(), reason }
}
