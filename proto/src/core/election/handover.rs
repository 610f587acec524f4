//! Whether a leader may step down, and in whose favour (`ha-behaviour.md` 5.3).

use super::{lag, needs_votes, sync_active};
use crate::config::{ClusterConfig, Tags};
use crate::core::observation::PeerAnswer;
use crate::dcs::ClusterView;
use crate::ids::MemberName;
use crate::wal::{Lsn, Timeline};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What a leader knows when it considers stepping down.
#[derive(Clone, Copy, Debug)]
pub struct Handover<'a> {
    /// Who asks.
    pub me: &'a MemberName,
    /// The cluster now.
    pub view: &'a ClusterView,
    /// What the peers said.
    pub answers: &'a BTreeMap<MemberName, PeerAnswer>,
    /// The dynamic configuration.
    pub config: &'a ClusterConfig,
    /// Only this member will do.
    pub candidate: Option<&'a MemberName>,
    /// This member will not do.
    pub excluded: Option<&'a MemberName>,
    /// A failover that somebody asked for without naming the leader: any member will do, also one
    /// that is not in `/sync`.
    pub any_member: bool,
    /// A successor must have this position, the end of the shutdown checkpoint. Without it, it must
    /// not be lagging.
    pub at_least: Option<Lsn>,
}

/// Why a member cannot take over from a leader.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unfit {
    /// Its tags forbid it.
    NoFailover,
    /// It has no REST URL.
    NoAddress,
    /// It is not in `/sync`.
    NotSynchronous,
    /// It did not answer, or its PostgreSQL did not.
    Unreachable,
    /// Its watchdog is required and unusable.
    Watchdog,
    /// It is behind by this many bytes.
    Behind(u64),
    /// It is on an older timeline than the cluster.
    OldTimeline(Option<Timeline>),
}

/// Whether a leader can hand over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Successors {
    /// Enough members are fit.
    pub possible: bool,
    /// How many must be.
    pub needed: usize,
    /// Who is, by name.
    pub fit: Vec<MemberName>,
    /// Who is not, and why.
    pub unfit: Vec<(MemberName, Unfit)>,
}

/// Whether somebody can take over from a leader that steps down (`ha-behaviour.md` 5.3).
pub fn failover_possible(question: &Handover<'_>) -> Successors {
    let candidate = question.candidate.filter(|c| Some(*c) != question.excluded);
    let mut result = Successors {
        needed: 1,
        ..Successors::default()
    };
    if needs_votes(question.view, question.config) && candidate.is_none() {
        let quorum = usize::try_from(question.view.sync.quorum).unwrap_or(usize::MAX);
        result.needed = quorum.saturating_add(1);
    }
    for name in question.view.members.keys() {
        let named = candidate.is_none_or(|c| c == name);
        if name == question.me || Some(name) == question.excluded || !named {
            continue;
        }
        match unfit(question, name) {
            None => result.fit.push(name.clone()),
            Some(why) => result.unfit.push((name.clone(), why)),
        }
    }
    result.possible = result.fit.len() >= result.needed;
    result
}

fn unfit(question: &Handover<'_>, name: &MemberName) -> Option<Unfit> {
    let Handover { view, config, .. } = *question;
    let member = view.member(name)?;
    if Tags(member.tags.clone()).nofailover() {
        return Some(Unfit::NoFailover);
    }
    if member.api_url.is_none() {
        return Some(Unfit::NoAddress);
    }
    if sync_active(view, config) && !question.any_member && !view.sync.lists(name) {
        return Some(Unfit::NotSynchronous);
    }
    let Some(status) = question.answers.get(name).and_then(|a| a.status.as_ref()) else {
        return Some(Unfit::Unreachable);
    };
    if status.agent_only {
        return Some(Unfit::Unreachable);
    }
    if Tags(status.tags.clone()).nofailover() {
        return Some(Unfit::NoFailover);
    }
    if status.watchdog_failed {
        return Some(Unfit::Watchdog);
    }
    let behind = match question.at_least {
        Some(lsn) => Some(lsn.bytes_ahead_of(status.position)).filter(|bytes| *bytes > 0),
        None => lag::excessive(view, config, status.position),
    };
    if let Some(bytes) = behind {
        return Some(Unfit::Behind(bytes));
    }
    let cluster = view
        .history
        .cluster_timeline()
        .filter(|_| config.check_timeline)?;
    let old = status.timeline.is_none_or(|its| its < cluster);
    old.then_some(Unfit::OldTimeline(status.timeline))
}

/// The successor that a leader prefers when nobody named one: the most advanced of those that are
/// fit; then one that is in `/sync`; then the highest `failover_priority`; then the first name.
pub fn best_candidate(question: &Handover<'_>) -> Option<MemberName> {
    let rank = |name: &MemberName| {
        let status = question.answers.get(name).and_then(|a| a.status.as_ref());
        let tags = status.map(|s| Tags(s.tags.clone())).unwrap_or_default();
        let position = status.map_or(Lsn::NONE, |s| s.position);
        (
            position,
            question.view.sync.lists(name),
            tags.failover_priority(),
        )
    };
    // `fit` is sorted by name, and `rev` makes the first of equals the last, which `max_by_key` takes.
    failover_possible(question)
        .fit
        .into_iter()
        .rev()
        .max_by_key(rank)
}
