//! What the leader publishes about slots in `/status` (`dcs-layout.md` 3.5).

use super::{SlotInput, SlotKind, wanted};
use crate::config::{ClusterConfig, Tags};
use crate::core::lag;
use crate::dcs::ClusterView;
use crate::ids::{MemberName, Revision};
use crate::time::MonoTime;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// When the leader last saw the members whose slots are to be retained. Kept over the whole life of
/// the agent; each tenure begins with the names that the key holds and fresh periods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotMemory {
    /// When the lock was created that we held at the last look.
    tenure: Option<Revision>,
    /// Slot, and when its member was last there.
    seen: BTreeMap<String, MonoTime>,
}

impl SlotMemory {
    /// `retain_slots` for the next `/status`, sorted: the slots of all members, our own among them,
    /// and of members that vanished less than `member_slots_ttl` ago. Permanent slots need no
    /// retaining, and members that do not stream have no slot.
    pub fn retain(
        &mut self,
        view: &ClusterView,
        me: &MemberName,
        config: &ClusterConfig,
        now: MonoTime,
    ) -> Vec<String> {
        if config.member_slots_ttl.is_zero() {
            self.seen.clear();
            return Vec::new();
        }
        let tenure = view
            .leader
            .as_ref()
            .filter(|l| l.name == *me)
            .map(|l| l.created);
        if tenure != self.tenure {
            self.tenure = tenure;
            self.seen = view
                .status
                .retain_slots
                .iter()
                .map(|n| (n.clone(), now))
                .collect();
        }
        for (name, entry) in &view.members {
            if !Tags(entry.record.tags.clone()).nostream() {
                self.seen.insert(name.slot_name(), now);
            }
        }
        self.seen.retain(|name, at| {
            let permanent = config.slots.iter().any(|(slot, _)| slot == name);
            !permanent && now.since(*at) < config.member_slots_ttl
        });
        self.seen.keys().cloned().collect()
    }
}

/// `slots` for the next `/status`: how far each slot is that we look after, and under our own slot's
/// name how far we are ourselves, so that the others can move the slots that they keep for us. With
/// `member_slots_ttl: 0` only the permanent ones.
pub fn status_slots(input: &SlotInput<'_>) -> BTreeMap<String, u64> {
    let ours = wanted(input).slots;
    let keeps = !input.config.member_slots_ttl.is_zero();
    let permanent = |name: &str| input.config.slots.iter().any(|(slot, _)| slot == name);
    let mut slots: BTreeMap<String, u64> = input
        .sample
        .slots
        .iter()
        .filter(|row| keeps || permanent(&row.name))
        .filter_map(|row| {
            let lsn = match ours.get(&row.name)?.kind {
                SlotKind::Physical => row.restart_lsn,
                SlotKind::Logical { .. } => row.confirmed_flush_lsn,
            };
            Some((row.name.clone(), lsn.some()?.0))
        })
        .collect();
    if keeps && let Some(own) = lag::position(input.sample).some() {
        slots.insert(input.me.slot_name(), own.0);
    }
    slots
}
