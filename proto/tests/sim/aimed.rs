//! Schedules that are aimed at one mistake: what must meet for it to do harm is written down, random times
//! within that do the rest. Without the mistake each of them must pass, like any other.

use super::clock::{MS, T};
use super::faults::{Fault, Kind};
use super::mutation::Mutation;
use super::run::{Nursery, Plan, Shape};

/// A plan in the making.
struct Aim<'r> {
    rng: &'r mut fastrand::Rng,
    faults: Vec<Fault>,
    /// The primary, and its standbys.
    p: usize,
    a: usize,
    b: usize,
}

/// From, and for how long, in milliseconds.
type Span = (u64, u64);

impl Aim<'_> {
    /// Some time in between, in milliseconds.
    fn ms(&mut self, from: u64, to: u64) -> u64 {
        self.rng.u64(from..to)
    }

    fn fault(&mut self, kind: Kind, node: usize, other: usize, span: Span, dice: u32) {
        let finer: T = self.rng.u64(0..MS);
        self.faults.push(Fault {
            kind,
            at: span.0 * MS + finer,
            lasts: span.1 * MS,
            node,
            other,
            dice,
            primary: false,
        });
    }

    fn on(&mut self, kind: Kind, node: usize, span: Span) {
        self.fault(kind, node, node, span, 0);
    }

    fn on_primary(&mut self, kind: Kind, span: Span, dice: u32) {
        self.fault(kind, self.p, self.a, span, dice);
        if let Some(last) = self.faults.last_mut() {
            last.primary = true;
        }
    }

    /// Both directions between two.
    fn cut(&mut self, kind: Kind, one: usize, other: usize, span: Span) {
        self.fault(kind, one, other, span, 0);
    }

    /// etcd takes up to so many milliseconds more, each way.
    fn slow_etcd(&mut self, span: Span, most: u64) {
        let most = u32::try_from(most).unwrap_or(u32::MAX);
        self.fault(Kind::EtcdSlow, 0, 0, span, most);
    }
}

const PLAIN: Shape = Shape {
    nodes: 3,
    sync: "off",
    strict: false,
    count: 1,
    native: true,
    quorum_failover: false,
    profile: "tuned",
    failsafe: false,
    start_timeout: 300,
    rewind: true,
    wipe: true,
    backoff: 0,
};

/// A long lease, so that a primary without its agent lives on for long.
const PATIENT: Shape = Shape {
    profile: "safe",
    ..PLAIN
};

const FENCED: Shape = Shape {
    sync: "quorum",
    quorum_failover: true,
    ..PATIENT
};

const FAILSAFE: Shape = Shape {
    failsafe: true,
    ..PATIENT
};

/// The answers of a renewal are late by seconds; then the agent stands still, which would stop PostgreSQL in
/// order before its deadline.
fn late_answer(aim: &mut Aim<'_>) {
    let (from, lasts) = (aim.ms(200, 700), aim.ms(2_500, 3_500));
    aim.fault(Kind::CutEtcd, aim.p, aim.p, (from, lasts), 2);
    let freeze = from + lasts + aim.ms(100, 1_300);
    aim.on(Kind::AgentFreeze, aim.p, (freeze, 12_000));
}

/// The agent of the primary stands still for longer than its lease.
fn frozen(aim: &mut Aim<'_>) {
    let from = aim.ms(200, 3_000);
    aim.on(Kind::AgentFreeze, aim.p, (from, 9_000));
}

/// The first leader writes the record and does not hear that it has: from then on `/leader` is on no lease.
fn switch_unheard(aim: &mut Aim<'_>) {
    let slow = aim.ms(800, 1_500);
    let most = aim.ms(100, 600);
    aim.slow_etcd((slow, 1_500), most);
    let hangs = slow + aim.ms(300, 1_500);
    aim.on_primary(Kind::LoopStall, (hangs, 26_500), 0);
}

/// No renewal arrives for a while, then one that is late.
fn late_renewal(aim: &mut Aim<'_>) {
    let (from, lasts) = (aim.ms(300, 700), aim.ms(1_400, 1_900));
    aim.fault(Kind::CutEtcd, aim.p, aim.p, (from, lasts), 1);
    let slow = (from + lasts - 100, aim.ms(500, 1_000));
    aim.slow_etcd(slow, 2_499);
}

/// A primary that is alone with its clients recovers from a crash.
fn alone_after_recovery(aim: &mut Aim<'_>) {
    let alone = aim.ms(200, 1_000);
    aim.fault(Kind::Isolate, aim.p, aim.p, (alone, 9_000), 1);
    let crash = alone + aim.ms(200, 1_500);
    aim.on(Kind::GuardianKilled, aim.p, (crash, 1_000));
}

/// Only etcd is away, and everybody promises the primary time.
fn etcd_alone(aim: &mut Aim<'_>) {
    let span = (aim.ms(300, 1_500), aim.ms(17_000, 25_000));
    aim.on(Kind::EtcdDown, 0, span);
}

/// The lock is let go of while claims take their time.
fn late_claims(aim: &mut Aim<'_>) {
    let most = aim.ms(600, 1_500);
    let slow = aim.ms(200, 900);
    aim.slow_etcd((slow, 9_000), most);
    aim.on(Kind::Shutdown, aim.p, (800, 15_000));
    let frozen = aim.ms(2_000, 4_800);
    aim.on_primary(Kind::AgentFreeze, (frozen, 6_000), 0);
}

/// One standby promises and withdraws, since the primary is back; the other, from which the primary is gone
/// by then, promises just when the first withdraws.
fn crossing(aim: &mut Aim<'_>) {
    let back = aim.ms(2_400, 2_800);
    let gone = back + aim.ms(150, 550);
    aim.on(Kind::AgentFreeze, aim.p, (100, back - 100));
    aim.on(Kind::AgentFreeze, aim.p, (gone, 10_000));
    let healed = aim.ms(4_000, 6_500);
    aim.cut(Kind::CutPg, aim.p, aim.b, (100, healed - 100));
    aim.cut(Kind::CutPg, aim.p, aim.a, (gone, 10_000));
    let most = aim.ms(500, 1_500);
    let slow = (aim.ms(4_300, 4_900), aim.ms(1_000, 2_500));
    aim.slow_etcd(slow, most);
}

/// The first attempt to publish a promise is lost, the second is under way for seconds; the third is there, and
/// withdrawn, before the second arrives.
fn late_promise(aim: &mut Aim<'_>) {
    let back = aim.ms(2_450, 2_800);
    aim.on(Kind::AgentFreeze, aim.p, (100, back - 100));
    aim.cut(Kind::CutPg, aim.p, aim.b, (100, 4_000));
    aim.fault(Kind::CutEtcd, aim.b, aim.b, (1_980, 470), 1);
    let slow = (aim.ms(4_350, 4_480), aim.ms(250, 400));
    aim.slow_etcd(slow, 2_499);
}

/// The standbys promise while the primary cannot be reached, and it can be again a moment later.
fn back_at_once(aim: &mut Aim<'_>) {
    aim.on(Kind::AgentFreeze, aim.p, (100, 9_000));
    let flap = aim.ms(1_700, 2_700);
    aim.on(Kind::FlapPg, aim.p, (100, flap));
}

/// The primary is there for one standby only.
fn out_of_sight(aim: &mut Aim<'_>) {
    let from = aim.ms(100, 1_500);
    aim.on(Kind::AgentFreeze, aim.p, (from, 6_000));
    aim.cut(Kind::CutPg, aim.p, aim.b, (from, 6_000));
}

/// A standby that receives nothing any more takes the place of the one that goes away, and is the only one
/// that is left.
fn lagging_successor(aim: &mut Aim<'_>) {
    aim.cut(Kind::CutPg, aim.p, aim.a, (300, 9_000));
    let gone = aim.ms(500, 1_500);
    // Its connections end in order, and it does not come back.
    aim.on(Kind::PgCrash, aim.b, (gone, 1_000));
    aim.on(Kind::PowerLoss, aim.b, (gone + 30, 9_000));
    let lost = gone + aim.ms(300, 2_500);
    aim.on(Kind::PowerLoss, aim.p, (lost, 9_000));
}

/// The new primary of a switchover is alone at once, with its clients.
fn alone_after_promotion(aim: &mut Aim<'_>) {
    aim.fault(Kind::SwitchoverTo, aim.p, aim.a, (500, 1_000), 0);
    let slow = aim.ms(600, 1_100);
    aim.on(Kind::SlowReload, aim.a, (slow, 6_000));
    let alone = slow + aim.ms(0, 300);
    aim.fault(Kind::Isolate, aim.a, aim.p, (alone, 9_000), 1);
}

/// A primary without etcd, whom one of its standbys cannot hear; agents that have just been started lead
/// nothing for `ttl`.
fn heard_by_one(aim: &mut Aim<'_>) {
    let from = aim.ms(300, 2_000);
    aim.on(Kind::CutEtcd, aim.p, (from, 28_000));
    aim.cut(Kind::CutAgents, aim.p, aim.b, (from, 28_000));
}

/// Everybody has promised a primary without etcd, and then hears no more of it.
fn promised_and_gone(aim: &mut Aim<'_>) {
    let from = aim.ms(300, 2_000);
    aim.on(Kind::CutEtcd, aim.p, (from, 28_000));
    let unheard = from + aim.ms(4_000, 10_000);
    aim.cut(Kind::CutAgents, aim.p, aim.a, (unheard, 28_000));
    aim.cut(Kind::CutAgents, aim.p, aim.b, (unheard, 28_000));
}

/// A copy that is cut short.
fn half_a_copy(aim: &mut Aim<'_>) {
    aim.on(Kind::Reinitialize, aim.a, (500, 1_000));
    let killed = aim.ms(550, 3_000);
    aim.on(Kind::AgentCrash, aim.a, (killed, 500));
}

/// A copy is asked for while the next primary is not one yet.
fn copy_of_a_standby(aim: &mut Aim<'_>) {
    aim.on(Kind::PowerLoss, aim.p, (500, 12_000));
    let asked = aim.ms(600, 4_500);
    aim.on(Kind::Reinitialize, aim.a, (asked, 1_000));
}

/// A primary that was deposed while it was away writes the key once more as soon as it is back.
fn late_key(aim: &mut Aim<'_>) {
    let (cut, away) = (aim.ms(800, 1_500), aim.ms(2_500, 3_200));
    aim.cut(Kind::CutPg, aim.a, aim.p, (cut, 3_300));
    let lasts = aim.ms(1_800, 2_400);
    aim.fault(Kind::Isolate, aim.p, aim.p, (away, lasts), 1);
}

/// Claims to make the cluster overtake each other.
fn slow_birth(aim: &mut Aim<'_>) {
    let most = aim.ms(300, 2_500);
    let from = aim.ms(0, 100);
    aim.slow_etcd((from, 8_000), most);
}

/// The agent of a standby that has promised is started again, and can reach the primary by then; the other
/// promises later.
fn restarted_voter(aim: &mut Aim<'_>) {
    aim.on(Kind::AgentFreeze, aim.p, (100, 10_000));
    let healed = aim.ms(2_300, 3_300);
    aim.cut(Kind::CutPg, aim.p, aim.b, (100, healed));
    let crash = aim.ms(2_200, 3_300);
    aim.on(Kind::AgentCrash, aim.b, (crash, 200));
    let gone = aim.ms(3_300, 4_500);
    aim.cut(Kind::CutPg, aim.p, aim.a, (gone, 10_000));
}

/// The old primary has more WAL than anybody, of a timeline that has ended. It is back, and named in the key
/// still, when its successor is lost.
fn longer_and_older(aim: &mut Aim<'_>) {
    let away = aim.ms(2_900, 3_300);
    aim.fault(Kind::Isolate, aim.p, aim.p, (100, away), 1);
    let down = (aim.ms(2_200, 2_600), aim.ms(100, 500));
    aim.on(Kind::PowerLoss, aim.p, down);
    let freeze = aim.ms(2_500, 3_100);
    aim.on_primary(Kind::AgentFreeze, (freeze, 12_000), 0);
    let lost = aim.ms(3_700, 4_600);
    aim.on_primary(Kind::PowerLoss, (lost, 10_000), 0);
}

/// A leader is promoted, nobody has its WAL, and it is gone: the next one is promoted from where it was.
fn unseen_timeline(aim: &mut Aim<'_>) {
    aim.on(Kind::PowerLoss, aim.p, (500, 20_000));
    aim.cut(Kind::CutPg, aim.a, aim.b, (500, 20_000));
    let lost = aim.ms(3_500, 7_000);
    aim.on_primary(Kind::PowerLoss, (lost, 12_000), 0);
}

/// A timeline that somebody has made by hand, out of everybody's sight, has the number of the next leader's.
fn unseen_by_hand(aim: &mut Aim<'_>) {
    let away = aim.ms(6_000, 9_000);
    aim.fault(Kind::Isolate, aim.b, aim.p, (300, away), 1);
    aim.on(Kind::PromotedByHand, aim.b, (500, 1_000));
    let lost = aim.ms(600, 1_500);
    aim.on(Kind::PowerLoss, aim.p, (lost, 12_000));
}

/// The loop hangs while a restart is under way that takes long: work that goes on without it.
fn restart_goes_on(aim: &mut Aim<'_>) {
    aim.on(Kind::SlowPostgres, aim.p, (100, 500));
    let asked = aim.ms(200, 400);
    aim.on_primary(Kind::Restart, (asked, 4_000), 0);
    let hangs = asked + aim.ms(120, 250);
    aim.on_primary(Kind::LoopStall, (hangs, 14_000), 0);
}

/// The machine of the primary stands still while the others cut it off and one of them leads, and goes on while its
/// lease still runs; etcd has been emptied meanwhile.
fn emptied_meanwhile(aim: &mut Aim<'_>) {
    let (from, lasts) = (aim.ms(200, 2_000), aim.ms(2_600, 5_000));
    aim.on(Kind::NodeFreeze, aim.p, (from, lasts));
    let back = from + lasts;
    let emptied = aim.ms(from + 2_300, back);
    aim.on(Kind::EtcdWiped, 0, (emptied, 1_000));
}

/// A standby is promoted by hand, and stopped; etcd is emptied, and whoever knew better is started again.
fn emptied_after_a_hand(aim: &mut Aim<'_>) {
    aim.on(Kind::PromotedByHand, aim.a, (300, 1_000));
    let emptied = aim.ms(900, 1_500);
    aim.on(Kind::EtcdWiped, 0, (emptied, 500));
    let lost = emptied + aim.ms(20, 200);
    aim.on(Kind::AgentCrash, aim.a, (lost, 500));
    aim.on(Kind::PowerLoss, aim.p, (lost, 3_000));
}

/// The old primary has WAL that nobody else got, and is back while its successor waits for standbys.
fn tail_of_the_old(aim: &mut Aim<'_>) {
    let cut = aim.ms(200, 600);
    let lost = cut + aim.ms(300, 900);
    let lasts = lost - cut + aim.ms(1, 200);
    aim.cut(Kind::CutPg, aim.p, aim.a, (cut, lasts));
    aim.cut(Kind::CutPg, aim.p, aim.b, (cut, lasts));
    aim.on(Kind::PgCrash, aim.p, (lost, 100));
    aim.cut(Kind::CutPg, aim.a, aim.b, (lost, 12_000));
}

type Family = fn(&mut Aim<'_>);

/// What is aimed at a mistake; the others are found by chance.
fn family(mutation: Mutation) -> Option<(Shape, bool, Family)> {
    let (shape, birth, family): (Shape, bool, Family) = match mutation {
        Mutation::DeadlineFromReply => (PATIENT, false, late_answer),
        Mutation::GuardianAbsent => (PLAIN, false, frozen),
        Mutation::KeepaliveTrusted => (PLAIN, true, switch_unheard),
        Mutation::StaleViewTrusted => (
            Shape {
                native: false,
                ..FAILSAFE
            },
            false,
            etcd_alone,
        ),
        Mutation::LeaderWithoutCompare => (
            Shape {
                native: false,
                ..PLAIN
            },
            false,
            late_claims,
        ),
        Mutation::RenewWithoutCompare => (PLAIN, false, late_renewal),
        Mutation::HoldBackIgnored => (FENCED, false, alone_after_recovery),
        Mutation::FenceNotCompared
        | Mutation::WithdrawWithoutCompare
        | Mutation::WithdrawDiskFirst => (FENCED, false, crossing),
        Mutation::PromiseWithoutCompare => (FENCED, false, late_promise),
        Mutation::PromiseForgotten => (FENCED, false, restarted_voter),
        Mutation::SyncWithoutCompare => (FENCED, false, late_key),
        Mutation::InitializeWithoutCompare => (PLAIN, true, slow_birth),
        Mutation::LsnOrderOnly => (
            // Else it is on the right timeline again by then.
            Shape {
                rewind: false,
                wipe: false,
                ..FENCED
            },
            false,
            longer_and_older,
        ),
        Mutation::TimelineWithoutCompare => (PLAIN, false, unseen_timeline),
        Mutation::TimelineNumberOnly => (PLAIN, false, unseen_by_hand),
        Mutation::StartUnbounded => (PLAIN, false, restart_goes_on),
        Mutation::EpochUntold => (FENCED, false, emptied_meanwhile),
        Mutation::HandPromotionTrusted => (
            Shape {
                rewind: false,
                wipe: false,
                ..FENCED
            },
            false,
            emptied_after_a_hand,
        ),
        Mutation::ConnectedUncompared => (
            Shape {
                start_timeout: 0,
                ..FENCED
            },
            false,
            tail_of_the_old,
        ),
        Mutation::QuorumOneShort => (FENCED, false, out_of_sight),
        Mutation::StreamNotCut => (FENCED, false, back_at_once),
        Mutation::NamesUnproved => (
            Shape {
                sync: "on",
                ..PLAIN
            },
            false,
            lagging_successor,
        ),
        Mutation::NamesEmptyAtPromotion => (
            Shape {
                sync: "quorum",
                ..PLAIN
            },
            false,
            alone_after_promotion,
        ),
        Mutation::FailsafeMajority => (FAILSAFE, false, heard_by_one),
        Mutation::FailsafeForgotten => (FAILSAFE, false, promised_and_gone),
        Mutation::UnfinishedHidden => (PLAIN, false, half_a_copy),
        Mutation::WipeUnchecked => (PLAIN, false, copy_of_a_standby),
        _ => return None,
    };
    Some((shape, birth, family))
}

/// Whether there are schedules that are aimed at it.
pub fn is_at(mutation: Mutation) -> bool {
    family(mutation).is_some()
}

/// A plan that is aimed at this mistake, if there are such.
pub fn plan(mutation: Mutation, seed: u64, nursery: &mut Nursery) -> Option<Plan> {
    let (shape, birth, family) = family(mutation)?;
    let mut rng = fastrand::Rng::with_seed(seed ^ 0xa1_3ed);
    let p = if birth { 0 } else { nursery.primary(&shape) };
    let mut standbys: Vec<usize> = (0..shape.nodes).filter(|n| *n != p).collect();
    rng.shuffle(&mut standbys);
    let mut aim = Aim {
        rng: &mut rng,
        faults: Vec::new(),
        p,
        a: standbys.first().copied().unwrap_or(p),
        b: standbys.get(1).copied().unwrap_or(p),
    };
    family(&mut aim);
    Some(Plan {
        seed,
        faults: aim.faults,
        shape,
        birth,
        mutation: Some(mutation),
    })
}
