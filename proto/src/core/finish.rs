//! Taking note of the end of a job, once.

use super::cx::Cx;
use super::decision::{Action, LogLevel, Wish, WishOutcome};
use super::job::{Failure, Finished, Job, JobEnd};
use super::rewind::RewindState;
use super::tenure::Lock;
use crate::dcs::PgRole;
use crate::wal::Lsn;
use std::time::Duration;

/// Wait after a failed start; doubled with each failure, up to the last value.
const START_BACKOFF: [Duration; 4] = [
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

pub(super) fn take_note(cx: &mut Cx) {
    let Some(finished) = &cx.o.finished else {
        return;
    };
    if cx.m.seen_job == Some(finished.id) {
        return;
    }
    cx.m.seen_job = Some(finished.id);
    cx.m.starting_since = None;
    if let JobEnd::Failed(failure) = &finished.end {
        let text = format!("{} failed: {}", finished.job.label(), failure);
        cx.log(LogLevel::Error, text);
    }
    let sets_source = matches!(
        finished.job,
        Job::Follow { .. }
            | Job::StartStandby { .. }
            | Job::Clone { .. }
            | Job::Reinitialize { .. }
    );
    cx.m.source_set |= sets_source && matches!(finished.end, JobEnd::Done | JobEnd::StillStarting);
    match &finished.job {
        Job::Bootstrap => bootstrap(cx, finished),
        Job::Clone { .. } | Job::Reinitialize { .. } => copied(cx, finished),
        Job::StartPrimary { .. } | Job::StartStandby { .. } => started(cx, finished),
        Job::Restart { wish, .. } => restarted(cx, finished, *wish),
        Job::Stop { .. } => stopped(cx, finished),
        Job::Promote { .. } => promoted(cx, finished),
        Job::CopySlots { .. } => copied_slots(cx, finished),
        Job::Rewind { .. } => rewound(cx, finished),
        Job::Follow { .. } => {
            cx.m.not_streaming_since = None;
            if finished.end != JobEnd::Done {
                cx.m.start_not_before = Some(cx.o.now + Duration::from_secs(1));
            }
        }
        Job::SetAside { .. } => set_aside(cx, finished),
        Job::CrashRecovery | Job::RemoveData => {}
    }
}

pub(super) fn callback(cx: &mut Cx, event: &str, role: PgRole) {
    cx.m.callback_called = true;
    let role = if role == PgRole::Promoted {
        PgRole::Primary
    } else {
        role
    };
    cx.push(Action::Callback {
        event: event.to_owned(),
        role: role.as_str().to_owned(),
    });
}

fn bootstrap(cx: &mut Cx, finished: &Finished) {
    cx.m.bootstrapping = false;
    match &finished.end {
        JobEnd::Done | JobEnd::StillStarting => {
            cx.m.bootstrapped = true;
            cx.m.was_running = true;
            cx.m.role = Some(PgRole::Primary);
            callback(cx, "on_start", PgRole::Primary);
        }
        JobEnd::Failed(failure) => {
            // `ha-behaviour.md` 12.4: give the key back so that another member can try, and end.
            let why = failure.to_string();
            give_claim_back(cx);
            cx.push(Action::Exit {
                code: 1,
                why: format!("failed to bootstrap cluster: {why}"),
            });
        }
        JobEnd::Cancelled | JobEnd::Stopped { .. } => give_claim_back(cx),
    }
}

/// A copy of the cluster that stands is what comes next.
fn set_aside(cx: &mut Cx, finished: &Finished) {
    match &finished.end {
        JobEnd::Failed(failure) => {
            // S2: what may still run must not outlive us.
            cx.push(Action::Fence);
            cx.push(Action::Exit {
                code: 1,
                why: format!("failed to set a bootstrap aside: {failure}"),
            });
        }
        JobEnd::Cancelled => {}
        JobEnd::Done | JobEnd::StillStarting | JobEnd::Stopped { .. } => {
            if std::mem::take(&mut cx.m.was_running) {
                callback(cx, "on_stop", cx.m.role.unwrap_or(PgRole::Primary));
            }
            cx.m.bootstrapped = false;
            cx.m.rewind = RewindState::Initial;
            cx.m.role = Some(PgRole::Uninitialized);
        }
    }
}

/// A claim without its session is gone by itself.
fn give_claim_back(cx: &mut Cx) {
    if let Some(session) = &cx.o.dcs.session {
        cx.push(Action::Write {
            task: super::observation::Task::Initialize,
            txn: super::txns::give_up_initialize(session),
        });
    }
}

fn copied(cx: &mut Cx, finished: &Finished) {
    if let Job::Reinitialize {
        wish: Some(wish), ..
    } = finished.job
    {
        cx.m.reinit_wish_done = Some(wish);
    }
    match finished.end {
        JobEnd::Done | JobEnd::StillStarting => {
            // The first member of a standby cluster: its keys are written next.
            cx.m.bootstrapped |= std::mem::take(&mut cx.m.bootstrapping);
            up(cx, PgRole::Replica);
            // A fresh copy of the leader is on the leader's branch.
            cx.m.rewind = RewindState::NotNeeded;
            callback(cx, "on_start", PgRole::Replica);
        }
        _ => back_off(cx),
    }
}

fn up(cx: &mut Cx, role: PgRole) {
    cx.m.was_running = true;
    cx.m.start_failed = false;
    cx.m.failed_starts = 0;
    cx.m.start_not_before = None;
    cx.m.not_streaming_since = None;
    cx.m.role = Some(role);
}

fn back_off(cx: &mut Cx) {
    let step = usize::try_from(cx.m.failed_starts)
        .unwrap_or(usize::MAX)
        .min(START_BACKOFF.len() - 1);
    let wait = START_BACKOFF
        .get(step)
        .copied()
        .unwrap_or(Duration::from_secs(10));
    cx.m.failed_starts = cx.m.failed_starts.saturating_add(1);
    cx.m.start_not_before = Some(cx.o.now + wait);
}

fn started(cx: &mut Cx, finished: &Finished) {
    let primary = matches!(finished.job, Job::StartPrimary { .. });
    match finished.end {
        JobEnd::Done | JobEnd::StillStarting => {
            let before = cx.m.role;
            let leads = matches!(cx.lock, Lock::Mine(_));
            let role = if primary {
                PgRole::Primary
            } else if leads && cx.s.cluster.standby_cluster.is_some() {
                PgRole::StandbyLeader
            } else {
                PgRole::Replica
            };
            up(cx, role);
            if primary && cx.s.cluster.is_synchronous() {
                // S9: a crash restart makes commits visible that no standby may have.
                cx.m.hold_until = Some(Lsn::NONE);
            }
            let changed = !primary && before.is_some_and(|b| b != role);
            callback(
                cx,
                if changed {
                    "on_role_change"
                } else {
                    "on_start"
                },
                role,
            );
        }
        JobEnd::Failed(_) => {
            cx.m.start_failed = true;
            cx.m.was_running = false;
            if cx.m.rewind == RewindState::Done {
                cx.m.rewind = RewindState::Check;
            }
            back_off(cx);
        }
        JobEnd::Cancelled | JobEnd::Stopped { .. } => cx.m.was_running = false,
    }
}

fn restarted(cx: &mut Cx, finished: &Finished, wish: Option<u64>) {
    if cx.m.role == Some(PgRole::Primary) && cx.s.cluster.is_synchronous() {
        // S9: commits that waited when it was stopped are visible after it.
        cx.m.hold_until = Some(Lsn::NONE);
    }
    let outcome = match &finished.end {
        JobEnd::Done => {
            let role = cx.m.role.unwrap_or(PgRole::Replica);
            up(cx, role);
            callback(cx, "on_restart", role);
            WishOutcome::Done
        }
        JobEnd::Cancelled => WishOutcome::Failed(String::from("postgres is still starting")),
        // It may come up yet, but not within the time that was asked for.
        JobEnd::StillStarting => WishOutcome::Failed(String::from("restart failed")),
        JobEnd::Failed(_) | JobEnd::Stopped { .. } => {
            cx.m.start_failed = true;
            cx.m.was_running = false;
            back_off(cx);
            WishOutcome::Failed(String::from("restart failed"))
        }
    };
    if let Some(id) = wish {
        cx.m.restart_wish_done = Some(id);
        cx.push(Action::Answer {
            wish: Wish::Restart(id),
            outcome,
        });
    }
}

fn copied_slots(cx: &mut Cx, finished: &Finished) {
    super::copies::pause(cx);
    match &finished.end {
        JobEnd::Done | JobEnd::StillStarting => up(cx, PgRole::Replica),
        // It was not stopped.
        _ if cx.alive() => {}
        end => {
            // As after any other start that failed; one that was cancelled is tried again at once.
            cx.m.was_running = false;
            if matches!(end, JobEnd::Failed(_)) {
                cx.m.start_failed = true;
                back_off(cx);
            }
        }
    }
}

fn stopped(cx: &mut Cx, finished: &Finished) {
    let JobEnd::Stopped { shutdown } = finished.end else {
        return;
    };
    cx.m.was_running = false;
    let was_primary = matches!(cx.m.role, Some(PgRole::Primary | PgRole::Promoted));
    if was_primary {
        cx.m.role = Some(PgRole::Demoted);
        cx.m.rewind = cx.m.rewind.request();
    }
    if let Some(handover) = &mut cx.m.handover {
        handover.shutdown = shutdown;
    }
    if let Some(down) = &mut cx.m.stepping_down {
        down.shutdown = shutdown;
    }
    let role = cx.m.role.unwrap_or(PgRole::Replica);
    callback(cx, "on_stop", role);
}

fn promoted(cx: &mut Cx, finished: &Finished) {
    match &finished.end {
        JobEnd::Done | JobEnd::StillStarting => {
            up(cx, PgRole::Primary);
            cx.m.failed_promotions = 0;
            cx.m.rewind = RewindState::Initial;
            cx.m.checkpointed = None;
            callback(cx, "on_role_change", PgRole::Primary);
        }
        JobEnd::Failed(Failure::PrePromote(_)) => {
            cx.m.not_leading_before = Some(cx.o.now + cx.s.cluster.timing.ttl());
        }
        JobEnd::Failed(_) | JobEnd::Cancelled | JobEnd::Stopped { .. } => {
            cx.m.failed_promotions = cx.m.failed_promotions.saturating_add(1);
            back_off(cx);
        }
    }
}

fn rewound(cx: &mut Cx, finished: &Finished) {
    match &finished.end {
        JobEnd::Done => cx.m.rewind = RewindState::Done,
        JobEnd::Failed(Failure::SourceUnavailable(_)) | JobEnd::Cancelled => {
            cx.m.rewind = RewindState::Check;
            cx.m.start_not_before = Some(cx.o.now + Duration::from_secs(1));
        }
        JobEnd::Failed(_) | JobEnd::StillStarting | JobEnd::Stopped { .. } => {
            cx.m.rewind = RewindState::Failed;
        }
    }
    cx.m.was_running = false;
}
