//! The smallest HTTP client that can talk to agents, etcd and HAProxy's statistics: one request, one
//! connection, HTTP/1.0, everything within one limit.

use crate::ports;
use anyhow::{Context, Result};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Headers, their names in lower case.
    pub headers: Vec<(String, String)>,
    /// Body.
    pub body: String,
}

impl Answer {
    /// The body as JSON.
    ///
    /// # Errors
    /// When it is not.
    pub fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {}", self.body))
    }
}

/// Largest answer that is read.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Sends one request to a port of this machine.
///
/// # Errors
/// When nothing answers with HTTP within `limit`.
pub async fn request(
    port: u16,
    method: &str,
    path: &str,
    body: Option<&str>,
    limit: Duration,
) -> Result<Answer> {
    let body = body.unwrap_or_default();
    let text = format!(
        "{method} {path} HTTP/1.0\r\nHost: {}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
        ports::address(port),
        body.len()
    );
    let answer = exchange(port, &text, limit).await;
    answer.with_context(|| format!("{method} {path}"))
}

/// Sends these bytes to a port of this machine, and reads until the other side closes.
///
/// # Errors
/// When nothing answers with HTTP within `limit`.
pub async fn exchange(port: u16, text: &str, limit: Duration) -> Result<Answer> {
    let exchange = async {
        let mut stream = TcpStream::connect((ports::host(port), port)).await?;
        stream.write_all(text.as_bytes()).await?;
        let mut answer = Vec::new();
        stream
            .take(ANSWER_BYTES_MAX)
            .read_to_end(&mut answer)
            .await?;
        std::io::Result::Ok(answer)
    };
    let answer = tokio::time::timeout(limit, exchange).await;
    let answer = answer.with_context(|| format!("port {port}: no answer"))?;
    let answer = answer.with_context(|| format!("port {port}"))?;
    parse(&answer).with_context(|| format!("port {port}: not an HTTP answer"))
}

fn parse(answer: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n")?;
    let status = head.split_whitespace().nth(1)?.parse().ok()?;
    // HAProxy's statistics come in chunks even when asked with HTTP/1.0.
    let chunked = head
        .to_ascii_lowercase()
        .contains("transfer-encoding: chunked");
    let body = if chunked {
        dechunk(body)?
    } else {
        body.to_owned()
    };
    let headers = head.lines().skip(1).filter_map(|line| {
        let (name, value) = line.split_once(':')?;
        Some((name.to_ascii_lowercase(), value.trim().to_owned()))
    });
    Some(Answer {
        status,
        headers: headers.collect(),
        body,
    })
}

fn dechunk(mut body: &str) -> Option<String> {
    let mut text = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n")?;
        let size = usize::from_str_radix(size.trim(), 16).ok()?;
        if size == 0 {
            return Some(text);
        }
        text.push_str(rest.get(..size)?);
        body = rest.get(size..)?.strip_prefix("\r\n")?;
    }
}

/// Sends a GET.
///
/// # Errors
/// As [`request`].
pub async fn get(port: u16, path: &str, limit: Duration) -> Result<Answer> {
    request(port, "GET", path, None, limit).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_are_joined_and_a_cut_answer_is_refused() {
        let whole =
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n1\r\nd\r\n0\r\n\r\n";
        assert_eq!(
            parse(whole).map(|answer| answer.body),
            Some("abcd".to_owned())
        );
        let cut = whole.get(..whole.len() - 12).expect("long enough");
        assert!(parse(cut).is_none());
    }
}
