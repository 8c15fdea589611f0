//! `/v1/chat/completions`.

use std::sync::Arc;

use axum::Extension;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use engine::serving::EngineInfo;
use engine::{FinishReason, Logprobs};
use serde_json::{Value, json};

use crate::answer::Head;
use crate::app::{App, Shared};
use crate::choice::Delta;
use crate::session::{Job, News, Session, Wanted, check_length, room};
use crate::stream::{self, Broken, Sink};
use crate::ticket::Ticket;
use crate::tools::answer::{Calls, Reader, call};
use crate::tools::parse::Parsed;
use crate::wire::chat::{CHAT, ChatRequest};
use crate::wire::common::{Common, Finish};
use crate::wire::errors::{ApiError, json_response};
use crate::wire::fields::Checked;
use crate::wire::logprobs::{TokenNames, chat_entry, prompt_entries};
use crate::work::at_length;
use crate::{body, prompt};

/// Answers a conversation.
pub async fn create(
    State(app): State<Shared>,
    Extension(ticket): Extension<Arc<Ticket>>,
    request: Request,
) -> Result<Response, ApiError> {
    let info = app.requests.info()?;
    let take = {
        let info = info.clone();
        move |app: &App, value: Value| {
            let fields = Checked::new(value, CHAT, &["messages"])?;
            let mut request = ChatRequest::read(fields, &app.text.defaults)?;
            app.model(request.common.model.as_deref())?;
            let tokenizer = app.tokenizer("messages")?;
            app.settle_grammar(&info, &mut request)?;
            let text = prompt::render(tokenizer, app.dialect(), &request)?;
            let add_special = request.common.add_special.unwrap_or(false);
            let prompt: Arc<[u32]> =
                prompt::encode(app, info.max_model_len, &text, add_special, "messages")?.into();
            let room = room(&info, &prompt, "messages")?;
            let (param, max_tokens) = request.max_tokens.unwrap_or(("max_tokens", room));
            let job = Job { prompt, max_tokens };
            check_length(&info, &job, param)?;
            let calls = request.tools.are_used().then(|| Calls::new(app.dialect().format, &request.tools));
            // The rest, which may be large, ends here.
            Ok(Asked { common: request.common, logprobs: request.logprobs, calls, job })
        }
    };
    let asked = body::json(&app, request, take).await?;
    app.work.answer(answer(app.clone(), info, ticket, asked)).await
}

/// What a request comes to.
struct Asked {
    common: Common,
    /// Log-probabilities, with so many of the most probable tokens.
    logprobs: Option<usize>,
    /// If there are tools to call.
    calls: Option<Calls>,
    job: Job,
}

async fn answer(
    app: Shared,
    info: Arc<EngineInfo>,
    ticket: Arc<Ticket>,
    asked: Asked,
) -> Result<Response, ApiError> {
    let is_streamed = asked.common.streaming.stream;
    let (session, writer) = begin(&app, &info, &ticket, asked)?;
    if is_streamed { writer.stream(&app, &ticket, session).await } else { writer.whole(session).await }
}

/// Asks the engine.
fn begin(
    app: &App,
    info: &EngineInfo,
    ticket: &Arc<Ticket>,
    asked: Asked,
) -> Result<(Session, Writer), ApiError> {
    let Asked { common, logprobs, calls, job } = asked;
    let head = Head::new("chatcmpl", &ticket.id, app.model(common.model.as_deref())?, common.streaming);
    let shown = calls.as_ref().zip(app.text.tokenizer.as_deref());
    let shown = shown.map(|(calls, tokenizer)| calls.shown(tokenizer)).unwrap_or_default();
    let wanted = Wanted { logprobs, prompt_logprobs: common.prompt_logprobs, shown };
    let jobs = std::slice::from_ref(&job);
    let session = Session::begin(app, info, &head.id, ticket, &common, jobs, wanted)?;
    let names = TokenNames::new(app.text.tokenizer.clone(), common.tokens_as_ids, common.skip_special);
    let writer = Writer {
        head,
        names,
        prompt: job.prompt,
        calls,
        has_logprobs: logprobs.is_some(),
        has_ids: common.return_token_ids,
    };
    Ok((session, writer))
}

/// Writes a session as chat completions.
struct Writer {
    head: Head,
    names: TokenNames,
    prompt: Arc<[u32]>,
    /// If there are tools to call.
    calls: Option<Calls>,
    has_logprobs: bool,
    has_ids: bool,
}

/// A choice, as far as it has come.
#[derive(Default)]
struct Message {
    parsed: Parsed,
    logprobs: Vec<Value>,
    token_ids: Vec<u32>,
    finish: Option<Finish>,
}

impl Writer {
    async fn whole(self, mut session: Session) -> Result<Response, ApiError> {
        let mut messages: Vec<Message> = Vec::new();
        messages.resize_with(session.len(), Message::default);
        let mut readers = self.readers(session.len());
        let mut of_prompt: Vec<Option<Logprobs>> = Vec::new();
        while let Some(news) = session.next().await? {
            match news {
                News::Prompt(0, logprobs) => of_prompt.extend(logprobs),
                News::Prompt(..) => {}
                News::Delta(index, delta) => {
                    let message = &mut messages[index];
                    message.logprobs.extend(self.entry(&delta));
                    let pieces = readers[index].read(&delta.text, delta.finish.is_some());
                    pieces.into_iter().for_each(|piece| message.parsed.add(piece));
                    message.token_ids.extend(delta.token.map(|(id, _)| id));
                    message.finish = delta.finish.or(message.finish.take());
                }
            }
        }
        let usage = session.usage();
        // A prompt's log-probabilities can be many names of tokens.
        at_length(|| {
            let choices = messages.into_iter().enumerate();
            let choices = choices.map(|(index, message)| self.whole_choice(index, message));
            let choices = choices.collect::<Result<Vec<_>, _>>()?.into();
            let mut answer = self.head.answer("chat.completion", choices, usage);
            if !of_prompt.is_empty() {
                answer["prompt_logprobs"] = prompt_entries(&self.names, &self.prompt, &of_prompt);
            }
            if self.has_ids {
                answer["prompt_token_ids"] = self.prompt.to_vec().into();
            }
            Ok(json_response(StatusCode::OK, &answer))
        })
    }

    fn whole_choice(&self, index: usize, message: Message) -> Result<Value, ApiError> {
        let Parsed { content, calls } = message.parsed;
        let (reason, stop_reason) = self.reasons(&message.finish, !calls.is_empty());
        let content = if content.is_empty() && !calls.is_empty() { Value::Null } else { content.into() };
        let mut choice = json!({
            "index": index,
            "message": {"role": "assistant", "content": content, "refusal": null},
            "logprobs": self.logprobs(message.logprobs),
            "finish_reason": reason, "stop_reason": stop_reason,
        });
        if !calls.is_empty() {
            let calls = calls.into_iter().map(|(name, arguments)| call(&name, &arguments));
            choice["message"]["tool_calls"] = calls.collect::<Result<Vec<_>, _>>()?.into();
        }
        if self.has_ids {
            choice["token_ids"] = message.token_ids.into();
        }
        Ok(choice)
    }

    /// What makes content and calls of each choice's text.
    fn readers(&self, choices: usize) -> Vec<Reader> {
        let reader = |_| self.calls.as_ref().map_or(Reader::default(), Calls::reader);
        (0..choices).map(reader).collect()
    }

    fn reasons(&self, finish: &Option<Finish>, has_calls: bool) -> (Value, Value) {
        let Some(finish) = finish else { return (Value::Null, Value::Null) };
        // Who named the function knows that it is called, and gets `stop`, as from OpenAI.
        let is_news = has_calls && self.calls.as_ref().is_some_and(|calls| !calls.is_named);
        let reason = match finish.reason {
            FinishReason::Stop if is_news => "tool_calls",
            reason => reason.name(),
        };
        (reason.into(), finish.stop_reason.clone())
    }

    async fn stream(self, app: &App, ticket: &Ticket, mut session: Session) -> Result<Response, ApiError> {
        // What is refused at once is an error with a status.
        session.wait(app.config.timeouts.first).await?;
        Ok(stream::respond(&app.config.timeouts, ticket.arrival, |sink| self.write(session, sink)))
    }

    async fn write(self, mut session: Session, sink: Sink) -> Result<(), Broken> {
        let mut readers = self.readers(session.len());
        for index in 0..session.len() {
            let role = chunk(index, json!({"role": "assistant", "content": ""}), Value::Null);
            let mut first = self.head.chunk("chat.completion.chunk", role, || session.usage_of(index));
            // The prompt is that of all choices.
            if self.has_ids && index == 0 {
                first["prompt_token_ids"] = self.prompt.to_vec().into();
            }
            sink.send(&first).await?;
        }
        while let Some(next) = session.next().await? {
            if let News::Delta(index, delta) = next {
                let mut logprobs = self.logprobs(self.entry(&delta).into_iter().collect());
                let mut has_ids = self.has_ids;
                let mut deltas = readers[index].deltas(&delta.text, delta.finish.is_some())?;
                if deltas.is_empty() && (!logprobs.is_null() || has_ids) {
                    deltas.push(json!({"content": ""}));
                }
                for one in deltas {
                    // A token that comes to several chunks is told of in the first.
                    let mut choice = chunk(index, one, logprobs.take());
                    if std::mem::take(&mut has_ids) {
                        choice["token_ids"] = delta.token.iter().map(|(id, _)| *id).collect();
                    }
                    sink.send(&self.head.chunk("chat.completion.chunk", choice, || session.usage_of(index)))
                        .await?;
                }
                if delta.finish.is_some() {
                    let mut last = chunk(index, json!({}), Value::Null);
                    let (reason, stop_reason) = self.reasons(&delta.finish, readers[index].has_calls());
                    last["finish_reason"] = reason;
                    last["stop_reason"] = stop_reason;
                    sink.send(&self.head.chunk("chat.completion.chunk", last, || session.usage_of(index)))
                        .await?;
                }
            }
        }
        match self.head.usage_chunk("chat.completion.chunk", session.usage()) {
            Some(usage) => sink.send(&usage).await,
            None => Ok(()),
        }
    }

    fn entry(&self, delta: &Delta) -> Option<Value> {
        let (id, logprobs) = delta.token.as_ref()?;
        logprobs.as_ref().map(|logprobs| chat_entry(&self.names, *id, logprobs))
    }

    fn logprobs(&self, content: Vec<Value>) -> Value {
        match self.has_logprobs {
            true => json!({"content": content, "refusal": null}),
            false => Value::Null,
        }
    }
}

fn chunk(index: usize, delta: Value, logprobs: Value) -> Value {
    json!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": null})
}
