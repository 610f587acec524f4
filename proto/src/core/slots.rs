//! Replication slots: which should exist on this member, how far they should be, and what has to be
//! done about it (`ha-behaviour.md` 15).
//!
//! Every member keeps a slot for every other one, so that whoever is promoted has kept the WAL that
//! the others still need. Slots that nobody uses here are moved along with what the leader publishes.

mod status;

pub use status::{SlotMemory, status_slots};

use super::decision::SlotPlan;
use super::observation::{SlotRow, SqlSample};
use crate::config::{ClusterConfig, PermanentSlot, SlotMatcher, Tags};
use crate::dcs::{ClusterView, MemberRecord};
use crate::ids::MemberName;
use crate::wal::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};

/// What a member knows when it looks after its slots.
#[derive(Clone, Copy, Debug)]
pub struct SlotInput<'a> {
    /// Who asks.
    pub me: &'a MemberName,
    /// Its tags.
    pub tags: &'a Tags,
    /// The cluster now.
    pub view: &'a ClusterView,
    /// PostgreSQL now.
    pub sample: &'a SqlSample,
    /// The dynamic configuration.
    pub config: &'a ClusterConfig,
}

/// What a slot is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SlotKind {
    /// For a standby.
    Physical,
    /// For a consumer of decoded changes.
    Logical {
        /// Which database.
        database: String,
        /// Output plugin.
        plugin: String,
    },
}

/// Whether somebody should be using a slot here.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Use {
    /// A standby streams through it, or will; it moves by itself.
    Active,
    /// Kept in case this member is promoted; it has to be moved along.
    Idle,
    /// Kept for a member that has vanished; it must stay where it is.
    Retained,
}

/// A slot that should exist.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedSlot {
    /// What it is for.
    pub kind: SlotKind,
    /// Who should be using it.
    pub usage: Use,
    /// How far it should be at least.
    pub target: Option<Lsn>,
}

/// The slots that should exist here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedSlots {
    /// By name.
    pub slots: BTreeMap<String, WantedSlot>,
    /// Sentences about contradictions in the configuration.
    pub problems: Vec<String>,
}

impl SlotInput<'_> {
    /// Whether this member serves the others: it holds the lock, or runs as a primary.
    fn leads(&self) -> bool {
        self.view.leader_name() == Some(self.me) || !self.sample.in_recovery
    }

    fn tags_of(&self, name: &MemberName) -> Option<Tags> {
        if name == self.me {
            return Some(self.tags.clone());
        }
        self.view.member(name).map(|m| Tags(m.tags.clone()))
    }

    /// The members from `name` up to the leader, `name` first; `None` for a loop.
    fn chain(&self, name: &MemberName) -> Option<Vec<MemberName>> {
        let mut chain = vec![name.clone()];
        let mut at = name.clone();
        while let Some(source) = self.tags_of(&at).and_then(|t| t.replicatefrom()) {
            // An unknown source means that the leader is followed.
            if self.tags_of(&source).is_none() || source == at {
                break;
            }
            if chain.contains(&source) {
                return None;
            }
            chain.push(source.clone());
            at = source;
        }
        Some(chain)
    }

    /// Whether the member can have logical slots: it may be promoted, and gets the stream that keeps
    /// catalog rows from being vacuumed under them.
    fn can_decode(&self, name: &MemberName) -> bool {
        if name == self.me && self.leads() {
            return self.config.standby_cluster.is_none();
        }
        let barred = self.tags_of(name).is_none_or(|t| t.nofailover());
        let streams = self.chain(name).is_some_and(|chain| {
            chain
                .iter()
                .all(|n| self.tags_of(n).is_none_or(|t| !t.nostream()))
        });
        !barred && streams && self.config.standby_cluster.is_none()
    }

    /// Whether `hot_standby_feedback` must be on: this member has logical slots, or one that streams
    /// through it has.
    pub fn needs_feedback(&self) -> bool {
        let logical =
            |slot: &(String, PermanentSlot)| matches!(slot.1, PermanentSlot::Logical { .. });
        let below = |name: &MemberName| {
            self.can_decode(name) && self.chain(name).is_some_and(|c| c.contains(self.me))
        };
        self.config.slots.iter().any(logical)
            && (self.can_decode(self.me) || self.view.members.keys().any(below))
    }
}

/// The slots that should exist on this member (`ha-behaviour.md` 15.1 and 15.2).
pub fn wanted(input: &SlotInput<'_>) -> WantedSlots {
    let mut wanted = WantedSlots::default();
    member_slots(input, &mut wanted);
    let own = input.me.slot_name();
    if !input.tags.nofailover() || input.leads() {
        permanent_slots(input, &own, &mut wanted);
        let keeps = !input.config.member_slots_ttl.is_zero();
        for name in input
            .view
            .status
            .retain_slots
            .iter()
            .filter(|n| keeps && **n != own)
        {
            wanted.slots.entry(name.clone()).or_insert(WantedSlot {
                kind: SlotKind::Physical,
                usage: Use::Retained,
                target: None,
            });
        }
    }
    wanted
}

fn member_slots(input: &SlotInput<'_>, wanted: &mut WantedSlots) {
    let SlotInput {
        me, view, config, ..
    } = *input;
    let leads = input.leads();
    let everywhere = !config.member_slots_ttl.is_zero() && (leads || !input.tags.nofailover());
    let mut owners: BTreeMap<String, &MemberName> = BTreeMap::new();
    for (name, entry) in &view.members {
        let tags = Tags(entry.record.tags.clone());
        if name == me || tags.nostream() {
            continue;
        }
        let source = tags.replicatefrom();
        let from_here = source.as_ref() == Some(me);
        let active = if leads {
            from_here
                || source
                    .as_ref()
                    .is_none_or(|s| !view.members.contains_key(s))
        } else {
            from_here && view.leader_name() != Some(name)
        };
        if !active && !everywhere {
            continue;
        }
        let slot = name.slot_name();
        if let Some(other) = owners.insert(slot.clone(), name) {
            wanted
                .problems
                .push(format!("members {other} and {name} share the slot {slot}"));
        }
        let usage = if active { Use::Active } else { Use::Idle };
        let target = member_target(view, &slot, &entry.record, source.is_some());
        wanted.slots.insert(
            slot,
            WantedSlot {
                kind: SlotKind::Physical,
                usage,
                target,
            },
        );
    }
}

/// How far a member's slot may move: what the leader publishes for it. The leader has no active slot
/// for a member that streams from another one, so there the member's own word counts, as it does
/// under leaders that publish too little (Patroni before 4.0).
fn member_target(
    view: &ClusterView,
    slot: &str,
    member: &MemberRecord,
    cascades: bool,
) -> Option<Lsn> {
    let published = view
        .status
        .slots
        .get(slot)
        .copied()
        .map(Lsn)
        .and_then(Lsn::some);
    let leader = view.leader_name().and_then(|l| view.member(l));
    let old_leader = leader
        .and_then(|l| l.version.as_deref()?.split('.').next()?.parse::<u32>().ok())
        .is_some_and(|major| major < 4);
    let own = member.xlog_location.filter(|_| cascades || old_leader);
    published.max(own)
}

fn permanent_slots(input: &SlotInput<'_>, own: &str, wanted: &mut WantedSlots) {
    let SlotInput { view, config, .. } = *input;
    let cluster = if config.standby_cluster.is_some() {
        "standby"
    } else {
        "primary"
    };
    let can_decode = input.can_decode(input.me);
    for (name, slot) in &config.slots {
        let target = view
            .status
            .slots
            .get(name)
            .copied()
            .map(Lsn)
            .and_then(Lsn::some);
        let (kind, usage) = match slot {
            PermanentSlot::Physical { cluster_type } => {
                let elsewhere = cluster_type.as_deref().is_some_and(|c| c != cluster);
                if elsewhere || name == own || wanted.slots.contains_key(name) {
                    continue;
                }
                let usage = if input.leads() {
                    Use::Active
                } else {
                    Use::Idle
                };
                (SlotKind::Physical, usage)
            }
            PermanentSlot::Logical { database, plugin } => {
                if wanted.slots.contains_key(name) {
                    let text = format!("logical slot {name} has the name of a member's slot");
                    wanted.problems.push(text);
                    continue;
                }
                if !can_decode {
                    continue;
                }
                let (database, plugin) = (database.clone(), plugin.clone());
                (SlotKind::Logical { database, plugin }, Use::Idle)
            }
        };
        wanted.slots.insert(
            name.clone(),
            WantedSlot {
                kind,
                usage,
                target,
            },
        );
    }
}

/// What has to be done about the slots that exist and those that should (`ha-behaviour.md` 15.1, 15.3
/// and 15.4). The next plan goes on from what this one achieved: what is dropped to be created anew, is
/// created then.
pub fn plan(input: &SlotInput<'_>) -> SlotPlan {
    let mut plan = SlotPlan::default();
    if !input.config.use_slots {
        return plan;
    }
    let wanted = wanted(input).slots;
    let mut present: BTreeSet<&str> = BTreeSet::new();
    for row in &input.sample.slots {
        present.insert(&row.name);
        // PostgreSQL's own slot synchronisation looks after these.
        if row.synced {
            continue;
        }
        let obsolete = match wanted.get(&row.name) {
            None => is_foreign(input, row) && !input.config.pause,
            Some(want) if !matches(row, &want.kind) => true,
            Some(_) if row.failover && blocks_synchronisation(input, row) => true,
            Some(want) => keep(input, row, want, &mut plan),
        };
        if obsolete && !row.active {
            plan.drop.push(row.name.clone());
        }
    }
    for (name, want) in wanted
        .iter()
        .filter(|(name, _)| !present.contains(name.as_str()))
    {
        create(input, name, want, &mut plan);
    }
    plan
}

/// Whether a slot that is not wanted may be dropped (S15).
fn is_foreign(input: &SlotInput<'_>, row: &SlotRow) -> bool {
    if row.failover {
        return blocks_synchronisation(input, row);
    }
    !input
        .config
        .ignore_slots
        .iter()
        .any(|matcher| is_ignored(matcher, row))
}

/// A failover slot of the time when this member was the primary: the server refuses to synchronise
/// the leader's slot of the same name over it.
fn blocks_synchronisation(input: &SlotInput<'_>, row: &SlotRow) -> bool {
    let other_leads = input.view.leader_name().is_some_and(|l| l != input.me);
    row.failover && !row.synced && input.sample.in_recovery && other_leads
}

fn is_ignored(matcher: &SlotMatcher, row: &SlotRow) -> bool {
    let kind = if row.logical { "logical" } else { "physical" };
    let fits = |wanted: &Option<String>, actual: Option<&str>| {
        wanted.as_deref().is_none_or(|w| Some(w) == actual)
    };
    fits(&matcher.name, Some(&row.name))
        && fits(&matcher.kind, Some(kind))
        && fits(&matcher.database, row.database.as_deref())
        && fits(&matcher.plugin, row.plugin.as_deref())
}

fn matches(row: &SlotRow, kind: &SlotKind) -> bool {
    match kind {
        SlotKind::Physical => !row.logical,
        SlotKind::Logical { database, plugin } => {
            row.logical
                && row.database.as_deref() == Some(database)
                && row.plugin.as_deref() == Some(plugin)
        }
    }
}

/// Looks after a slot that exists and should; returns whether it must be dropped first.
fn keep(input: &SlotInput<'_>, row: &SlotRow, want: &WantedSlot, plan: &mut SlotPlan) -> bool {
    if let SlotKind::Logical { database, .. } = &want.kind {
        // On the primary an invalidated slot is the consumer's affair; a copy is simply copied anew.
        if !input.leads() && row.lost {
            return true;
        }
        let reachable = want.target.map(|t| t.min(input.sample.replay_lsn));
        if !input.leads()
            && !row.active
            && let Some(target) = reachable.filter(|t| *t > row.confirmed_flush_lsn)
        {
            plan.advance_logical
                .push((row.name.clone(), database.clone(), target));
        }
        return false;
    }
    if row.lost {
        return true;
    }
    let other_leads = input.view.leader_name().is_some_and(|l| l != input.me);
    let is_primary = !input.sample.in_recovery && input.view.leader.is_some();
    // Left from a time when it was used here: it holds back vacuum with what nobody updates.
    if want.usage == Use::Idle && row.has_xmin && (other_leads || is_primary) {
        return true;
    }
    if want.usage == Use::Active || row.has_xmin {
        return false;
    }
    let Some(restart) = row.restart_lsn.some() else {
        return true;
    };
    if want.usage == Use::Idle
        && !row.active
        && let Some(target) = want.target.filter(|t| *t > restart)
    {
        plan.advance.push((row.name.clone(), target));
    }
    false
}

fn create(input: &SlotInput<'_>, name: &str, want: &WantedSlot, plan: &mut SlotPlan) {
    match &want.kind {
        SlotKind::Physical => plan.create_physical.push(name.to_owned()),
        SlotKind::Logical { database, plugin } if !input.sample.in_recovery => {
            plan.create_logical
                .push((name.to_owned(), database.clone(), plugin.clone()));
        }
        SlotKind::Logical { .. } => {
            // Only what the leader has can be copied from it.
            let other_leads = input.view.leader_name().is_some_and(|l| l != input.me);
            if other_leads && input.view.status.slots.contains_key(name) {
                plan.copy_logical.push(name.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests;
