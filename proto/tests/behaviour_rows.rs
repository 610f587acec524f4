//! Rows of the behaviour table, each as one decision: what a member sees, and what it orders. The real
//! clusters of `chaos-tests/tests/rows` show the same with processes.
#![allow(missing_docs, reason = "a test")]

extern crate garden_proto as proto;

use proto::config::{ClusterConfig, Settings, Tags};
use proto::core::decision::{SlotPlan, Wish, WishOutcome};
use proto::core::job::{Failure, Finished, Job, JobEnd, StopReason, Upstream};
use proto::core::memory::Handover;
use proto::core::observation::*;
use proto::core::rewind::RewindState;
use proto::core::{Action, Decision, Memory, decide};
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{ClusterView, Entry, Op, PgRole, Snapshot};
use proto::ids::{Epoch, JobId, LeaseId, Revision, SystemId};
use proto::time::{MonoTime, WallTime};
use proto::wal::{Lsn, Timeline, TimelineHistory};
use serde_json::{Map, Value, json};
use std::time::Duration;

const NOW: MonoTime = MonoTime(1_000_000_000_000);
const SYSTEM: u64 = 7_268_616_322_854_375_442;

/// One member of three at one moment; node1 leads.
#[derive(Clone, Debug)]
struct Scene {
    o: Observation,
    m: Memory,
    s: Settings,
    keys: Vec<(String, String)>,
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn conn_url(name: &str) -> String {
    format!("postgres://{name}:5432/postgres")
}

fn follows(name: &str) -> Upstream {
    Upstream::Member {
        name: name.into(),
        conn_url: conn_url(name),
    }
}

fn remote() -> Upstream {
    Upstream::Remote {
        host: Some("far".into()),
        port: Some("5432".into()),
        slot: None,
    }
}

fn far() -> Value {
    json!({"standby_cluster": {"host": "far", "port": 5432}})
}

fn settings(me: &str, dynamic: Value, tags: Value) -> Settings {
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

fn member(name: &str, role: &str) -> (String, String) {
    let record = json!({
        "conn_url": conn_url(name), "api_url": format!("http://{name}:8008/patroni"),
        "state": "running", "role": role, "version": "4.1.4", "timeline": 1, "xlog_location": 100,
    });
    (format!("members/{name}"), record.to_string())
}

/// A running standby that streams from node1, or node1 itself.
fn scene(me: &str, dynamic: Value, tags: Value) -> Scene {
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
    fn key(mut self, name: &str, value: Option<&str>) -> Self {
        self.keys.retain(|(key, _)| key != name);
        self.keys
            .extend(value.map(|value| (name.to_owned(), value.to_owned())));
        self
    }

    fn with(mut self, change: impl FnOnce(&mut Self)) -> Self {
        change(&mut self);
        self
    }

    /// PostgreSQL is not running.
    fn down(self) -> Self {
        self.with(|scene| {
            scene.o.postgres.process = Process::Gone;
            scene.o.postgres.sql = Sql::None;
        })
    }

    /// The walreceiver is gone, and we have begun to doubt our branch.
    fn doubts(self) -> Self {
        self.with(|scene| {
            if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
                sample.receiver = None;
            }
            scene.m.rewind = RewindState::Check;
        })
    }

    /// The primary that was asked is on another branch: our timeline ended before our position.
    fn diverged_from(self, who: &str) -> Self {
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

    fn decide(&self) -> (Decision, Memory) {
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
    fn job(&self) -> (String, Option<Job>) {
        let (decision, _) = self.decide();
        let job = decision.actions.iter().find_map(|action| match action {
            Action::Start(job) => Some(job.clone()),
            _ => None,
        });
        (decision.reason.rule().to_owned(), job)
    }
}

fn paused() -> Value {
    json!({"pause": true})
}

fn restart_wish(scene: &mut Scene) {
    scene.o.wishes.restart = Some(RestartWish {
        id: 9,
        timeout: None,
    });
}

#[test]
fn a_standby_that_is_down_in_pause_is_started_only_when_asked() {
    let down = scene("node2", paused(), json!({})).down();
    assert_eq!(down.job(), ("paused-down".into(), None));
    let (rule, job) = down.clone().with(restart_wish).job();
    assert_eq!(rule, "restart");
    assert!(
        matches!(&job, Some(Job::Restart { wish: Some(9), follow, .. }) if *follow == follows("node1")),
        "{job:?}"
    );
    let (rule, job) = down
        .with(|scene| {
            scene.o.wishes.reinitialize = Some(ReinitWish {
                id: 3,
                from_leader: true,
            });
        })
        .job();
    assert_eq!(rule, "reinitialize");
    assert!(
        matches!(
            job,
            Some(Job::Reinitialize {
                basebackup_only: true,
                ..
            })
        ),
        "{job:?}"
    );
}

#[test]
fn a_former_primary_is_not_started_as_a_second_one_in_pause() {
    let former = scene("node2", paused(), json!({}))
        .down()
        .with(|scene| scene.o.postgres.signal_file = false)
        .with(restart_wish);
    let (decision, memory) = former.decide();
    let refused = |action: &Action| {
        matches!(
            action,
            Action::Answer {
                wish: Wish::Restart(9),
                outcome: WishOutcome::Refused(_)
            }
        )
    };
    assert!(decision.actions.iter().any(refused), "{decision:?}");
    assert_eq!(memory.restart_wish_done, Some(9));
    // Nobody leads: it comes back as what it was, and takes the lock then.
    let (rule, job) = former.key("leader", None).job();
    assert_eq!(rule, "restart");
    assert!(matches!(job, Some(Job::Restart { .. })), "{job:?}");
}

/// It released the lock at the second of several steps, since the request was gone with its claim; nobody
/// led until the pause ended.
#[test]
fn the_named_candidate_is_promoted_in_pause_step_by_step() {
    let standby = scene("node1", paused(), json!({})).with(|scene| {
        if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
            sample.in_recovery = true;
        }
        scene.o.postgres.signal_file = true;
        scene.m.role = Some(PgRole::Replica);
    });
    let free = standby
        .clone()
        .key("leader", None)
        .key("failover", Some(r#"{"leader":"node2","member":"node1"}"#));
    let (decision, memory) = free.decide();
    assert_eq!(decision.reason.rule(), "race-candidate");
    // The claim took the request along. Neither of the steps to a promotion gives the lock back.
    let mut mine = standby.clone().with(|scene| scene.m = memory);
    for step in ["prepare-promotion", "promote"] {
        let (decision, memory) = mine.decide();
        assert_eq!(decision.reason.rule(), step);
        let claimed = decision.actions.iter().find_map(|action| match action {
            Action::Write {
                task: Task::History,
                txn,
            } => txn.then.first().cloned(),
            _ => None,
        });
        if let Some(Op::Put { value, .. }) = claimed {
            mine = mine.key("history", Some(&value));
        }
        mine = mine.with(|scene| {
            scene.m = memory;
            scene.o.postgres.conf.as_primary = true;
        });
    }
    // Without a request that names it, a standby with the lock gives it back.
    assert_eq!(standby.decide().0.reason.rule(), "release-pause");
}

/// The lock was given up before the candidate was known to have everything.
/// node1 has stopped for a switchover, its WAL ends at 150, and node2 has answered that it is here.
fn stopped_to_hand_over(dynamic: Value, position: u64) -> Scene {
    scene("node1", dynamic, json!({}))
        .down()
        .key("failover", Some(r#"{"leader":"node1","member":"node2"}"#))
        .with(|scene| {
            let stop = Job::Stop {
                mode: proto::core::job::StopMode::Fast,
                checkpoint_first: true,
                timeout: None,
                why: StopReason::Switchover,
            };
            scene.o.finished = Some(proto::core::job::Finished {
                id: JobId(1),
                job: stop,
                at: NOW,
                end: JobEnd::Stopped {
                    shutdown: Some((Timeline(1), Lsn(150))),
                },
            });
            scene.o.peers.insert(
                "node2".into(),
                PeerAnswer {
                    asked_at: NOW,
                    status: Some(PeerStatus {
                        position: Lsn(position),
                        ..PeerStatus::default()
                    }),
                },
            );
            scene.m.handover = Some(Handover {
                request: Revision(5),
                switchover: true,
                candidate: Some("node2".into()),
                since: NOW,
                stop_ordered: Some(NOW),
                shutdown: None,
            });
        })
}

#[test]
fn a_switchover_in_pause_waits_for_the_end_of_wal() {
    let rule = |position| stopped_to_hand_over(paused(), position).job().0;
    assert_eq!(rule(149), "handover-wait");
    assert_eq!(rule(150), "releasing");
}

/// L10: a candidate that answers at once was asked again at once, and the end of the time to renew was
/// awaited a millisecond at a time when it had passed.
#[test]
fn the_end_of_wal_is_awaited_at_a_walking_pace() {
    let after = |ms: u64| {
        let waiting = stopped_to_hand_over(json!({}), 149)
            .with(|scene| scene.o.now = NOW + Duration::from_millis(ms));
        let (decision, _) = waiting.decide();
        assert_eq!(decision.reason.rule(), "handover-wait", "{ms} ms");
        let asks = decision
            .actions
            .iter()
            .any(|action| matches!(action, Action::AskPeers { .. }));
        (asks, decision.wake_at.since(waiting.o.now).as_millis())
    };
    assert_eq!(after(2), (false, 18));
    assert_eq!(after(20), (true, 20));
}

#[test]
fn a_server_that_is_down_does_not_hurry_at_the_end_of_its_lease() {
    // A fifth of the lease is left, in which it is not renewed any more.
    let spent = stopped_to_hand_over(json!({}), 149).with(|scene| {
        let session = scene.o.dcs.session.as_mut().expect("a session");
        session.sent_at = NOW - session.ttl.mul_f32(0.9);
    });
    let (decision, _) = spent.decide();
    assert_eq!(decision.reason.rule(), "handover-wait");
    assert_eq!(decision.wake_at.since(NOW).as_millis(), 20);
}

#[test]
fn in_pause_a_diverged_standby_is_rewound_but_nothing_is_thrown_away() {
    let diverged = scene("node2", paused(), json!({}))
        .doubts()
        .diverged_from("node1")
        .with(|scene| {
            scene.m.last_locked = Some(std::sync::Arc::new(proto::core::memory::LastLocked {
                leader: Some("node1".into()),
                ..Default::default()
            }));
        });
    let (rule, job) = diverged.job();
    assert_eq!(rule, "rewind");
    assert!(matches!(job, Some(Job::Rewind { .. })), "{job:?}");
    let wiping = diverged.with(|scene| {
        scene.s.use_pg_rewind = false;
        scene.s.wipe_on_divergence = true;
    });
    assert_eq!(wiping.job(), ("diverged".into(), None));
    let running = wiping.with(|scene| scene.s.cluster.pause = false);
    let (rule, job) = running.job();
    assert_eq!(rule, "copy-anew");
    assert!(matches!(job, Some(Job::Reinitialize { .. })), "{job:?}");
}

/// S18: it said that all was well, and would never stream again.
#[test]
fn a_diverged_standby_says_so_where_nothing_may_be_done_about_it() {
    let stuck = scene("node2", json!({}), json!({})).doubts().with(|scene| {
        scene.s.use_pg_rewind = false;
        scene.m.last_locked = Some(std::sync::Arc::new(proto::core::memory::LastLocked {
            leader: Some("node1".into()),
            ..Default::default()
        }));
    });
    let (decision, _) = stuck.decide();
    assert_eq!(decision.reason.rule(), "following");
    assert!(
        decision
            .actions
            .iter()
            .any(|action| matches!(action, Action::AskLineage { .. })),
        "{:?}",
        decision.actions
    );
    let diverged = stuck.diverged_from("node1");
    assert_eq!(diverged.job(), ("diverged".into(), None));
    let (_, m) = diverged.decide();
    let streams = scene("node2", json!({}), json!({})).with(|scene| scene.m = m);
    assert_eq!(streams.job(), ("following".into(), None));
}

#[test]
fn nostream_lets_the_source_go_and_an_unknown_address_does_not() {
    let (rule, job) = scene("node2", json!({}), json!({"nostream": true})).job();
    assert_eq!(rule, "change-upstream");
    assert!(
        matches!(
            job,
            Some(Job::Follow {
                follow: Upstream::None
            })
        ),
        "{job:?}"
    );
    let unknown = scene("node2", json!({}), json!({})).key("members/node1", None);
    assert_eq!(unknown.job(), ("following".into(), None));
}

#[test]
fn a_cascade_whose_source_is_unknown_follows_the_leader() {
    let to = |tags: Value| match scene("node2", json!({}), tags).job() {
        (_, Some(Job::Follow { follow })) => follow,
        (_, job) => {
            assert_eq!(job, None);
            follows("node1")
        }
    };
    assert_eq!(to(json!({"replicatefrom": "node3"})), follows("node3"));
    assert_eq!(to(json!({"replicatefrom": "node9"})), follows("node1"));
    assert_eq!(to(json!({"replicatefrom": "node2"})), follows("node1"));
}

#[test]
fn a_standby_cluster_begins_as_a_copy_of_the_remote_primary() {
    let mut won = scene("node2", far(), json!({})).down().with(|scene| {
        scene.o.postgres.data_dir = DataDir::Empty;
        scene.o.postgres.control = None;
        scene.m.bootstrapping = true;
        if let Some(session) = &mut scene.o.dcs.session {
            session.id = LeaseId(1);
        }
        scene.o.outcomes.insert(
            Task::Initialize,
            Outcome {
                at: NOW,
                result: TaskResult::Txn(TxnOutcome::Committed(Revision(5))),
            },
        );
    });
    won.keys = vec![("initialize".into(), String::new())];
    let (rule, job) = won.job();
    assert_eq!(rule, "clone");
    let Some(job) = job else { panic!("a copy") };
    assert!(
        matches!(&job, Job::Clone { source: Some(from), follow, .. } if *from == remote() && *follow == remote()),
        "{job:?}"
    );
    // When it is there, the keys are written.
    let made = won.with(|scene| {
        scene.o.postgres.data_dir = DataDir::Initialised;
        scene.o.finished = Some(proto::core::job::Finished {
            id: JobId(1),
            job,
            at: NOW,
            end: JobEnd::Done,
        });
    });
    let (decision, memory) = made.decide();
    assert_eq!(decision.reason.rule(), "bootstrap-finish");
    assert!(memory.bootstrapped && !memory.bootstrapping);
}

#[test]
fn members_of_a_standby_cluster_start_without_asking_a_primary() {
    let doubting = |me| {
        scene(me, far(), json!({}))
            .down()
            .with(|scene| scene.m.rewind = RewindState::Check)
    };
    let (rule, job) = doubting("node2").job();
    assert_eq!(rule, "start-standby");
    assert!(
        matches!(&job, Some(Job::StartStandby { follow, .. }) if *follow == follows("node1")),
        "{job:?}"
    );
    let (rule, job) = doubting("node1").job();
    assert_eq!(rule, "start-standby");
    assert!(
        matches!(&job, Some(Job::StartStandby { follow, .. }) if *follow == remote()),
        "{job:?}"
    );
}

#[test]
fn a_standby_cluster_rewinds_from_the_remote_primary() {
    for me in ["node1", "node2"] {
        let asks = scene(me, far(), json!({})).doubts();
        let (decision, _) = asks.decide();
        let asked = |action: &Action| matches!(action, Action::AskLineage { upstream, .. } if *upstream == remote());
        assert!(decision.actions.iter().any(asked), "{me}: {decision:?}");
        let (rule, job) = asks
            .with(|scene| {
                scene.m.last_locked = Some(std::sync::Arc::new(proto::core::memory::LastLocked {
                    leader: Some("node1".into()),
                    ..Default::default()
                }));
            })
            .diverged_from("remote member")
            .job();
        assert_eq!(rule, "rewind", "{me}");
        assert!(
            matches!(&job, Some(Job::Rewind { source }) if *source == remote()),
            "{me}: {job:?}"
        );
    }
}

#[test]
fn a_primary_whose_cluster_became_a_standby_cluster_stops_and_follows() {
    let primary = scene("node1", far(), json!({})).with(|scene| {
        if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
            sample.in_recovery = false;
            sample.receiver = None;
        }
        scene.o.guardian.armed = Some(Armed {
            epoch: Epoch(0),
            deadline: NOW + Duration::from_secs(29),
        });
        scene.m.role = Some(PgRole::Primary);
    });
    let (_, job) = primary.job();
    assert!(
        matches!(
            job,
            Some(Job::Stop {
                why: StopReason::DemoteCluster,
                ..
            })
        ),
        "{job:?}"
    );
}

/// The stop of a standby has no end of WAL to wait for; the request was dropped for the lack of one.
#[test]
fn a_standby_leader_hands_over_without_an_end_of_wal() {
    let stopped = scene("node1", far(), json!({}))
        .down()
        .key("failover", Some(r#"{"leader":"node1","member":"node2"}"#))
        .with(|scene| {
            scene.m.handover = Some(Handover {
                request: Revision(5),
                switchover: true,
                candidate: Some("node2".into()),
                since: NOW,
                stop_ordered: Some(NOW),
                shutdown: None,
            });
        });
    let (decision, memory) = stopped.decide();
    assert_eq!(decision.reason.rule(), "releasing");
    assert!(memory.stepping_down.is_some());
}

/// Only the leader of a one-member cluster was affected: nobody else could make it in its place.
#[test]
fn a_bootstrap_that_was_killed_is_begun_again() {
    let left = |what: &str| {
        let mut left = scene("node2", json!({}), json!({})).down();
        left.keys.clear();
        left.m = Memory {
            began: Some(MonoTime(0)),
            ..Memory::default()
        };
        left.o.postgres.control = None;
        left.o.postgres.data_dir = DataDir::Unfinished(what.into());
        left.job().0
    };
    assert_eq!(left("bootstrap of garden"), "bootstrap-race");
    let mut runs = scene("node2", json!({}), json!({}));
    runs.o.postgres.data_dir = DataDir::Unfinished("bootstrap of garden".into());
    assert!(matches!(runs.job().1, Some(Job::Stop { .. })), "its server");
    assert_eq!(left("rewind"), "wait-recopy", "this may be the last copy");
}

#[test]
fn a_server_that_ran_before_the_agent_is_told_of_once() {
    let fresh = scene("node2", json!({}), json!({})).with(|scene| {
        scene.m.callback_called = false;
        scene.m.role = None;
    });
    let (decision, memory) = fresh.decide();
    let started = |action: &Action| matches!(action, Action::Callback { event, role } if event == "on_start" && role == "replica");
    assert!(decision.actions.iter().any(started), "{decision:?}");
    let again = fresh.with(|scene| scene.m = memory);
    let (decision, _) = again.decide();
    assert!(!decision.actions.iter().any(started), "{decision:?}");
}

#[test]
fn a_member_whose_required_watchdog_cannot_be_used_does_not_stand() {
    let free = scene("node2", json!({}), json!({}))
        .key("leader", None)
        .with(|scene| scene.o.watchdog_failed = true);
    assert_eq!(free.job().0, "race-not-allowed");
}

/// Conditions are looked at when the time has come.
#[test]
fn a_scheduled_restart_keeps_its_conditions() {
    let outcome =
        |role: Option<&str>, below: Option<u32>, pending: bool, late_ms: i64, start: &str| {
            let due = scene("node2", json!({}), json!({})).with(|scene| {
                scene.o.wishes.scheduled_restart = Some(ScheduledRestart {
                    schedule: "then".into(),
                    at: WallTime(scene.o.wall.0 - late_ms),
                    postmaster_start_time: Some(start.into()),
                    role: role.map(str::to_owned),
                    below_version: below,
                    timeout: None,
                    restart_pending: pending,
                    raw: Map::new(),
                });
            });
            due.job().0
        };
    assert_eq!(outcome(None, None, false, 10, "then"), "restart");
    assert_eq!(
        outcome(Some("replica"), Some(160_000), false, 10, "then"),
        "restart"
    );
    for kept_out in [
        outcome(Some("primary"), None, false, 10, "then"),
        outcome(None, Some(150_000), false, 10, "then"),
        outcome(None, None, true, 10, "then"),
        outcome(None, None, false, 60_000, "then"),
        outcome(None, None, false, 10, "restarted since"),
        outcome(None, None, false, -5_000, "then"),
    ] {
        assert_eq!(kept_out, "following");
    }
}

/// Its disk was full: it started as a standby, ended in the promotion, was started again, and each start
/// that succeeded made it forget the promotions that had not. It kept the lock for minutes (L10).
#[test]
fn a_leader_whose_promotions_fail_after_each_start_steps_aside() {
    let leader = scene("node1", json!({}), json!({})).with(|scene| {
        if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
            sample.in_recovery = true;
        }
        scene.o.postgres.signal_file = true;
        scene.m.role = Some(PgRole::Replica);
    });
    let ended = leader.clone().down();
    let mut id = 0;
    let mut now = NOW;
    let mut memory = leader.m.clone();
    let mut after = |scene: &Scene, job: Job, end: JobEnd| {
        id += 1;
        // Longer than any pause before the next attempt.
        now = now + Duration::from_secs(20);
        let mut scene = scene.clone();
        scene.m = memory.clone();
        scene.o.now = now;
        (scene.o.dcs.confirmed_at, scene.o.postgres.sql_at) = (now, now);
        if let Some(session) = &mut scene.o.dcs.session {
            session.sent_at = now;
        }
        scene.o.finished = Some(proto::core::job::Finished {
            id: JobId(id),
            job,
            at: now,
            end,
        });
        let (decision, after) = scene.decide();
        memory = after;
        decision.reason.rule().to_owned()
    };
    let mut rules = Vec::new();
    for _ in 0..3 {
        let promote = Job::Promote {
            epoch: Epoch(1),
            above: Timeline(1),
        };
        let failed = JobEnd::Failed(proto::core::job::Failure::Other("it ended".into()));
        rules.push(after(&ended, promote, failed));
        let start = Job::StartStandby {
            follow: Upstream::None,
            timeout: Duration::from_secs(60),
        };
        rules.push(after(&leader, start, JobEnd::Done));
    }
    let released: Vec<_> = rules.iter().map(|rule| rule == "release-start").collect();
    assert_eq!(
        released,
        [false, false, false, false, false, true],
        "{rules:?}"
    );
}

/// Logical slots: what node2 lacks and the leader publishes.
fn lacking(me: &str) -> Scene {
    let slots =
        json!({"slots": {"cdc": {"type": "logical", "database": "db", "plugin": "pgoutput"}}});
    let streaming = |name: &str| {
        let (_, record) = member(name, "replica");
        let mut record: Value = serde_json::from_str(&record).expect("JSON");
        record["replication_state"] = json!("streaming");
        record.to_string()
    };
    scene(me, slots, json!({}))
        .key("status", Some(r#"{"optime": 100, "slots": {"cdc": 90}}"#))
        .key("members/node2", Some(&streaming("node2")))
        .key("members/node3", Some(&streaming("node3")))
}

fn later(scene: Scene, seconds: u64) -> Scene {
    scene.with(|scene| {
        scene.m.slots_missing_since = Some(NOW);
        let now = NOW + Duration::from_secs(seconds);
        scene.o.now = now;
        scene.o.dcs.confirmed_at = now;
        scene.o.postgres.sql_at = now;
    })
}

#[test]
fn standbys_copy_logical_slots_one_after_the_other() {
    let (rule, job) = lacking("node2").job();
    assert_eq!(rule, "copy-slots");
    let Some(Job::CopySlots {
        slots,
        leader,
        follow,
        ..
    }) = job
    else {
        panic!("{job:?}");
    };
    assert_eq!((slots, leader), (vec!["cdc".to_owned()], follows("node1")));
    assert_eq!(follow, follows("node1"));
    // Both notice at the same moment; the second waits until the first must have begun, and is back.
    assert_eq!(lacking("node3").job(), ("following".into(), None));
    let restarting = |scene: Scene| {
        let (key, record) = member("node2", "replica");
        scene.key(&key, Some(&record.replace("running", "restarting")))
    };
    assert_eq!(later(lacking("node3"), 5).job().0, "copy-slots");
    let other_restarts = later(restarting(lacking("node3")), 5);
    assert_eq!(other_restarts.job(), ("following".into(), None));
    // One that does not come back is no reason to go without the slot.
    assert_eq!(
        later(restarting(lacking("node3")), 60).job().0,
        "copy-slots"
    );
}

#[test]
fn a_standby_that_may_be_needed_is_not_restarted_for_a_slot() {
    let following = ("following".to_owned(), None);
    let asked = r#"{"leader": "node1", "candidate": "node3"}"#;
    let handover = lacking("node2").key("failover", Some(asked));
    assert_eq!(handover.job(), following);
    let mut cut_off = lacking("node2");
    if let Sql::Sample(sample) = &mut cut_off.o.postgres.sql {
        sample.receiver = None;
    }
    assert_eq!(cut_off.job(), following);
    let not_loaded = lacking("node2").with(|scene| scene.s.conf_generation = 2);
    assert_eq!(
        not_loaded.job(),
        following,
        "hot_standby_feedback comes first"
    );
    let paused = lacking("node2").with(|scene| scene.s.cluster.pause = true);
    assert_eq!(paused.job().1, None);
    let lately = lacking("node2").with(|scene| {
        scene.m.no_slot_copy_before = Some(NOW + Duration::from_secs(1));
    });
    assert_eq!(lately.job(), following);
    let never_leads =
        lacking("node2").with(|scene| scene.s.tags = Tags(object(json!({"nofailover": true}))));
    assert_eq!(never_leads.job(), following);
}

fn copying(end: JobEnd) -> Finished {
    Finished {
        id: JobId(5),
        job: Job::CopySlots {
            slots: vec!["cdc".into()],
            leader: follows("node1"),
            follow: follows("node1"),
            timeout: Duration::from_secs(300),
        },
        at: NOW,
        end,
    }
}

#[test]
fn a_copy_of_slots_gives_way_to_a_race_and_is_not_repeated_at_once() {
    let running = |scene: &mut Scene| {
        scene.o.job = Some(RunningJob {
            id: JobId(5),
            job: copying(JobEnd::Done).job,
            started: NOW,
            phase: "reading them from the leader".into(),
            cancelled: false,
        });
    };
    assert_eq!(lacking("node2").with(running).job().0, "job-running");
    let free = lacking("node2").key("leader", None).with(running);
    let (decision, _) = free.decide();
    assert_eq!(decision.reason.rule(), "job-cancel");
    assert!(decision.actions.contains(&Action::Cancel(JobId(5))));
    let another = lacking("node2").key("leader", Some("node3")).with(running);
    assert_eq!(another.job().0, "job-cancel");
    let refused = Failure::SourceUnavailable("no WAL".into());
    let mut gaps = Vec::new();
    let mut scene = lacking("node2");
    for id in 5..8 {
        scene.o.finished = Some(Finished {
            id: JobId(id),
            ..copying(JobEnd::Failed(refused.clone()))
        });
        let (decision, memory) = scene.decide();
        assert_eq!(decision.reason.rule(), "following");
        let until = memory.no_slot_copy_before.expect("a pause");
        gaps.push(until.since(scene.o.now).as_secs());
        scene.m = memory;
    }
    assert_eq!(gaps, [30, 60, 120], "each may cost a restart");
}

#[test]
fn time_that_was_promised_ends_with_a_record_that_was_released() {
    let record = |state: &str, epoch: u64| {
        json!({"v": 1, "owner": "node1", "epoch": epoch, "state": state, "seq": 3, "session": "life",
            "members": ["node1", "node2", "node3"], "w_ms": 10_000, "l_ms": 8_000})
        .to_string()
    };
    let after = |record: &str| {
        scene("node2", json!({"failsafe_mode": true}), json!({}))
            .key("leader", None)
            .key("record", Some(record))
            .with(|scene| {
                scene.o.postgres.wal_epoch = Epoch(4);
                scene.o.failsafe_caller = Some(FailsafeCaller {
                    name: "node1".into(),
                    at: NOW,
                    conn_url: conn_url("node1"),
                    api_url: "http://node1:8008/patroni".into(),
                    slots: Default::default(),
                });
            })
            .job()
            .0
    };
    assert_eq!(after(&record("released", 4)), "race-ask");
    // What an etcd says that was restored from a backup is not about the primary that was promised time.
    assert_eq!(after(&record("released", 3)), "race-not-allowed");
}

#[test]
fn idle_slots_move_along_in_failsafe_mode_and_none_comes_or_goes() {
    let slot = |name: &str| SlotRow {
        name: name.into(),
        restart_lsn: Lsn(50),
        ..SlotRow::default()
    };
    let asked = |caller: Option<u64>| {
        let standby = scene("node2", json!({"failsafe_mode": true}), json!({})).with(|scene| {
            if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
                sample.slots = vec![slot("node3"), slot("foreign")];
            }
            scene.o.dcs.confirmed = false;
            scene.o.failsafe_caller = caller.map(|seconds| FailsafeCaller {
                name: "node1".into(),
                at: MonoTime(NOW.0 - seconds * 1_000_000_000),
                conn_url: conn_url("node1"),
                api_url: "http://node1:8008/patroni".into(),
                slots: [("node3".to_owned(), 80), ("node1".to_owned(), 90)].into(),
            });
        });
        let (decision, _) = standby.decide();
        decision
            .actions
            .into_iter()
            .find_map(|action| match action {
                Action::Slots(plan) => Some(plan),
                _ => None,
            })
    };
    let moved = SlotPlan {
        advance: vec![("node3".into(), Lsn(80))],
        ..SlotPlan::default()
    };
    assert_eq!(asked(Some(5)), Some(moved));
    assert_eq!(asked(Some(31)), None, "the promise is over");
    assert_eq!(asked(None), None);
}

#[test]
fn a_primary_without_etcd_tells_where_its_slots_are() {
    let failsafe =
        json!({"node1": "http://node1:8008/patroni", "node2": "http://node2:8008/patroni"});
    let primary = scene("node1", json!({"failsafe_mode": true}), json!({})).with(|scene| {
        if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
            sample.slots = vec![SlotRow {
                name: "node2".into(),
                restart_lsn: Lsn(60),
                ..SlotRow::default()
            }];
        }
        scene.o.dcs.confirmed = false;
        let members = failsafe
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, url)| {
                (
                    name.as_str().into(),
                    url.as_str().unwrap_or_default().to_owned(),
                )
            })
            .collect();
        scene.m.failsafe_members = std::sync::Arc::new(members);
    });
    let (decision, _) = primary.decide();
    let told = decision.actions.iter().find_map(|action| match action {
        Action::AskFailsafe { slots, .. } => Some(slots.clone()),
        _ => None,
    });
    let wanted = [("node1".to_owned(), 100), ("node2".to_owned(), 60)].into();
    assert_eq!(told, Some(wanted), "{:?}", decision.reason);
}

/// A member that has just made the cluster, of which etcd holds its claim.
fn made(dynamic: Value) -> Scene {
    let mut made = scene("node1", dynamic, json!({}));
    made.keys = vec![("initialize".into(), String::new())];
    made.m.bootstrapped = true;
    made
}

fn orders(scene: &Scene) -> (Option<Armed>, bool) {
    let (decision, _) = scene.decide();
    let armed = decision.actions.iter().find_map(|action| match action {
        Action::Arm { epoch, deadline } => Some(Armed {
            epoch: *epoch,
            deadline: *deadline,
        }),
        _ => None,
    });
    let written = |action: &Action| {
        matches!(
            action,
            Action::Write {
                task: Task::Lock,
                ..
            }
        )
    };
    (armed, decision.actions.iter().any(written))
}

/// S2: a claim was committed, its answer was lost, and its server went on without a deadline.
#[test]
fn a_new_cluster_is_presented_only_under_a_deadline() {
    let made_now = made(json!({}));
    let deadline = NOW + Duration::from_secs(29);
    let armed = Armed {
        epoch: Epoch(0),
        deadline,
    };
    assert_eq!(orders(&made_now), (Some(armed), false));
    let confirmed = made_now.clone().with(|scene| {
        scene.o.guardian.armed = Some(armed);
    });
    assert_eq!(orders(&confirmed), (None, true));
    // S7: what etcd may name is not thrown away by an agent that knows nothing of it.
    let marked = confirmed.clone().with(|scene| {
        scene.o.postgres.data_dir = DataDir::Unfinished("bootstrap of garden".into());
        scene.o.postgres.control = None;
    });
    assert_eq!(orders(&marked), (None, false));
    assert!(marked.decide().0.actions.contains(&Action::ClearMark));
    // Any try may have been the one that was committed: a later one does not move the deadline on.
    let renewed = confirmed.with(|scene| {
        scene.o.now = NOW + Duration::from_secs(9);
        if let Some(session) = &mut scene.o.dcs.session {
            session.sent_at = scene.o.now;
        }
    });
    assert_eq!(orders(&renewed), (None, true));
    // No time is left under a session that was renewed long ago.
    let spent = made_now.with(|scene| scene.o.now = NOW + Duration::from_secs(28));
    assert_eq!(orders(&spent), (None, false));
    assert_eq!(orders(&made(paused())), (None, true), "S13");
    // Somebody else makes the cluster.
    let other = made(json!({})).with(|scene| {
        if let Some(session) = &mut scene.o.dcs.session {
            session.id = LeaseId(7);
        }
    });
    assert_eq!(orders(&other), (None, false));
}

/// It ended with its server running, which no agent looked after from then on.
#[test]
fn a_cluster_that_another_member_overtook_is_set_aside() {
    let overtaken = made(json!({}))
        .key("initialize", Some("7000000000000000001"))
        .key("leader", Some("node2"));
    let (rule, job) = overtaken.job();
    assert_eq!(rule, "bootstrap-failed");
    let system = SystemId(SYSTEM);
    let set_aside = Job::SetAside {
        system: Some(system),
    };
    assert_eq!(job, Some(set_aside.clone()));
    let marked = overtaken.clone().with(|scene| {
        scene.o.postgres.data_dir = DataDir::Unfinished("bootstrap of garden".into());
        scene.o.postgres.control = None;
    });
    assert_eq!(marked.job().1, Some(Job::SetAside { system: None }));
    let aside = overtaken.clone().down().with(|scene| {
        let (name, record) = member("node2", "primary");
        scene.keys.push((name, record));
        scene.o.postgres.data_dir = DataDir::Empty;
        scene.o.postgres.control = None;
        scene.o.finished = Some(Finished {
            id: JobId(1),
            job: set_aside,
            at: NOW,
            end: JobEnd::Done,
        });
    });
    assert_eq!(aside.job().0, "clone");
    // Not before it is known to be another cluster.
    let unknown = overtaken.clone().key("initialize", None);
    assert!(
        matches!(unknown.job().1, Some(Job::Stop { .. })),
        "{unknown:?}"
    );
    assert_eq!(unknown.down().job().1, None);
    // Ours: what we wrote was committed, and somebody else leads it by now.
    let ours = overtaken.key("initialize", Some(&SYSTEM.to_string()));
    let (decision, memory) = ours.decide();
    assert_eq!(decision.reason.rule(), "bootstrap-finish");
    assert!(!memory.bootstrapped);
}

/// S7: an agent that cannot set it aside leaves nothing that runs, and the data where they are.
#[test]
fn a_cluster_that_cannot_be_set_aside_does_not_run_on() {
    let failed = made(json!({})).with(|scene| {
        scene.o.finished = Some(Finished {
            id: JobId(1),
            job: Job::SetAside { system: None },
            at: NOW,
            end: JobEnd::Failed(Failure::Other("no room".into())),
        });
    });
    let (decision, _) = failed.decide();
    assert!(decision.actions.contains(&Action::Fence));
    let ends = |action: &Action| matches!(action, Action::Exit { code: 1, .. });
    assert!(decision.actions.iter().any(ends));
}
