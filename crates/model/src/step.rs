use tensor::{Device, StepMeta};

use crate::ModelError;
use crate::config::ModelConfig;

/// What every layer of a step reads.
pub struct StepContext<'a, D: Device> {
    /// The step.
    pub meta: &'a StepMeta,
    /// Positions and block tables on the device.
    pub device: D::Step,
    /// Cosines and sines, one table per rope of the model.
    pub rope_tables: Vec<D::Tensor>,
}

impl<'a, D: Device> StepContext<'a, D> {
    /// Brings a step to the device.
    pub fn new(dev: &D, config: &ModelConfig, meta: &'a StepMeta) -> Self {
        let device = dev.begin(meta);
        let rope_tables = config.ropes.iter().map(|rope| dev.rope_table(&device, rope)).collect();
        StepContext { meta, device, rope_tables }
    }
}

/// Whether token ids are ids of the model.
///
/// # Errors
/// Names the first that isn't.
pub fn check_tokens(config: &ModelConfig, tokens: &[u32]) -> Result<(), ModelError> {
    match tokens.iter().find(|&&id| id as usize >= config.vocab_size) {
        None => Ok(()),
        Some(id) => Err(ModelError::Step(format!(
            "token id {id} is beyond the model's vocabulary of {} ids",
            config.vocab_size
        ))),
    }
}
