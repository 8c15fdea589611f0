//! `anysplit bench serve`: a server of OpenAI's API under load, as vLLM's `bench serve` measures it.

mod address;
mod arrivals;
mod body;
mod client;
mod date;
mod file;
mod flags;
mod load;
mod metrics;
mod prompt;
mod random;
mod report;
mod server;
mod statistics;
mod stream;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Args;
use clap::builder::EnumValueParser;
use indicatif::{ProgressBar, ProgressStyle};

use crate::args::yes_or_no;
use crate::error::CliError;
use crate::launch::signals;
use crate::lists::Element;
use crate::{open_files, whole_file};
use address::Address;
use client::Client;
use flags::{DatasetName, EndpointType, ExtraBody};
use load::{Manner, Prepared, Run};
use metrics::{Goal, Metric};
use prompt::{Alphabet, Content, Dataset, Prompt};
use report::Report;

/// A server of OpenAI's API under load, as vllm bench serve measures it.
#[derive(Args)]
#[command(
    after_help = "Examples:\n  anysplit bench serve --num-prompts 64 --random-input-len 128 --random-output-len 64 --ignore-eos\n  \
    anysplit bench serve --base-url http://10.0.0.5:8000 --request-rate 4 --max-concurrency 32 --goodput ttft:500 tpot:50\n  \
    anysplit bench serve --backend openai-chat --dataset-name file --dataset-path prompts.jsonl --save-result\n  \
    anysplit bench serve --dataset-name shared-prefix --num-prefixes 4 --prefix-len 2048 --suffix-len 64 --json\n\n\
    Random prompts are token ids, so that they have exactly as many tokens as was asked for, on any server that takes ids (vLLM, \
    llama-server, anysplit). Ids are from 100 to --vocab-size; without that flag, to what /v1/models or /tokenize tells of the \
    vocabulary, or else to 1000. For chat they are common words, about a token each.\n\
    A file is by its name: .jsonl has a line {\"prompt\": …, \"output_tokens\": N} each (a text or a list of token ids; \
    output_tokens may be left out), .json is an array of the same or of ShareGPT's conversations (their first turn), anything else \
    is a prompt a line. Prompts are sent in the file's order, and again from its beginning if there are too few.\n\
    Times are taken when bytes come: TTFT from sending to the first chunk with tokens, ITL from one such chunk to the next, TPOT = \
    (E2EL - TTFT) / (output tokens - 1), E2EL to the last chunk. Tokens are counted by the server (usage), or else by chunks. The \
    time that a request waits for --max-concurrency is not counted. The peak is of the best second. Ctrl-C shows what was \
    measured so far.\n\
    Without --api-key, the key is that of the variable OPENAI_API_KEY, if there is one, as for OpenAI's own clients."
)]
pub struct ServeArgs {
    /// Where the server is; a /v1 at the end may be there or not
    #[arg(long, env = "ANYSPLIT_BASE_URL", default_value = "http://127.0.0.1:8000", value_name = "URL")]
    base_url: String,
    /// The server's host, in place of --base-url
    #[arg(long, env = "ANYSPLIT_HOST", conflicts_with = "base_url", value_name = "HOST")]
    host: Option<String>,
    /// Its port, which is 8000 if only --host is given
    #[arg(long, env = "ANYSPLIT_PORT", conflicts_with = "base_url", value_name = "PORT")]
    port: Option<u16>,
    /// How requests are worded
    #[arg(
        long,
        visible_alias = "backend",
        env = "ANYSPLIT_ENDPOINT_TYPE",
        default_value = "openai",
        value_name = "TYPE"
    )]
    endpoint_type: EndpointType,
    /// The path of requests; default: that of the endpoint's type
    #[arg(long, env = "ANYSPLIT_ENDPOINT", value_name = "PATH", value_parser = flags::path)]
    endpoint: Option<String>,
    /// The model's name in requests; default: the first of /v1/models
    #[arg(long, short, env = "ANYSPLIT_MODEL", value_name = "NAME")]
    model: Option<String>,
    /// The key that the server wants
    #[arg(long, env = "ANYSPLIT_API_KEY", value_name = "KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Where prompts come from
    #[arg(long, env = "ANYSPLIT_DATASET_NAME", default_value = "random", value_name = "NAME")]
    dataset_name: DatasetName,
    /// The file of --dataset-name file
    #[arg(long, env = "ANYSPLIT_DATASET_PATH", value_name = "FILE")]
    dataset_path: Option<PathBuf>,
    /// Requests
    #[arg(long, env = "ANYSPLIT_NUM_PROMPTS", default_value_t = 1000, value_name = "N", value_parser = flags::some)]
    num_prompts: usize,
    /// Tokens of each random or fixed prompt
    #[arg(long, alias = "input-len", env = "ANYSPLIT_RANDOM_INPUT_LEN", default_value_t = 1024, value_name = "N", value_parser = flags::some)]
    random_input_len: usize,
    /// Tokens that each answer may have, unless a file says so
    #[arg(
        long,
        aliases = ["output-len", "custom-output-len", "sharegpt-output-len", "prefix-repetition-output-len"],
        env = "ANYSPLIT_RANDOM_OUTPUT_LEN",
        default_value_t = 128,
        value_name = "N",
        value_parser = flags::some
    )]
    random_output_len: usize,
    /// Lengths of random prompts and of their answers vary by this fraction, to both sides
    #[arg(long, env = "ANYSPLIT_RANDOM_RANGE_RATIO", default_value_t = 0.0, value_name = "F", value_parser = flags::fraction)]
    random_range_ratio: f64,
    /// Tokens of each shared prefix
    #[arg(long, alias = "prefix-repetition-prefix-len", env = "ANYSPLIT_PREFIX_LEN", default_value_t = 256, value_name = "N", value_parser = flags::count)]
    prefix_len: usize,
    /// Prefixes that are shared
    #[arg(long, alias = "prefix-repetition-num-prefixes", env = "ANYSPLIT_NUM_PREFIXES", default_value_t = 10, value_name = "N", value_parser = flags::some)]
    num_prefixes: usize,
    /// Tokens of a prompt's own after a shared prefix
    #[arg(long, alias = "prefix-repetition-suffix-len", env = "ANYSPLIT_SUFFIX_LEN", default_value_t = 256, value_name = "N", value_parser = flags::some)]
    suffix_len: usize,
    /// Random token ids are below this
    #[arg(long, env = "ANYSPLIT_VOCAB_SIZE", value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    vocab_size: Option<u32>,
    /// Seed of prompts and arrivals
    #[arg(long, env = "ANYSPLIT_SEED", default_value_t = 0, value_name = "N")]
    seed: u64,
    /// Requests per second; inf: all at once
    #[arg(long, env = "ANYSPLIT_REQUEST_RATE", default_value = "inf", value_name = "F", value_parser = flags::rate)]
    request_rate: f64,
    /// How evenly they arrive; 1: a Poisson process, less: in bursts, more: evenly
    #[arg(long, env = "ANYSPLIT_BURSTINESS", default_value = "1", value_name = "F", value_parser = flags::burstiness)]
    burstiness: f64,
    /// Requests that run at a time; default: as many as arrive
    #[arg(long, env = "ANYSPLIT_MAX_CONCURRENCY", value_name = "N", value_parser = flags::some)]
    max_concurrency: Option<usize>,
    /// Requests before those that are measured
    #[arg(long, env = "ANYSPLIT_NUM_WARMUPS", default_value_t = 0, value_name = "N", value_parser = flags::count)]
    num_warmups: usize,
    /// Answers go on to their full length
    #[arg(long, env = "ANYSPLIT_IGNORE_EOS", value_parser = yes_or_no())]
    ignore_eos: bool,
    /// Randomness of the answers; 0: greedy
    #[arg(long, env = "ANYSPLIT_TEMPERATURE", default_value = "0", value_name = "F", value_parser = flags::temperature)]
    temperature: f64,
    /// More keys of each request, in place of those that it has
    #[arg(long, env = "ANYSPLIT_EXTRA_BODY", value_name = "JSON", value_parser = ExtraBody::parse)]
    extra_body: Option<ExtraBody>,
    /// Seconds that a request may take
    #[arg(long, env = "ANYSPLIT_REQUEST_TIMEOUT", default_value = "21600", value_name = "S", value_parser = flags::seconds)]
    request_timeout: f64,
    /// What is shown
    #[arg(
        long,
        env = "ANYSPLIT_PERCENTILE_METRICS",
        value_delimiter = ',',
        default_value = "ttft,tpot,itl,e2el",
        value_name = "LIST",
        value_parser = Element(EnumValueParser::<Metric>::new())
    )]
    percentile_metrics: Vec<Metric>,
    /// Its percentiles, besides mean and median
    #[arg(long, env = "ANYSPLIT_METRIC_PERCENTILES", value_delimiter = ',', default_value = "99", value_name = "LIST", value_parser = flags::percent)]
    metric_percentiles: Vec<f64>,
    /// Counts requests that took no longer than so many milliseconds: ttft:500 tpot:50 e2el:5000
    #[arg(long, env = "ANYSPLIT_GOODPUT", num_args = 1.., value_delimiter = ',', value_name = "KEY:MS", value_parser = Goal::parse)]
    goodput: Vec<Goal>,
    /// Writes a file with the keys of vLLM's results, and tells where
    #[arg(long, env = "ANYSPLIT_SAVE_RESULT", value_parser = yes_or_no())]
    save_result: bool,
    /// Results have each request's times, too
    #[arg(long, env = "ANYSPLIT_SAVE_DETAILED", value_parser = yes_or_no())]
    save_detailed: bool,
    /// The directory of that file; it is made if it is not there
    #[arg(long, env = "ANYSPLIT_RESULT_DIR", value_name = "DIR")]
    result_dir: Option<PathBuf>,
    /// The file's name; default: type, rate, model and date
    #[arg(long, env = "ANYSPLIT_RESULT_FILENAME", value_name = "NAME")]
    result_filename: Option<PathBuf>,
    /// Shows no progress bar
    #[arg(long, env = "ANYSPLIT_DISABLE_TQDM", value_parser = yes_or_no())]
    disable_tqdm: bool,
    /// Prints one JSON value
    #[arg(long, env = "ANYSPLIT_JSON", value_parser = yes_or_no())]
    json: bool,
}

/// The variable of OpenAI's own clients.
const OPENAI_API_KEY: &str = "OPENAI_API_KEY";
/// All prompts are made before the first is sent, and are in memory; no more tokens than this.
const TOKENS_MAX: usize = 1 << 28;

pub fn run(args: &ServeArgs) -> Result<(), CliError> {
    let address = match (&args.host, args.port) {
        (None, None) => Address::parse(&args.base_url)?,
        (host, port) => Address::of(host.as_deref().unwrap_or("127.0.0.1"), port.unwrap_or(8000))?,
    };
    let wanted = args.num_prompts.saturating_add(args.num_warmups);
    let source = Source::of(args, wanted)?;
    if let Some(folder) = result_folder(args) {
        // Whether a result can be kept is known before it is measured.
        let can_write = std::fs::create_dir_all(&folder).and_then(|()| tempfile::tempfile_in(&folder));
        can_write.map_err(|e| {
            CliError::Usage(format!("--save-result: no file can be in {}: {e}", folder.display()))
        })?;
    }
    let path = address.path(args.endpoint.as_deref().unwrap_or(args.endpoint_type.path()));
    let api_key = args.api_key.clone().or_else(|| std::env::var(OPENAI_API_KEY).ok());
    // An empty one is none: so a variable can be overruled.
    let client = Arc::new(Client::new(address, api_key.as_deref().filter(|key| !key.is_empty()))?);
    // Requests for which there is no room say so.
    open_files::for_connections(args.max_concurrency.unwrap_or(wanted).min(wanted));
    let manner = Manner {
        path,
        max_concurrency: args.max_concurrency,
        timeout: Duration::from_secs_f64(args.request_timeout),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| CliError::failed(format!("the client cannot be started: {e}")))?;
    let (model, run) = runtime.block_on(measure(args, &client, &manner, source, wanted))?;
    // What still waits for an answer is given up.
    drop(runtime);
    told(args, &model, &run)
}

/// Where prompts come from.
enum Source {
    File(Vec<Prompt>),
    Random(Dataset),
}

impl Source {
    fn of(args: &ServeArgs, wanted: usize) -> Result<Self, CliError> {
        let output_len = args.random_output_len;
        let (dataset, input_len) = match (args.dataset_name, &args.dataset_path) {
            (DatasetName::File, None) => {
                return Err(CliError::Usage("--dataset-name file needs --dataset-path FILE".into()));
            }
            (DatasetName::File, Some(file)) => {
                let prompts = file::prompts(file, wanted, output_len)?;
                let is_ids = |prompt: &Prompt| matches!(prompt.content, Content::Ids(_));
                if args.endpoint_type == EndpointType::OpenaiChat && prompts.iter().any(is_ids) {
                    return Err(CliError::Usage(format!(
                        "--dataset-path {}: a chat has no prompts of token ids; give texts, or --backend openai",
                        file.display()
                    )));
                }
                return Ok(Source::File(prompts));
            }
            (name, Some(file)) => {
                return Err(CliError::Usage(format!(
                    "--dataset-path {} is for --dataset-name file, not {}",
                    file.display(),
                    name.name()
                )));
            }
            (DatasetName::Random, None) => {
                let range_ratio = args.random_range_ratio;
                let input_len = args.random_input_len;
                (Dataset::Random { input_len, output_len, range_ratio }, input_len)
            }
            (DatasetName::Fixed, None) => {
                let input_len = args.random_input_len;
                (Dataset::Fixed { input_len, output_len }, input_len)
            }
            (DatasetName::SharedPrefix, None) => {
                let ServeArgs { num_prefixes, prefix_len, suffix_len, .. } = *args;
                let dataset = Dataset::SharedPrefix { num_prefixes, prefix_len, suffix_len, output_len };
                (dataset, prefix_len + suffix_len)
            }
        };
        match wanted.checked_mul(input_len).is_some_and(|tokens| tokens <= TOKENS_MAX) {
            true => Ok(Source::Random(dataset)),
            false => Err(CliError::Usage(format!(
                "--num-prompts {} of {input_len} tokens are more than {TOKENS_MAX} tokens; give fewer or shorter ones",
                args.num_prompts
            ))),
        }
    }
}

/// Asks what has to be known, warms up, and runs the load.
async fn measure(
    args: &ServeArgs,
    client: &Arc<Client>,
    manner: &Manner,
    source: Source,
    wanted: usize,
) -> Result<(String, Run), CliError> {
    let models = server::models(client).await?;
    let model = args.model.clone().map_or_else(|| models.first(), Ok)?;
    let prompts = match source {
        Source::File(prompts) => prompts,
        Source::Random(dataset) => {
            let alphabet = match (args.endpoint_type, args.vocab_size) {
                (EndpointType::OpenaiChat, _) => Alphabet::Words,
                (EndpointType::Openai, Some(vocab_size)) => Alphabet::Ids { vocab_size },
                (EndpointType::Openai, None) => {
                    Alphabet::Ids { vocab_size: server::vocab_size(client, &models, &model).await? }
                }
            };
            dataset.prompts(wanted, args.seed, alphabet)
        }
    };
    let mut requests: Vec<Prepared> =
        prompts.iter().map(|prompt| body::prepared(args, &model, prompt)).collect();
    // Those behind the measured ones, so that warming up puts none of them in a cache of prefixes.
    let warm_ups = requests.split_off(args.num_prompts);
    let due = vec![0.0; warm_ups.len()];
    let warmed = load::run(client, manner, warm_ups, &due, None, &ProgressBar::hidden()).await;
    if let Some(error) = first_error(&warmed) {
        return Err(CliError::failed(format!("a warm-up failed: {error}")));
    }
    let due = arrivals::arrivals(requests.len(), args.request_rate, args.burstiness, args.seed);
    let bar = bar(args, requests.len());
    let signals = signals::listen(signals::to_end())?;
    let run = load::run(client, manner, requests, &due, Some(signals), &bar).await;
    bar.finish_and_clear();
    Ok((model, run))
}

/// Prints and saves what was measured.
fn told(args: &ServeArgs, model: &str, run: &Run) -> Result<(), CliError> {
    let count = run.outcomes.len();
    let failed = run.outcomes.iter().filter(|outcome| outcome.timing.is_err()).count();
    let has_answers = failed < count;
    if has_answers {
        let report = Report::new(args, model, run, SystemTime::now());
        // Whichever of the two can't be written, the other one is.
        let saved = save(&report);
        let mut out = std::io::stdout().lock();
        match args.json {
            true => writeln!(out, "{}", report.json())?,
            false => report.print(&mut out)?,
        }
        saved?;
    }
    let why = first_error(run).unwrap_or_default();
    if let Some(signal) = run.stopped_by {
        let (line, status) = signals::ending(signal);
        let answered = count - failed;
        let line = format!("{line}; {answered} of {} requests were answered", args.num_prompts);
        return Err(CliError::Job { line, status });
    }
    match failed {
        0 => Ok(()),
        _ if has_answers => {
            job::say!("warning: {failed} of {count} requests failed; the first: {why}");
            Ok(())
        }
        _ if count == 1 => Err(CliError::failed(format!("the request failed: {why}"))),
        _ => Err(CliError::failed(format!("all {count} requests failed; the first: {why}"))),
    }
}

/// Where a result will be.
fn result_folder(args: &ServeArgs) -> Option<PathBuf> {
    let file = result_file(args, "result");
    args.save_result.then(|| whole_file::directory(&file).to_owned())
}

/// The file of a result, which has a name of its own unless it was given one.
fn result_file(args: &ServeArgs, own_name: &str) -> PathBuf {
    let name = args.result_filename.clone().unwrap_or_else(|| own_name.into());
    args.result_dir.clone().unwrap_or_default().join(name)
}

fn save(report: &Report) -> Result<(), CliError> {
    if !report.args.save_result {
        return Ok(());
    }
    let file = result_file(report.args, &report.file_name());
    let saved = whole_file::write(&file, |whole| writeln!(whole, "{}", report.json()));
    saved.map_err(|e| CliError::failed(format!("cannot write {}: {e}", file.display())))?;
    job::say!("the result is in {}", file.display());
    Ok(())
}

/// Of the first request that failed.
fn first_error(run: &Run) -> Option<&str> {
    run.outcomes.iter().find_map(|outcome| outcome.timing.as_ref().err()).map(String::as_str)
}

/// A bar of requests on a terminal.
fn bar(args: &ServeArgs, requests: usize) -> ProgressBar {
    if args.disable_tqdm || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new(requests as u64);
    let style = ProgressStyle::with_template("{bar:30} request {pos} of {len}, {elapsed} gone, {eta} left");
    bar.set_style(style.expect("the template is right"));
    bar
}
