//! Models by name: a directory, or an id of the Hugging Face hub, downloaded into the cache that its other
//! tools use.
//!
//! What is complete in the cache is not fetched again, and works without a network. A download that breaks off
//! is taken up where it stopped, now or the next time.

mod cache;
mod download;
mod name;
mod progress;
mod settings;
mod transfer;

use std::path::PathBuf;

use crate::CheckpointError;
use name::ModelName;

pub use progress::{Progress, Silent};
pub use settings::HubConfig;

/// The directory of a model: `model` itself where it is one, else the cached or downloaded snapshot of the hub's
/// `org/name` or `org/name@revision`. A path to a `*.json` (a config without weights) is returned as it is.
///
/// # Errors
/// If a path isn't there, the hub has no such model or refuses it, or the network fails.
pub fn resolve(
    model: &str,
    config: &HubConfig,
    progress: &mut dyn Progress,
) -> Result<PathBuf, CheckpointError> {
    resolve_parts(model, config, Parts::All, progress)
}

/// As [`resolve`], but without the weights: enough to plan, or for seeded weights.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_without_weights(
    model: &str,
    config: &HubConfig,
    progress: &mut dyn Progress,
) -> Result<PathBuf, CheckpointError> {
    resolve_parts(model, config, Parts::WithoutWeights, progress)
}

/// What of a model is wanted.
#[derive(Clone, Copy, PartialEq)]
enum Parts {
    All,
    WithoutWeights,
}

fn resolve_parts(
    model: &str,
    config: &HubConfig,
    parts: Parts,
    progress: &mut dyn Progress,
) -> Result<PathBuf, CheckpointError> {
    let repo = match ModelName::parse(model)? {
        ModelName::Path(path) => return Ok(path),
        ModelName::Hub(repo) => repo,
    };
    if config.offline {
        return cache::find(config, &repo, parts).map_err(|reason| CheckpointError::HubOffline {
            model: repo.id,
            cache: config.cache.clone(),
            reason,
        });
    }
    let hub = download::Hub::new(config, &repo)?;
    match hub.listing() {
        Ok(listing) => hub.fetch(&listing, parts, progress),
        // The hub can't be reached: what is cached may still do.
        Err(error) if !error.is_usage() => cache::find(config, &repo, parts).map_err(|_| error),
        Err(error) => Err(error),
    }
}
