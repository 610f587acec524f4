//! Reads and transactions, translated once for everybody who carries them out.

use super::endpoints::{ATTEMPT_LIMIT, Endpoints};
use super::error::Fault;
use etcd_client::{
    Client, Compare as EtcdCompare, CompareOp, DeleteOptions, Error, GetOptions, GetResponse,
    KeyValue, PutOptions, ResponseHeader, SortOrder, SortTarget, TxnOp, TxnResponse,
};
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{Compare, Entry, Key, Keyspace, LeaseRef, Op, Snapshot, Txn};
use proto::ids::{LeaseId, Revision};
use std::collections::BTreeMap;
use std::time::Duration;

/// A key below the prefix that never exists. Deleting it changes nothing and wakes nobody, but makes a
/// transaction one that raft has to commit: etcd answers a transaction without writes from the memory
/// of whatever server it reached, and only commits count (`safety.md` rule 1).
const NEVER_WRITTEN: &str = ".never";

/// Translates a transaction. `session` is what [`LeaseRef::Session`] stands for.
///
/// Each compare means exactly what [`Snapshot::holds`] says: a missing key has revision and lease 0 in
/// etcd, so conditions on these also demand that the key exists.
pub(crate) fn to_etcd(txn: &Txn, keyspace: &Keyspace, session: LeaseId) -> etcd_client::Txn {
    let when: Vec<EtcdCompare> = txn
        .when
        .iter()
        .flat_map(|compare| conditions(compare, keyspace))
        .collect();
    let mut then: Vec<TxnOp> = txn
        .then
        .iter()
        .map(|op| operation(op, keyspace, session))
        .collect();
    if then.is_empty() {
        then.push(commit_only(keyspace));
    }
    etcd_client::Txn::new().when(when).and_then(then)
}

fn conditions(compare: &Compare, keyspace: &Keyspace) -> Vec<EtcdCompare> {
    let present =
        |key: &Key| EtcdCompare::create_revision(keyspace.path(key), CompareOp::Greater, 0);
    match compare {
        Compare::Absent(key) => {
            vec![EtcdCompare::create_revision(
                keyspace.path(key),
                CompareOp::Equal,
                0,
            )]
        }
        Compare::Present(key) => vec![present(key)],
        Compare::Value(key, value) => {
            vec![EtcdCompare::value(
                keyspace.path(key),
                CompareOp::Equal,
                value.as_str(),
            )]
        }
        Compare::Unchanged(key, revision) => {
            let same = EtcdCompare::mod_revision(keyspace.path(key), CompareOp::Equal, revision.0);
            vec![present(key), same]
        }
        Compare::OnLease(key, lease) => {
            let same = EtcdCompare::lease(keyspace.path(key), CompareOp::Equal, lease.0);
            vec![present(key), same]
        }
    }
}

fn operation(op: &Op, keyspace: &Keyspace, session: LeaseId) -> TxnOp {
    match op {
        Op::Put { key, value, lease } => {
            let lease = match lease {
                LeaseRef::None => LeaseId(0),
                LeaseRef::Session => session,
                LeaseRef::Other(id) => *id,
            };
            let options = PutOptions::new().with_lease(lease.0);
            TxnOp::put(keyspace.path(key), value.as_str(), Some(options))
        }
        Op::Delete(key) => TxnOp::delete(keyspace.path(key), None),
    }
}

/// The write that changes nothing; see [`NEVER_WRITTEN`].
fn commit_only(keyspace: &Keyspace) -> TxnOp {
    TxnOp::delete(format!("{}{NEVER_WRITTEN}", keyspace.prefix()), None)
}

/// "Move `/leader` from one lease of ours to another, whatever its value": for a new session that
/// replaces a living one.
pub(crate) fn move_leader(keyspace: &Keyspace, from: LeaseId, to: LeaseId) -> etcd_client::Txn {
    let leader = keyspace.path(&Key::Leader);
    let options = PutOptions::new().with_lease(to.0).with_ignore_value();
    etcd_client::Txn::new()
        .when([EtcdCompare::lease(
            leader.as_str(),
            CompareOp::Equal,
            from.0,
        )])
        .and_then([TxnOp::put(leader.as_str(), "", Some(options))])
}

/// Whether a transaction puts something on the session lease.
pub(crate) fn needs_session(txn: &Txn) -> bool {
    txn.then.iter().any(|op| {
        matches!(
            op,
            Op::Put {
                lease: LeaseRef::Session,
                ..
            }
        )
    })
}

/// What an answered transaction came to.
pub(crate) fn outcome(response: &TxnResponse) -> TxnOutcome {
    if !response.succeeded() {
        return TxnOutcome::Refused;
    }
    match response.header().map(ResponseHeader::revision) {
        Some(revision) => TxnOutcome::Committed(Revision(revision)),
        None => TxnOutcome::Unknown(String::from("the answer has no header")),
    }
}

/// Sends a transaction once. `session` is zero when there is none.
pub(crate) async fn commit(
    endpoints: &Endpoints,
    keyspace: &Keyspace,
    txn: &Txn,
    session: LeaseId,
    limit: Duration,
) -> TxnOutcome {
    if needs_session(txn) && session.0 == 0 {
        return TxnOutcome::LeaseGone;
    }
    let request = to_etcd(txn, keyspace, session);
    let send = |mut client: Client| {
        let request = request.clone();
        async move { client.txn(request).await }
    };
    match endpoints.once(limit, send).await {
        Ok(response) => outcome(&response),
        Err((true, Fault::LeaseGone)) => TxnOutcome::LeaseGone,
        Err((true, fault)) => TxnOutcome::Unknown(fault.text()),
        Err((false, fault)) => TxnOutcome::Unknown(format!("not sent: {}", fault.text())),
    }
}

/// A linearizable read of everything below the prefix.
pub(crate) async fn range(client: Client, keyspace: Keyspace) -> Result<GetResponse, Error> {
    let mut client = client;
    client
        .get(keyspace.prefix(), Some(GetOptions::new().with_prefix()))
        .await
}

/// What [`range`] found.
pub(crate) fn snapshot(response: &GetResponse, keyspace: &Keyspace) -> Snapshot {
    let header = response.header();
    let entries: BTreeMap<String, Entry> = response
        .kvs()
        .iter()
        .filter_map(|kv| entry(kv, keyspace))
        .collect();
    Snapshot {
        cluster_id: header.map_or(0, ResponseHeader::cluster_id),
        revision: Revision(header.map_or(0, ResponseHeader::revision)),
        entries,
    }
}

/// Path below the prefix, and what stands there.
pub(crate) fn entry(kv: &KeyValue, keyspace: &Keyspace) -> Option<(String, Entry)> {
    let path = String::from_utf8_lossy(kv.key());
    let suffix = keyspace.suffix(&path)?.to_owned();
    let entry = Entry {
        value: String::from_utf8_lossy(kv.value()).into_owned(),
        lease: LeaseId(kv.lease()),
        created: Revision(kv.create_revision()),
        modified: Revision(kv.mod_revision()),
    };
    Some((suffix, entry))
}

/// What a linearizable read says about how far a watch should be: the newest change among the living
/// keys below the prefix, and how many there are. A view that has seen nothing newer than `newest`,
/// and has as many keys, is complete: a put would have raised the one, a deletion lowered the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Milestone {
    /// Newest `mod_revision`; zero without keys.
    pub(crate) newest: Revision,
    /// Number of keys.
    pub(crate) keys: i64,
}

/// Asks for the [`Milestone`].
pub(crate) async fn milestone(client: Client, keyspace: Keyspace) -> Result<GetResponse, Error> {
    let mut client = client;
    let options = GetOptions::new()
        .with_prefix()
        .with_keys_only()
        .with_limit(1)
        .with_sort(SortTarget::Mod, SortOrder::Descend);
    client.get(keyspace.prefix(), Some(options)).await
}

/// Reads the answer.
pub(crate) fn read_milestone(response: &GetResponse) -> Milestone {
    let newest = response.kvs().first().map_or(0, KeyValue::mod_revision);
    Milestone {
        newest: Revision(newest),
        keys: response.count(),
    }
}

/// Reads one key, linearizably, wherever it is answered.
pub(crate) async fn read_key(
    endpoints: &Endpoints,
    keyspace: &Keyspace,
    key: &Key,
    limit: Duration,
) -> Result<Option<Entry>, Fault> {
    let path = keyspace.path(key);
    let ask = |mut client: Client| {
        let path = path.clone();
        async move { client.get(path, None).await }
    };
    let (response, _) = endpoints
        .repeat(limit, ATTEMPT_LIMIT.min(limit), ask)
        .await?;
    Ok(response
        .kvs()
        .first()
        .and_then(|kv| entry(kv, keyspace))
        .map(|(_, entry)| entry))
}

/// Removes everything below the prefix. May be repeated.
pub(crate) async fn delete_all(
    endpoints: &Endpoints,
    keyspace: &Keyspace,
    limit: Duration,
) -> Result<(), Fault> {
    let send = |mut client: Client| {
        let prefix = keyspace.prefix().to_owned();
        let options = DeleteOptions::new().with_prefix();
        async move { client.delete(prefix, Some(options)).await }
    };
    endpoints
        .repeat(limit, ATTEMPT_LIMIT.min(limit), send)
        .await
        .map(|_| ())
}
