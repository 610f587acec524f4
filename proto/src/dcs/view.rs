//! The cluster as etcd tells it: raw entries at one revision, and what they mean.

use super::keys::Key;
use super::records::*;
use super::txn::{Compare, LeaseRef, Op, Txn};
use crate::ids::{LeaseId, MemberName, Revision};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// One key as etcd stores it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Entry {
    /// The value; bytes that are not UTF-8 were replaced, which no parser will take for valid.
    pub value: String,
    /// The lease it hangs on; zero for none.
    pub lease: LeaseId,
    /// Revision of its creation.
    pub created: Revision,
    /// Revision of its last change.
    pub modified: Revision,
}

/// Everything below the cluster's prefix at one revision: a range read plus all events since.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Snapshot {
    /// The etcd cluster that answered. Another number means another world (S23).
    pub cluster_id: u64,
    /// The store's revision up to which this is complete.
    pub revision: Revision,
    /// Path below the prefix, and what stands there.
    pub entries: BTreeMap<String, Entry>,
}

impl Snapshot {
    /// Applies one watch event. Events older than what is known are dropped: own writes are folded in
    /// at once, and the watch brings them a second time.
    pub fn apply_put(&mut self, suffix: &str, entry: Entry) {
        self.revision = self.revision.max(entry.modified);
        let newer = self
            .entries
            .get(suffix)
            .is_none_or(|old| old.modified <= entry.modified);
        if newer {
            self.entries.insert(suffix.to_owned(), entry);
        }
    }

    /// Applies a deletion at `revision`.
    pub fn apply_delete(&mut self, suffix: &str, revision: Revision) {
        self.revision = self.revision.max(revision);
        if self
            .entries
            .get(suffix)
            .is_some_and(|old| old.modified <= revision)
        {
            self.entries.remove(suffix);
        }
    }

    /// Folds in a transaction of our own that committed at `revision`, so that the next decision
    /// reads its own writes.
    pub fn apply_own(&mut self, txn: &Txn, session: LeaseId, revision: Revision) {
        for op in &txn.then {
            let suffix = op.key().to_string();
            match op {
                Op::Delete(_) => self.apply_delete(&suffix, revision),
                Op::Put { value, lease, .. } => {
                    let created = self
                        .entries
                        .get(&suffix)
                        .map_or(revision, |old| old.created);
                    let lease = match lease {
                        LeaseRef::None => LeaseId(0),
                        LeaseRef::Session => session,
                        LeaseRef::Other(id) => *id,
                    };
                    let value = value.clone();
                    self.apply_put(
                        &suffix,
                        Entry {
                            value,
                            lease,
                            created,
                            modified: revision,
                        },
                    );
                }
            }
        }
    }

    /// Whether a compare holds here. The simulated store uses it; etcd does the same.
    pub fn holds(&self, compare: &Compare) -> bool {
        let entry = |key: &Key| self.entries.get(&key.to_string());
        match compare {
            Compare::Absent(key) => entry(key).is_none(),
            Compare::Present(key) => entry(key).is_some(),
            Compare::Value(key, value) => entry(key).is_some_and(|e| e.value == *value),
            Compare::Unchanged(key, revision) => {
                entry(key).is_some_and(|e| e.modified == *revision)
            }
            Compare::OnLease(key, lease) => entry(key).is_some_and(|e| e.lease == *lease),
        }
    }
}

/// A key whose value could not be read, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Garbled {
    /// Path below the prefix.
    pub key: String,
    /// Revision at which it was written, so that each garbling is logged once.
    pub modified: Revision,
    /// What was expected.
    pub problem: String,
}

/// The records of the cluster at one revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The etcd cluster.
    pub cluster_id: u64,
    /// The revision up to which it is complete.
    pub revision: Revision,
    /// `/leader`, when it exists with a name in it.
    pub leader: Option<LeaderRecord>,
    /// `/members/*`.
    pub members: BTreeMap<MemberName, MemberEntry>,
    /// `/initialize`.
    pub initialize: Option<Initialize>,
    /// `/config`.
    pub config: ConfigRecord,
    /// `/status`, or `/optime/leader`.
    pub status: StatusRecord,
    /// `/history`.
    pub history: HistoryRecord,
    /// `/failover`, when it asks for something.
    pub failover: Option<FailoverRecord>,
    /// Revision of `/failover`, also when it asks for nothing.
    pub failover_modified: Option<Revision>,
    /// `/sync`.
    pub sync: SyncRecord,
    /// `/failsafe`.
    pub failsafe: Option<FailsafeRecord>,
    /// `/record`.
    pub record: Option<RecordEntry>,
    /// A `/record` that cannot be read: nobody may lead natively while it stands (a stop sign).
    pub record_garbled: bool,
    /// `/fence/*`.
    pub fences: BTreeMap<MemberName, FenceEntry>,
    /// What could not be read. Treated as absent where that is safe; `record_garbled`,
    /// [`ConfigRecord::Garbled`] and [`Initialize::Invalid`] are the stop signs.
    pub garbled: Vec<Garbled>,
}

impl ClusterView {
    /// Reads all records of a snapshot.
    pub fn read(snapshot: &Snapshot) -> Self {
        let mut view = Self {
            cluster_id: snapshot.cluster_id,
            revision: snapshot.revision,
            ..Self::default()
        };
        let mut legacy_optime = None;
        for (suffix, entry) in &snapshot.entries {
            let Some(key) = Key::parse(suffix) else {
                continue;
            };
            let problem = view.read_entry(key, entry, &mut legacy_optime).err();
            view.garbled.extend(problem.map(|problem| Garbled {
                key: suffix.clone(),
                modified: entry.modified,
                problem,
            }));
        }
        if !view.status.present {
            view.status.optime = legacy_optime;
        }
        view
    }

    fn read_entry(
        &mut self,
        key: Key,
        entry: &Entry,
        legacy_optime: &mut Option<crate::wal::Lsn>,
    ) -> Result<(), String> {
        let value = entry.value.as_str();
        match key {
            Key::Leader => {
                // An empty value counts as unlocked (`dcs-layout.md` 3.1).
                self.leader = (!value.is_empty()).then(|| LeaderRecord {
                    name: value.into(),
                    lease: entry.lease,
                    created: entry.created,
                    modified: entry.modified,
                });
            }
            Key::Member(name) => {
                let parsed = MemberRecord::parse(value);
                let problem = parsed.as_ref().err().cloned();
                let record = parsed.unwrap_or_default();
                let (lease, modified) = (entry.lease, entry.modified);
                self.members.insert(
                    name,
                    MemberEntry {
                        record,
                        lease,
                        modified,
                    },
                );
                return problem.map_or(Ok(()), Err);
            }
            Key::Initialize => self.initialize = Some(Initialize::parse(value, entry.lease)),
            Key::Config => {
                self.config = ConfigRecord::parse(value, entry.modified);
                if let ConfigRecord::Garbled { problem, .. } = &self.config {
                    return Err(problem.clone());
                }
            }
            Key::Status => self.status = StatusRecord::parse(value)?,
            Key::LegacyOptime => *legacy_optime = value.trim().parse().ok().map(crate::wal::Lsn),
            Key::History => {
                self.history.modified = Some(entry.modified);
                self.history = HistoryRecord {
                    modified: Some(entry.modified),
                    ..HistoryRecord::parse(value)?
                };
            }
            Key::Failover => {
                self.failover_modified = Some(entry.modified);
                self.failover = FailoverRecord::parse(value, entry.modified)?;
            }
            Key::Sync => {
                self.sync.modified = Some(entry.modified);
                self.sync = SyncRecord::parse(value, entry.modified)?;
            }
            Key::Failsafe => self.failsafe = Some(FailsafeRecord::parse(value)?),
            Key::Record => match RecordEntry::parse(value, entry.modified) {
                Ok(record) => self.record = Some(record),
                Err(problem) => {
                    self.record_garbled = true;
                    return Err(problem);
                }
            },
            Key::Fence(name) => {
                self.fences
                    .insert(name, FenceEntry::parse(value, entry.modified)?);
            }
        }
        Ok(())
    }

    /// The name in `/leader`.
    pub fn leader_name(&self) -> Option<&MemberName> {
        self.leader.as_ref().map(|l| &l.name)
    }

    /// The record of a member; names are compared as they are written.
    pub fn member(&self, name: &MemberName) -> Option<&MemberRecord> {
        self.members.get(name).map(|m| &m.record)
    }

    /// Whether nothing at all is known of this cluster.
    pub fn is_empty(&self) -> bool {
        *self
            == Self {
                cluster_id: self.cluster_id,
                revision: self.revision,
                ..Self::default()
            }
    }
}
