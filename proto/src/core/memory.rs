//! The little that cannot be observed: what began when, what was tried. Plain data, part of the
//! journal; losing it (an agent restart) may cost time, never safety.

use super::rewind::RewindState;
use super::slots::SlotMemory;
use super::sync::SyncMemory;
use crate::dcs::{ClusterView, PgRole};
use crate::ids::{Epoch, JobId, MemberName, Revision};
use crate::time::MonoTime;
use crate::wal::{Lsn, Timeline};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a member remembers from one decision to the next. Each decision copies it, so what is large and
/// seldom changes is shared.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Memory {
    /// The role as members are told; `None` before PostgreSQL was looked at.
    pub role: Option<PgRole>,
    /// PostgreSQL was seen running, and nobody has ordered it to stop since.
    pub was_running: bool,
    /// The last state was a failed start.
    pub start_failed: bool,
    /// Starts that failed since the last success.
    pub failed_starts: u32,
    /// Promotions that failed since one succeeded, or since the lock was given up over them. Apart from
    /// `failed_starts`, since the standby that is started after each of them may well come up.
    #[serde(default)]
    pub failed_promotions: u32,
    /// No start before this.
    pub start_not_before: Option<MonoTime>,
    /// Whether we must find out if our timeline still leads to the leader's.
    pub rewind: RewindState,
    /// The job whose end has been taken note of.
    pub seen_job: Option<JobId>,
    /// Members and leader of the last view in which somebody led (`ha-behaviour.md` 3).
    pub last_locked: Option<Arc<LastLocked>>,
    /// Since when the lock has been free in our eyes.
    pub free_since: Option<MonoTime>,
    /// When the peers were last asked because of it.
    pub race_asked: Option<MonoTime>,
    /// Our position at the last look while the lock was free, for the race back-off.
    pub race_position: Option<Lsn>,
    /// Since when the race back-off runs.
    pub race_backoff_since: Option<MonoTime>,
    /// No promotion before this: `pre_promote` said no.
    pub not_leading_before: Option<MonoTime>,
    /// We have given up leadership and must not take it back until the key is gone (D6 of
    /// `dcs-layout.md` 15).
    pub stepping_down: Option<SteppingDown>,
    /// A switchover or failover that we, as the leader, are carrying out.
    pub handover: Option<Handover>,
    /// We have won `/initialize` and are bootstrapping.
    pub bootstrapping: bool,
    /// The new cluster is up and waits for its keys.
    pub bootstrapped: bool,
    /// When our member key was last written.
    pub member_written: Option<MonoTime>,
    /// When `/status` was last written.
    pub status_written: Option<MonoTime>,
    /// Progress of synchronous replication.
    pub sync: SyncMemory,
    /// When each member slot was last needed.
    pub retained: SlotMemory,
    /// All members have promised to wait until this moment (S20).
    pub failsafe_until: Option<MonoTime>,
    /// The member list of `/failsafe` as last read: etcd is away when it is needed.
    pub failsafe_members: Arc<BTreeMap<MemberName, String>>,
    /// After a crash restart in synchronous mode: no clients before a quorum has this (S9).
    pub hold_until: Option<Lsn>,
    /// Since when clients are held back because of it.
    pub hold_since: Option<MonoTime>,
    /// The timeline on which a checkpoint is known to exist.
    pub checkpointed: Option<Timeline>,
    /// The timeline for which a checkpoint was ordered.
    pub checkpoint_for: Option<Timeline>,
    /// When it was ordered.
    pub checkpoint_at: Option<MonoTime>,
    /// Since when PostgreSQL has been starting.
    pub starting_since: Option<MonoTime>,
    /// Since when a standby that should stream does not.
    pub not_streaming_since: Option<MonoTime>,
    /// When slots were last looked after.
    pub slots_done: Option<MonoTime>,
    /// Since when this standby lacks logical slots that the leader has.
    #[serde(default)]
    pub slots_missing_since: Option<MonoTime>,
    /// Copies of logical slots that ended lately.
    #[serde(default)]
    pub slot_copies: u32,
    /// No copy of logical slots before this: each may cost a restart.
    #[serde(default)]
    pub no_slot_copy_before: Option<MonoTime>,
    /// Since when we ask to be let out of synchronous duty.
    pub leaving_sync: Option<MonoTime>,
    /// A restart that was carried out for a wish.
    pub restart_wish_done: Option<u64>,
    /// A reinitialisation that was carried out for a wish.
    pub reinit_wish_done: Option<u64>,
    /// The revision of garbled values that were logged.
    pub logged_garbled: BTreeMap<String, Revision>,
    /// The revision of a `/failover` request that has been dealt with.
    pub failover_done: Option<Revision>,
    /// A callback has run in this process, so PostgreSQL is known to be ours.
    pub callback_called: bool,
    /// Reason of the last decision that was logged, to tell changes from repeats.
    pub last_rule: Cow<'static, str>,
    /// When this agent took its first decision.
    pub began: Option<MonoTime>,
    /// As far as we know nobody has led since our own PostgreSQL was the primary.
    pub last_primary: bool,
    /// The tenure in which our own PostgreSQL led last, if nobody has led since.
    #[serde(default)]
    pub led: Option<super::observation::Led>,
    /// The revision of the record with which it was free.
    #[serde(default)]
    pub free_of: Option<Revision>,
    /// A job of this agent has said where PostgreSQL streams from; what an agent before it has said is not known.
    #[serde(default)]
    pub source_set: bool,
    /// When the guardian was last told a deadline by a decision.
    pub arm_ordered: Option<MonoTime>,
    /// In pause: we took the lock because a request names us, and are to be promoted. The request itself
    /// is gone with the claim.
    #[serde(default)]
    pub named: bool,
    /// The highest epoch that we have seen in etcd. The record may be deleted by hand.
    #[serde(default)]
    pub epoch_seen: Epoch,
    /// When the cluster was seen paused last.
    #[serde(default)]
    pub paused_at: Option<MonoTime>,
    /// Quorum-fenced failover.
    pub suspicion: super::vote::Suspicion,
}

/// The last view in which somebody led.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LastLocked {
    /// Who.
    pub leader: Option<MemberName>,
    /// Since when, in our eyes.
    pub since: MonoTime,
    /// Name and REST URL of everybody.
    pub members: BTreeMap<MemberName, String>,
    /// The timeline that it has published; its key forgets it when its server is gone.
    #[serde(default)]
    pub timeline: Option<Timeline>,
}

/// Giving up leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SteppingDown {
    /// Since when.
    pub since: MonoTime,
    /// Where the WAL ended in order, for `/status`.
    pub shutdown: Option<(Timeline, Lsn)>,
}

/// A planned hand-over under way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handover {
    /// The request: revision of `/failover`.
    pub request: Revision,
    /// A switchover, or a failover by hand.
    pub switchover: bool,
    /// Who shall take over; named by the request, or chosen by us.
    pub candidate: Option<MemberName>,
    /// When we began.
    pub since: MonoTime,
    /// The stop was ordered at this moment.
    pub stop_ordered: Option<MonoTime>,
    /// Where our WAL ended.
    pub shutdown: Option<(Timeline, Lsn)>,
}

impl Memory {
    /// Remembers the members of a locked view.
    pub fn note_locked(&mut self, now: MonoTime, view: &ClusterView, leader: &MemberName) {
        let since = self
            .last_locked
            .as_ref()
            .filter(|last| last.leader.as_ref() == Some(leader))
            .map_or(now, |last| last.since);
        let reachable = view
            .members
            .iter()
            .filter_map(|(name, entry)| Some((name, entry.record.api_url.as_ref()?)));
        let same = self.last_locked.as_ref();
        let same = same.filter(|last| last.leader.as_ref() == Some(leader));
        let before = same.and_then(|last| last.timeline);
        let timeline = view.member(leader).and_then(|m| m.timeline).or(before);
        if let Some(last) = same
            && last.timeline == timeline
            && last.members.iter().eq(reachable.clone())
        {
            return;
        }
        if let Some(last) = &self.last_locked
            && last.leader.as_ref() != Some(leader)
        {
            // What was compared with one leader says nothing about the next (S18).
            self.rewind = self.rewind.request();
        }
        let members = reachable
            .map(|(name, url)| (name.clone(), url.clone()))
            .collect();
        self.last_locked = Some(Arc::new(LastLocked {
            leader: Some(leader.clone()),
            since,
            members,
            timeline,
        }));
    }
}
