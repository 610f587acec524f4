//! The status document: `GET /patroni` and the body of every health check (`rest-api.md` 5). Other
//! members read it in an election, `patronictl` and exporters parse it; fields that are false are
//! left out.

use super::Published;
use super::stamp;
use crate::config::SyncMode;
use crate::core::observation::{ScheduledRestart, Sql, SqlSample, WalSender};
use crate::dcs::{PgRole, PgState};
use serde_json::{Map, Value, json};

/// `state` when PostgreSQL should be running but did not answer. Exists only in answers.
pub const STATE_UNKNOWN: &str = "unknown";

/// The sample, where a state allows for one: a server that is being stopped or built is described
/// without (`rest-api.md` 17).
pub fn sample(published: &Published) -> Option<&SqlSample> {
    match (&published.postgres.sql, published.state) {
        (Sql::Sample(sample), PgState::Running | PgState::Starting | PgState::Restarting) => {
            Some(sample)
        }
        _ => None,
    }
}

/// `state` as it is answered.
pub fn shown_state(published: &Published) -> &'static str {
    match (published.state, sample(published)) {
        (PgState::Running, None) => STATE_UNKNOWN,
        (state, _) => state.as_str(),
    }
}

/// `role` as it is answered: what PostgreSQL says goes before what we remember (5.3).
pub fn shown_role(published: &Published) -> PgRole {
    match sample(published) {
        Some(sample) if !sample.in_recovery => PgRole::Primary,
        Some(_) if published.settings.cluster.standby_cluster.is_none() => PgRole::Replica,
        Some(_) | None => published.role,
    }
}

/// `streaming` or `in archive recovery`, of a server in recovery.
pub fn replication_state(sample: &SqlSample) -> Option<&'static str> {
    let streaming = sample
        .receiver
        .as_ref()
        .is_some_and(|r| r.status == "streaming");
    match (sample.in_recovery, streaming) {
        (true, true) => Some("streaming"),
        (true, false) => sample.has_restore_command.then_some("in archive recovery"),
        (false, _) => None,
    }
}

/// Which synchronous duty a standby has, if any: the name of its field.
pub fn sync_duty(published: &Published) -> Option<&'static str> {
    let view = published.view.as_deref()?;
    let listed = view.sync.lists(&published.settings.me);
    let standby = shown_role(published) == PgRole::Replica;
    match published.settings.cluster.synchronous_mode {
        SyncMode::On if listed && standby => Some("sync_standby"),
        SyncMode::Quorum if listed && standby => Some("quorum_standby"),
        SyncMode::Off | SyncMode::On | SyncMode::Quorum => None,
    }
}

/// Whether the cluster has no leader as far as we know.
pub fn cluster_unlocked(published: &Published) -> bool {
    published
        .view
        .as_ref()
        .is_none_or(|view| view.leader.is_none())
}

/// The document, in the order of `rest-api.md` 5.1.
pub fn status_document(published: &Published) -> Map<String, Value> {
    let mut doc = Map::new();
    let sample = sample(published);
    doc.insert("state".into(), json!(shown_state(published)));
    if let Some(sample) = sample {
        let started = stamp::status_form(&sample.postmaster_start_time);
        doc.insert("postmaster_start_time".into(), json!(started));
    }
    doc.insert("role".into(), json!(shown_role(published).as_str()));
    if let Some(sample) = sample {
        put_positions(&mut doc, sample, sync_duty(published));
    }
    put_cluster(&mut doc, published);
    put_member(&mut doc, published);
    doc
}

fn put_positions(doc: &mut Map<String, Value>, sample: &SqlSample, duty: Option<&str>) {
    doc.insert("server_version".into(), json!(sample.server_version));
    doc.insert("xlog".into(), xlog(sample));
    if let Some(duty) = duty {
        doc.insert(duty.into(), json!(true));
    }
    doc.insert("timeline".into(), json!(sample.timeline.map(|t| t.0)));
    if let Some(state) = replication_state(sample) {
        doc.insert("replication_state".into(), json!(state));
    }
    if !sample.wal_senders.is_empty() {
        doc.insert(
            "replication".into(),
            sample.wal_senders.iter().map(wal_sender).collect(),
        );
    }
}

fn xlog(sample: &SqlSample) -> Value {
    if !sample.in_recovery {
        return json!({"location": sample.flush_lsn.0});
    }
    let received = sample.receive_lsn.some().unwrap_or(sample.replay_lsn);
    json!({
        "received_location": received.0,
        "replayed_location": sample.replay_lsn.0,
        "replayed_timestamp": sample.replayed_timestamp.as_deref().map(stamp::status_form),
        "paused": sample.replay_paused,
    })
}

fn wal_sender(sender: &WalSender) -> Value {
    json!({
        "usename": sender.usename,
        "application_name": sender.application_name,
        "client_addr": sender.client_addr,
        "state": sender.state,
        "sync_state": sender.sync_state,
        "sync_priority": sender.sync_priority,
    })
}

fn put_cluster(doc: &mut Map<String, Value>, published: &Published) {
    let mut flag = |name: &str, set: bool| {
        if set {
            doc.insert(name.to_owned(), json!(true));
        }
    };
    flag("pause", published.paused);
    flag("cluster_unlocked", cluster_unlocked(published));
    flag("failsafe_mode_is_active", published.failsafe_active);
    doc.insert(
        "dcs_last_seen".into(),
        json!(published.dcs_last_seen.0.div_euclid(1000)),
    );
}

fn put_member(doc: &mut Map<String, Value>, published: &Published) {
    let settings = &published.settings;
    let tags = settings.tags.published();
    if !tags.is_empty() {
        doc.insert("tags".into(), Value::Object(tags));
    }
    if let Some(id) = published.system_id {
        doc.insert("database_system_identifier".into(), json!(id.to_string()));
    }
    let pending = pending_restart(published);
    if !pending.is_empty() {
        doc.insert("pending_restart".into(), json!(true));
        doc.insert("pending_restart_reason".into(), Value::Object(pending));
    }
    doc.insert(
        "patroni".into(),
        json!({"version": settings.version, "scope": settings.scope, "name": settings.me}),
    );
    if let Some(scheduled) = &published.wishes.scheduled_restart {
        doc.insert(
            "scheduled_restart".into(),
            Value::Object(scheduled_restart(scheduled)),
        );
    }
    if published.watchdog_failed {
        doc.insert("watchdog_failed".into(), json!(true));
    }
}

/// Parameters that wait for a restart, with their old and new values.
pub fn pending_restart(published: &Published) -> Map<String, Value> {
    let Sql::Sample(sample) = &published.postgres.sql else {
        return Map::new();
    };
    let change = |(old, new): &(String, String)| json!({"old_value": old, "new_value": new});
    sample
        .pending_restart
        .iter()
        .map(|(name, pair)| (name.clone(), change(pair)))
        .collect()
}

/// The request's own fields; the postmaster's start time belongs to the member key only.
fn scheduled_restart(scheduled: &ScheduledRestart) -> Map<String, Value> {
    let mut fields = Map::new();
    fields.insert("schedule".into(), json!(scheduled.schedule));
    for (key, value) in &scheduled.raw {
        if key != "postmaster_start_time" && key != "schedule" {
            fields.insert(key.clone(), value.clone());
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{NOW, leader, replica, standby};
    use super::super::json::to_text;
    use super::*;
    use crate::core::observation::{LocalPostgres, Sql};
    use crate::time::WallTime;
    use expect_test::expect;
    use std::sync::Arc;
    use std::time::Duration;

    fn text(published: &Published) -> String {
        to_text(&status_document(published))
    }

    #[test]
    fn a_leader_shows_its_wal_senders() {
        expect![[r#"{"state": "running", "postmaster_start_time": "2026-07-24 10:00:00.123456+00:00", "role": "primary", "server_version": 160004, "xlog": {"location": 67395656}, "timeline": 5, "replication": [{"usename": "replicator", "application_name": "gd-b", "client_addr": "192.0.2.12", "state": "streaming", "sync_state": "sync", "sync_priority": 1}], "dcs_last_seen": 1784887932, "database_system_identifier": "7268616322854375442", "patroni": {"version": "4.1.4", "scope": "garden", "name": "gd-a"}}"#]]
        .assert_eq(&text(&leader()));
    }

    #[test]
    fn a_synchronous_standby_says_so() {
        let listed = r#"{"leader":"gd-b","sync_standby":"GD-A"}"#;
        let published = standby(
            json!({"synchronous_mode": true}),
            json!({"clonefrom": true}),
            listed,
        );
        expect![[r#"{"state": "running", "postmaster_start_time": "2026-07-24 10:00:00.123456+00:00", "role": "replica", "server_version": 160004, "xlog": {"received_location": 67419744, "replayed_location": 67419648, "replayed_timestamp": null, "paused": false}, "sync_standby": true, "timeline": 5, "replication_state": "streaming", "dcs_last_seen": 1784887932, "tags": {"clonefrom": true}, "database_system_identifier": "7268616322854375442", "patroni": {"version": "4.1.4", "scope": "garden", "name": "gd-a"}}"#]]
        .assert_eq(&text(&published));
        let quorum = standby(json!({"synchronous_mode": "quorum"}), json!(null), listed);
        assert!(text(&quorum).contains(r#""quorum_standby": true"#));
        assert!(!text(&replica()).contains("_standby"));
    }

    #[test]
    fn a_server_that_does_not_answer_is_described_from_memory() {
        let mut published = leader();
        published.postgres = Arc::new(LocalPostgres {
            sql: Sql::Silent,
            ..LocalPostgres::default()
        });
        let shown = text(&published);
        assert!(
            shown.starts_with(r#"{"state": "unknown", "role": "primary", "dcs_last_seen""#),
            "{shown}"
        );
        published.state = PgState::Starting;
        assert!(text(&published).starts_with(r#"{"state": "starting", "role": "primary""#));
        let stopped = Published {
            state: PgState::Stopped,
            ..leader()
        };
        assert!(
            !text(&stopped).contains("xlog"),
            "an old sample says nothing of a stopped server"
        );
        let restarting = Published {
            state: PgState::Restarting,
            ..leader()
        };
        assert!(
            text(&restarting).contains("xlog"),
            "a restarting server may answer"
        );
    }

    #[test]
    fn everything_unusual_has_its_field() {
        let mut published = Published {
            view: None,
            paused: true,
            failsafe_active: true,
            watchdog_failed: true,
            ..leader()
        };
        super::super::fixture::edit_sample(&mut published, |s| {
            s.wal_senders.clear();
            s.pending_restart
                .insert("max_connections".into(), ("100".into(), "101".into()));
        });
        let raw = super::super::fixture::object(
            json!({"role": "replica", "postmaster_start_time": "x", "schedule": "y"}),
        );
        published.wishes.scheduled_restart = Some(ScheduledRestart {
            schedule: "2030-01-01T00:00:00+00:00".into(),
            at: WallTime(0),
            postmaster_start_time: None,
            role: Some("replica".into()),
            below_version: None,
            timeout: None,
            restart_pending: false,
            raw,
        });
        published.leader_until = Some(NOW + Duration::from_secs(1));
        expect![[r#"{"state": "running", "postmaster_start_time": "2026-07-24 10:00:00.123456+00:00", "role": "primary", "server_version": 160004, "xlog": {"location": 67395656}, "timeline": 5, "pause": true, "cluster_unlocked": true, "failsafe_mode_is_active": true, "dcs_last_seen": 1784887932, "database_system_identifier": "7268616322854375442", "pending_restart": true, "pending_restart_reason": {"max_connections": {"old_value": "100", "new_value": "101"}}, "patroni": {"version": "4.1.4", "scope": "garden", "name": "gd-a"}, "scheduled_restart": {"schedule": "2030-01-01T00:00:00+00:00", "role": "replica"}, "watchdog_failed": true}"#]]
        .assert_eq(&text(&published));
    }

    #[test]
    fn in_a_standby_cluster_the_role_is_the_one_we_remember() {
        let config = json!({"standby_cluster": {"port": 5432}});
        let published = standby(config, json!(null), "{}");
        let leads = Published {
            role: PgRole::StandbyLeader,
            ..published.clone()
        };
        assert_eq!(shown_role(&published), PgRole::Replica);
        assert_eq!(shown_role(&leads), PgRole::StandbyLeader);
    }
}
