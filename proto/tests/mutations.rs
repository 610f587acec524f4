//! The mutation table (`safety.md` 8, layer 6): each known mistake is put back into the simulated agent, and
//! the schedules must find it. Prints the mistake, how many schedules it took, and what broke. One that is not
//! found fails the test.
//!
//! Most need a rare meeting of faults, so they have schedules that are aimed at them ([`sim::aimed`]); the
//! others are found by chance, among faults that concern them. `MUTATION=Name` hunts one alone,
//! `MUTATION_RUNS=k` sets how long; with `MUTATION_SEED=n` it tells the story of one schedule, and with
//! `MUTATION_WITHOUT=1` that of the same one without the mistake.
#![allow(missing_docs, reason = "a test")]

extern crate garden_proto as proto;

mod sim;

use sim::aimed;
use sim::effort::{Effort, number, threads};
use sim::mutation::Mutation;
use sim::run::{Nursery, run};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Schedules for each mistake. The rarest is shown by one in sixty.
const SCHEDULES_MAX: u64 = 1_000;

/// How many schedules it took, and what broke. The same plan without the mistake must pass, or it would
/// prove nothing.
fn hunt(mutation: Mutation, most: u64, nursery: &mut Nursery) -> Option<(u64, String)> {
    (0..most).find_map(|seed| {
        let mut plan = mutation.plan(seed, nursery);
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

/// The story of one schedule, with the mistake in it or without.
fn tell(mutation: Mutation, seed: u64) {
    let mut nursery = Nursery::default();
    let mut plan = mutation.plan(seed, &mut nursery);
    if number("MUTATION_WITHOUT").is_some() {
        plan.mutation = None;
    }
    println!("{plan:#?}");
    let outcome = run(&plan, &mut nursery, true);
    let lines = outcome.story.lines.join("\n");
    println!("{lines}\n{:?}", outcome.failed);
}

fn line(mutation: Mutation, found: Option<&(u64, String)>, most: u64) -> String {
    let how = if aimed::is_at(mutation) {
        "aimed"
    } else {
        "chance"
    };
    let shown = match found {
        Some((runs, why)) => {
            let short: String = why.chars().take(70).collect();
            format!("{runs:>6}  {short}")
        }
        None => format!("not found in {most}"),
    };
    format!("{:<70} {how:<6} {shown}", mutation.text())
}

/// Does it to each mistake, on all processors.
fn each(mutations: &[Mutation], work: impl Fn(Mutation, &mut Nursery) + Sync) {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| {
                let mut nursery = Nursery::default();
                while let Some(mutation) = mutations.get(next.fetch_add(1, Ordering::Relaxed)) {
                    work(*mutation, &mut nursery);
                }
            });
        }
    });
}

#[test]
fn every_known_mistake_is_found() {
    let most = number("MUTATION_RUNS").unwrap_or(SCHEDULES_MAX);
    let only = std::env::var("MUTATION").ok();
    let wanted = |m: &&Mutation| only.as_ref().is_none_or(|name| *name == format!("{m:?}"));
    let hunted: Vec<Mutation> = Mutation::ALL.iter().filter(wanted).copied().collect();
    if let ([one], Some(seed)) = (&hunted[..], number("MUTATION_SEED")) {
        return tell(*one, seed);
    }
    let missed = Mutex::new(Vec::new());
    println!("{:<70} how    schedules, and what broke", "the mistake");
    each(&hunted, |mutation, nursery| {
        let found = hunt(mutation, most, nursery);
        println!("{}", line(mutation, found.as_ref(), most));
        if found.is_none() {
            missed.lock().expect("no thread panics").push(mutation);
        }
    });
    let missed = missed.into_inner().expect("no thread panicked");
    assert!(!hunted.is_empty(), "no mistake has this name: {only:?}");
    assert!(missed.is_empty(), "not found: {missed:?}");
}

/// What is aimed at a mistake is a schedule like any other: the agent without it passes.
#[test]
fn schedules_that_are_aimed_at_a_mistake_pass_without_it() {
    let most = match Effort::asked() {
        Effort::Quick => 15,
        Effort::Full => 300,
        Effort::Long => 10_000,
    };
    each(Mutation::ALL, |mutation, nursery| {
        for seed in 0..most {
            let Some(mut plan) = aimed::plan(mutation, seed, nursery) else {
                return;
            };
            plan.mutation = None;
            let failed = run(&plan, nursery, false).failed;
            assert_eq!(failed, None, "aimed at {mutation:?}, seed {seed}");
        }
    });
}
