//! What one member sees, and what it is asked: the beginning of every row.

pub use proto::config::{ClusterConfig, Settings, Tags};
pub use proto::core::decision::{SlotPlan, Wish, WishOutcome};
pub use proto::core::job::{Failure, Finished, Job, JobEnd, StopReason, Upstream};
pub use proto::core::memory::Handover;
pub use proto::core::observation::*;
pub use proto::core::rewind::RewindState;
pub use proto::core::{Action, Decision, Memory, decide};
pub use proto::dcs::txn::TxnOutcome;
pub use proto::dcs::{ClusterView, Entry, Op, PgRole, Snapshot};
pub use proto::ids::{Epoch, JobId, LeaseId, Revision, SystemId};
pub use proto::time::{MonoTime, WallTime};
pub use proto::wal::{Lsn, Timeline, TimelineHistory};
pub use serde_json::{Map, Value, json};
pub use std::time::Duration;

pub const NOW: MonoTime = MonoTime(1_000_000_000_000);
pub const SYSTEM: u64 = 7_268_616_322_854_375_442;

/// One member of three at one moment; node1 leads.
#[derive(Clone, Debug)]
pub struct Scene {
    pub o: Observation,
    pub m: Memory,
    pub s: Settings,
    pub keys: Vec<(String, String)>,
}

pub fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

pub fn conn_url(name: &str) -> String {
    format!("postgres://{name}:5432/postgres")
}

pub fn follows(name: &str) -> Upstream {
    Upstream::Member {
        name: name.into(),
        conn_url: conn_url(name),
    }
}

pub fn remote() -> Upstream {
    Upstream::Remote {
        host: Some("far".into()),
        port: Some("5432".into()),
        slot: None,
    }
}

pub fn far() -> Value {
    json!({"standby_cluster": {"host": "far", "port": 5432}})
}

pub fn settings(me: &str, dynamic: Value, tags: Value) -> Settings {
    let dynamic = object(dynamic);
    Settings {
        me: me.into(),
        scope: "garden".into(),
        version: "4.1.4".into(),
        conn_url: conn_url(me),
        api_url: format!("http://{me}:8008/patroni"),
        proxy_url: None,
        tags: Tags(object(tags)),
        cluster: ClusterConfig::parse(&dynamic),
        dynamic,
        can_bootstrap: true,
        can_clone_without_leader: false,
        use_pg_rewind: true,
        wipe_on_rewind_failure: false,
        wipe_on_divergence: false,
        has_pre_promote: false,
        watchdog_required: false,
        conf_generation: 1,
    }
}

pub fn member(name: &str, role: &str) -> (String, String) {
    let record = json!({
        "conn_url": conn_url(name), "api_url": format!("http://{name}:8008/patroni"),
        "state": "running", "role": role, "version": "4.1.4", "timeline": 1, "xlog_location": 100,
    });
    (format!("members/{name}"), record.to_string())
}

/// A running standby that streams from node1, or node1 itself.
pub fn scene(me: &str, dynamic: Value, tags: Value) -> Scene {
    let s = settings(me, dynamic, tags);
    let role = if s.cluster.standby_cluster.is_some() {
        "standby_leader"
    } else {
        "primary"
    };
    let mut keys = vec![
        ("initialize".to_owned(), SYSTEM.to_string()),
        ("leader".to_owned(), "node1".to_owned()),
    ];
    for (name, role) in [("node1", role), ("node2", "replica"), ("node3", "replica")] {
        keys.push(member(name, role));
    }
    let standby = me != "node1" || s.cluster.standby_cluster.is_some();
    let upstream = match (
        standby,
        s.cluster.standby_cluster.is_some() && me == "node1",
    ) {
        (_, true) => remote(),
        (true, false) => follows("node1"),
        (false, false) => Upstream::None,
    };
    let sample = SqlSample {
        in_recovery: standby,
        timeline: Some(Timeline(1)),
        flush_lsn: Lsn(100),
        receive_lsn: Lsn(100),
        replay_lsn: Lsn(100),
        receiver: standby.then(|| Receiver {
            status: "streaming".into(),
            ..Receiver::default()
        }),
        postmaster_start_time: "then".into(),
        server_version: 150_018,
        ..SqlSample::default()
    };
    let mut o = Observation {
        now: NOW,
        wall: WallTime(1_784_887_932_123),
        ..Observation::default()
    };
    o.dcs.confirmed = true;
    o.dcs.confirmed_at = NOW;
    o.dcs.watching_since = Some(MonoTime(0));
    o.dcs.session = Some(Session {
        id: LeaseId(if me == "node1" { 1 } else { 2 }),
        ttl: Duration::from_secs(30),
        sent_at: NOW,
    });
    o.guardian.alive = true;
    o.guardian.fit = true;
    o.guardian.session = "life".into();
    o.postgres = LocalPostgres {
        data_dir: DataDir::Initialised,
        process: Process::Alive { pid: 7 },
        sql: Sql::Sample(Box::new(sample)),
        sql_at: NOW,
        control: Some(ControlData {
            system_id: SystemId(SYSTEM),
            state: ControlState::ShutDownInRecovery,
            timeline: Timeline(1),
            min_recovery_end: Lsn(100),
            min_recovery_timeline: Timeline(1),
            rewindable: true,
            ..ControlData::default()
        }),
        signal_file: standby,
        major_version: 15,
        conf: AppliedConf {
            generation: 1,
            upstream,
            as_primary: !standby,
            ..AppliedConf::default()
        },
        ..LocalPostgres::default()
    };
    let m = Memory {
        role: Some(if standby {
            PgRole::Replica
        } else {
            PgRole::Primary
        }),
        callback_called: true,
        began: Some(MonoTime(0)),
        ..Memory::default()
    };
    Scene { o, m, s, keys }
}

impl Scene {
    pub fn key(mut self, name: &str, value: Option<&str>) -> Self {
        self.keys.retain(|(key, _)| key != name);
        self.keys
            .extend(value.map(|value| (name.to_owned(), value.to_owned())));
        self
    }

    pub fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// PostgreSQL is not running.
    pub fn down(self) -> Self {
        self.with(|scene| {
            scene.o.postgres.process = Process::Gone;
            scene.o.postgres.sql = Sql::None;
        })
    }

    /// The walreceiver is gone, and we have begun to doubt our branch.
    pub fn doubts(self) -> Self {
        self.with(|scene| {
            if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
                sample.receiver = None;
            }
            scene.m.rewind = RewindState::Check;
        })
    }

    /// The primary that was asked is on another branch: our timeline ended before our position.
    pub fn diverged_from(self, who: &str) -> Self {
        self.with(|scene| {
            scene.o.lineage = Some(Lineage {
                leader: who.into(),
                at: NOW,
                is_primary: true,
                system_id: SystemId(SYSTEM),
                history: TimelineHistory::parse(Timeline(2), "1\t0/50\tno recovery target\n")
                    .expect("a history"),
            });
        })
    }

    pub fn decide(&self) -> (Decision, Memory) {
        let mut snapshot = Snapshot::default();
        for (key, value) in &self.keys {
            let entry = Entry {
                value: value.clone(),
                lease: LeaseId(1),
                created: Revision(1),
                modified: Revision(5),
            };
            snapshot.apply_put(key, entry);
        }
        let mut o = self.o.clone();
        o.dcs.view = Some(ClusterView::read(&snapshot));
        decide(&o, &self.m, &self.s)
    }

    /// Rule and job.
    pub fn job(&self) -> (String, Option<Job>) {
        let (decision, _) = self.decide();
        let job = decision.actions.iter().find_map(|action| match action {
            Action::Start(job) => Some(job.clone()),
            _ => None,
        });
        (decision.reason.rule().to_owned(), job)
    }
}

pub fn paused() -> Value {
    json!({"pause": true})
}

pub fn restart_wish(scene: &mut Scene) {
    scene.o.wishes.restart = Some(RestartWish {
        id: 9,
        timeout: None,
    });
}
