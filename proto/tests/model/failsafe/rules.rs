//! The real rules, asked about the state of a model.

use super::super::etcd::{At, NOW, Sent, Store, ago, name, settings};
use super::super::kit::{Memo, memo};
use super::{Failsafe, Mutation, Node, State, TTL};
use proto::config::Settings;
use proto::core::observation::{
    ControlData, DataDir, FailsafeCaller, Guardian, HeldRecord, LocalPostgres, Observation,
    Outcome, PeerAnswer, Process, RecordSeen, Session, Sql, SqlSample, Task, TaskResult,
};
use proto::core::tenure::{self, Lock};
use proto::core::{Action, Memory, decide, failsafe};
use proto::dcs::{FailsafeRecord, Initialize};
use proto::ids::{Epoch, LeaseId, MemberName, SystemId};
use proto::time::MonoTime;
use proto::wal::{Lsn, Timeline};
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::Duration;

/// A tick of this model in those of the store: 10 s.
pub const STEP: u8 = 20;

const SYSTEM: SystemId = SystemId(7);

type Question = (u8, Node, Store);

thread_local! {
    static LOCKS: Memo<Question, Option<u8>> = RefCell::default();
    static CLAIMS: Memo<Question, Option<Sent>> = RefCell::default();
    static AGREED: Memo<(Question, bool, u8), Option<u8>> = RefCell::default();
    static ANSWERS: Memo<(Question, u8), bool> = RefCell::default();
}

fn since(age: u8) -> MonoTime {
    ago(age * STEP)
}

fn age(at: MonoTime) -> u8 {
    u8::try_from(NOW.since(at).as_secs() / 10).unwrap()
}

fn member(n: u8) -> Settings {
    let mut s = settings(n, &json!({"failsafe_mode": true, "ttl": 30}));
    (s.cluster.native.lease_ms, s.cluster.native.wait_ms) = (19_000, 20_000);
    s
}

fn url(n: &MemberName) -> String {
    format!("http://{n}:8008/patroni")
}

fn listed(model: &Failsafe) -> BTreeMap<MemberName, String> {
    let names = super::super::etcd::names_of(model.listed);
    names.into_iter().map(|n| (n.clone(), url(&n))).collect()
}

/// What the member sees, and what it remembers.
fn seen(model: &Failsafe, n: u8, node: &Node, store: &Store) -> (Observation, Memory) {
    let mut view = node.cut.as_ref().unwrap_or(store).view();
    view.initialize = Some(Initialize::System(SYSTEM));
    if !model.is(Mutation::AnybodyStands) {
        view.failsafe = Some(FailsafeRecord {
            members: listed(model),
        });
    }
    let mut o = Observation {
        now: NOW,
        ..Observation::default()
    };
    o.dcs.view = Some(view);
    o.dcs.confirmed = node.cut.is_none();
    o.dcs.watching_since = Some(since(TTL));
    o.dcs.session = Some(Session {
        id: LeaseId(i64::from(n) + 1),
        ttl: Duration::from_secs(30),
        sent_at: since(node.session),
    });
    o.dcs.held = node.hold.map(|(epoch, sent)| HeldRecord {
        epoch: Epoch(epoch.into()),
        sent_at: since(sent),
        length: Duration::from_secs(19),
        modified: At::Record.revision(),
        seq: 0,
    });
    o.dcs.record_seen = Some(RecordSeen {
        modified: At::Record.revision(),
        since: since(node.seen),
    });
    o.guardian = Guardian {
        alive: true,
        fit: true,
        armed: None,
        session: "1".into(),
        ..Guardian::default()
    };
    o.postgres = postgres(node);
    o.failsafe_caller = node.promised.map(|age| FailsafeCaller {
        name: name(0),
        at: since(age),
        conn_url: String::new(),
        api_url: String::new(),
        slots: BTreeMap::new(),
    });
    if node.claim.is_some() {
        o.in_flight.insert(Task::Lock);
    }
    let m = Memory {
        began: Some(since(node.began)),
        failsafe_members: listed(model).into(),
        failsafe_until: node.agreed.map(|age| since(age) + Duration::from_secs(29)),
        free_since: Some(NOW),
        ..Memory::default()
    };
    (o, m)
}

fn postgres(node: &Node) -> LocalPostgres {
    let sample = SqlSample {
        in_recovery: !node.writable,
        timeline: Some(Timeline(1)),
        flush_lsn: Lsn(100),
        receive_lsn: Lsn(100),
        replay_lsn: Lsn(100),
        ..SqlSample::default()
    };
    LocalPostgres {
        data_dir: DataDir::Initialised,
        process: Process::Alive { pid: 1 },
        sql: Sql::Sample(Box::new(sample)),
        sql_at: NOW,
        control: Some(ControlData {
            system_id: SYSTEM,
            ..ControlData::default()
        }),
        signal_file: !node.writable,
        major_version: 15,
        ..LocalPostgres::default()
    }
}

/// Ticks that the tenure has left; `None` when it is not ours. A part of a tick counts as one: the deadline
/// and the fencing lie in it.
pub fn tenure(model: &Failsafe, state: &State, n: u8) -> Option<u8> {
    let node = &state.nodes[usize::from(n)];
    memo(&LOCKS, (n, node.clone(), state.store), || {
        let (o, m) = seen(model, n, node, &state.store);
        match tenure::lock(&o, &m, &member(n)) {
            Lock::Mine(tenure) => {
                let left = NOW.until(tenure.deadline).as_secs();
                Some(u8::try_from(left.div_ceil(10)).unwrap())
            }
            _ => None,
        }
    })
}

/// The claim that the member would send now, if it would.
pub fn claim(model: &Failsafe, state: &State, n: u8) -> Option<Sent> {
    let node = &state.nodes[usize::from(n)];
    memo(&CLAIMS, (n, node.clone(), state.store), || {
        let (mut o, mut m) = seen(model, n, node, &state.store);
        if model.is(Mutation::PromiseForgotten) {
            o.failsafe_caller = None;
        }
        if model.is(Mutation::RestartForgets) {
            m.began = Some(since(TTL));
        }
        // Nobody answers a candidate that asks around.
        for peer in (0..3).filter(|peer| *peer != n).map(name) {
            let answer = PeerAnswer {
                asked_at: NOW,
                status: None,
            };
            o.peers.insert(peer, answer);
        }
        let (decision, _) = decide(&o, &m, &member(n));
        decision
            .actions
            .into_iter()
            .find_map(|action| match action {
                Action::Write {
                    task: Task::Lock,
                    txn,
                } => Some(Sent::of(&txn, n + 1)),
                _ => None,
            })
    })
}

/// From which question on the promised time counts, once the answers to this one are there.
pub fn agreed(model: &Failsafe, state: &State, n: u8, asked: u8, all: bool) -> Option<u8> {
    let node = &state.nodes[usize::from(n)];
    let question = (n, node.clone(), state.store);
    memo(&AGREED, (question, all, asked), || {
        let (mut o, m) = seen(model, n, node, &state.store);
        let result = TaskResult::Failsafe {
            accepted: all,
            sent_at: since(asked),
        };
        o.outcomes
            .insert(Task::AskFailsafe, Outcome { at: NOW, result });
        let (_, m) = decide(&o, &m, &member(n));
        let begun = |until: MonoTime| until - Duration::from_secs(29);
        m.failsafe_until
            .map(begun)
            .map(age)
            .filter(|age| *age < TTL)
    })
}

/// Whether the member promises.
pub fn promises(model: &Failsafe, state: &State, n: u8, caller: u8) -> bool {
    let node = &state.nodes[usize::from(n)];
    let question = (n, node.clone(), state.store);
    memo(&ANSWERS, (question, caller), || {
        let (o, m) = seen(model, n, node, &state.store);
        failsafe::answer(&o, &m, &member(n), &name(caller)).is_ok()
    })
}

/// Whether it would ask: it leads, and has lost etcd.
pub fn asks(model: &Failsafe, state: &State, n: u8) -> bool {
    let node = &state.nodes[usize::from(n)];
    let leads = node.writable && tenure(model, state, n).is_some();
    leads && node.cut.is_some() && node.asked.is_none()
}
