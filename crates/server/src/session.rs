//! The completions of one HTTP request: from prompts to engine requests, and from events to text.

use std::sync::Arc;
use std::time::Instant;

use engine::serving::{EngineInfo, Event};
use engine::{GenerateRequest, Logprobs};

use crate::app::{App, random};
use crate::choice::{Choice, Delta};
use crate::metrics::RequestMetrics;
use crate::run::Run;
use crate::timeline::End;
use crate::wire::common::{Common, Usage};
use crate::wire::errors::ApiError;

/// A prompt, and how much is wanted of it.
#[derive(Debug, Clone)]
pub struct Job {
    /// Token ids.
    pub prompt: Arc<[u32]>,
    /// 0 for its log-probabilities only.
    pub max_tokens: usize,
}

/// What is asked of each job besides.
#[derive(Debug, Clone, Default)]
pub struct Wanted {
    /// Log-probabilities of tokens, with so many of the most probable ones.
    pub logprobs: Option<usize>,
    /// The same of the prompt's.
    pub prompt_logprobs: Option<usize>,
    /// Special tokens that have text even where special tokens have none, and that text.
    pub shown: Vec<(u32, String)>,
}

/// News of a choice, by its index.
pub enum News {
    /// Log-probabilities of further prompt tokens.
    Prompt(usize, Vec<Option<Logprobs>>),
    /// A token.
    Delta(usize, Delta),
}

/// Completions that run. Choice `i` is of prompt `i / n`.
pub struct Session {
    run: Run,
    choices: Vec<Choice>,
    n: usize,
    /// By prompt.
    has_started: Vec<bool>,
    usage: Usage,
    metrics: RequestMetrics,
}

/// How many tokens a prompt leaves room for.
///
/// # Errors
/// 400 for an empty prompt, one that fills the context, and ids that the vocabulary does not have.
pub fn room(info: &EngineInfo, prompt: &[u32], at: &str) -> Result<usize, ApiError> {
    if prompt.is_empty() {
        return Err(
            ApiError::param(at, format!("{at} is empty; give at least one token")).code("invalid_value")
        );
    }
    check_vocabulary(info, prompt, at)?;
    let room = info.max_model_len.saturating_sub(prompt.len());
    if room == 0 {
        let message = format!(
            "This model's maximum context length is {} tokens. However, {at} has {} tokens. Please reduce its length.",
            info.max_model_len,
            prompt.len()
        );
        return Err(ApiError::param(at, message).code("context_length_exceeded"));
    }
    Ok(room)
}

/// # Errors
/// 400 for the first id that the vocabulary does not have.
pub fn check_vocabulary(info: &EngineInfo, ids: &[u32], at: &str) -> Result<(), ApiError> {
    match ids.iter().find(|&&id| id as usize >= info.vocab_size) {
        None => Ok(()),
        Some(id) => {
            let message = format!("{at} has the token id {id}; ids are below {}", info.vocab_size);
            Err(ApiError::param(at, message).code("invalid_value"))
        }
    }
}

/// A client's word on how much it wants must fit.
pub fn check_length(info: &EngineInfo, job: &Job, param: &str) -> Result<(), ApiError> {
    let (prompt, max_tokens) = (job.prompt.len(), job.max_tokens);
    if prompt + max_tokens <= info.max_model_len {
        return Ok(());
    }
    let message = format!(
        "This model's maximum context length is {} tokens. However, you requested {} tokens ({prompt} in the prompt, {max_tokens} in the completion). Please reduce the prompt or {param}.",
        info.max_model_len,
        prompt + max_tokens
    );
    Err(ApiError::param(param, message).code("context_length_exceeded"))
}

impl Session {
    /// Asks the engine.
    ///
    /// # Errors
    /// 400 for ids that do not exist; what [`crate::dispatch::Dispatch::submit`] says.
    pub fn begin(
        app: &App,
        info: &EngineInfo,
        id: &str,
        arrived: Instant,
        common: &Common,
        jobs: &[Job],
        wanted: Wanted,
    ) -> Result<Session, ApiError> {
        check_vocabulary(info, &common.stop_token_ids, "stop_token_ids")?;
        let biased: Vec<u32> = common.logit_bias.iter().map(|(id, _)| *id).collect();
        check_vocabulary(info, &biased, "logit_bias")?;
        if !common.stop.is_empty() {
            app.tokenizer("stop")?;
        }
        let seed = if common.has_seed { common.sampling.seed } else { random()? };
        let mut stops = common.stop_token_ids.clone();
        let eos: Arc<[u32]> =
            if common.ignore_eos { Arc::default() } else { app.text.eos_token_ids.clone().into() };
        stops.extend(eos.iter());
        let (mut requests, mut choices) = (Vec::new(), Vec::new());
        for job in jobs {
            if common.min_tokens > job.max_tokens {
                let message =
                    format!("min_tokens is {}, more than max_tokens, {}", common.min_tokens, job.max_tokens);
                return Err(ApiError::param("min_tokens", message).code("invalid_value"));
            }
            for i in 0..common.n {
                let mut sampling = common.sampling.clone();
                sampling.seed = seed.wrapping_add(i as u64);
                requests.push(GenerateRequest {
                    prompt: job.prompt.to_vec(),
                    max_tokens: job.max_tokens.max(1),
                    sampling,
                    stop_token_ids: stops.clone(),
                    min_tokens: common.min_tokens,
                    logit_bias: common.logit_bias.clone(),
                    logprobs: wanted.logprobs,
                    prompt_logprobs: wanted.prompt_logprobs,
                    grammar: common.grammar.as_ref().map(|asked| asked.grammar.clone()),
                    cache_salt: common.cache_salt,
                });
                let drops_all = job.max_tokens == 0;
                let tokenizer = app.text.tokenizer.as_ref();
                let choice = Choice::new(tokenizer, common, &job.prompt, &eos, drops_all);
                choices.push(choice.showing(wanted.shown.clone()));
            }
        }
        let run = app.dispatch.submit(id, arrived, requests)?;
        jobs.iter().for_each(|job| app.dispatch.metrics.asked(common.n, job.max_tokens));
        let run = run.within(arrived, app.config.timeouts.request);
        let prompt_tokens = jobs.iter().map(|job| job.prompt.len()).sum();
        Ok(Session {
            run,
            choices,
            n: common.n,
            has_started: vec![false; jobs.len()],
            usage: Usage { prompt_tokens, ..Usage::default() },
            metrics: app.dispatch.metrics.clone(),
        })
    }

    /// How many choices there are.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// So far.
    pub fn usage(&self) -> Usage {
        let completion_tokens = self.choices.iter().map(|choice| choice.tokens).sum();
        Usage { completion_tokens, ..self.usage }
    }

    /// What comes next; nothing once all choices are over.
    ///
    /// # Errors
    /// As [`Run::next`].
    pub async fn next(&mut self) -> Result<Option<News>, ApiError> {
        while let Some((index, event)) = self.run.next().await? {
            match event {
                Event::Started { cached_tokens, .. } => {
                    // The first choice of a prompt tells of it, and of a preemption nothing is told.
                    if index % self.n == 0 && !std::mem::replace(&mut self.has_started[index / self.n], true)
                    {
                        self.usage.cached_tokens += cached_tokens;
                    }
                }
                Event::Prompt { logprobs, .. } => return Ok(Some(News::Prompt(index, logprobs))),
                Event::Token { token, logprobs, end, .. } => {
                    let delta = self.choices[index].push(token, logprobs, end);
                    if let Some(finish) = &delta.finish {
                        self.run.end(index, End::of(finish.reason));
                    }
                    return Ok(Some(News::Delta(index, delta)));
                }
                Event::Preempted { .. } | Event::Refused { .. } => {}
            }
        }
        for choices in self.choices.chunks(self.n) {
            self.metrics.completed(choices.iter().map(|choice| choice.tokens).max().unwrap_or(0));
        }
        Ok(None)
    }
}
