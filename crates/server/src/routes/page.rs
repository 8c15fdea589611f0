//! Pages, embedded in the binary. They load nothing from elsewhere.

use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};

use super::part::Part;
use crate::wire::errors::ApiError;

/// Name, type, content. `/` and `/docs` are the first two.
const FILES: &[(&str, &str, &[u8])] = &[
    ("index.html", "text/html; charset=utf-8", include_bytes!("../../page/index.html")),
    ("docs.html", "text/html; charset=utf-8", include_bytes!("../../page/docs.html")),
    ("docs.js", "text/javascript; charset=utf-8", include_bytes!("../../page/docs.js")),
    ("style.css", "text/css; charset=utf-8", include_bytes!("../../page/style.css")),
    ("chat.css", "text/css; charset=utf-8", include_bytes!("../../page/chat.css")),
    ("live.css", "text/css; charset=utf-8", include_bytes!("../../page/live.css")),
    ("app.js", "text/javascript; charset=utf-8", include_bytes!("../../page/app.js")),
    ("api.js", "text/javascript; charset=utf-8", include_bytes!("../../page/api.js")),
    ("charts.js", "text/javascript; charset=utf-8", include_bytes!("../../page/charts.js")),
    ("chat.js", "text/javascript; charset=utf-8", include_bytes!("../../page/chat.js")),
    ("dom.js", "text/javascript; charset=utf-8", include_bytes!("../../page/dom.js")),
    ("format.js", "text/javascript; charset=utf-8", include_bytes!("../../page/format.js")),
    ("load.js", "text/javascript; charset=utf-8", include_bytes!("../../page/load.js")),
    ("notices.js", "text/javascript; charset=utf-8", include_bytes!("../../page/notices.js")),
    ("ranks.js", "text/javascript; charset=utf-8", include_bytes!("../../page/ranks.js")),
    ("settings.js", "text/javascript; charset=utf-8", include_bytes!("../../page/settings.js")),
    ("waterfall.js", "text/javascript; charset=utf-8", include_bytes!("../../page/waterfall.js")),
    ("icon.svg", "image/svg+xml", include_bytes!("../../page/icon.svg")),
];

/// Whether a path is one that people open in a browser.
pub fn is_page(path: &str) -> bool {
    path == "/" || path == "/docs" || path.starts_with("/page/")
}

/// `/`.
pub async fn index() -> Response {
    answer(&FILES[0])
}

/// `/docs`.
pub async fn docs() -> Response {
    answer(&FILES[1])
}

/// `/page/{file}`.
pub async fn file(Part(name): Part) -> Result<Response, ApiError> {
    let file = FILES.iter().find(|(known, ..)| *known == name);
    let name = crate::wire::fields::shortened(&name);
    let missing =
        || ApiError::new(StatusCode::NOT_FOUND, format!("there is no file {name:?}")).code("not_found");
    file.map(answer).ok_or_else(missing)
}

fn answer((_, kind, content): &(&str, &'static str, &'static [u8])) -> Response {
    let headers = [
        (header::CONTENT_TYPE, *kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, "default-src 'self'; frame-ancestors 'none'"),
    ];
    (headers, *content).into_response()
}
