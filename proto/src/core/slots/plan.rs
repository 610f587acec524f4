//! From the slots that should exist to orders (`ha-behaviour.md` 15.1, 15.3, 15.4).

use super::{SlotInput, SlotKind, Use, WantedSlot, wanted};
use crate::config::SlotMatcher;
use crate::core::decision::SlotPlan;
use crate::core::observation::SlotRow;
use std::collections::BTreeSet;

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
        // A standby copies them from the leader: [`to_copy`].
        SlotKind::Logical { .. } => {}
    }
}

/// The logical slots that this standby lacks and can have from the leader, which publishes what it has.
pub fn to_copy(input: &SlotInput<'_>) -> Vec<String> {
    let other_leads = input.view.leader_name().is_some_and(|l| l != input.me);
    if !input.config.use_slots || !input.sample.in_recovery || !other_leads {
        return Vec::new();
    }
    let lacks = |name: &str| input.sample.slots.iter().all(|row| row.name != name);
    let wanted = wanted(input).slots.into_iter();
    wanted
        .filter(|(_, want)| matches!(want.kind, SlotKind::Logical { .. }))
        .map(|(name, _)| name)
        .filter(|name| lacks(name) && input.view.status.slots.contains_key(name))
        .collect()
}
