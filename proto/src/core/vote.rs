//! Quorum-fenced failover (`DESIGN.md` 3): the standbys of a synchronous primary cut it off
//! themselves, so that its successor need not wait for a lease to run out.
//!
//! ```text
//! streaming ──suspicion──▶ promise stored, stream cut, key written ──▶ promises of F counted
//!     ▲                            │                                        │ we are the most advanced
//!     └── key deleted, then forgotten ◀── no quorum, or a newer epoch leads  ▼
//!                                                       one transaction: record, /sync, each promise
//! ```
//!
//! Why it is safe: a commit that was acknowledged is flushed on at least `k` of the synchronous set
//! `S`; `F` has at least `|S| - k + 1` of it, so some member of `F` holds the commit, and the most
//! advanced one holds all of them, since `S` only ever received one line of WAL in this epoch: a
//! member that has not streamed in this epoch has no vote. After `F` has promised, fewer than `k` of
//! `S` can still acknowledge. Clocks play no part (S3).

use super::cx::Cx;
use super::decision::Action;
use super::keep;
use super::lead::ASK_LIMIT;
use super::memory::LastLocked;
use super::observation::{SqlSample, Task, TaskResult};
use super::reason::Reason;
use super::txns;
use crate::dcs::{ClusterView, RecordEntry, RecordState};
use crate::ids::{Epoch, MemberName};
use crate::time::MonoTime;
use crate::wal::Timeline;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// How long the most advanced promiser is left alone before another set of promises is looked for.
const BEST_GRACE: Duration = Duration::from_secs(1);

/// How long promises are waited for before they are withdrawn, if the old leader came back.
const QUORUM_GRACE: Duration = Duration::from_secs(3);

/// A PostgreSQL that does not answer within this, while its agent is silent too, is not there.
const SQL_LIMIT: Duration = Duration::from_millis(500);

/// What is remembered of a suspicion.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Suspicion {
    /// Since when the leader has been suspected without a break.
    pub since: Option<MonoTime>,
    /// When the promise of this epoch was ordered.
    pub promised_at: Option<MonoTime>,
    /// When the leader's PostgreSQL was asked.
    pub sql_asked: Option<MonoTime>,
    /// When the leader was last found alive after all.
    pub found_alive: Option<MonoTime>,
    /// Since when enough promises have been there.
    pub quorum_since: Option<MonoTime>,
}

/// Why fenced failover does not apply here; the lease rules hold then.
pub fn not_applicable(cx_view: &ClusterView, s: &crate::config::Settings) -> Option<&'static str> {
    if !s.cluster.native.quorum_failover {
        return Some("garden.quorum_failover is off");
    }
    if !s.cluster.is_synchronous() || !cx_view.sync.is_active() {
        return Some("commits are asynchronous");
    }
    if !super::tenure::is_native(cx_view) {
        return Some("the cluster leads by /leader, since a member is not of our kind");
    }
    let all = cx_view
        .members
        .values()
        .all(|m| m.record.capabilities.is_some_and(|c| c.fence));
    (!all).then_some("a member does not take part in fenced failover")
}

/// A standby that was promoted by hand, and stopped again, has left the leader's line of WAL (S3, S18).
fn of_a_leader(view: &ClusterView, timeline: Timeline) -> bool {
    super::election::claimed_timeline(view, &LastLocked::default())
        .is_none_or(|claimed| timeline <= claimed)
}

/// Members of `/sync` whose promise against `epoch` stands, best first.
fn promised(view: &ClusterView, epoch: Epoch) -> Vec<MemberName> {
    let mut list: Vec<_> = view
        .fences
        .iter()
        .filter(|(name, entry)| view.sync.lists(name) && entry.promise.epoch == epoch)
        .filter(|(_, entry)| of_a_leader(view, entry.promise.timeline))
        .map(|(name, entry)| (name, &entry.promise))
        .collect();
    // Every epoch promotes to a higher timeline, so a position on a later one is of a later epoch
    // (S4); within a timeline the primary's WAL is one line. The name only breaks ties.
    list.sort_by(|(a, pa), (b, pb)| {
        (pb.timeline, pb.lsn)
            .cmp(&(pa.timeline, pa.lsn))
            .then_with(|| a.cmp(b))
    });
    list.into_iter().map(|(name, _)| name.clone()).collect()
}

/// `|S| - k + 1`: one more than `quorum` in the key, where `quorum = |S| - k`.
fn needed(view: &ClusterView) -> usize {
    usize::try_from(view.sync.quorum)
        .unwrap_or(usize::MAX)
        .saturating_add(1)
}

/// The promises that a takeover of `epoch` counts, its winner first, or how many there are when they
/// are too few. `skip` passes over that many of the best, as long as enough remain: any sufficient set
/// has a most advanced member of its own, and that one is as safe.
///
/// # Errors
/// The number of promises that stand.
pub fn takeover_set(
    view: &ClusterView,
    epoch: Epoch,
    skip: usize,
) -> Result<Vec<MemberName>, usize> {
    let mut all = promised(view, epoch);
    let spare = all.len().checked_sub(needed(view)).ok_or(all.len())?;
    Ok(all.split_off(skip.min(spare)))
}

/// Called by a standby whose cluster has a leader other than itself.
pub(super) fn consider(cx: &mut Cx, leader: &MemberName, sample: &SqlSample) -> Option<Reason> {
    let view = cx.view()?;
    let entry = view.record.as_ref()?;
    if let Some(reason) = withdraw_if_over(cx, entry) {
        return Some(reason);
    }
    note_epoch(cx, entry, leader, sample);
    if not_applicable(view, cx.s).is_some() || !cx.o.dcs.confirmed || cx.paused() {
        cx.m.suspicion = Suspicion::default();
        return None;
    }
    let epoch = entry.record.epoch;
    if cx.o.postgres.promised == Some(epoch) {
        return Some(promised_state(cx, entry, leader));
    }
    let votes = may_vote(view, &cx.s.me, cx.o.postgres.wal_epoch)
        && sample.timeline.is_some_and(|mine| of_a_leader(view, mine));
    if entry.record.state != RecordState::Held || !votes {
        return None;
    }
    suspect(cx, entry, leader, sample)
}

/// S18: only a member that has streamed in this epoch, on the leader's branch, has a vote.
pub fn may_vote(view: &ClusterView, me: &MemberName, wal_epoch: Epoch) -> bool {
    view.record.as_ref().is_some_and(|entry| {
        view.sync.lists(me) && wal_epoch == entry.record.epoch && entry.record.members.contains(me)
    })
}

fn note_epoch(cx: &mut Cx, entry: &RecordEntry, leader: &MemberName, sample: &SqlSample) {
    let epoch = entry.record.epoch;
    // A record that was deleted by hand may begin with a lower one: what is on disk stays.
    if cx.o.postgres.wal_epoch >= epoch || entry.record.owner != *leader {
        return;
    }
    let on_its_branch = cx.member(leader).is_some_and(|m| {
        m.role.as_deref() == Some("primary")
            && m.timeline.is_some()
            && m.timeline == sample.timeline
    });
    let streams = sample.receiver.as_ref().is_some_and(|r| {
        r.status == "streaming" && r.timeline.is_some() && r.timeline == sample.timeline
    });
    if on_its_branch && streams && cx.m.rewind != super::rewind::RewindState::Need {
        cx.push(Action::NoteWalEpoch(epoch));
    }
}

/// Three things together, never fewer: no renewal for the suspicion time, the leader's agent does not
/// answer, and its PostgreSQL does not either, be it that our stream from it broke or that it cannot be
/// reached any more. A record that is still renewed vetoes, and so do an agent that is being restarted
/// (its PostgreSQL streams) and a PostgreSQL that is (its agent answers).
fn suspect(
    cx: &mut Cx,
    entry: &RecordEntry,
    leader: &MemberName,
    sample: &SqlSample,
) -> Option<Reason> {
    let limit = Duration::from_millis(cx.s.cluster.native.suspect_ms);
    let seen =
        cx.o.dcs
            .record_seen
            .filter(|seen| seen.modified == entry.modified)?;
    let silent = cx.o.now.since(seen.since);
    if silent < limit {
        cx.m.suspicion = Suspicion::default();
        cx.wake(seen.since + limit);
        return None;
    }
    let again = cx.m.suspicion.found_alive.map(|at| at + ASK_LIMIT);
    if let Some(again) = again.filter(|again| cx.o.now < *again) {
        cx.wake(again);
        return None;
    }
    let since = *cx.m.suspicion.since.get_or_insert(cx.o.now);
    cx.probe(Duration::from_millis(100));
    let url = cx.member(leader).and_then(|m| m.api_url.clone())?;
    let streams = sample
        .receiver
        .as_ref()
        .is_some_and(|r| r.status == "streaming");
    // Both questions at once: each may cost its whole limit.
    let sql = if streams {
        leader_sql(cx, leader)
    } else {
        Some(false)
    };
    let peers: BTreeMap<MemberName, String> = [(leader.clone(), url)].into();
    let asked = super::lead::asked_since(cx, peers, since, ASK_LIMIT);
    let (true, Some(sql)) = (asked, sql) else {
        return None;
    };
    let agent =
        cx.o.peers
            .get(leader)
            .is_some_and(|answer| answer.status.is_some());
    if agent || sql {
        // Alive; looked at again from the start, in a while: every answer wakes us.
        cx.m.suspicion = Suspicion {
            found_alive: Some(cx.o.now),
            ..Suspicion::default()
        };
        cx.wake_in(ASK_LIMIT);
        return None;
    }
    if cx.may(Task::Fence) {
        cx.m.suspicion.promised_at = Some(cx.o.now);
        cx.push(Action::Promise(entry.record.epoch));
    }
    Some(Reason::Suspect {
        leader: leader.clone(),
        silent,
    })
}

/// Whether the leader's PostgreSQL answers; `None` while that is being found out. A stream says nothing
/// here: over a network that swallows packets it looks alive for seconds.
fn leader_sql(cx: &mut Cx, leader: &MemberName) -> Option<bool> {
    let Some(asked) = cx.m.suspicion.sql_asked else {
        if cx.may(Task::Lineage) {
            let upstream = cx.upstream_of(leader)?;
            cx.m.suspicion.sql_asked = Some(cx.o.now);
            cx.push(Action::AskLineage {
                leader: leader.clone(),
                upstream,
            });
        }
        cx.wake_in(SQL_LIMIT);
        return None;
    };
    if let Some(outcome) = cx
        .outcome(Task::Lineage)
        .filter(|outcome| outcome.at >= asked)
    {
        return Some(outcome.result == TaskResult::Done);
    }
    if cx.o.now.since(asked) >= SQL_LIMIT {
        return Some(false);
    }
    cx.wake(asked + SQL_LIMIT);
    None
}

/// Our promise is on disk. Whether its key is in etcd yet, the view tells.
fn promised_state(cx: &mut Cx, entry: &RecordEntry, leader: &MemberName) -> Reason {
    let Some(view) = cx.view() else {
        return Reason::EtcdNeverRead;
    };
    let epoch = entry.record.epoch;
    cx.probe(Duration::from_millis(200));
    cx.wake_in(Duration::from_millis(200));
    let promised_at = *cx.m.suspicion.promised_at.get_or_insert(cx.o.now);
    if view
        .fences
        .get(&cx.s.me)
        .is_none_or(|f| f.promise.epoch != epoch)
    {
        // An earlier life stored it and did not publish it, or the write is under way.
        if cx.may(Task::Fence) {
            cx.push(Action::Promise(epoch));
        }
        return Reason::WaitPromises {
            have: 0,
            need: u32::try_from(needed(view)).unwrap_or(u32::MAX),
        };
    }
    if let Err(have) = takeover_set(view, epoch, 0) {
        cx.m.suspicion.quorum_since = None;
        return wait_or_withdraw(cx, entry, promised_at, have, needed(view), leader);
    }
    let quorum_since = *cx.m.suspicion.quorum_since.get_or_insert(cx.o.now);
    // The most advanced of all promises takes over. If it does not, the next set is asked.
    let skip = usize::try_from(cx.o.now.since(quorum_since).as_millis() / BEST_GRACE.as_millis())
        .unwrap_or(usize::MAX);
    let set = takeover_set(view, epoch, skip).unwrap_or_default();
    let Some(best) = set.first() else {
        return Reason::EtcdNeverRead;
    };
    if *best != cx.s.me || cx.s.tags.nofailover() {
        return Reason::LeaveToPromised { best: best.clone() };
    }
    let claimant = keep::claimant(cx);
    if let Some(txn) = txns::fenced_claim(view, &claimant, &set) {
        cx.write(Task::Lock, txn);
    }
    Reason::FencedClaim {
        epoch: Epoch(epoch.0.saturating_add(1)),
    }
}

fn wait_or_withdraw(
    cx: &mut Cx,
    entry: &RecordEntry,
    promised_at: MonoTime,
    have: usize,
    need: usize,
    leader: &MemberName,
) -> Reason {
    let renewed =
        cx.o.dcs
            .record_seen
            .is_some_and(|seen| seen.modified == entry.modified && seen.since > promised_at);
    if renewed && cx.o.now.since(promised_at) >= QUORUM_GRACE && cx.may(Task::Fence) {
        cx.m.suspicion = Suspicion::default();
        cx.push(Action::Withdraw(entry.record.epoch));
        return Reason::Withdraw {
            why: format!("{leader} is alive and no quorum came together"),
        };
    }
    Reason::WaitPromises {
        have: u32::try_from(have).unwrap_or(u32::MAX),
        need: u32::try_from(need).unwrap_or(u32::MAX),
    }
}

/// A newer epoch leads, or we do: the promise has served. The key goes first, the disk after.
pub(super) fn withdraw_if_over(cx: &mut Cx, entry: &RecordEntry) -> Option<Reason> {
    let promised = cx.o.postgres.promised?;
    if promised >= entry.record.epoch {
        return None;
    }
    cx.m.suspicion = Suspicion::default();
    if cx.may(Task::Fence) {
        cx.push(Action::Withdraw(promised));
    }
    Some(Reason::Withdraw {
        why: format!("epoch {} leads now", entry.record.epoch),
    })
}

#[cfg(test)]
mod tests;
