//! PostgreSQL is not running, and no process of it is left (`ha-behaviour.md` 9.2).

use super::cx::Cx;
use super::decision::{Action, Wish, WishOutcome};
use super::job::{Job, StopReason, Upstream};
use super::leave;
use super::observation::{ControlState, Process};
use super::reason::Reason;
use super::rewind::RewindState;
use super::tenure::{Lock, Tenure};
use super::{follow, handover, lead};
use crate::dcs::PgRole;
use crate::ids::MemberName;
use std::time::Duration;

/// After so many failed starts a leader steps aside (`safety.md` 6: "3 starts, step aside, never wipe").
const STARTS_BEFORE_STEPPING_ASIDE: u32 = 3;

pub(super) fn decide(cx: &mut Cx) -> Reason {
    if cx.m.role.is_none() {
        // First look of this agent. Without a signal file it may have been a primary, and comes up in
        // recovery first (`ha-behaviour.md` 2.1).
        let replica = cx.o.postgres.signal_file;
        cx.m.role = Some(if replica {
            PgRole::Replica
        } else {
            PgRole::Demoted
        });
        cx.m.rewind = cx.m.rewind.request();
        cx.m.last_primary = !replica;
    }
    if cx.o.guardian.armed.is_some() && !matches!(cx.lock, Lock::Mine(_)) {
        cx.push(Action::Disarm);
    }
    if cx.paused() {
        return paused(cx);
    }
    match cx.lock.clone() {
        Lock::Mine(tenure) => leader_down(cx, tenure),
        Lock::Other(leader) => {
            cx.m.handover = None;
            rejoin(cx, &leader)
        }
        Lock::Free => nobody_leads(cx),
        Lock::Inherited => lead::inherit(cx),
        Lock::Unknown(_) => start_alone(cx),
    }
}

fn paused(cx: &mut Cx) -> Reason {
    if let Lock::Mine(tenure) = cx.lock {
        // What we stopped ourselves to hand over is handed over, or started again, as without a pause.
        let by_us = cx.o.finished.as_ref().is_some_and(|finished| {
            matches!(
                finished.job,
                Job::Stop {
                    why: StopReason::Switchover | StopReason::ManualFailover,
                    ..
                }
            )
        });
        return if by_us {
            leader_down(cx, tenure)
        } else {
            leave::begin(cx, None, Reason::ReleasedInPause)
        };
    }
    if let Some(reason) = restart_wish(cx) {
        return reason;
    }
    if let Lock::Other(leader) = cx.lock.clone() {
        if let Some(reason) = follow::reinit_wish(cx, &leader) {
            return reason;
        }
        // The only PostgreSQL that is started in pause without having been asked: the one that we
        // stopped ourselves, for a switchover or for a rewind (`ha-behaviour.md` 14).
        let demoted = cx.m.role == Some(PgRole::Demoted) && cx.m.seen_job.is_some();
        let rewinds = matches!(cx.m.rewind, RewindState::Need | RewindState::Done);
        if demoted || rewinds {
            return rejoin(cx, &leader);
        }
    }
    Reason::PausedDown
}

/// A PostgreSQL that is down in pause is started when an operator says so, in the role that it had. Not
/// as a primary beside another leader, or beside who may take the free lock at any moment because a request
/// names it: nobody would stop either of them before the pause ends (S2, S3).
fn restart_wish(cx: &mut Cx) -> Option<Reason> {
    let wish = cx.o.wishes.restart.as_ref()?;
    if cx.m.restart_wish_done == Some(wish.id) {
        return None;
    }
    // Another source than before is told to it when it runs and was compared (S3).
    let follow = cx.o.postgres.conf.upstream.clone();
    let request = cx.view().and_then(|view| view.failover.as_ref());
    let promised = request.is_some_and(|request| request.scheduled_at.is_none());
    if cx.o.postgres.signal_file || (cx.lock == Lock::Free && !promised) {
        return lead::restart_now(cx, follow);
    }
    let id = wish.id;
    cx.m.restart_wish_done = Some(id);
    cx.push(Action::Answer {
        wish: Wish::Restart(id),
        outcome: WishOutcome::Refused(
            "it would start as a primary while another member may lead; resume first".into(),
        ),
    });
    None
}

fn too_early(cx: &mut Cx) -> Option<Reason> {
    let at = cx.m.start_not_before.filter(|at| cx.o.now < *at)?;
    cx.wake(at);
    Some(Reason::StartBackoff {
        failed: cx.m.failed_starts,
    })
}

fn leader_down(cx: &mut Cx, tenure: Tenure) -> Reason {
    match &cx.m.handover {
        Some(handover) if handover.stop_ordered.is_some() => return handover::after_stop(cx),
        // It crashed before we stopped it: recovery comes first, the request can wait.
        _ => cx.m.handover = None,
    }
    if cx.m.failed_starts >= STARTS_BEFORE_STEPPING_ASIDE {
        return leave::begin(cx, None, Reason::ReleasedForStart);
    }
    let limit = cx.s.cluster.primary_start_timeout;
    if hands_over_after_crash(cx) {
        match lead::takeover_candidate(cx) {
            lead::Takeover::Asking => return Reason::AskPeers,
            lead::Takeover::By(candidate) => {
                let reason = Reason::CrashFailover {
                    candidate: candidate.to_string(),
                };
                return leave::begin(cx, None, reason);
            }
            lead::Takeover::Nobody => {}
        }
    }
    if let Some(reason) = too_early(cx) {
        return reason;
    }
    // What is started now is stopped again at once (`decide::lease_runs_out`), over and over.
    if cx.o.now >= tenure.soft_deadline && !cx.paused() {
        cx.wake(tenure.deadline);
        return Reason::LeaseSpent;
    }
    let state =
        cx.o.postgres
            .control
            .as_ref()
            .map(|c| c.state)
            .unwrap_or_default();
    let was_primary = matches!(
        state,
        ControlState::InProduction
            | ControlState::InCrashRecovery
            | ControlState::ShuttingDown
            | ControlState::ShutDown
    );
    let in_place = was_primary
        && !cx.o.postgres.signal_file
        && matches!(cx.m.role, Some(PgRole::Primary | PgRole::Promoted));
    if let Some(remote) = &cx.s.cluster.standby_cluster {
        let follow = follow::remote(remote);
        cx.start(Job::StartStandby {
            follow,
            timeout: start_limit(limit),
        });
        return Reason::StartStandby {
            leader: "the remote primary".into(),
        };
    }
    if !in_place {
        cx.start(Job::StartStandby {
            follow: Upstream::None,
            timeout: start_limit(limit),
        });
        return Reason::StartForPromotion;
    }
    // S2: the deadline stands before the server can be writable again.
    if !lead::armed(cx, &tenure) {
        return Reason::ArmFirst;
    }
    if let Some(names) = lead::names_for_start(cx)
        && !cx.configured(Some(names), true)
    {
        return Reason::PreparePromotion {
            what: "synchronous standby names".into(),
        };
    }
    cx.start(Job::StartPrimary {
        timeout: start_limit(limit),
    });
    Reason::RecoverPrimary
}

/// `safety.md` 3: without a wait for others to see the lease run out, a ready synchronous standby is
/// writable again before crash recovery here could be over. Only once: if nobody takes the lock, or
/// somebody has chosen how long to try, PostgreSQL is started in place.
fn hands_over_after_crash(cx: &Cx) -> bool {
    let cluster = &cx.s.cluster;
    let crashed = matches!(cx.m.role, Some(PgRole::Primary | PgRole::Promoted));
    let fast = crashed
        && cluster.is_synchronous()
        && !cluster.primary_start_timeout_chosen
        && leave::native(cx);
    cluster.primary_start_timeout.is_zero() || fast
}

pub(super) fn start_limit(configured: Duration) -> Duration {
    if configured.is_zero() {
        Duration::from_secs(300)
    } else {
        configured
    }
}

/// Somebody else leads: come back as its standby, on its branch.
fn rejoin(cx: &mut Cx, leader: &MemberName) -> Reason {
    if let Some(view) = cx.view() {
        cx.m.note_locked(cx.o.now, view, leader);
    }
    cx.m.last_primary = false;
    cx.m.led = None;
    if let Some(reason) = follow::reinit_wish(cx, leader) {
        return reason;
    }
    let target = follow::target(cx, leader);
    if cx.m.rewind == RewindState::Initial && cx.o.postgres.conf.upstream != target {
        cx.m.rewind = RewindState::Check;
    }
    if let Some(reason) = follow::on_the_right_branch(cx, leader) {
        return reason;
    }
    if let Some(reason) = too_early(cx) {
        return reason;
    }
    // S3: what cannot be told yet is compared before it streams.
    let unsettled = cx.m.rewind == RewindState::Check && cx.s.cluster.standby_cluster.is_none();
    let target = if unsettled { Upstream::None } else { target };
    cx.start(Job::StartStandby {
        follow: target,
        timeout: start_limit(cx.s.cluster.primary_start_timeout),
    });
    Reason::StartStandby {
        leader: leader.to_string(),
    }
}

/// Nobody leads: come up in recovery, so that our position can be compared with the others'.
fn nobody_leads(cx: &mut Cx) -> Reason {
    // A planned hand-over is under way: the candidate has a moment to take the lock before we spend
    // time on a start without a leader.
    if cx.m.handover.is_some()
        && cx
            .m
            .free_since
            .is_none_or(|since| cx.o.now.since(since) < GRACE)
    {
        cx.m.free_since.get_or_insert(cx.o.now);
        cx.wake_in(Duration::from_millis(200));
        return Reason::WaitSuccessor;
    }
    cx.m.handover = None;
    start_alone(cx)
}

/// How long an old leader waits, stopped, for its successor to appear.
const GRACE: Duration = Duration::from_secs(3);

fn start_alone(cx: &mut Cx) -> Reason {
    if let Some(reason) = too_early(cx) {
        return reason;
    }
    if cx.o.postgres.process != Process::Gone {
        return Reason::Orphans;
    }
    let follow = match &cx.s.cluster.standby_cluster {
        Some(remote) => follow::remote(remote),
        None => Upstream::None,
    };
    // What was rewound takes connections only when it has replayed up to where its source was (PostgreSQL
    // documentation, pg_rewind, "How It Works"): alone it would be starting until the limit of the job.
    if cx.m.rewind == RewindState::Done && follow == Upstream::None {
        cx.wake_in(Duration::from_secs(1));
        return Reason::WaitSource;
    }
    cx.start(Job::StartStandby {
        follow,
        timeout: start_limit(cx.s.cluster.primary_start_timeout),
    });
    Reason::StartAlone
}
