//! Replication slots: which should exist on this member, how far they should be, and what has to be
//! done about it (`ha-behaviour.md` 15).
//!
//! Every member keeps a slot for every other one, so that whoever is promoted has kept the WAL that
//! the others still need. Slots that nobody uses here are moved along with what the leader publishes.

mod plan;
mod status;

pub use plan::{plan, to_copy};
pub use status::{SlotMemory, status_slots};

use super::observation::SqlSample;
use crate::config::{ClusterConfig, PermanentSlot, Tags};
use crate::dcs::{ClusterView, MemberRecord};
use crate::ids::MemberName;
use crate::wal::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

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

#[cfg(test)]
mod tests;
