//! etcd as its clients may rely on it: a linearizable store with revisions, leases, and a log of changes
//! that watches follow. What it does wrong (early revocation, late expiry, answers that say nothing)
//! comes from the faults.

use super::clock::{MS, SEC, T};
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{Entry, LeaseRef, Op, Snapshot, Txn};
use proto::ids::{LeaseId, Revision};
use std::collections::BTreeMap;
use std::rc::Rc;

#[derive(Clone, Debug)]
pub struct Lease {
    pub ttl: T,
    pub expires: T,
}

/// One change, as a watch brings it.
#[derive(Clone, Debug)]
pub struct Change {
    pub revision: Revision,
    pub suffix: Rc<str>,
    pub entry: Option<Rc<Entry>>,
}

#[derive(Clone, Debug)]
pub struct Store {
    pub snap: Snapshot,
    pub leases: BTreeMap<i64, Lease>,
    next_lease: i64,
    pub log: Vec<Change>,
    /// Faults that keep it from answering.
    pub down: u32,
}

impl Store {
    pub fn new() -> Self {
        Self {
            snap: Snapshot {
                cluster_id: 7,
                revision: Revision(1),
                entries: BTreeMap::new(),
            },
            leases: BTreeMap::new(),
            next_lease: 1000,
            log: Vec::new(),
            down: 0,
        }
    }

    /// Another cluster takes its place.
    pub fn wipe(&mut self) {
        self.snap = Snapshot {
            cluster_id: self.snap.cluster_id + 1,
            revision: Revision(1),
            entries: BTreeMap::new(),
        };
        self.leases.clear();
        self.log.clear();
    }

    pub fn grant(&mut self, now: T, seconds: u64) -> (LeaseId, T) {
        let ttl = seconds.max(2) * SEC;
        let id = self.next_lease;
        self.next_lease += 1;
        self.leases.insert(
            id,
            Lease {
                ttl,
                expires: now + ttl,
            },
        );
        (LeaseId(id), ttl)
    }

    /// `None` when the lease is not known.
    pub fn keep_alive(&mut self, now: T, id: LeaseId) -> Option<T> {
        let lease = self.leases.get_mut(&id.0)?;
        lease.expires = now + lease.ttl;
        Some(lease.expires)
    }

    /// A new leader of etcd gives every lease its whole length again.
    pub fn extend_all(&mut self, now: T) -> Vec<(i64, T)> {
        for lease in self.leases.values_mut() {
            lease.expires = lease.expires.max(now + lease.ttl + SEC);
        }
        self.leases.iter().map(|(id, l)| (*id, l.expires)).collect()
    }

    /// Ends a lease: its keys go at one revision.
    pub fn revoke(&mut self, id: i64) -> bool {
        if self.leases.remove(&id).is_none() {
            return false;
        }
        let keys: Vec<String> = self
            .snap
            .entries
            .iter()
            .filter(|(_, e)| e.lease.0 == id)
            .map(|(k, _)| k.clone())
            .collect();
        if keys.is_empty() {
            return false;
        }
        let revision = self.next();
        for key in keys {
            self.snap.entries.remove(&key);
            self.log.push(Change {
                revision,
                suffix: key.into(),
                entry: None,
            });
        }
        true
    }

    fn next(&mut self) -> Revision {
        self.snap.revision.0 += 1;
        self.snap.revision
    }

    pub fn holds(&self, txn: &Txn) -> bool {
        txn.when.iter().all(|compare| self.snap.holds(compare))
    }

    pub fn commit(&mut self, txn: &Txn, session: LeaseId) -> TxnOutcome {
        if !self.holds(txn) {
            return TxnOutcome::Refused;
        }
        let lease_of = |lease: &LeaseRef| match lease {
            LeaseRef::None => 0,
            LeaseRef::Session => session.0,
            LeaseRef::Other(id) => id.0,
        };
        for op in &txn.then {
            if let Op::Put { lease, .. } = op {
                let id = lease_of(lease);
                let named = !matches!(lease, LeaseRef::None);
                if named && !self.leases.contains_key(&id) {
                    return TxnOutcome::LeaseGone;
                }
            }
        }
        if txn.then.is_empty() {
            return TxnOutcome::Committed(self.snap.revision);
        }
        let revision = self.next();
        self.snap.apply_own(txn, session, revision);
        for op in &txn.then {
            let suffix = op.key().to_string();
            let entry = self.snap.entries.get(&suffix).cloned().map(Rc::new);
            self.log.push(Change {
                revision,
                suffix: suffix.into(),
                entry,
            });
        }
        TxnOutcome::Committed(revision)
    }

    pub fn get(&self, key: &str) -> Option<&Entry> {
        self.snap.entries.get(key)
    }
}

/// etcd looks for expired leases twice a second.
pub const EXPIRY_SCAN: T = 500 * MS;
