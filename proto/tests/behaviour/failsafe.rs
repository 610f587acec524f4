//! Without etcd: promised time, and slots.

use super::scene::*;

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
