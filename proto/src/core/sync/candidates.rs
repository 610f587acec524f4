//! Which standbys may be counted on, best first (`ha-behaviour.md` 16.1).

use crate::config::{ClusterConfig, Tags};
use crate::core::observation::{SqlSample, WalSender};
use crate::dcs::{ClusterView, MemberRecord};
use crate::ids::MemberName;
use crate::wal::Lsn;
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;

/// A standby that streams from us and may be synchronous.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its name as its member key spells it.
    pub name: String,
    /// What counts as acknowledged under the present `synchronous_commit`.
    pub lsn: Lsn,
    /// What it has flushed, on which every proof rests.
    pub flush_lsn: Lsn,
    /// `sync`, `quorum`, `potential` or `async`, as PostgreSQL shows it.
    pub sync_state: String,
    /// `sync_priority` of its tags.
    pub priority: i64,
    /// It may never be promoted, so it is taken only when nobody else is there.
    pub nofailover: bool,
}

/// All standbys that may be synchronous and are within `maximum_lag_on_syncnode`, best first.
///
/// Unlike Patroni, a standby that is already in `/sync` comes before one with equal priority and
/// state that is a few bytes further: positions of healthy standbys overtake each other all the time,
/// and each exchange would leave the key short for a moment.
pub fn candidates(
    view: &ClusterView,
    me: &MemberName,
    sample: &SqlSample,
    config: &ClusterConfig,
) -> Vec<Candidate> {
    let mut found: Vec<Candidate> = view
        .members
        .iter()
        .filter(|(name, entry)| *name != me && may_be_synchronous(&entry.record))
        .filter(|(_, entry)| !cascades(view, sample, &entry.record))
        .filter_map(|(name, entry)| {
            let sender = sender_of(sample, name.as_str())?;
            let tags = Tags(entry.record.tags.clone());
            Some(Candidate {
                name: name.as_str().to_owned(),
                lsn: acknowledged(sample, sender).some()?,
                flush_lsn: sender.flush_lsn,
                sync_state: sender.sync_state.clone(),
                priority: tags.sync_priority(),
                nofailover: tags.nofailover(),
            })
        })
        .collect();
    let furthest = match found.as_slice() {
        [_] => Some(sample.flush_lsn),
        several => several.iter().map(|c| c.lsn).max(),
    };
    if let (Some(limit), Some(furthest)) = (config.maximum_lag_on_syncnode, furthest) {
        found.retain(|c| furthest.bytes_ahead_of(c.lsn) <= limit);
    }
    found.sort_by_key(|c| {
        (
            c.nofailover,
            Reverse(c.priority),
            Reverse(c.sync_state.clone()),
            Reverse(view.sync.lists(&c.name.as_str().into())),
            Reverse(c.lsn),
        )
    });
    found
}

fn may_be_synchronous(member: &MemberRecord) -> bool {
    member.is_running() && !Tags(member.tags.clone()).nosync()
}

/// Whether the member is meant to stream from a standby that could acknowledge in its place. If it
/// streams from us at the moment, then only until it has found its source.
fn cascades(view: &ClusterView, sample: &SqlSample, member: &MemberRecord) -> bool {
    let Some(source) = Tags(member.tags.clone()).replicatefrom() else {
        return false;
    };
    let connected = sender_of(sample, source.as_str()).is_some();
    connected && view.member(&source).is_some_and(may_be_synchronous)
}

/// The streaming WAL sender of a standby. After a reconnect there can be two of one name until the
/// old one has timed out; the one that counts for PostgreSQL and is further is taken.
pub(crate) fn sender_of<'s>(sample: &'s SqlSample, name: &str) -> Option<&'s WalSender> {
    sample
        .wal_senders
        .iter()
        .filter(|s| s.state == "streaming" && s.application_name.eq_ignore_ascii_case(name))
        .max_by(|a, b| (&a.sync_state, a.flush_lsn).cmp(&(&b.sync_state, b.flush_lsn)))
}

fn acknowledged(sample: &SqlSample, sender: &WalSender) -> Lsn {
    match sample.synchronous_commit.as_str() {
        "remote_apply" => sender.replay_lsn,
        "remote_write" => sender.write_lsn,
        _ => sender.flush_lsn,
    }
}
