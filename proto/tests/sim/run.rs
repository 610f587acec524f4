//! One seed, one run: a cluster that is already healthy, faults, then peace, in which it must become
//! healthy again.

use super::clock::{SEC, T, nanos};
use super::faults::{Fault, Kind};
use super::mutation::Mutation;
use super::story::Story;
use super::world::World;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// What kind of cluster a seed gets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shape {
    pub nodes: usize,
    pub sync: &'static str,
    pub strict: bool,
    pub count: u32,
    pub native: bool,
    pub quorum_failover: bool,
    pub profile: &'static str,
    pub failsafe: bool,
    pub start_timeout: u32,
    pub rewind: bool,
    /// Whether a member may throw diverged data away by itself.
    pub wipe: bool,
    /// `primary_race_backoff` in seconds.
    pub backoff: u32,
}

impl Shape {
    pub fn random(rng: &mut fastrand::Rng) -> Self {
        let nodes = [3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 2, 2, 2, 2, 5, 1][rng.usize(0..20)];
        let sync = match nodes {
            1 => "off",
            _ => ["off", "on", "quorum", "quorum"][rng.usize(0..4)],
        };
        Self {
            nodes,
            sync,
            strict: sync != "off" && rng.u32(0..3) == 0,
            count: 1 + u32::from(nodes > 2 && rng.u32(0..4) == 0),
            native: rng.u32(0..5) > 0,
            quorum_failover: rng.u32(0..4) > 0,
            profile: ["tuned", "tuned", "fast", "safe"][rng.usize(0..4)],
            failsafe: rng.u32(0..8) == 0,
            start_timeout: [300, 300, 0][rng.usize(0..3)],
            rewind: rng.u32(0..6) > 0,
            wipe: rng.u32(0..10) > 0,
            backoff: if rng.u32(0..20) == 0 { 6 } else { 0 },
        }
    }

    pub fn document(&self) -> Map<String, Value> {
        let mode = match self.sync {
            "on" => json!(true),
            "quorum" => json!("quorum"),
            _ => json!(false),
        };
        let doc = json!({
            "ttl": 20,
            "loop_wait": 5,
            "retry_timeout": 5,
            "synchronous_mode": mode,
            "synchronous_mode_strict": self.strict,
            "synchronous_node_count": self.count,
            "primary_start_timeout": self.start_timeout,
            "failsafe_mode": self.failsafe,
            "primary_race_backoff": self.backoff,
            "postgresql": {"use_slots": false},
            "garden": {
                "profile": self.profile,
                "record_lease": self.native,
                "quorum_failover": self.quorum_failover,
            },
        });
        doc.as_object().cloned().unwrap_or_default()
    }
}

/// A run as it is asked for.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub shape: Shape,
    pub faults: Vec<Fault>,
    /// The faults come while the cluster is being made.
    pub birth: bool,
    pub mutation: Option<Mutation>,
}

/// A run as it ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    pub failed: Option<String>,
    pub story: Story,
    pub promotions: u32,
    pub events: u64,
    pub acks: u64,
    pub strict_acks: u64,
    pub time: T,
}

impl Plan {
    /// Swarm: each seed mixes a few kinds of faults, so that rare pairs meet.
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5eed);
        let shape = Shape::random(&mut rng);
        let birth = rng.u32(0..40) == 0;
        Self::among(Kind::ALL, shape, birth, seed, &mut rng)
    }

    /// Faults of these kinds only.
    pub fn among(
        kinds: &[Kind],
        shape: Shape,
        birth: bool,
        seed: u64,
        rng: &mut fastrand::Rng,
    ) -> Self {
        let mut kinds: Vec<Kind> = kinds.to_vec();
        kinds.retain(|kind| fits(*kind, &shape) && (!birth || may_meet_a_birth(*kind)));
        rng.shuffle(&mut kinds);
        kinds.truncate(rng.usize(1..6));
        let count = match rng.usize(0..18) {
            0 => 0,
            roll => [1, 1, 1, 1, 2, 2, 2, 3, 3, 4, 4, 6][roll % 12],
        };
        let window = match (birth, count) {
            (true, _) => 4 * SEC,
            (false, 0 | 1) => SEC,
            (false, _) => rng.u64(1..10) * SEC,
        };
        let faults = (0..count)
            .map(|_| {
                let kind = kinds[rng.usize(0..kinds.len())];
                Fault::random(rng, kind, shape.nodes, window)
            })
            .collect();
        Self {
            seed,
            shape,
            faults,
            birth,
            mutation: None,
        }
    }

    fn has(&self, kind: Kind) -> bool {
        self.faults.iter().any(|fault| fault.kind == kind)
    }
}

/// Faults that break what this kind of cluster does not promise are left out.
fn fits(kind: Kind, shape: &Shape) -> bool {
    match kind {
        // A compatible lease cannot outlive what etcd does to it.
        Kind::LeaseRevoked | Kind::LeaderDeleted => shape.native,
        Kind::RecordDeleted | Kind::RecordGarbled => shape.native,
        Kind::Switchover | Kind::SwitchoverTo | Kind::Failover => shape.nodes > 1,
        Kind::CutAgents | Kind::CutPg | Kind::FlapPg | Kind::SlowPg => shape.nodes > 1,
        Kind::NodeCount => shape.nodes > 2 && shape.sync != "off",
        _ => true,
    }
}

/// What people and etcd do to a cluster that stands is left out while it is being made.
fn may_meet_a_birth(kind: Kind) -> bool {
    !matches!(
        kind,
        Kind::EtcdWiped
            | Kind::RecordDeleted
            | Kind::LeaderDeleted
            | Kind::RecordGarbled
            | Kind::OtherSystem
            | Kind::PromotedByHand
            | Kind::Reinitialize
            | Kind::Pause
            | Kind::NodeCount
            | Kind::DataHidden
    )
}

/// Healthy clusters, one of each shape, made once.
#[derive(Default)]
pub struct Nursery {
    healthy: BTreeMap<Shape, World>,
}

impl Nursery {
    /// Who leads in a cluster of this shape.
    pub fn primary(&mut self, shape: &Shape) -> usize {
        let world = self.cluster(shape);
        world.ok().and_then(|world| world.primary()).unwrap_or(0)
    }

    pub fn cluster(&mut self, shape: &Shape) -> Result<World, String> {
        // What is in no member's way to health is set afterwards.
        let plain = Shape {
            rewind: true,
            wipe: true,
            ..shape.clone()
        };
        let mut world = match self.healthy.get(&plain) {
            Some(world) => world.clone(),
            None => {
                let world = grow(&plain, 1, false).map_err(|w| w.failed.unwrap_or_default())?;
                self.healthy.insert(plain, world.clone());
                world
            }
        };
        world.may_repair(shape.rewind, shape.wipe);
        Ok(world)
    }
}

/// A cluster from nothing to health.
pub fn grow(shape: &Shape, seed: u64, told: bool) -> Result<World, Box<World>> {
    let mut world = World::new(seed, shape.nodes, shape.document());
    world.story.told = told;
    world.may_repair(shape.rewind, shape.wipe);
    let end = 90 * SEC;
    while world.failed.is_none() {
        world.run_for(SEC);
        match world.unsettled() {
            None => {
                world.run_for(3 * SEC);
                if world.failed.is_none() && world.unsettled().is_none() {
                    return Ok(world);
                }
            }
            Some(why) if world.now >= end => world.fail(format!("L0: not healthy: {why}")),
            Some(_) => {}
        }
    }
    Err(Box::new(world))
}

/// Runs a plan. A panic, of the core or of the simulator, is a failure like others.
pub fn run(plan: &Plan, nursery: &mut Nursery, told: bool) -> Outcome {
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        run_plan(plan, nursery, told)
    }));
    caught.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|s| (*s).to_owned()));
        Outcome {
            failed: Some(format!("panic: {}", text.unwrap_or_default())),
            story: Story::default(),
            promotions: 0,
            events: 0,
            acks: 0,
            strict_acks: 0,
            time: 0,
        }
    })
}

fn run_plan(plan: &Plan, nursery: &mut Nursery, told: bool) -> Outcome {
    let mut world = match prepare(plan, nursery, told) {
        Ok(world) => world,
        Err((world, failed)) => return outcome(*world, Some(failed)),
    };
    world.rng = fastrand::Rng::with_seed(plan.seed);
    world.mutation = plan.mutation;
    world.story = Story {
        told,
        ..Story::default()
    };
    world.promotions = 0;
    world.plan_faults(&plan.faults);
    let began = world.now;
    let ends = plan.faults.iter().map(|f| f.at + f.lasts);
    world.run_for(ends.max().unwrap_or(0).min(30 * SEC) + SEC);
    promised_time(&mut world, plan);
    if world.failed.is_none() {
        world.heal();
        settle(&mut world, plan);
    }
    let time = world.now - began;
    let mut outcome = outcome(world, None);
    outcome.time = time;
    outcome
}

/// A cluster that is healthy already, or one that is not there yet.
fn prepare(plan: &Plan, nursery: &mut Nursery, told: bool) -> Result<World, (Box<World>, String)> {
    if plan.birth {
        let mut world = World::new(plan.seed, plan.shape.nodes, plan.shape.document());
        world.may_repair(plan.shape.rewind, plan.shape.wipe);
        return Ok(world);
    }
    nursery.cluster(&plan.shape).map_err(|why| {
        let failed = format!("{:?} does not come up: {why}", plan.shape);
        let world = grow(&plan.shape, 1, told).map_or_else(|world| world, Box::new);
        (world, failed)
    })
}

fn outcome(world: World, failed: Option<String>) -> Outcome {
    Outcome {
        failed: world.failed.or(failed),
        promotions: world.promotions,
        events: world.events,
        acks: world.checks.acks,
        strict_acks: world.checks.strict_acks,
        time: world.now,
        story: world.story,
    }
}

/// How long this plan may take to a primary, beyond what any failover takes.
fn more_patience(world: &World, plan: &Plan) -> T {
    let ttl = nanos(world.config.timing.ttl());
    // A refused member stands aside for that long, a cluster has to be made first, others wait for a race.
    let refused = if plan.has(Kind::PromotionRefused) {
        ttl
    } else {
        0
    };
    let failing = if plan.has(Kind::JobFails) {
        10 * SEC
    } else {
        0
    };
    let birth = if plan.birth { 40 * SEC } else { 0 };
    refused + failing + birth + 2 * u64::from(plan.shape.backoff) * SEC
}

/// Failsafe mode is for an etcd that is away: while every member promises the primary time, nothing happens.
fn promised_time(world: &mut World, plan: &Plan) {
    let away = |f: &Fault| matches!(f.kind, Kind::EtcdDown | Kind::EtcdLeaderChange);
    let alone = !plan.faults.is_empty() && plan.faults.iter().all(away);
    if plan.shape.failsafe && alone && !plan.birth && world.leader_lost() {
        world.fail(
            "L5: etcd was away, and the primary went although everybody had promised it time",
        );
    }
}

/// L1 and L2 after the faults have ended, and L7.
fn settle(world: &mut World, plan: &Plan) {
    let healed = world.now;
    let wiped = plan.has(Kind::EtcdWiped);
    // After a loss of etcd the last primary waits for leases of the lost one, or an operator decides.
    let quarantine = if wiped {
        nanos(world.config.timing.ttl()) + 5 * SEC
    } else {
        0
    };
    // Nor does anybody lead by himself in a cluster whose keys were lost before they were there.
    let looks = if plan.birth {
        nanos(world.config.timing.ttl()) + 5 * SEC
    } else {
        quarantine
    };
    let nameless = wiped || plan.birth;
    let first = world.patience() + more_patience(world, plan) + 2 * quarantine;
    let all = first + 45 * SEC;
    let mut leader_since = None;
    while world.failed.is_none() {
        world.run_for(SEC);
        let took = world.now - healed;
        let leader = world.leader();
        if leader.is_ok() {
            leader_since.get_or_insert(took);
        }
        if nameless && leader_since.is_none() && took > looks && took < looks + 2 * SEC {
            world.operator_names_the_best();
        }
        if wiped && took > 5 * SEC {
            world.operator_changes_again();
        }
        if took > 5 * SEC {
            world.operator_copies_anew(took > 15 * SEC);
        }
        if let (Err(why), None) = (&leader, leader_since)
            && took > first
        {
            return world.fail(format!("L1: no primary after {} s: {why}", took / SEC));
        }
        match world.unsettled() {
            None => break,
            Some(_) if world.checks.twins => break,
            Some(why) if took > all => {
                return world.fail(format!("L2: not healthy after {} s: {why}", took / SEC));
            }
            Some(_) => {}
        }
    }
    count_failovers(world, plan);
}

/// L7: none in quiet, and no more than the faults can excuse.
fn count_failovers(world: &mut World, plan: &Plan) {
    let quiet = plan.faults.is_empty();
    if quiet {
        world.run_for(8 * SEC);
    }
    if world.failed.is_some() {
        return;
    }
    if quiet && world.promotions > 0 {
        world.fail("L7: a failover without a fault");
    }
    // A fault that lasts may cost one failover for each W (`safety.md` 6, flapping links).
    let wait = world.takeover_wait();
    let most: u64 = plan.faults.iter().map(|f| 2 + f.lasts / wait).sum();
    if u64::from(world.promotions) > most {
        let faults = plan.faults.len();
        world.fail(format!(
            "L7: {} failovers after {faults} faults",
            world.promotions
        ));
    }
}

/// The fewest faults with which the same kind of failure is still there (delta debugging, one at a
/// time and in halves).
pub fn shrink(plan: &Plan, nursery: &mut Nursery) -> Plan {
    let kind = |o: &Outcome| {
        o.failed
            .as_ref()
            .map(|f| f.split(':').next().unwrap_or("").to_owned())
    };
    let wanted = kind(&run(plan, nursery, false));
    let mut best = plan.clone();
    let mut again = wanted.is_some();
    while again {
        again = false;
        for index in 0..best.faults.len() {
            let mut fewer = best.clone();
            fewer.faults.remove(index);
            if kind(&run(&fewer, nursery, false)) == wanted {
                best = fewer;
                again = true;
                break;
            }
        }
    }
    best
}
