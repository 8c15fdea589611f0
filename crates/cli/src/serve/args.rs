//! The flags of `anysplit serve`.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use engine::PoolOptions;

use crate::amount::amount;
use crate::args::{ModelArgs, RunArgs, seconds, yes_or_no};
use crate::error::CliError;
use crate::split::SplitArgs;

/// Serves a model by OpenAI's API.
#[derive(Args)]
#[command(after_help = "Examples:\n  anysplit serve --tp 2 --port 8000\n  \
    anysplit serve --model ./Llama-3.2-1B --quantization int8 --api-key-file key --host 0.0.0.0\n  \
    curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\\n    \
    -d '{\"model\": \"anysplit-demo\", \"messages\": [{\"role\": \"user\", \"content\": \"What is a harbor?\"}]}'\n  \
    anysplit bench serve --base-url http://127.0.0.1:8000 --num-prompts 32\n\n\
    TLS is left to a proxy in front of it. http://HOST:PORT/ is a page to chat and to watch, /docs describes the API, /metrics \
    is for Prometheus. /health fails once the engine has; /ready also while a request waits and no step has come for 60 s.\n\
    Accepted, and so without it: --enable-auto-tool-choice, --enable-chunked-prefill, --trust-remote-code (no code of a model is \
    run), --disable-log-requests and --no-enable-log-requests (no prompt is told).")]
pub struct ServeArgs {
    /// The model, as with --model
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub model_tag: Option<String>,
    /// What vLLM's command lines ask for and is so here anyway.
    #[arg(
        long = "enable-auto-tool-choice",
        aliases = ["enable-chunked-prefill", "trust-remote-code", "disable-log-requests", "no-enable-log-requests"],
        action = clap::ArgAction::Count,
        hide = true
    )]
    _is_so_anyway: u8,
    /// The address to listen on; 0.0.0.0 is every network that this machine is on
    #[arg(long, env = "ANYSPLIT_HOST", default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub host: String,
    /// The port to listen on; 0: one that is free, told in the last line of the start
    #[arg(long, env = "ANYSPLIT_PORT", default_value_t = 8000, value_name = "PORT")]
    pub port: u16,
    /// A key that requests must give as `Authorization: Bearer KEY`; may be given several times. Others can see what is typed:
    /// the variable or --api-key-file keep it to yourself
    #[arg(long, env = "ANYSPLIT_API_KEY", value_name = "KEY", hide_env_values = true)]
    pub api_key: Vec<String>,
    /// A file with one such key per line
    #[arg(long, env = "ANYSPLIT_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,
    /// What requests may call the model, several times or divided by commas; an answer has that by which it was asked for, else the first. Default: --model
    #[arg(long, env = "ANYSPLIT_SERVED_MODEL_NAME", value_name = "NAME", value_delimiter = ',', num_args = 1..)]
    pub served_model_name: Vec<String>,
    /// How the model writes calls of tools; default: as its chat template shows. What must be a call (tool_choice) is JSON in each
    #[arg(long, env = "ANYSPLIT_TOOL_CALL_PARSER", value_name = "NAME", value_parser = ["hermes", "llama3_json", "mistral", "pythonic", "qwen3_coder"])]
    pub tool_call_parser: Option<String>,
    /// Names besides localhost under which requests may address this server (Host); default: with a loopback address none, else all
    #[arg(long, env = "ANYSPLIT_ALLOWED_HOSTS", value_name = "NAME", value_delimiter = ',')]
    pub allowed_hosts: Vec<String>,
    /// Origins whose web pages may read answers (CORS), * for all; default: none
    #[arg(long, env = "ANYSPLIT_ALLOWED_ORIGINS", value_name = "ORIGIN", value_delimiter = ',')]
    pub allowed_origins: Vec<String>,
    /// Bytes of each rank's KV cache, such as 10G; default: as --gpu-memory-utilization says
    #[arg(long, env = "ANYSPLIT_KV_CACHE_MEMORY_BYTES", value_name = "N", value_parser = amount)]
    pub kv_cache_memory_bytes: Option<u64>,
    /// Whether requests use keys and values of prompts before them that began the same
    #[arg(long, env = "ANYSPLIT_ENABLE_PREFIX_CACHING", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value_t = true, value_name = "true|false", value_parser = yes_or_no(), overrides_with = "no_enable_prefix_caching", action = clap::ArgAction::Set)]
    pub enable_prefix_caching: bool,
    /// They don't
    #[arg(long, env = "ANYSPLIT_NO_ENABLE_PREFIX_CACHING", value_parser = yes_or_no())]
    pub no_enable_prefix_caching: bool,
    /// Requests that may wait beside those that run (--max-num-seqs); more are refused with 429. 0: none waits
    #[arg(long, env = "ANYSPLIT_MAX_NUM_QUEUED_REQS", default_value_t = 4096, value_name = "N", value_parser = number::<usize>)]
    pub max_num_queued_reqs: usize,
    /// Tokens of their prompts
    #[arg(long, env = "ANYSPLIT_MAX_NUM_QUEUED_TOKENS", default_value_t = 1 << 24, value_name = "N", value_parser = at_least_one::<usize>)]
    pub max_num_queued_tokens: usize,
    /// Connections at a time; more wait
    #[arg(long, env = "ANYSPLIT_MAX_CONNECTIONS", default_value_t = 4096, value_name = "N", value_parser = at_least_one::<u32>)]
    pub max_connections: u32,
    /// The largest body of a request, in bytes
    #[arg(long, env = "ANYSPLIT_MAX_BODY_BYTES", default_value_t = 16 << 20, value_name = "N", value_parser = at_least_one::<usize>)]
    pub max_body_bytes: usize,
    /// Seconds after which a request is ended, answered or not, more than 0; default: never
    #[arg(long, env = "ANYSPLIT_REQUEST_TIMEOUT", value_name = "S", value_parser = seconds)]
    pub request_timeout: Option<f64>,
    /// Seconds that running requests get when the server is told to end (SIGTERM, Ctrl-C). Those that take longer are cut off,
    /// and the exit status is 0 all the same; a second signal ends the server at once
    #[arg(long, env = "ANYSPLIT_SHUTDOWN_TIMEOUT", default_value = "30", value_name = "S", value_parser = seconds)]
    pub shutdown_timeout: f64,
    /// What is told on stderr; debug: a line for each request
    #[arg(long, env = "ANYSPLIT_LOG_LEVEL", default_value = "info", value_name = "LEVEL")]
    pub log_level: LogLevelArg,
    #[command(flatten)]
    pub model: ModelArgs,
    #[command(flatten)]
    pub split: SplitArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

const CANNOT_BE_SENT: &str = "has a control character, or a blank at its beginning or end, which no header can carry; give another key";

/// Whether a header can carry a key.
fn can_be_sent(key: &str) -> bool {
    key.trim() == key && !key.contains(char::is_control)
}

/// Whether a browser could say that a page is from there: a scheme, a host, maybe a port.
fn is_origin(text: &str) -> bool {
    let is_host = |host: &str| !host.is_empty() && !host.contains(['/', '?', '#', '@', ' ']);
    text == "*" || text.split_once("://").is_some_and(|(scheme, host)| !scheme.is_empty() && is_host(host))
}

/// A number of a type that holds it, perhaps with a unit.
fn number<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    let n = amount(text)?;
    T::try_from(n).map_err(|_| format!("{n} is more than {}", u128::MAX >> (128 - 8 * size_of::<T>())))
}

/// The same from 1 on.
fn at_least_one<T: TryFrom<u64>>(text: &str) -> Result<T, String> {
    match amount(text)? {
        0 => Err("give at least 1".into()),
        _ => number(text),
    }
}

/// What is told on stderr.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogLevelArg {
    /// What went wrong.
    Error,
    /// The start and the end, too.
    Info,
    /// A line for each request, too.
    Debug,
}

impl ServeArgs {
    /// The model, however it was named.
    pub fn model(&self) -> ModelArgs {
        let model = self.model_tag.clone().or(self.model.model.clone());
        ModelArgs { model, ..self.model.clone() }
    }

    /// What can be seen to be wrong without looking at the model.
    pub fn check(&self) -> Result<(), CliError> {
        let wrong = |why: String| Err(CliError::Usage(why));
        if self.kv_cache_memory_bytes == Some(0) {
            return wrong(
                "--kv-cache-memory-bytes is 0; give bytes for at least one block of 16 tokens".into(),
            );
        }
        if self.served_model_name.iter().any(|name| name.trim().is_empty()) {
            return wrong("--served-model-name is empty; give what clients call the model".into());
        }
        if self.api_key.iter().any(String::is_empty) {
            return wrong("--api-key is empty; give a key, or leave it out to serve without one".into());
        }
        if !self.api_key.iter().all(|key| can_be_sent(key)) {
            return wrong(format!("--api-key {CANNOT_BE_SENT}"));
        }
        if let Some(origin) = self.allowed_origins.iter().find(|origin| !is_origin(origin)) {
            return wrong(format!(
                "--allowed-origins has {origin:?}, which is no origin; give such as https://chat.example or http://localhost:3000, or *"
            ));
        }
        if self.request_timeout == Some(0.0) {
            return wrong(
                "--request-timeout is 0, so no request could be answered; leave it out for no limit".into(),
            );
        }
        if self.run.trace.is_some() {
            return wrong("--trace is not for serve; trace a generate of the same prompts".into());
        }
        Ok(())
    }

    /// What running requests get when the server is told to end.
    pub fn shutdown_timeout(&self) -> Duration {
        Duration::from_secs_f64(self.shutdown_timeout)
    }

    /// What requests share.
    pub fn pool(&self) -> PoolOptions {
        PoolOptions {
            kv_cache_memory_bytes: self.kv_cache_memory_bytes,
            prefix_caching: self.enable_prefix_caching && !self.no_enable_prefix_caching,
            max_num_batched_tokens: self.run.max_num_batched_tokens,
        }
    }

    /// All keys that requests may have.
    pub fn keys(&self) -> Result<Vec<String>, CliError> {
        let mut keys = self.api_key.clone();
        if let Some(file) = &self.api_key_file {
            let shown = file.display();
            let text = std::fs::read_to_string(file)
                .map_err(|e| CliError::Usage(format!("--api-key-file {shown}: {e}")))?;
            keys.extend(text.lines().map(str::trim).filter(|key| !key.is_empty()).map(str::to_owned));
            if !keys.iter().all(|key| can_be_sent(key)) {
                return Err(CliError::Usage(format!("--api-key-file {shown}: a key {CANNOT_BE_SENT}")));
            }
            if keys.is_empty() {
                return Err(CliError::Usage(format!("--api-key-file {shown} has no key; put one on a line")));
            }
        }
        Ok(keys)
    }
}
