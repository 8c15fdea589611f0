//! Reading numbers out of config.json so that an impossible one is an error that names it.

use serde_json::{Map, Value};
use tensor::DType;

use crate::ModelError;
use crate::architecture::Architecture;

pub(super) struct Json<'a> {
    config: &'a Value,
    architecture: &'static Architecture,
}

impl<'a> Json<'a> {
    pub(super) fn new(config: &'a Value, architecture: &'static Architecture) -> Self {
        Json { config, architecture }
    }

    pub(super) fn error(&self, message: impl Into<String>) -> ModelError {
        ModelError::Config(message.into())
    }

    /// The value under a key or its other name; null counts as missing.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        let alias =
            self.architecture.aliases.iter().find(|(ours, _)| *ours == key).map(|(_, theirs)| *theirs);
        [Some(key), alias].into_iter().flatten().find_map(|k| self.config.get(k)).filter(|v| !v.is_null())
    }

    /// Whether the key is written, be it as null.
    pub(super) fn has(&self, key: &str) -> bool {
        self.config.get(key).is_some()
    }

    fn default(&self, key: &str) -> Option<f64> {
        self.architecture.defaults.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
    }

    /// A whole number from 0 to `most`; null or missing: the architecture's default, else `None`.
    fn whole(&self, key: &str, least: u64, most: usize) -> Result<Option<usize>, ModelError> {
        let Some(value) = self.get(key) else {
            // A key that is written as null is meant as null.
            return Ok(if self.has(key) { None } else { self.default(key).map(|v| v as usize) });
        };
        match value.as_u64() {
            Some(n) if n >= least && n <= most as u64 => Ok(Some(n as usize)),
            _ => {
                Err(self
                    .error(format!("{key} is {value}, which must be a whole number from {least} to {most}")))
            }
        }
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, ModelError> {
        value.ok_or_else(|| self.error(format!("{key} is missing ({} needs it)", self.architecture.name)))
    }

    /// A number of things, at least one.
    pub(super) fn size(&self, key: &str, most: usize) -> Result<usize, ModelError> {
        self.required(key, self.whole(key, 1, most)?)
    }

    /// A number of things, at least one, or none given.
    pub(super) fn maybe_size(&self, key: &str, most: usize) -> Result<Option<usize>, ModelError> {
        self.whole(key, 1, most)
    }

    /// A number that may be 0.
    pub(super) fn count(&self, key: &str, most: usize) -> Result<usize, ModelError> {
        self.required(key, self.whole(key, 0, most)?)
    }

    /// A list of whole numbers, empty if missing.
    pub(super) fn counts(&self, key: &str) -> Result<Vec<usize>, ModelError> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let list = value.as_array().and_then(|l| l.iter().map(|v| v.as_u64().map(|n| n as usize)).collect());
        list.ok_or_else(|| self.error(format!("{key} is {value}, which must be a list of whole numbers")))
    }

    /// A positive, finite number, or none given.
    pub(super) fn maybe_positive(&self, key: &str) -> Result<Option<f32>, ModelError> {
        match self.get(key) {
            Some(value) => positive(key, value).map(Some).map_err(|e| self.error(e)),
            None if self.has(key) => Ok(None),
            None => Ok(self.default(key).map(|v| v as f32)),
        }
    }

    /// A positive, finite number.
    pub(super) fn positive(&self, key: &str) -> Result<f32, ModelError> {
        self.required(key, self.maybe_positive(key)?)
    }

    pub(super) fn bool(&self, key: &str, default: bool) -> Result<bool, ModelError> {
        match self.get(key) {
            None => Ok(default),
            Some(value) => value
                .as_bool()
                .ok_or_else(|| self.error(format!("{key} is {value}, which must be true or false"))),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&'a str>, ModelError> {
        self.get(key).map(|value| self.is_text(key, value)).transpose()
    }

    pub(super) fn is_text(&self, key: &str, value: &'a Value) -> Result<&'a str, ModelError> {
        value.as_str().ok_or_else(|| self.error(format!("{key} is {value}, which must be a name in quotes")))
    }

    /// A JSON object, or none given.
    pub(super) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>, ModelError> {
        let object = |value: &'a Value| {
            value
                .as_object()
                .ok_or_else(|| self.error(format!("{key} is {value}, which must be a JSON object")))
        };
        self.get(key).map(object).transpose()
    }

    pub(super) fn dtype(&self) -> Result<Option<DType>, ModelError> {
        let key = if self.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
        let Some(name) = self.text(key)? else { return Ok(None) };
        let dtype = DType::parse(name.trim_start_matches("torch."));
        dtype.map(Some).ok_or_else(|| {
            self.error(format!("{key} \"{name}\" is not known; known are float32, float16, bfloat16"))
        })
    }

    /// For each layer, whether `layer_types` says that it sees only a window.
    pub(super) fn layer_types(&self, layers: usize) -> Result<Option<Vec<bool>>, ModelError> {
        let Some(value) = self.get("layer_types") else { return Ok(None) };
        let list = value.as_array().filter(|l| l.len() == layers).ok_or_else(|| {
            self.error(format!("layer_types must be a list of {layers} names, one per layer"))
        })?;
        let sliding = |v: &Value| match v.as_str() {
            Some("sliding_attention") => Ok(true),
            Some("full_attention") => Ok(false),
            _ => Err(self
                .error(format!("layer type {v} is not known; known are full_attention, sliding_attention"))),
        };
        list.iter().map(sliding).collect::<Result<_, _>>().map(Some)
    }

    pub(super) fn token_ids(&self, key: &str) -> Result<Vec<u32>, ModelError> {
        token_ids(self.config, key).map_err(|e| self.error(e))
    }
}

/// A positive, finite number.
pub(super) fn positive(key: &str, value: &Value) -> Result<f32, String> {
    let number = value.as_f64().map(|n| n as f32).filter(|n| n.is_finite() && *n > 0.0);
    number.ok_or_else(|| format!("{key} is {value}, which must be a positive number"))
}

/// One token id, a list of them, or none.
pub(super) fn token_ids(config: &Value, key: &str) -> Result<Vec<u32>, String> {
    let one = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
    match config.get(key) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(list)) => list
            .iter()
            .map(|v| one(v).ok_or_else(|| format!("{key} holds {v}, which is no token id")))
            .collect(),
        Some(value) => {
            one(value).map(|id| vec![id]).ok_or_else(|| format!("{key} is {value}, which is no token id"))
        }
    }
}
