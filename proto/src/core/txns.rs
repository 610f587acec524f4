//! The transactions of the leader key and the record, built in one place (I5). Each says what it
//! compares and why that is enough.

use super::observation::Session;
use crate::config::Settings;
use crate::dcs::records::RECORD_VERSION;
use crate::dcs::{
    ClusterView, Compare, FailoverRecord, FencePromise, HistoryRecord, Key, LeaseRecord, Op,
    RecordState, StatusRecord, SyncRecord, Txn,
};
use crate::ids::{Epoch, MemberName, SystemId};
use crate::wal::{Lsn, Timeline};
use serde_json::Value;

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

/// `/leader` is still what was seen: a member that is not of our kind takes it by its own rules, and
/// what it has taken is overwritten by nobody.
fn leader_as_seen(view: &ClusterView) -> Compare {
    match &view.leader {
        Some(leader) => Compare::Unchanged(Key::Leader, leader.modified),
        None => Compare::Absent(Key::Leader),
    }
}

/// Takes the free lock. Compatible: only if `/leader` does not exist, as every Patroni does it.
/// Native: only if the record is still the one that stood still (or was released), and `/leader` is as
/// it was seen; the epoch grows by one, so whoever led before can never renew again (S1, S4).
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
    let unchanged = Compare::Unchanged(Key::Record, entry.modified);
    Txn::when(vec![unchanged, leader_as_seen(view)], then)
}

/// The takeover of a fenced epoch: compares the record, `/sync`, and every promise that was counted, at
/// the revisions at which they were counted (`DESIGN.md` 3). A withdrawn promise or a changed `/sync`
/// fails it.
pub fn fenced_claim(view: &ClusterView, by: &Claimant<'_>, counted: &[MemberName]) -> Option<Txn> {
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
///
/// We may not learn that it was committed, and then lead on by the compatible lease while the others
/// already watch the record. So no compatible renewal can succeed after it, since `/leader` leaves the
/// session (the first native renewal brings it back), and the first record must be watched for as long
/// as the last compatible renewal before it may have earned us.
pub fn go_native(view: &ClusterView, by: &Claimant<'_>, session: &Session) -> Txn {
    let (when, last) = match &view.record {
        None => (Compare::Absent(Key::Record), Epoch(0)),
        Some(entry) => (
            Compare::Unchanged(Key::Record, entry.modified),
            entry.record.epoch,
        ),
    };
    let ttl = u64::try_from(session.ttl.as_millis()).unwrap_or(u64::MAX);
    let record = by.held(last);
    let record = LeaseRecord {
        w_ms: record.w_ms.max(ttl),
        ..record
    };
    Txn::when(
        vec![
            when,
            Compare::Value(Key::Leader, me(by.s)),
            Compare::OnLease(Key::Leader, session.id),
        ],
        vec![
            Op::put(Key::Record, record.to_value()),
            Op::put(Key::Leader, me(by.s)),
        ],
    )
}

/// Makes the cluster compatible: the record's holder puts `/leader` on its session at the same
/// revision at which the record stops counting, so that there is no moment without a lock. The session
/// must outlast the deadline that the record has earned. `None` when `/leader` names another, who has
/// won.
pub fn go_compatible(view: &ClusterView, s: &Settings) -> Option<Txn> {
    let entry = view.record.as_ref()?;
    if view.leader_name().is_some_and(|name| *name != s.me) {
        return None;
    }
    let record = LeaseRecord {
        state: RecordState::Compatible,
        ..entry.record.clone()
    };
    let unchanged = Compare::Unchanged(Key::Record, entry.modified);
    Some(Txn::when(
        vec![unchanged, leader_as_seen(view)],
        vec![
            Op::put(Key::Record, record.to_value()),
            Op::put_leased(Key::Leader, me(s)),
        ],
    ))
}

/// Confirms a `/leader` that carries our name from an earlier life, on our present session. `None`
/// when it does not.
pub fn inherit(view: &ClusterView, s: &Settings) -> Option<Txn> {
    view.leader_name().filter(|name| **name == s.me)?;
    Some(Txn::when(
        vec![leader_as_seen(view)],
        vec![Op::put_leased(Key::Leader, me(s))],
    ))
}

/// With which compare a renewal of the record may also write `/leader`, given the value that was last
/// seen there: not at all over another's.
pub fn leader_beside_record(seen: Option<&str>, owner: &MemberName) -> Option<Compare> {
    match seen {
        None => Some(Compare::Absent(Key::Leader)),
        Some(name) if name == owner.as_str() => {
            Some(Compare::Value(Key::Leader, owner.as_str().to_owned()))
        }
        Some(_) => None,
    }
}

/// Gives leadership up. Only ordered when no process of our PostgreSQL is left, or none was writable
/// (S10); `shutdown` is where the WAL ended in order. It ends the tenure that was seen and no later one
/// of ours, even if it is committed late, and it leaves another's `/leader` alone.
pub fn release(view: &ClusterView, s: &Settings, shutdown: Option<(Timeline, Lsn)>) -> Txn {
    let (mut when, mut then) = (Vec::new(), Vec::new());
    if view.leader_name().is_none_or(|name| *name == s.me) {
        when.push(leader_as_seen(view));
        then.push(Op::Delete(Key::Leader));
    }
    if let Some(entry) = view
        .record
        .as_ref()
        .filter(|e| e.record.state == RecordState::Held && e.record.owner == s.me)
    {
        when.push(Compare::Unchanged(Key::Record, entry.modified));
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

/// Takes our name out of `/leader` and leaves the record as it is. `None` when it is not there.
pub fn leave_leader_key(view: &ClusterView, s: &Settings) -> Option<Txn> {
    view.leader_name().filter(|name| **name == s.me)?;
    Some(Txn::when(
        vec![leader_as_seen(view)],
        vec![Op::Delete(Key::Leader)],
    ))
}

/// `/sync` is as it was read, also where it was read as absent.
pub fn sync_as_read(read: &SyncRecord) -> Compare {
    match read.modified {
        Some(revision) => Compare::Unchanged(Key::Sync, revision),
        None => Compare::Absent(Key::Sync),
    }
}

/// Writes `/sync` with ourselves as its leader. It compares with the revision that was read, and that
/// we still lead: a takeover and a change of `/sync` exclude each other (`DESIGN.md` 3).
pub fn write_sync(read: &SyncRecord, s: &Settings, standbys: &[String], quorum: u32) -> Txn {
    let value = SyncRecord::value(&s.me, standbys, quorum);
    Txn::when(
        vec![sync_as_read(read), Compare::Value(Key::Leader, me(s))],
        vec![Op::put(Key::Sync, value)],
    )
}

/// Ends synchronous mode, under the same conditions.
pub fn delete_sync(read: &SyncRecord, s: &Settings) -> Txn {
    Txn::when(
        vec![sync_as_read(read), Compare::Value(Key::Leader, me(s))],
        vec![Op::Delete(Key::Sync)],
    )
}

/// Publishes a promise that is on disk, with the stream cut (S19). It compares with our own key as it
/// was seen: an earlier attempt of unknown outcome that is committed after the withdrawal would else
/// bring the promise back while we stream again.
pub fn promise(view: &ClusterView, s: &Settings, promise: &FencePromise) -> Txn {
    let key = Key::Fence(s.me.clone());
    let unchanged = match view.fences.get(&s.me) {
        Some(entry) => Compare::Unchanged(key.clone(), entry.modified),
        None => Compare::Absent(key.clone()),
    };
    Txn::when(vec![unchanged], vec![Op::put(key, promise.to_value())])
}

/// Withdraws whatever promise stands or may still come: a promise against no epoch stays in its place,
/// so that a late one fails. Only when this is known to be committed may the disk forget.
///
/// It compares with the name in `/leader` that was seen: when a takeover has counted the promise already,
/// the promise must hold until its member has seen who leads now, or it would stream from the old primary
/// again, which could acknowledge with it what the new one lacks (S3).
pub fn withdraw(view: &ClusterView, s: &Settings) -> Txn {
    let nothing = FencePromise {
        v: RECORD_VERSION,
        epoch: Epoch(0),
        wal_epoch: Epoch(0),
        timeline: Timeline(0),
        lsn: Lsn::NONE,
    };
    let same_leader = match view.leader_name() {
        Some(name) => Compare::Value(Key::Leader, name.as_str().to_owned()),
        None => Compare::Absent(Key::Leader),
    };
    let put = Op::put(Key::Fence(s.me.clone()), nothing.to_value());
    Txn::when(vec![same_leader], vec![put])
}

/// Takes the number of a timeline (S4): by the holder of the lock, over the history that was read, so
/// that two promotions never choose from the same picture.
pub fn claim_timeline(read: &HistoryRecord, s: &Settings, claimed: &HistoryRecord) -> Txn {
    let as_read = match read.modified {
        Some(revision) => Compare::Unchanged(Key::History, revision),
        None => Compare::Absent(Key::History),
    };
    Txn::when(
        vec![Compare::Value(Key::Leader, me(s)), as_read],
        vec![Op::put(Key::History, claimed.to_value())],
    )
}

/// Races for the right to initialise. On the session lease: a bootstrapping member that dies takes its
/// claim along, instead of blocking the cluster for ever (D8 of `dcs-layout.md` 15).
pub fn claim_initialize() -> Txn {
    Txn::when(
        vec![Compare::Absent(Key::Initialize)],
        vec![Op::put_leased(Key::Initialize, "")],
    )
}

/// The claim of this session: one that another has made meanwhile looks just the same.
fn our_claim(session: &Session) -> Compare {
    Compare::OnLease(Key::Initialize, session.id)
}

/// Gives that right back.
pub fn give_up_initialize(session: &Session) -> Txn {
    Txn::when(
        vec![
            Compare::Value(Key::Initialize, String::new()),
            our_claim(session),
        ],
        vec![Op::Delete(Key::Initialize)],
    )
}

/// Presents the new cluster: identifier, configuration and leader appear at one revision. Unlike
/// Patroni's, it overwrites nobody (W25 of `ha-behaviour.md` 28). `claimed`: `/initialize` holds a claim,
/// which must be ours; without one nobody else has begun.
pub fn finish_bootstrap(s: &Settings, session: &Session, claimed: bool, system: SystemId) -> Txn {
    let config = Value::Object(s.dynamic.clone()).to_string();
    let claim = if claimed {
        our_claim(session)
    } else {
        Compare::Absent(Key::Initialize)
    };
    Txn::when(
        vec![claim, Compare::Absent(Key::Leader)],
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
