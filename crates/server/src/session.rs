//! The completions of one HTTP request: from prompts to engine requests, and from events to text.

use std::sync::Arc;
use std::time::Duration;

use engine::serving::{EngineInfo, Event, Queued};
use engine::text::{StreamDecoder, Tokenizer};
use engine::{BatchPrompt, FinishReason, GenerateBatch, GenerateRequest, Logprobs};

use crate::app::{App, nth};
use crate::choice::{Choice, Delta};
use crate::metrics::RequestMetrics;
use crate::run::Run;
use crate::ticket::Ticket;
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
    prompts: Vec<OfPrompt>,
    usage: Usage,
    ticket: Arc<Ticket>,
    metrics: RequestMetrics,
    /// What [`Session::wait`] waited for.
    early: Option<Option<News>>,
}

/// What is told of a prompt.
#[derive(Clone, Copy)]
struct OfPrompt {
    tokens: usize,
    /// Once it has started.
    cached_tokens: Option<usize>,
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
            "This model's maximum context length is {}. However, {at} has {} tokens. Please reduce its length.",
            info.longest(),
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
        "This model's maximum context length is {}. However, you requested {} tokens ({prompt} in the prompt, {max_tokens} in the completion). Please reduce the prompt or {param}.",
        info.longest(),
        prompt + max_tokens
    );
    Err(ApiError::param(param, message).code("context_length_exceeded"))
}

impl Session {
    /// Asks the engine.
    ///
    /// # Errors
    /// 400 for ids that do not exist; what [`crate::requests::Requests::submit`] says.
    pub fn begin(
        app: &App,
        info: &EngineInfo,
        id: &str,
        ticket: &Arc<Ticket>,
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
        for job in jobs {
            if common.min_tokens > job.max_tokens {
                let message =
                    format!("min_tokens is {}, more than max_tokens, {}", common.min_tokens, job.max_tokens);
                return Err(ApiError::param("min_tokens", message).code("invalid_value"));
            }
        }
        let prompt_tokens: usize = jobs.iter().map(|job| job.prompt.len()).sum();
        // Before anything is built for them.
        let wait = Queued {
            requests: jobs.len().saturating_mul(common.n),
            tokens: prompt_tokens.saturating_mul(common.n),
        };
        app.requests.has_room(wait)?;
        // Prompts that differ or not: with the client's seed each gets what it gets alone, else each has luck of its own.
        let drawn = if common.has_seed { None } else { Some(app.seed()?) };
        let seed = |prompt: u64| drawn.map_or(common.sampling.seed, |drawn| nth(drawn, prompt));
        let mut stops = common.stop_token_ids.clone();
        let eos: Arc<[u32]> =
            if common.ignore_eos { Arc::default() } else { app.text.eos_token_ids.clone().into() };
        stops.extend(eos.iter());
        let like = GenerateRequest {
            sampling: common.sampling.clone(),
            stop_token_ids: stops,
            min_tokens: common.min_tokens,
            logit_bias: common.logit_bias.clone(),
            logprobs: wanted.logprobs,
            prompt_logprobs: wanted.prompt_logprobs,
            grammar: common.grammar.as_ref().map(|asked| asked.grammar.clone().into()),
            cache_salt: common.cache_salt,
            ..GenerateRequest::default()
        };
        let of_job = |(job, i): (&Job, u64)| BatchPrompt {
            tokens: job.prompt.to_vec(),
            max_tokens: job.max_tokens.max(1),
            seed: seed(i),
        };
        let prompts = jobs.iter().zip(0..).map(of_job).collect();
        let batch = GenerateBatch { prompts, n: common.n, like: Box::new(like) };
        let run = app.requests.submit(id, ticket.arrival.at, batch, wait)?;
        let usage = Usage { prompt_tokens, ..Usage::default() };
        ticket.begin(id, usage);
        jobs.iter().for_each(|job| app.requests.metrics.asked(common.n, job.max_tokens));
        let like = Choice::new(common, eos, wanted.shown);
        let decoder = |tokenizer: &Arc<Tokenizer>, job: &Job| {
            StreamDecoder::after_prompt(tokenizer.clone(), common.skip_special, &job.prompt)
        };
        let mut choices = Vec::with_capacity(wait.requests);
        for job in jobs {
            let decoder = app.text.tokenizer.as_ref().map(|tokenizer| decoder(tokenizer, job));
            choices.extend((0..common.n).map(|_| like.of(decoder.clone(), job.max_tokens == 0)));
        }
        let prompts =
            jobs.iter().map(|job| OfPrompt { tokens: job.prompt.len(), cached_tokens: None }).collect();
        Ok(Session {
            run,
            choices,
            n: common.n,
            prompts,
            usage,
            ticket: ticket.clone(),
            metrics: app.requests.metrics.clone(),
            early: None,
        })
    }

    /// How many choices there are.
    pub fn len(&self) -> usize {
        self.choices.len()
    }

    /// Of all choices, so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Of one choice, so far.
    pub fn usage_of(&self, index: usize) -> Usage {
        let OfPrompt { tokens, cached_tokens } = self.prompts[index / self.n];
        Usage {
            prompt_tokens: tokens,
            cached_tokens: cached_tokens.unwrap_or(0),
            completion_tokens: self.choices[index].tokens,
        }
    }

    /// Waits for the first news, which [`Session::next`] then gives, but no longer than `limit`.
    ///
    /// # Errors
    /// As [`Run::next`].
    pub async fn wait(&mut self, limit: Duration) -> Result<(), ApiError> {
        if let Ok(news) = tokio::time::timeout(limit, self.next()).await {
            self.early = Some(news?);
        }
        Ok(())
    }

    /// What comes next; nothing once all choices are over.
    ///
    /// # Errors
    /// As [`Run::next`].
    pub async fn next(&mut self) -> Result<Option<News>, ApiError> {
        if let Some(news) = self.early.take() {
            return Ok(news);
        }
        loop {
            let next = self.run.next().await;
            let next = next.inspect_err(|_| self.ticket.go_on(self.usage, Some("error")));
            let Some((index, event)) = next? else { break };
            match event {
                Event::Started { cached_tokens, .. } => {
                    // The first choice of a prompt tells of it, and of a preemption nothing is told.
                    let of_prompt = &mut self.prompts[index / self.n];
                    if index % self.n == 0 && of_prompt.cached_tokens.is_none() {
                        of_prompt.cached_tokens = Some(cached_tokens);
                        self.usage.cached_tokens += cached_tokens;
                    }
                }
                Event::Prompt { logprobs, .. } => return Ok(Some(News::Prompt(index, logprobs))),
                Event::Token { token, logprobs, end, .. } => {
                    let choice = &mut self.choices[index];
                    let before = choice.tokens;
                    let delta = choice.push(token, logprobs, end);
                    self.usage.completion_tokens += choice.tokens - before;
                    let reason = delta.finish.as_ref().map(|finish| finish.reason);
                    self.ticket.go_on(self.usage, reason.map(FinishReason::name));
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
