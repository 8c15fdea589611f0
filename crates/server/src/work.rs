//! Where text is worked on: tokenizing, templates and parsing take milliseconds, and threads that serve a network have none.

use std::sync::Arc;

use tokio::sync::Semaphore;

use crate::wire::errors::ApiError;

/// A bounded number of blocking threads.
#[derive(Clone)]
pub struct TextWork {
    permits: Arc<Semaphore>,
}

impl TextWork {
    /// So many at a time; more wait.
    pub fn new(threads: usize) -> Self {
        TextWork { permits: Arc::new(Semaphore::new(threads)) }
    }

    /// Runs `function` on one of them.
    ///
    /// # Errors
    /// Its own; 500 if it panics.
    pub async fn run<T: Send + 'static>(
        &self,
        function: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = self.permits.clone().acquire_owned().await;
        let permit = permit.map_err(|_| ApiError::internal("the server has ended"))?;
        let result = tokio::task::spawn_blocking(move || {
            // Held to the end, also if whoever asked is gone.
            let _permit = permit;
            function()
        });
        result.await.unwrap_or_else(|_| Err(ApiError::internal("the server failed on this request")))
    }
}
