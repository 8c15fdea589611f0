//! What a server is asked before it is measured: whether it is there, its model, and which token ids it knows.

use std::time::Duration;

use hyper::StatusCode;
use hyper::body::Bytes;
use serde_json::{Value, json};

use super::client::{self, Client};
use crate::error::CliError;

/// The longest that such a question may take: a server that is busy answers late.
const LIMIT: Duration = Duration::from_secs(60);
/// Ids below this are known to every model that speaks.
const SAFE_VOCAB_SIZE: u32 = 1000;
/// A text with rare words, whose tokens have large ids.
const RARE: &str = "Zygomorphic quixotry; наблюдение, 観測, ملاحظة: ½ ∮ 🦜 — antidisestablishmentarianism.";

/// What `/v1/models` says.
pub struct Models(Value);

/// Asks which models there are.
///
/// # Errors
/// The server can't be reached, or refuses the key.
pub async fn models(client: &Client) -> Result<Models, CliError> {
    let (status, body) = ask(client, &client.address().path("/v1/models"), None).await?;
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(CliError::failed(format!(
            "the server refuses the key (HTTP {status}: {}); give one with --api-key",
            client::message(&body)
        ))),
        // What it says is looked at only if it is needed: not every server has this route.
        _ => Ok(Models(serde_json::from_slice(&body).unwrap_or(Value::Null))),
    }
}

impl Models {
    /// The first one.
    ///
    /// # Errors
    /// There is none.
    pub fn first(&self) -> Result<String, CliError> {
        let id = self.0["data"][0]["id"].as_str().map(str::to_owned);
        id.ok_or_else(|| CliError::failed("/v1/models names no model; give one with --model".into()))
    }

    /// Ids of its vocabulary are below this, if the server says so, as llama-server does.
    fn vocab_size(&self, model: &str) -> Option<u32> {
        let list = self.0["data"].as_array()?;
        let model = list.iter().find(|entry| entry["id"] == model).or(list.first())?;
        let size = model["vocab_size"].as_u64().or(model["meta"]["n_vocab"].as_u64())?;
        u32::try_from(size).ok().filter(|&size| size > 0)
    }
}

/// A bound of token ids that are certain to be in the vocabulary: what `/v1/models` says, or else the largest id that `/tokenize`
/// gives, or else what every model has.
///
/// # Errors
/// The server can't be reached.
pub async fn vocab_size(client: &Client, models: &Models, model: &str) -> Result<u32, CliError> {
    if let Some(size) = models.vocab_size(model) {
        return Ok(size);
    }
    let question = json!({ "model": model, "prompt": RARE, "add_special_tokens": false }).to_string();
    let (_, body) = ask(client, &client.address().path_beside_v1("/tokenize"), Some(question.into())).await?;
    let said: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
    let ids = said["tokens"].as_array().into_iter().flatten();
    let largest = ids.filter_map(|id| u32::try_from(id.as_u64()?).ok()).max();
    // Where it gives no ids, it has no such route.
    Ok(largest.map_or(SAFE_VOCAB_SIZE, |id| id.saturating_add(1)))
}

async fn ask(client: &Client, path: &str, body: Option<Bytes>) -> Result<(StatusCode, Vec<u8>), CliError> {
    let exchange = async {
        let mut answer = client.send(path, body).await?;
        let (status, body) = (answer.response.status(), answer.body().await?);
        client.keep(answer);
        Ok::<_, String>((status, body))
    };
    let authority = &client.address().authority;
    let why = match tokio::time::timeout(LIMIT, exchange).await {
        Ok(Ok(answer)) => return Ok(answer),
        Ok(Err(why)) if why.contains(authority) => why,
        Ok(Err(why)) => format!("{authority}: {path}: {why}"),
        Err(_) => format!("{authority}: {path} is not answered within {} s", LIMIT.as_secs()),
    };
    Err(CliError::failed(why))
}
