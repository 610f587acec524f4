//! `PATCH` and `PUT /config` (`rest-api.md` 9).

use super::answer::Answer;
use super::extract::Body;
use super::shared::Shared;
use crate::config::merge::{patch as merge, same_map};
use axum::extract::State;
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{ClusterView, Compare, ConfigRecord, Key, Op, Txn};
use proto::rest::json::to_text;
use serde_json::{Map, Value};
use std::sync::Arc;

fn stored(document: &Map<String, Value>) -> Op {
    Op::put(Key::Config, Value::Object(document.clone()).to_string())
}

/// Merges into what etcd holds right now, and writes only if nobody else wrote meanwhile.
pub(super) async fn patch(State(shared): State<Arc<Shared>>, Body(changes): Body) -> Answer {
    let limit = shared.etcd_limit();
    let Some(snapshot) = shared.state.etcd.read(limit).await else {
        return Answer::page(503);
    };
    let ConfigRecord::Document {
        mut document,
        modified,
    } = ClusterView::read(&snapshot).config
    else {
        return Answer::page(503);
    };
    if merge(&mut document, &changes) {
        let when = vec![Compare::Unchanged(Key::Config, modified)];
        let txn = Txn::when(when, vec![stored(&document)]);
        if !matches!(
            shared.state.etcd.commit(&txn, limit).await,
            TxnOutcome::Committed(_)
        ) {
            return Answer::page(409);
        }
        shared.wake();
    }
    Answer::json(200, to_text(&document))
}

/// Replaces the whole document, unless it says the same already. Echoes the request.
pub(super) async fn put(State(shared): State<Arc<Shared>>, Body(document): Body) -> Answer {
    let limit = shared.etcd_limit();
    let Some(snapshot) = shared.state.etcd.read(limit).await else {
        return Answer::page(502);
    };
    let unchanged = match ClusterView::read(&snapshot).config {
        ConfigRecord::Document { document: old, .. } => same_map(&old, &document),
        ConfigRecord::Absent | ConfigRecord::Garbled { .. } => false,
    };
    if !unchanged {
        let txn = Txn::always(vec![stored(&document)]);
        if !matches!(
            shared.state.etcd.commit(&txn, limit).await,
            TxnOutcome::Committed(_)
        ) {
            return Answer::page(502);
        }
    }
    Answer::json(200, to_text(&document))
}
