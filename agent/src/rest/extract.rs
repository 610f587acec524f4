//! What handlers ask for in their signatures. Their order there is the order of the checks; a body
//! comes last.

use super::answer::Answer;
use super::shared::Shared;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Request};
use axum::http::header::{CONTENT_LENGTH, TRANSFER_ENCODING};
use axum::http::request::Parts;
use proto::rest::{Published, Query};
use serde_json::{Map, Value};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// No document of this interface comes near.
pub(super) const BODY_BYTES_MAX: usize = 1 << 20;

/// A client that is still sending after this long is given up.
const BODY_LIMIT: Duration = Duration::from_secs(10);

/// What is published at this moment.
pub(super) struct Now(pub(super) Arc<Published>);

impl FromRequestParts<Arc<Shared>> for Now {
    type Rejection = Infallible;

    async fn from_request_parts(_: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Infallible> {
        Ok(Self(shared.published()))
    }
}

/// The parameters behind the question mark, read by Patroni's rules (`rest-api.md` 2): the first of a
/// name counts, and an empty one is as if it were not there.
pub(super) struct Parameters(pub(super) Query);

impl FromRequestParts<Arc<Shared>> for Parameters {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<Shared>) -> Result<Self, Infallible> {
        Ok(Self(Query::parse(parts.uri.query().unwrap_or_default())))
    }
}

/// A snapshot of a cluster that is in failsafe mode; any other has nothing to say about it.
pub(super) struct InFailsafeMode(pub(super) Arc<Published>);

impl FromRequestParts<Arc<Shared>> for InFailsafeMode {
    type Rejection = Answer;

    async fn from_request_parts(_: &mut Parts, shared: &Arc<Shared>) -> Result<Self, Answer> {
        let published = shared.published();
        if published.settings.cluster.failsafe_mode {
            Ok(Self(published))
        } else {
            Err(Answer::page(502))
        }
    }
}

/// A JSON object that must be there and not be empty (`rest-api.md` 9.3).
pub(super) struct Body(pub(super) Map<String, Value>);

impl FromRequest<Arc<Shared>> for Body {
    type Rejection = Answer;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, Answer> {
        if !announced(&request) {
            return Err(Answer::page(411));
        }
        match object(&collect(request, shared).await?) {
            Some(map) if !map.is_empty() => Ok(Self(map)),
            Some(_) | None => Err(Answer::page(400)),
        }
    }
}

/// A JSON object, or nothing.
pub(super) struct MaybeBody(pub(super) Map<String, Value>);

impl FromRequest<Arc<Shared>> for MaybeBody {
    type Rejection = Answer;

    async fn from_request(request: Request, shared: &Arc<Shared>) -> Result<Self, Answer> {
        if !announced(&request) {
            return Ok(Self(Map::new()));
        }
        let bytes = collect(request, shared).await?;
        if bytes.is_empty() {
            return Ok(Self(Map::new()));
        }
        object(&bytes).map(Self).ok_or_else(|| Answer::page(400))
    }
}

/// `Content-Type` is never looked at, and a missing length is its own error, so axum's `Json` does not
/// fit.
fn announced(request: &Request) -> bool {
    let headers = request.headers();
    headers.contains_key(CONTENT_LENGTH) || headers.contains_key(TRANSFER_ENCODING)
}

/// At most [`BODY_BYTES_MAX`]; the router sets that limit for axum.
async fn collect(request: Request, shared: &Arc<Shared>) -> Result<Bytes, Answer> {
    match tokio::time::timeout(BODY_LIMIT, Bytes::from_request(request, shared)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(_)) | Err(_) => Err(Answer::page(400)),
    }
}

fn object(bytes: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(bytes) {
        Ok(Value::Object(map)) => Some(map),
        Ok(_) | Err(_) => None,
    }
}
