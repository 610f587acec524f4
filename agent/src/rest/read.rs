//! Everything that is only looked at: health checks, documents, metrics. No waiting in here.

use super::answer::Answer;
use super::extract::{Now, Parameters};
use super::shared::Shared;
use crate::clock;
use crate::peers::{EPOCH, POSITION_AGE};
use axum::extract::State;
use axum::http::Method;
use proto::config::ClusterConfig;
use proto::dcs::ConfigRecord;
use proto::rest::cluster::history_document;
use proto::rest::health::{alive, ready, verdict};
use proto::rest::json::to_text;
use proto::rest::{Published, Query, cluster_document, metrics as metrics_of, status_document};
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Entries of the journal in one answer, unless the request says how many.
const JOURNAL_LINES: usize = 200;

/// A health check: the status line alone for `HEAD` and `OPTIONS`, the status document for `GET`.
pub(super) fn health(published: &Published, method: &Method, path: &str, query: &Query) -> Answer {
    let code = if verdict(published, path, query, clock::now()) {
        200
    } else {
        503
    };
    if method == Method::GET {
        Answer::json(code, to_text(&status_document(published)))
    } else {
        Answer::bare(code)
    }
}

/// `GET /patroni`.
pub(super) async fn status(Now(published): Now) -> Answer {
    // Candidates must know whether the position is from before the lock was free (S3). Rounded up; a header,
    // since the document is Patroni's to the field.
    let age = clock::now().since(published.postgres.sql_at).as_millis() + 1;
    let age = u64::try_from(age).unwrap_or(u64::MAX);
    // A primary that finds etcd emptied must know whether others have led since it did (S23).
    let epoch = published.epoch.0;
    Answer::json(200, to_text(&status_document(&published)))
        .with(POSITION_AGE, age)
        .with(EPOCH, epoch)
}

/// `GET /liveness`.
pub(super) async fn liveness(Now(published): Now) -> Answer {
    Answer::bare(if alive(&published, clock::now()) {
        200
    } else {
        503
    })
}

/// `GET /readiness`.
pub(super) async fn readiness(Now(published): Now, Parameters(query): Parameters) -> Answer {
    Answer::bare(if ready(&published, &query, clock::now()) {
        200
    } else {
        503
    })
}

/// `GET /cluster`. Without a view there is nothing that would not be a guess.
pub(super) async fn cluster(Now(published): Now) -> Answer {
    let Some(view) = published.view.as_deref() else {
        return Answer::page(503);
    };
    let in_etcd = view.config.document().map(ClusterConfig::parse);
    let config = in_etcd.as_ref().unwrap_or(&published.settings.cluster);
    Answer::json(
        200,
        to_text(&cluster_document(view, config, &published.settings.scope)),
    )
}

/// `GET /history`.
pub(super) async fn history(Now(published): Now) -> Answer {
    match published.view.as_deref() {
        Some(view) => Answer::json(200, to_text(&history_document(view))),
        None => Answer::page(503),
    }
}

/// `GET /config`.
pub(super) async fn config(Now(published): Now) -> Answer {
    match published.view.as_deref().map(|view| &view.config) {
        Some(ConfigRecord::Document { document, .. }) => Answer::json(200, to_text(document)),
        Some(ConfigRecord::Absent | ConfigRecord::Garbled { .. }) => Answer::page(502),
        None => Answer::page(503),
    }
}

/// `GET /failsafe`: the last known list, which outlives etcd, since it is needed when etcd is away.
pub(super) async fn failsafe(State(shared): State<Arc<Shared>>) -> Answer {
    match shared.failsafe() {
        Some(record) => Answer::json(200, to_text(&record.members)),
        None => Answer::page(502),
    }
}

/// `GET /metrics`.
pub(super) async fn metrics(State(shared): State<Arc<Shared>>, Now(published): Now) -> Answer {
    let me = &published.settings.me;
    let listed = shared
        .failsafe()
        .is_some_and(|record| record.members.contains_key(me));
    Answer::plain(metrics_of::page(&published, listed, clock::now()))
}

/// `GET /garden`: what `gardenctl explain` shows.
pub(super) async fn garden(State(shared): State<Arc<Shared>>, Now(published): Now) -> Answer {
    let now = clock::now();
    let left = published.leader_until.map(|until| millis(now.until(until)));
    let doc = json!({
        "name": published.settings.me,
        "scope": published.settings.scope,
        "state": published.state.as_str(),
        "role": published.role.as_str(),
        "rule": published.rule,
        "reason": published.reason,
        "lease_remaining_ms": left,
        "held_back": published.hold_back,
        "goal": published.goal,
        "job": published.job,
        "copied_bytes": shared.state.copied.bytes(),
        "cycle_us": published.cycle_micros,
        "published_age_ms": millis(now.since(published.at)),
        "view_revision": published.view.as_ref().map(|view| view.revision),
    });
    Answer::json(200, to_text(&without_nulls(doc)))
}

/// `GET /garden/journal`: what `gardenctl timeline` shows. Without `limit`, [`JOURNAL_LINES`] at most.
pub(super) async fn journal(
    State(shared): State<Arc<Shared>>,
    Parameters(query): Parameters,
) -> Answer {
    match query.get("limit").map(str::parse) {
        None => Answer::plain(shared.state.journal.lines(JOURNAL_LINES)),
        Some(Ok(limit)) => Answer::plain(shared.state.journal.lines(limit)),
        Some(Err(_)) => Answer::page(400),
    }
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn without_nulls(doc: Value) -> Value {
    match doc {
        Value::Object(map) => {
            let kept: Map<_, _> = map.into_iter().filter(|(_, v)| !v.is_null()).collect();
            Value::Object(kept)
        }
        other => other,
    }
}
