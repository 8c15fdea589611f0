//! How full a pipeline was.

/// How a pipeline was filled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bubble {
    /// Seconds of the call.
    pub wall_s: f64,
    /// Steps that were issued.
    pub steps: usize,
    /// Micro-batches: steps that followed each other without the pipeline running empty.
    pub micro_batches: usize,
}

/// Steps on their way, as they come and go.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fill {
    pub steps: usize,
    on_their_way: usize,
    /// The most at a time.
    most: usize,
    /// How often the last one came back.
    emptied: usize,
}

impl Fill {
    pub fn issued(&mut self) {
        self.steps += 1;
        self.on_their_way += 1;
        self.most = self.most.max(self.on_their_way);
    }

    pub fn collected(&mut self) {
        self.on_their_way -= 1;
        self.emptied += usize::from(self.on_their_way == 0);
    }

    /// What m is in (p − 1) / (m + p − 1). Too few at a time never fill the stages, however many follow.
    pub fn micro_batches(&self, stages: usize) -> usize {
        match self.most < stages {
            true => self.most,
            false => self.steps.div_ceil(self.emptied.max(1)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(at_a_time: usize, steps: usize) -> Fill {
        let mut fill = Fill::default();
        for step in 0..steps {
            fill.issued();
            if step + 1 >= at_a_time {
                fill.collected();
            }
        }
        (0..steps.min(at_a_time - 1)).for_each(|_| fill.collected());
        fill
    }

    #[test]
    fn micro_batches_are_steps_between_which_the_pipeline_does_not_run_empty() {
        assert_eq!(fill(1, 10).micro_batches(2), 1, "each waits for the one before");
        assert_eq!(fill(4, 10).micro_batches(2), 10, "chunks of a prompt");
        assert_eq!(fill(2, 10).micro_batches(4), 2, "two sequences in four stages");
    }
}
