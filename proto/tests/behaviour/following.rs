//! Whom a standby follows; standby clusters.

use super::scene::*;

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

/// The record of a cluster whose last one was deleted by hand may begin below what a member has on its disk: it
/// ordered the same note a thousand times a second (seed 558014).
#[test]
fn the_epoch_on_disk_does_not_go_back() {
    let notes = |on_disk: u64| {
        let held = json!({
            "v": 1, "epoch": 2, "owner": "node1", "session": "other", "seq": 7, "state": "held",
            "l_ms": 2500, "w_ms": 2900, "members": ["node1", "node2", "node3"],
        });
        let scene = scene("node2", json!({"synchronous_mode": "quorum"}), json!({}));
        let scene = scene.key("record", Some(&held.to_string())).with(|scene| {
            scene.o.postgres.wal_epoch = Epoch(on_disk);
            if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
                sample.receiver = Some(Receiver {
                    status: "streaming".into(),
                    timeline: Some(Timeline(1)),
                    ..Receiver::default()
                });
            }
        });
        let note = |action: &Action| matches!(action, Action::NoteWalEpoch(_));
        scene.decide().0.actions.iter().any(note)
    };
    assert_eq!([1, 2, 4].map(notes), [true, false, false]);
}

/// node2 follows node3, and node1 leads on timeline 2 or is about to.
fn new_leader() -> Scene {
    scene("node2", json!({"synchronous_mode": "quorum"}), json!({}))
        .with(|scene| scene.o.postgres.conf.upstream = follows("node3"))
        .key("members/node1", Some(&member("node1", "replica").1))
}

fn cut(scene: &mut Scene) {
    scene.o.postgres.conf.upstream = Upstream::None;
    if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
        sample.receiver = None;
    }
}

fn told(timeline: u32, position: u64) -> impl Fn(&mut Scene) {
    move |scene| {
        let status = PeerStatus {
            timeline: Some(Timeline(timeline)),
            position: Lsn(position),
            ..PeerStatus::default()
        };
        let answer = PeerAnswer {
            asked_at: NOW,
            status: Some(status),
        };
        scene.o.peers.insert("node1".into(), answer);
    }
}

/// What a WAL receiver reports first is how far it has replayed, and its source counts that, on whatever timeline it
/// was: a standby that was ahead of the new leader let commits return that it did not have
/// (`postgres_jobs.rs::a_diverged_standby_acknowledges_what_it_does_not_have`).
#[test]
fn a_leader_is_connected_to_only_when_it_is_known_to_have_as_much() {
    let alone = Job::Follow {
        follow: Upstream::None,
    };
    let checks = |scene: Scene| {
        let (rule, job) = scene.job();
        assert_eq!(rule, "check-lineage");
        job
    };
    // What goes on coming from elsewhere would be missing in the comparison.
    assert_eq!(checks(new_leader()), Some(alone.clone()));
    assert_eq!(checks(new_leader().with(told(1, 500))), Some(alone));

    let uncompared = new_leader().with(cut);
    assert_eq!(checks(uncompared.clone()), None);
    let asks =
        |action: &Action| matches!(action, Action::AskPeers { peers, .. } if peers.len() == 1);
    assert!(uncompared.decide().0.actions.iter().any(asks));
    assert_eq!(checks(uncompared.clone().with(told(1, 99))), None);
    assert_eq!(checks(uncompared.clone().with(told(2, 500))), None);
    let follow = Job::Follow {
        follow: follows("node1"),
    };
    let has_as_much = uncompared.clone().with(told(1, 100));
    assert_eq!(has_as_much.job(), ("change-upstream".into(), Some(follow)));

    // Once it is a primary, its history tells.
    let primary = uncompared.key("members/node1", Some(&member("node1", "primary").1));
    let asks = |action: &Action| matches!(action, Action::AskLineage { .. });
    assert!(primary.decide().0.actions.iter().any(asks));
    assert_eq!(checks(primary.clone()), None);
    let (rule, job) = primary.diverged_from("node1").job();
    assert_eq!(rule, "rewind");
    assert!(matches!(job, Some(Job::Rewind { .. })), "{job:?}");
}

/// It does not know what the one before it has written.
#[test]
fn a_new_agent_takes_a_stream_of_the_leaders_timeline_for_the_leaders() {
    let found = |timeline: u32| {
        let scene = scene("node2", json!({}), json!({}));
        scene.with(|scene| {
            scene.o.postgres.conf = AppliedConf::default();
            if let Sql::Sample(sample) = &mut scene.o.postgres.sql
                && let Some(receiver) = &mut sample.receiver
            {
                receiver.timeline = Some(Timeline(timeline));
            }
        })
    };
    let follow = |upstream| Some(Job::Follow { follow: upstream });
    assert_eq!(
        found(1).job(),
        ("change-upstream".into(), follow(follows("node1")))
    );
    assert_eq!(
        found(2).job(),
        ("check-lineage".into(), follow(Upstream::None))
    );
}

/// Where its WAL ends is known when it runs.
#[test]
fn a_crashed_primary_comes_back_alone_until_it_was_compared() {
    let crashed = scene("node2", json!({}), json!({})).down().with(|scene| {
        scene.o.postgres.conf.upstream = Upstream::None;
        scene.o.postgres.signal_file = false;
        scene.o.postgres.control.as_mut().expect("given").state = ControlState::InProduction;
        scene.o.lineage = Some(Lineage {
            leader: "node1".into(),
            at: NOW,
            is_primary: true,
            system_id: SystemId(SYSTEM),
            history: TimelineHistory::parse(Timeline(2), "1\t0/5000\twhy\n").expect("a history"),
        });
    });
    let (rule, job) = crashed.job();
    assert_eq!(rule, "start-standby");
    assert!(
        matches!(&job, Some(Job::StartStandby { follow, .. }) if *follow == Upstream::None),
        "{job:?}"
    );
}

/// 5 % of packets were lost while the primary was stopped. Before it streams nothing bounds a WAL receiver but TCP, whose
/// keepalives begin after two hours; with a leader, without one, in pause and without etcd.
#[test]
fn a_wal_receiver_does_not_connect_for_ever() {
    let ends = |scene: Scene, secs: u64| {
        let hanging = scene.with(|scene| {
            if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
                sample.receiver = None;
                sample.connecting = Some(Duration::from_secs(secs));
            }
        });
        let end = |action: &Action| matches!(action, Action::EndReceiver(_));
        hanging.decide().0.actions.iter().any(end)
    };
    let standby = || scene("node2", json!({}), json!({}));
    assert!(!ends(standby(), 9));
    assert!(ends(standby(), 10));
    assert!(ends(standby().key("leader", None), 10));
    assert!(ends(scene("node2", paused(), json!({})), 10));
    let blind = standby().with(|scene| scene.o.dcs.confirmed = false);
    assert!(ends(blind, 10));
    let busy = standby().with(|scene| {
        scene.o.job = Some(RunningJob {
            id: JobId(1),
            job: Job::Follow {
                follow: Upstream::None,
            },
            started: NOW,
            phase: String::new(),
            cancelled: false,
        });
    });
    assert!(!ends(busy, 10), "what it is told next may end it");
}

/// Somebody led while it was down, and positions from before that counted when the lock was free again (seed 2533720).
#[test]
fn a_race_begins_when_the_lock_is_free_this_time() {
    let since = |scene: Scene| {
        let known = scene.with(|scene| {
            scene.m.free_since = Some(NOW - Duration::from_secs(1));
            scene.m.free_of = Some(Revision(4));
        });
        known.decide().1.free_since
    };
    let released = json!({
        "v": 1, "epoch": 2, "owner": "node1", "session": "other", "seq": 7, "state": "released",
        "l_ms": 2500, "w_ms": 2900, "members": ["node1", "node2", "node3"],
    });
    let scene = || scene("node2", json!({}), json!({}));
    assert_eq!(since(scene().down()), None, "node1 leads");
    let free = || {
        scene()
            .key("leader", None)
            .key("record", Some(&released.to_string()))
    };
    assert_eq!(since(free()), Some(NOW), "another record than that");
    let same = free().with(|scene| {
        scene.m.free_since = Some(NOW - Duration::from_secs(1));
        scene.m.free_of = Some(Revision(5));
    });
    assert_eq!(same.decide().1.free_since, same.m.free_since);
}

/// etcd was emptied while it was rewound. Without its source it was starting for minutes, since nothing tells
/// another one to a server that has not come up.
#[test]
fn what_was_rewound_is_not_started_without_a_source() {
    let rewound = |state: RewindState| {
        scene("node2", json!({}), json!({}))
            .down()
            .key("leader", None)
            .with(|scene| {
                scene.m.rewind = state;
                scene.m.role = Some(PgRole::Replica);
            })
    };
    assert_eq!(
        rewound(RewindState::Done).job(),
        ("wait-source".into(), None)
    );
    assert_eq!(rewound(RewindState::Check).job().0, "start-alone");
    let (_, job) = rewound(RewindState::Done)
        .key("leader", Some("node1"))
        .job();
    assert!(
        matches!(&job, Some(Job::StartStandby { follow, .. }) if *follow == follows("node1")),
        "{job:?}"
    );
}
