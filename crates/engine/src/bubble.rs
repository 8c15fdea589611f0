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
    /// Stages that were at work at a time, in the mean: in steps with a prompt, in steps without.
    pub stages_at_work: [usize; 2],
}

/// Steps on their way, as they come and go.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fill {
    steps: usize,
    on_their_way: usize,
    /// The most at a time.
    most: usize,
    /// How often the last one came back.
    emptied: usize,
    /// Of steps with a prompt, and of those without.
    kinds: [Kind; 2],
}

/// Steps of a kind.
#[derive(Clone, Copy, Debug, Default)]
struct Kind {
    steps: usize,
    /// Sum over these steps: how many were on their way when this one was issued, itself too.
    together: usize,
}

impl Fill {
    pub fn issued(&mut self, has_prompt: bool) {
        self.steps += 1;
        self.on_their_way += 1;
        let kind = &mut self.kinds[usize::from(!has_prompt)];
        kind.steps += 1;
        kind.together += self.on_their_way;
        self.most = self.most.max(self.on_their_way);
    }

    pub fn collected(&mut self) {
        self.on_their_way -= 1;
        self.emptied += usize::from(self.on_their_way == 0);
    }

    /// What it came to, with several stages.
    pub fn bubble(&self, wall_s: f64, stages: usize) -> Bubble {
        let (micro_batches, stages_at_work) = (self.micro_batches(stages), self.stages_at_work(stages));
        Bubble { wall_s, steps: self.steps, micro_batches, stages_at_work }
    }

    /// What m is in (p − 1) / (m + p − 1). Too few at a time never fill the stages, however many follow.
    fn micro_batches(&self, stages: usize) -> usize {
        match self.most < stages {
            true => self.most,
            false => self.steps.div_ceil(self.emptied.max(1)),
        }
    }

    fn stages_at_work(&self, stages: usize) -> [usize; 2] {
        let mean = |kind: Kind| kind.together as f64 / kind.steps.max(1) as f64;
        self.kinds.map(|kind| (mean(kind).round() as usize).clamp(1, stages))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(at_a_time: usize, steps: usize) -> Fill {
        let mut fill = Fill::default();
        for step in 0..steps {
            fill.issued(step < 2);
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

    #[test]
    fn as_many_stages_work_at_a_time_as_steps_are_on_their_way() {
        assert_eq!(fill(1, 10).stages_at_work(2), [1, 1], "one sequence");
        assert_eq!(fill(2, 20).stages_at_work(4), [2, 2], "two sequences in four stages");
        assert_eq!(fill(4, 20).stages_at_work(2), [2, 2], "more steps than stages");
        let mut chunks_then_tokens = fill(4, 2);
        (0..9).for_each(|_| {
            chunks_then_tokens.issued(false);
            chunks_then_tokens.collected();
        });
        assert_eq!(chunks_then_tokens.stages_at_work(2), [2, 1]);
    }
}
