//! When a standby copies the leader's logical slots (`ha-behaviour.md` 15.3). PostgreSQL reads slots only
//! when it starts, so each copy restarts the standby: one standby at a time, never while the cluster
//! may need it, and not again and again.

use super::cx::Cx;
use super::down;
use super::job::Job;
use super::keep;
use super::observation::{Receiver, SqlSample};
use super::reason::Reason;
use super::slots;
use crate::dcs::MemberRecord;
use crate::ids::MemberName;
use crate::time::MonoTime;
use std::time::Duration;

/// Members lack a new slot at the same moment, and their keys say a moment later that they restart. Each
/// waits this long for every member before it in the alphabet.
const TURN: Duration = Duration::from_secs(4);

/// A member that is down for good does not keep the others from having the slot.
const PATIENCE: Duration = Duration::from_secs(60);

/// After a copy, before another on the same member; doubled with each, up to half an hour. What could not
/// be used after a restart will not be a second later.
const PAUSE: Duration = Duration::from_secs(30);

/// Without a copy for this long, the next one is the first again.
const FORGET: Duration = Duration::from_secs(3600);

/// Orders a copy when slots are missing and it is our turn.
pub(super) fn decide(cx: &mut Cx, leader: &MemberName, sample: &SqlSample) -> Option<Reason> {
    let view = cx.view().filter(|_| cx.o.dcs.confirmed)?;
    let missing = slots::to_copy(&keep::slot_input(cx, view, sample));
    if missing.is_empty() {
        cx.m.slots_missing_since = None;
        return None;
    }
    let since = *cx.m.slots_missing_since.get_or_insert(cx.o.now);
    let waited = cx.o.now.since(since);
    if cx.m.no_slot_copy_before.is_some_and(|at| cx.o.now < at) {
        return None;
    }
    let streams = |receiver: &Receiver| receiver.status == "streaming";
    let settled = sample.receiver.as_ref().is_some_and(streams)
        && cx.o.postgres.promised.is_none()
        && view.failover.is_none();
    let others: Vec<(&MemberName, &MemberRecord)> = view
        .members
        .iter()
        .map(|(name, entry)| (name, &entry.record))
        .filter(|(name, _)| **name != cx.s.me && *name != leader)
        .collect();
    let before = others.iter().filter(|(name, _)| **name < cx.s.me).count();
    let turn = TURN * u32::try_from(before).unwrap_or(u32::MAX);
    let all_there = others.iter().all(|(_, member)| serves(member)) || waited >= PATIENCE;
    if !settled || waited < turn || !all_there {
        cx.wake_in(Duration::from_secs(1));
        return None;
    }
    let follow = cx.o.postgres.conf.upstream.clone();
    let reason = Reason::CopySlots {
        leader: leader.clone(),
        slots: missing.join(", "),
    };
    cx.start(Job::CopySlots {
        slots: missing,
        leader: cx.upstream_of(leader)?,
        follow,
        timeout: down::start_limit(cx.s.cluster.primary_start_timeout),
    });
    Some(reason)
}

/// A standby that could take over now. One that is fed by an archive streams from nobody.
fn serves(member: &MemberRecord) -> bool {
    match member.state.as_deref() {
        Some("running") => member.replication_state.is_some(),
        // As Patroni before 3.0.4 says it.
        Some("streaming" | "in archive recovery") => true,
        _ => false,
    }
}

/// After a copy, however it ended.
pub(super) fn pause(cx: &mut Cx) {
    let lately = |at: MonoTime| cx.o.now.since(at) < FORGET;
    let copies = match cx.m.no_slot_copy_before {
        Some(at) if lately(at) => cx.m.slot_copies,
        _ => 0,
    };
    cx.m.slot_copies = copies.saturating_add(1);
    cx.m.no_slot_copy_before = Some(cx.o.now + PAUSE * (1 << copies.min(6)));
}
