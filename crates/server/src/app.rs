//! What all handlers share.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use engine::Grammars;
use engine::text::Tokenizer;
use tokio::sync::Semaphore;

use crate::auth::Keys;
use crate::config::{ServerConfig, TextModel};
use crate::host::Hosts;
use crate::log::Log;
use crate::requests::Requests;
use crate::tools::dialect::Dialect;
use crate::wire::errors::ApiError;
use crate::work::TextWork;

/// A server's state.
pub struct App {
    /// To the engine and back.
    pub requests: Arc<Requests>,
    /// Tokenizer, ends, defaults.
    pub text: TextModel,
    /// No token spells more bytes.
    pub token_bytes_max: usize,
    /// Tries grammars.
    pub grammars: OnceLock<Grammars>,
    /// What the model knows of calls.
    pub dialect: OnceLock<Dialect>,
    /// Threads for text.
    pub work: TextWork,
    /// Bytes of bodies that there may be.
    pub bodies: Arc<Semaphore>,
    /// Requests that have no head of an answer yet.
    pub answering: AtomicUsize,
    /// Requests that got a seed.
    pub seeded: AtomicU64,
    /// Who may ask.
    pub keys: Keys,
    /// By what name.
    pub hosts: Hosts,
    /// Lines on stderr.
    pub log: Log,
    /// When the server began, in seconds since 1970.
    pub created_unix_s: u64,
    /// How it behaves.
    pub config: ServerConfig,
}

/// What handlers get.
pub type Shared = Arc<App>;

impl App {
    /// The seed of a request that gives none.
    ///
    /// # Errors
    /// As [`random`].
    pub fn seed(&self) -> Result<u64, ApiError> {
        match self.config.seed {
            None => random(),
            Some(seed) => Ok(nth(seed, self.seeded.fetch_add(1, Ordering::Relaxed))),
        }
    }

    /// The name that answers have, if a request may call the model as it does.
    ///
    /// # Errors
    /// 404.
    pub fn model(&self, asked: Option<&str>) -> Result<&str, ApiError> {
        let names = &self.config.served_model_names;
        match asked {
            None => Ok(&names[0]),
            Some(asked) => names.iter().find(|name| *name == asked).map(String::as_str).ok_or_else(|| {
                let asked = crate::wire::fields::shortened(asked);
                let message =
                    format!("the model {asked:?} does not exist; this server has {}", names.join(", "));
                let error = ApiError::new(StatusCode::NOT_FOUND, message).code("model_not_found");
                ApiError { param: Some("model".into()), ..error }
            }),
        }
    }

    /// The tokenizer.
    ///
    /// # Errors
    /// 400: a parameter needs one, and the model has none.
    pub fn tokenizer(&self, param: &str) -> Result<&Arc<Tokenizer>, ApiError> {
        self.text.tokenizer.as_ref().ok_or_else(|| {
            let message = format!("{param} needs a tokenizer, and this model has none; give token ids");
            ApiError::param(param, message)
        })
    }
}

/// Bytes of the longest token, as the vocabulary spells it.
pub fn token_bytes_max(tokenizer: &Tokenizer) -> usize {
    let ids = 0..u32::try_from(tokenizer.vocab_size()).unwrap_or(u32::MAX);
    ids.filter_map(|id| tokenizer.id_to_token(id)).map(|token| token.len()).max().unwrap_or(1)
}

/// Seconds since 1970.
pub fn unix_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The n-th number from a seed (SplitMix64). Choices of a prompt have the seeds that follow its own, so those of two prompts
/// must be far from each other.
pub fn nth(seed: u64, n: u64) -> u64 {
    let mut z = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// 64 bits that nobody can guess.
///
/// # Errors
/// 500 if the system has none.
pub fn random() -> Result<u64, ApiError> {
    let mut bytes = [0; 8];
    let no_bytes = |error| ApiError::internal(format!("the system gives no random bytes: {error}"));
    getrandom::fill(&mut bytes).map_err(no_bytes)?;
    Ok(u64::from_le_bytes(bytes))
}
