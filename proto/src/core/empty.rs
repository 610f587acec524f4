//! The data directory has no cluster in it, or one that must not be started (`ha-behaviour.md` 12.1).

use super::cx::Cx;
use super::decision::{Action, LogLevel};
use super::job::{Job, StopMode, StopReason, Upstream};
use super::observation::{Process, Session, Task};
use super::reason::Reason;
use super::tenure::{Lock, Tenure};
use super::{lead, leave, txns};
use crate::config::Tags;
use crate::dcs::{ClusterView, Initialize, PgRole};
use crate::ids::{Epoch, LeaseId, MemberName, SystemId};
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
    if cx.o.guardian.armed.is_some() && !matches!(cx.lock, Lock::Mine(_)) {
        // The deadline of a server that is gone, which would end the next one.
        cx.push(Action::Disarm);
    }
    match cx.lock.clone() {
        Lock::Mine(_) if !cx.m.bootstrapping => leave::begin(cx, None, Reason::ReleasedForData),
        Lock::Inherited => lead::inherit(cx),
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
        // The watch may show our claim before its outcome is known, and still shows one that is given back.
        Some(Initialize::Bootstrapping(_)) if cx.o.in_flight.contains(&Task::Initialize) => {
            Reason::ClaimInitialize
        }
        // We have won, whether or not the answer ever came: for as long as our session lives, nobody else
        // can. Whoever does not take it up keeps the whole cluster waiting (L1).
        Some(Initialize::Bootstrapping(lease)) if may_bootstrap && is_ours(cx, *lease) => {
            cx.m.bootstrapping = true;
            create(cx)
        }
        Some(Initialize::Bootstrapping(_)) => {
            cx.m.bootstrapping = false;
            Reason::WaitBootstrap
        }
        None => Reason::WaitBootstrap,
        Some(_) => Reason::WaitLeader,
    }
}

/// We have won the right to make the cluster: a new one, or a standby cluster, whose first member is a
/// copy of the remote primary (`ha-behaviour.md` 12.1, 19).
fn create(cx: &mut Cx) -> Reason {
    if let Some(at) = cx.m.start_not_before.filter(|at| cx.o.now < *at) {
        cx.wake(at);
        return Reason::StartBackoff {
            failed: cx.m.failed_starts,
        };
    }
    let Some(cluster) = &cx.s.cluster.standby_cluster else {
        // No deadline yet: nobody can lead before we have written the keys, and a new server that
        // nobody knows of is no second primary of anything. Writing them arms the guardian.
        cx.start(Job::Bootstrap);
        return Reason::Bootstrap;
    };
    let remote = super::follow::remote(cluster);
    cx.start(Job::Clone {
        source: Some(remote.clone()),
        follow: remote,
        basebackup_only: false,
    });
    Reason::Clone {
        source: "the remote primary".into(),
    }
}

/// `/initialize` hangs on the lease of whoever races.
fn is_ours(cx: &Cx, lease: LeaseId) -> bool {
    cx.o.dcs.session.as_ref().is_some_and(|s| s.id == lease)
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
    if cx.alive() && cx.o.postgres.data_dir.never_presented() && !cx.paused() {
        // The server of a bootstrap whose agent was killed: nobody knows of it, and none of it is kept.
        cx.start(Job::Stop {
            mode: StopMode::Immediate,
            checkpoint_first: false,
            timeout: Some(cx.s.cluster.timing.retry_timeout()),
            why: StopReason::LostLock,
        });
        return Reason::WaitRecopy { why };
    }
    let Lock::Other(leader) = cx.lock.clone() else {
        // An agent that was killed while it made the cluster left nothing that anybody needs: the
        // bootstrap is begun again, by whoever gets the claim.
        let again = cx.lock == Lock::Free && cx.o.postgres.data_dir.abandoned() && !cx.paused();
        if again && cx.o.postgres.process == Process::Gone {
            return nobody_leads(cx);
        }
        return Reason::WaitRecopy { why };
    };
    let role = |member: &crate::dcs::MemberRecord| {
        let standby_cluster = cx.s.cluster.standby_cluster.is_some();
        let leads = member.role.as_deref();
        leads == Some("primary") || (standby_cluster && leads == Some("standby_leader"))
    };
    let ready = cx
        .member(&leader)
        .is_some_and(|m| m.is_running() && role(m));
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

/// A cluster stands that is not the one which we are making, since our claim was lost on the way.
pub(super) fn made_by_another(cx: &Cx) -> bool {
    let known = |i: &Initialize| i.system().is_some();
    cx.view()
        .filter(|_| cx.o.dcs.confirmed)
        .is_some_and(|view| {
            let led = view.leader_name().is_some_and(|name| *name != cx.s.me);
            led || view.initialize.as_ref().is_some_and(known)
        })
}

/// The new cluster is up: its keys are written at one revision, and we lead.
pub(super) fn finish_bootstrap(cx: &mut Cx) -> Reason {
    let Some(view) = cx.view().filter(|_| cx.o.dcs.confirmed) else {
        return Reason::FinishBootstrap;
    };
    let marked = cx.o.postgres.data_dir.never_presented();
    let control = cx.o.postgres.control.as_ref().filter(|_| !marked);
    let system = control.map(|c| c.system_id).filter(|id| id.0 != 0);
    let cluster = view.initialize.as_ref().and_then(Initialize::system);
    if view.leader_name() == Some(&cx.s.me) || (cluster.is_some() && cluster == system) {
        // It is done, also if somebody leads our cluster by now: we may be the last to hear of it.
        cx.m.bootstrapped = false;
        cx.wake_in(Duration::from_millis(1));
        return Reason::FinishBootstrap;
    }
    if made_by_another(cx) {
        return overtaken(cx, marked, system, cluster);
    }
    let Some(session) = &cx.o.dcs.session else {
        return Reason::FinishBootstrap;
    };
    let claimed = match &view.initialize {
        // A claim of another is waited for: it makes the cluster, or its lease ends.
        Some(Initialize::Bootstrapping(lease)) if *lease != session.id => {
            return Reason::FinishBootstrap;
        }
        // Our own may have been on a lease that is gone.
        claim => claim.is_some(),
    };
    if !armed_to_lead(cx, view, session) {
        return Reason::FinishBootstrap;
    }
    if marked {
        // S7: what carries the mark may be thrown away, so it is gone before others can know of the cluster.
        if cx.may(Task::ClearMark) {
            cx.push(Action::ClearMark);
        }
    } else if let Some(system) = system {
        let txn = txns::finish_bootstrap(cx.s, session, claimed, system);
        cx.write(Task::Lock, txn);
    }
    Reason::FinishBootstrap
}

/// S2: from the moment at which the keys are there our server is that of the leader, and nothing says that we
/// hear of it: others may copy it, and follow each other when our lease has run out. So the guardian has the
/// deadline before they are written. It is not moved on with each try, since any of them may have been the one.
fn armed_to_lead(cx: &mut Cx, view: &ClusterView, session: &Session) -> bool {
    if cx.paused() {
        return true;
    }
    let epoch = view
        .record
        .as_ref()
        .map_or(Epoch(0), |entry| entry.record.epoch);
    let tenure = Tenure::compatible(session, epoch);
    cx.o.now < tenure.soft_deadline && lead::armed(cx, &tenure)
}

/// Another member has made the cluster. Ours was never in etcd, so nobody else knows of it: it makes room for a
/// copy of theirs, once it is sure that they are not the same.
fn overtaken(
    cx: &mut Cx,
    marked: bool,
    ours: Option<SystemId>,
    cluster: Option<SystemId>,
) -> Reason {
    let why = "another member initialized the cluster meanwhile".to_owned();
    if marked || (ours.is_some() && cluster.is_some()) {
        cx.start(Job::SetAside { system: ours });
    } else if cx.alive() {
        cx.start(Job::Stop {
            mode: StopMode::Immediate,
            checkpoint_first: false,
            timeout: Some(cx.s.cluster.timing.retry_timeout()),
            why: StopReason::LostLock,
        });
    }
    Reason::BootstrapFailed { why }
}
