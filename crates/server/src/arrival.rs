//! When a request came. The guard takes this extension of a request into its ticket.

use std::time::{Duration, Instant};

/// When a request came, and when it must be over.
#[derive(Debug, Clone, Copy)]
pub struct Arrival {
    /// When its head was there.
    pub at: Instant,
    /// Its deadline, if it has one.
    pub until: Option<Instant>,
}

impl Arrival {
    /// That of a request that may take so long.
    pub fn now(limit: Option<Duration>) -> Self {
        let at = Instant::now();
        Arrival { at, until: limit.and_then(|limit| at.checked_add(limit)) }
    }

    /// Waits for the deadline; for ever if there is none.
    pub async fn is_over(self) {
        match self.until {
            Some(until) => tokio::time::sleep_until(until.into()).await,
            None => std::future::pending().await,
        }
    }
}
