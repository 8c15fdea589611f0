/// How much may wait for its first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests.
    pub requests: usize,
    /// Tokens of their prompts.
    pub tokens: usize,
}

/// What waits, or wants to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Queued {
    /// Requests.
    pub requests: usize,
    /// Tokens of their prompts.
    pub tokens: usize,
}

/// Why requests may not wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueueFull {
    /// They are too many for an empty queue.
    #[error(
        "{} requests with prompts of {} tokens are more than may wait at all: {} requests of {} tokens",
        more.requests, more.tokens, limits.requests, limits.tokens
    )]
    Always {
        /// What wants to wait.
        more: Queued,
        /// What may.
        limits: QueueLimits,
    },
    /// They are too many beside those that wait.
    #[error(
        "the queue is full: {} requests with prompts of {} tokens wait, and {} of {} may; try again later",
        waiting.requests, waiting.tokens, limits.requests, limits.tokens
    )]
    Now {
        /// What waits.
        waiting: Queued,
        /// What may.
        limits: QueueLimits,
    },
}

impl QueueLimits {
    /// Whether some requests, all or none of them, may join those that wait.
    ///
    /// # Errors
    /// They never could, or can't now.
    pub fn admits(self, waiting: Queued, more: Queued) -> Result<(), QueueFull> {
        let fits = |queued: Queued| queued.requests <= self.requests && queued.tokens <= self.tokens;
        let both = Queued {
            requests: waiting.requests.saturating_add(more.requests),
            tokens: waiting.tokens.saturating_add(more.tokens),
        };
        match (fits(more), fits(both)) {
            (false, _) => Err(QueueFull::Always { more, limits: self }),
            (true, false) => Err(QueueFull::Now { waiting, limits: self }),
            (true, true) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: QueueLimits = QueueLimits { requests: 3, tokens: 100 };

    fn queued(requests: usize, tokens: usize) -> Queued {
        Queued { requests, tokens }
    }

    #[test]
    fn a_full_queue_says_its_limits() {
        assert_eq!(LIMITS.admits(queued(2, 60), queued(1, 40)), Ok(()));
        for (waiting, more) in [(queued(3, 60), queued(1, 1)), (queued(2, 60), queued(1, 41))] {
            let full = LIMITS.admits(waiting, more).expect_err("it is full");
            assert_eq!(full, QueueFull::Now { waiting, limits: LIMITS });
            assert!(full.to_string().contains("3 of 100 may; try again later"), "{full}");
        }
    }

    #[test]
    fn what_an_empty_queue_has_no_room_for_need_not_try_again() {
        for more in [queued(4, 1), queued(1, 101), queued(1, usize::MAX)] {
            let full = LIMITS.admits(queued(1, 1), more).expect_err("it never fits");
            assert_eq!(full, QueueFull::Always { more, limits: LIMITS });
            assert!(!full.to_string().contains("later"), "{full}");
        }
    }
}
