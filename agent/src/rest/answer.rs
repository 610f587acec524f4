//! Answers as values, and the one place that turns them into bytes (`rest-api.md` 1.2 to 1.4).

use crate::config::RestApiConfig;
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use hyper::{Response, StatusCode};
use proto::rest::requests::Reply;

/// What a request is answered with.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    code: u16,
    shape: Shape,
    header: Option<(&'static str, String)>,
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
            header: None,
        }
    }

    /// A JSON document.
    pub(super) fn json(code: u16, text: String) -> Self {
        Self {
            code,
            shape: Shape::Json(text),
            header: None,
        }
    }

    /// The metrics.
    pub(super) fn plain(text: String) -> Self {
        Self {
            code: 200,
            shape: Shape::Plain(text),
            header: None,
        }
    }

    /// A sentence.
    pub(super) fn text(code: u16, text: impl Into<String>) -> Self {
        Self {
            code,
            shape: Shape::Text(text.into()),
            header: None,
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
            header: None,
        }
    }

    /// Close the connection without an answer.
    pub(super) fn nothing() -> Self {
        Self {
            code: 503,
            shape: Shape::Nothing,
            header: None,
        }
    }

    /// The same with one more header.
    pub(super) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.header = Some((name, value.to_string()));
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

/// The response; `None` for [`Answer::nothing`]. `version` is the one that we tell Patroni members.
pub(super) fn render(
    answer: Answer,
    config: &RestApiConfig,
    version: &str,
    secure: bool,
) -> Option<Response<Full<Bytes>>> {
    let (content_type, body, extras) = match answer.shape {
        Shape::Nothing => return None,
        Shape::Bare => (None, String::new(), false),
        Shape::Json(text) => (Some("application/json"), text, true),
        Shape::Plain(text) => (Some("text/plain"), text, true),
        Shape::Text(text) => (Some("text/html"), text, true),
        Shape::Page(message) => (
            Some("text/html;charset=utf-8"),
            page(answer.code, &message),
            false,
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() =
        StatusCode::from_u16(answer.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if let Ok(server) = HeaderValue::from_str(&server_token(config, version)) {
        headers.insert(SERVER, server);
    }
    if let Some((name, value)) = answer.header
        && let Ok(value) = HeaderValue::from_str(&value)
    {
        headers.insert(HeaderName::from_static(name), value);
    }
    if let Some(content_type) = content_type {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    }
    if content_type == Some("text/html;charset=utf-8") {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if extras {
        let secure_ones = config.https_extra_headers.iter().filter(|_| secure);
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
    Some(response)
}
