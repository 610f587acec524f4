//! Pause, and servers that are down.

use super::scene::*;

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
    // It has handed over, and the candidate has not taken the lock yet.
    let handed_over = former
        .clone()
        .key("leader", None)
        .key("failover", Some(r#"{"leader":"node2","member":"node1"}"#));
    let (decision, _) = handed_over.decide();
    assert!(decision.actions.iter().any(refused), "{decision:?}");
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

/// A primary has no deadline in pause, and may hear of its end late: another led at once, since the record had not
/// moved during the pause (seed 1942970).
#[test]
fn what_stood_still_in_pause_counts_from_the_end_of_the_pause() {
    let held = json!({
        "v": 1, "epoch": 1, "owner": "node1", "session": "other", "seq": 7, "state": "held",
        "l_ms": 2500, "w_ms": 2900, "members": ["node1", "node2", "node3"],
    });
    let rule = |dynamic: Value, paused_ago: Option<u64>| {
        let scene = scene("node2", dynamic, json!({})).key("record", Some(&held.to_string()));
        let scene = scene.with(|scene| {
            scene.o.dcs.record_seen = Some(RecordSeen {
                modified: Revision(5),
                since: NOW - Duration::from_secs(30),
            });
            scene.m.paused_at = paused_ago.map(|ms| NOW - Duration::from_millis(ms));
        });
        scene.job().0
    };
    assert_eq!(rule(json!({}), None), "race-ask");
    assert_eq!(rule(json!({}), Some(2_000)), "following");
    assert_eq!(rule(json!({}), Some(9_000)), "race-ask");
    // In pause an operator may name somebody.
    assert_eq!(rule(paused(), Some(0)), "paused-free");
}

/// Another identifier stands in etcd.
fn stranger(dynamic: Value) -> Scene {
    let held = json!({
        "v": 1, "epoch": 1, "owner": "node1", "session": "life", "seq": 7, "state": "held",
        "l_ms": 2500, "w_ms": 2900, "members": ["node1", "node2", "node3"],
    });
    scene("node1", dynamic, json!({}))
        .key("record", Some(&held.to_string()))
        .key("initialize", Some("7999999999999999999"))
        .with(|scene| {
            scene.o.dcs.held = Some(HeldRecord {
                epoch: Epoch(1),
                sent_at: NOW,
                length: Duration::from_millis(2500),
                modified: Revision(5),
                seq: 7,
            });
        })
}

/// The record said that it was released while its server could write, and the next one led beside it when the pause
/// had ended (seeds 2709740, 2780695).
#[test]
fn a_primary_that_stands_back_in_pause_leaves_its_record_as_it_is() {
    let (decision, memory) = stranger(paused()).decide();
    assert_eq!(decision.reason.rule(), "foreign-system");
    let writes: Vec<&Vec<Op>> = decision
        .actions
        .iter()
        .filter_map(|action| match action {
            Action::Write { task, txn } if *task == Task::Lock => Some(&txn.then),
            _ => None,
        })
        .collect();
    assert!(
        matches!(writes[..], [ops] if matches!(ops[..], [Op::Delete(proto::dcs::Key::Leader)])),
        "{decision:?}"
    );
    assert_eq!(decision.standing.leader_until, None, "nobody is sent here");
    assert!(memory.stepping_down.is_none());
    // It takes the lock again when the identifier is right, and not before.
    let gone = stranger(paused())
        .key("leader", None)
        .with(|scene| scene.o.dcs.held = None);
    let (decision, _) = gone.decide();
    assert_eq!(decision.reason.rule(), "foreign-system");
    let writes = |action: &Action| {
        matches!(
            action,
            Action::Write {
                task: Task::Lock,
                ..
            }
        )
    };
    assert!(!decision.actions.iter().any(writes));
    let right = gone.key("initialize", Some(&SYSTEM.to_string()));
    assert!(right.decide().0.actions.iter().any(writes));
}

#[test]
fn no_agent_leaves_a_primary_without_a_deadline_when_a_pause_has_ended() {
    let exits = |action: &Action| matches!(action, Action::Exit { code: 1, .. });
    let (rule, job) = stranger(json!({})).job();
    assert_eq!(rule, "foreign-system");
    assert!(matches!(job, Some(Job::Stop { .. })), "{job:?}");
    assert!(!stranger(json!({})).decide().0.actions.iter().any(exits));
    let guarded = stranger(json!({})).with(|scene| {
        scene.o.guardian.armed = Some(Armed {
            epoch: Epoch(1),
            deadline: NOW + Duration::from_secs(2),
        });
    });
    assert!(guarded.decide().0.actions.iter().any(exits));
    // Nobody waits for that deadline any more.
    let free = guarded.key("record", None).key("leader", None);
    assert!(!free.decide().0.actions.iter().any(exits));
    assert!(matches!(free.job().1, Some(Job::Stop { .. })));
}

/// The request was changed after the leader had waited until another candidate had everything (seed 2359240).
#[test]
fn the_candidate_of_a_switchover_in_pause_is_compared_too() {
    let named = |request: &str, position: u64| {
        scene(
            "node2",
            json!({"pause": true, "synchronous_mode": "quorum"}),
            json!({}),
        )
        .key("leader", None)
        .key("failover", Some(request))
        .key(
            "sync",
            Some(r#"{"leader":"node1","sync_standby":"node2,node3","quorum":1}"#),
        )
        .with(|scene| {
            scene.m.free_since = Some(NOW - Duration::from_millis(20));
            scene.m.race_asked = scene.m.free_since;
            let status = PeerStatus {
                timeline: Some(Timeline(1)),
                position: Lsn(position),
                ..PeerStatus::default()
            };
            for name in ["node1", "node3"] {
                let answer = PeerAnswer {
                    asked_at: NOW,
                    status: (name == "node3").then(|| status.clone()),
                };
                scene.o.peers.insert(name.into(), answer);
            }
        })
        .decide()
        .0
        .reason
        .rule()
    };
    let switchover = r#"{"leader":"node1","member":"node2"}"#;
    assert_eq!(named(switchover, 100), "race-claim");
    assert_eq!(named(switchover, 200), "race-not-best");
    // Who names no leader takes that upon himself.
    assert_eq!(named(r#"{"member":"node2"}"#, 200), "race-candidate");
}

/// Its loop had stood still through a pause. It was told to end, began to stop its server, then heard that there was a
/// pause, left, and nobody stopped the primary when that was over (S2, seed 16419107).
#[test]
fn a_stop_under_way_is_not_left_because_of_a_pause() {
    let told = |stopping: bool| {
        let told = scene("node1", paused(), json!({})).with(|scene| {
            scene.o.wishes.shutdown = true;
            scene.o.job = stopping.then(|| RunningJob {
                id: JobId(1),
                job: Job::Stop {
                    mode: proto::core::job::StopMode::Fast,
                    checkpoint_first: false,
                    timeout: None,
                    why: proto::core::job::StopReason::Shutdown,
                },
                started: NOW,
                phase: String::new(),
                cancelled: false,
            });
        });
        let (decision, _) = told.decide();
        let leaves = |action: &Action| matches!(action, Action::Exit { .. } | Action::Disarm);
        let leaves = decision.actions.iter().any(leaves);
        (decision.reason.rule().to_owned(), leaves)
    };
    assert_eq!(told(true), ("shutdown-stop".into(), false));
    assert_eq!(told(false), ("shutdown-done".into(), true));
}

/// It had heard of the end of the pause, could not renew, and did not answer: it was taken for a standby, and wrote on
/// without a deadline while another led (seed 9067075).
#[test]
fn a_silent_primary_that_cannot_see_etcd_after_a_pause_is_stopped() {
    let silent = |dynamic: Value, role: PgRole| {
        scene("node1", dynamic, json!({})).with(|scene| {
            scene.o.dcs.confirmed = false;
            if let Some(session) = &mut scene.o.dcs.session {
                session.sent_at = NOW - Duration::from_secs(60);
            }
            scene.o.guardian.armed = None;
            scene.o.postgres.sql = Sql::Silent;
            scene.o.postgres.signal_file = role == PgRole::Replica;
            scene.m.role = Some(role);
        })
    };
    let (rule, job) = silent(json!({}), PgRole::Primary).job();
    assert_eq!(rule, "lease-spent");
    assert!(
        matches!(&job, Some(Job::Stop { mode, .. }) if *mode == proto::core::job::StopMode::Immediate),
        "{job:?}"
    );
    let file_laid =
        silent(json!({}), PgRole::Primary).with(|scene| scene.o.postgres.signal_file = true);
    assert_eq!(
        file_laid.job().0,
        "lease-spent",
        "it runs as a primary all the same"
    );
    let stays = ("following-blind".to_owned(), None);
    assert_eq!(silent(paused(), PgRole::Primary).job(), stays);
    assert_eq!(silent(json!({}), PgRole::Replica).job(), stays);
}
