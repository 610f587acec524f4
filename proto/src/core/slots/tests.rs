use super::*;
use crate::core::decision::SlotPlan;
use crate::core::observation::SlotRow;
use crate::dcs::{LeaderRecord, MemberEntry};
use crate::ids::{LeaseId, Revision};
use crate::time::MonoTime;
use serde_json::{Value, json};
use std::time::Duration;

/// The cluster of the published vector, seen from one of its members.
struct Node {
    me: MemberName,
    view: ClusterView,
    sample: SqlSample,
    config: ClusterConfig,
}

fn node(me: &str) -> Node {
    let mut view = ClusterView::default();
    let members = [
        ("pg1", json!({})),
        ("pg2", json!({})),
        ("pg3", json!({"nofailover": true})),
        ("pg4", json!({"replicatefrom": "pg3"})),
        ("pg5", json!({"nostream": true})),
    ];
    for (name, tags) in members {
        let record = MemberRecord {
            tags: tags.as_object().cloned().unwrap_or_default(),
            xlog_location: Some(Lsn(500)),
            version: Some("4.1.4".into()),
            ..MemberRecord::default()
        };
        let entry = MemberEntry {
            record,
            lease: LeaseId(1),
            modified: Revision(1),
        };
        view.members.insert(name.into(), entry);
    }
    view.leader = Some(LeaderRecord {
        name: "pg1".into(),
        lease: LeaseId(1),
        created: Revision(7),
        modified: Revision(7),
    });
    view.status.optime = Some(Lsn(600));
    view.status.slots = [("pg2", 550), ("pg4", 400), ("lg", 390)]
        .map(|(n, l)| (n.to_owned(), l))
        .into();
    view.status.retain_slots = ["pg1", "pg2", "gone"].map(str::to_owned).into();
    let mut node = Node {
        me: me.into(),
        view,
        sample: SqlSample {
            in_recovery: me != "pg1",
            flush_lsn: Lsn(600),
            receive_lsn: Lsn(600),
            replay_lsn: Lsn(600),
            ..SqlSample::default()
        },
        config: ClusterConfig::default(),
    };
    node.configure(json!({"slots": {"pp": {"type": "physical"},
        "lg": {"type": "logical", "database": "db", "plugin": "pgoutput"}}}));
    node
}

impl Node {
    fn configure(&mut self, config: Value) {
        self.config = ClusterConfig::parse(&config.as_object().cloned().unwrap_or_default());
    }

    fn ask<T>(&self, question: impl Fn(&SlotInput<'_>) -> T) -> T {
        let tags = Tags(self.view.member(&self.me).expect("a member").tags.clone());
        question(&SlotInput {
            me: &self.me,
            tags: &tags,
            view: &self.view,
            sample: &self.sample,
            config: &self.config,
        })
    }

    /// `name target*`, where `*` means expected to be used.
    fn wanted(&self) -> String {
        let shown = self.ask(wanted).slots.into_iter().map(|(name, want)| {
            let target = want.target.map(|l| format!(" {}", l.0)).unwrap_or_default();
            let mark = match want.usage {
                Use::Active => "*",
                Use::Idle => "",
                Use::Retained => "?",
            };
            format!("{name}{target}{mark}")
        });
        shown.collect::<Vec<_>>().join(", ")
    }

    fn plan(&self) -> SlotPlan {
        self.ask(plan)
    }

    fn row(&mut self, row: SlotRow) -> &mut Self {
        self.sample.slots.push(row);
        self
    }
}

fn physical(name: &str, restart: u64) -> SlotRow {
    SlotRow {
        name: name.into(),
        restart_lsn: Lsn(restart),
        ..SlotRow::default()
    }
}

fn logical(name: &str, confirmed: u64) -> SlotRow {
    SlotRow {
        name: name.into(),
        logical: true,
        database: Some("db".into()),
        plugin: Some("pgoutput".into()),
        confirmed_flush_lsn: Lsn(confirmed),
        restart_lsn: Lsn(confirmed),
        ..SlotRow::default()
    }
}

#[test]
fn each_member_wants_the_slots_of_the_published_vector() {
    assert_eq!(
        node("pg1").wanted(),
        "gone?, lg 390, pg2 550*, pg3*, pg4 500, pp*"
    );
    assert_eq!(node("pg2").wanted(), "gone?, lg 390, pg1, pg3, pg4 500, pp");
    assert_eq!(node("pg3").wanted(), "pg4 500*");
    assert_eq!(node("pg4").wanted(), "gone?, lg 390, pg1, pg2 550, pg3, pp");
    assert_eq!(
        node("pg5").wanted(),
        "gone?, pg1, pg2 550, pg3, pg4 500, pp"
    );
}

#[test]
fn without_retaining_only_slots_in_use_are_wanted() {
    let older = |me: &str| {
        let mut node = node(me);
        node.configure(json!({"member_slots_ttl": 0}));
        node.wanted()
    };
    assert_eq!(older("pg1"), "pg2 550*, pg3*");
    assert_eq!(older("pg2"), "");
    assert_eq!(older("pg3"), "pg4 500*");
}

#[test]
fn a_leader_has_slots_whatever_its_tags_say() {
    let mut node = node("pg3");
    node.view.leader = Some(LeaderRecord {
        name: "pg3".into(),
        lease: LeaseId(1),
        created: Revision(8),
        modified: Revision(8),
    });
    assert_eq!(
        node.wanted(),
        "gone?, lg 390, pg1*, pg2 550*, pg4 500*, pp*"
    );
}

#[test]
fn an_old_leader_publishes_too_little_so_members_speak_for_themselves() {
    let mut node = node("pg4");
    let leader = node
        .view
        .members
        .get_mut(&MemberName::from("pg1"))
        .expect("exists");
    leader.record.version = Some("3.3.2".into());
    assert_eq!(
        node.wanted(),
        "gone?, lg 390, pg1 500, pg2 550, pg3 500, pp"
    );
}

#[test]
fn a_cascade_without_end_carries_no_logical_slots() {
    let mut node = node("pg4");
    let source = node
        .view
        .members
        .get_mut(&MemberName::from("pg3"))
        .expect("exists");
    source.record.tags = json!({"replicatefrom": "pg4"})
        .as_object()
        .cloned()
        .expect("object");
    assert!(!node.wanted().contains("lg"));
}

#[test]
fn slots_of_one_name_are_reported() {
    let mut node = node("pg1");
    let entry = node.view.members[&MemberName::from("pg2")].clone();
    node.view.members.insert("PG2".into(), entry);
    node.configure(json!({"slots": {"pg3": {"database": "db", "plugin": "p"}}}));
    let problems = node.ask(wanted).problems;
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].contains("PG2") && problems[1].contains("pg3"),
        "{problems:?}"
    );
}

#[test]
fn a_standby_slot_is_not_made_in_a_primary_cluster() {
    let mut node = node("pg1");
    node.configure(
        json!({"slots": {"s": {"type": "physical", "cluster_type": "standby"},
        "p": {"type": "physical", "cluster_type": "primary"}}}),
    );
    let wanted = node.ask(wanted).slots;
    assert!(!wanted.contains_key("s") && wanted.contains_key("p"));
}

#[test]
fn missing_slots_are_created_on_the_primary_and_copied_to_standbys() {
    let primary = node("pg1").plan();
    assert_eq!(primary.create_physical, ["gone", "pg2", "pg3", "pg4", "pp"]);
    assert_eq!(
        primary.create_logical,
        [("lg".into(), "db".into(), "pgoutput".into())]
    );
    let mut standby = node("pg2");
    let plan = standby.plan();
    assert_eq!(plan.create_physical, ["gone", "pg1", "pg3", "pg4", "pp"]);
    assert!(plan.create_logical.is_empty());
    assert_eq!(standby.ask(to_copy), ["lg"]);
    assert!(node("pg1").ask(to_copy).is_empty(), "the primary makes it");
    assert!(node("pg3").ask(to_copy).is_empty(), "never promoted");
    assert!(node("pg5").ask(to_copy).is_empty(), "does not stream");
    standby.row(logical("lg", 5));
    assert!(standby.ask(to_copy).is_empty(), "it is there");
    let mut unpublished = node("pg2");
    unpublished.view.status.slots.clear();
    assert!(unpublished.ask(to_copy).is_empty());
}

#[test]
fn idle_slots_move_along_and_used_or_retained_ones_do_not() {
    let mut node = node("pg4");
    node.row(physical("pg1", 100))
        .row(physical("pg2", 100))
        .row(physical("gone", 100));
    node.row(logical("lg", 100));
    let plan = node.plan();
    assert_eq!(plan.advance, [("pg2".into(), Lsn(550))]);
    assert_eq!(plan.advance_logical, [("lg".into(), "db".into(), Lsn(390))]);
    assert!(plan.drop.is_empty());
    node.sample.replay_lsn = Lsn(200);
    assert_eq!(
        node.plan().advance_logical,
        [("lg".into(), "db".into(), Lsn(200))]
    );
    node.sample.replay_lsn = Lsn(50);
    assert!(node.plan().advance_logical.is_empty(), "never backwards");
}

#[test]
fn slots_that_hold_back_vacuum_for_nobody_are_dropped() {
    let mut node = node("pg2");
    node.row(SlotRow {
        has_xmin: true,
        ..physical("pg4", 100)
    });
    assert_eq!(node.plan().drop, ["pg4"]);
    node.view.leader = None;
    assert!(
        node.plan().drop.is_empty(),
        "nobody leads: it may be used any moment"
    );
}

#[test]
fn slots_that_reserve_nothing_or_lost_their_wal_are_made_anew() {
    let mut node = node("pg2");
    node.row(physical("pg1", 0)).row(SlotRow {
        lost: true,
        ..physical("pg3", 5)
    });
    node.row(SlotRow {
        lost: true,
        ..logical("lg", 5)
    });
    assert_eq!(node.plan().drop, ["pg1", "pg3", "lg"]);
}

#[test]
fn only_unknown_unused_slots_are_dropped_and_not_in_pause() {
    let mut node = node("pg1");
    node.configure(json!({"ignore_slots": [{"type": "logical", "plugin": "pgoutput"}]}));
    node.row(physical("foreign", 5)).row(logical("debezium", 5));
    node.row(SlotRow {
        active: true,
        ..physical("backup", 5)
    });
    node.row(SlotRow {
        failover: true,
        ..physical("native", 5)
    });
    assert_eq!(node.plan().drop, ["foreign"]);
    node.config.pause = true;
    assert!(node.plan().drop.is_empty());
}

#[test]
fn a_slot_of_another_kind_is_dropped_even_in_pause() {
    let mut node = node("pg1");
    node.config.pause = true;
    node.row(physical("lg", 5)).row(SlotRow {
        plugin: Some("other".into()),
        ..logical("pp", 5)
    });
    assert_eq!(node.plan().drop, ["lg", "pp"]);
}

#[test]
fn old_failover_slots_make_room_for_synchronised_ones() {
    let mut node = node("pg2");
    node.row(SlotRow {
        failover: true,
        ..logical("cdc", 5)
    });
    node.row(SlotRow {
        failover: true,
        synced: true,
        ..logical("other", 5)
    });
    assert_eq!(node.plan().drop, ["cdc"]);
}

#[test]
fn without_slots_nothing_is_planned() {
    let mut node = node("pg1");
    node.row(physical("foreign", 5));
    node.config.use_slots = false;
    assert!(node.plan().is_empty());
}

#[test]
fn feedback_is_needed_where_logical_slots_are_and_on_the_way_to_them() {
    let needs = |me: &str| node(me).ask(|input| input.needs_feedback());
    assert!(needs("pg2") && needs("pg4"));
    assert!(needs("pg3"), "pg4 streams through it");
    assert!(!needs("pg5"));
}

#[test]
fn the_leader_publishes_its_slots_and_itself() {
    let mut node = node("pg1");
    node.row(physical("pg2", 540))
        .row(logical("lg", 380))
        .row(physical("foreign", 5));
    node.row(physical("pg3", 0));
    let expected: BTreeMap<String, u64> = [("lg", 380), ("pg1", 600), ("pg2", 540)]
        .map(|(n, l)| (n.to_owned(), l))
        .into();
    assert_eq!(node.ask(status_slots), expected);
    node.config.member_slots_ttl = Duration::ZERO;
    assert_eq!(
        node.ask(status_slots).into_keys().collect::<Vec<_>>(),
        ["lg"]
    );
}

#[test]
fn slots_of_vanished_members_are_retained_for_a_while() {
    let mut node = node("pg1");
    let mut memory = SlotMemory::default();
    let at = |secs: u64| MonoTime(0) + Duration::from_secs(secs);
    let mut ask = |node: &Node, secs| {
        memory
            .retain(&node.view, &node.me, &node.config, at(secs))
            .join(" ")
    };
    assert_eq!(ask(&node, 0), "gone pg1 pg2 pg3 pg4", "pg5 does not stream");
    node.view.members.remove(&MemberName::from("pg2"));
    assert_eq!(ask(&node, 1799), "gone pg1 pg2 pg3 pg4");
    assert_eq!(
        ask(&node, 1800),
        "pg1 pg3 pg4",
        "the key still names them, this tenure does not"
    );
    node.view.leader.as_mut().expect("held").created = Revision(9);
    assert_eq!(
        ask(&node, 1900),
        "gone pg1 pg2 pg3 pg4",
        "a new tenure begins with fresh periods"
    );
    node.config.member_slots_ttl = Duration::ZERO;
    assert_eq!(ask(&node, 1901), "");
}
