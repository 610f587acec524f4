//! Seeded random runs of the simulator: a schedule is one cluster, its faults, and the peace after them.
//!
//! A few by default, which an unoptimised build can do in seconds; `GARDEN_FULL=1` runs 200 000 and asks that
//! they reach every rule and every fault; `GARDEN_LONG=1` runs 20 million. `SIM_RUNS=k` sets the number,
//! `SIM_FROM=n` the first, `SIM_SECONDS=s` a limit of time; `SIM_SEED=n` tells the story of one, and with
//! `SIM_SHRINK=1` that of the fewest faults with which it still fails; `SIM_BIRTH=1` runs only those whose faults
//! come while the cluster is being made.
#![allow(missing_docs, reason = "a test")]

extern crate garden_proto as proto;

mod sim;

use sim::coverage;
use sim::effort::{Effort, number, threads};
use sim::run::{Nursery, Plan, run, shrink};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A run allocates a few hundred thousand small pieces and frees them on the same thread.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Schedules of a run that must reach everything.
const FULL_RUNS: u64 = 200_000;

fn runs_of(effort: Effort) -> u64 {
    match effort {
        Effort::Quick => 400,
        Effort::Full => FULL_RUNS,
        Effort::Long => 100 * FULL_RUNS,
    }
}

/// After so many failures more of them say nothing new.
const FAILURES_MAX: usize = 40;

#[derive(Default)]
struct Total {
    runs: u64,
    repeated: u64,
    faults: u64,
    events: u64,
    promotions: u64,
    acks: u64,
    strict: u64,
    time: u64,
    reached: BTreeMap<&'static str, u64>,
    failures: BTreeMap<u64, String>,
}

impl Total {
    fn add(&mut self, more: Self) {
        self.runs += more.runs;
        self.repeated += more.repeated;
        self.faults += more.faults;
        self.events += more.events;
        self.promotions += more.promotions;
        self.acks += more.acks;
        self.strict += more.strict;
        self.time += more.time;
        for (what, count) in more.reached {
            *self.reached.entry(what).or_default() += count;
        }
        self.failures.extend(more.failures);
    }

    fn one(&mut self, seed: u64, nursery: &mut Nursery) {
        let plan = Plan::of_seed(seed);
        let outcome = run(&plan, nursery, false);
        if seed.is_multiple_of(100) {
            let again = run(&plan, nursery, false);
            let (first, second) = (outcome.story.trace, again.story.trace);
            assert_eq!(first, second, "seed {seed} is not repeatable");
            self.repeated += 1;
        }
        self.runs += 1;
        self.faults += plan.faults.len() as u64;
        self.events += outcome.events;
        self.promotions += u64::from(outcome.promotions);
        self.acks += outcome.acks;
        self.strict += outcome.strict_acks;
        self.time += outcome.time;
        outcome.story.add_to(&mut self.reached);
        if let Some(why) = outcome.failed {
            self.failures.insert(seed, why);
        }
    }
}

fn tell(seed: u64) {
    let mut nursery = Nursery::default();
    let mut plan = Plan::of_seed(seed);
    if number("SIM_SHRINK").is_some() {
        plan = shrink(&plan, &mut nursery);
    }
    println!("{plan:#?}");
    let outcome = run(&plan, &mut nursery, true);
    for line in &outcome.story.lines {
        println!("{line}");
    }
    println!("{:?}", outcome.failed);
    assert!(outcome.failed.is_none(), "seed {seed}");
}

fn work(next: &AtomicU64, end: u64, until: Option<Instant>, total: &Mutex<Total>) {
    let mut nursery = Nursery::default();
    let mut mine = Total::default();
    while mine.failures.len() < FAILURES_MAX && until.is_none_or(|until| Instant::now() < until) {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            break;
        }
        if number("SIM_BIRTH").is_some() && !Plan::of_seed(seed).birth {
            continue;
        }
        mine.one(seed, &mut nursery);
    }
    total.lock().expect("no thread panics").add(mine);
}

fn report(total: &Total, took: Duration) {
    let seconds = |ns: u64| ns as f64 / 1e9;
    println!(
        "{} schedules in {:.0} s on {} threads, {} of them twice: {} faults, {:.0} h of virtual time ({:.1} s \
         each), {} events, {} failovers, {} commits acknowledged, {} of them strictly",
        total.runs,
        took.as_secs_f64(),
        threads(),
        total.repeated,
        total.faults,
        seconds(total.time) / 3600.0,
        seconds(total.time) / total.runs.max(1) as f64,
        total.events,
        total.promotions,
        total.acks,
        total.strict
    );
    print!("{}", coverage::table(&total.reached));
}

#[test]
fn plans_that_failed_once_pass() {
    let mut nursery = Nursery::default();
    for (what, plan) in sim::kept::plans() {
        let outcome = run(&plan, &mut nursery, false);
        assert_eq!(outcome.failed, None, "{what}");
    }
}

#[test]
fn no_seed_breaks_a_promise() {
    if let Some(seed) = number("SIM_SEED") {
        return tell(seed);
    }
    let from = number("SIM_FROM").unwrap_or(0);
    let runs = number("SIM_RUNS").unwrap_or_else(|| runs_of(Effort::asked()));
    let began = Instant::now();
    let until = number("SIM_SECONDS").map(|s| began + Duration::from_secs(s));
    let next = AtomicU64::new(from);
    let total = Mutex::new(Total::default());
    std::thread::scope(|scope| {
        for _ in 0..threads() {
            scope.spawn(|| work(&next, from + runs, until, &total));
        }
    });
    let total = total.into_inner().expect("no thread panicked");
    report(&total, began.elapsed());
    for (seed, why) in total.failures.iter().take(30) {
        println!("seed {seed}: {why}");
    }
    if let Some((seed, why)) = total.failures.iter().next() {
        let plan = shrink(&Plan::of_seed(*seed), &mut Nursery::default());
        println!("fewest faults of seed {seed}: {:#?}", plan.faults);
        panic!(
            "{} seeds fail, the first is SIM_SEED={seed}: {why}",
            total.failures.len()
        );
    }
    let gaps = coverage::gaps(&total.reached);
    if total.runs >= FULL_RUNS {
        assert!(gaps.is_empty(), "{}", gaps.join("\n"));
    } else {
        let few = total.runs;
        println!(
            "a quick run of {few}: {} things not reached, which only GARDEN_FULL=1 asks for",
            gaps.len()
        );
    }
}
