//! Who takes over: the race for a free lock, and whether a leader may hand over
//! (`ha-behaviour.md` 5 and 6.3).
//!
//! The rules are Patroni's, since members of both kinds race for the same lock and must come to
//! compatible answers. One is added among members of ours: a server on an older timeline never
//! outranks one on a newer timeline, whatever the numbers say, because positions on different
//! timelines have no order.

mod handover;
mod verdict;

pub use handover::{Handover, Successors, Unfit, best_candidate, failover_possible};
pub use verdict::Verdict;

use super::lag;
use super::memory::LastLocked;
use super::observation::{PeerAnswer, PeerStatus};
use crate::config::{ClusterConfig, SyncMode, Tags};
use crate::dcs::{ClusterView, FailoverRecord};
use crate::ids::MemberName;
use crate::wal::{Lsn, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a member knows when it considers taking the lock.
#[derive(Clone, Copy, Debug)]
pub struct Race<'a> {
    /// Who asks.
    pub me: &'a MemberName,
    /// Its tags.
    pub tags: &'a Tags,
    /// Its position, [`lag::position`].
    pub position: Lsn,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// The cluster now.
    pub view: &'a ClusterView,
    /// Who held the lock last, and members at that time: they are asked although their keys may have
    /// expired since.
    pub last: &'a LastLocked,
    /// What the peers said. The caller drops answers that are too old.
    pub answers: &'a BTreeMap<MemberName, PeerAnswer>,
    /// The dynamic configuration.
    pub config: &'a ClusterConfig,
}

/// Which comparison is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ballot {
    /// Nobody asked for a change of leader.
    Automatic,
    /// A request is in `/failover`: lag does not count, and its `leader` is not compared with.
    Requested,
}

/// Whether synchronous mode is asked for and in force: then only members of `/sync` count.
pub fn sync_active(view: &ClusterView, config: &ClusterConfig) -> bool {
    config.is_synchronous() && view.sync.is_active()
}

/// Whether a takeover needs votes. A key with a quorum in it needs them in mode `on` too: it was
/// written by a primary that acknowledged after any of several standbys, and stays true until the
/// next primary has rewritten it.
fn needs_votes(view: &ClusterView, config: &ClusterConfig) -> bool {
    sync_active(view, config)
        && (config.synchronous_mode == SyncMode::Quorum || view.sync.quorum > 0)
}

/// Votes that `me` has before any peer is asked: it counts itself as one of the `quorum + 1` if it is
/// named in `/sync`, and must find one more if it is not.
pub fn initial_votes(view: &ClusterView, me: &MemberName) -> i64 {
    if view.sync.involves(me) { 0 } else { -1 }
}

impl Race<'_> {
    /// Everybody whose state matters, without this member.
    fn electorate(&self, ballot: Ballot) -> BTreeSet<MemberName> {
        let active = sync_active(self.view, self.config);
        let mut names: BTreeSet<MemberName> = self.view.members.keys().cloned().collect();
        match ballot {
            Ballot::Automatic => {
                names.extend(self.last.members.keys().cloned());
                if self.config.failsafe_mode
                    && let Some(failsafe) = &self.view.failsafe
                {
                    names.extend(failsafe.members.keys().cloned());
                }
                names.retain(|n| !active || self.view.sync.involves(n));
            }
            Ballot::Requested => {
                let leaving = self.view.failover.as_ref().and_then(|f| f.leader.as_ref());
                names.retain(|n| Some(n) != leaving);
                names.retain(|n| !active || self.view.sync.lists(n));
            }
        }
        names.remove(self.me);
        names
    }

    fn url(&self, name: &MemberName) -> Option<String> {
        let current = self.view.member(name).and_then(|m| m.api_url.clone());
        let failsafe = || self.view.failsafe.as_ref()?.members.get(name).cloned();
        current
            .or_else(failsafe)
            .or_else(|| self.last.members.get(name).cloned())
    }

    /// Whether the peer announces that it applies the rule on timelines, as we do.
    fn orders_by_timeline(&self, peer: &MemberName) -> bool {
        self.view
            .member(peer)
            .is_some_and(|m| m.capabilities.is_some())
    }
}

/// Whom to ask before [`stand`] or [`compare`] can be answered: name and REST URL. Members that are
/// tagged `nofailover` are asked only if they are voters.
pub fn peers_to_ask(race: &Race<'_>) -> BTreeMap<MemberName, String> {
    let ballot = if race.view.failover.is_some() {
        Ballot::Requested
    } else {
        Ballot::Automatic
    };
    let voting = needs_votes(race.view, race.config);
    let mut names = race.electorate(ballot);
    names.extend(
        race.view
            .failover
            .as_ref()
            .and_then(|f| f.candidate.clone()),
    );
    names
        .into_iter()
        .filter(|name| name != race.me)
        .filter(|name| {
            let barred = race
                .view
                .member(name)
                .is_some_and(|m| Tags(m.tags.clone()).nofailover());
            !barred || (voting && race.view.sync.lists(name))
        })
        .filter_map(|name| race.url(&name).map(|url| (name, url)))
        .collect()
}

/// An answer of a member that could be promoted; `None` when there is no answer or it is limited.
fn unlimited(answer: Option<&PeerAnswer>) -> Option<&PeerStatus> {
    let status = answer?.status.as_ref()?;
    let barred = Tags(status.tags.clone()).nofailover();
    (!barred && !status.watchdog_failed && !status.agent_only).then_some(status)
}

/// Whether this member may take the free lock: rules 7, 8 and 10 to 12 of `ha-behaviour.md` 5.1. The
/// rules before them depend on what the local server is doing, and are the caller's.
pub fn stand(race: &Race<'_>) -> Verdict {
    let Race {
        me, view, config, ..
    } = *race;
    if race.tags.nofailover() {
        return Verdict::NoFailover;
    }
    let active = sync_active(view, config);
    if let Some(request) = &view.failover {
        if request.is_switchover() && active && !view.sync.involves(me) {
            return Verdict::NotSynchronous;
        }
        return stand_on_request(race, request);
    }
    if config.failsafe_mode
        && let Some(failsafe) = &view.failsafe
        && !failsafe.members.is_empty()
        && !failsafe.members.contains_key(me)
    {
        return Verdict::NotInFailsafe;
    }
    if active && config.synchronous_mode == SyncMode::On && !view.sync.involves(me) {
        return Verdict::NotSynchronous;
    }
    compare(race, Ballot::Automatic)
}

/// The same while a request stands in `/failover` (`ha-behaviour.md` 6.3). A living candidate is left
/// alone with the lock; how long, is the caller's decision.
pub fn stand_on_request(race: &Race<'_>, request: &FailoverRecord) -> Verdict {
    let Race {
        me, view, config, ..
    } = *race;
    if let Some(candidate) = &request.candidate {
        if candidate == me {
            // Being a voter does not mean to have everything: a commit may be on any others. Only who
            // asks for a failover without naming a leader takes that upon himself.
            if request.is_switchover() && needs_votes(view, config) {
                return compare(race, Ballot::Requested);
            }
            return Verdict::Requested;
        }
        if config.pause {
            return Verdict::Paused;
        }
        let active = sync_active(view, config);
        if active && config.synchronous_mode == SyncMode::On && !view.sync.involves(me) {
            return Verdict::NotSynchronous;
        }
        let alive = unlimited(race.answers.get(candidate)).is_some();
        if alive && view.members.contains_key(candidate) {
            return Verdict::LeaveTo {
                candidate: candidate.clone(),
            };
        }
    }
    if config.pause {
        return Verdict::Paused;
    }
    if request.leader.as_ref() == Some(me) {
        let handover = failover_possible(&Handover {
            me,
            view,
            answers: race.answers,
            config,
            candidate: None,
            excluded: request.candidate.as_ref(),
            any_member: false,
            at_least: None,
        });
        return if handover.possible {
            Verdict::SteppingDown {
                replaced_by: handover.fit,
            }
        } else {
            Verdict::Best
        };
    }
    compare(race, Ballot::Requested)
}

/// The comparison with all others (`ha-behaviour.md` 5.2).
pub fn compare(race: &Race<'_>, ballot: Ballot) -> Verdict {
    let Race {
        me, view, config, ..
    } = *race;
    if ballot == Ballot::Automatic
        && let Some(behind) = lag::excessive(view, config, race.position)
    {
        return Verdict::Lagging {
            behind,
            limit: config.maximum_lag_on_failover,
        };
    }
    if let Some(verdict) = old_timeline(race) {
        return verdict;
    }
    let active = sync_active(view, config);
    let voting = needs_votes(view, config);
    let former = if active {
        view.sync.leader.as_ref()
    } else {
        race.last.leader.as_ref()
    };
    let is_former = |peer: &MemberName| former.is_some_and(|f| f.same_standby(peer.as_str()));
    let mut votes = initial_votes(view, me);
    let mut ahead = false;
    for peer in race.electorate(ballot) {
        let Some(status) = unlimited(race.answers.get(&peer)) else {
            continue;
        };
        if status.is_primary {
            return Verdict::PeerIsPrimary { peer };
        }
        let voter = voting && view.sync.lists(&peer);
        if let Some(blocking) = peer_is_better(race, &peer, status) {
            // The former primary may hold WAL that nobody acknowledged; it need not come first.
            if !(active && is_former(&peer)) {
                return blocking;
            }
            ahead = true;
        }
        if status.position == Lsn::NONE {
            continue;
        }
        let its = Tags(status.tags.clone()).failover_priority();
        let mine = race.tags.failover_priority();
        let may_block = !is_former(&peer) && (voter || !voting);
        if status.position == race.position && its > mine && may_block {
            return Verdict::HigherPriority { peer, its, mine };
        }
        votes += i64::from(voter && comparable(race, status));
    }
    let was_leader = view
        .sync
        .leader
        .as_ref()
        .is_some_and(|l| l.same_standby(me.as_str()));
    // The keeper of the key has everything that it covers, unless somebody has been promoted since: a
    // primary that died before it had written the key may have acknowledged by its own names.
    let superseded = view.history.lines.last().is_some_and(|line| {
        let by_another = line.new_leader.as_deref().map(|by| !me.same_standby(by));
        by_another.unwrap_or(race.timeline.is_none_or(|mine| mine <= line.timeline))
    });
    // Nor does whoever was promoted last need anybody: what the key covers it had then.
    let promoted_last = claimed_timeline(view, race.last).is_some()
        && view.history.lines.last().is_some_and(|line| {
            let by_us = |by: &str| me.same_standby(by);
            line.new_leader.as_deref().is_some_and(by_us)
                && race.timeline == Some(line.timeline.next())
        });
    let keeper = (was_leader && !superseded || promoted_last) && !ahead;
    if !voting || votes >= i64::from(view.sync.quorum) || keeper {
        return Verdict::Best;
    }
    Verdict::NotEnoughVotes {
        have: votes,
        need: view.sync.quorum,
    }
}

/// A number that nobody has claimed in `/history` comes of a promotion by hand. What is on that timeline
/// was never promised to anybody, and commits that were acknowledged meanwhile are not: whatever the
/// number, a timeline of a leader outranks it (S3).
fn newer_timeline(
    race: &Race<'_>,
    peer: &MemberName,
    its: Timeline,
    mine: Timeline,
) -> Option<Verdict> {
    let peer = peer.clone();
    let claimed = claimed_timeline(race.view, race.last);
    match claimed.map(|claimed| (its <= claimed, mine <= claimed)) {
        Some((true, false)) => Some(Verdict::PeerOnClaimedTimeline { peer, its, mine }),
        Some((false, true)) => None,
        _ => (its > mine).then_some(Verdict::PeerOnNewerTimeline { peer, its, mine }),
    }
}

/// Whether its position says what it has, beside ours. One that somebody has promoted went on from anywhere on a
/// timeline of a leader, and may have got more of that than we (S3).
fn comparable(race: &Race<'_>, status: &PeerStatus) -> bool {
    let claimed = claimed_timeline(race.view, race.last);
    let by_hand = |timeline: Option<Timeline>| claimed.is_some() && timeline > claimed;
    !by_hand(status.timeline) || by_hand(race.timeline)
}

/// Up to where the numbers of timelines are known to be those of leaders: all that were promoted were
/// members of ours, and these claim a number before they use it ([`super::history::claim`]). `None`
/// where Patroni may have led since, which writes `/history` later.
///
/// Before the first promotion `/history` is empty, and the leader's own timeline counts. Its key forgets that when its
/// server is gone.
pub(super) fn claimed_timeline(view: &ClusterView, last: &LastLocked) -> Option<Timeline> {
    let record = &view.record.as_ref()?.record;
    let native = super::tenure::is_native(view)
        && all_ours(view)
        && last
            .leader
            .as_ref()
            .is_none_or(|leader| *leader == record.owner);
    let published = view.member(&record.owner).and_then(|m| m.timeline);
    let published = published.max(last.timeline);
    native
        .then(|| view.history.cluster_timeline().max(published))
        .flatten()
}

/// No member is a Patroni.
pub(super) fn all_ours(view: &ClusterView) -> bool {
    let mut members = view.members.values();
    members.all(|member| member.record.capabilities.is_some())
}

fn old_timeline(race: &Race<'_>) -> Option<Verdict> {
    let cluster = race.view.history.cluster_timeline()?;
    let old = race.timeline.is_none_or(|mine| mine < cluster);
    let checked = race.config.check_timeline && race.config.standby_cluster.is_none();
    (checked && old).then_some(Verdict::OldTimeline {
        mine: race.timeline,
        cluster,
    })
}

/// Whether the peer holds WAL that we do not hold.
fn peer_is_better(race: &Race<'_>, peer: &MemberName, status: &PeerStatus) -> Option<Verdict> {
    if race.orders_by_timeline(peer)
        && let (Some(its), Some(mine)) = (status.timeline, race.timeline)
        && its != mine
    {
        return newer_timeline(race, peer, its, mine);
    }
    (status.position > race.position).then(|| Verdict::PeerAhead {
        peer: peer.clone(),
        its: status.position,
        mine: race.position,
    })
}

#[cfg(test)]
mod tests;
