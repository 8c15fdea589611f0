//! `/v1/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use engine::Logprobs;
use engine::serving::EngineInfo;
use serde_json::{Value, json};

use crate::answer::Head;
use crate::app::{App, Shared};
use crate::choice::Delta;
use crate::session::{Job, News, Session, Wanted, check_length, room};
use crate::stream::{self, Broken, Sink};
use crate::ticket::Ticket;
use crate::wire::common::{Finish, Prompt, SAMPLING};
use crate::wire::completions::{COMPLETIONS, CompletionRequest};
use crate::wire::errors::{ApiError, json_response};
use crate::wire::fields::Checked;
use crate::wire::logprobs::{CompletionLogprobs, TokenNames, prompt_entries};
use crate::work::at_length;
use crate::{body, prompt};

const OBJECT: &str = "text_completion";

/// So many bytes of prompts are encoded before others get their turn.
const PIECE_BYTES: usize = 64 << 10;

/// Completes prompts.
pub async fn create(
    State(app): State<Shared>,
    Extension(ticket): Extension<Arc<Ticket>>,
    request: Request,
) -> Result<Response, ApiError> {
    let info = app.requests.info()?;
    let take = {
        let info = info.clone();
        move |app: &App, value: Value| {
            let fields = Checked::new(value, &[COMPLETIONS, SAMPLING], &["prompt"])?;
            let request = CompletionRequest::read(fields, &app.text.defaults)?;
            app.model(request.common.model.as_deref())?;
            // Each prompt has a token at least.
            app.requests.could_wait(&info, request.queued(request.prompts.len()))?;
            if let Some(asked) = &request.common.grammar {
                app.check_grammar(&info, asked)?;
            }
            Ok(Encoded::none_of(request))
        }
    };
    let (mut encoded, held) = body::held(&app, request, take).await?;
    // A client that leaves, and a deadline that passes, end this between two pieces.
    while !encoded.are_all() {
        let piece = {
            let (app, info) = (app.clone(), info.clone());
            move || encoded.more(&app, &info)
        };
        encoded = app.work.run(piece).await?;
    }
    drop(held);
    app.work.answer(answer(app.clone(), info, ticket, encoded)).await
}

/// A request whose prompts become what the engine takes.
struct Encoded {
    /// Prompts that are encoded are empty here.
    request: CompletionRequest,
    jobs: Vec<Job>,
    /// If they come back.
    echoes: Vec<String>,
    tokens: usize,
}

impl Encoded {
    fn none_of(request: CompletionRequest) -> Self {
        Encoded { request, jobs: Vec::new(), echoes: Vec::new(), tokens: 0 }
    }

    fn are_all(&self) -> bool {
        self.jobs.len() == self.request.prompts.len()
    }

    /// The same with some more.
    fn more(mut self, app: &App, info: &EngineInfo) -> Result<Self, ApiError> {
        let mut bytes = 0;
        while !self.are_all() && bytes < PIECE_BYTES {
            let i = self.jobs.len();
            let one = std::mem::take(&mut self.request.prompts[i]);
            let request = &self.request;
            bytes += one.bytes();
            let at = if request.prompts.len() == 1 { "prompt".into() } else { format!("prompt[{i}]") };
            let prompt = ids(app, info.max_model_len, &one, request.common.add_special, &at)?;
            let room = room(info, &prompt, &at)?;
            self.tokens += prompt.len();
            app.requests.could_wait(info, request.queued(self.tokens))?;
            let job = Job { max_tokens: request.max_tokens(room), prompt };
            check_length(info, &job, "max_tokens")?;
            if request.echo {
                self.echoes.push(echo(app, one, &job.prompt, request.common.skip_special)?);
            }
            self.jobs.push(job);
        }
        Ok(self)
    }
}

async fn answer(
    app: Shared,
    info: Arc<EngineInfo>,
    ticket: Arc<Ticket>,
    encoded: Encoded,
) -> Result<Response, ApiError> {
    let is_streamed = encoded.request.common.streaming.stream;
    let (session, writer) = begin(&app, &info, &ticket, encoded)?;
    if is_streamed { writer.stream(&app, &ticket, session).await } else { writer.whole(session).await }
}

/// Asks the engine.
fn begin(
    app: &App,
    info: &EngineInfo,
    ticket: &Arc<Ticket>,
    encoded: Encoded,
) -> Result<(Session, Writer), ApiError> {
    let Encoded { request, jobs, echoes, .. } = encoded;
    let common = &request.common;
    let head = Head::new("cmpl", &ticket.id, app.model(common.model.as_deref())?, common.streaming);
    let of_prompt =
        if request.echo { request.logprobs.max(common.prompt_logprobs) } else { common.prompt_logprobs };
    let wanted = Wanted { logprobs: request.logprobs, prompt_logprobs: of_prompt, shown: Vec::new() };
    let session = Session::begin(app, info, &head.id, ticket, common, &jobs, wanted)?;
    let writer = Writer {
        head,
        names: TokenNames::new(app.text.tokenizer.clone(), common.tokens_as_ids, common.skip_special),
        n: common.n,
        prompts: jobs.into_iter().map(|job| job.prompt).collect(),
        echoes,
        logprobs: request.logprobs,
        prompt_logprobs: common.prompt_logprobs,
        has_ids: common.return_token_ids || app.text.tokenizer.is_none(),
    };
    Ok((session, writer))
}

fn ids(
    app: &App,
    max_model_len: usize,
    prompt: &Prompt,
    add_special: Option<bool>,
    at: &str,
) -> Result<Arc<[u32]>, ApiError> {
    Ok(match prompt {
        Prompt::Ids(ids) => ids.as_slice().into(),
        Prompt::Text(text) => {
            prompt::encode(app, max_model_len, text, add_special.unwrap_or(true), at)?.into()
        }
    })
}

/// What `echo` gives back: the text as it came, or that of the ids.
fn echo(app: &App, prompt: Prompt, ids: &[u32], skip_special: bool) -> Result<String, ApiError> {
    match (prompt, &app.text.tokenizer) {
        (Prompt::Text(text), _) => Ok(text),
        (Prompt::Ids(_), Some(tokenizer)) => {
            tokenizer.decode(ids, skip_special).map_err(|error| ApiError::param("prompt", error.to_string()))
        }
        (Prompt::Ids(_), None) => Ok(String::new()),
    }
}

/// Writes a session as completions.
struct Writer {
    head: Head,
    names: TokenNames,
    n: usize,
    prompts: Vec<Arc<[u32]>>,
    /// By prompt, if they come back.
    echoes: Vec<String>,
    logprobs: Option<usize>,
    /// Those in vLLM's shape.
    prompt_logprobs: Option<usize>,
    has_ids: bool,
}

/// A choice, as far as it has come.
#[derive(Default)]
struct Progress {
    of_prompt: Vec<Option<Logprobs>>,
    has_begun: bool,
    /// Of the next token, in characters; below 0 before a word whose blank is not in the text.
    offset: isize,
}

/// What of a choice is told at once.
#[derive(Default)]
struct Piece {
    text: String,
    logprobs: CompletionLogprobs,
    token_ids: Vec<u32>,
    finish: Option<Finish>,
}

impl Writer {
    fn states(&self, session: &Session) -> Vec<Progress> {
        let mut states = Vec::new();
        states.resize_with(session.len(), Progress::default);
        states
    }

    /// Adds a token to a piece, and before the first one the prompt, if it comes back.
    fn add(&self, piece: &mut Piece, state: &mut Progress, index: usize, delta: Delta) {
        if !std::mem::replace(&mut state.has_begun, true)
            && let Some(echo) = self.echoes.get(index / self.n)
        {
            piece.text.push_str(echo);
            if let Some(top) = self.logprobs {
                let ids = &self.prompts[index / self.n];
                state.offset = self.names.start(echo, ids);
                for (&id, logprobs) in ids.iter().zip(&state.of_prompt) {
                    let logprobs = cut(logprobs.as_ref(), top);
                    piece.logprobs.push(&self.names, id, logprobs.as_ref(), &mut state.offset);
                }
            }
        }
        piece.text.push_str(&delta.text);
        if let Some((id, logprobs)) = delta.token {
            if self.logprobs.is_some() {
                piece.logprobs.push(&self.names, id, logprobs.as_ref(), &mut state.offset);
            }
            piece.token_ids.push(id);
        }
        piece.finish = delta.finish.or(piece.finish.take());
    }

    fn choice(&self, index: usize, piece: Piece) -> Value {
        let (reason, stop_reason) = match piece.finish {
            None => (Value::Null, Value::Null),
            Some(finish) => (finish.reason.name().into(), finish.stop_reason),
        };
        let logprobs = if self.logprobs.is_some() { piece.logprobs.into_json() } else { Value::Null };
        let mut choice = json!({
            "index": index, "text": piece.text, "logprobs": logprobs,
            "finish_reason": reason, "stop_reason": stop_reason,
        });
        if self.has_ids {
            choice["token_ids"] = piece.token_ids.into();
        }
        choice
    }

    async fn whole(self, mut session: Session) -> Result<Response, ApiError> {
        let mut states = self.states(&session);
        let mut deltas: Vec<Vec<Delta>> = Vec::new();
        deltas.resize_with(session.len(), Vec::new);
        while let Some(news) = session.next().await? {
            match news {
                News::Prompt(index, logprobs) => states[index].of_prompt.extend(logprobs),
                News::Delta(index, delta) => deltas[index].push(delta),
            }
        }
        // A prompt's log-probabilities can be many names of tokens.
        let usage = session.usage();
        at_length(|| {
            let choices = deltas.into_iter().zip(states).enumerate();
            let choices =
                choices.map(|(index, (deltas, state))| self.whole_choice(index, deltas, state)).collect();
            Ok(json_response(StatusCode::OK, &self.head.answer(OBJECT, choices, usage)))
        })
    }

    fn whole_choice(&self, index: usize, deltas: Vec<Delta>, mut state: Progress) -> Value {
        let mut piece = Piece::default();
        deltas.into_iter().for_each(|delta| self.add(&mut piece, &mut state, index, delta));
        let mut choice = self.choice(index, piece);
        let prompt = &self.prompts[index / self.n];
        if let Some(top) = self.prompt_logprobs {
            let cut: Vec<_> = state.of_prompt.iter().map(|logprobs| cut(logprobs.as_ref(), top)).collect();
            choice["prompt_logprobs"] = prompt_entries(&self.names, prompt, &cut);
        }
        if self.has_ids {
            choice["prompt_token_ids"] = prompt.to_vec().into();
        }
        choice
    }

    async fn stream(self, app: &App, ticket: &Ticket, mut session: Session) -> Result<Response, ApiError> {
        // What is refused at once is an error with a status.
        session.wait(app.config.timeouts.first).await?;
        Ok(stream::respond(&app.config.timeouts, ticket.arrival, |sink| self.write(session, sink)))
    }

    /// What a token came to; before it the prompt, if it comes back, which can be many names of tokens.
    fn piece(&self, state: &mut Progress, index: usize, delta: Delta) -> Piece {
        let mut piece = Piece::default();
        match state.has_begun || self.echoes.is_empty() {
            true => self.add(&mut piece, state, index, delta),
            false => at_length(|| self.add(&mut piece, state, index, delta)),
        }
        piece
    }

    async fn write(self, mut session: Session, sink: Sink) -> Result<(), Broken> {
        let mut states = self.states(&session);
        while let Some(next) = session.next().await? {
            match next {
                News::Prompt(index, logprobs) => states[index].of_prompt.extend(logprobs),
                News::Delta(index, delta) => {
                    let is_first = !states[index].has_begun;
                    let piece = self.piece(&mut states[index], index, delta);
                    let has_news = !piece.text.is_empty()
                        || !piece.logprobs.is_empty()
                        || piece.finish.is_some()
                        || self.has_ids;
                    if has_news {
                        let mut choice = self.choice(index, piece);
                        if self.has_ids && is_first {
                            choice["prompt_token_ids"] = self.prompts[index / self.n].to_vec().into();
                        }
                        sink.send(&self.head.chunk(OBJECT, choice, || session.usage_of(index))).await?;
                    }
                }
            }
        }
        match self.head.usage_chunk(OBJECT, session.usage()) {
            Some(usage) => sink.send(&usage).await,
            None => Ok(()),
        }
    }
}

/// The engine is asked once for the prompt's, for `echo` and `prompt_logprobs`; each has as many as it wanted.
fn cut(logprobs: Option<&Logprobs>, top: usize) -> Option<Logprobs> {
    let logprobs = logprobs?;
    let top = logprobs.top.iter().take(top).copied().collect();
    Some(Logprobs { logprob: logprobs.logprob, rank: logprobs.rank, top })
}
