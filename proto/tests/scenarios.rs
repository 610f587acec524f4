//! Stories with an exact course: what must happen, and what must not. The first ones are the life of a
//! healthy cluster; those after them were failures once, found by the random runs.
#![allow(missing_docs, reason = "a test")]

extern crate garden_proto as proto;

mod sim;

use sim::clock::{MS, SEC, T};
use sim::faults::{Fault, Kind};
use sim::run::{Nursery, Outcome, Plan, Shape, grow, run};

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
        wipe: true,
        backoff: 0,
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
            birth: false,
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

/// Two members made the cluster at the same time, the first with the claim of the second; the second found
/// itself with a cluster of its own that only a person could take away. Where it had already been made when the
/// other appeared, its agent ended and left the server running.
#[test]
fn a_member_that_lost_its_claim_sets_its_cluster_aside_and_copies_the_other() {
    for claimant in 0..3 {
        let lost = on(claimant, Kind::LeaseRevoked, 900 * MS, SEC);
        for seed in 0..8 {
            let plan = Plan {
                seed,
                shape: shape(),
                faults: vec![lost.clone()],
                birth: true,
                mutation: None,
            };
            let outcome = run(&plan, &mut Nursery::default(), false);
            assert_eq!(outcome.failed, None, "seed {seed}");
            let helped = |(what, _): &(&str, u64)| *what == "operator-empties-directory";
            assert!(!outcome.story.reached.iter().any(helped), "seed {seed}");
        }
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

/// Two standbys were promoted by hand while the primary was away, and stopped again. Everybody left the
/// lock to them, since the number of their timeline was higher, and they had too few votes: nobody led.
#[test]
fn promotions_by_hand_do_not_keep_the_last_leader_from_leading_again() {
    let five = Shape {
        nodes: 5,
        sync: "quorum",
        quorum_failover: false,
        profile: "fast",
        ..shape()
    };
    story(
        five,
        &[
            on_primary(Kind::PowerLoss, 300 * MS, 1_200 * MS),
            on_primary(Kind::PowerLoss, 2_600 * MS, 8_700 * MS),
            on(2, Kind::PromotedByHand, 3_500 * MS, SEC),
            on(1, Kind::PromotedByHand, 4_300 * MS, SEC),
        ],
    );
}

/// REST sent clients to a primary that was still being recovered: they read commits that no standby had,
/// and that the next primary never had.
#[test]
fn clients_are_held_back_from_the_beginning_of_a_crash_recovery() {
    let isolated = Fault {
        dice: 7,
        ..on_primary(Kind::Isolate, 3_500 * MS, 3 * SEC)
    };
    let killed = on_primary(Kind::GuardianKilled, 4_500 * MS, SEC);
    for sync in ["on", "quorum"] {
        story(
            Shape { sync, ..shape() },
            &[isolated.clone(), killed.clone()],
        );
    }
}

/// A leader that was lost soon after a switchover was waited for by everybody: the member that had handed
/// over had lost its vote while it was on its way back, and then more votes were needed than there were
/// voters. (In mode `on`, as in Patroni, nobody may lead before the first standby is in the key again.)
#[test]
fn a_leader_lost_soon_after_a_switchover_is_replaced() {
    for quorum_failover in [true, false] {
        let shape = Shape {
            sync: "quorum",
            quorum_failover,
            ..shape()
        };
        let healthy = grow(&shape, 1, false).expect("a healthy cluster");
        for step in 0..12 {
            // From when the new leader has put itself into the key.
            let lost = 1_600 * MS + step * 250 * MS;
            let mut world = healthy.clone();
            world.rng = fastrand::Rng::with_seed(step);
            let faults = [
                on_primary(Kind::Switchover, SEC, SEC),
                on_primary(Kind::PowerLoss, lost, 100 * SEC),
            ];
            world.plan_faults(&faults);
            world.run_for(lost + 20 * SEC);
            assert_eq!(world.failed, None, "lost after {} ms", lost / MS);
            let leader = world.leader();
            assert!(leader.is_ok(), "lost after {} ms: {leader:?}", lost / MS);
        }
    }
}
