//! The real rules, asked about the state of a model.

use super::super::etcd::{At, NOW, Sent, Store, TICK, Val, ago, name, names_of, settings, ticks};
use super::super::kit::{Memo, memo};
use super::super::record::{Renewal, Terms};
use super::{Ask, HELD, Hold, Mutation, Node, Switch};
use proto::config::Settings;
use proto::core::Memory;
use proto::core::observation::{
    self, HeldRecord, Observation, Process, RecordSeen, Sql, SqlSample,
};
use proto::core::tenure::{self, Lock, Tenure};
use proto::core::txns::{self, Claimant};
use proto::dcs::Txn;
use proto::fence::{FenceClock, Moment};
use proto::ids::{Epoch, LeaseId};
use proto::time::MonoTime;
use serde_json::json;
use std::cell::RefCell;

/// The lock as one agent judges it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Judged {
    /// Epoch, ticks to the deadline, and whether by record.
    Mine {
        epoch: u8,
        left: u8,
        native: bool,
    },
    Free,
    Inherited,
    Other,
}

type Question = (u8, Store, Option<Hold>, Option<super::Session>, u8, bool);
type Request = (u8, Ask, Store, Option<Hold>, Option<super::Session>, u8);

thread_local! {
    static LOCKS: Memo<Question, Judged> = RefCell::default();
    static REQUESTS: Memo<Request, Option<Sent>> = RefCell::default();
}

fn millis(n: u8) -> u64 {
    u64::try_from(ticks(n).as_millis()).unwrap()
}

fn member(model: &Switch, n: u8) -> Settings {
    let mut settings = settings(n, &json!({}));
    settings.cluster.native.lease_ms = millis(model.l);
    settings.cluster.native.wait_ms = millis(model.w);
    settings
}

fn session(model: &Switch, session: super::Session) -> observation::Session {
    observation::Session {
        id: LeaseId(session.id.into()),
        ttl: ticks(model.ttl),
        sent_at: ago(session.sent),
    }
}

fn held(model: &Switch, hold: Hold) -> HeldRecord {
    HeldRecord {
        epoch: Epoch(hold.epoch.into()),
        sent_at: ago(hold.sent),
        length: ticks(model.l),
        modified: At::Record.revision(),
        seq: 0,
    }
}

pub fn judge(model: &Switch, n: u8, node: &Node) -> Judged {
    let question = (
        n,
        node.view,
        node.hold,
        node.session,
        node.seen,
        node.writable,
    );
    memo(&LOCKS, question, || ask(model, n, node))
}

fn ask(model: &Switch, n: u8, node: &Node) -> Judged {
    let view = node.view.view();
    let native = tenure::is_native(&view);
    if model.is(Mutation::ClaimOnceLeaderIsGone)
        && native
        && view.leader.is_none()
        && node.hold.is_none()
    {
        return Judged::Free;
    }
    let mut o = Observation {
        now: NOW,
        ..Observation::default()
    };
    o.dcs.view = Some(view);
    o.dcs.confirmed = true;
    o.dcs.held = node.hold.map(|hold| held(model, hold));
    o.dcs.session = node.session.map(|known| session(model, known));
    o.dcs.record_seen = Some(RecordSeen {
        modified: At::Record.revision(),
        since: ago(node.seen),
    });
    o.postgres.process = Process::Alive { pid: 1 };
    o.postgres.sql = Sql::Sample(Box::new(SqlSample {
        in_recovery: !node.writable,
        ..SqlSample::default()
    }));
    match tenure::lock(&o, &Memory::default(), &member(model, n)) {
        Lock::Mine(tenure) => Judged::Mine {
            epoch: u8::try_from(tenure.epoch.0).unwrap(),
            left: left(&tenure),
            native,
        },
        Lock::Free => Judged::Free,
        Lock::Inherited => Judged::Inherited,
        Lock::Other(_) | Lock::Unknown(_) => Judged::Other,
    }
}

fn left(tenure: &Tenure) -> u8 {
    u8::try_from(NOW.until(tenure.deadline).as_nanos() / TICK.as_nanos()).unwrap()
}

/// The real transaction of a request, built on what the agent sees; `None` where there is none.
pub fn request(model: &Switch, n: u8, ask: Ask, node: &Node) -> Option<Sent> {
    let highest = node.armed.map_or(0, |(epoch, _)| epoch);
    let question = (n, ask, node.view, node.hold, node.session, highest);
    let sent = memo(&REQUESTS, question, || {
        let session = node.session.map_or(0, |session| session.id);
        let txn = build(model, n, ask, node, highest)?;
        Some(mutate(model, ask, Sent::of(&txn, session)))
    })?;
    let (leader, record) = node.current;
    let stale = |at: At, current: bool| !current && sent.compares_revision(at);
    if stale(At::Leader, leader) || stale(At::Record, record) {
        return Some(Sent::refused());
    }
    Some(sent)
}

fn build(model: &Switch, n: u8, ask: Ask, node: &Node, highest: u8) -> Option<Txn> {
    let view = node.view.view();
    let s = member(model, n);
    let by = Claimant {
        s: &s,
        session: "1",
        members: names_of(3),
        highest: Epoch(highest.into()),
    };
    match ask {
        Ask::GoNative => Some(txns::go_native(&view, &by, &session(model, node.session?))),
        Ask::GoCompatible => {
            let tenure = Tenure::native(&held(model, node.hold?));
            let outlasts = tenure.ends_before(&session(model, node.session?), &s);
            let may = outlasts || model.is(Mutation::SessionNeedNotOutlast);
            may.then(|| txns::go_compatible(&view, &s)).flatten()
        }
        Ask::Claim => Some(txns::claim(&view, &by)),
        Ask::Inherit => txns::inherit(&view, &s),
        Ask::Release => Some(txns::release(&view, &s, None)),
        Ask::Renew => {
            let base = view.record.clone()?.record;
            let mut renewal = Renewal::adopt(base, held(model, node.hold?));
            let seen = view.leader_name().map(|name| name.as_str());
            let compare = txns::leader_beside_record(seen, &name(n));
            let compare = compare.filter(|_| node.session.is_some());
            let terms = Terms {
                epoch: renewal.epoch(),
                length: ticks(model.l),
                wait: ticks(model.w),
                every: TICK,
                members: names_of(3),
            };
            Some(renewal.attempt(&terms, NOW, compare).1)
        }
    }
}

fn mutate(model: &Switch, ask: Ask, mut sent: Sent) -> Sent {
    let without: &[At] = match (ask, model.mutation) {
        (Ask::GoNative, Some(Mutation::GoNativeWithoutLeader))
        | (Ask::Claim, Some(Mutation::ClaimWithoutLeader))
        | (Ask::Inherit, Some(Mutation::InheritWithoutLeader)) => &[At::Leader],
        (Ask::GoCompatible, Some(Mutation::GoCompatibleUncompared))
        | (Ask::Claim, Some(Mutation::ClaimUncompared)) => &[At::Leader, At::Record],
        _ => &[],
    };
    for at in without {
        sent = sent.without(*at);
    }
    let session = sent.when.iter().find_map(|(_, is)| match is {
        super::super::etcd::Is::OnLease(id) => Some(*id),
        _ => None,
    });
    for (_, write) in &mut sent.then {
        match write {
            Some((Val::Record(record), _))
                if ask == Ask::GoNative && model.is(Mutation::FirstWaitIsW) =>
            {
                record.w = model.w;
            }
            Some((Val::Name(_), lease))
                if ask == Ask::GoNative && model.is(Mutation::LeaderStaysOnLease) =>
            {
                *lease = session.unwrap();
            }
            _ => {}
        }
    }
    sent
}

/// Hands a deadline to the guardian; it may refuse.
pub fn arm(armed: Option<(u8, i8)>, epoch: u8, left: u8) -> Option<(u8, i8)> {
    let moment = |at: MonoTime| Moment { boot: at, raw: at };
    let begun = MonoTime::default();
    let mut clock = FenceClock::default();
    let mut now = begun;
    if let Some((epoch, left)) = armed {
        let armed = clock.arm(moment(begun), Epoch(epoch.into()), begun + ticks(50));
        armed.unwrap();
        now = begun + ticks(u8::try_from(50 - left).unwrap());
    }
    match clock.arm(moment(now), Epoch(epoch.into()), now + ticks(left)) {
        Ok(_) => Some((epoch, i8::try_from(left).unwrap())),
        Err(_) => armed,
    }
}

/// Whether the record that is seen is held.
pub fn held_in(store: &Store) -> bool {
    store.record().is_some_and(|record| record.state == HELD)
}
