//! Renewing the record: the rules of `safety.md` 2, "Renew", as plain data.
//!
//! ```text
//!            send seq+1 if R is at m ──── committed ───▶ D = first send + L, next seq
//!                 ▲         │
//!                 │         ├─ no answer: the SAME seq and m again, first send kept
//!                 │         └─ compare failed: read R
//!                 │               ├─ my session, the seq I sent: it had succeeded
//!                 └───────────────┤─ my session, after a takeover: carry on from there, D unchanged
//!                                 └─ anything else: deposed
//! ```

use proto::core::decision::LeaseGoal;
use proto::core::observation::HeldRecord;
use proto::dcs::{Compare, Entry, Key, LeaseRecord, Op, RecordEntry, RecordState, Txn};
use proto::ids::{Epoch, MemberName, Revision};
use proto::time::MonoTime;
use std::time::Duration;

/// The parts of [`LeaseGoal::Record`] that a renewal writes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) epoch: Epoch,
    pub(crate) length: Duration,
    pub(crate) wait: Duration,
    pub(crate) every: Duration,
    pub(crate) members: Vec<MemberName>,
}

impl Terms {
    /// From a goal that holds a record.
    pub(crate) fn of(goal: &LeaseGoal) -> Option<Self> {
        let LeaseGoal::Record {
            epoch,
            length,
            wait,
            every,
            members,
            ..
        } = goal
        else {
            return None;
        };
        let (epoch, length, wait, every) = (*epoch, *length, *wait, *every);
        Some(Self {
            epoch,
            length,
            wait,
            every,
            members: members.clone(),
        })
    }
}

/// The record as this process holds it.
#[derive(Clone, Debug)]
pub(crate) struct Renewal {
    /// As last known to be committed.
    base: LeaseRecord,
    held: HeldRecord,
    /// The furthest deadline that was ever earned in this tenure: the guardian may still have it.
    furthest: MonoTime,
    /// When the first attempt of the renewal under way was sent.
    first_send: Option<MonoTime>,
    /// Whether this process has committed a renewal. Before, an attempt of the process that held the
    /// record earlier may still be under way.
    settled: bool,
}

/// What the record turned out to be after a compare failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    /// The renewal had been committed.
    Renewed(HeldRecord),
    /// Ours, but not as it was thought to be: send again.
    Again,
    /// Not ours any more.
    Lost(String),
}

impl Renewal {
    /// From a takeover, or from what an earlier process left.
    pub(crate) fn adopt(base: LeaseRecord, held: HeldRecord) -> Self {
        Self {
            base,
            held,
            furthest: held.sent_at + held.length,
            first_send: None,
            settled: false,
        }
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.held.epoch
    }

    /// Whose record it is.
    pub(crate) fn owner(&self) -> &MemberName {
        &self.base.owner
    }

    /// When the next renewal is due; at once while one is under way.
    pub(crate) fn due(&self, every: Duration) -> MonoTime {
        self.first_send.unwrap_or(self.held.sent_at + every)
    }

    /// The record that the renewal writes.
    fn next(&self, terms: &Terms, now: MonoTime) -> LeaseRecord {
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        // L is lowered first, then W. Until the deadline of a longer lease is near, others must wait for
        // that one: we may not learn that this renewal counts, and the guardian may not hear of it.
        let longer = self.furthest > now + terms.length;
        let before = if longer { self.base.w_ms } else { 0 };
        LeaseRecord {
            seq: self.base.seq.saturating_add(1),
            state: RecordState::Held,
            l_ms: millis(terms.length),
            w_ms: millis(terms.wait).max(before),
            members: terms.members.clone(),
            final_position: None,
            ..self.base.clone()
        }
    }

    /// One attempt, sent at `now`: what it writes, and how. Repeated attempts write the same record over
    /// the same revision, but for lengths that have changed meanwhile. `/leader` is written with it under the compare `leader`, so that it never
    /// replaces that of a member which has taken it by other rules; it is left out while there is no
    /// session to put it on, or after that compare has failed: it is for others to see, and the record
    /// must not wait for it.
    pub(crate) fn attempt(
        &mut self,
        terms: &Terms,
        now: MonoTime,
        leader: Option<Compare>,
    ) -> (LeaseRecord, Txn) {
        self.first_send.get_or_insert(now);
        let next = self.next(terms, now);
        let mut then = vec![Op::put(Key::Record, next.to_value())];
        let mut when = vec![Compare::Unchanged(Key::Record, self.held.modified)];
        if let Some(compare) = leader {
            when.push(compare);
            then.push(Op::put_leased(Key::Leader, next.owner.as_str()));
        }
        (next, Txn::when(when, then))
    }

    /// The attempt was committed. The deadline counts from the first attempt (I2).
    pub(crate) fn committed(&mut self, written: LeaseRecord, modified: Revision) -> HeldRecord {
        let sent_at = self.first_send.take().unwrap_or(self.held.sent_at);
        let length = Duration::from_millis(written.l_ms);
        self.held = HeldRecord {
            sent_at,
            length,
            modified,
            seq: written.seq,
            ..self.held
        };
        self.furthest = self.furthest.max(sent_at + length);
        self.base = written;
        self.settled = true;
        self.held
    }

    /// The compare failed, and this is what stands there.
    pub(crate) fn resolve(&mut self, found: Option<&Entry>) -> Resolved {
        let Some(entry) = found else {
            return Resolved::Lost(String::from("the record was deleted"));
        };
        let found = match RecordEntry::parse(&entry.value, entry.modified) {
            Ok(found) => found,
            Err(problem) => return Resolved::Lost(problem),
        };
        let (record, modified) = (found.record, found.modified);
        let mine = record.epoch == self.held.epoch
            && record.session == self.base.session
            && record.owner == self.base.owner
            && record.state == RecordState::Held;
        let sent = self.base.seq.saturating_add(1);
        if mine && self.settled && self.first_send.is_some() && record.seq == sent {
            return Resolved::Renewed(self.committed(record, modified));
        }
        if modified == self.held.modified {
            // A read from before the write that made the compare fail (etcd 20418).
            return Resolved::Again;
        }
        if mine && !self.settled {
            // Either our attempt, or one that an earlier process left under way: sent before ours, it
            // earns less than ours would. Nothing tells the two apart, so the deadline stays.
            (self.held.modified, self.held.seq) = (modified, record.seq);
            (self.base, self.first_send) = (record, None);
            return Resolved::Again;
        }
        Resolved::Lost(format!(
            "epoch {} of {} (session {}, seq {}) stands in the record",
            record.epoch, record.owner, record.session, record.seq
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::dcs::RECORD_VERSION;
    use proto::ids::LeaseId;

    const L: Duration = Duration::from_secs(8);

    fn terms() -> Terms {
        Terms {
            epoch: Epoch(3),
            length: L,
            wait: Duration::from_millis(8600),
            every: Duration::from_millis(1500),
            members: vec!["a".into(), "b".into()],
        }
    }

    fn record(seq: u64) -> LeaseRecord {
        LeaseRecord {
            v: RECORD_VERSION,
            epoch: Epoch(3),
            owner: "a".into(),
            session: String::from("s"),
            seq,
            state: RecordState::Held,
            l_ms: 8000,
            w_ms: 8600,
            members: vec!["a".into(), "b".into()],
            final_position: None,
        }
    }

    fn entry(record: &LeaseRecord, modified: i64) -> Entry {
        let (created, modified) = (Revision(1), Revision(modified));
        Entry {
            value: record.to_value(),
            lease: LeaseId(0),
            created,
            modified,
        }
    }

    fn adopted() -> Renewal {
        let held = HeldRecord {
            epoch: Epoch(3),
            sent_at: MonoTime(0),
            length: L,
            modified: Revision(10),
            seq: 5,
        };
        Renewal::adopt(record(5), held)
    }

    fn settled() -> Renewal {
        let mut renewal = adopted();
        let (written, _) = renewal.attempt(&terms(), MonoTime(1), None);
        renewal.committed(written, Revision(11));
        renewal
    }

    #[test]
    fn repeated_attempts_keep_seq_revision_and_first_send() {
        let mut renewal = settled();
        let (first, txn) = renewal.attempt(&terms(), MonoTime(100), None);
        let leader = Compare::Absent(Key::Leader);
        let (_, both) = renewal.attempt(&terms(), MonoTime(500), Some(leader.clone()));
        assert_eq!(both.when, [txn.when[0].clone(), leader]);
        assert_eq!((both.then.len(), &both.then[0]), (2, &txn.then[0]));
        let (second, again) = renewal.attempt(&terms(), MonoTime(900), None);
        assert_eq!((&first, &txn), (&second, &again));
        assert_eq!(txn.when, [Compare::Unchanged(Key::Record, Revision(11))]);
        let held = renewal.committed(second, Revision(12));
        assert_eq!((held.sent_at, held.seq, held.length), (MonoTime(100), 7, L));
    }

    #[test]
    fn a_lost_answer_is_found_in_the_record_and_counts_from_the_first_send() {
        let mut renewal = settled();
        renewal.attempt(&terms(), MonoTime(100), None);
        let (written, _) = renewal.attempt(&terms(), MonoTime(900), None);
        let resolved = renewal.resolve(Some(&entry(&written, 15)));
        let Resolved::Renewed(held) = resolved else {
            panic!("{resolved:?}")
        };
        assert_eq!(
            (held.sent_at, held.modified, held.seq),
            (MonoTime(100), Revision(15), 7)
        );
    }

    #[test]
    fn whoever_else_stands_in_the_record_has_deposed_us() {
        let thieves = [
            LeaseRecord {
                epoch: Epoch(4),
                owner: "b".into(),
                ..record(7)
            },
            LeaseRecord {
                session: String::from("other"),
                ..record(7)
            },
            LeaseRecord {
                state: RecordState::Released,
                ..record(7)
            },
            record(8),
        ];
        for thief in thieves {
            let mut renewal = settled();
            renewal.attempt(&terms(), MonoTime(100), None);
            let resolved = renewal.resolve(Some(&entry(&thief, 15)));
            assert!(matches!(resolved, Resolved::Lost(_)), "{thief:?}");
        }
        let mut renewal = settled();
        assert!(matches!(renewal.resolve(None), Resolved::Lost(_)));
    }

    /// The model found it: the first renewal with a shorter L and W was committed, but not answered, or the
    /// guardian was frozen and did not hear of it. Whoever waited the shorter W was a second primary beside
    /// the deadline of the longer L.
    #[test]
    fn others_wait_less_only_when_the_longer_deadline_is_near() {
        let at = |seconds: u64| MonoTime(seconds * 1_000_000_000);
        let mut renewal = adopted();
        let shorter = Terms {
            length: Duration::from_secs(5),
            wait: Duration::from_millis(5600),
            ..terms()
        };
        let mut lengths = Vec::new();
        for second in [1, 2, 4] {
            let (written, _) = renewal.attempt(&shorter, at(second), None);
            lengths.push((written.l_ms, written.w_ms));
            renewal.committed(written, Revision(12));
        }
        assert_eq!(lengths, [(5000, 8600), (5000, 8600), (5000, 5600)]);
        let (longer, _) = renewal.attempt(&terms(), at(5), None);
        assert_eq!((longer.l_ms, longer.w_ms), (8000, 8600));
    }

    #[test]
    fn a_read_from_before_the_refusal_is_repeated() {
        let mut renewal = settled();
        renewal.attempt(&terms(), MonoTime(100), None);
        assert_eq!(
            renewal.resolve(Some(&entry(&record(6), 11))),
            Resolved::Again
        );
    }

    /// The model found it with two restarts: the renewal of the first restarted agent arrived late, and
    /// carried just the counter that the second one had sent, which took the later deadline.
    #[test]
    fn an_earlier_process_extends_no_deadline_whatever_it_counted() {
        let mut renewal = adopted();
        let (sent, _) = renewal.attempt(&terms(), MonoTime(100), None);
        assert_eq!(sent, record(6));
        assert_eq!(
            renewal.resolve(Some(&entry(&record(6), 12))),
            Resolved::Again
        );
        let (written, txn) = renewal.attempt(&terms(), MonoTime(200), None);
        assert_eq!(txn.when, [Compare::Unchanged(Key::Record, Revision(12))]);
        let held = renewal.committed(written, Revision(13));
        assert_eq!((held.sent_at, held.seq), (MonoTime(200), 7));
    }
}
