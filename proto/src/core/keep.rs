//! What every member does besides its decision: its own key, the leader's keys, slots, checkpoints.
//!
//! Nothing here decides who leads. Each order compares what should be with what is, so a lost write is
//! simply ordered again.

use super::cx::Cx;
use super::decision::{Action, LogLevel, SlotPlan};
use super::job::Job;
use super::observation::{DataDir, Led, SqlSample, Task, TaskResult};
use super::tenure::{self, Lock};
use super::{history, lag, slots, standing, txns, vote};
use crate::dcs::{
    Capabilities, ClusterView, Compare, ConfigRecord, FailsafeRecord, Initialize, Key, MemberEntry,
    MemberRecord, Op, StatusRecord, Txn,
};
use crate::ids::{Epoch, MemberName};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;

/// Version of the protocol between members of ours.
pub const PROTOCOL: u32 = 1;

/// What this version can do beyond Patroni.
pub fn capabilities() -> Capabilities {
    Capabilities {
        protocol: PROTOCOL,
        record: true,
        fence: true,
    }
}

pub(super) fn housekeeping(cx: &mut Cx) {
    log_garbled(cx);
    if !cx.o.dcs.confirmed {
        return slots_in_failsafe_mode(cx);
    }
    if let Some(failsafe) = cx.view().and_then(|v| v.failsafe.as_ref())
        && *cx.m.failsafe_members != failsafe.members
    {
        cx.m.failsafe_members = Arc::new(failsafe.members.clone());
    }
    if matches!(cx.lock, Lock::Mine(_)) && cx.keep_leading && !cx.o.wishes.shutdown {
        leader_keys(cx);
    }
    slots(cx);
    own_member_key(cx);
}

fn log_garbled(cx: &mut Cx) {
    let Some(view) = cx.view() else { return };
    for garbled in &view.garbled {
        if cx.m.logged_garbled.get(&garbled.key) != Some(&garbled.modified) {
            cx.m.logged_garbled
                .insert(garbled.key.clone(), garbled.modified);
            let text = format!(
                "the value of {} in etcd cannot be read: {}",
                garbled.key, garbled.problem
            );
            cx.log(LogLevel::Error, text);
        }
    }
}

// --- the leader's keys ----------------------------------------------------------------------------

fn leader_keys(cx: &mut Cx) {
    switch_mode(cx);
    restore_initialize(cx);
    restore_config(cx);
    let Some(sample) = cx.sample() else { return };
    if sample.in_recovery && cx.s.cluster.standby_cluster.is_none() {
        return;
    }
    if let Some(entry) = cx.view().and_then(|v| v.record.as_ref()) {
        let _ = vote::withdraw_if_over(cx, entry);
    }
    checkpoint(cx, sample);
    status(cx, sample);
    failsafe(cx);
    if !sample.in_recovery {
        write_history(cx, sample);
        note_own_epoch(cx);
    }
}

/// Our own WAL belongs to our own epoch, and we are who led in it; the note outlives the record, should it be lost.
fn note_own_epoch(cx: &mut Cx) {
    let (Some(tenure), Some(view)) = (cx.tenure(), cx.view()) else {
        return;
    };
    // By `/leader` there is no epoch. Who led in one before, and leads, has still led in it last.
    let before = cx.m.led.or(cx.o.postgres.led).map(|led| led.epoch);
    let led = Led {
        epoch: tenure.epoch.max(before.unwrap_or_default()),
        native: tenure::is_native(view) && wants_native(cx, view),
    };
    cx.m.led = Some(led);
    if cx.o.postgres.led != Some(led) {
        cx.push(Action::NoteLed(led));
    }
}

/// Whether nobody can have led since we did, as far as our own disk knows: a standby that was promoted by hand has
/// received the WAL of an epoch in which it did not lead.
pub(super) fn led_last(cx: &Cx) -> bool {
    let led = cx.m.led.or(cx.o.postgres.led).map(|led| led.epoch);
    let armed = cx.o.guardian.armed.map(|armed| armed.epoch);
    led.max(armed).unwrap_or_default() >= cx.o.postgres.wal_epoch
}

/// All members that could take a record over: those that announce it, and we.
pub(super) fn record_members(cx: &Cx) -> Vec<MemberName> {
    let mut names: Vec<MemberName> = cx
        .view()
        .map(|view| {
            view.members
                .iter()
                .filter(|(_, m)| speaks_our_protocol(m.record.capabilities))
                .map(|(name, _)| name.clone())
                .collect()
        })
        .unwrap_or_default();
    if !names.contains(&cx.s.me) {
        names.push(cx.s.me.clone());
        names.sort();
    }
    names
}

/// Epochs only grow (S4), also past a record that somebody has deleted: a promise of before would else count
/// against a primary that it was not made against.
pub(super) fn note_epoch(cx: &mut Cx) {
    let Some(view) = cx.view() else { return };
    let record = view.record.iter().map(|entry| entry.record.epoch);
    let promised = view.fences.values().map(|fence| fence.promise.epoch);
    let highest = record.chain(promised).max().unwrap_or_default();
    cx.m.epoch_seen = cx.m.epoch_seen.max(highest);
}

/// The highest epoch that we know of, from etcd, from our own disk, or of our own tenures.
pub(super) fn highest_epoch(cx: &Cx) -> Epoch {
    let known = [
        Some(cx.m.epoch_seen),
        Some(cx.o.postgres.wal_epoch),
        cx.o.postgres.promised,
        cx.o.dcs.held.map(|held| held.epoch),
        cx.o.guardian.armed.map(|armed| armed.epoch),
        Some(cx.o.guardian.epoch),
    ];
    known.into_iter().flatten().max().unwrap_or_default()
}

/// The highest epoch that a peer has told us of.
fn told_epoch(cx: &Cx) -> Epoch {
    let told = cx.o.peers.values();
    let told = told.filter_map(|answer| Some(answer.status.as_ref()?.epoch));
    told.max().unwrap_or_default()
}

/// We, asking for a tenure.
pub(super) fn claimant<'a>(cx: &Cx<'a>) -> txns::Claimant<'a> {
    txns::Claimant {
        s: cx.s,
        session: &cx.o.guardian.session,
        members: record_members(cx),
        // What peers told counts whenever they did: epochs only grow, and this may be all that is left of a
        // record that somebody has deleted.
        highest: highest_epoch(cx).max(told_epoch(cx)),
    }
}

fn speaks_our_protocol(capabilities: Option<Capabilities>) -> bool {
    capabilities.is_some_and(|c| c.protocol == PROTOCOL && c.record)
}

/// Native while every member is ours.
fn wants_native(cx: &Cx, view: &ClusterView) -> bool {
    // Our own key may be gone with its lease; that makes nobody else a Patroni.
    let known = tenure::is_native(view) || view.members.contains_key(&cx.s.me);
    let ours = |m: &MemberEntry| speaks_our_protocol(m.record.capabilities);
    cx.s.cluster.native.record_lease && known && view.members.values().all(ours)
}

/// Native while every member is ours, compatible as soon as one is not.
fn switch_mode(cx: &mut Cx) {
    let Some(view) = cx.view() else { return };
    let native = tenure::is_native(view);
    let wanted = wants_native(cx, view);
    if wanted == native || cx.o.job.is_some() {
        return;
    }
    if wanted {
        let (Some(session), Some(leader)) = (cx.o.dcs.session, view.leader.as_ref()) else {
            return;
        };
        if leader.lease != session.id || cx.o.guardian.session.is_empty() {
            return;
        }
        cx.write(Task::Lock, txns::go_native(view, &claimant(cx), &session));
    } else if let (Some(session), Some(tenure)) = (&cx.o.dcs.session, cx.tenure())
        && tenure.ends_before(session, cx.s)
        // The disk says first that others may lead in this epoch from now on.
        && cx.o.postgres.led.is_none_or(|led| !led.native || led.epoch != tenure.epoch)
        && let Some(txn) = txns::go_compatible(view, cx.s)
    {
        cx.write(Task::Lock, txn);
    }
}

/// `dcs-layout.md` 3.3: the owner restores the identifier after a wipe.
fn restore_initialize(cx: &mut Cx) {
    let Some(view) = cx.view() else { return };
    let Some(system) =
        cx.o.postgres
            .control
            .as_ref()
            .map(|c| c.system_id)
            .filter(|s| s.0 != 0)
    else {
        return;
    };
    let compare = match &view.initialize {
        Some(Initialize::System(_)) => return,
        None => Compare::Absent(Key::Initialize),
        Some(Initialize::Bootstrapping(_)) => Compare::Value(Key::Initialize, String::new()),
        Some(Initialize::Invalid(_)) => Compare::Present(Key::Initialize),
    };
    let txn = Txn::when(
        vec![compare],
        vec![Op::put(Key::Initialize, system.to_string())],
    );
    cx.write(Task::Initialize, txn);
}

/// `dcs-layout.md` 3.4: the owner restores the configuration that is missing or cannot be read.
fn restore_config(cx: &mut Cx) {
    let Some(view) = cx.view() else { return };
    if view.config.document().is_some() || cx.s.dynamic.is_empty() {
        return;
    }
    let compare = match &view.config {
        ConfigRecord::Absent => Compare::Absent(Key::Config),
        ConfigRecord::Document { modified, .. } | ConfigRecord::Garbled { modified, .. } => {
            Compare::Unchanged(Key::Config, *modified)
        }
    };
    let value = Value::Object(cx.s.dynamic.clone()).to_string();
    cx.write(
        Task::Config,
        Txn::when(vec![compare], vec![Op::put(Key::Config, value)]),
    );
}

/// `ha-behaviour.md` 7.3: a rewind from us needs a checkpoint on our timeline.
fn checkpoint(cx: &mut Cx, sample: &SqlSample) {
    if sample.in_recovery || cx.m.checkpointed == sample.timeline {
        return;
    }
    let control = cx.o.postgres.control.as_ref().map(|c| c.timeline);
    let ordered = cx.m.checkpoint_for == sample.timeline;
    let done = ordered
        && cx.outcome(Task::Checkpoint).is_some_and(|o| {
            o.result == TaskResult::Done && cx.m.checkpoint_at.is_some_and(|at| o.at >= at)
        });
    if done || (control.is_some() && control == sample.timeline) {
        cx.m.checkpointed = sample.timeline;
        return;
    }
    if cx.may(Task::Checkpoint) {
        cx.m.checkpoint_for = sample.timeline;
        cx.m.checkpoint_at = Some(cx.o.now);
        cx.push(Action::Checkpoint);
    }
}

fn status(cx: &mut Cx, sample: &SqlSample) {
    let Some(view) = cx.view() else { return };
    let Some(optime) = lag::position(sample).some() else {
        return;
    };
    let due =
        cx.m.status_written
            .is_none_or(|at| cx.o.now.since(at) >= cx.s.cluster.timing.loop_wait());
    if !due || cx.o.job.is_some() {
        return;
    }
    let retain_slots =
        cx.m.retained
            .retain(view, &cx.s.me, &cx.s.cluster, cx.o.now);
    let wanted = StatusRecord {
        present: true,
        optime: Some(optime),
        slots: slots::status_slots(&slot_input(cx, view, sample)),
        retain_slots,
    };
    if wanted != view.status {
        cx.m.status_written = Some(cx.o.now);
        cx.write(
            Task::Status,
            Txn::when(
                still_leader(cx),
                vec![Op::put(Key::Status, wanted.to_value())],
            ),
        );
    }
}

/// The leader's own keys are only written while the leader key is still ours.
fn still_leader(cx: &Cx) -> Vec<Compare> {
    vec![Compare::Value(Key::Leader, cx.s.me.as_str().to_owned())]
}

fn failsafe(cx: &mut Cx) {
    if !cx.s.cluster.failsafe_mode {
        return;
    }
    let Some(view) = cx.view() else { return };
    let mut members: std::collections::BTreeMap<MemberName, String> = view
        .members
        .iter()
        .filter_map(|(name, m)| Some((name.clone(), m.record.api_url.clone()?)))
        .collect();
    members.insert(cx.s.me.clone(), cx.s.api_url.clone());
    let wanted = FailsafeRecord { members };
    if view.failsafe.as_ref() != Some(&wanted) {
        let put = Op::put(Key::Failsafe, wanted.to_value());
        cx.write(Task::Failsafe, Txn::when(still_leader(cx), vec![put]));
    }
}

fn write_history(cx: &mut Cx, sample: &SqlSample) {
    let Some(view) = cx.view() else { return };
    let Some(timeline) = sample.timeline else {
        return;
    };
    let next = history::next(
        &view.history,
        timeline,
        cx.o.postgres.history.as_ref(),
        &cx.s.me,
        cx.s.cluster.max_timelines_history,
    );
    if let Some(next) = next {
        let put = Op::put(Key::History, next.to_value());
        cx.write(Task::History, Txn::when(still_leader(cx), vec![put]));
    }
}

// --- slots ----------------------------------------------------------------------------------------

fn slots(cx: &mut Cx) {
    if !cx.s.cluster.use_slots || cx.o.job.is_some() {
        return;
    }
    let Some(sample) = cx.sample() else { return };
    let Some(view) = cx.view() else { return };
    let plan = slots::plan(&slot_input(cx, view, sample));
    order_slots(cx, plan);
}

/// While a primary leads by our promise, `/status` stands still, but its question says where its slots are
/// (`ha-behaviour.md` 18): idle ones move on, so that no WAL piles up. None is created or dropped.
fn slots_in_failsafe_mode(cx: &mut Cx) {
    if !cx.s.cluster.use_slots || cx.o.job.is_some() {
        return;
    }
    let ttl = cx.s.cluster.timing.ttl();
    let caller = cx.o.failsafe_caller.as_ref();
    let Some(caller) = caller.filter(|caller| cx.o.now.since(caller.at) < ttl) else {
        return;
    };
    let (Some(sample), Some(view)) = (cx.sample(), cx.view()) else {
        return;
    };
    if !sample.in_recovery {
        return;
    }
    let mut view = view.clone();
    view.status.slots = caller.slots.clone();
    let input = slots::SlotInput {
        me: &cx.s.me,
        tags: &cx.s.tags,
        view: &view,
        sample,
        config: &cx.s.cluster,
    };
    let plan = slots::plan(&input);
    let moves = SlotPlan {
        advance: plan.advance,
        advance_logical: plan.advance_logical,
        ..SlotPlan::default()
    };
    order_slots(cx, moves);
}

fn order_slots(cx: &mut Cx, plan: SlotPlan) {
    let due =
        cx.m.slots_done
            .is_none_or(|at| cx.o.now.since(at) >= Duration::from_secs(1));
    if !plan.is_empty() && due && cx.may(Task::Slots) {
        cx.m.slots_done = Some(cx.o.now);
        cx.push(Action::Slots(plan));
    }
}

pub(super) fn slot_input<'a>(
    cx: &Cx<'a>,
    view: &'a crate::dcs::ClusterView,
    sample: &'a SqlSample,
) -> slots::SlotInput<'a> {
    slots::SlotInput {
        me: &cx.s.me,
        tags: &cx.s.tags,
        view,
        sample,
        config: &cx.s.cluster,
    }
}

// --- our own key ----------------------------------------------------------------------------------

/// Positions alone are published once per `loop_wait`; everything else at once.
fn own_member_key(cx: &mut Cx) {
    let Some(view) = cx.view() else { return };
    let Some(session) = cx.o.dcs.session else {
        return;
    };
    if matches!(cx.o.postgres.data_dir, DataDir::Unknown) {
        return;
    }
    let wanted = member_record(cx);
    let current = view.members.get(&cx.s.me);
    let same_lease = current.is_some_and(|c| c.lease == session.id);
    let due =
        cx.m.member_written
            .is_none_or(|at| cx.o.now.since(at) >= cx.s.cluster.timing.loop_wait());
    let needed = match current.filter(|_| same_lease) {
        None => true,
        Some(entry) if entry.record == wanted => false,
        Some(entry) => due || !same_but_for_positions(&entry.record, &wanted),
    };
    if needed && cx.may(Task::Member) {
        cx.m.member_written = Some(cx.o.now);
        let put = Op::put_leased(Key::Member(cx.s.me.clone()), wanted.to_value());
        cx.push(Action::Write {
            task: Task::Member,
            txn: Txn::always(vec![put]),
        });
    }
}

fn same_but_for_positions(published: &MemberRecord, wanted: &MemberRecord) -> bool {
    let moved = MemberRecord {
        xlog_location: wanted.xlog_location,
        replay_lsn: wanted.replay_lsn,
        receive_lsn: wanted.receive_lsn,
        ..published.clone()
    };
    moved == *wanted
}

fn member_record(cx: &Cx) -> MemberRecord {
    let sample = cx.sample();
    let replica = sample.filter(|sample| sample.in_recovery);
    // No positions while something long goes on, but for a promotion (`dcs-layout.md` 3.2).
    let quiet =
        cx.o.job
            .as_ref()
            .is_none_or(|j| matches!(j.job, Job::Promote { .. }));
    let leading = matches!(cx.lock, Lock::Mine(_));
    let unconfirmed = leading && sample.is_some_and(|s| cx.m.checkpointed != s.timeline);
    let mut tags = cx.s.tags.published();
    if cx.m.leaving_sync.is_some() {
        tags.insert("nosync".into(), Value::Bool(true));
        tags.insert("sync_priority".into(), json!(0));
    }
    let pending = sample
        .filter(|s| !s.pending_restart.is_empty())
        .map(pending_reason);
    MemberRecord {
        conn_url: Some(cx.s.conn_url.clone()),
        api_url: Some(cx.s.api_url.clone()),
        state: Some(standing::state(cx).as_str().to_owned()),
        role: Some(standing::role(cx).as_str().to_owned()),
        version: Some(cx.s.version.clone()),
        proxy_url: cx.s.proxy_url.clone(),
        checkpoint_after_promote: unconfirmed.then_some(false),
        tags,
        pending_restart: pending.is_some(),
        pending_restart_reason: pending,
        xlog_location: sample
            .filter(|_| quiet)
            .and_then(|s| lag::position(s).some()),
        replay_lsn: replica.filter(|_| quiet).and_then(|s| s.replay_lsn.some()),
        receive_lsn: replica.filter(|_| quiet).and_then(|s| s.receive_lsn.some()),
        replication_state: replica
            .and_then(standing::replication_state)
            .map(str::to_owned),
        timeline: sample.and_then(|s| s.timeline),
        scheduled_restart: cx
            .o
            .wishes
            .scheduled_restart
            .as_ref()
            .map(standing::scheduled_restart),
        pause: cx.paused(),
        capabilities: Some(capabilities()),
    }
}

fn pending_reason(sample: &SqlSample) -> Value {
    let reasons = sample
        .pending_restart
        .iter()
        .map(|(name, (old, new))| (name.clone(), json!({"old_value": old, "new_value": new})));
    Value::Object(reasons.collect())
}
