use super::world::{World, world};
use super::*;
use crate::ids::{Revision, STRICT_PLACEHOLDER};
use crate::wal::Lsn;
use serde_json::{Value, json};

fn key(names: &[&str]) -> SyncStep {
    SyncStep::WriteKey {
        standbys: names.iter().map(|n| (*n).to_owned()).collect(),
        quorum: 0,
    }
}

fn names(text: &str) -> SyncStep {
    SyncStep::SetNames(text.into())
}

const ON: fn() -> Value = || json!({"synchronous_mode": true});
const STRICT: fn() -> Value = || json!({"synchronous_mode": true, "synchronous_mode_strict": true});

#[test]
fn a_first_standby_is_waited_for_before_it_is_listed() {
    let mut w = world(ON(), &["a"]);
    assert_eq!(w.run(), [key(&[]), names("a"), key(&["a"])]);
    assert_eq!(w.step(), SyncStep::Settled);
}

#[test]
fn without_standbys_the_key_becomes_active_and_commits_pass() {
    let mut w = world(ON(), &[]);
    assert_eq!(w.run(), [key(&[])]);
    let mut strict = world(STRICT(), &[]);
    assert_eq!(strict.run(), [key(&[]), names(STRICT_PLACEHOLDER)]);
}

#[test]
fn a_key_of_another_leader_is_taken_over_empty() {
    let mut w = world(ON(), &["a"]);
    w.key(&["p"], 0);
    w.view.sync.leader = Some("a".into());
    assert_eq!(w.step(), key(&[]));
}

#[test]
fn a_lost_standby_unblocks_commits_at_once() {
    let mut w = world(ON(), &["a"]);
    w.run();
    w.lose("a");
    assert_eq!(
        w.run(),
        [key(&[]), names("")],
        "first the key, then PostgreSQL"
    );
}

#[test]
fn a_lost_standby_is_replaced_by_another() {
    let mut w = world(ON(), &["a", "b"]);
    w.run();
    assert_eq!(w.view.sync.standbys, ["a"]);
    w.lose("a");
    assert_eq!(w.run(), [key(&[]), names("b"), key(&["b"])]);
}

#[test]
fn strict_mode_goes_on_waiting_for_a_lost_standby() {
    let mut w = world(STRICT(), &["a"]);
    w.run();
    w.lose("a");
    assert_eq!(w.step(), SyncStep::Wait(SyncWait::NoStandby));
    assert_eq!(w.written, "a");
    w.member("b", json!({}));
    w.connect("b");
    assert_eq!(w.run(), [key(&[]), names("b"), key(&["b"])]);
}

#[test]
fn strict_mode_holds_on_to_the_members_of_the_key_after_promotion() {
    let mut w = world(STRICT(), &[]);
    w.key(&["a", "b"], 0);
    w.names(STRICT_PLACEHOLDER);
    assert_eq!(w.run(), [names("2 (a,b)")]);
}

#[test]
fn a_better_standby_proves_itself_while_the_old_one_still_counts() {
    let mut w = world(ON(), &["a"]);
    w.run();
    w.member("b", json!({"sync_priority": 2}));
    w.connect("b");
    assert_eq!(w.run(), [names("2 (a,b)"), key(&["b"]), names("b")]);
}

#[test]
fn a_lagging_standby_is_dropped_and_replaced() {
    let mut w = world(
        json!({"synchronous_mode": true, "maximum_lag_on_syncnode": 50}),
        &["a", "b"],
    );
    w.run();
    w.sender("a").flush_lsn.0 -= 60;
    assert_eq!(w.step(), key(&[]));
}

#[test]
fn more_or_fewer_standbys_are_wanted() {
    let mut w = world(ON(), &["a", "b"]);
    w.run();
    w.config.synchronous_node_count = 2;
    assert_eq!(w.run(), [names("2 (a,b)"), key(&["a", "b"])]);
    w.config.synchronous_node_count = 1;
    assert_eq!(w.run(), [key(&["a"]), names("a")]);
}

#[test]
fn a_standby_with_more_wal_does_not_displace_a_listed_one() {
    let mut w = world(ON(), &["a", "b"]);
    w.run();
    w.sender("b").flush_lsn.0 += 10;
    w.sender("b").sync_state = "sync".into();
    assert_eq!(w.step(), SyncStep::Settled);
}

#[test]
fn nothing_is_proved_by_state_alone() {
    let mut w = world(ON(), &["a", "b"]);
    w.run();
    w.config.synchronous_node_count = 2;
    assert_eq!(w.step(), names("2 (a,b)"));
    w.apply(&names("2 (a,b)"));
    assert_eq!(w.sender("b").sync_state, "sync");
    let wait = SyncStep::Wait(SyncWait::Proof(vec!["b".into()]));
    assert_eq!(w.step(), wait, "no WAL has passed since the change");
    let primary = w.sample.flush_lsn.0 + 100;
    w.sample.flush_lsn.0 = primary;
    w.sender("b").flush_lsn.0 = primary;
    assert_eq!(
        w.step(),
        wait,
        "the sender of `a` may still release by the old rule"
    );
    w.sender("a").flush_lsn.0 = primary;
    assert_eq!(w.step(), key(&["a", "b"]));
}

#[test]
fn an_idle_cluster_settles_without_new_wal() {
    let mut w = world(ON(), &["a"]);
    w.key(&[], 0);
    assert_eq!(w.step(), names("a"));
    w.apply(&names("a"));
    assert!(matches!(w.step(), SyncStep::Wait(SyncWait::Proof(_))));
    w.pass(SETTLE_TIME);
    assert_eq!(w.step(), key(&["a"]));
}

#[test]
fn waiting_that_was_off_is_not_trusted_before_it_has_settled() {
    let mut w = world(ON(), &["a"]);
    w.key(&[], 0);
    w.step();
    w.apply(&names("a"));
    w.flow();
    w.step();
    w.flow();
    assert!(matches!(w.step(), SyncStep::Wait(SyncWait::Proof(_))));
    w.pass(SETTLE_TIME);
    assert_eq!(w.step(), key(&["a"]));
}

#[test]
fn a_standby_that_is_behind_the_change_is_not_listed_however_long_it_takes() {
    let mut w = world(ON(), &["a"]);
    w.key(&[], 0);
    w.sender("a").flush_lsn.0 -= 10;
    w.step();
    w.apply(&names("a"));
    w.step();
    w.pass(SETTLE_TIME * 10);
    assert!(matches!(w.step(), SyncStep::Wait(SyncWait::Proof(_))));
}

#[test]
fn nothing_is_concluded_from_a_sample_that_shows_other_names() {
    let mut w = world(ON(), &["a"]);
    w.run();
    w.written = String::new();
    assert_eq!(w.step(), SyncStep::Wait(SyncWait::NamesNotShown));
    w.pass(REWRITE_AFTER);
    assert_eq!(w.step(), names(""));
    w.in_flight.insert(Task::Configure);
    assert_eq!(w.step(), SyncStep::Wait(SyncWait::Busy));
}

#[test]
fn a_listed_standby_that_is_not_waited_for_leaves_the_key_first() {
    for strict in [ON(), STRICT()] {
        let mut w = world(strict, &["a"]);
        w.key(&["a"], 0);
        assert_eq!(
            w.step(),
            key(&[]),
            "names are empty: commits may have passed it by"
        );
    }
}

#[test]
fn a_quorum_key_is_emptied_and_built_up_anew() {
    let mut w = world(ON(), &["a", "b"]);
    w.key(&["a", "b"], 1);
    w.names("ANY 1 (a,b)");
    let step = w.step();
    assert_eq!(step, key(&[]));
    w.apply(&step);
    assert_eq!(w.run().last(), Some(&key(&["a"])));
    assert_eq!(w.written, "a");
}

#[test]
fn a_star_is_replaced_by_names() {
    let mut w = world(ON(), &["a"]);
    w.key(&[], 0);
    w.names("*");
    assert_eq!(w.run(), [names("a"), key(&["a"])]);
}

#[test]
fn names_are_compared_without_case_and_written_as_the_members_spell_them() {
    let mut w = world(ON(), &["Alpha"]);
    w.key(&["ALPHA"], 0);
    w.names("alpha");
    w.sender("Alpha").application_name = "ALPHA".into();
    w.states();
    assert_eq!(w.step(), SyncStep::Settled);
}

#[test]
fn only_running_connected_standbys_that_may_are_candidates() {
    let mut w = world(ON(), &["a", "b", "c", "d", "e"]);
    w.member("b", json!({"nosync": true}));
    w.member("d", json!({"replicatefrom": "a"}));
    w.view
        .members
        .get_mut(&MemberName::from("c"))
        .expect("exists")
        .record
        .state = None;
    w.sender("e").state = "catchup".into();
    w.connect("stranger");
    let me = "p".into();
    let names = |w: &World| -> Vec<String> {
        let list = candidates(&w.view, &me, &w.sample, &w.config);
        list.into_iter().map(|c| c.name).collect()
    };
    assert_eq!(names(&w), ["a"]);
    w.lose("a");
    assert_eq!(
        names(&w),
        ["d"],
        "its source is not connected, so it counts itself"
    );
}

#[test]
fn candidates_are_ordered_by_use_priority_state_and_position() {
    let mut w = world(ON(), &["a", "b", "c", "d"]);
    w.member("a", json!({"nofailover": true, "sync_priority": 9}));
    w.member("d", json!({"sync_priority": 2}));
    w.sender("c").sync_state = "sync".into();
    let me = "p".into();
    let list = candidates(&w.view, &me, &w.sample, &w.config);
    let names: Vec<&str> = list.iter().map(|c| c.name.as_str()).collect();
    assert_eq!(names, ["d", "c", "b", "a"]);
    w.sample.synchronous_commit = "remote_apply".into();
    w.sender("b").replay_lsn = Lsn(2000);
    let list = candidates(&w.view, &me, &w.sample, &w.config);
    assert_eq!(list[2].lsn, Lsn(2000), "applied, not flushed");
}

#[test]
fn a_new_primary_starts_alone_or_strictly_with_those_before() {
    let mut w = world(ON(), &["a", "b"]);
    w.key(&["a", "b"], 0);
    let me = "a".into();
    let plain = pre_promotion(&w.view, &me, false);
    assert_eq!(
        plain,
        PrePromotion {
            standbys: vec![],
            names: String::new()
        }
    );
    let strict = pre_promotion(&w.view, &me, true);
    assert_eq!(strict.standbys, ["b", "p"]);
    assert_eq!(strict.names, "2 (b,p)");
    w.view.sync = SyncRecord::default();
    assert_eq!(pre_promotion(&w.view, &me, true).names, STRICT_PLACEHOLDER);
}

#[test]
fn a_primary_starts_with_the_names_that_its_key_promises() {
    let record = |list: &[&str], quorum| SyncRecord {
        standbys: list.iter().map(|n| (*n).to_owned()).collect(),
        quorum,
        ..SyncRecord::default()
    };
    assert_eq!(names_of_key(&record(&["a", "b"], 0), false), "2 (a,b)");
    assert_eq!(
        names_of_key(&record(&["a", "b", "c"], 1), true),
        "ANY 2 (a,b,c)"
    );
    assert_eq!(names_of_key(&record(&["a"], 1), true), "ANY 1 (a)");
    assert_eq!(names_of_key(&record(&[], 0), false), "");
    assert_eq!(names_of_key(&record(&[], 0), true), STRICT_PLACEHOLDER);
}

#[test]
fn switching_off_deletes_the_key_before_anything_else() {
    let mut record = SyncRecord {
        modified: Some(Revision(3)),
        ..SyncRecord::default()
    };
    assert_eq!(switch_off(&record), SyncStep::DeleteKey);
    record.modified = None;
    assert_eq!(switch_off(&record), SyncStep::Settled);
}

/// Every way in which a sequence can be cut off and the agent start anew without memory, at every
/// point, with every set of living standbys, ends in the same place and keeps the invariant.
#[test]
fn interrupted_sequences_resume_from_any_state() {
    let all = ["a", "b", "c"];
    for strict in [ON(), STRICT()] {
        for before in 0..8_u8 {
            for after in 0..8_u8 {
                for cut in 0..8 {
                    resume(&strict, &all, before, after, cut);
                }
            }
        }
    }
}

fn resume(config: &Value, all: &[&str; 3], before: u8, after: u8, cut: usize) {
    let living = |mask: u8| move |i: usize| mask & (1 << i) != 0;
    let mut w = world(config.clone(), &[]);
    w.config.synchronous_node_count = 2;
    for name in all {
        w.member(name, json!({}));
    }
    let set = |w: &mut World, mask: u8| {
        for (i, name) in all.iter().enumerate() {
            w.lose(name);
            if living(mask)(i) {
                w.connect(name);
            }
        }
    };
    set(&mut w, before);
    for _ in 0..cut {
        let step = w.step();
        w.apply(&step);
        w.flow();
    }
    set(&mut w, after);
    w.memory = SyncMemory::default();
    w.run();
    let expected: Vec<&&str> = all
        .iter()
        .enumerate()
        .filter(|(i, _)| living(after)(*i))
        .map(|(_, n)| n)
        .collect();
    let enough = expected.len().min(2);
    let strict_hold = enough == 0 && w.config.synchronous_mode_strict;
    if strict_hold {
        assert_ne!(w.written, "", "strict mode is never without a name");
    } else {
        assert_eq!(
            w.view.sync.standbys.len(),
            enough,
            "{before:03b} {after:03b} {cut}"
        );
        assert!(
            w.view
                .sync
                .standbys
                .iter()
                .all(|s| expected.iter().any(|e| *e == s))
        );
        let names = parse_names(&w.written).expect("our own");
        assert_eq!(names.names, w.view.sync.standbys);
    }
}

/// The model found it: a write of the key that left a standby out was not answered, the names took the
/// standby back in, and then the write was committed.
#[test]
fn names_stay_while_a_write_of_the_key_is_in_doubt() {
    let me = "p".into();
    let key = SyncRecord {
        leader: Some("p".into()),
        standbys: vec!["b".into(), "c".into()],
        quorum: 1,
        modified: Some(crate::ids::Revision(1)),
    };
    let names = || SyncStep::SetNames("ANY 1 (b,c)".into());
    assert_eq!(unless_in_doubt(names(), &key, &me, true), names());
    let again = SyncStep::WriteKey {
        standbys: key.standbys.clone(),
        quorum: 1,
    };
    assert_eq!(unless_in_doubt(names(), &key, &me, false), again);
    // What another has left behind compares with its own name in `/leader`.
    let other = "q".into();
    assert_eq!(unless_in_doubt(names(), &key, &other, false), names());
}
