//! Synchronous mode `on`, and what both synchronous modes share (`ha-behaviour.md` 16,
//! `safety.md` 4).
//!
//! Two things must agree at every moment: `synchronous_standby_names`, which says for whom PostgreSQL
//! waits before it acknowledges a commit, and `/sync`, which says who may be promoted without losing
//! one. The rule is one-sided: *who is in the key must be waited for*. So PostgreSQL is tightened
//! before the key grows, and the key shrinks before PostgreSQL is loosened.
//!
//! [`step_on`] looks at both as they are and returns one next step that is safe from there. It keeps no
//! plan: whatever was interrupted, by a crash, a failed write or another opinion about who is best,
//! the next call goes on from what it finds.

mod candidates;
mod memory;
mod names;

pub use candidates::{Candidate, candidates};
pub(crate) use memory::InForce;
pub use memory::SyncMemory;
pub use names::{Form, ParsedNames, parse_names, placeholder, render_names};

use super::observation::{SqlSample, Task};
use crate::config::ClusterConfig;
use crate::dcs::{ClusterView, SyncRecord};
use crate::ids::MemberName;
use crate::time::MonoTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::time::Duration;

/// Names in a set, spelled as in the member keys.
pub(crate) type Names = BTreeSet<String>;

/// After this time every WAL sender is taken to have read the changed setting, even when no WAL was
/// written since. PostgreSQL signals them before a new session sees the value, and each reads it the
/// next time it turns to its standby, so milliseconds are normal.
pub const SETTLE_TIME: Duration = Duration::from_secs(2);

/// How long PostgreSQL may go on showing other names than were written last before they are written
/// again.
pub const REWRITE_AFTER: Duration = Duration::from_secs(3);

/// The names of a standby, where they mean nothing until it is promoted. In synchronous mode they are never
/// empty: that commits wait at all is a flag which the checkpointer sets when it has seen names, seconds later
/// where it is busy, and whoever is promoted meanwhile would acknowledge what it has alone (S3,
/// `safety.md` 4.2).
pub fn standby_names(config: &ClusterConfig) -> String {
    if config.is_synchronous() {
        placeholder()
    } else {
        String::new()
    }
}

/// What a primary knows when it looks after synchronous replication.
#[derive(Clone, Copy, Debug)]
pub struct SyncInput<'a> {
    /// Now.
    pub now: MonoTime,
    /// Who asks; it holds the lock and runs as a primary.
    pub me: &'a MemberName,
    /// The cluster now.
    pub view: &'a ClusterView,
    /// PostgreSQL now.
    pub sample: &'a SqlSample,
    /// The names that were written last, [`super::observation::AppliedConf::sync_names`].
    pub written: &'a str,
    /// Short work under way.
    pub in_flight: &'a BTreeSet<Task>,
    /// The dynamic configuration.
    pub config: &'a ClusterConfig,
}

/// The next step towards agreement of `/sync` and PostgreSQL.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncStep {
    /// Write `/sync` with ourselves as its leader, by compare-and-set on the revision that was looked
    /// at, and only while we hold the lock.
    WriteKey {
        /// The new names.
        standbys: Vec<String>,
        /// The new quorum.
        quorum: u32,
    },
    /// Write these `synchronous_standby_names` and reload.
    SetNames(String),
    /// Nothing can be done yet.
    Wait(SyncWait),
    /// Delete `/sync`, by compare-and-set.
    DeleteKey,
    /// As it should be.
    Settled,
}

/// What is waited for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncWait {
    /// A write of the key or of the names is under way.
    Busy,
    /// PostgreSQL does not show the names yet that were written last.
    NamesNotShown,
    /// These standbys have not proved yet that commits wait for them.
    Proof(Vec<String>),
    /// Strict mode, and no standby can be counted on: commits wait for those in the key, or for ever.
    NoStandby,
}

/// A name as its member key spells it; names are compared without regard to case in PostgreSQL and in
/// `/sync`.
pub(crate) fn spelled(view: &ClusterView, name: &str) -> String {
    let member = view.members.keys().find(|m| m.same_standby(name));
    member.map_or(name, |m| m.as_str()).to_owned()
}

/// The names in `/sync`, spelled as in the member keys.
pub(crate) fn key_names(view: &ClusterView) -> Names {
    view.sync
        .standbys
        .iter()
        .map(|n| spelled(view, n))
        .collect()
}

pub(crate) fn keeps_key(sync: &SyncRecord, me: &MemberName) -> bool {
    sync.leader
        .as_ref()
        .is_some_and(|l| l.same_standby(me.as_str()))
}

pub(crate) fn write_key(names: Names, quorum: u32) -> SyncStep {
    SyncStep::WriteKey {
        standbys: names.into_iter().collect(),
        quorum,
    }
}

pub(crate) fn size(names: &Names) -> u32 {
    u32::try_from(names.len()).unwrap_or(u32::MAX)
}

/// The next step in mode `on`.
pub fn step_on(input: &SyncInput<'_>, memory: &mut SyncMemory) -> SyncStep {
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
    if !keeps_key(&view.sync, me) {
        return write_key(Names::new(), 0);
    }
    let in_force = InForce::read(input);
    let key = key_names(view);
    let able = candidates(view, me, sample, config);
    let wanted = usize::try_from(config.synchronous_node_count).unwrap_or(usize::MAX);
    let picked: Names = able.iter().take(wanted).map(|c| c.name.clone()).collect();
    if picked.is_empty()
        && let Some(step) = hold_strictly(input, &in_force)
    {
        return step;
    }
    if view.sync.quorum > 0 {
        // Left by quorum mode. In this mode any name in the key may be promoted without votes, so it
        // has to be built up anew from names that are all waited for.
        return write_key(Names::new(), 0);
    }

    // A standby that is to be replaced but still works stays until its successor has proved itself.
    let kept: Names = key
        .iter()
        .filter(|name| in_force.waits_for(name) && able.iter().any(|c| c.name == **name))
        .cloned()
        .collect();
    let proven = |c: &&Candidate| {
        picked.contains(&c.name)
            && in_force.waits_for(&c.name)
            && (kept.contains(&c.name) || memory.proves(input, c))
    };
    let confirmed: Names = able.iter().filter(proven).map(|c| c.name.clone()).collect();
    let target_key = if confirmed == picked {
        picked.clone()
    } else {
        &confirmed | &kept
    };
    if target_key != key {
        return write_key(target_key, 0);
    }
    let target = &picked | &key;
    if !in_force.is(&target, size(&target), Form::First) {
        return SyncStep::SetNames(render(&target, size(&target), Form::First));
    }
    if confirmed == picked {
        return SyncStep::Settled;
    }
    SyncStep::Wait(SyncWait::Proof(
        (&picked - &confirmed).into_iter().collect(),
    ))
}

pub(crate) fn render(names: &Names, count: u32, form: Form) -> String {
    let list: Vec<String> = names.iter().cloned().collect();
    render_names(&list, count, form)
}

/// Strict mode without any standby to count on (`ha-behaviour.md` 16.3): commits wait for those in the
/// key, or for nobody who exists. `None` when the mode is not strict.
pub(crate) fn hold_strictly(input: &SyncInput<'_>, in_force: &InForce) -> Option<SyncStep> {
    if !input.config.synchronous_mode_strict {
        return None;
    }
    let key = key_names(input.view);
    let quorum = input.view.sync.quorum;
    if quorum == 0 && !key.iter().all(|name| in_force.waits_for(name)) {
        // Something was acknowledged that they may lack, so they may not be promoted.
        let still = key
            .into_iter()
            .filter(|name| in_force.waits_for(name))
            .collect();
        return Some(write_key(still, 0));
    }
    let count = size(&key).saturating_sub(quorum).max(1);
    let held = if key.is_empty() {
        in_force.blocked
    } else {
        in_force.is(&key, count, Form::First) || in_force.is(&key, count, Form::Any)
    };
    if held {
        return Some(SyncStep::Wait(SyncWait::NoStandby));
    }
    Some(SyncStep::SetNames(names_of_key(&input.view.sync, true)))
}

/// While a write of the key is in doubt, PostgreSQL keeps its names: an attempt that is committed late would
/// promise what the names no longer enforce. The key is written once more instead, as it stands; whatever
/// comes of that, the earlier attempt cannot succeed after it.
pub fn unless_in_doubt(step: SyncStep, key: &SyncRecord, me: &MemberName, known: bool) -> SyncStep {
    if known || !keeps_key(key, me) || !matches!(step, SyncStep::SetNames(_)) {
        return step;
    }
    SyncStep::WriteKey {
        standbys: key.standbys.clone(),
        quorum: key.quorum,
    }
}

/// The names that a key promises: what a primary must start with, so that no commit is acknowledged
/// that those who may be promoted do not have (S9). Strict mode is never without a name.
pub fn names_of_key(sync: &SyncRecord, strict: bool) -> String {
    let count = u32::try_from(sync.standbys.len()).unwrap_or(u32::MAX);
    match (count, strict) {
        (0, true) => placeholder(),
        (0, false) => String::new(),
        _ => {
            let form = if sync.quorum > 0 {
                Form::Any
            } else {
                Form::First
            };
            render_names(
                &sync.standbys,
                count.saturating_sub(sync.quorum).max(1),
                form,
            )
        }
    }
}

/// What a candidate does in mode `on` before it promotes (`ha-behaviour.md` 16.4).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PrePromotion {
    /// The names to write to `/sync`, with ourselves as its leader and quorum zero, by
    /// compare-and-set. If that fails, there is no promotion.
    pub standbys: Vec<String>,
    /// The `synchronous_standby_names` to set before PostgreSQL leaves recovery.
    pub names: String,
}

/// The new primary starts alone; in strict mode it waits for those who were synchronous before.
pub fn pre_promotion(view: &ClusterView, me: &MemberName, strict: bool) -> PrePromotion {
    let mut standbys = Names::new();
    if strict {
        standbys = key_names(view);
        standbys.extend(view.sync.leader.as_ref().map(|l| spelled(view, l.as_str())));
        standbys.retain(|name| !me.same_standby(name));
    }
    let standbys: Vec<String> = standbys.into_iter().collect();
    let record = SyncRecord {
        standbys: standbys.clone(),
        ..SyncRecord::default()
    };
    PrePromotion {
        standbys,
        names: names_of_key(&record, strict),
    }
}

/// The next step when synchronous mode was switched off (`ha-behaviour.md` 16.6): the key goes first.
/// Settled means that PostgreSQL may have the operator's own names.
pub fn switch_off(sync: &SyncRecord) -> SyncStep {
    if sync.modified.is_some() {
        SyncStep::DeleteKey
    } else {
        SyncStep::Settled
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(crate) mod world;
