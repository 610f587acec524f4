//! The leader's side of synchronous replication, each as one decision: where the rules of [`sync`] are asked.

use super::*;
use crate::config::{ClusterConfig, Settings, Tags};
use crate::core::decide::decide;
use crate::core::decision::{Decision, WantedConf};
use crate::core::job::{Finished, JobEnd};
use crate::core::memory::Memory;
use crate::core::observation::*;
use crate::dcs::{Op, Snapshot};
use crate::ids::{JobId, LeaseId, Revision, SystemId};
use serde_json::json;

const NOW: MonoTime = MonoTime(1_000_000_000_000);
const SYSTEM: u64 = 7_268_616_322_854_375_442;

/// One member at one moment; `a` leads by `/leader`, `b` and `c` follow.
#[derive(Clone)]
pub(crate) struct Scene {
    pub(crate) o: Observation,
    pub(crate) m: Memory,
    pub(crate) s: Settings,
    keys: BTreeMap<String, String>,
}

pub(crate) fn settings(me: &str, dynamic: serde_json::Value) -> Settings {
    let dynamic = dynamic.as_object().cloned().unwrap_or_default();
    Settings {
        me: me.into(),
        scope: "garden".into(),
        version: "4.1.4".into(),
        conn_url: format!("postgres://{me}:5432/postgres"),
        api_url: format!("http://{me}:8008/patroni"),
        proxy_url: None,
        tags: Tags::default(),
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

fn sender(name: &str, flush_lsn: u64) -> WalSender {
    WalSender {
        application_name: name.into(),
        state: "streaming".into(),
        sync_state: "quorum".into(),
        flush_lsn: Lsn(flush_lsn),
        write_lsn: Lsn(flush_lsn),
        replay_lsn: Lsn(flush_lsn),
        ..WalSender::default()
    }
}

/// The leader `a`, whose PostgreSQL runs as a primary.
pub(crate) fn leader(dynamic: serde_json::Value) -> Scene {
    let sample = SqlSample {
        timeline: Some(Timeline(1)),
        flush_lsn: Lsn(100),
        receive_lsn: Lsn(100),
        replay_lsn: Lsn(100),
        postmaster_start_time: "then".into(),
        server_version: 150_018,
        wal_senders: vec![sender("b", 100), sender("c", 100)],
        ..SqlSample::default()
    };
    let mut o = Observation {
        now: NOW,
        ..Observation::default()
    };
    o.dcs.confirmed = true;
    o.dcs.confirmed_at = NOW;
    o.dcs.watching_since = Some(MonoTime(0));
    o.dcs.session = Some(Session {
        id: LeaseId(1),
        ttl: Duration::from_secs(30),
        sent_at: NOW,
    });
    o.guardian.alive = true;
    o.guardian.fit = true;
    o.guardian.session = "life".into();
    o.guardian.armed = Some(Armed {
        epoch: Epoch(0),
        deadline: NOW + Duration::from_secs(29),
    });
    o.postgres = LocalPostgres {
        data_dir: DataDir::Initialised,
        process: Process::Alive { pid: 7 },
        sql: Sql::Sample(Box::new(sample)),
        sql_at: NOW,
        control: Some(ControlData {
            system_id: SystemId(SYSTEM),
            state: ControlState::InProduction,
            timeline: Timeline(1),
            ..ControlData::default()
        }),
        major_version: 15,
        conf: AppliedConf {
            generation: 1,
            as_primary: true,
            ..AppliedConf::default()
        },
        ..LocalPostgres::default()
    };
    let m = Memory {
        role: Some(PgRole::Primary),
        callback_called: true,
        began: Some(MonoTime(0)),
        ..Memory::default()
    };
    let mut keys = BTreeMap::from([
        ("initialize".to_owned(), SYSTEM.to_string()),
        ("leader".to_owned(), "a".to_owned()),
    ]);
    for name in ["a", "b", "c"] {
        let role = if name == "a" { "primary" } else { "replica" };
        let record = json!({
            "conn_url": format!("postgres://{name}:5432/postgres"),
            "api_url": format!("http://{name}:8008/patroni"),
            "state": "running", "role": role, "version": "4.1.4", "timeline": 1,
        });
        keys.insert(format!("members/{name}"), record.to_string());
    }
    let s = settings("a", dynamic);
    Scene { o, m, s, keys }
}

impl Scene {
    pub(crate) fn key(mut self, name: &str, value: &str) -> Self {
        self.keys.insert(name.to_owned(), value.to_owned());
        self
    }

    /// `/sync` and the names that are in force.
    fn synchronous(self, leader: &str, standbys: &str, quorum: u32, names: &str) -> Self {
        let value = json!({"leader": leader, "sync_standby": standbys, "quorum": quorum});
        let mut scene = self.key("sync", &value.to_string());
        scene.o.postgres.conf.sync_names = names.into();
        scene.sample().synchronous_standby_names = names.into();
        scene
    }

    fn sample(&mut self) -> &mut SqlSample {
        match &mut self.o.postgres.sql {
            Sql::Sample(sample) => sample,
            other => panic!("{other:?}"),
        }
    }

    /// How the last write of `/sync` ended.
    fn wrote_sync(mut self, outcome: TxnOutcome) -> Self {
        let result = TaskResult::Txn(outcome);
        let at = NOW - Duration::from_secs(5);
        self.o.outcomes.insert(Task::Sync, Outcome { at, result });
        self
    }

    pub(crate) fn view(&self) -> crate::dcs::ClusterView {
        let mut snapshot = Snapshot::default();
        for (key, value) in &self.keys {
            let entry = crate::dcs::Entry {
                value: value.clone(),
                lease: LeaseId(1),
                created: Revision(1),
                modified: Revision(5),
            };
            snapshot.apply_put(key, entry);
        }
        crate::dcs::ClusterView::read(&snapshot)
    }

    fn decide(&self) -> (Decision, Memory) {
        let mut o = self.o.clone();
        o.dcs.view = Some(self.view());
        decide(&o, &self.m, &self.s)
    }

    /// What is ordered about synchronous replication: `/sync` as written, names as set.
    fn orders(&self) -> (Option<SyncRecord>, Option<String>) {
        let (decision, _) = self.decide();
        let mut orders = (None, None);
        for action in decision.actions {
            match action {
                Action::Write {
                    task: Task::Sync,
                    txn,
                } => {
                    let Some(Op::Put { value, .. }) = txn.then.into_iter().next() else {
                        continue;
                    };
                    orders.0 = SyncRecord::parse(&value, Revision(1)).ok();
                }
                Action::Configure(WantedConf { sync_names, .. }) => orders.1 = sync_names,
                _ => {}
            }
        }
        orders
    }

    fn hold_back(&self) -> (Option<String>, Memory) {
        let (decision, memory) = self.decide();
        (decision.standing.hold_back, memory)
    }
}

fn quorum() -> serde_json::Value {
    json!({"synchronous_mode": "quorum", "synchronous_node_count": 1})
}

fn committed() -> TxnOutcome {
    TxnOutcome::Committed(Revision(5))
}

fn unknown() -> TxnOutcome {
    TxnOutcome::Unknown("no answer".into())
}

fn standbys(key: Option<SyncRecord>) -> Option<(Vec<String>, u32)> {
    key.map(|key| (key.standbys, key.quorum))
}

/// The call of [`sync::unless_in_doubt`]: the names would be widened to what the key says.
#[test]
fn names_are_changed_only_when_the_outcome_of_the_last_write_of_the_key_is_known() {
    let scene = || leader(quorum()).synchronous("a", "b,c", 1, "ANY 2 (b,c)");
    let both = Some((vec!["b".to_owned(), "c".to_owned()], 1));
    for (outcome, rewritten) in [
        (Some(committed()), false),
        (Some(TxnOutcome::Refused), false),
        (Some(unknown()), true),
        // An agent that has just started does not know what the one before it has sent.
        (None, true),
    ] {
        let scene = match &outcome {
            Some(outcome) => scene().wrote_sync(outcome.clone()),
            None => scene(),
        };
        let (key, names) = scene.orders();
        let expected = if rewritten { both.clone() } else { None };
        assert_eq!(standbys(key), expected, "{outcome:?}");
        assert_eq!(names.is_none(), rewritten, "{outcome:?}: {names:?}");
    }
}

/// About to be promoted: the lock is ours, PostgreSQL is in recovery.
fn candidate(dynamic: serde_json::Value) -> Scene {
    let mut scene = leader(dynamic).key(
        "history",
        r#"[[1,100,"claimed for a promotion","2026-01-01T00:00:00+00:00","a"]]"#,
    );
    scene.sample().in_recovery = true;
    scene.sample().wal_senders.clear();
    scene.o.postgres.signal_file = true;
    scene.m.role = Some(PgRole::Replica);
    scene
}

/// The call of [`prepare_sync`] in mode `quorum`.
#[test]
fn a_key_of_an_earlier_life_is_written_again_before_the_promotion() {
    let key = Some((vec!["b".to_owned(), "c".to_owned()], 1));
    let mine = || candidate(quorum()).synchronous("a", "b,c", 1, "");
    assert_eq!(standbys(mine().orders().0), key);
    assert_eq!(standbys(mine().wrote_sync(unknown()).orders().0), key);
    let (written, names) = mine().wrote_sync(committed()).orders();
    assert_eq!((standbys(written), names.is_some()), (None, true));
    // Another's needs no second write: nothing of ours can come late.
    let (written, names) = candidate(quorum()).synchronous("b", "a,c", 1, "").orders();
    assert_eq!((standbys(written), names.is_some()), (None, true));
}

/// The same in mode `on`, where the key must name its new leader first.
#[test]
fn in_mode_on_the_key_names_the_new_primary_before_its_names_are_set() {
    let on = json!({"synchronous_mode": true, "synchronous_mode_strict": true});
    let scene = candidate(on.clone()).synchronous("b", "a", 0, "");
    let (written, names) = scene.orders();
    assert_eq!(standbys(written), Some((vec!["b".to_owned()], 0)));
    assert_eq!(names, None);
    let mine = || candidate(on.clone()).synchronous("a", "b", 0, "");
    let (written, names) = mine().wrote_sync(committed()).orders();
    assert_eq!((standbys(written), names), (None, Some("b".to_owned())));
    assert_eq!(
        standbys(mine().wrote_sync(unknown()).orders().0),
        Some((vec!["b".to_owned()], 0))
    );
}

/// Without strict mode a primary that is promoted again starts alone: whoever its key still names would be let
/// take over without what it acknowledges (S3).
#[test]
fn in_mode_on_a_key_of_our_own_shrinks_before_the_promotion() {
    let on = json!({"synchronous_mode": true});
    let scene = candidate(on.clone()).synchronous("a", "b", 0, "");
    let (written, names) = scene.wrote_sync(committed()).orders();
    assert_eq!((standbys(written), names), (Some((vec![], 0)), None));
    let alone = candidate(on).synchronous("a", "", 0, "b");
    let (written, names) = alone.wrote_sync(committed()).orders();
    assert_eq!((standbys(written), names), (None, Some(String::new())));
}

#[test]
fn without_synchronous_mode_no_name_is_in_force_at_the_promotion() {
    let mut scene = candidate(json!({}));
    scene.o.postgres.conf.sync_names = "b".into();
    assert_eq!(scene.orders().1, Some(String::new()));
}

// --- S9: what recovery makes visible ----------------------------------------------------------------

/// Nobody has what was recovered yet, then `b` has.
fn behind() -> Scene {
    let mut scene = leader(quorum())
        .synchronous("a", "b,c", 1, "ANY 1 (b,c)")
        .wrote_sync(committed());
    scene.sample().wal_senders = vec![sender("b", 90), sender("c", 90)];
    scene
}

#[test]
fn a_restart_of_the_primary_holds_clients_back_until_a_quorum_has_everything() {
    let job = Job::Restart {
        timeout: Duration::from_secs(60),
        wish: None,
        follow: Upstream::None,
    };
    let mut during = behind();
    during.o.job = Some(RunningJob {
        id: JobId(3),
        job: job.clone(),
        started: NOW,
        phase: "starting".into(),
        cancelled: false,
    });
    assert!(during.hold_back().0.is_some(), "while it starts");
    for end in [JobEnd::Done, JobEnd::StillStarting, JobEnd::Cancelled] {
        let mut scene = behind();
        let job = job.clone();
        let (id, end) = (JobId(3), end);
        let at = NOW;
        scene.o.finished = Some(Finished { id, job, end, at });
        let (held, memory) = scene.hold_back();
        assert!(held.is_some(), "{:?}", scene.o.finished);
        scene.m = memory;
        scene.sample().wal_senders = vec![sender("b", 100)];
        assert_eq!(scene.hold_back().0, None);
    }
}

#[test]
fn a_new_agent_does_not_know_what_its_primary_has_recovered() {
    let mut scene = behind();
    scene.m = Memory::default();
    let (held, memory) = scene.hold_back();
    assert!(held.is_some());
    scene.m = memory;
    scene.sample().wal_senders = vec![sender("c", 100)];
    assert_eq!(scene.hold_back().0, None);
    // One that has led before knows.
    assert_eq!(behind().hold_back().0, None);
    let mut alone = leader(json!({}));
    alone.m = Memory::default();
    alone.sample().wal_senders.clear();
    assert_eq!(alone.hold_back().0, None, "asynchronous");
}

#[test]
fn an_agent_that_is_restarted_during_crash_recovery_holds_clients_back() {
    let mut scene = behind();
    scene.m = Memory {
        role: None,
        ..Memory::default()
    };
    let open = std::mem::replace(&mut scene.o.postgres.sql, Sql::Rejecting);
    let (held, memory) = scene.hold_back();
    assert!(held.is_some(), "while it recovers");
    scene.m = memory;
    scene.o.postgres.sql = open;
    assert!(scene.hold_back().0.is_some(), "once it is open");
}

/// A crash inside a living postmaster: nobody has started anything.
#[test]
fn a_primary_that_restarts_itself_holds_clients_back() {
    let mut scene = behind();
    let open = std::mem::replace(&mut scene.o.postgres.sql, Sql::Rejecting);
    let (held, memory) = scene.hold_back();
    assert!(held.is_some(), "while it recovers");
    scene.m = memory;
    scene.o.postgres.sql = open;
    assert!(scene.hold_back().0.is_some(), "once it is open");
}

// --- timelines ----------------------------------------------------------------------------------------

/// Every number that is known anywhere is taken: our own, a history file, a member key, an answer.
#[test]
fn the_next_timeline_is_above_every_number_that_is_known() {
    type Change = fn(&mut Scene);
    let cases: [(Change, u32); 4] = [
        (|_| {}, 1),
        (
            |scene| {
                let file =
                    crate::wal::TimelineHistory::parse(Timeline(3), "1\t0/50\tx\n2\t0/60\tx\n");
                scene.o.postgres.history = Some((file.expect("a history"), "then".into()));
            },
            3,
        ),
        (
            |scene| {
                let record = json!({"api_url": "http://b:8008/patroni", "timeline": 4});
                *scene = scene.clone().key("members/b", &record.to_string());
            },
            4,
        ),
        (
            |scene| {
                let status = PeerStatus {
                    timeline: Some(Timeline(5)),
                    ..PeerStatus::default()
                };
                let answer = PeerAnswer {
                    asked_at: NOW,
                    status: Some(status),
                };
                scene.o.peers.insert("c".into(), answer);
            },
            5,
        ),
    ];
    for (change, highest) in cases {
        let mut scene = leader(json!({}));
        change(&mut scene);
        scene.o.dcs.view = Some(scene.view());
        let cx = Cx::new(&scene.o, &scene.m, &scene.s);
        assert_eq!(highest_timeline(&cx, Timeline(1)), Timeline(highest));
        assert_eq!(highest_timeline(&cx, Timeline(9)), Timeline(9));
    }
}

/// S4: somebody has deleted the record, and every process that led by it is new.
#[test]
fn an_epoch_that_was_seen_is_not_given_again() {
    let record = r#"{"v":1,"epoch":7,"owner":"b","session":"g","seq":1,"state":"released","l_ms":8000,"w_ms":9000,"members":["a","b","c"]}"#;
    let seen = leader(json!({})).key("record", record);
    let promise = r#"{"v":1,"epoch":6,"wal_epoch":6,"timeline":1,"lsn":9}"#;
    let promised = leader(json!({})).key("fence/c", promise);
    for (mut scene, highest) in [(seen, 7), (promised, 6)] {
        scene.o.dcs.view = Some(scene.view());
        let (_, memory) = decide(&scene.o, &scene.m, &scene.s);
        let mut later = leader(json!({}));
        (later.m, later.o.dcs.view) = (memory, Some(later.view()));
        let cx = Cx::new(&later.o, &later.m, &later.s);
        assert_eq!(keep::claimant(&cx).highest, Epoch(highest));
    }
}
