//! etcd was emptied, and knows nothing of the cluster (S23).

use super::scene::*;
use proto::core::memory::LastLocked;
use std::collections::BTreeMap;

/// node1 runs as the primary of three, and finds etcd emptied a moment ago. Fenced failover was possible before.
fn emptied(dynamic: Value) -> Scene {
    let mut scene = scene("node1", dynamic, json!({}));
    scene.keys.clear();
    scene.m.epoch_seen = Epoch(1);
    scene.m.last_primary = true;
    let url = |name: &&str| ((*name).into(), format!("http://{name}:8008/patroni"));
    scene.m.last_locked = Some(
        LastLocked {
            leader: Some("node1".into()),
            members: ["node1", "node2", "node3"].iter().map(url).collect(),
            ..LastLocked::default()
        }
        .into(),
    );
    scene.m.free_since = Some(NOW - Duration::from_millis(200));
    scene.o.guardian.armed = Some(Armed {
        epoch: Epoch(1),
        deadline: NOW + Duration::from_secs(4),
    });
    scene
}

fn quorum() -> Value {
    json!({"synchronous_mode": "quorum"})
}

/// What these members answer now: the highest epoch that they know of, or nothing at all.
fn told(answers: &[(&str, Option<u64>)]) -> impl Fn(&mut Scene) + use<> {
    let answer = |epoch: Option<u64>| PeerAnswer {
        asked_at: NOW,
        status: epoch.map(|epoch| PeerStatus {
            timeline: Some(Timeline(1)),
            epoch: Epoch(epoch),
            ..PeerStatus::default()
        }),
    };
    let answers: BTreeMap<_, _> = answers
        .iter()
        .map(|(name, epoch)| ((*name).into(), answer(*epoch)))
        .collect();
    move |scene| scene.o.peers = answers.clone()
}

fn claims(scene: &Scene) -> bool {
    let lock =
        |action: &Action| matches!(action, Action::Write { task, .. } if *task == Task::Lock);
    scene.decide().0.actions.iter().any(lock)
}

/// It stood still while a quorum cut it off and another took over, etcd was emptied before it went on, and it led
/// on in the old line of WAL; the others threw the new one away (seed 707633).
#[test]
fn a_running_primary_asks_the_others_before_it_leads_on() {
    let unasked = emptied(quorum());
    let (decision, _) = unasked.decide();
    assert_eq!(decision.reason.rule(), "race-ask");
    let asks =
        |action: &Action| matches!(action, Action::AskPeers { peers, .. } if peers.len() == 2);
    assert!(decision.actions.iter().any(asks), "{decision:?}");
    assert!(!claims(&unasked));

    let nobody_led = emptied(quorum()).with(told(&[("node2", Some(1)), ("node3", Some(1))]));
    assert!(claims(&nobody_led));
    let one_silent = emptied(quorum()).with(told(&[("node2", Some(1)), ("node3", None)]));
    assert!(claims(&one_silent), "it alone holds nothing acknowledged");
    let all_silent = emptied(quorum()).with(told(&[("node2", None), ("node3", None)]));
    assert!(!claims(&all_silent));
    assert_eq!(all_silent.job().0, "race-ask");

    let led = emptied(quorum()).with(told(&[("node2", Some(2)), ("node3", None)]));
    assert!(!claims(&led));
    let (rule, job) = led.job();
    assert_eq!(rule, "no-lock");
    assert!(matches!(job, Some(Job::Stop { .. })), "{job:?}");
}

#[test]
fn a_primary_that_hears_from_nobody_stops_before_its_lease_ends() {
    let silent = told(&[("node2", None), ("node3", None)]);
    let late = emptied(quorum()).with(silent).with(|scene| {
        scene.o.guardian.armed = Some(Armed {
            epoch: Epoch(1),
            deadline: NOW + Duration::from_millis(900),
        });
    });
    let (rule, job) = late.job();
    assert_eq!(rule, "no-lock");
    assert!(matches!(job, Some(Job::Stop { .. })), "{job:?}");
}

/// Nobody can have taken over then without the lease having ended.
#[test]
fn without_fenced_failover_or_in_pause_it_leads_on_at_once() {
    let no_votes = json!({"synchronous_mode": "quorum", "garden": {"quorum_failover": false}});
    let no_record = json!({"synchronous_mode": "quorum", "garden": {"record_lease": false}});
    for dynamic in [json!({}), no_votes, no_record, paused()] {
        assert!(claims(&emptied(dynamic.clone())), "{dynamic}");
    }
}

/// The last primary, restarted, must not win with what it has when somebody has led since.
#[test]
fn the_last_primary_is_none_when_another_knows_of_a_later_epoch() {
    let restarted = |epoch: u64| {
        let answers = told(&[("node2", Some(epoch)), ("node3", Some(1))]);
        emptied(quorum()).with(answers).with(|scene| {
            scene.m.free_since = Some(NOW - Duration::from_secs(40));
            scene.o.dcs.watching_since = Some(NOW - Duration::from_secs(40));
            scene.m.race_asked = Some(NOW);
            scene.o.guardian.armed = None;
            if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
                sample.in_recovery = true;
                sample.receive_lsn = Lsn(100);
                sample.replay_lsn = Lsn(100);
            }
        })
    };
    assert!(claims(&restarted(1)));
    let outdated = restarted(2);
    assert!(!claims(&outdated));
    assert!(!outdated.decide().1.last_primary);
}

/// A record that cannot be read was deleted, and an agent that knew of no epoch led: those who had later ones on
/// their disks had no vote any more (seed 558014).
#[test]
fn the_next_record_begins_above_what_peers_know_of() {
    let epoch = |told_of: Option<u64>| {
        let scene = scene("node1", json!({}), json!({})).with(told(&[("node2", told_of)]));
        let scene = scene.with(|scene| {
            for (_, value) in scene
                .keys
                .iter_mut()
                .filter(|(k, _)| k.starts_with("members/"))
            {
                let mut member = object(serde_json::from_str(value).expect("a member"));
                let ours =
                    json!({"protocol": proto::core::PROTOCOL, "record": true, "fence": true});
                member.insert("garden".into(), ours);
                *value = Value::Object(member).to_string();
            }
        });
        let (decision, _) = scene.decide();
        decision.actions.iter().find_map(|action| match action {
            Action::Write { txn, .. } => txn.then.iter().find_map(|op| match op {
                Op::Put { key, value, .. } if *key == proto::dcs::Key::Record => {
                    let record: Value = serde_json::from_str(value).expect("a record");
                    record["epoch"].as_u64()
                }
                _ => None,
            }),
            _ => None,
        })
    };
    assert_eq!(epoch(None), Some(1));
    assert_eq!(epoch(Some(5)), Some(6));
}

/// A restarted standby that was the primary of its data last, or looks like it, and has waited long enough.
fn restarted(led: Option<u64>, followed: u64) -> Scene {
    let answers = told(&[("node2", Some(1)), ("node3", Some(1))]);
    emptied(quorum()).with(answers).with(|scene| {
        scene.m.free_since = Some(NOW - Duration::from_secs(40));
        scene.o.dcs.watching_since = Some(NOW - Duration::from_secs(40));
        scene.m.race_asked = Some(NOW);
        scene.o.guardian.armed = None;
        scene.o.postgres.wal_epoch = Epoch(followed);
        scene.o.postgres.led = led.map(|epoch| Led {
            epoch: Epoch(epoch),
            native: true,
        });
        if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
            sample.in_recovery = true;
        }
    })
}

/// It had been promoted by hand, stopped, and its agent started again: of its data it was the primary last (seed
/// 3405767).
#[test]
fn a_standby_that_was_promoted_by_hand_is_not_the_last_primary() {
    assert!(claims(&restarted(Some(1), 1)));
    assert!(!claims(&restarted(None, 1)));
    assert!(claims(&restarted(None, 0)), "of the time before records");
    let running = |led: Option<u64>| {
        restarted(led, 1).with(|scene| {
            scene.m.free_since = Some(NOW - Duration::from_millis(200));
            if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
                sample.in_recovery = false;
            }
        })
    };
    assert!(claims(&running(Some(1))));
    assert!(!claims(&running(None)));
    assert_eq!(running(None).job().0, "no-lock");
}

/// An epoch has one leader: a newer timeline of somebody who knows of no later one was promoted by hand (seed 3321154).
#[test]
fn who_led_last_does_not_yield_to_a_timeline_that_was_made_by_hand() {
    let newer = |epoch: u64, native: bool| {
        restarted(Some(2), 2).with(|scene| {
            scene.m.epoch_seen = Epoch(2);
            scene.o.postgres.led.as_mut().expect("given").native = native;
            let answer = scene.o.peers.get_mut(&"node2".into()).expect("given");
            let status = answer.status.as_mut().expect("given");
            (status.epoch, status.timeline) = (Epoch(epoch), Some(Timeline(2)));
            status.position = Lsn(500);
        })
    };
    let ordered = |scene: Scene| {
        scene.with(|scene| {
            for (name, role) in [("node1", "replica"), ("node2", "replica")] {
                let (key, value) = member(name, role);
                let mut value = object(serde_json::from_str(&value).expect("a member"));
                let capable =
                    json!({"protocol": proto::core::PROTOCOL, "record": true, "fence": true});
                value.insert("garden".into(), capable);
                scene.keys.push((key, Value::Object(value).to_string()));
            }
        })
    };
    assert!(claims(&ordered(newer(2, true))));
    assert!(
        !claims(&ordered(newer(3, true))),
        "it knows of a later leader"
    );
    assert!(
        !claims(&ordered(newer(2, false))),
        "by /leader others may have led since"
    );
    assert!(!claims(&ordered(newer(0, true))), "a Patroni knows of none");
}

/// An operator deleted the record while nobody led, and promoted a standby that stopped again: it had not enough votes,
/// and the last primary took its newer timeline for a leader's, so nobody led (seed 11992301).
#[test]
fn who_led_last_leads_again_after_its_record_was_deleted() {
    let deleted = |history: &str, capable: bool, epoch: u64| {
        let scene = scene("node1", json!({}), json!({}));
        let scene = scene.key("leader", None).with(|scene| {
            if let Sql::Sample(sample) = &mut scene.o.postgres.sql {
                sample.in_recovery = true;
            }
            scene.o.postgres.wal_epoch = Epoch(1);
            scene.o.postgres.led = Some(Led {
                epoch: Epoch(1),
                native: true,
            });
            scene.m.free_since = Some(NOW - Duration::from_millis(200));
            scene.m.race_asked = scene.m.free_since;
            for name in ["node2", "node3"] {
                let status = PeerStatus {
                    epoch: Epoch(epoch),
                    timeline: Some(Timeline(2)),
                    position: Lsn(500),
                    ..PeerStatus::default()
                };
                let answer = PeerAnswer {
                    asked_at: NOW - Duration::from_millis(100),
                    status: Some(status),
                };
                scene.o.peers.insert(name.into(), answer);
            }
            for name in ["node1", "node2", "node3"] {
                let (key, value) = member(name, "replica");
                let mut value = object(serde_json::from_str(&value).expect("a member"));
                if capable {
                    let ours =
                        json!({"protocol": proto::core::PROTOCOL, "record": true, "fence": true});
                    value.insert("garden".into(), ours);
                }
                scene.keys.push((key, Value::Object(value).to_string()));
            }
        });
        claims(&scene.key("history", Some(history).filter(|lines| !lines.is_empty())))
    };
    assert!(deleted("", true, 1));
    assert!(!deleted("", true, 2), "it knows of a later leader");
    assert!(
        !deleted(r#"[[1,400,"by node2"]]"#, true, 1),
        "promoted since"
    );
    assert!(!deleted("", false, 1), "a Patroni may have been promoted");
}

/// Its record stood still, while the primary was promised time (seed 2548212).
#[test]
fn a_standby_that_was_promoted_by_hand_takes_no_free_lock() {
    let held = json!({
        "v": 1, "epoch": 1, "owner": "node2", "session": "other", "seq": 7, "state": "released",
        "l_ms": 2500, "w_ms": 2900, "members": ["node1", "node2", "node3"],
    });
    let running = |led: Option<u64>| {
        let scene = scene("node1", json!({}), json!({}));
        scene
            .key("leader", None)
            .key("record", Some(&held.to_string()))
            .with(|scene| {
                scene.o.postgres.wal_epoch = Epoch(1);
                scene.o.postgres.led = led.map(|epoch| Led {
                    epoch: Epoch(epoch),
                    native: true,
                });
            })
    };
    assert!(claims(&running(Some(1))));
    assert!(!claims(&running(None)));
    assert!(matches!(running(None).job().1, Some(Job::Stop { .. })));
}

/// A leader by `/leader` has no epoch. It noted that it had led in none, and when etcd was emptied again before the
/// next record was there, it took itself for promoted by hand and stopped (seeds 4298997, 4474407, 5034759).
#[test]
fn who_leads_without_a_record_has_still_led_in_the_last_epoch() {
    let before = Led {
        epoch: Epoch(3),
        native: true,
    };
    let leads = scene("node1", json!({}), json!({})).with(|scene| {
        scene.m.led = Some(before);
        scene.o.postgres.led = Some(before);
        scene.o.postgres.wal_epoch = Epoch(3);
    });
    let (decision, memory) = leads.decide();
    assert_eq!(decision.reason.rule(), "leading");
    assert_eq!(memory.led.map(|led| led.epoch), Some(Epoch(3)));
    let forgets = |action: &Action| matches!(action, Action::NoteLed(led) if led.epoch < Epoch(3));
    assert!(!decision.actions.iter().any(forgets), "{decision:?}");
}
