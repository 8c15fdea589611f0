use serde::{Deserialize, Serialize};

/// What one rank has counted of one layer's experts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertCounts {
    /// Tokens that chose each expert, where this rank routed them.
    pub tokens_per_expert: Vec<u64>,
    /// Pairs of a token and an expert that this rank's experts worked on.
    pub worked: u64,
    /// Bytes of tokens, choices and results that this rank sent to other ranks' experts, and to other ranks' tokens.
    pub sent_bytes: u64,
}

impl ExpertCounts {
    /// Nothing counted yet.
    pub fn new(experts: usize) -> Self {
        ExpertCounts { tokens_per_expert: vec![0; experts], ..ExpertCounts::default() }
    }

    /// Adds what another rank counted of the same layer.
    pub fn add(&mut self, other: &ExpertCounts) {
        let longer = self.tokens_per_expert.len().max(other.tokens_per_expert.len());
        self.tokens_per_expert.resize(longer, 0);
        for (sum, tokens) in self.tokens_per_expert.iter_mut().zip(&other.tokens_per_expert) {
            *sum += tokens;
        }
        self.worked += other.worked;
        self.sent_bytes += other.sent_bytes;
    }

    /// Choices that no expert worked on, once all ranks' counts are added. There are none, ever.
    pub fn dropped(&self) -> u64 {
        self.tokens_per_expert.iter().sum::<u64>().saturating_sub(self.worked)
    }

    pub(super) fn choose(&mut self, choices: &[Vec<(u32, f32)>]) {
        for &(expert, _) in choices.iter().flatten() {
            self.tokens_per_expert[expert as usize] += 1;
        }
    }
}
