//! Logical slots on standbys.

use super::scene::*;

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
