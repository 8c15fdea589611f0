//! `/v1/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use engine::Logprobs;
use serde_json::{Value, json};

use crate::answer::Head;
use crate::app::{App, Shared};
use crate::choice::Delta;
use crate::session::{Job, News, Session, Wanted, check_length, room};
use crate::stream::{self, Broken, Sink};
use crate::wire::common::{Finish, Prompt, SAMPLING};
use crate::wire::completions::{COMPLETIONS, CompletionRequest};
use crate::wire::errors::{ApiError, json_response};
use crate::wire::fields::Checked;
use crate::wire::logprobs::{CompletionLogprobs, TokenNames, prompt_entries};
use crate::{body, prompt};

const OBJECT: &str = "text_completion";

/// Completes prompts.
pub async fn create(State(app): State<Shared>, request: Request) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let info = app.dispatch.info()?;
    let take = {
        let (app, info) = (app.clone(), info.clone());
        move |value: Value| {
            let fields = Checked::new(value, &[COMPLETIONS, SAMPLING], &["prompt"])?;
            let request = CompletionRequest::read(fields, &app.text.defaults)?;
            app.model(request.common.model.as_deref())?;
            if let Some(asked) = &request.common.grammar {
                app.check_grammar(&info, asked)?;
            }
            let (mut jobs, mut echoes) = (Vec::new(), Vec::new());
            for (i, one) in request.prompts.iter().enumerate() {
                let at = if request.prompts.len() == 1 { "prompt".into() } else { format!("prompt[{i}]") };
                let prompt = ids(&app, info.max_model_len, one, request.common.add_special, &at)?;
                let room = room(&info, &prompt, &at)?;
                let job = Job { max_tokens: request.max_tokens(room), prompt };
                check_length(&info, &job, "max_tokens")?;
                if request.echo {
                    echoes.push(echo(&app, one, &job.prompt, request.common.skip_special)?);
                }
                jobs.push(job);
            }
            Ok((request, jobs, echoes))
        }
    };
    let (request, jobs, echoes) = body::json(&app, request, take).await?;
    let common = &request.common;
    let head = Head::new("cmpl", app.model(common.model.as_deref())?, common.streaming)?;
    let of_prompt =
        if request.echo { request.logprobs.max(common.prompt_logprobs) } else { common.prompt_logprobs };
    let wanted = Wanted { logprobs: request.logprobs, prompt_logprobs: of_prompt, shown: Vec::new() };
    let session = Session::begin(&app, &info, &head.id, arrived, common, &jobs, wanted)?;
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
    if common.streaming.stream {
        writer.stream(app, session).await
    } else {
        writer.whole(&app, session).await
    }
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
fn echo(app: &App, prompt: &Prompt, ids: &[u32], skip_special: bool) -> Result<String, ApiError> {
    match (prompt, &app.text.tokenizer) {
        (Prompt::Text(text), _) => Ok(text.clone()),
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

    async fn whole(self, app: &App, mut session: Session) -> Result<Response, ApiError> {
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
        let write = move || {
            let choices = deltas.into_iter().zip(states).enumerate();
            let choices =
                choices.map(|(index, (deltas, state))| self.whole_choice(index, deltas, state)).collect();
            Ok(json_response(StatusCode::OK, &self.head.answer(OBJECT, choices, usage)))
        };
        app.work.run(write).await
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

    async fn stream(self, app: Shared, mut session: Session) -> Result<Response, ApiError> {
        // What is refused is an error with a status, so the first news decides on the head.
        let first = session.next().await?;
        Ok(stream::respond(|sink| Arc::new(self).write(app, session, first, sink)))
    }

    /// What a token came to; before it the prompt, if it comes back, which can be many names of tokens.
    async fn piece(
        self: &Arc<Self>,
        app: &App,
        state: &mut Progress,
        index: usize,
        delta: Delta,
    ) -> Result<Piece, ApiError> {
        let mut piece = Piece::default();
        if state.has_begun || self.echoes.is_empty() {
            self.add(&mut piece, state, index, delta);
            return Ok(piece);
        }
        let (writer, mut moved) = (self.clone(), std::mem::take(state));
        let add = move || {
            writer.add(&mut piece, &mut moved, index, delta);
            Ok((piece, moved))
        };
        let (piece, moved) = app.work.run(add).await?;
        *state = moved;
        Ok(piece)
    }

    async fn write(
        self: Arc<Self>,
        app: Shared,
        mut session: Session,
        first: Option<News>,
        sink: Sink,
    ) -> Result<(), Broken> {
        let mut states = self.states(&session);
        let mut news = first;
        while let Some(next) = news {
            match next {
                News::Prompt(index, logprobs) => states[index].of_prompt.extend(logprobs),
                News::Delta(index, delta) => {
                    let is_first = !states[index].has_begun;
                    let piece = self.piece(&app, &mut states[index], index, delta).await?;
                    let has_news = !piece.text.is_empty()
                        || !piece.logprobs.is_empty()
                        || piece.finish.is_some()
                        || self.has_ids;
                    if has_news {
                        let mut choice = self.choice(index, piece);
                        if self.has_ids && is_first {
                            choice["prompt_token_ids"] = self.prompts[index / self.n].to_vec().into();
                        }
                        sink.send(&self.head.chunk(OBJECT, choice, session.usage())).await?;
                    }
                }
            }
            news = session.next().await?;
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
    Some(Logprobs { logprob: logprobs.logprob, top: logprobs.top.iter().take(top).copied().collect() })
}
