//! Requests that the member loop carries out: restart, reinitialize, reload, failsafe. What the
//! published snapshot already forbids is refused here (`rest-api.md` 11 to 13, 15).

use super::answer::Answer;
use super::extract::{Body, InFailsafeMode, MaybeBody, Now};
use super::shared::Shared;
use super::{ReplyTo, RestRequest};
use crate::clock;
use axum::extract::State;
use proto::rest::RestartBody;
use proto::rest::requests::{ReinitBody, failsafe_caller, failsafe_obstacle};
use proto::rest::status::sample;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How long the loop may take to answer what it can answer at once.
const LOOP_LIMIT: Duration = Duration::from_secs(10);

/// A caller of `/failsafe` gives up after two seconds; an answer after that would help nobody.
const FAILSAFE_REPLY_LIMIT: Duration = Duration::from_millis(1800);

/// What a restart may take beside the start itself: the release from synchronous duty, and the stop,
/// which has no limit of its own.
const RESTART_EXTRA: Duration = Duration::from_secs(600);

/// Hands a request to the loop and waits for its answer; `None` when it does not come in time.
async fn ask_loop(
    shared: &Shared,
    request: impl FnOnce(ReplyTo) -> RestRequest,
    limit: Duration,
) -> Option<(u16, String)> {
    let (reply, answer) = oneshot::channel();
    shared.state.requests.try_send(request(reply)).ok()?;
    tokio::time::timeout(limit, answer).await.ok()?.ok()
}

fn answer_or(reply: Option<(u16, String)>, code: u16, text: &str) -> Answer {
    match reply {
        Some((code, text)) => Answer::text(code, text),
        None => Answer::text(code, text),
    }
}

/// `POST /restart`.
pub(super) async fn restart(
    State(shared): State<Arc<Shared>>,
    Now(published): Now,
    MaybeBody(body): MaybeBody,
) -> Answer {
    let body = match RestartBody::parse(&body, published.paused, clock::wall()) {
        Ok(body) => body,
        Err(reply) => return reply.into(),
    };
    if let Some(reply) = body.obstacle(&published) {
        return reply.into();
    }
    let default = published.settings.cluster.primary_start_timeout;
    let start = body.timeout.map_or(default, Duration::from_secs);
    let limit = if body.schedule.is_some() {
        LOOP_LIMIT
    } else {
        start + RESTART_EXTRA
    };
    let reply = ask_loop(&shared, |reply| RestRequest::Restart { body, reply }, limit).await;
    answer_or(reply, 503, "postgres is still starting")
}

/// `DELETE /restart`.
pub(super) async fn cancel_restart(
    State(shared): State<Arc<Shared>>,
    Now(published): Now,
) -> Answer {
    if published.wishes.scheduled_restart.is_none() {
        return Answer::text(404, "no restarts are scheduled");
    }
    let request = |reply| RestRequest::CancelScheduledRestart { reply };
    answer_or(
        ask_loop(&shared, request, LOOP_LIMIT).await,
        503,
        "the agent is busy",
    )
}

/// `POST /reinitialize`.
pub(super) async fn reinitialize(
    State(shared): State<Arc<Shared>>,
    Now(published): Now,
    MaybeBody(body): MaybeBody,
) -> Answer {
    let body = ReinitBody::parse(&body);
    if let Some(reply) = body.obstacle(&published) {
        return reply.into();
    }
    let ReinitBody { force, from_leader } = body;
    let request = |reply| RestRequest::Reinitialize {
        force,
        from_leader,
        reply,
    };
    answer_or(
        ask_loop(&shared, request, LOOP_LIMIT).await,
        503,
        "the agent is busy",
    )
}

/// `POST /reload`.
pub(super) async fn reload(State(shared): State<Arc<Shared>>) -> Answer {
    match shared.state.requests.try_send(RestRequest::Reload) {
        Ok(()) => Answer::text(202, "reload scheduled"),
        Err(_) => Answer::text(503, "the agent is busy"),
    }
}

/// `POST /sigterm`: kept for compatibility; does nothing.
pub(super) async fn sigterm() -> Answer {
    Answer::text(202, "shutdown scheduled")
}

/// `POST /citus` and `POST /mpp`: kept for compatibility; do nothing.
pub(super) async fn other_clusters(_: Body) -> Answer {
    Answer::text(200, "OK")
}

/// `POST /failsafe`.
pub(super) async fn failsafe(
    State(shared): State<Arc<Shared>>,
    InFailsafeMode(published): InFailsafeMode,
    Body(body): Body,
) -> Answer {
    let Some(caller) = failsafe_caller(&body, clock::now()) else {
        return Answer::page(400);
    };
    if let Some(reply) = failsafe_obstacle(&published) {
        return reply.into();
    }
    let request = |reply| RestRequest::Failsafe { caller, reply };
    let answer = answer_or(
        ask_loop(&shared, request, FAILSAFE_REPLY_LIMIT).await,
        503,
        "the agent is busy",
    );
    let position = sample(&published).map(|s| s.receive_lsn.max(s.replay_lsn).0);
    match position.filter(|lsn| *lsn != 0) {
        Some(lsn) => answer.with("lsn", lsn),
        None => answer,
    }
}
