//! The transactions of the leader key and the record, built in one place (I5). Each says what it
//! compares and why that is enough.

use crate::config::Settings;
use crate::dcs::records::RECORD_VERSION;
use crate::dcs::{
    ClusterView, Compare, FailoverRecord, Key, LeaseRecord, Op, RecordState, StatusRecord, Txn,
};
use crate::ids::{Epoch, LeaseId, MemberName, SystemId};
use crate::wal::{Lsn, Timeline};
use serde_json::{Map, Value};

/// Who asks for a tenure, and what it knows of earlier ones.
pub struct Claimant<'a> {
    /// Our settings.
    pub s: &'a Settings,
    /// The life of our guardian.
    pub session: &'a str,
    /// Who may take over from us.
    pub members: Vec<MemberName>,
    /// The highest epoch that this machine has ever heard of. The record may have been deleted, and
    /// etcd replaced; epochs increase all the same (S4), and the guardian takes no lower one.
    pub highest: Epoch,
}

impl Claimant<'_> {
    /// The record of the tenure after `last`.
    fn held(&self, last: Epoch) -> LeaseRecord {
        LeaseRecord {
            v: RECORD_VERSION,
            epoch: Epoch(last.max(self.highest).0.saturating_add(1)),
            owner: self.s.me.clone(),
            session: self.session.to_owned(),
            seq: 0,
            state: RecordState::Held,
            l_ms: self.s.cluster.native.lease_ms,
            w_ms: self.s.cluster.native.wait_ms,
            members: self.members.clone(),
            final_position: None,
        }
    }
}

fn me(s: &Settings) -> String {
    s.me.as_str().to_owned()
}

/// Clears the request that named a candidate, together with the claim that answers it.
fn clear_request(view: &ClusterView, then: &mut Vec<Op>) {
    if view.failover.is_some() {
        then.push(Op::put(Key::Failover, "{}"));
    }
}

/// Takes the free lock. Compatible: only if `/leader` does not exist, as every Patroni does it.
/// Native: only if the record is still the one that stood still (or was released); the epoch grows by
/// one, so whoever led before can never renew again (S1, S4).
pub fn claim(view: &ClusterView, by: &Claimant<'_>) -> Txn {
    let mut then = vec![Op::put_leased(Key::Leader, me(by.s))];
    clear_request(view, &mut then);
    let native = view
        .record
        .as_ref()
        .filter(|e| e.record.state != RecordState::Compatible);
    let Some(entry) = native else {
        return Txn::when(vec![Compare::Absent(Key::Leader)], then);
    };
    let record = by.held(entry.record.epoch);
    then.insert(0, Op::put(Key::Record, record.to_value()));
    Txn::when(vec![Compare::Unchanged(Key::Record, entry.modified)], then)
}

/// The takeover of a fenced epoch: compares the record, `/sync`, and every promise that was counted, at
/// the revisions at which they were counted (`DESIGN.md` 3). A withdrawn promise or a changed `/sync`
/// fails it.
pub fn fenced_claim(
    view: &ClusterView,
    by: &Claimant<'_>,
    counted: &[MemberName],
) -> Option<Txn> {
    let mut txn = claim(view, by);
    txn.when
        .push(Compare::Unchanged(Key::Sync, view.sync.modified?));
    for name in counted {
        let fence = view.fences.get(name)?;
        txn.when
            .push(Compare::Unchanged(Key::Fence(name.clone()), fence.modified));
    }
    Some(txn)
}

/// Makes the cluster native: only the holder of `/leader` on its own session may, and only while no
/// other record is in force.
pub fn go_native(view: &ClusterView, by: &Claimant<'_>, lease: LeaseId) -> Txn {
    let (when, last) = match &view.record {
        None => (Compare::Absent(Key::Record), Epoch(0)),
        Some(entry) => (
            Compare::Unchanged(Key::Record, entry.modified),
            entry.record.epoch,
        ),
    };
    Txn::when(
        vec![
            when,
            Compare::Value(Key::Leader, me(by.s)),
            Compare::OnLease(Key::Leader, lease),
        ],
        vec![Op::put(Key::Record, by.held(last).to_value())],
    )
}

/// Makes the cluster compatible: the record's holder puts `/leader` on its session at the same
/// revision at which the record stops counting, so that there is no moment without a lock.
pub fn go_compatible(view: &ClusterView, s: &Settings) -> Option<Txn> {
    let entry = view.record.as_ref()?;
    let record = LeaseRecord {
        state: RecordState::Compatible,
        ..entry.record.clone()
    };
    Some(Txn::when(
        vec![Compare::Unchanged(Key::Record, entry.modified)],
        vec![
            Op::put(Key::Record, record.to_value()),
            Op::put_leased(Key::Leader, me(s)),
        ],
    ))
}

/// Confirms a `/leader` that carries our name from an earlier life, on our present session.
pub fn inherit(s: &Settings) -> Txn {
    Txn::when(
        vec![Compare::Value(Key::Leader, me(s))],
        vec![Op::put_leased(Key::Leader, me(s))],
    )
}

/// Gives leadership up. Only ordered when no process of our PostgreSQL is left, or none was writable
/// (S10); `shutdown` is where the WAL ended in order.
pub fn release(view: &ClusterView, s: &Settings, shutdown: Option<(Timeline, Lsn)>) -> Txn {
    let mut then = vec![Op::Delete(Key::Leader)];
    let mut when = vec![Compare::Value(Key::Leader, me(s))];
    if let Some(entry) = view
        .record
        .as_ref()
        .filter(|e| e.record.state == RecordState::Held)
    {
        when = vec![Compare::Unchanged(Key::Record, entry.modified)];
        let record = LeaseRecord {
            state: RecordState::Released,
            seq: entry.record.seq.saturating_add(1),
            final_position: shutdown,
            ..entry.record.clone()
        };
        then.push(Op::put(Key::Record, record.to_value()));
    }
    if let Some((_, lsn)) = shutdown {
        let status = StatusRecord {
            optime: Some(lsn),
            ..view.status.clone()
        };
        then.push(Op::put(Key::Status, status.to_value()));
    }
    Txn::when(when, then)
}

/// Races for the right to initialise. On the session lease: a bootstrapping member that dies takes its
/// claim along, instead of blocking the cluster for ever (D8 of `dcs-layout.md` 15).
pub fn claim_initialize() -> Txn {
    Txn::when(
        vec![Compare::Absent(Key::Initialize)],
        vec![Op::put_leased(Key::Initialize, "")],
    )
}

/// Gives that right back.
pub fn give_up_initialize() -> Txn {
    Txn::when(
        vec![Compare::Value(Key::Initialize, String::new())],
        vec![Op::Delete(Key::Initialize)],
    )
}

/// Presents the new cluster: identifier, configuration and leader appear at one revision. Unlike
/// Patroni's, it overwrites nobody (W25 of `ha-behaviour.md` 28).
pub fn finish_bootstrap(s: &Settings, system: SystemId, config: &Map<String, Value>) -> Txn {
    let config = Value::Object(config.clone()).to_string();
    Txn::when(
        vec![
            Compare::Value(Key::Initialize, String::new()),
            Compare::Absent(Key::Leader),
        ],
        vec![
            Op::put(Key::Initialize, system.to_string()),
            Op::put(Key::Config, config),
            Op::put_leased(Key::Leader, me(s)),
        ],
    )
}

/// Clears a request as it was read; a newer one stays (`dcs-layout.md` 3.8).
pub fn clear_failover(request: &FailoverRecord) -> Txn {
    Txn::when(
        vec![Compare::Unchanged(Key::Failover, request.modified)],
        vec![Op::put(Key::Failover, "{}")],
    )
}

/// Names the candidate that the leader chose, so that all others leave the lock to it.
pub fn name_candidate(request: &FailoverRecord, candidate: &MemberName) -> Txn {
    let value = FailoverRecord::value(request.leader.as_ref(), Some(candidate), None);
    Txn::when(
        vec![Compare::Unchanged(Key::Failover, request.modified)],
        vec![Op::put(Key::Failover, value)],
    )
}
