//! One member alone: starts, restarts, promotions that fail.

use super::scene::*;

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

/// What it starts now is stopped again at once: its lease is almost over. It came up as a standby and went
/// down some four times before the deadline (L10).
#[test]
fn a_leader_that_has_almost_no_lease_left_starts_nothing() {
    let at = |seconds: u64| {
        let crashed = scene("node1", json!({}), json!({})).down().with(|scene| {
            scene.o.now = NOW + Duration::from_secs(seconds);
            scene.o.dcs.confirmed = false;
            scene.m.role = Some(PgRole::Replica);
        });
        let (decision, _) = crashed.decide();
        (crashed.job(), decision.wake_at.since(crashed.o.now))
    };
    let ((rule, job), _) = at(10);
    assert_eq!(rule, "start-for-promotion");
    assert!(matches!(job, Some(Job::StartStandby { .. })), "{job:?}");
    let ((rule, job), wake) = at(25);
    assert_eq!((rule.as_str(), job), ("lease-spent", None));
    assert!(
        wake < Duration::from_secs(5),
        "it looks again when the lease is over: {wake:?}"
    );
}

/// A leader by `/leader` had been cut off past its deadline, and its etcd lease stood still: it wrote the key five hundred
/// times a second, on the session that it was on, until the keeper had an answer (L10, seed 12589413).
#[test]
fn a_key_that_is_on_our_session_is_not_written_anew() {
    let over = |session: i64| {
        let over = scene("node1", json!({}), json!({})).down().with(|scene| {
            scene.o.now = NOW + Duration::from_secs(40);
            (scene.o.dcs.confirmed_at, scene.o.postgres.sql_at) = (scene.o.now, scene.o.now);
            scene.o.dcs.session.as_mut().expect("given").id = LeaseId(session);
        });
        let (decision, _) = over.decide();
        let writes = |action: &Action| {
            matches!(
                action,
                Action::Write {
                    task: Task::Lock,
                    ..
                }
            )
        };
        let writes = decision.actions.iter().any(writes);
        (decision.reason.rule().to_owned(), writes)
    };
    assert_eq!(over(1), ("inherit".into(), false));
    assert_eq!(over(7), ("inherit".into(), true), "an earlier life's");
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

/// Its own key went with its lease, and it took itself for a Patroni: it led by `/leader` for a moment, and the next
/// lease that was taken away was the lock (seed 2851359).
#[test]
fn a_leader_without_a_key_of_its_own_goes_on_leading_by_the_record() {
    let compatible = |ours: bool, theirs: bool| {
        let capable = json!({"protocol": proto::core::PROTOCOL, "record": true, "fence": true});
        let held = json!({
            "v": 1, "epoch": 1, "owner": "node1", "session": "life", "seq": 7, "state": "held",
            "l_ms": 2500, "w_ms": 2900, "members": ["node1", "node2", "node3"],
        });
        let scene = scene("node1", json!({}), json!({})).key("record", Some(&held.to_string()));
        let scene = scene.with(|scene| {
            for (key, value) in &mut scene.keys {
                if key.starts_with("members/") && (theirs || key != "members/node2") {
                    let mut member = object(serde_json::from_str(value).expect("a member"));
                    member.insert("garden".into(), capable.clone());
                    *value = Value::Object(member).to_string();
                }
            }
            scene.keys.retain(|(key, _)| ours || key != "members/node1");
            scene.o.dcs.held = Some(HeldRecord {
                epoch: Epoch(1),
                sent_at: NOW,
                length: Duration::from_millis(2500),
                modified: Revision(5),
                seq: 7,
            });
        });
        let switches = |action: &Action| match action {
            Action::Write { txn, .. } => txn.then.iter().any(|op| match op {
                Op::Put { value, .. } => value.contains("\"state\":\"compatible\""),
                Op::Delete(_) => false,
            }),
            _ => false,
        };
        scene.decide().0.actions.iter().any(switches)
    };
    assert!(!compatible(true, true));
    assert!(!compatible(false, true), "nobody else is a Patroni");
    assert!(compatible(true, false), "node2 is one");
}
