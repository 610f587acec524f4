//! Giving leadership up, and ending the agent.

use super::cx::Cx;
use super::decision::{Action, LogLevel};
use super::job::{Job, StopMode, StopReason};
use super::memory::SteppingDown;
use super::observation::{Process, RunningJob, Task};
use super::reason::Reason;
use super::tenure::{self, Lock};
use super::txns;
use crate::dcs::RecordState;
use crate::wal::{Lsn, Timeline};
use std::time::Duration;

/// How long a standby asks to be let out of synchronous duty before it stops anyway
/// (`ha-behaviour.md` 16.5 allows twice `loop_wait`; commits hang no longer than this).
const LEAVE_SYNC_LIMIT: Duration = Duration::from_secs(4);

/// Begins to give the lock up. From here on we do not take it back before the key is gone, even if
/// the first attempt to release it fails (D6 of `dcs-layout.md` 15).
pub(super) fn begin(cx: &mut Cx, shutdown: Option<(Timeline, Lsn)>, reason: Reason) -> Reason {
    cx.m.stepping_down = Some(SteppingDown {
        since: cx.o.now,
        shutdown,
    });
    let _ = step_down(cx);
    reason
}

/// Goes on giving the lock up until it is not ours any more.
pub(super) fn step_down(cx: &mut Cx) -> Reason {
    cx.keep_leading = false;
    let Some(down) = cx.m.stepping_down else {
        return Reason::Releasing;
    };
    if matches!(cx.lock, Lock::Other(_) | Lock::Free) {
        cx.m.stepping_down = None;
        cx.wake_in(Duration::from_millis(1));
        return Reason::Releasing;
    }
    let paused_standby = cx.paused() && !cx.is_primary();
    let harmless = match cx.o.postgres.process {
        Process::Gone => true,
        Process::Alive { .. } => {
            paused_standby || cx.sample().is_some_and(|sample| sample.in_recovery)
        }
        Process::Unknown | Process::Orphans => false,
    };
    if !harmless && cx.paused() {
        // S10 and S13: nothing that may write is let go of, and in pause nothing is stopped.
        cx.m.stepping_down = None;
        cx.wake_in(Duration::from_millis(1));
        return Reason::Releasing;
    }
    if !harmless {
        // S10: PostgreSQL goes first, the key after.
        if cx.o.job.is_none() && cx.alive() {
            let timeout = cx.tenure().map(|t| cx.o.now.until(t.deadline));
            cx.start(Job::Stop {
                mode: StopMode::Fast,
                checkpoint_first: false,
                timeout,
                why: StopReason::LostLock,
            });
        }
        return Reason::Releasing;
    }
    release(cx, down.shutdown);
    Reason::Releasing
}

/// In pause a primary whose cluster has another identifier in etcd goes on, and leads no more (`ha-behaviour.md` 3.3):
/// `/leader` goes, and nobody is sent here. The record stays held, since the server may write (S10): after the pause
/// it stands still for as long as a lease before anybody takes over (S3, S13).
pub(super) fn stand_back(cx: &mut Cx, reason: Reason) -> Reason {
    cx.keep_leading = false;
    let view = cx.view().filter(|_| cx.o.dcs.confirmed);
    if let Some(txn) = view.and_then(|view| txns::leave_leader_key(view, cx.s)) {
        cx.write(Task::Lock, txn);
    }
    cx.lock = Lock::Inherited;
    reason
}

/// Orders the release once nothing of ours is writable.
pub(super) fn release(cx: &mut Cx, shutdown: Option<(Timeline, Lsn)>) {
    let Some(view) = cx.view().filter(|_| cx.o.dcs.confirmed) else {
        return;
    };
    let ours = view.leader_name() == Some(&cx.s.me)
        || view
            .record
            .as_ref()
            .is_some_and(|e| e.record.owner == cx.s.me && e.record.state == RecordState::Held);
    if ours {
        cx.write(Task::Lock, txns::release(view, cx.s, shutdown));
    }
}

/// The agent ends: PostgreSQL is stopped in order, the lock goes to whoever has everything
/// (`ha-behaviour.md` 2.4). In pause both stay as they are.
pub(super) fn shutdown(cx: &mut Cx) -> Reason {
    cx.probe(Duration::from_millis(100));
    let stopping = |job: &RunningJob| matches!(job.job, Job::Stop { .. });
    let stopping = cx.o.job.as_ref().is_some_and(stopping);
    // S2: a stop under way is carried out. What shows a pause now may be old news that comes late, and a primary would
    // be left behind without a deadline.
    if cx.paused() && !stopping {
        cx.push(Action::Disarm);
        cx.push(Action::Exit {
            code: 0,
            why: "shut down in pause: PostgreSQL stays".into(),
        });
        return Reason::ShutdownDone;
    }
    if let Some(job) = &cx.o.job {
        if !stopping && !job.cancelled {
            cx.push(Action::Cancel(job.id));
        }
        return Reason::ShutdownStop;
    }
    if cx.alive() {
        if let Some(reason) = leave_sync(cx) {
            return reason;
        }
        let timeout = cx.s.cluster.primary_stop_timeout;
        let bounded = cx.s.cluster.is_synchronous() && !timeout.is_zero();
        cx.start(Job::Stop {
            mode: StopMode::Fast,
            checkpoint_first: false,
            timeout: bounded.then_some(timeout),
            why: StopReason::Shutdown,
        });
        return Reason::ShutdownStop;
    }
    if cx.o.postgres.process == Process::Orphans {
        return Reason::Orphans;
    }
    let down = cx.m.stepping_down.get_or_insert(SteppingDown {
        since: cx.o.now,
        shutdown: None,
    });
    let (since, position) = (down.since, down.shutdown.or_else(|| last_shutdown(cx)));
    cx.keep_leading = false;
    let ours = matches!(cx.lock, Lock::Mine(_) | Lock::Inherited);
    // The key runs out by itself: waiting longer than a few seconds for a silent etcd helps nobody.
    if ours && cx.o.now.since(since) < Duration::from_secs(5) {
        release(cx, position);
        cx.wake_in(Duration::from_millis(50));
        return Reason::ShutdownRelease;
    }
    if ours {
        cx.log(
            LogLevel::Warning,
            "the leader key could not be released, it will expire",
        );
    }
    cx.push(Action::Exit {
        code: 0,
        why: "shut down".into(),
    });
    Reason::ShutdownDone
}

fn last_shutdown(cx: &Cx) -> Option<(Timeline, Lsn)> {
    match &cx.o.finished.as_ref()?.end {
        super::job::JobEnd::Stopped { shutdown } => *shutdown,
        _ => None,
    }
}

/// `ha-behaviour.md` 16.5: a synchronous standby publishes `nosync` and waits a moment, so that
/// commits do not hang on it.
fn leave_sync(cx: &mut Cx) -> Option<Reason> {
    if !cx.s.cluster.is_synchronous() || cx.s.tags.nosync() || cx.is_primary() {
        return None;
    }
    let view = cx.view()?;
    let leading = matches!(cx.lock, Lock::Mine(_));
    let alone = view.sync.standbys.len() <= 1 && cx.s.cluster.synchronous_mode_strict;
    if leading || alone || !view.sync.lists(&cx.s.me) || !cx.o.dcs.confirmed {
        return None;
    }
    let since = *cx.m.leaving_sync.get_or_insert(cx.o.now);
    if cx.o.now.since(since) >= LEAVE_SYNC_LIMIT {
        return None;
    }
    cx.wake_in(Duration::from_millis(100));
    Some(Reason::ShutdownLeaveSync)
}

/// Whether the cluster leads natively, for callers that have no view at hand.
pub(super) fn native(cx: &Cx) -> bool {
    cx.view().is_some_and(tenure::is_native)
}
