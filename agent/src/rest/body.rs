//! Reading bodies (`rest-api.md` 9.3), with limits on size and time.

use super::answer::Answer;
use http_body_util::{BodyExt, Limited};
use hyper::Request;
use hyper::body::Incoming;
use hyper::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use serde_json::{Map, Value};
use std::time::Duration;

/// No document of this interface comes near.
const BODY_BYTES_MAX: usize = 1 << 20;

/// A client that is still sending after this long is given up.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// A JSON object that must be there and not be empty.
pub(super) async fn mandatory(request: Request<Incoming>) -> Result<Map<String, Value>, Answer> {
    if !announced(&request) {
        return Err(Answer::page(411));
    }
    match object(&collect(request).await?) {
        Some(map) if !map.is_empty() => Ok(map),
        Some(_) | None => Err(Answer::page(400)),
    }
}

/// A JSON object, or nothing.
pub(super) async fn optional(request: Request<Incoming>) -> Result<Map<String, Value>, Answer> {
    if !announced(&request) {
        return Ok(Map::new());
    }
    let bytes = collect(request).await?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    object(&bytes).ok_or_else(|| Answer::page(400))
}

fn announced(request: &Request<Incoming>) -> bool {
    let headers = request.headers();
    headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
}

async fn collect(request: Request<Incoming>) -> Result<Vec<u8>, Answer> {
    let body = Limited::new(request.into_body(), BODY_BYTES_MAX).collect();
    match tokio::time::timeout(BODY_LIMIT, body).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes().to_vec()),
        Ok(Err(_)) | Err(_) => Err(Answer::page(400)),
    }
}

fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Some(map),
        Ok(_) | Err(_) => None,
    }
}
