//! The data directory has no cluster in it, or one that must not be started (`ha-behaviour.md` 12.1).

use super::cx::Cx;
use super::decision::{Action, LogLevel};
use super::job::{Job, StopMode, StopReason, Upstream};
use super::leave;
use super::observation::{Process, Task};
use super::reason::Reason;
use super::tenure::Lock;
use super::txns;
use crate::config::Tags;
use crate::dcs::{Initialize, PgRole};
use crate::ids::MemberName;
use std::time::Duration;

pub(super) fn unreadable(cx: &mut Cx, why: String) -> Reason {
    if matches!(cx.lock, Lock::Mine(_)) && !cx.alive() {
        return leave::begin(cx, None, Reason::ReleasedForData);
    }
    Reason::DataUnreadable { why }
}

pub(super) fn decide(cx: &mut Cx) -> Reason {
    if !cx.m.bootstrapping {
        cx.m.role = Some(PgRole::Uninitialized);
    }
    if cx.alive() {
        // Somebody removed the files under a running server.
        cx.start(Job::Stop {
            mode: StopMode::Immediate,
            checkpoint_first: false,
            timeout: Some(cx.s.cluster.timing.retry_timeout()),
            why: StopReason::DataDirGone,
        });
        return Reason::DataUnreadable {
            why: "it is empty under a running PostgreSQL".into(),
        };
    }
    if cx.o.postgres.process != Process::Gone {
        return Reason::Orphans;
    }
    match cx.lock.clone() {
        Lock::Mine(_) if !cx.m.bootstrapping => leave::begin(cx, None, Reason::ReleasedForData),
        Lock::Inherited => super::lead::inherit(cx),
        Lock::Unknown(_) => Reason::WaitLeader,
        _ if cx.paused() => Reason::PausedDown,
        Lock::Other(leader) => clone_from_cluster(cx, &leader),
        Lock::Free | Lock::Mine(_) => nobody_leads(cx),
    }
}

fn nobody_leads(cx: &mut Cx) -> Reason {
    let Some(view) = cx.view() else {
        return Reason::WaitLeader;
    };
    // A cluster that lives, or that we have seen alive, is never made a second time because etcd has
    // forgotten it (S22, S23).
    let lives = cx.m.last_locked.is_some()
        || view
            .members
            .iter()
            .any(|(name, m)| *name != cx.s.me && m.record.timeline.is_some());
    let may_bootstrap = cx.s.can_bootstrap && !cx.s.tags.nofailover() && !lives;
    match &view.initialize {
        None if may_bootstrap => {
            cx.write(Task::Initialize, txns::claim_initialize());
            cx.m.bootstrapping = true;
            Reason::ClaimInitialize
        }
        Some(Initialize::Bootstrapping) if cx.m.bootstrapping && own_claim(cx) => {
            // No deadline yet: nobody can lead before we have written the keys, and a new server that
            // nobody knows of is no second primary of anything. Leading arms the guardian.
            cx.start(Job::Bootstrap);
            Reason::Bootstrap
        }
        Some(Initialize::System(_)) if cx.s.can_clone_without_leader => {
            cx.start(Job::Clone {
                source: None,
                follow: Upstream::None,
                basebackup_only: false,
            });
            Reason::Clone {
                source: "a replica method that needs no leader".into(),
            }
        }
        // The watch may show our claim before its outcome is known.
        Some(Initialize::Bootstrapping) if cx.o.in_flight.contains(&Task::Initialize) => {
            Reason::ClaimInitialize
        }
        Some(Initialize::Bootstrapping) => {
            cx.m.bootstrapping = false;
            Reason::WaitBootstrap
        }
        None => Reason::WaitBootstrap,
        Some(_) => Reason::WaitLeader,
    }
}

/// `/initialize` hangs on the lease of whoever races; ours means that we have won.
fn own_claim(cx: &Cx) -> bool {
    use super::observation::TaskResult;
    use crate::dcs::txn::TxnOutcome;
    cx.outcome(Task::Initialize)
        .is_some_and(|o| matches!(o.result, TaskResult::Txn(TxnOutcome::Committed(_))))
}

/// `ha-behaviour.md` 12.1, rule 2: a member that offers itself, else the leader.
fn clone_source(cx: &Cx, leader: &MemberName) -> Option<MemberName> {
    let view = cx.view()?;
    let offers: Vec<&MemberName> = view
        .members
        .iter()
        .filter(|(name, entry)| {
            **name != cx.s.me
                && *name != leader
                && entry.record.is_running()
                && entry.record.conn_url.is_some()
                && Tags(entry.record.tags.clone()).clonefrom()
        })
        .map(|(name, _)| name)
        .collect();
    let pick = usize::try_from(cx.o.dice).unwrap_or(0) % offers.len().max(1);
    match offers.get(pick) {
        Some(name) => Some((*name).clone()),
        None => cx.member(leader)?.conn_url.as_ref().map(|_| leader.clone()),
    }
}

fn clone_from_cluster(cx: &mut Cx, leader: &MemberName) -> Reason {
    let known = cx
        .view()
        .and_then(|v| v.initialize.as_ref())
        .is_some_and(|i| i.system().is_some());
    let ready = cx.member(leader).is_some_and(|m| {
        m.is_running() && matches!(m.role.as_deref(), Some("primary" | "standby_leader"))
    });
    if !known || !ready {
        cx.wake_in(Duration::from_millis(500));
        return Reason::WaitLeader;
    }
    if cx.m.start_not_before.is_some_and(|at| cx.o.now < at) {
        if let Some(at) = cx.m.start_not_before {
            cx.wake(at);
        }
        return Reason::StartBackoff {
            failed: cx.m.failed_starts,
        };
    }
    let Some(source) = clone_source(cx, leader) else {
        return Reason::WaitLeader;
    };
    let (Some(from), follow) = (cx.upstream_of(&source), super::follow::target(cx, leader)) else {
        return Reason::WaitLeader;
    };
    cx.start(Job::Clone {
        source: Some(from),
        follow,
        basebackup_only: false,
    });
    let source = if source == *leader {
        format!("leader '{source}'")
    } else {
        format!("replica '{source}'")
    };
    Reason::Clone { source }
}

/// S18: a rewind or a copy that did not end is never started; it is copied anew, and only while
/// another live primary exists (S7).
pub(super) fn unfinished(cx: &mut Cx, why: String) -> Reason {
    if matches!(cx.lock, Lock::Mine(_)) {
        return leave::begin(cx, None, Reason::ReleasedForData);
    }
    let Lock::Other(leader) = cx.lock.clone() else {
        return Reason::WaitRecopy { why };
    };
    let ready = cx
        .member(&leader)
        .is_some_and(|m| m.is_running() && m.role.as_deref() == Some("primary"));
    let waits = cx.m.start_not_before.is_some_and(|at| cx.o.now < at);
    if !ready || waits || cx.paused() || cx.o.postgres.process != Process::Gone {
        cx.wake_in(Duration::from_millis(500));
        return Reason::WaitRecopy { why };
    }
    let Some(source) = cx.upstream_of(&leader) else {
        return Reason::WaitRecopy { why };
    };
    let follow = super::follow::target(cx, &leader);
    cx.log(
        LogLevel::Warning,
        format!("copying the data directory anew from {leader}: {why}"),
    );
    cx.start(Job::Reinitialize {
        source,
        follow,
        basebackup_only: false,
        wish: None,
    });
    Reason::Recopy { why }
}

/// The new cluster is up: its keys are written at one revision, and we lead.
pub(super) fn finish_bootstrap(cx: &mut Cx) -> Reason {
    let Some(view) = cx.view() else {
        return Reason::FinishBootstrap;
    };
    if view.leader_name() == Some(&cx.s.me) {
        cx.m.bootstrapped = false;
        cx.wake_in(Duration::from_millis(1));
        return Reason::FinishBootstrap;
    }
    if view.leader.is_some()
        || view
            .initialize
            .as_ref()
            .is_some_and(|i| i.system().is_some())
    {
        let why = "another member initialized the cluster meanwhile".to_owned();
        cx.push(Action::Fence);
        cx.push(Action::Exit {
            code: 1,
            why: why.clone(),
        });
        return Reason::BootstrapFailed { why };
    }
    let system =
        cx.o.postgres
            .control
            .as_ref()
            .map(|c| c.system_id)
            .filter(|id| id.0 != 0);
    if let Some(system) = system {
        let mut txn = txns::finish_bootstrap(cx.s, system, &cx.s.dynamic);
        if view.initialize.is_none() {
            // Our claim was on a lease that is gone; nobody else has begun.
            txn.when = vec![
                crate::dcs::Compare::Absent(crate::dcs::Key::Initialize),
                crate::dcs::Compare::Absent(crate::dcs::Key::Leader),
            ];
        }
        cx.write(Task::Lock, txn);
    }
    Reason::FinishBootstrap
}
