//! Who leads, as far as this member may believe it, and until when.
//!
//! Two ways of holding leadership, one answer. *Compatible*: `/leader` on an etcd lease, as Patroni
//! holds it. *Native*: `/record`, renewed by compare-and-set, taken over only after it has stood still
//! for `W` (`safety.md` 2). The way is not configured but seen: while `/record` exists and does
//! not say otherwise, the cluster is native. Only a leader changes that, in a transaction, so all members switch at one revision.

use super::memory::Memory;
use super::observation::{HeldRecord, Observation, Process, Session, Sql};
use crate::config::Settings;
use crate::dcs::{ClusterView, RecordState};
use crate::ids::{Epoch, MemberName};
use crate::time::MonoTime;
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Time kept between our own deadline and the moment at which etcd may give the lease to another:
/// the guardian's fencing bound, plus clock drift over a whole `ttl` (1000 ppm of 30 s).
pub const COMPATIBLE_MARGIN: Duration = Duration::from_secs(1);

/// Why nothing is known about the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unknown {
    /// etcd was never read.
    NeverRead,
    /// The view is history: the watch is broken or silent.
    NotConfirmed,
    /// `/record` cannot be read; nobody may lead until an operator has looked.
    RecordGarbled,
}

/// Who holds the lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Lock {
    /// We cannot know. Never the same as [`Lock::Free`] (I4).
    Unknown(Unknown),
    /// We do, and our lease has not run out.
    Mine(Tenure),
    /// Our own name stands there, from an earlier life of this agent; to be confirmed by a transaction
    /// before it counts.
    Inherited,
    /// Somebody else does.
    Other(MemberName),
    /// Nobody does; it may be taken.
    Free,
}

/// Our own leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenure {
    /// Zero in a cluster that was never native.
    pub epoch: Epoch,
    /// When the renewal that counts was sent (I2).
    pub sent_at: MonoTime,
    /// The guardian ends PostgreSQL here. Nothing of ours may be writable after it (S2).
    pub deadline: MonoTime,
    /// From here on we stop PostgreSQL ourselves, in order.
    pub soft_deadline: MonoTime,
}

impl Tenure {
    fn new(epoch: Epoch, sent_at: MonoTime, length: Duration) -> Self {
        Self {
            epoch,
            sent_at,
            deadline: sent_at + length,
            soft_deadline: sent_at + length.saturating_sub(reserve(length)),
        }
    }

    /// Under a compatible lease: the granted length less [`COMPATIBLE_MARGIN`] (I3). The epoch is that
    /// of the last native tenure, so that it never goes back.
    pub fn compatible(session: &Session, epoch: Epoch) -> Self {
        Self::new(
            epoch,
            session.sent_at,
            session.ttl.saturating_sub(COMPATIBLE_MARGIN),
        )
    }

    /// Under a record lease: `D = first send + L`.
    pub fn native(held: &HeldRecord) -> Self {
        Self::new(held.epoch, held.sent_at, held.length)
    }

    /// Whether the last process is fenced before etcd can end this session, clocks running apart by 1000
    /// ppm each: so `/leader` on the session may replace the record as the lock, even if we never learn
    /// that it has.
    pub fn ends_before(&self, session: &Session, s: &Settings) -> bool {
        let fenced = self.deadline + Duration::from_millis(s.cluster.native.fence_ms);
        fenced + session.ttl / 500 < session.sent_at + session.ttl
    }

    /// Moves the deadline on while every member has promised to wait (S20).
    fn extended(self, until: Option<MonoTime>) -> Self {
        match until {
            Some(until) if until > self.deadline => {
                let left = until.since(self.sent_at);
                let reserve = (left / 5).min(Duration::from_secs(5));
                Self {
                    deadline: until,
                    soft_deadline: until - reserve,
                    ..self
                }
            }
            _ => self,
        }
    }
}

/// So long before the end of a lease PostgreSQL is stopped in order (`safety.md` 2, "Soft deadline").
pub(super) fn reserve(length: Duration) -> Duration {
    (length / 5).max(Duration::from_millis(500))
}

/// Whether the cluster leads by record.
pub fn is_native(view: &ClusterView) -> bool {
    view.record
        .as_ref()
        .is_some_and(|entry| entry.record.state != RecordState::Compatible)
}

/// Judges the lock.
pub fn lock(o: &Observation, m: &Memory, s: &Settings) -> Lock {
    let Some(view) = &o.dcs.view else {
        return Lock::Unknown(Unknown::NeverRead);
    };
    if view.record_garbled {
        return Lock::Unknown(Unknown::RecordGarbled);
    }
    let mine = if is_native(view) {
        own_record(o, view, s)
    } else {
        own_leader_key(o, view, s)
    };
    match mine {
        // Our own lease is a fact about our own clock: it holds while etcd is out of reach (rule 8 of
        // `safety.md` 1), and not a moment longer than its deadline.
        Some(tenure) => {
            let tenure = tenure.extended(m.failsafe_until);
            if o.now < tenure.deadline {
                return Lock::Mine(tenure);
            }
            if !o.dcs.confirmed {
                return Lock::Unknown(Unknown::NotConfirmed);
            }
            // A record that has run out is one of an earlier tenure, ours or not.
            if is_native(view) {
                foreign_record(o, view, m, s)
            } else {
                Lock::Inherited
            }
        }
        None if !o.dcs.confirmed => Lock::Unknown(Unknown::NotConfirmed),
        None if is_native(view) => foreign_record(o, view, m, s),
        None => match view.leader_name() {
            Some(name) if *name == s.me => Lock::Inherited,
            Some(name) => Lock::Other(name.clone()),
            None => Lock::Free,
        },
    }
}

fn own_leader_key(o: &Observation, view: &ClusterView, s: &Settings) -> Option<Tenure> {
    let leader = view.leader.as_ref().filter(|l| l.name == s.me)?;
    let session = o
        .dcs
        .session
        .as_ref()
        .filter(|session| session.id == leader.lease)?;
    let epoch = view
        .record
        .as_ref()
        .map_or(Epoch(0), |entry| entry.record.epoch);
    Some(Tenure::compatible(session, epoch))
}

fn own_record(o: &Observation, view: &ClusterView, s: &Settings) -> Option<Tenure> {
    let record = &view.record.as_ref()?.record;
    let held = o.dcs.held.as_ref()?;
    let ours = record.owner == s.me
        && record.state == RecordState::Held
        && record.epoch == held.epoch
        // A member that is not of our kind may have taken `/leader` by its own rules; it has won.
        && view.leader_name().is_none_or(|name| *name == s.me);
    ours.then(|| Tenure::native(held))
}

/// A record that we do not hold: still to be waited for, or free.
fn foreign_record(o: &Observation, view: &ClusterView, m: &Memory, s: &Settings) -> Lock {
    let Some(entry) = &view.record else {
        return Lock::Unknown(Unknown::RecordGarbled);
    };
    let record = &entry.record;
    // Whoever else stands in `/leader` has taken it by the rules of Patroni, which may have found it
    // free because the record was released.
    if let Some(other) = view
        .leader_name()
        .filter(|n| **n != record.owner && **n != s.me)
    {
        return Lock::Other(other.clone());
    }
    if record.state == RecordState::Released {
        return Lock::Free;
    }
    if record.owner == s.me {
        // An earlier life. Its PostgreSQL must be gone or harmless before we take the next epoch.
        return match (&o.postgres.process, &o.postgres.sql) {
            (Process::Gone, _) => Lock::Free,
            (Process::Alive { .. }, Sql::Sample(sample)) if sample.in_recovery => Lock::Free,
            _ => Lock::Inherited,
        };
    }
    // W counts from our own first sight of this revision, on our own clock; no etcd timing enters (S1).
    let wait = Duration::from_millis(record.w_ms.max(s.cluster.native.wait_ms));
    let stood = o
        .dcs
        .record_seen
        .filter(|seen| seen.modified == entry.modified);
    // In pause no deadline stands (S13), so a primary may write for longer than its record has stood still. When
    // the pause is over it gets as long again to see that, and to renew or to stop (S2).
    let paused = m.paused_at.filter(|_| !s.cluster.pause);
    match stood {
        Some(seen) if o.now.since(seen.since.max(paused.unwrap_or(seen.since))) >= wait => {
            Lock::Free
        }
        _ => Lock::Other(record.owner.clone()),
    }
}
