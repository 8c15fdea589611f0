/// How much may wait.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLimits {
    /// The most requests that wait.
    pub requests: Option<usize>,
    /// The most prompt tokens of those. A single request may have more: it waits alone.
    pub tokens: Option<usize>,
}

/// Why a request may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueFull {
    /// There are enough requests.
    #[error("the queue is full: {waiting} requests wait, the limit is {limit}; try again later")]
    Requests {
        /// Those that wait.
        waiting: usize,
        /// The most that may.
        limit: usize,
    },
    /// Their prompts are long enough.
    #[error(
        "the queue is full: {waiting} prompt tokens wait, with the {prompt_tokens} of this request there would be more \
         than the limit of {limit}; try again later"
    )]
    Tokens {
        /// Those that wait.
        waiting: usize,
        /// Those of the request.
        prompt_tokens: usize,
        /// The most that may.
        limit: usize,
    },
}

impl QueueLimits {
    /// Whether a request may join those that wait.
    ///
    /// # Errors
    /// The limit that it would exceed.
    pub fn admits(
        self,
        waiting_requests: usize,
        waiting_tokens: usize,
        prompt_tokens: usize,
    ) -> Result<(), QueueFull> {
        if let Some(limit) = self.requests.filter(|&limit| waiting_requests >= limit) {
            return Err(QueueFull::Requests { waiting: waiting_requests, limit });
        }
        let tokens = waiting_tokens.saturating_add(prompt_tokens);
        if let Some(limit) = self.tokens.filter(|&limit| waiting_requests > 0 && tokens > limit) {
            return Err(QueueFull::Tokens { waiting: waiting_tokens, prompt_tokens, limit });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_says_its_limit() {
        let limits = QueueLimits { requests: Some(3), tokens: Some(100) };
        assert_eq!(limits.admits(2, 60, 40), Ok(()));
        let requests = limits.admits(3, 60, 1).expect_err("three wait");
        assert_eq!(
            requests.to_string(),
            "the queue is full: 3 requests wait, the limit is 3; try again later"
        );
        let tokens = limits.admits(2, 60, 41).expect_err("101 tokens");
        assert_eq!(
            tokens.to_string(),
            "the queue is full: 60 prompt tokens wait, with the 41 of this request there would be more than the limit \
             of 100; try again later"
        );
    }

    #[test]
    fn a_request_beyond_the_limit_of_tokens_waits_alone() {
        let limits = QueueLimits { requests: None, tokens: Some(100) };
        assert_eq!(limits.admits(0, 0, 5000), Ok(()));
        assert!(limits.admits(1, 1, usize::MAX).is_err());
        assert_eq!(QueueLimits::default().admits(1_000_000, usize::MAX, 1), Ok(()));
        let none = QueueLimits { requests: Some(0), tokens: None };
        assert_eq!(none.admits(0, 0, 1), Err(QueueFull::Requests { waiting: 0, limit: 0 }));
    }
}
