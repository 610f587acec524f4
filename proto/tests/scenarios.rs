//! Stories with an exact course: what must happen, and what must not. The first ones are the life of a
//! healthy cluster; those after them were failures once, found by the random runs.
#![allow(missing_docs, reason = "a test")]

extern crate garden_proto as proto;

mod sim;

use sim::clock::{MS, SEC, T};
use sim::faults::{Fault, Kind};
use sim::run::{Nursery, Outcome, Plan, Shape, run};

fn shape() -> Shape {
    Shape {
        nodes: 3,
        sync: "off",
        strict: false,
        count: 1,
        native: true,
        quorum_failover: true,
        profile: "tuned",
        failsafe: false,
        start_timeout: 300,
        rewind: true,
    }
}

/// A fault on whoever is the primary at that time.
fn on_primary(kind: Kind, at: T, lasts: T) -> Fault {
    Fault {
        kind,
        at,
        lasts,
        node: 0,
        other: 1,
        dice: 0,
        primary: true,
    }
}

fn on(node: usize, kind: Kind, at: T, lasts: T) -> Fault {
    Fault {
        node,
        primary: false,
        ..on_primary(kind, at, lasts)
    }
}

/// Runs the faults in a cluster of this shape, which must stay safe and become healthy again.
fn story(shape: Shape, faults: &[Fault]) -> Outcome {
    let told = std::env::var_os("SIM_TELL").is_some();
    let mut outcome = (0..8).map(|seed| {
        let plan = Plan {
            seed,
            shape: shape.clone(),
            faults: faults.to_vec(),
            mutation: None,
        };
        let outcome = run(&plan, &mut Nursery::default(), told);
        if told || outcome.failed.is_some() {
            println!("{}", outcome.story.lines.join("\n"));
        }
        assert_eq!(outcome.failed, None, "seed {seed}");
        outcome
    });
    outcome.next_back().expect("several seeds")
}

#[test]
fn a_quiet_cluster_has_no_failover() {
    for sync in ["off", "on", "quorum"] {
        let outcome = story(Shape { sync, ..shape() }, &[]);
        assert_eq!(outcome.promotions, 0);
        assert!(outcome.acks > 20, "clients are served");
    }
}

#[test]
fn a_lost_primary_is_replaced_once() {
    for sync in ["off", "on", "quorum"] {
        let lost = on_primary(Kind::PowerLoss, SEC, 10 * SEC);
        let outcome = story(Shape { sync, ..shape() }, &[lost]);
        assert_eq!(outcome.promotions, 1);
    }
}

#[test]
fn a_switchover_takes_one_promotion() {
    for (sync, kind) in [
        ("off", Kind::Switchover),
        ("on", Kind::Switchover),
        ("quorum", Kind::SwitchoverTo),
    ] {
        for other in [0, 1, 2] {
            let asked = Fault {
                other,
                ..on_primary(kind, SEC, SEC)
            };
            let outcome = story(Shape { sync, ..shape() }, &[asked]);
            assert!(outcome.promotions <= 1);
        }
    }
}

/// An agent that found its own record run out waited for ever for what could not come back.
#[test]
fn a_leader_that_was_fenced_while_its_agent_was_down_leads_again_if_nobody_else_can() {
    let down = on(0, Kind::AgentCrash, SEC, 9 * SEC);
    story(
        Shape {
            nodes: 1,
            ..shape()
        },
        &[down],
    );
}

/// Each answer of the guardian woke the loop, which ordered the same again at once.
#[test]
fn a_leader_without_its_record_does_not_keep_asking_the_guardian() {
    let hangs = on(0, Kind::LoopStall, 3 * SEC, 8 * SEC);
    let asked = Fault {
        other: 0,
        ..on(1, Kind::Switchover, SEC, 4 * SEC)
    };
    story(
        Shape {
            sync: "quorum",
            ..shape()
        },
        &[hangs, asked],
    );
}

/// A standby took the lock of an etcd that knew nothing, while the primary still held its lease.
#[test]
fn a_standby_does_not_lead_because_etcd_has_forgotten_everything() {
    let frozen = on_primary(Kind::NodeFreeze, SEC, 4 * SEC);
    let wiped = on(0, Kind::EtcdWiped, 1_500 * MS, SEC);
    for profile in ["tuned", "fast"] {
        story(
            Shape { profile, ..shape() },
            &[frozen.clone(), wiped.clone()],
        );
    }
}

/// Epochs began again at one; the guardian takes no lower epoch, so PostgreSQL was ended at the old
/// deadline.
#[test]
fn epochs_go_on_after_the_record_or_all_of_etcd_is_lost() {
    let failover = on_primary(Kind::PowerLoss, SEC, 4 * SEC);
    for lost in [Kind::EtcdWiped, Kind::RecordDeleted] {
        let outcome = story(shape(), &[failover.clone(), on(0, lost, 9 * SEC, SEC)]);
        assert_eq!(outcome.promotions, 1, "the primary leads on");
    }
}

/// pg_rewind was ordered again a thousand times a second while its source refused.
#[test]
fn a_rewind_whose_source_is_not_there_is_tried_again_at_leisure() {
    let isolated = on_primary(Kind::Isolate, SEC, 7 * SEC);
    let replication = on(0, Kind::FlapPg, 7 * SEC, 8 * SEC);
    let more = on(2, Kind::FlapPg, 7 * SEC, 8 * SEC);
    story(shape(), &[isolated, replication, more]);
}

/// It waited for ever for the stop that was never ordered.
#[test]
fn a_primary_that_crashes_while_a_switchover_is_prepared_recovers() {
    let stopped = on_primary(Kind::AgentFreeze, SEC, 1_300 * MS);
    let asked = Fault {
        other: 1,
        ..on_primary(Kind::Switchover, 1_500 * MS, SEC)
    };
    let crash = on_primary(Kind::PgCrash, 1_800 * MS, SEC);
    story(
        Shape {
            sync: "on",
            native: false,
            ..shape()
        },
        &[stopped, asked, crash],
    );
}

/// The record of the agent before it counted for one of an earlier life, whose PostgreSQL was stopped as
/// soon as the pause ended.
#[test]
fn an_agent_restarted_in_pause_leads_on_when_the_pause_ends() {
    let pause = on_primary(Kind::Pause, 2 * SEC, 12 * SEC);
    let restart = on_primary(Kind::AgentCrash, 4 * SEC, 5 * SEC);
    for native in [true, false] {
        let outcome = story(
            Shape { native, ..shape() },
            &[pause.clone(), restart.clone()],
        );
        assert_eq!(outcome.promotions, 0);
    }
}

/// Two members that led one after the other both made timeline 2 from the same position; the first of
/// them never streamed again, and nothing could tell why.
#[test]
fn two_promotions_never_make_the_same_timeline() {
    let first = on(0, Kind::Shutdown, SEC, 8 * SEC);
    let second = on(1, Kind::Shutdown, 3 * SEC, 11 * SEC);
    let two = Shape {
        nodes: 2,
        sync: "quorum",
        strict: true,
        native: false,
        ..shape()
    };
    let swapped = [
        on(1, Kind::Shutdown, SEC, 8 * SEC),
        on(0, Kind::Shutdown, 3 * SEC, 11 * SEC),
    ];
    story(two.clone(), &[first, second]);
    story(two, &swapped);
}

/// Who is named in /sync under quorum commit may lack what others have acknowledged; the candidate of a
/// switchover took the lock of a dead leader without asking them.
#[test]
fn the_candidate_of_a_switchover_needs_votes_when_the_leader_is_gone() {
    let quorum = Shape {
        sync: "quorum",
        start_timeout: 0,
        ..shape()
    };
    for other in [0, 1, 2] {
        let behind = Fault {
            other,
            ..on_primary(Kind::CutPg, SEC, 4 * SEC)
        };
        let asked = Fault {
            other,
            ..on_primary(Kind::SwitchoverTo, 3_100 * MS, SEC)
        };
        let gone = on_primary(Kind::Isolate, 3_100 * MS + 1, 8 * SEC);
        story(quorum.clone(), &[behind, asked, gone]);
    }
}

/// A member that had promised a primary without etcd not to lead forgot it when its agent was restarted.
#[test]
fn a_restarted_agent_keeps_out_of_the_race_while_it_may_have_promised_failsafe_time() {
    let failsafe = Shape {
        failsafe: true,
        sync: "quorum",
        ..shape()
    };
    let unseen = on_primary(Kind::CutEtcd, SEC, 6 * SEC);
    for node in [0, 1, 2] {
        let restart = on(node, Kind::AgentCrash, 4 * SEC, 200 * MS);
        let frozen = on_primary(Kind::NodeFreeze, 5 * SEC, 9 * SEC);
        story(failsafe.clone(), &[unseen.clone(), restart, frozen]);
    }
}

/// It took the lock and gave it back a hundred times a second, an epoch each time.
#[test]
fn a_member_whose_promotions_fail_steps_aside() {
    let fails = Fault {
        dice: 2,
        ..on(0, Kind::JobFails, SEC, SEC)
    };
    let more = Fault {
        dice: 2,
        ..on(0, Kind::JobFails, SEC, SEC)
    };
    let crash = on(0, Kind::PgCrash, SEC + 1, SEC);
    story(
        Shape {
            nodes: 1,
            start_timeout: 0,
            ..shape()
        },
        &[fails, more, crash],
    );
}
