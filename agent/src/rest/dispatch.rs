//! One request: which handler, whether the caller may, and the answer.

use super::access::{self, Allowlist};
use super::answer::{Answer, render};
use super::routes::{BodyRule, Endpoint, Route, find};
use super::{RestRequest, RestState, body, config, handover, jobs, openapi, read};
use crate::clock;
use crate::config::AgentConfig;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::{Method, Request, Response};
use proto::dcs::FailsafeRecord;
use proto::rest::{HandoverKind, Published, Query};
use serde_json::Map;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Entries of the journal in one answer.
const JOURNAL_LINES: usize = 200;

/// Who sent a request, as far as the connection tells.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// Source address; an IPv4 address that came in through an IPv6 socket is one again.
    pub(super) address: IpAddr,
    /// Through TLS.
    pub(super) secure: bool,
    /// With a certificate that passed verification.
    pub(super) certificate: bool,
}

/// What all connections share.
pub(super) struct Shared {
    /// From the agent.
    pub(super) state: RestState,
    allowlist: RwLock<Arc<Allowlist>>,
    failsafe: RwLock<Option<FailsafeRecord>>,
}

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer, on purpose")]
pub(super) struct NoAnswer;

impl Shared {
    pub(super) fn new(state: RestState, allowlist: Allowlist) -> Self {
        let failsafe = state
            .published
            .borrow()
            .view
            .as_ref()
            .and_then(|v| v.failsafe.clone());
        Self {
            state,
            allowlist: RwLock::new(Arc::new(allowlist)),
            failsafe: RwLock::new(failsafe),
        }
    }

    /// The snapshot of this moment.
    pub(super) fn published(&self) -> Arc<Published> {
        self.state.published.borrow().as_of(clock::now())
    }

    /// The configuration of this moment.
    pub(super) fn config(&self) -> Arc<AgentConfig> {
        self.state.config.borrow().clone()
    }

    /// How long one exchange with etcd may take.
    pub(super) fn etcd_limit(&self) -> Duration {
        self.state
            .published
            .borrow()
            .settings
            .cluster
            .timing
            .retry_timeout()
    }

    /// Makes the member loop look at once. When its queue is full it is about to look anyway.
    pub(super) fn wake(&self) {
        let _ = self.state.requests.try_send(RestRequest::Wake);
    }

    /// The last `/failsafe` that was seen.
    pub(super) fn failsafe(&self) -> Option<FailsafeRecord> {
        self.failsafe
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Keeps `/failsafe` of a view, for the time when there is none.
    pub(super) fn remember(&self, published: &Published) {
        if let Some(view) = &published.view {
            let mut kept = self
                .failsafe
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if *kept != view.failsafe {
                kept.clone_from(&view.failsafe);
            }
        }
    }

    /// Takes over a new allowlist.
    pub(super) fn allow(&self, allowlist: Allowlist) {
        *self
            .allowlist
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(allowlist);
    }

    fn allowlist(&self) -> Arc<Allowlist> {
        self.allowlist
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// Answers one request.
pub(super) async fn answer(
    shared: &Shared,
    caller: Caller,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, NoAnswer> {
    let published = shared.published();
    let config = shared.config();
    let answer = decide(shared, &published, &config, caller, request).await;
    render(
        answer,
        &config.restapi,
        &published.settings.version,
        caller.secure,
    )
    .ok_or(NoAnswer)
}

async fn decide(
    shared: &Shared,
    published: &Published,
    config: &AgentConfig,
    caller: Caller,
    request: Request<Incoming>,
) -> Answer {
    let path = format!("/{}", request.uri().path().trim_start_matches('/'));
    let query = Query::parse(request.uri().query().unwrap_or_default());
    let Some(route) = find(request.method(), &path) else {
        let method = request.method();
        if [Method::GET, Method::HEAD, Method::OPTIONS].contains(method) {
            // `OPTIONS *` is about the server, not about a path, and no rule matches it.
            let path = if request.uri().path() == "*" {
                "*"
            } else {
                &path
            };
            return read::health(published, method, path, &query);
        }
        return Answer::page_saying(501, &format!("Unsupported method ('{method}')"));
    };
    let (allowlist, view) = (shared.allowlist(), published.view.as_deref());
    let headers = request.headers();
    let checked = access::check(
        &caller,
        headers,
        route.access,
        &allowlist,
        &config.restapi,
        view,
    )
    .await;
    match checked {
        Err(refusal) => refusal,
        Ok(()) => serve(shared, published, route, &query, request).await,
    }
}

async fn serve(
    shared: &Shared,
    published: &Published,
    route: &Route,
    query: &Query,
    request: Request<Incoming>,
) -> Answer {
    if route.endpoint == Endpoint::Failsafe && !published.settings.cluster.failsafe_mode {
        return Answer::page(502);
    }
    let journal = request.uri().path().trim_end_matches('/').ends_with("/journal");
    let body = match route.body {
        BodyRule::None => Ok(Map::new()),
        BodyRule::Optional => body::optional(request).await,
        BodyRule::Mandatory => body::mandatory(request).await,
    };
    let body = match body {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    match route.endpoint {
        Endpoint::Liveness => read::liveness(published),
        Endpoint::Readiness => read::readiness(published, query),
        Endpoint::Status => read::status(published),
        Endpoint::Cluster => read::cluster(published),
        Endpoint::History => read::history(published),
        Endpoint::ShowConfig => read::config(published),
        Endpoint::Metrics => read::metrics_page(shared, published),
        Endpoint::FailsafeMembers => read::failsafe(shared),
        Endpoint::Garden if journal => Answer::plain(shared.state.journal.lines(JOURNAL_LINES)),
        Endpoint::Garden => read::garden(published),
        Endpoint::OpenApi => Answer::json(200, openapi::document(env!("CARGO_PKG_VERSION"))),
        Endpoint::PatchConfig => config::patch(shared, &body).await,
        Endpoint::PutConfig => config::put(shared, &body).await,
        Endpoint::Reload => jobs::reload(shared),
        Endpoint::Sigterm => Answer::text(202, "shutdown scheduled"),
        Endpoint::Restart => jobs::restart(shared, published, &body).await,
        Endpoint::CancelRestart => jobs::cancel_restart(shared, published).await,
        Endpoint::Reinitialize => jobs::reinitialize(shared, published, &body).await,
        Endpoint::Failsafe => jobs::failsafe(shared, published, &body).await,
        Endpoint::Failover => {
            handover::request(shared, published, HandoverKind::Failover, &body).await
        }
        Endpoint::Switchover => {
            handover::request(shared, published, HandoverKind::Switchover, &body).await
        }
        Endpoint::CancelSwitchover => handover::cancel(shared).await,
        Endpoint::OtherClusters => Answer::text(200, "OK"),
    }
}
