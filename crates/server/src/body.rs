//! Bodies: read within limits of bytes and time, and parsed within limits of depth and number of values.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::{HeaderMap, StatusCode, header};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;

use crate::app::{App, Shared};
use crate::wire::errors::ApiError;

/// How deep JSON may nest.
const DEPTH_MAX: usize = 100;
/// How many bytes its values may take once they are parsed, besides long texts: a million token ids, and some more.
const VALUES_BYTES_MAX: usize = 160 << 20;
/// One of a list. Lists grow by doubling, so there may be room for another.
const ITEM_BYTES: usize = 2 * size_of::<Value>();
/// A list with room for its first items.
const LIST_BYTES: usize = 4 * size_of::<Value>();
/// What an object keeps of a key beside its value: a text and its hash.
const ENTRY_BYTES: usize = size_of::<String>() + size_of::<u64>();
/// A key, whose value is an item; with the least that a text takes.
const KEY_BYTES: usize = 2 * ENTRY_BYTES + 32;
/// An object with room for its first keys, and a table to find them by.
const OBJECT_BYTES: usize = 3 * (size_of::<Value>() + ENTRY_BYTES) + 64;

/// What `take` makes of the JSON of a request, on a thread for such work.
///
/// # Errors
/// 415, 413, 408, 429, 400 if it is no JSON, or what `take` says.
pub async fn json<T: Send + 'static>(
    app: &Shared,
    request: Request,
    take: impl FnOnce(&App, Value) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    held(app, request, take).await.map(|(taken, _)| taken)
}

/// Room for a body. Whoever holds what the body said may hold that, too.
pub type Held = Option<OwnedSemaphorePermit>;

/// The same, with the room that the body took.
///
/// # Errors
/// As [`json`].
pub async fn held<T: Send + 'static>(
    app: &Shared,
    request: Request,
    take: impl FnOnce(&App, Value) -> Result<T, ApiError> + Send + 'static,
) -> Result<(T, Held), ApiError> {
    let (parts, mut body) = request.into_parts();
    check_type(&parts.headers)?;
    let read = tokio::time::timeout(app.config.timeouts.body, read(app, &mut body)).await;
    let (bytes, permit) = match read {
        Ok(Ok(read)) => read,
        Ok(Err(error)) => return Err(error),
        Err(_) => {
            let seconds = app.config.timeouts.body.as_secs_f64();
            let message = format!("the body did not arrive within {seconds} s");
            return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, message).code("body_timeout"));
        }
    };
    let read = {
        let app = app.clone();
        move || {
            let taken = take(&app, parse(&bytes)?)?;
            Ok((taken, permit))
        }
    };
    app.work.run(read).await
}

fn check_type(headers: &HeaderMap) -> Result<(), ApiError> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    if kind.split(';').next().is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json")) {
        return Ok(());
    }
    let message = "the body must be JSON: send the header `Content-Type: application/json`";
    Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, message).code("unsupported_media_type"))
}

async fn next(body: &mut Body) -> Option<Result<Bytes, axum::Error>> {
    loop {
        let frame = std::future::poll_fn(|cx| std::pin::Pin::new(&mut *body).poll_frame(cx)).await?;
        match frame.map(|frame| frame.into_data()) {
            Ok(Ok(bytes)) => return Some(Ok(bytes)),
            // Trailers say nothing here.
            Ok(Err(_)) => {}
            Err(error) => return Some(Err(error)),
        }
    }
}

async fn read(app: &App, body: &mut Body) -> Result<(Vec<u8>, Held), ApiError> {
    let max = app.config.limits.body_bytes;
    let too_large = || {
        let message = format!("the body has more than the {max} bytes that are taken");
        Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message).code("body_too_large"))
    };
    if body.size_hint().lower() > max as u64 {
        return too_large();
    }
    let (mut bytes, mut permit) = (Vec::new(), None);
    while let Some(chunk) = next(body).await {
        let chunk = chunk.map_err(|_| ApiError::bad("the body ended before its end"))?;
        if bytes.len() + chunk.len() > max {
            return too_large();
        }
        reserve(app, bytes.len() + chunk.len(), &mut permit)?;
        bytes.extend_from_slice(&chunk);
    }
    Ok((bytes, permit))
}

/// Holds permits for so many bytes. They are KiB, so that small bodies take some too.
fn reserve(app: &App, bytes: usize, held: &mut Held) -> Result<(), ApiError> {
    let has = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
    let more = bytes.div_ceil(1024).saturating_sub(has);
    if more == 0 {
        return Ok(());
    }
    let Ok(more) = app.bodies.clone().try_acquire_many_owned(u32::try_from(more).unwrap_or(u32::MAX)) else {
        let message = "the server reads as many bytes of other requests as it can";
        return Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
            .code("too_many_bytes")
            .retry_after_s(1));
    };
    match held {
        Some(held) => held.merge(more),
        None => *held = Some(more),
    }
    Ok(())
}

fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let no_json =
        |reason: String| ApiError::bad(format!("the body is no JSON: {reason}")).code("invalid_json");
    if bytes.is_empty() {
        return Err(no_json("it is empty".into()));
    }
    check_size(bytes)?;
    serde_json::from_slice(bytes).map_err(|error| no_json(error.to_string()))
}

/// One pass over the text, before anything is allocated for it.
fn check_size(bytes: &[u8]) -> Result<(), ApiError> {
    let (mut depth, mut weight_bytes, mut in_text, mut escaped) = (0usize, 0usize, false, false);
    for &byte in bytes {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            _ if in_text => {}
            b'[' | b'{' => {
                depth += 1;
                weight_bytes += if byte == b'[' { LIST_BYTES } else { OBJECT_BYTES };
                if depth > DEPTH_MAX {
                    let message = format!("the body nests more than {DEPTH_MAX} deep");
                    return Err(ApiError::bad(message).code("too_deep"));
                }
            }
            b']' | b'}' => depth = depth.saturating_sub(1),
            b',' => weight_bytes += ITEM_BYTES,
            b':' => weight_bytes += KEY_BYTES,
            _ => {}
        }
    }
    if weight_bytes > VALUES_BYTES_MAX {
        let max = VALUES_BYTES_MAX >> 20;
        let message = format!("the body has so many values that they would take more than {max} MiB");
        return Err(ApiError::bad(message).code("too_many_values"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_json_says_why_in_one_line() {
        for (body, part) in [
            (&b""[..], "empty"),
            (b"{", "EOF"),
            (b"{\"a\": NaN}", "column"),
            (b"{\"a\": 1e999}", "out of range"),
            (b"{\"a\": \"\xff\"}", "unicode"),
            (b"{} x", "trailing"),
        ] {
            let error = parse(body).unwrap_err();
            assert!(error.message.contains(part) && !error.message.contains('\n'), "{}", error.message);
        }
    }

    #[test]
    fn bombs_are_refused_before_they_are_parsed() {
        assert_eq!(parse("[".repeat(1 << 20).as_bytes()).unwrap_err().code, Some("too_deep"));
        let nested = format!("{}1{}", "{\"\":".repeat(95), "}".repeat(95));
        for (item, count) in [("1", 3 << 20), ("{\"\":1}", 400_000), ("[1]", 500_000), (&nested, 5000)] {
            let list = format!("[{}1]", format!("{item},").repeat(count));
            assert_eq!(parse(list.as_bytes()).unwrap_err().code, Some("too_many_values"), "{item}");
        }
        let prompt = format!("[{}1]", "100000,".repeat(128 << 10));
        let batch = format!("[{}[1]]", format!("{prompt},").repeat(8));
        assert!(parse(batch.as_bytes()).is_ok(), "a batch of long prompts is none");
        // Brackets in texts are text.
        assert!(parse(format!("\"{}\\\"[[[\"", "[".repeat(1000)).as_bytes()).is_ok());
    }
}
