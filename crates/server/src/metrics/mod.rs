//! What `/metrics` tells, as OpenMetrics text. Names are vLLM's, under `anysplit:`.

mod load;
mod ranks;
mod requests;

use std::borrow::Cow;
use std::sync::Arc;

use engine::serving::{EngineInfo, LoadReport};
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;

pub use ranks::RankState;
pub use requests::RequestMetrics;

/// What is told of the worker when somebody asks.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Once it is loaded.
    pub info: Option<Arc<EngineInfo>>,
    /// The latest.
    pub load: LoadReport,
    /// Requests that have been sent and not started yet.
    pub queued: usize,
    /// The latest of each rank.
    pub ranks: Vec<RankState>,
}

/// The text of all metrics.
pub fn text(model: &str, requests: &RequestMetrics, snapshot: Snapshot) -> String {
    let label = (Cow::Borrowed("model_name"), Cow::Owned(model.to_owned()));
    let mut registry = Registry::with_labels([label].into_iter());
    requests.register(&mut registry);
    registry.register_collector(Box::new(snapshot));
    let mut text = String::new();
    // A text takes whatever is written to it.
    encode(&mut text, &registry).expect("metrics are text");
    text
}
