//! Answers as values, and how they become responses (`rest-api.md` 1.2 to 1.4).

use super::shared::{Caller, Shared};
use crate::config::RestApiConfig;
use axum::body::Body;
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::http::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use proto::rest::requests::Reply;
use std::sync::Arc;

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    code: u16,
    shape: Shape,
    headers: Vec<(&'static str, String)>,
}

#[derive(Clone, Debug, PartialEq)]
enum Shape {
    /// The status line is all there is to say.
    Bare,
    /// `application/json`.
    Json(String),
    /// `text/plain`, only the metrics.
    Plain(String),
    /// Plain text that is called `text/html`, as clients know it.
    Text(String),
    /// An error page. The connection ends with it.
    Page(String),
    /// No byte at all: the connection is closed, so that `patronictl` takes the way through etcd.
    Nothing,
}

impl Answer {
    /// Only a status.
    pub(super) fn bare(code: u16) -> Self {
        Self {
            code,
            shape: Shape::Bare,
            headers: Vec::new(),
        }
    }

    /// A JSON document.
    pub(super) fn json(code: u16, text: String) -> Self {
        Self {
            code,
            shape: Shape::Json(text),
            headers: Vec::new(),
        }
    }

    /// The metrics.
    pub(super) fn plain(text: String) -> Self {
        Self {
            code: 200,
            shape: Shape::Plain(text),
            headers: Vec::new(),
        }
    }

    /// A sentence.
    pub(super) fn text(code: u16, text: impl Into<String>) -> Self {
        Self {
            code,
            shape: Shape::Text(text.into()),
            headers: Vec::new(),
        }
    }

    /// The error page of a code, with its usual reason phrase.
    pub(super) fn page(code: u16) -> Self {
        let reason = StatusCode::from_u16(code)
            .ok()
            .and_then(|c| c.canonical_reason());
        Self::page_saying(code, reason.unwrap_or("Error"))
    }

    /// An error page with a message of its own.
    pub(super) fn page_saying(code: u16, message: &str) -> Self {
        Self {
            code,
            shape: Shape::Page(message.to_owned()),
            headers: Vec::new(),
        }
    }

    /// Close the connection without an answer.
    pub(super) fn nothing() -> Self {
        Self {
            code: 503,
            shape: Shape::Nothing,
            headers: Vec::new(),
        }
    }

    /// The same with one more header.
    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.push((name, value.to_string()));
        self
    }
}

impl From<Reply> for Answer {
    fn from(reply: Reply) -> Self {
        Self::text(reply.code, reply.text)
    }
}

/// `server_tokens` (`rest-api.md` 20).
fn server_token(config: &RestApiConfig, version: &str) -> String {
    match config.server_tokens.to_lowercase().as_str() {
        "minimal" => format!("Patroni/{version}"),
        "productonly" => String::from("Patroni"),
        _ => String::from(concat!("garden-agent/", env!("CARGO_PKG_VERSION"))),
    }
}

/// What a code means, in the words that stand on an error page. `patronictl` looks for the one of 501.
fn explanation(code: u16) -> &'static str {
    match code {
        400 => "the request is malformed",
        409 => "the state was changed by somebody else at the same time",
        411 => "the request must say how long its body is",
        501 => "Server does not support this operation",
        502 => "another server gave nothing usable",
        503 => "the request cannot be carried out at this time",
        _ => "see the status code",
    }
}

fn page(code: u16, message: &str) -> String {
    let message = message
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    format!(
        "<!DOCTYPE html>\n<html><head><title>Error response</title></head><body>\n\
         <h1>Error response</h1>\n<p>Error code: {code}</p>\n<p>Message: {message}.</p>\n\
         <p>Error code explanation: {code} - {}.</p>\n</body></html>\n",
        explanation(code)
    )
}

/// Marks a response that is not to be sent: the connection is closed instead.
#[derive(Clone, Copy, Debug)]
pub(super) struct Unanswered;

/// Marks a response that takes the headers that the operator wants to see.
#[derive(Clone, Copy, Debug)]
struct TakesExtras;

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::empty());
        let (content_type, text, extras) = match self.shape {
            Shape::Nothing => {
                response.extensions_mut().insert(Unanswered);
                return response;
            }
            Shape::Bare => (None, String::new(), false),
            Shape::Json(text) => (Some("application/json"), text, true),
            Shape::Plain(text) => (Some("text/plain"), text, true),
            Shape::Text(text) => (Some("text/html"), text, true),
            Shape::Page(message) => {
                let close = HeaderValue::from_static("close");
                response.headers_mut().insert(CONNECTION, close);
                let page = page(self.code, &message);
                (Some("text/html;charset=utf-8"), page, false)
            }
        };
        let code = StatusCode::from_u16(self.code);
        *response.status_mut() = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        *response.body_mut() = Body::from(text);
        let headers = response.headers_mut();
        for (name, value) in self.headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(HeaderName::from_static(name), value);
            }
        }
        if let Some(content_type) = content_type {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        }
        if extras {
            response.extensions_mut().insert(TakesExtras);
        }
        response
    }
}

/// Adds the headers that depend on the configuration of this moment.
pub(super) async fn finish(
    State(shared): State<Arc<Shared>>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let mut response = next.run(request).await;
    let (published, config) = (shared.published(), shared.config());
    let config = &config.restapi;
    let extras = response.extensions().get::<TakesExtras>().is_some();
    let headers = response.headers_mut();
    // The version is the one that we tell Patroni members.
    let token = server_token(config, &published.settings.version);
    if let Ok(server) = HeaderValue::from_str(&token) {
        headers.insert(SERVER, server);
    }
    if extras {
        let secure_ones = config.https_extra_headers.iter();
        let secure_ones = secure_ones.filter(|_| caller.secure);
        for (name, value) in config.http_extra_headers.iter().chain(secure_ones) {
            // What is no header is left out; the configuration check has named it.
            if let (Ok(name), Ok(value)) = (
                HeaderName::try_from(name.as_str()),
                HeaderValue::from_str(value),
            ) {
                headers.insert(name, value);
            }
        }
    }
    response
}
