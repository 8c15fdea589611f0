//! `anysplit generate`: completes prompts.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::Args;
use engine::text::{Message, StopMatcher, StreamDecoder, TextError, Tokenizer};
use engine::{Completion, Engine, EngineOptions, GenerateRequest, SamplingParams};
use model::check_tokens;
use serde_json::{Map, Value, json};

use crate::args::{ModelArgs, RunArgs, engine_options, parse_ids, read_prompts, yes_or_no};
use crate::error::CliError;
use crate::expert_counts;
use crate::lists::numbers;
use crate::membership::Membership;
use crate::model::OpenModel;
use crate::report::Stats;
use crate::split::SplitArgs;
use crate::trace::Trace;

/// Completes a prompt, or a file of prompts as one batch.
#[derive(Args)]
#[command(after_help = "Examples:\n  anysplit generate \"In the beginning\" --tp 2 --stats\n  \
    anysplit generate --chat \"What is a harbor?\" --temperature 0.7 --seed 1\n  \
    anysplit generate --model ./Qwen3-0.6B --prompt-file prompts.txt --max-tokens 100 --json\n  \
    anysplit generate --model ./Llama-3.2-1B --load-format random --prompt-ids 1,2,3 --tp 3\n  \
    anysplit generate --prompt-file prompts.txt --tp 2 --pp 2 --dp 2 --stats")]
pub struct GenerateArgs {
    /// The prompt
    #[arg(conflicts_with_all = ["prompt_file", "prompt_ids"])]
    prompt: Option<String>,
    /// A file with one prompt per line; they run as one batch
    #[arg(long, env = "ANYSPLIT_PROMPT_FILE", value_name = "FILE", conflicts_with = "prompt_ids")]
    prompt_file: Option<PathBuf>,
    /// Token ids instead of text; no tokenizer is needed
    #[arg(long, env = "ANYSPLIT_PROMPT_IDS", value_name = "1,2,3")]
    prompt_ids: Option<String>,
    /// Takes the prompt as a user's message, by the model's chat template
    #[arg(long, env = "ANYSPLIT_CHAT", value_parser = yes_or_no(), conflicts_with = "prompt_ids")]
    chat: bool,
    /// The most tokens to generate
    #[arg(long, env = "ANYSPLIT_MAX_TOKENS", default_value_t = 64, value_name = "N")]
    max_tokens: usize,
    /// How far choices stray from the most probable token; 0 always takes that
    #[arg(long, env = "ANYSPLIT_TEMPERATURE", default_value_t = 0.0, value_name = "T")]
    temperature: f32,
    /// Only the most probable tokens whose probabilities reach this sum
    #[arg(long, env = "ANYSPLIT_TOP_P", default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Only this many of the most probable tokens; 0: all
    #[arg(long, env = "ANYSPLIT_TOP_K", default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Only tokens at least this times as probable as the most probable
    #[arg(long, env = "ANYSPLIT_MIN_P", default_value_t = 0.0, value_name = "P")]
    min_p: f32,
    /// Above 1, tokens that are there already become less probable
    #[arg(long, env = "ANYSPLIT_REPETITION_PENALTY", default_value_t = 1.0, value_name = "R")]
    repetition_penalty: f32,
    /// Taken off the logits of tokens that the completion has
    #[arg(long, env = "ANYSPLIT_PRESENCE_PENALTY", default_value_t = 0.0, value_name = "R")]
    presence_penalty: f32,
    /// Taken off those logits once per occurrence
    #[arg(long, env = "ANYSPLIT_FREQUENCY_PENALTY", default_value_t = 0.0, value_name = "R")]
    frequency_penalty: f32,
    /// Text that ends the completion, which doesn't contain it; may be given several times
    #[arg(long, env = "ANYSPLIT_STOP", value_name = "TEXT")]
    stop: Vec<String>,
    /// Token ids that end the completion, besides the model's own
    #[arg(long, env = "ANYSPLIT_STOP_TOKEN_IDS", value_name = "ID", value_delimiter = ',', value_parser = numbers::<u32>())]
    stop_token_ids: Vec<u32>,
    /// Runs to --max-tokens, whatever the model says
    #[arg(long, env = "ANYSPLIT_IGNORE_EOS", value_parser = yes_or_no())]
    ignore_eos: bool,
    /// Prints where memory and time went, to stderr
    #[arg(long, env = "ANYSPLIT_STATS", value_parser = yes_or_no())]
    stats: bool,
    /// Prints one JSON value; with --prompt-file an array
    #[arg(long, env = "ANYSPLIT_JSON", value_parser = yes_or_no())]
    json: bool,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    split: SplitArgs,
    #[command(flatten)]
    pub run: RunArgs,
}

pub fn run(args: &GenerateArgs, membership: &Membership) -> Result<(), CliError> {
    let options = engine_options(&args.model, &args.split, &args.run, membership)?;
    let options = EngineOptions { times_parts: args.stats, ..options };
    if args.stop.iter().any(String::is_empty) {
        return Err(CliError::Usage("--stop is empty; give the text that ends the completion".into()));
    }
    let sampling = args.sampling();
    sampling.check()?;
    let trace = Trace::new(&args.run, membership)?;
    let model = OpenModel::open(&args.model, &args.split, &options, membership)?;
    let prompts = trace.host("tokenize", || args.prompts(&model))?;
    prompts.iter().try_for_each(|prompt| check_tokens(&model.config, prompt))?;
    let tokenizer = match model.tokenizer() {
        // Ids need no tokenizer, unless something else does. One that is there must be right.
        Err(CliError::Text(TextError::MissingTokenizer { .. }))
            if args.prompt_ids.is_some() && args.stop.is_empty() =>
        {
            None
        }
        found => Some(found?.clone()),
    };
    let mut stop_token_ids = args.stop_token_ids.clone();
    if !args.ignore_eos {
        stop_token_ids.extend(&model.config.eos_token_ids);
    }
    let requests: Vec<GenerateRequest> = prompts
        .iter()
        .map(|prompt| GenerateRequest {
            prompt: prompt.clone(),
            max_tokens: args.max_tokens,
            sampling: sampling.clone(),
            stop_token_ids: stop_token_ids.clone(),
            ..GenerateRequest::default()
        })
        .collect();
    let name = model.name.clone();
    let loaded = trace.host("load", || model.load(&options, membership, &args.run, args.json))?;
    let Some(mut engine) = loaded else { return Ok(()) };
    let mut texts: Vec<Option<Text>> = match &tokenizer {
        Some(tokenizer) => {
            requests.iter().map(|r| Some(Text::new(tokenizer, &args.stop, &r.prompt))).collect()
        }
        None => requests.iter().map(|_| None).collect(),
    };
    let streamed = !args.json && requests.len() == 1;
    let mut out = std::io::stdout().lock();
    let mut written = Ok(());
    let completions = trace.record(&mut engine, |engine| {
        let completions = engine.generate(&requests, &mut |index, token| {
            // A token that ends the completion is no text of it.
            if stop_token_ids.contains(&token) {
                return true;
            }
            let Some(text) = &mut texts[index] else { return false };
            let piece = text.push(token);
            if streamed && !piece.is_empty() {
                written = out.write_all(piece.as_bytes()).and_then(|()| out.flush());
            }
            text.ended || written.is_err()
        })?;
        written?;
        Ok(completions)
    })?;
    for text in texts.iter_mut().flatten() {
        let rest = text.finish();
        if streamed {
            out.write_all(rest.as_bytes())?;
        }
    }
    let stats = Stats::collect(&mut engine, args.stats)?;
    let texts: Vec<Option<String>> = texts.into_iter().map(|t| t.map(|t| t.all)).collect();
    match (args.json, streamed) {
        (true, _) => {
            let result =
                |i: usize| result_json(&name, &engine, &requests[i], &completions[i], &texts[i], &stats);
            let value = match args.prompt_file {
                Some(_) => (0..requests.len()).map(result).collect(),
                None => result(0),
            };
            writeln!(out, "{value}")?;
        }
        (false, true) if texts[0].is_some() => writeln!(out)?,
        (false, _) => {
            for (completion, text) in completions.iter().zip(&texts) {
                match text {
                    Some(text) => writeln!(out, "{text}")?,
                    None => writeln!(out, "{}", ids(&completion.token_ids))?,
                }
            }
        }
    }
    if args.stats {
        job::say!("{}", stats.table());
    }
    if let (Some(file), Some(experts)) = (&args.split.expert_counts, stats.experts()) {
        expert_counts::add(file, experts)?;
    }
    trace.end()
}

fn ids(ids: &[u32]) -> String {
    ids.iter().map(u32::to_string).collect::<Vec<_>>().join(",")
}

fn result_json(
    name: &str,
    engine: &Engine,
    request: &GenerateRequest,
    completion: &Completion,
    text: &Option<String>,
    stats: &Stats,
) -> Value {
    json!({
        "model": name,
        "parallel": stats.parallel(),
        "dtype": engine.dtype().name(),
        "quantization": engine.kept_as().layers(engine.config()),
        "device": if engine.is_on_gpus() { "cuda" } else { "cpu" },
        "reduction": engine.reduction().to_string(),
        "prompt_token_ids": request.prompt,
        "token_ids": completion.token_ids,
        "text": text,
        "finish_reason": completion.finish_reason.name(),
        "usage": { "prompt_tokens": request.prompt.len(), "completion_tokens": completion.token_ids.len() },
        "seed": request.sampling.seed,
        "stats": stats.json(),
    })
}

impl GenerateArgs {
    fn sampling(&self) -> SamplingParams {
        SamplingParams {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repetition_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            seed: self.model.seed.unwrap_or_else(any_seed),
        }
    }

    /// Token ids of each prompt.
    fn prompts(&self, model: &OpenModel) -> Result<Vec<Vec<u32>>, CliError> {
        if let Some(ids) = &self.prompt_ids {
            return Ok(vec![parse_ids(ids)?]);
        }
        let texts = match (&self.prompt, &self.prompt_file) {
            (Some(prompt), _) => vec![prompt.clone()],
            (None, Some(file)) => read_prompts(file)?,
            (None, None) => {
                return Err(CliError::Usage(
                    "there is no prompt; give PROMPT, --prompt-file or --prompt-ids".into(),
                ));
            }
        };
        if texts.iter().any(String::is_empty) {
            return Err(CliError::Usage("the prompt is empty; give at least one character".into()));
        }
        let tokenizer = model.tokenizer()?;
        let encode = |text: &String| match self.chat {
            // A template writes the special tokens itself.
            true => {
                let message = Message { role: "user".into(), content: text.clone() };
                let rendered = tokenizer.chat_template(false)?.render(&[message], true, &Map::new())?;
                Ok(tokenizer.encode(&rendered, false)?)
            }
            false => Ok(tokenizer.encode(text, true)?),
        };
        texts.iter().map(encode).collect()
    }
}

/// A request without a seed gets one when it is admitted.
fn any_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Small enough for readers of JSON whose numbers are f64.
    (now.as_nanos() as u64 ^ u64::from(std::process::id())) >> 11
}

/// One completion's text as it grows.
struct Text {
    decoder: StreamDecoder,
    stop: StopMatcher,
    all: String,
    ended: bool,
}

impl Text {
    fn new(tokenizer: &Arc<Tokenizer>, stop: &[String], prompt: &[u32]) -> Self {
        let decoder = StreamDecoder::after_prompt(tokenizer.clone(), true, prompt);
        Text { decoder, stop: StopMatcher::new(stop), all: String::new(), ended: false }
    }

    /// The text that is certain now and wasn't before.
    fn push(&mut self, token: u32) -> String {
        match self.decoder.push(token) {
            Some(piece) => self.take(&piece),
            None => String::new(),
        }
    }

    fn take(&mut self, piece: &str) -> String {
        let text = self.stop.push(piece).unwrap_or_else(|stopped| {
            self.ended = true;
            stopped.text
        });
        self.all += &text;
        text
    }

    /// What was held back.
    fn finish(&mut self) -> String {
        if self.ended {
            return String::new();
        }
        let rest = self.decoder.finish().unwrap_or_default();
        let mut text = self.take(&rest);
        if !self.ended {
            let held = self.stop.finish();
            self.all += &held;
            text += &held;
        }
        text
    }
}
