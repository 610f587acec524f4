//! The watched snapshot ([`Watched`]), shared by those who move it on and those who read it.

use super::EtcdEvent;
use super::outbox::Outbox;
use super::store::Milestone;
use proto::core::txns;
use proto::dcs::{Compare, Entry, Key, Snapshot, Txn, Watched};
use proto::ids::{LeaseId, MemberName, Revision};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// One event of the watch.
pub(crate) enum Change {
    /// Path below the prefix, and its new entry.
    Put(String, Entry),
    /// Path below the prefix, and the revision of its deletion.
    Delete(String, Revision),
}

/// Shared by the watch, the keeper and whoever commits. Events are sent under its lock, so that no
/// older snapshot follows a newer one.
pub(crate) struct View {
    outbox: Outbox,
    inner: Mutex<Watched>,
}

impl View {
    /// Nothing seen yet.
    pub(crate) fn new(outbox: Outbox) -> Self {
        Self {
            outbox,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Watched> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, inner: &Watched) {
        self.outbox
            .send(EtcdEvent::Snapshot(Arc::new(inner.snapshot().clone())));
    }

    /// See [`Watched::list`].
    pub(crate) fn list(&self, snapshot: Snapshot, same_world: bool) {
        let mut inner = self.lock();
        inner.list(snapshot, same_world);
        self.announce(&inner);
    }

    /// Applies one message of the watch.
    pub(crate) fn changes(&self, changes: Vec<Change>) {
        let mut inner = self.lock();
        let mut news = false;
        for change in changes {
            news |= match change {
                Change::Put(suffix, entry) => inner.put(&suffix, &entry),
                Change::Delete(suffix, at) => inner.delete(&suffix, at),
            };
        }
        if news {
            self.announce(&inner);
        }
    }

    /// See [`Watched::own`].
    pub(crate) fn own(&self, txn: &Txn, session: LeaseId, revision: Revision) {
        let mut inner = self.lock();
        if inner.own(txn, session, revision) {
            self.announce(&inner);
        }
    }

    /// See [`txns::leader_beside_record`]; a view that lags costs one refused attempt.
    pub(crate) fn leader_beside(&self, owner: &MemberName) -> Option<Compare> {
        let inner = self.lock();
        let leader = inner.snapshot().entries.get(&Key::Leader.to_string());
        txns::leader_beside_record(leader.map(|entry| entry.value.as_str()), owner)
    }

    /// The watch is lost. Says so once.
    pub(crate) fn gap(&self) {
        let mut inner = self.lock();
        if inner.gap() {
            self.outbox.send(EtcdEvent::Gap);
        }
    }

    /// Whether the watch has brought everything that the milestone, read when the store was at
    /// revision `at`, proves to exist.
    pub(crate) fn reached(&self, milestone: Milestone, at: Revision) -> bool {
        self.lock().reached(milestone.newest, milestone.keys, at)
    }

    /// Another etcd cluster takes the place of the one that was watched.
    pub(crate) fn forget(&self) {
        self.gap();
        *self.lock() = Watched::default();
    }

    /// How far the watch has come.
    pub(crate) fn watched(&self) -> Revision {
        self.lock().upto()
    }

    /// The snapshot with our own commits, while the watch stands.
    pub(crate) fn current(&self) -> Option<Arc<Snapshot>> {
        let inner = self.lock();
        inner.is_live().then(|| Arc::new(inner.snapshot().clone()))
    }
}
