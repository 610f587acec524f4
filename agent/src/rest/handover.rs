//! `POST /switchover`, `POST /failover` and `DELETE /switchover` (`rest-api.md` 14): write the
//! request into etcd, and follow the published view until it shows the result.

use super::answer::Answer;
use super::extract::{Body, Now};
use super::shared::Shared;
use crate::clock;
use axum::extract::State;
use proto::config::ClusterConfig;
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{ClusterView, Compare, Key, Op, Txn};
use proto::ids::{MemberName, Revision};
use proto::rest::requests::Reply;
use proto::rest::{HandoverKind, HandoverRequest, Published};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;

/// How long the slowest candidate may take to say whether it could lead.
const CANDIDATE_LIMIT: Duration = Duration::from_secs(2);

/// `POST /switchover`.
pub(super) async fn switchover(
    State(shared): State<Arc<Shared>>,
    Now(published): Now,
    Body(body): Body,
) -> Answer {
    request(&shared, &published, HandoverKind::Switchover, &body).await
}

/// `POST /failover`.
pub(super) async fn failover(
    State(shared): State<Arc<Shared>>,
    Now(published): Now,
    Body(body): Body,
) -> Answer {
    request(&shared, &published, HandoverKind::Failover, &body).await
}

/// Both of them. When etcd does not answer, the connection is closed without a byte: `patronictl` then
/// writes the request to etcd itself, which an answer would keep it from.
async fn request(
    shared: &Shared,
    published: &Published,
    kind: HandoverKind,
    body: &Map<String, Value>,
) -> Answer {
    let limit = shared.etcd_limit();
    let Some(snapshot) = shared.state.etcd.read(limit).await else {
        return Answer::nothing();
    };
    let view = ClusterView::read(&snapshot);
    let in_etcd = view.config.document().map(ClusterConfig::parse);
    let config = in_etcd.as_ref().unwrap_or(&published.settings.cluster);
    let request = match HandoverRequest::parse(kind, body, config.pause, clock::wall()) {
        Ok(request) => request,
        Err(reply) => return reply.into(),
    };
    if kind == HandoverKind::Failover && request.kind == HandoverKind::Switchover {
        tracing::warn!(
            "received a failover request with a leader in it, treating it as a switchover"
        );
    }
    match carry_out(shared, &request, &view, config).await {
        Ok(reply) | Err(reply) => reply.into(),
    }
}

async fn carry_out(
    shared: &Shared,
    request: &HandoverRequest,
    view: &ClusterView,
    config: &ClusterConfig,
) -> Result<Reply, Reply> {
    if request.scheduled_at.is_none() {
        let candidates = request.candidates(view, config)?;
        request.judge(&shared.state.peers.ask(&candidates, CANDIDATE_LIMIT).await)?;
    }
    let txn = Txn::always(vec![Op::put(Key::Failover, request.to_value())]);
    let outcome = shared.state.etcd.commit(&txn, shared.etcd_limit()).await;
    let TxnOutcome::Committed(written) = outcome else {
        return Err(request.kind.not_written());
    };
    shared.wake();
    if request.scheduled_at.is_some() {
        return Ok(Reply::new(202, "Switchover scheduled"));
    }
    let patience = HandoverRequest::patience(config);
    let result = follow(shared, request, view.leader_name(), written);
    match tokio::time::timeout(patience, result).await {
        Ok(Some(reply)) => Ok(reply),
        Ok(None) | Err(_) => Err(request.undecided(patience)),
    }
}

/// Watches the published view until it answers; `None` when the agent ends first.
async fn follow(
    shared: &Shared,
    request: &HandoverRequest,
    before: Option<&MemberName>,
    written: Revision,
) -> Option<Reply> {
    let mut published = shared.state.published.clone();
    loop {
        let view = published.borrow_and_update().view.clone();
        if let Some(reply) = view.and_then(|view| request.progress(&view, before, written)) {
            return Some(reply);
        }
        published.changed().await.ok()?;
    }
}

/// `DELETE /switchover`: only a scheduled one, and only while nobody else touches it.
pub(super) async fn cancel(State(shared): State<Arc<Shared>>) -> Answer {
    let limit = shared.etcd_limit();
    let Some(snapshot) = shared.state.etcd.read(limit).await else {
        return Answer::nothing();
    };
    let failover = ClusterView::read(&snapshot).failover;
    let Some(scheduled) = failover.filter(|request| request.scheduled_at.is_some()) else {
        return Answer::text(404, "no switchover is scheduled");
    };
    let when = vec![Compare::Unchanged(Key::Failover, scheduled.modified)];
    let txn = Txn::when(when, vec![Op::put(Key::Failover, "{}")]);
    match shared.state.etcd.commit(&txn, limit).await {
        TxnOutcome::Committed(_) => {
            shared.wake();
            Answer::text(200, "scheduled switchover deleted")
        }
        TxnOutcome::Refused | TxnOutcome::LeaseGone | TxnOutcome::Unknown(_) => Answer::page(409),
    }
}
