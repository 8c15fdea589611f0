//! What choosing a token asks of logits.

/// What [`crate::Device::survey`] finds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Survey {
    /// Each row's largest logit.
    pub max: Vec<f32>,
    /// Sums of exponentials relative to it, `[t · nodes]`, row-major.
    pub sums: Vec<f32>,
    /// Each row's largest logits, as (logit, column).
    pub top: Vec<Vec<(f32, u32)>>,
}

impl Survey {
    /// What sums of a row with this maximum are relative to: where all logits are −∞, they shall not be NaN, which says
    /// that one isn't a number.
    pub fn base(max: f32) -> f32 {
        if max == f32::NEG_INFINITY { 0.0 } else { max }
    }
}
