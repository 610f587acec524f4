//! What a watch has brought, and what we have committed ourselves: how the two become one snapshot.

use super::txn::Txn;
use super::view::{Entry, Snapshot};
use crate::ids::{LeaseId, Revision};
use std::collections::VecDeque;

/// Own commits that a read under way may have missed. More than a member has under way at once.
const OWN_COMMITS_MAX: usize = 32;

/// The watched snapshot. Our own commits are in it before the watch brings them, so that the next decision
/// reads its own writes.
#[derive(Clone, Debug, Default)]
pub struct Watched {
    snapshot: Snapshot,
    /// Complete up to here by the watch alone, own commits not counted.
    upto: Revision,
    live: bool,
    own: VecDeque<(Txn, LeaseId, Revision)>,
}

impl Watched {
    /// Starts over from a read. `same_world` is false when etcd was replaced or went back: then our commits of
    /// before mean nothing (S23).
    pub fn list(&mut self, snapshot: Snapshot, same_world: bool) {
        self.upto = snapshot.revision;
        self.snapshot = snapshot;
        if !same_world {
            self.own.clear();
        }
        // A read that was under way while we committed may not have seen it; folding in a commit that it did see
        // would bring back what others have changed since.
        let missed = self.own.iter().filter(|(_, _, at)| *at > self.upto);
        for (txn, session, revision) in missed {
            self.snapshot.apply_own(txn, *session, *revision);
        }
        self.live = true;
    }

    /// An entry that the watch brings. `false` for an echo of what was folded in already: no news.
    pub fn put(&mut self, suffix: &str, entry: &Entry) -> bool {
        self.upto = self.upto.max(entry.modified);
        let news = self.snapshot.entries.get(suffix) != Some(entry);
        if news {
            self.snapshot.apply_put(suffix, entry.clone());
        } else {
            self.snapshot.revision = self.snapshot.revision.max(entry.modified);
        }
        news
    }

    /// A deletion that the watch brings. `false` when nothing was there.
    pub fn delete(&mut self, suffix: &str, at: Revision) -> bool {
        self.upto = self.upto.max(at);
        let news = self.snapshot.entries.contains_key(suffix);
        self.snapshot.apply_delete(suffix, at);
        news
    }

    /// Folds in what we committed, unless the watch was faster: it has brought all up to its revision, and what
    /// others have changed since must not come back. `true` when the snapshot has changed.
    pub fn own(&mut self, txn: &Txn, session: LeaseId, revision: Revision) -> bool {
        if self.own.len() == OWN_COMMITS_MAX {
            self.own.pop_front();
        }
        self.own.push_back((txn.clone(), session, revision));
        let folded = self.live && revision > self.upto;
        if folded {
            self.snapshot.apply_own(txn, session, revision);
        }
        folded
    }

    /// The watch is lost: what is here is history. `false` when that was known.
    pub fn gap(&mut self) -> bool {
        std::mem::take(&mut self.live)
    }

    /// Whether the watch stands.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// How far the watch has come; own commits do not count.
    pub fn upto(&self) -> Revision {
        self.upto
    }

    /// What was seen last, whether or not the watch stands.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Whether the watch has brought everything, if a read at revision `at` says that the `newest` change and so
    /// many `keys` are there. A read from before what the watch has seen proves nothing.
    pub fn reached(&self, newest: Revision, keys: i64, at: Revision) -> bool {
        let here = i64::try_from(self.snapshot.entries.len()).unwrap_or(i64::MAX);
        self.live && self.upto <= at && newest <= self.upto && keys == here
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcs::{Key, Op};

    fn world(revision: i64) -> Snapshot {
        Snapshot {
            cluster_id: 1,
            revision: Revision(revision),
            ..Snapshot::default()
        }
    }

    fn status() -> Txn {
        Txn::always(vec![Op::put(Key::Status, "{}")])
    }

    fn entry(value: &str, at: i64) -> Entry {
        Entry {
            value: value.into(),
            lease: LeaseId(0),
            created: Revision(at),
            modified: Revision(at),
        }
    }

    #[test]
    fn a_read_that_missed_our_commit_gets_it_folded_in_and_a_newer_one_does_not() {
        let mut watched = Watched::default();
        assert!(!watched.own(&status(), LeaseId(0), Revision(5)));
        assert!(!watched.is_live());
        watched.list(world(4), true);
        assert!(watched.snapshot().entries.contains_key("status"));
        watched.list(world(6), true);
        assert!(watched.snapshot().entries.is_empty());
        watched.list(world(4), false);
        assert!(watched.snapshot().entries.is_empty());
    }

    /// The answer to a renewal came after the news that somebody had deleted what it wrote: the deleted key
    /// stood in the view for ever, and nobody wrote it again.
    #[test]
    fn an_answer_that_the_watch_has_overtaken_brings_nothing_back() {
        let mut watched = Watched::default();
        watched.list(world(4), true);
        assert!(watched.put("leader", &entry("a", 5)));
        assert!(watched.delete("leader", Revision(6)));
        let put = Txn::always(vec![Op::put(Key::Leader, "a")]);
        assert!(!watched.own(&put, LeaseId(0), Revision(5)));
        assert!(watched.snapshot().entries.is_empty());
    }

    #[test]
    fn own_commits_do_not_count_as_watched_and_their_echo_is_no_news() {
        let mut watched = Watched::default();
        watched.list(world(4), true);
        assert!(watched.own(&status(), LeaseId(0), Revision(6)));
        assert!(!watched.reached(Revision(6), 1, Revision(6)));
        assert!(!watched.put("status", &entry("{}", 6)));
        assert!(watched.reached(Revision(6), 1, Revision(6)));
        assert!(!watched.reached(Revision(6), 2, Revision(6)));
        assert!(watched.gap() && !watched.gap());
        assert!(!watched.reached(Revision(6), 1, Revision(6)));
    }
}
