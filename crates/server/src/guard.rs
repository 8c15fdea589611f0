//! What every request passes, before it is known whether there is such a route: limits of its head, its host, its origin, its
//! key. Whatever comes out has a request id.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Extension;
use axum::extract::{MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use crate::app::{App, Shared, random};
use crate::arrival::Arrival;
use crate::routes::page;
use crate::ticket::{Line, Ticket};
use crate::wire::errors::ApiError;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
const ID_LENGTH_MAX: usize = 64;

/// The outermost layer.
pub async fn guard(
    State(app): State<Shared>,
    Extension(arrival): Extension<Arrival>,
    request: Request,
    next: Next,
) -> Response {
    let _answering = Answering::of(&app);
    let (mut parts, body) = request.into_parts();
    let id = request_id(&parts.headers);
    let ticket = Arc::new(Ticket::new(id.to_str().unwrap_or_default().to_owned(), arrival));
    parts.extensions.insert(ticket.clone());
    let origin = allowed_origin(&app, &parts.headers);
    let path = parts.uri.path().to_owned();
    let (method, route) = (parts.method.clone(), parts.extensions.get::<MatchedPath>().cloned());
    let line = Line::new(app.log, ticket, parts.method.clone(), path.clone());
    let mut response = match check(&app, &parts) {
        Err(error) => error.into_response(),
        Ok(()) if origin.is_some() && is_preflight(&parts) => preflight(&parts),
        // A preflight has no key; what it asks about needs one.
        Ok(()) => match app.keys.check(&path, &parts.headers) {
            Err(error) => ask_for_key(&path, error),
            Ok(()) => in_time(&app, arrival, next.run(Request::from_parts(parts, body))).await,
        },
    };
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(header::VARY, HeaderValue::from_static("origin"));
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("x-request-id"));
    }
    if app.requests.is_draining() {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    headers.insert(REQUEST_ID, id);
    let status = response.status();
    app.requests.metrics.answered(&method, status, route.as_ref().map(MatchedPath::as_str));
    response.map(|body| line.follow(status, body))
}

/// Counts a request while it is there.
struct Answering<'a>(&'a AtomicUsize);

impl<'a> Answering<'a> {
    fn of(app: &'a App) -> Self {
        app.answering.fetch_add(1, Ordering::Relaxed);
        Answering(&app.answering)
    }
}

impl Drop for Answering<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What `answer` comes to, unless the request's deadline is before it. Of a stream this is its head.
async fn in_time(app: &App, arrival: Arrival, answer: impl Future<Output = Response>) -> Response {
    tokio::select! {
        response = answer => response,
        () = arrival.is_over() => too_slow(app.config.timeouts.request).into_response(),
    }
}

/// The error of a request whose deadline has passed.
pub fn too_slow(limit: Option<Duration>) -> ApiError {
    let seconds = limit.unwrap_or_default().as_secs_f64();
    let message = format!("the request took longer than the {seconds} s allowed");
    ApiError::new(StatusCode::GATEWAY_TIMEOUT, message).code("request_timeout")
}

fn check(app: &App, parts: &Parts) -> Result<(), ApiError> {
    let limits = &app.config.limits;
    let header_bytes = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    let bytes = parts.headers.iter().map(header_bytes).sum::<usize>();
    let uri_bytes = parts.uri.path_and_query().map_or(0, |path| path.as_str().len());
    let too_large = |message: String| {
        Err(ApiError::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, message).code("head_too_large"))
    };
    if parts.headers.len() > limits.headers {
        return too_large(format!(
            "the request has {} headers; {} at most are taken",
            parts.headers.len(),
            limits.headers
        ));
    }
    if bytes + uri_bytes > limits.head_bytes {
        return too_large(format!(
            "the request's head has {} bytes; {} at most are taken",
            bytes + uri_bytes,
            limits.head_bytes
        ));
    }
    app.hosts.check(parts)
}

/// The client's own id, if it is short and plain; else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let is_plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
    let given = headers
        .get(REQUEST_ID)
        .filter(|id| (1..=ID_LENGTH_MAX).contains(&id.len()) && id.as_bytes().iter().all(is_plain));
    given.cloned().unwrap_or_else(|| {
        let [high, low] = [(); 2].map(|()| random().unwrap_or_default());
        let id = format!("{high:016x}{low:016x}");
        HeaderValue::from_str(&id).expect("hex digits are plain")
    })
}

/// 401. A browser that wants a page is told that it may ask its user for the key, as a password.
fn ask_for_key(path: &str, error: ApiError) -> Response {
    let mut response = error.into_response();
    if page::is_page(path) {
        let basic = HeaderValue::from_static("Basic realm=\"anysplit: any name, the API key as password\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, basic);
    }
    response
}

fn allowed_origin(app: &App, headers: &HeaderMap) -> Option<HeaderValue> {
    let origin = headers.get(header::ORIGIN)?;
    let is_allowed = |allowed: &String| allowed == "*" || allowed.as_bytes() == origin.as_bytes();
    app.config.allowed_origins.iter().any(is_allowed).then(|| origin.clone())
}

fn is_preflight(parts: &Parts) -> bool {
    parts.method == Method::OPTIONS && parts.headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD)
}

fn preflight(parts: &Parts) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    // Clients send headers of their own (x-stainless-…), none of which does anything here.
    if let Some(asked) = parts.headers.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked.clone());
    }
    response
}
