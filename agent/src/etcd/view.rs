//! The watched snapshot, and everything that moves it on: the read it starts from, the events of the
//! watch, and our own commits, which are folded in before the watch brings them.

use super::EtcdEvent;
use super::outbox::Outbox;
use super::store::Milestone;
use proto::core::txns;
use proto::dcs::{Compare, Entry, Key, Snapshot, Txn};
use proto::ids::{LeaseId, MemberName, Revision};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Own commits that a read under way may have missed. More than a member has under way at once.
const OWN_COMMITS_MAX: usize = 32;

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
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    snapshot: Snapshot,
    /// Complete up to here by the watch alone, own commits not counted.
    watched: Revision,
    /// Whether the watch stands. Otherwise the snapshot is history.
    live: bool,
    own: VecDeque<(Txn, LeaseId, Revision)>,
}

impl View {
    /// Nothing seen yet.
    pub(crate) fn new(outbox: Outbox) -> Self {
        Self {
            outbox,
            inner: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, inner: &Inner) {
        self.outbox
            .send(EtcdEvent::Snapshot(Arc::new(inner.snapshot.clone())));
    }

    /// Starts over from a read. `same_world` is false when etcd was replaced or went back: then our
    /// commits of before mean nothing.
    pub(crate) fn list(&self, snapshot: Snapshot, same_world: bool) {
        let mut inner = self.lock();
        inner.watched = snapshot.revision;
        inner.snapshot = snapshot;
        if !same_world {
            inner.own.clear();
        }
        // A read that was under way while we committed may not have seen it; folding in a commit that
        // it did see would bring back what others have changed since.
        let listed = inner.watched;
        let own = std::mem::take(&mut inner.own);
        for (txn, session, revision) in own.iter().filter(|(_, _, at)| *at > listed) {
            inner.snapshot.apply_own(txn, *session, *revision);
        }
        inner.own = own;
        inner.live = true;
        self.announce(&inner);
    }

    /// Applies one message of the watch. An echo of what we have folded in already is no news.
    pub(crate) fn changes(&self, changes: Vec<Change>) {
        let mut inner = self.lock();
        let mut news = false;
        for change in changes {
            let at = match change {
                Change::Put(suffix, entry) => {
                    let at = entry.modified;
                    news |= inner.snapshot.entries.get(&suffix) != Some(&entry);
                    inner.snapshot.apply_put(&suffix, entry);
                    at
                }
                Change::Delete(suffix, at) => {
                    news |= inner.snapshot.entries.contains_key(&suffix);
                    inner.snapshot.apply_delete(&suffix, at);
                    at
                }
            };
            inner.watched = inner.watched.max(at);
        }
        if news {
            self.announce(&inner);
        }
    }

    /// Folds in what we committed, unless the watch was faster: it has brought all up to its revision, and what
    /// others have changed since must not come back.
    pub(crate) fn own(&self, txn: &Txn, session: LeaseId, revision: Revision) {
        let mut inner = self.lock();
        if inner.own.len() == OWN_COMMITS_MAX {
            inner.own.pop_front();
        }
        inner.own.push_back((txn.clone(), session, revision));
        if inner.live && revision > inner.watched {
            inner.snapshot.apply_own(txn, session, revision);
            self.announce(&inner);
        }
    }

    /// See [`txns::leader_beside_record`]; a view that lags costs one refused attempt.
    pub(crate) fn leader_beside(&self, owner: &MemberName) -> Option<Compare> {
        let inner = self.lock();
        let leader = inner.snapshot.entries.get(&Key::Leader.to_string());
        txns::leader_beside_record(leader.map(|entry| entry.value.as_str()), owner)
    }

    /// The watch is lost. Says so once.
    pub(crate) fn gap(&self) {
        let mut inner = self.lock();
        if std::mem::take(&mut inner.live) {
            self.outbox.send(EtcdEvent::Gap);
        }
    }

    /// Whether the watch has brought everything that the milestone, read when the store was at
    /// revision `at`, proves to exist. A read from before what the watch has seen proves nothing.
    pub(crate) fn reached(&self, milestone: Milestone, at: Revision) -> bool {
        let inner = self.lock();
        let keys = i64::try_from(inner.snapshot.entries.len()).unwrap_or(i64::MAX);
        inner.live
            && inner.watched <= at
            && milestone.newest <= inner.watched
            && milestone.keys == keys
    }

    /// Another etcd cluster takes the place of the one that was watched.
    pub(crate) fn forget(&self) {
        self.gap();
        *self.lock() = Inner::default();
    }

    /// How far the watch has come.
    pub(crate) fn watched(&self) -> Revision {
        self.lock().watched
    }

    /// The snapshot with our own commits, while the watch stands.
    pub(crate) fn current(&self) -> Option<Arc<Snapshot>> {
        let inner = self.lock();
        inner.live.then(|| Arc::new(inner.snapshot.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::dcs::{Key, Op};

    fn world(revision: i64) -> Snapshot {
        Snapshot {
            cluster_id: 1,
            revision: Revision(revision),
            ..Snapshot::default()
        }
    }

    #[test]
    fn a_read_that_missed_our_commit_gets_it_folded_in_and_a_newer_one_does_not() {
        let view = View::new(Outbox::nowhere());
        let put = Txn::always(vec![Op::put(Key::Status, "{}")]);
        view.own(&put, LeaseId(0), Revision(5));
        assert!(view.current().is_none());
        view.list(world(4), true);
        assert!(
            view.current()
                .is_some_and(|s| s.entries.contains_key("status"))
        );
        view.list(world(6), true);
        assert!(view.current().is_some_and(|s| s.entries.is_empty()));
        view.list(world(4), false);
        assert!(view.current().is_some_and(|s| s.entries.is_empty()));
    }

    /// The answer to a renewal came after the news that somebody had deleted what it wrote: the deleted key
    /// stood in the view for ever, and nobody wrote it again.
    #[test]
    fn an_answer_that_the_watch_has_overtaken_brings_nothing_back() {
        let view = View::new(Outbox::nowhere());
        view.list(world(4), true);
        let put = Txn::always(vec![Op::put(Key::Leader, "a")]);
        let entry = Entry {
            value: "a".into(),
            lease: LeaseId(0),
            created: Revision(5),
            modified: Revision(5),
        };
        view.changes(vec![Change::Put("leader".into(), entry)]);
        view.changes(vec![Change::Delete("leader".into(), Revision(6))]);
        view.own(&put, LeaseId(0), Revision(5));
        assert!(view.current().is_some_and(|s| s.entries.is_empty()));
    }

    #[test]
    fn own_commits_do_not_count_as_watched() {
        let view = View::new(Outbox::nowhere());
        view.list(world(4), true);
        view.own(
            &Txn::always(vec![Op::put(Key::Status, "{}")]),
            LeaseId(0),
            Revision(6),
        );
        let milestone = Milestone {
            newest: Revision(6),
            keys: 1,
        };
        assert!(!view.reached(milestone, Revision(6)));
        let entry = Entry {
            value: "{}".into(),
            lease: LeaseId(0),
            created: Revision(6),
            modified: Revision(6),
        };
        view.changes(vec![Change::Put("status".into(), entry)]);
        assert!(view.reached(milestone, Revision(6)));
        view.gap();
        assert!(!view.reached(milestone, Revision(6)));
    }
}
