//! Members of a small cluster, as they publish themselves, for tests.

use super::Published;
use crate::config::{ClusterConfig, Settings, Tags};
use crate::core::observation::{LocalPostgres, Process, Receiver, Sql, SqlSample, WalSender};
use crate::dcs::{ClusterView, Entry, PgRole, PgState, Snapshot};
use crate::ids::{LeaseId, Revision, SystemId};
use crate::time::{MonoTime, WallTime};
use crate::wal::{Lsn, Timeline};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;

/// The moment of all fixtures.
pub(super) const NOW: MonoTime = MonoTime(1_000_000_000_000);

pub(super) fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

pub(super) fn settings(dynamic: Value, tags: Value) -> Settings {
    let dynamic = object(dynamic);
    Settings {
        me: "gd-a".into(),
        scope: "garden".into(),
        version: "4.1.4".into(),
        conn_url: "postgres://192.0.2.11:5432/postgres".into(),
        api_url: "http://192.0.2.11:8008/patroni".into(),
        proxy_url: None,
        tags: Tags(object(tags)),
        cluster: ClusterConfig::parse(&dynamic),
        dynamic,
        can_bootstrap: true,
        can_clone_without_leader: false,
        use_pg_rewind: false,
        wipe_on_rewind_failure: false,
        wipe_on_divergence: false,
        has_pre_promote: false,
        watchdog_required: false,
        conf_generation: 1,
    }
}

pub(super) fn view(entries: &[(&str, &str)]) -> ClusterView {
    let mut snapshot = Snapshot::default();
    for (key, value) in entries {
        let entry = Entry {
            value: (*value).to_owned(),
            lease: LeaseId(1),
            created: Revision(1),
            modified: Revision(5),
        };
        snapshot.apply_put(key, entry);
    }
    ClusterView::read(&snapshot)
}

fn member(dynamic: Value, tags: Value) -> Published {
    let mut published = Published::starting(Arc::new(settings(dynamic, tags)), NOW);
    published.dcs_last_seen = WallTime(1_784_887_932_123);
    published.state = PgState::Running;
    published.system_id = SystemId::parse("7268616322854375442");
    published.next_run = NOW + Duration::from_secs(5);
    published
}

fn with_sample(published: &mut Published, sample: SqlSample) {
    published.postgres = Arc::new(LocalPostgres {
        process: Process::Alive { pid: 1 },
        sql: Sql::Sample(Box::new(sample)),
        ..LocalPostgres::default()
    });
}

/// Changes the sample of a fixture.
pub(super) fn edit_sample(published: &mut Published, edit: impl FnOnce(&mut SqlSample)) {
    let mut postgres = LocalPostgres::clone(&published.postgres);
    if let Sql::Sample(sample) = &mut postgres.sql {
        edit(sample);
    }
    published.postgres = Arc::new(postgres);
}

fn sample() -> SqlSample {
    SqlSample {
        timeline: Some(Timeline(5)),
        postmaster_start_time: "2026-07-24 10:00:00.123456+00".into(),
        server_version: 160_004,
        ..SqlSample::default()
    }
}

/// Holds the lock and runs as a primary.
pub(super) fn leader() -> Published {
    let mut published = member(Value::Null, Value::Null);
    published.role = PgRole::Primary;
    published.leader_until = Some(NOW + Duration::from_secs(20));
    published.view = Some(Arc::new(view(&[("leader", "gd-a")])));
    let sender = WalSender {
        usename: Some("replicator".into()),
        application_name: "gd-b".into(),
        client_addr: Some("192.0.2.12".into()),
        state: "streaming".into(),
        sync_state: "sync".into(),
        sync_priority: 1,
        ..WalSender::default()
    };
    let sample = SqlSample {
        flush_lsn: Lsn(67_395_656),
        wal_senders: vec![sender],
        ..sample()
    };
    with_sample(&mut published, sample);
    published
}

fn standby_sample() -> SqlSample {
    SqlSample {
        in_recovery: true,
        receive_lsn: Lsn(67_419_744),
        replay_lsn: Lsn(67_419_648),
        receiver: Some(Receiver {
            status: "streaming".into(),
            latest_end_lsn: Lsn(67_419_744),
            ..Receiver::default()
        }),
        ..sample()
    }
}

/// Streams from `gd-b`, with these settings, tags and `/sync`.
pub(super) fn standby(dynamic: Value, tags: Value, sync: &str) -> Published {
    let mut published = member(dynamic, tags);
    published.role = PgRole::Replica;
    published.view = Some(Arc::new(view(&[
        ("leader", "gd-b"),
        ("sync", sync),
        ("status", r#"{"optime":67419744}"#),
    ])));
    with_sample(&mut published, standby_sample());
    published
}

/// An asynchronous standby.
pub(super) fn replica() -> Published {
    standby(Value::Null, Value::Null, "{}")
}
