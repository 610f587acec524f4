//! The mutation table (`safety.md` 8, layer 6): each known mistake is put back into the simulated agent, and
//! random runs must find it. Prints the mistake, what it broke, and how many schedules that took.
//!
//! By default each mistake gets the few schedules that an unoptimised build can run, and the plainest must be
//! found; with `GARDEN_FULL=1` every one that is not listed as open. `MUTATION=Name` hunts one alone, `MUTATION_RUNS=k` sets how long.
#![allow(missing_docs, reason = "a test")]

extern crate garden_proto as proto;

mod sim;

use sim::effort::{Effort, number, threads};
use sim::mutation::Mutation;
use sim::run::{Nursery, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Mistakes that a few schedules show.
const AT_ONCE: &[Mutation] = &[
    Mutation::NeverArmed,
    Mutation::GuardianAbsent,
    Mutation::ClaimWithoutCompare,
    Mutation::EpochReused,
    Mutation::QuorumOneShort,
];

/// Mistakes that no random schedule has shown so far. They are hunted all the same, so the table says so.
const OPEN: &[Mutation] = &[
    Mutation::DeadlineFromReply,
    Mutation::WaitHalved,
    Mutation::KeepaliveTrusted,
    Mutation::StaleViewTrusted,
    Mutation::LeaderWithoutCompare,
    Mutation::FenceNotCompared,
    Mutation::PromiseWithoutCompare,
    Mutation::WithdrawWithoutCompare,
    Mutation::TimelineWithoutCompare,
    Mutation::StreamNotCut,
    Mutation::WithdrawDiskFirst,
    Mutation::LsnOrderOnly,
    Mutation::TimelineNumberOnly,
    Mutation::NamesUnproved,
    Mutation::NamesEmptyAtPromotion,
    Mutation::FailsafeMajority,
    Mutation::FailsafeForgotten,
    Mutation::UnfinishedHidden,
    Mutation::WipeUnchecked,
];

/// Schedules for each mistake.
fn most(effort: Effort) -> u64 {
    number("MUTATION_RUNS").unwrap_or(match effort {
        Effort::Quick => 12,
        Effort::Full => 2_000,
        Effort::Long => 100_000,
    })
}

/// How many schedules it took, and what broke. The same plan without the mistake must pass, or it would
/// prove nothing.
fn hunt(mutation: Mutation, most: u64, nursery: &mut Nursery) -> Option<(u64, String)> {
    (0..most).find_map(|seed| {
        let mut plan = mutation.plan(seed);
        let why = run(&plan, nursery, false).failed?;
        plan.mutation = None;
        let without = run(&plan, nursery, false).failed;
        assert_eq!(
            without, None,
            "{mutation:?} seed {seed}: fails without it too"
        );
        Some((seed + 1, why))
    })
}

fn line(mutation: Mutation, found: Option<&(u64, String)>, most: u64) -> String {
    let shown = match found {
        Some((runs, why)) => {
            let short: String = why.chars().take(70).collect();
            format!("{runs:>6}  {short}")
        }
        None => format!("not found in {most}"),
    };
    format!("{:<70} {shown}", mutation.text())
}

#[test]
fn every_known_mistake_is_found() {
    let effort = Effort::asked();
    let most = most(effort);
    let only = std::env::var("MUTATION").ok();
    let wanted = |m: &&Mutation| only.as_ref().is_none_or(|name| *name == format!("{m:?}"));
    let hunted: Vec<Mutation> = Mutation::ALL.iter().filter(wanted).copied().collect();
    let next = AtomicUsize::new(0);
    let missed = Mutex::new(Vec::new());
    println!("{:<70} schedules, and what broke", "the mistake");
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                let mut nursery = Nursery::default();
                while let Some(mutation) = hunted.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let found = hunt(*mutation, most, &mut nursery);
                    println!("{}", line(*mutation, found.as_ref(), most));
                    if found.is_none() {
                        missed.lock().expect("no thread panics").push(*mutation);
                    }
                }
            });
        }
    });
    let missed = missed.into_inner().expect("no thread panicked");
    if effort == Effort::Quick && only.is_none() {
        let (all, few) = (hunted.len(), missed.len());
        println!("a quick round: {few} of {all} not found in so few schedules");
        let plain: Vec<_> = AT_ONCE.iter().filter(|m| missed.contains(m)).collect();
        assert!(plain.is_empty(), "not found: {plain:?}");
    } else {
        let (open, lost): (Vec<Mutation>, Vec<Mutation>) =
            missed.iter().partition(|m| OPEN.contains(m));
        println!("open: {open:?}");
        assert!(lost.is_empty(), "not found: {lost:?}");
    }
}
