//! The decision. Rules in order; the first that applies gives the reason.
//!
//! The order is that of `ha-behaviour.md` 3, with what must never wait in front: the end of our own
//! lease, and processes that nobody may leave behind. Each branch lives in a file of its own:
//! [`super::empty`] no data, [`super::down`] PostgreSQL is not running, [`super::lead`] we lead,
//! [`super::race`] nobody leads, [`super::follow`] somebody else leads. [`super::keep`] is what every
//! member does besides: its key, the leader's keys, slots.

use super::cx::Cx;
use super::decision::{Action, Decision, LeaseGoal, Standing};
use super::job::{Job, StopMode, StopReason, Upstream};
use super::memory::Memory;
use super::observation::{Armed, DataDir, Observation, Process, Sql};
use super::reason::Reason;
use super::sync::SyncMemory;
use super::tenure::{Lock, Unknown};
use super::{down, empty, finish, follow, keep, lead, leave, race, standing};
use crate::config::Settings;
use crate::dcs::{PgRole, RecordState};
use crate::wal::Lsn;
use std::borrow::Cow;
use std::time::Duration;

/// Decides. Equal inputs give equal outputs; nothing else is read.
pub fn decide(o: &Observation, memory: &Memory, s: &Settings) -> (Decision, Memory) {
    let mut cx = Cx::new(o, memory, s);
    cx.m.began.get_or_insert(o.now);
    if cx.paused() {
        cx.m.paused_at = Some(o.now);
    }
    finish::take_note(&mut cx);
    keep::note_epoch(&mut cx);
    forget_when_it_was_free(&mut cx);
    hold_back_while_recovering(&mut cx);
    let reason = judge(&mut cx);
    greet(&mut cx);
    follow::do_not_connect_for_ever(&mut cx);
    keep::housekeeping(&mut cx);
    let goal = lease_goal(&mut cx);
    // Level-triggered and cheap to repeat, so it comes with every decision, before everything else.
    cx.actions.insert(0, Action::Hold(goal.clone()));
    cx.m.last_rule = Cow::Borrowed(reason.rule());
    let standing = Standing {
        state: standing::state(&cx),
        role: standing::role(&cx),
        leader_until: standing::leader_until(&cx),
        hold_back: cx.hold_back.clone(),
        failsafe_active: standing::failsafe_active(&cx),
        epoch: keep::highest_epoch(&cx),
        goal,
    };
    let decision = Decision {
        reason,
        actions: cx.actions,
        wake_at: cx.wake_at,
        probe_every: cx.probe_every,
        standing,
    };
    (decision, cx.m)
}

/// S3: what was told since the lock was free counts in a race, so the moment is that of this race. Somebody may have led
/// in between, also for so short a time that only the record shows it, or while we were down or could not see.
fn forget_when_it_was_free(cx: &mut Cx) {
    let record = cx.view().and_then(|view| view.record.as_ref());
    let record = record.map(|entry| entry.modified);
    if cx.lock != Lock::Free || cx.m.free_of != record {
        cx.m.free_since = None;
        cx.m.free_of = record;
    }
}

/// `on_start` for a server that ran before this agent did (`ha-behaviour.md` 21); one that we start
/// ourselves is told of when it is up.
fn greet(cx: &mut Cx) {
    let role = cx.m.role.filter(|role| *role != PgRole::Uninitialized);
    let ours = cx.m.callback_called || cx.o.job.is_some() || cx.sample().is_none();
    if let Some(role) = role.filter(|_| !ours) {
        finish::callback(cx, "on_start", role);
    }
}

/// S9: recovery makes commits visible that no standby may have, also those whose sessions a restart has
/// ended while they waited. PostgreSQL takes connections before the job that started it has ended, so
/// clients are held back from its beginning. It may also restart itself; and a new agent does not know
/// what the primary that it finds has been through.
fn hold_back_while_recovering(cx: &mut Cx) {
    if cx.sample().is_some_and(|sample| sample.in_recovery) {
        (cx.m.hold_until, cx.m.hold_since) = (None, None);
    }
    if !cx.s.cluster.is_synchronous() {
        return;
    }
    let primary = cx.m.role == Some(PgRole::Primary);
    let recovers = match &cx.o.job {
        Some(running) => match running.job {
            Job::StartPrimary { .. } => true,
            Job::Restart { .. } => primary,
            _ => false,
        },
        None => {
            let closed = matches!(cx.o.postgres.sql, Sql::Rejecting | Sql::Refused);
            let recovers = cx.alive()
                && closed
                && !cx.o.postgres.signal_file
                && (primary || cx.m.role.is_none());
            if recovers || (cx.m.role.is_none() && cx.is_primary()) {
                cx.m.hold_until = Some(Lsn::NONE);
            }
            recovers
        }
    };
    // Until [`lead`] has seen that a quorum has it, whatever else is decided meanwhile: also a stop takes a moment.
    if recovers || cx.m.hold_until.is_some() {
        cx.hold_back = Some("recovered WAL may not be on a quorum yet".to_owned());
    }
}

fn lease_goal(cx: &mut Cx) -> LeaseGoal {
    let ttl = cx.s.cluster.timing.ttl();
    let Some(tenure) = cx.tenure().filter(|_| cx.keep_leading) else {
        return LeaseGoal::Session { ttl };
    };
    let outlasts = |armed: &Armed| armed.epoch != tenure.epoch && armed.deadline > tenure.deadline;
    if cx.o.guardian.armed.as_ref().is_some_and(outlasts) && leave::native(cx) {
        // The deadline of the compatible lease before, which is longer. Others wait that long only
        // until the record is renewed for the first time, so the guardian comes first.
        lead::armed(cx, &tenure);
        return LeaseGoal::Session { ttl };
    }
    let native = &cx.s.cluster.native;
    match cx.view().and_then(|view| view.record.as_ref()) {
        Some(entry) if entry.record.state == RecordState::Held => LeaseGoal::Record {
            ttl,
            epoch: tenure.epoch,
            length: Duration::from_millis(native.lease_ms),
            wait: Duration::from_millis(native.wait_ms),
            every: Duration::from_millis(native.renew_ms),
            members: keep::record_members(cx),
        },
        _ => LeaseGoal::Leader { ttl },
    }
}

fn judge(cx: &mut Cx) -> Reason {
    if cx.o.postgres.process == Process::Gone || cx.sample().is_some_and(|s| s.in_recovery) {
        // What was proved about standbys was proved for a running primary.
        cx.m.sync = SyncMemory::default();
    }
    if let Some(reason) = first_look(cx) {
        return reason;
    }
    if cx.o.wishes.shutdown {
        return leave::shutdown(cx);
    }
    if cx.m.stepping_down.is_some() {
        return leave::step_down(cx);
    }
    if let Some(reason) = lease_runs_out(cx) {
        return reason;
    }
    if cx.o.job.is_some() {
        return during_job(cx);
    }
    match &cx.o.postgres.data_dir {
        DataDir::Unknown => return Reason::NotLookedYet,
        DataDir::Empty => return empty::decide(cx),
        DataDir::Unreadable(why) => return empty::unreadable(cx, why.clone()),
        dir if cx.m.bootstrapped && dir.never_presented() => return empty::finish_bootstrap(cx),
        DataDir::Unfinished(why) => return empty::unfinished(cx, why.clone()),
        DataDir::Initialised => {}
    }
    if cx.m.bootstrapped {
        return empty::finish_bootstrap(cx);
    }
    if let Some(reason) = foreign_system(cx) {
        return reason;
    }
    if cx.lock == Lock::Inherited {
        return lead::inherit(cx);
    }
    match cx.o.postgres.process {
        Process::Unknown => Reason::NotLookedYet,
        Process::Orphans => {
            // S10: nothing is released or started while a process of the old life may still commit.
            // The guardian is ending them.
            cx.wake_in(Duration::from_millis(50));
            Reason::Orphans
        }
        Process::Gone => down::decide(cx),
        Process::Alive { .. } => running(cx),
    }
}

fn first_look(cx: &mut Cx) -> Option<Reason> {
    if cx.lock == Lock::Unknown(Unknown::NeverRead) && !cx.o.wishes.shutdown {
        return Some(Reason::EtcdNeverRead);
    }
    if cx.lock == Lock::Unknown(Unknown::RecordGarbled) && !cx.alive() {
        return Some(Reason::RecordGarbled);
    }
    if !cx.o.guardian.alive && !cx.o.wishes.shutdown {
        // Without a guardian nothing enforces the deadline: stop renewing, so that others may lead.
        cx.keep_leading = false;
        return Some(Reason::GuardianLost);
    }
    None
}

/// S2: our own clock ends our leadership, whatever etcd says or does not say.
fn lease_runs_out(cx: &mut Cx) -> Option<Reason> {
    if cx.paused() {
        return None;
    }
    let stopping = matches!(cx.o.job, Some(ref job) if matches!(job.job, Job::Stop { .. }));
    if stopping {
        return None;
    }
    match cx.lock {
        Lock::Mine(tenure) if cx.o.now >= tenure.soft_deadline && cx.alive() => Some(stop_for(
            cx,
            StopReason::Offline,
            StopMode::Fast,
            Reason::LeaseSpent,
        )),
        Lock::Mine(tenure) => {
            // Nothing is left to stop once the first of them has passed.
            let next = [tenure.soft_deadline, tenure.deadline]
                .into_iter()
                .find(|at| *at > cx.o.now);
            if let Some(next) = next {
                cx.wake(next);
            }
            None
        }
        _ => None,
    }
}

/// Stops a PostgreSQL that must not go on, cancelling whatever runs.
pub(super) fn stop_for(cx: &mut Cx, why: StopReason, mode: StopMode, reason: Reason) -> Reason {
    if let Some(job) = &cx.o.job {
        if !job.cancelled && !matches!(job.job, Job::Stop { .. }) {
            cx.push(Action::Cancel(job.id));
        }
        cx.wake_in(Duration::from_millis(100));
        return reason;
    }
    // A guardian kills at the deadline; until then the stop may take its time.
    let timeout = cx
        .tenure()
        .map(|t| cx.o.now.until(t.deadline))
        .filter(|left| !left.is_zero());
    cx.m.rewind = cx.m.rewind.request();
    cx.start(Job::Stop {
        mode,
        checkpoint_first: false,
        timeout,
        why,
    });
    reason
}

/// `ha-behaviour.md` 3.1.
fn during_job(cx: &mut Cx) -> Reason {
    let Some(job) = &cx.o.job else {
        return Reason::NotLookedYet;
    };
    let running = Reason::JobRunning {
        job: job.job.label(),
        phase: job.phase.clone(),
    };
    if job.cancelled {
        return running;
    }
    let mine = matches!(cx.lock, Lock::Mine(_));
    let cancel = |why: &str| Some(why.to_owned());
    let cancel = match &job.job {
        Job::Promote { .. } if !mine && !cx.paused() => cancel("the leader lock is not ours"),
        Job::StartPrimary { .. } if !mine && !cx.paused() => cancel("the leader lock is not ours"),
        Job::StartPrimary { .. } if start_took_too_long(cx) => {
            cancel("it takes too long and another member can take over")
        }
        Job::Restart { .. } if !mine && cx.m.role == Some(PgRole::Primary) && !cx.paused() => {
            cancel("the leader lock is not ours")
        }
        Job::Clone { .. } if matches!(cx.lock, Lock::Free) => None,
        // A race must not wait for it; once PostgreSQL is stopped, the start that follows is the race's.
        Job::CopySlots { leader, .. } if !follows(cx, leader) => cancel("its leader leads no more"),
        // What was made so far is set aside, so that this member can copy the cluster.
        Job::Bootstrap if empty::made_by_another(cx) => {
            cancel("another member initialized the cluster meanwhile")
        }
        _ => None,
    };
    match cancel {
        Some(why) => {
            cx.push(Action::Cancel(job.id));
            Reason::JobCancelled {
                job: job.job.label(),
                why,
            }
        }
        None => running,
    }
}

/// Whether this member leads as far as we know.
fn follows(cx: &Cx, source: &Upstream) -> bool {
    matches!((&cx.lock, source), (Lock::Other(leader), Upstream::Member { name, .. }) if leader == name)
}

fn start_took_too_long(cx: &mut Cx) -> bool {
    let Some(job) = &cx.o.job else { return false };
    let limit = cx.s.cluster.primary_start_timeout;
    let took = cx.o.now.since(job.started);
    if took < limit {
        cx.wake(job.started + limit);
        return false;
    }
    lead::somebody_can_take_over(cx, None).is_some()
}

/// `ha-behaviour.md` 3.3 and S8.
fn foreign_system(cx: &mut Cx) -> Option<Reason> {
    let view = cx.view().filter(|_| cx.o.dcs.confirmed)?;
    let cluster = view.initialize.as_ref()?.system()?;
    let ours = cx.o.postgres.control.as_ref()?.system_id;
    if ours == cluster || ours.0 == 0 {
        return None;
    }
    let reason = Reason::ForeignSystem {
        ours: ours.to_string(),
        cluster: cluster.to_string(),
    };
    if cx.paused() {
        return match cx.lock {
            Lock::Mine(_) | Lock::Inherited if cx.may_write() => {
                Some(leave::stand_back(cx, reason))
            }
            Lock::Mine(_) => Some(leave::begin(cx, None, reason)),
            _ => None,
        };
    }
    let guarded =
        cx.o.guardian.armed.is_some() && matches!(cx.lock, Lock::Mine(_) | Lock::Inherited);
    if cx.may_write() && !guarded {
        // S13: what ran through a pause has no deadline under which others wait, and is not left behind without an agent.
        return Some(stop_for(cx, StopReason::LostLock, StopMode::Fast, reason));
    }
    cx.push(Action::Exit {
        code: 1,
        why: reason.to_string(),
    });
    Some(reason)
}

fn running(cx: &mut Cx) -> Reason {
    if !matches!(cx.o.postgres.sql, Sql::Sample(_)) {
        if let Some(reason) = not_answering(cx) {
            return reason;
        }
    } else {
        cx.m.starting_since = None;
    }
    match cx.lock.clone() {
        Lock::Mine(tenure) => lead::decide(cx, tenure),
        Lock::Free => race::decide(cx),
        Lock::Other(leader) => follow::decide(cx, &leader),
        Lock::Inherited => lead::inherit(cx),
        Lock::Unknown(_) => blind(cx),
    }
}

/// The postmaster lives but did not answer the monitoring query. Only a start that takes too long
/// counts against it: silence alone never starts a failover (`DESIGN.md`, three verdicts).
fn not_answering(cx: &mut Cx) -> Option<Reason> {
    cx.probe(Duration::from_millis(100));
    match cx.o.postgres.sql {
        Sql::Silent if cx.m.role.is_some() => None,
        Sql::None if cx.o.postgres.sql_at == crate::time::MonoTime::default() => {
            Some(Reason::NotLookedYet)
        }
        _ => {
            let since = *cx.m.starting_since.get_or_insert(cx.o.now);
            let took = cx.o.now.since(since);
            let limit = cx.s.cluster.primary_start_timeout;
            let mine = matches!(cx.lock, Lock::Mine(_));
            let somebody =
                mine && took >= limit && lead::somebody_can_take_over(cx, None).is_some();
            if somebody && !cx.paused() {
                let reason = Reason::StartTooSlow { took };
                cx.m.stepping_down = Some(super::memory::SteppingDown {
                    since: cx.o.now,
                    shutdown: None,
                });
                return Some(stop_for(
                    cx,
                    StopReason::TooSlow,
                    StopMode::Immediate,
                    reason,
                ));
            }
            // A server that is not writable yet cannot do harm under a foreign lock, but one that was
            // primary might become so: it is stopped like a running one.
            let was_primary = cx.m.role == Some(PgRole::Primary);
            match cx.lock.clone() {
                Lock::Other(leader) if was_primary && !cx.paused() => Some(stop_for(
                    cx,
                    StopReason::LostLock,
                    StopMode::Immediate,
                    Reason::LostLock {
                        leader: leader.to_string(),
                    },
                )),
                _ => Some(Reason::Starting),
            }
        }
    }
}

/// etcd is out of reach and we hold no lease that counts.
fn blind(cx: &mut Cx) -> Reason {
    if cx.paused() {
        return Reason::FollowingBlind;
    }
    if !cx.may_write() {
        return Reason::FollowingBlind;
    }
    // A primary that is silent may write all the same, and one that has come through a pause has no deadline: others
    // wait for W from the end of the pause, and not longer (S2, S3).
    let mode = match cx.is_primary() {
        true => StopMode::Fast,
        false => StopMode::Immediate,
    };
    stop_for(cx, StopReason::Offline, mode, Reason::LeaseSpent)
}
