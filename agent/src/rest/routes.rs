//! Which handler a request is for: the method and the first segment of the path decide
//! (`rest-api.md` 2). Each operation is registered here once, with all that the OpenAPI document says
//! of it.

use super::access::{self, Gate};
use super::answer::{self, Answer};
use super::extract::{BODY_BYTES_MAX, Now, Parameters};
use super::shared::Shared;
use super::{config, handover, jobs, openapi, read};
use axum::Router;
use axum::extract::{DefaultBodyLimit, Extension};
use axum::handler::Handler;
use axum::http::{Method, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, any};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Who may call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Everybody.
    Open,
    /// Callers that pass all checks.
    Checked,
    /// The same, but members are not looked up: etcd, which knows their addresses, is away.
    CheckedWithoutMembers,
}

/// Whether a request has a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyRule {
    None,
    Optional,
    Mandatory,
}

/// One thing that can be asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub(super) method: &'static str,
    /// First segment of the path, with what must follow if not everything may.
    pub(super) segment: &'static str,
    pub(super) access: Access,
    pub(super) body: BodyRule,
    pub(super) codes: &'static [u16],
    pub(super) summary: &'static str,
}

const fn operation(
    method: &'static str,
    segment: &'static str,
    access: Access,
    body: BodyRule,
    codes: &'static [u16],
    summary: &'static str,
) -> Operation {
    Operation {
        method,
        segment,
        access,
        body,
        codes,
        summary,
    }
}

/// All operations, for the OpenAPI document.
pub(super) type Operations = Arc<[Operation]>;

use Access::{Checked, CheckedWithoutMembers, Open};
use BodyRule::{Mandatory, None as NoBody, Optional};

/// The whole interface.
#[rustfmt::skip]
pub(super) fn router(shared: Arc<Shared>) -> Router {
    Table::new(shared)
        .on(operation("GET", "liveness", Open, NoBody, &[200, 503], "Whether the agent's loop still cycles."), read::liveness)
        .on(operation("GET", "readiness", Open, NoBody, &[200, 503], "Whether this member leads, or streams closely enough."), read::readiness)
        .on(operation("GET", "patroni", Open, NoBody, &[200], "The status of this member."), read::status)
        .on(operation("GET", "cluster", Open, NoBody, &[200, 503], "All members."), read::cluster)
        .on(operation("GET", "history", Open, NoBody, &[200, 503], "One line for each finished timeline."), read::history)
        .on(operation("GET", "config", Open, NoBody, &[200, 502, 503], "The dynamic configuration."), read::config)
        .on(operation("GET", "metrics", Open, NoBody, &[200], "Metrics for Prometheus."), read::metrics)
        .on(operation("GET", "failsafe", Open, NoBody, &[200, 502], "Whom a primary must reach while etcd is away."), read::failsafe)
        .on(operation("GET", "garden", Open, NoBody, &[200], "What this member last decided, and why."), read::garden)
        .on(operation("GET", "garden/journal", Open, NoBody, &[200, 400], "The newest decisions as JSON lines, `limit` of them at most."), read::journal)
        .on(operation("GET", "openapi.json", Open, NoBody, &[200], "This document."), openapi::document)
        .on(operation("PATCH", "config", Checked, Mandatory, &[200, 400, 401, 403, 409, 411, 503], "Merge into the dynamic configuration."), config::patch)
        .on(operation("PUT", "config", Checked, Mandatory, &[200, 400, 401, 403, 411, 502], "Replace the dynamic configuration."), config::put)
        .on(operation("POST", "reload", Checked, NoBody, &[202, 401, 403, 503], "Read the local configuration again."), jobs::reload)
        .on(operation("POST", "sigterm", Checked, NoBody, &[202, 401, 403], "Kept for compatibility; does nothing."), jobs::sigterm)
        .on(operation("POST", "restart", Checked, Optional, &[200, 202, 400, 401, 403, 409, 422, 500, 503], "Restart PostgreSQL, now or at a time."), jobs::restart)
        .on(operation("DELETE", "restart", Checked, NoBody, &[200, 401, 403, 404, 503], "Forget the scheduled restart."), jobs::cancel_restart)
        .on(operation("POST", "reinitialize", Checked, Optional, &[200, 400, 401, 403, 503], "Throw the data directory away and clone."), jobs::reinitialize)
        .on(operation("POST", "switchover", Checked, Mandatory, &[200, 202, 400, 401, 403, 411, 412, 422, 503], "Hand leadership over, now or at a time."), handover::switchover)
        .on(operation("POST", "failover", Checked, Mandatory, &[200, 202, 400, 401, 403, 411, 412, 422, 503], "Give leadership to a candidate."), handover::failover)
        .on(operation("DELETE", "switchover", Checked, NoBody, &[200, 401, 403, 404, 409], "Forget the scheduled switchover."), handover::cancel)
        .on(operation("POST", "failsafe", CheckedWithoutMembers, Mandatory, &[200, 400, 401, 403, 411, 500, 502, 503], "A primary asks whether it may go on without etcd."), jobs::failsafe)
        .on(operation("POST", "citus", Checked, Mandatory, &[200, 400, 401, 403, 411], "Kept for compatibility; does nothing."), jobs::other_clusters)
        .on(operation("POST", "mpp", Open, Mandatory, &[200, 400, 411], "Kept for compatibility; does nothing."), jobs::other_clusters)
        .into_router()
}

/// The operations, while they are collected.
struct Table {
    shared: Arc<Shared>,
    operations: Vec<Operation>,
    segments: BTreeMap<&'static str, MethodRouter<Arc<Shared>>>,
}

impl Table {
    fn new(shared: Arc<Shared>) -> Self {
        Self {
            shared,
            operations: Vec::new(),
            segments: BTreeMap::new(),
        }
    }

    /// Adds an operation. Its access is checked before its handler sees the request.
    fn on<H, T>(mut self, operation: Operation, handler: H) -> Self
    where
        H: Handler<T, Arc<Shared>>,
        T: 'static,
    {
        let filter = match operation.method {
            "GET" => MethodFilter::GET,
            "POST" => MethodFilter::POST,
            "PUT" => MethodFilter::PUT,
            "PATCH" => MethodFilter::PATCH,
            _ => MethodFilter::DELETE,
        };
        let gate = Gate {
            shared: self.shared.clone(),
            access: operation.access,
        };
        let methods = self.segments.remove(operation.segment);
        // HEAD has no operations of its own, and must not fall back to GET as it does by default.
        let methods = methods.unwrap_or_else(|| any(anything_else).head(anything_else));
        let methods = match operation.access {
            Open => methods.on(filter, handler),
            Checked | CheckedWithoutMembers => methods.on(
                filter,
                handler.layer(from_fn_with_state(gate, access::guard)),
            ),
        };
        self.segments.insert(operation.segment, methods);
        self.operations.push(operation);
        self
    }

    fn into_router(self) -> Router {
        let mut router = Router::new();
        for (segment, methods) in self.segments {
            router = router
                .route(&format!("/{segment}"), methods.clone())
                .route(&format!("/{segment}/"), methods.clone())
                .route(&format!("/{segment}/{{*rest}}"), methods);
        }
        router
            .fallback(anything_else)
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(Extension(Operations::from(self.operations)))
            .layer(from_fn_with_state(self.shared.clone(), answer::finish))
            .with_state(self.shared)
    }
}

/// What no operation is for: a health check, whatever its path, or the page that says 501.
async fn anything_else(
    method: Method,
    uri: Uri,
    Now(published): Now,
    Parameters(query): Parameters,
) -> Answer {
    if [Method::GET, Method::HEAD, Method::OPTIONS].contains(&method) {
        return read::health(&published, &method, uri.path(), &query);
    }
    Answer::page_saying(501, &format!("Unsupported method ('{method}')"))
}
