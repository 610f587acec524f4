//! The real rules, asked about the state of a model.

use super::super::etcd::{At, NOW, Rec, Sent, Store, TICK, Val, ago, names_of, settings, ticks};
use super::super::kit::{Memo, memo};
use super::super::record::{Renewal, Resolved, Terms};
use super::{Hold, Lease, Mutation, Node, Pg, State};
use proto::config::Settings;
use proto::core::observation::{HeldRecord, Observation, Process, RecordSeen, Sql, SqlSample};
use proto::core::tenure::{self, Lock};
use proto::core::txns::{self, Claimant};
use proto::core::{Memory, tenure::Tenure};
use proto::dcs::{Entry, Txn};
use proto::fence::{FenceClock, Moment, Verdict};
use proto::ids::{Epoch, LeaseId, Revision};
use proto::time::MonoTime;
use serde_json::json;
use std::cell::RefCell;

/// The lock as one agent judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    Mine,
    Free,
    No,
}

type Question = (u8, Store, Option<Hold>, Option<u8>, Pg, bool);

thread_local! {
    static LOCKS: Memo<Question, Judged> = RefCell::default();
    static CLAIMS: Memo<(u8, Store, u8, u8, bool), Sent> = RefCell::default();
    static RELEASES: Memo<(u8, Store), Sent> = RefCell::default();
    static ATTEMPTS: Memo<(u8, Hold, bool), Sent> = RefCell::default();
    static RENEWED: Memo<(u8, Hold, bool, bool), Hold> = RefCell::default();
    static RESOLVED: Memo<(u8, Hold, Rec), Option<(bool, Hold)>> = RefCell::default();
}

fn member(model: &Lease, n: u8, changed: bool) -> Settings {
    let mut settings = settings(n, &json!({}));
    let millis = |n: u8| u64::try_from(ticks(n).as_millis()).unwrap();
    let (l, w) = model.lengths(changed);
    settings.cluster.native.lease_ms = millis(l);
    settings.cluster.native.wait_ms = millis(w);
    settings
}

fn held(hold: &Hold) -> HeldRecord {
    HeldRecord {
        epoch: Epoch(hold.epoch.into()),
        sent_at: ago(hold.sent),
        length: ticks(hold.l),
        modified: if hold.current {
            At::Record.revision()
        } else {
            Revision(1)
        },
        seq: hold.seq.into(),
    }
}

fn judge(model: &Lease, n: u8, node: &Node, store: &Store) -> Judged {
    let question = (n, *store, node.hold, node.seen, node.pg, node.changed);
    memo(&LOCKS, question, || ask(model, n, node, store))
}

fn ask(model: &Lease, n: u8, node: &Node, store: &Store) -> Judged {
    let mut view = store.view();
    if let Some(entry) = view
        .record
        .as_mut()
        .filter(|_| model.is(Mutation::OwnWaitAlone))
    {
        entry.record.w_ms = 0;
    }
    let mut o = Observation {
        now: NOW,
        ..Observation::default()
    };
    o.dcs.view = Some(view);
    o.dcs.confirmed = true;
    o.dcs.held = node.hold.map(|hold| held(&hold));
    o.dcs.record_seen = node.seen.map(|age| RecordSeen {
        modified: At::Record.revision(),
        since: ago(age),
    });
    o.postgres.process = match node.pg {
        Pg::Dying => Process::Orphans,
        Pg::Harmless | Pg::Writable => Process::Alive { pid: 1 },
    };
    o.postgres.sql = Sql::Sample(Box::new(SqlSample {
        in_recovery: node.pg == Pg::Harmless,
        ..SqlSample::default()
    }));
    match tenure::lock(&o, &Memory::default(), &member(model, n, node.changed)) {
        Lock::Mine(_) => Judged::Mine,
        Lock::Free => Judged::Free,
        Lock::Other(_) | Lock::Inherited | Lock::Unknown(_) => Judged::No,
    }
}

/// Whether the agent may act as the holder. The worst that it can have is the view of the moment at which
/// it last knew the record to be its own.
pub fn is_mine(model: &Lease, state: &State, n: u8) -> bool {
    let node = &state.nodes[usize::from(n)];
    let Some(hold) = node.hold else { return false };
    let mut then = Store::default();
    let record = Rec {
        epoch: hold.epoch,
        owner: n,
        session: hold.session,
        seq: hold.seq,
        ..state.record()
    };
    let record = Rec {
        state: super::HELD,
        ..record
    };
    then.put(At::Record, Val::Record(record), 0);
    judge(model, n, node, &then) == Judged::Mine
}

/// Whether the record, as it is now, may be taken.
pub fn is_free(model: &Lease, state: &State, n: u8) -> bool {
    let node = &state.nodes[usize::from(n)];
    node.seen.is_some() && judge(model, n, node, &state.store) == Judged::Free
}

/// The transaction that takes the record, and its epoch.
pub fn claim(model: &Lease, state: &State, n: u8) -> (u8, Sent) {
    let node = &state.nodes[usize::from(n)];
    let highest = node.guard.armed.map_or(0, |(epoch, _)| epoch);
    let question = (n, state.store, node.guard.life, highest, node.changed);
    let sent = memo(&CLAIMS, question, || {
        let by = Claimant {
            s: &member(model, n, node.changed),
            session: &node.guard.life.to_string(),
            members: names_of(7),
            highest: Epoch(highest.into()),
        };
        Sent::of(&txns::claim(&state.store.view(), &by), 0)
    });
    let epoch = sent.then.iter().find_map(|(_, write)| match write {
        Some((Val::Record(record), _)) => Some(record.epoch),
        _ => None,
    });
    (epoch.unwrap(), record_alone(sent))
}

/// `/leader` beside the record is for others to see: it is left out, and so are its compares.
fn record_alone(mut sent: Sent) -> Sent {
    sent.when.retain(|(at, _)| *at == At::Record);
    sent.then.retain(|(at, _)| *at == At::Record);
    sent
}

/// The transaction that gives the record up, if it is ours.
pub fn release(model: &Lease, state: &State, n: u8) -> Option<Sent> {
    let record = state.record();
    let ours = record.owner == n && record.state == super::HELD;
    let make = || {
        let txn = txns::release(&state.store.view(), &member(model, n, false), None);
        record_alone(Sent::of(&txn, 0))
    };
    ours.then(|| memo(&RELEASES, (n, state.store), make))
}

fn terms(model: &Lease, changed: bool, hold: &Hold) -> Terms {
    let (l, w) = model.lengths(changed);
    Terms {
        epoch: Epoch(hold.epoch.into()),
        length: ticks(l),
        wait: ticks(w),
        every: TICK * 1000,
        members: names_of(7),
    }
}

/// The real renewal in the state that `hold` describes.
fn renewal(n: u8, hold: &Hold) -> Renewal {
    let base = |seq: u8| Rec {
        epoch: hold.epoch,
        owner: n,
        session: hold.session,
        seq,
        state: super::HELD,
        l: hold.base.0,
        w: hold.base.1,
        members: 7,
    };
    let known = held(hold);
    let mut renewal = if hold.settled {
        let furthest = HeldRecord {
            length: (NOW + ticks(hold.far)).since(known.sent_at),
            ..known
        };
        let mut renewal = Renewal::adopt(base(hold.seq - 1).real(), furthest);
        renewal.committed(base(hold.seq).real(), known.modified);
        renewal
    } else {
        Renewal::adopt(base(hold.seq).real(), known)
    };
    if let Some(age) = hold.first {
        // Only the moment of the first attempt is kept of it.
        let terms = Terms {
            epoch: known.epoch,
            length: known.length,
            wait: known.length,
            every: TICK * 1000,
            members: Vec::new(),
        };
        renewal.attempt(&terms, ago(age), None);
    }
    renewal
}

/// One attempt of a renewal.
pub fn renew(model: &Lease, n: u8, changed: bool, hold: &mut Hold) -> Sent {
    let sent = memo(&ATTEMPTS, (n, *hold, changed), || {
        let terms = terms(model, changed, hold);
        let (_, txn) = renewal(n, hold).attempt(&terms, NOW, None);
        if hold.current {
            Sent::of(&txn, 0)
        } else {
            Sent::refused()
        }
    });
    hold.first.get_or_insert(0);
    sent
}

fn known(hold: &mut Hold, found: HeldRecord, current: bool) {
    hold.sent = age(found.sent_at);
    hold.l = age(NOW - found.length);
    hold.far = hold.far.max(hold.l.saturating_sub(hold.sent));
    hold.seq = u8::try_from(found.seq).unwrap();
    (hold.first, hold.settled, hold.current) = (None, true, current);
}

fn age(at: MonoTime) -> u8 {
    u8::try_from(NOW.since(at).as_nanos() / TICK.as_nanos()).unwrap()
}

/// The attempt was committed, which was made by the changed configuration or by the one before.
pub fn renewed(model: &Lease, n: u8, changed: bool, hold: &mut Hold, current: bool) {
    let question = (n, *hold, changed, current);
    *hold = memo(&RENEWED, question, || {
        let mut hold = *hold;
        let mut renewal = renewal(n, &hold);
        let (written, _): (_, Txn) = renewal.attempt(&terms(model, changed, &hold), NOW, None);
        let record = Rec::of(&written);
        let found = renewal.committed(written, At::Record.revision());
        known(&mut hold, found, current);
        hold.base = (record.l, record.w);
        hold
    });
}

/// The attempt was refused, and this is what stands there: whether it counts after all. `None` when the
/// record is lost.
pub fn resolve(model: &Lease, n: u8, hold: &mut Hold, record: Rec) -> Option<bool> {
    let question = (n, *hold, record);
    let (counts, found) = memo(&RESOLVED, question, || {
        let mut hold = *hold;
        let counts = take_refused(model, n, &mut hold, record)?;
        Some((counts, hold))
    })?;
    *hold = found;
    Some(counts)
}

fn take_refused(model: &Lease, n: u8, hold: &mut Hold, record: Rec) -> Option<bool> {
    let mut renewal = renewal(n, hold);
    let entry = Entry {
        value: record.real().to_value(),
        lease: LeaseId(0),
        created: Revision(1),
        modified: At::Record.revision(),
    };
    let equal = record.seq == hold.seq + 1 && record.epoch == hold.epoch && !hold.settled;
    match renewal.resolve(Some(&entry)) {
        Resolved::Renewed(found) => {
            known(hold, found, true);
            hold.base = (record.l, record.w);
            Some(true)
        }
        Resolved::Again if equal && model.is(Mutation::EqualCounterIsMine) => {
            (hold.sent, hold.seq) = (hold.first.unwrap_or(hold.sent), record.seq);
            (hold.first, hold.settled, hold.current) = (None, true, true);
            Some(true)
        }
        Resolved::Again => {
            if renewal.due(TICK * 1000) > NOW {
                hold.first = None;
            }
            (hold.seq, hold.current) = (record.seq, true);
            hold.base = (record.l, record.w);
            Some(false)
        }
        Resolved::Lost(_) => None,
    }
}

/// The guardian's clock with `left` ticks to the deadline.
fn clock(armed: Option<(u8, i8)>) -> (FenceClock, Moment) {
    let moment = |at: MonoTime| Moment { boot: at, raw: at };
    let mut clock = FenceClock::default();
    let now = match armed {
        Some((epoch, left)) => {
            let ahead = u8::try_from(50 - left).unwrap();
            let begun = MonoTime::default();
            let deadline = begun + ticks(50);
            clock
                .arm(moment(begun), Epoch(epoch.into()), deadline)
                .unwrap();
            begun + ticks(ahead)
        }
        None => MonoTime::default(),
    };
    (clock, moment(now))
}

/// Hands a deadline to the guardian; it may refuse.
pub fn arm(armed: Option<(u8, i8)>, epoch: u8, left: u8) -> Option<(u8, i8)> {
    let (mut clock, now) = clock(armed);
    let deadline = now.boot + ticks(left);
    match clock.arm(now, Epoch(epoch.into()), deadline) {
        Ok(_) => Some((epoch, i8::try_from(left).unwrap())),
        Err(_) => armed,
    }
}

/// Whether the guardian, looking at its clocks now, fences.
pub fn fences(armed: Option<(u8, i8)>) -> bool {
    let (mut clock, now) = clock(armed);
    clock.poll(now) == Verdict::Fence
}

/// The deadline of a hold is what the real tenure says.
pub fn left(hold: &Hold) -> u8 {
    let tenure = Tenure::native(&held(hold));
    u8::try_from(NOW.until(tenure.deadline).as_nanos() / TICK.as_nanos()).unwrap()
}
