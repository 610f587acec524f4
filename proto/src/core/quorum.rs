//! Quorum commit, `synchronous_mode: quorum` (`ha-behaviour.md` 17, `safety.md` 4).
//!
//! PostgreSQL acknowledges a commit after any `n` of the names `S` have flushed it. `/sync` lists the
//! voters `V`, of whom a candidate needs `q` besides itself. No acknowledged commit is lost as long as
//! every `n` of `S` and every `q + 1` of `V` have a member in common, whatever combination of old and
//! new settings is in force while they change.
//!
//! [`next_change`] finds the next single change from any state, so a sequence that was cut off goes on
//! where it stood. What it may rely on is what is *known* of the past:
//! - the present key: every commit that it covers is on at least `#V - q` of its voters;
//! - proofs: a confirmed standby holds all that was acknowledged before the names last changed;
//! - the names: what was acknowledged since is on `n` of `S`.
//!
//! Patroni assumes after a restart that as many standbys are confirmed as the key promises, also when
//! it then removes those that the promise was about. Here a removed voter takes its share of the
//! promise along, so that the quorum falls only when a living standby has proved that it holds
//! everything.

use super::sync::{Form, InForce, Names, SyncInput, SyncMemory, SyncStep, SyncWait};
use super::sync::{candidates, hold_strictly, keeps_key, key_names, placeholder, render, size};
use super::sync::{spelled, write_key};
use crate::dcs::ClusterView;
use crate::ids::MemberName;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// How long a new primary waits for the first of its standbys to come back before it goes on without
/// them. Short enough to leave commits blocked for no longer than three seconds.
pub const RECONNECT_TIME: Duration = Duration::from_millis(2_500);

/// Everything that the next change depends on. The primary itself is in none of the sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct QuorumState {
    /// `V`: the voters in the key.
    pub voters: Names,
    /// `q`: the votes that a voter needs besides its own.
    pub quorum: u32,
    /// `S`: the names that PostgreSQL waits for.
    pub names: Names,
    /// `n`: how many of them.
    pub count: u32,
    /// `A`: standbys that stream and may be synchronous.
    pub active: Names,
    /// `c`: how many of `S` and `A` have proved that they hold what was acknowledged before the names
    /// last changed.
    pub confirmed: u32,
    /// `w`: how many acknowledgements are wanted; at least one.
    pub wanted: u32,
}

/// One change, which keeps the intersection.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// `synchronous_standby_names`.
    Names {
        /// How many PostgreSQL waits for.
        count: u32,
        /// Of whom.
        names: Names,
    },
    /// `/sync`.
    Key {
        /// The votes that a voter needs besides its own.
        quorum: u32,
        /// The voters.
        voters: Names,
    },
}

impl QuorumState {
    /// Whether every `n` of `S` meet every `q + 1` of `V`, and one of the sets contains the other, as
    /// all sequences keep it. Without voters there is nobody to meet.
    pub fn is_sound(&self) -> bool {
        let nested = self.names.is_subset(&self.voters) || self.voters.is_subset(&self.names);
        let everybody = size(&(&self.voters | &self.names));
        self.voters.is_empty() || (nested && everybody <= self.quorum.saturating_add(self.count))
    }

    /// A key with these voters, and the lowest quorum that is safe with them while PostgreSQL waits
    /// for `count` of the names.
    fn key(&self, voters: Names, count: u32) -> Change {
        // Every commit that the key covers is on this many of the voters that stay.
        let removed = size(&(&self.voters - &voters));
        let promised = size(&self.voters)
            .saturating_sub(self.quorum)
            .saturating_sub(removed);
        let held = if self.is_sound() {
            promised.max(self.confirmed)
        } else {
            self.confirmed
        };
        // Names that are no voters can acknowledge, too, but have no vote.
        let acknowledged = count.saturating_sub(size(&(&self.names - &voters)));
        let quorum = size(&voters).saturating_sub(acknowledged.min(held));
        Change::Key { quorum, voters }
    }

    /// A key without voters that are gone, unless nobody could be elected by it: what a voter that is
    /// removed has promised is gone with it until another one has proved the same. Waiting for that proof
    /// costs no commit, and meanwhile the one that is gone may come back and vote.
    fn key_without(&self, gone: &Names) -> Option<Change> {
        let change = self.key(&self.voters - gone, self.count);
        let nobody = |quorum: u32, voters: &Names| !voters.is_empty() && quorum >= size(voters);
        let worse = matches!(&change, Change::Key { quorum, voters }
            if nobody(*quorum, voters) && !nobody(self.quorum, &self.voters));
        let may_prove = !self.names.is_disjoint(&self.active);
        (!worse || !may_prove).then_some(change)
    }

    /// Takes a change over, to look further.
    pub fn apply(&mut self, change: &Change) {
        match change.clone() {
            Change::Names { count, names } => (self.count, self.names) = (count, names),
            Change::Key { quorum, voters } => (self.quorum, self.voters) = (quorum, voters),
        }
    }

    /// `n` for these names: no fewer than now, more where more are wanted and possible.
    fn count_for(&self, names: &Names) -> u32 {
        self.count.max(self.wanted).min(size(names))
    }
}

/// The next change; `None` when there is nothing to change, or nothing before more standbys are
/// confirmed. The leader in the key is the primary itself.
pub fn next_change(state: &QuorumState) -> Option<Change> {
    let mut now = state.clone();
    now.count = now.count.min(size(&now.names));
    if !now.is_sound() {
        return Some(now.key(now.names.clone(), now.count));
    }
    if now.names != now.voters {
        let change = if now.names.is_subset(&now.voters) {
            fewer_names_than_voters(&now)
        } else {
            more_names_than_voters(&now)
        };
        return change;
    }
    now.too_strict()
        .or_else(|| now.remove_gone())
        .or_else(|| now.add_new())
        .or_else(|| now.recount())
}

/// `S` is a part of `V`: a removal or an addition was begun.
fn fewer_names_than_voters(now: &QuorumState) -> Option<Change> {
    let abandoned = &(&now.voters - &now.names) - &now.active;
    if !abandoned.is_empty() {
        return now.key_without(&abandoned);
    }
    Some(Change::Names {
        count: now.count.max(1),
        names: now.voters.clone(),
    })
}

/// `V` is a part of `S`: the other way round, or the first names were set.
fn more_names_than_voters(now: &QuorumState) -> Option<Change> {
    if now.voters.is_empty() {
        // No voter, no promise: the names are free to change. Who is listed must have proved itself.
        let listed = || Some(now.key(now.names.clone(), now.count));
        return now
            .take_all_active()
            .or_else(|| listed().filter(|_| now.confirmed > 0));
    }
    let abandoned = &(&now.names - &now.voters) - &now.active;
    if !abandoned.is_empty() {
        let names = &now.names - &abandoned;
        let count = now.count.min(size(&names));
        return Some(Change::Names { count, names });
    }
    Some(now.key(now.names.clone(), now.count))
}

impl QuorumState {
    /// Nobody is in the key: commits wait for those who are there, or go on without anybody.
    fn take_all_active(&self) -> Option<Change> {
        let count = self.wanted.min(size(&self.active));
        (self.names != self.active).then(|| Change::Names {
            count,
            names: self.active.clone(),
        })
    }

    /// More than the intersection needs: PostgreSQL waits for too many, or an election asks for more
    /// votes than it has to.
    fn too_strict(&self) -> Option<Change> {
        let proved = self.quorum.saturating_add(self.count.min(self.confirmed));
        if self.names.is_empty() || proved <= size(&self.names) {
            return None;
        }
        if self.count > self.wanted {
            let enough = size(&self.voters)
                .saturating_sub(self.quorum)
                .max(self.wanted);
            return Some(Change::Names {
                count: enough,
                names: self.names.clone(),
            });
        }
        Some(self.key(self.voters.clone(), self.count))
    }

    /// Standbys that are gone leave `S` first while the quorum lasts, since an election can do without
    /// that many; then they leave `V` first, since commits wait for them.
    fn remove_gone(&self) -> Option<Change> {
        let gone = &self.names - &self.active;
        if gone.is_empty() {
            return None;
        }
        if gone == self.names {
            return Some(Change::Key {
                quorum: 0,
                voters: Names::new(),
            });
        }
        let spare = usize::try_from(self.quorum).unwrap_or(usize::MAX);
        if spare > 0 {
            let leaving: Names = gone.into_iter().take(spare).collect();
            let names = &self.names - &leaving;
            let count = self.count_for(&names);
            return Some(Change::Names { count, names });
        }
        self.key_without(&gone)
    }

    /// New standbys: those by which more acknowledgements come within reach are waited for first, the
    /// others get a vote first.
    fn add_new(&self) -> Option<Change> {
        let new = &self.active - &self.names;
        if new.is_empty() {
            return None;
        }
        if self.names.is_empty() {
            return self.take_all_active();
        }
        let missing = self.wanted.saturating_sub(self.count);
        if missing > 0 {
            let taken = usize::try_from(missing).unwrap_or(usize::MAX);
            let names: Names = self
                .names
                .iter()
                .cloned()
                .chain(new.into_iter().take(taken))
                .collect();
            let count = self.count_for(&names);
            return Some(Change::Names { count, names });
        }
        Some(self.key(&self.voters | &new, self.count))
    }

    /// Another number is wanted: up in PostgreSQL first, down in the key first.
    fn recount(&self) -> Option<Change> {
        let wanted = self.wanted.min(size(&self.names));
        if self.count < wanted {
            return Some(Change::Names {
                count: wanted,
                names: self.names.clone(),
            });
        }
        if self.count == wanted {
            return None;
        }
        if self.quorum < size(&self.voters).saturating_sub(wanted) {
            return Some(self.key(self.voters.clone(), wanted));
        }
        Some(Change::Names {
            count: wanted,
            names: self.names.clone(),
        })
    }
}

/// The next step in mode `quorum`, in the same manner as [`super::sync::step_on`].
pub fn step_quorum(input: &SyncInput<'_>, memory: &mut SyncMemory) -> SyncStep {
    if let Some(step) = memory.unclear(input) {
        return step;
    }
    let SyncInput {
        me,
        view,
        sample,
        config,
        ..
    } = *input;
    let in_force = InForce::read(input);
    if !keeps_key(&view.sync, me) {
        if view.sync.is_active() {
            memory.took_key(input.now);
        }
        return take_key(view, me, &in_force);
    }
    if in_force.blocked && !view.sync.standbys.is_empty() {
        // Nothing was acknowledged under the placeholder, so the key is as true as before.
        let voters = key_names(view);
        let count = size(&voters).saturating_sub(view.sync.quorum).max(1);
        return SyncStep::SetNames(render(&voters, count, Form::Any));
    }
    let able = candidates(view, me, sample, config);
    if able.is_empty()
        && let Some(step) = hold_strictly(input, &in_force)
    {
        return step;
    }
    let wanted = config.synchronous_node_count.max(1);
    let mut active = Names::new();
    for candidate in &able {
        if !candidate.nofailover || size(&active) < wanted {
            active.insert(candidate.name.clone());
        }
    }
    let counted = able
        .iter()
        .filter(|c| active.contains(&c.name) && in_force.names.contains(&c.name));
    let (proven, waiting): (Vec<_>, Vec<_>) = counted.partition(|c| memory.proves(input, c));
    let state = QuorumState {
        voters: key_names(view),
        quorum: view.sync.quorum,
        names: in_force.names.clone(),
        count: in_force.count,
        active,
        confirmed: u32::try_from(proven.len()).unwrap_or(u32::MAX),
        wanted,
    };
    let nobody_back = !state.names.is_empty() && state.names.is_disjoint(&state.active);
    if nobody_back && memory.took_key_within(input.now, RECONNECT_TIME) {
        return SyncStep::Wait(SyncWait::NoStandby);
    }
    match next_change(&state) {
        Some(Change::Key { quorum, voters }) => write_key(voters, quorum),
        Some(Change::Names { count, names }) => SyncStep::SetNames(text(input, &names, count)),
        None if !in_force.is(&state.names, state.count, Form::Any) => {
            SyncStep::SetNames(text(input, &state.names, state.count))
        }
        None if !waiting.is_empty() => SyncStep::Wait(SyncWait::Proof(
            waiting.into_iter().map(|c| c.name.clone()).collect(),
        )),
        None => SyncStep::Settled,
    }
}

/// In strict mode PostgreSQL is never without a name.
fn text(input: &SyncInput<'_>, names: &Names, count: u32) -> String {
    if names.is_empty() && input.config.synchronous_mode_strict {
        return placeholder();
    }
    render(names, count, Form::Any)
}

/// A new primary puts itself in the place of the old one, which becomes a voter like the others
/// (17.3, phase 1). What the key promises stays as it is: the new primary holds everything, and so
/// does the old one.
fn take_key(view: &ClusterView, me: &MemberName, in_force: &InForce) -> SyncStep {
    let voters = electors(view, me);
    if in_force.names.is_empty() && !voters.is_empty() && !in_force.blocked {
        let count = size(&voters).saturating_sub(view.sync.quorum).max(1);
        return SyncStep::SetNames(render(&voters, count, Form::Any));
    }
    write_key(voters, view.sync.quorum)
}

/// The leader and the voters of the key, without `me`.
fn electors(view: &ClusterView, me: &MemberName) -> Names {
    let mut names = key_names(view);
    names.extend(view.sync.leader.as_ref().map(|l| spelled(view, l.as_str())));
    names.retain(|name| !me.same_standby(name));
    names
}

/// The `synchronous_standby_names` that a candidate sets before it promotes (17.4). The key is not
/// touched: it goes on saying who holds what was acknowledged, until the new primary is one.
pub fn pre_promotion(view: &ClusterView, me: &MemberName, strict: bool) -> String {
    let names = electors(view, me);
    if names.is_empty() {
        return if strict { placeholder() } else { String::new() };
    }
    let count = size(&names)
        .saturating_sub(view.sync.quorum)
        .max(u32::from(strict));
    if count == 0 {
        String::new()
    } else {
        render(&names, count, Form::Any)
    }
}

#[cfg(test)]
mod tests;
