/// How much may wait for its first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueLimits {
    /// Requests, beyond those that there are free places for.
    pub requests: usize,
    /// Tokens of the prompts of all that have not begun.
    pub tokens: usize,
}

/// Where requests run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// So many run at a time, over all replicas.
    pub all: usize,
    /// So many do, or did and were preempted.
    pub taken: usize,
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
        "{} requests with prompts of {} tokens are more than an idle server takes: {places} run at a time, and {} may wait; of tokens {} may",
        more.requests, more.tokens, limits.requests, limits.tokens
    )]
    Always {
        /// What wants to wait.
        more: Queued,
        /// How many run at a time.
        places: usize,
        /// What may.
        limits: QueueLimits,
    },
    /// They are too many beside those that wait.
    #[error(
        "the queue is full: {} requests run and {} with prompts of {} tokens wait; {} may run, {} wait, of {} tokens; try again later",
        places.taken, waiting.requests, waiting.tokens, places.all, limits.requests, limits.tokens
    )]
    Now {
        /// What waits.
        waiting: Queued,
        /// What runs.
        places: Places,
        /// What may.
        limits: QueueLimits,
    },
}

impl QueueLimits {
    /// Whether some requests, all or none of them, may join those that wait. Of all that wait, as many as there are free places
    /// are about to run, and count for no limit but that of tokens.
    ///
    /// # Errors
    /// They never could, or can't now.
    pub fn admits(self, places: Places, waiting: Queued, more: Queued) -> Result<(), QueueFull> {
        // Whoever was preempted waits and has a place: it counts once.
        let room = self.requests.saturating_add(places.all);
        let fits = |taken: usize, queued: Queued| {
            taken.saturating_add(queued.requests) <= room && queued.tokens <= self.tokens
        };
        let both = Queued {
            requests: waiting.requests.saturating_add(more.requests),
            tokens: waiting.tokens.saturating_add(more.tokens),
        };
        match (fits(0, more), fits(places.taken, both)) {
            (false, _) => Err(QueueFull::Always { more, places: places.all, limits: self }),
            (true, false) => Err(QueueFull::Now { waiting, places, limits: self }),
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
        let places = Places { all: 2, taken: 2 };
        assert_eq!(LIMITS.admits(places, queued(2, 60), queued(1, 40)), Ok(()));
        for (waiting, more) in [(queued(3, 60), queued(1, 1)), (queued(2, 60), queued(1, 41))] {
            let full = LIMITS.admits(places, waiting, more).expect_err("it is full");
            assert_eq!(full, QueueFull::Now { waiting, places, limits: LIMITS });
            assert!(full.to_string().contains("2 may run, 3 wait, of 100 tokens; try again later"), "{full}");
        }
    }

    #[test]
    fn who_finds_a_free_place_waits_for_nobody() {
        let none = QueueLimits { requests: 0, ..LIMITS };
        let places = |taken| Places { all: 2, taken };
        assert_eq!(none.admits(places(0), queued(0, 0), queued(2, 1)), Ok(()));
        assert_eq!(none.admits(places(1), queued(0, 0), queued(1, 1)), Ok(()));
        assert!(none.admits(places(0), queued(1, 1), queued(2, 1)).is_err(), "one place is as good as taken");
        assert!(none.admits(places(2), queued(0, 0), queued(1, 1)).is_err());
        assert_eq!(LIMITS.admits(places(0), queued(0, 0), queued(5, 1)), Ok(()));
    }

    #[test]
    fn what_an_idle_server_has_no_room_for_need_not_try_again() {
        let places = Places { all: 2, taken: 0 };
        for more in [queued(6, 1), queued(1, 101), queued(1, usize::MAX)] {
            let full = LIMITS.admits(places, queued(1, 1), more).expect_err("it never fits");
            assert_eq!(full, QueueFull::Always { more, places: 2, limits: LIMITS });
            assert!(!full.to_string().contains("later"), "{full}");
        }
    }
}
