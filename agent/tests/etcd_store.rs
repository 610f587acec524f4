//! Reads, transactions and the watch against a real etcd.

#[path = "common/etcd.rs"]
mod common;

use common::{Cluster, Relay, config, keyspace, wait_for};
use garden_agent::etcd::{Etcd, EtcdEvent, LeaseEvent};
use proto::config::Timing;
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{Compare, Key, LeaseRef, Op, Snapshot, Txn};
use proto::ids::{LeaseId, Revision};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(3);

async fn connect(config: &garden_agent::config::EtcdConfig) -> (Etcd, mpsc::Receiver<EtcdEvent>) {
    Etcd::connect(config, keyspace(), Timing::default()).expect("the configuration is fine")
}

fn snapshot(event: &EtcdEvent) -> Option<Arc<Snapshot>> {
    match event {
        EtcdEvent::Snapshot(snapshot) => Some(snapshot.clone()),
        _ => None,
    }
}

fn value_of<'s>(snapshot: &'s Snapshot, suffix: &str) -> Option<&'s str> {
    snapshot
        .entries
        .get(suffix)
        .map(|entry| entry.value.as_str())
}

#[tokio::test]
async fn every_compare_means_what_the_snapshot_says() {
    let cluster = Cluster::start(1).await;
    let etcd = Etcd::open(&cluster.config(), keyspace()).expect("fine");
    let put = Txn::always(vec![Op::put(Key::Sync, "one"), Op::put(Key::Config, "")]);
    let TxnOutcome::Committed(at) = etcd.commit(&put, LIMIT).await else {
        panic!()
    };
    let world = etcd.read(LIMIT).await.expect("read");
    assert!(world.cluster_id != 0 && world.revision == at && world.entries.len() == 2);
    let mut compares = Vec::new();
    for key in [Key::Sync, Key::Config, Key::Leader] {
        compares.extend([
            Compare::Absent(key.clone()),
            Compare::Present(key.clone()),
            Compare::Value(key.clone(), String::from("one")),
            Compare::Value(key.clone(), String::new()),
            Compare::Unchanged(key.clone(), at),
            Compare::Unchanged(key.clone(), Revision(at.0 + 1)),
            Compare::Unchanged(key.clone(), Revision(0)),
            Compare::OnLease(key.clone(), LeaseId(0)),
            Compare::OnLease(key, LeaseId(7)),
        ]);
    }
    for compare in compares {
        let holds = world.holds(&compare);
        // Without writes, so that the next one finds the same world.
        let outcome = etcd
            .commit(&Txn::when(vec![compare.clone()], vec![]), LIMIT)
            .await;
        let expected = if holds {
            TxnOutcome::Committed(at)
        } else {
            TxnOutcome::Refused
        };
        assert_eq!(outcome, expected, "{compare:?}");
    }
    let two = vec![Compare::Present(Key::Sync), Compare::Present(Key::Leader)];
    let refused = etcd
        .commit(&Txn::when(two, vec![Op::Delete(Key::Sync)]), LIMIT)
        .await;
    assert_eq!(refused, TxnOutcome::Refused);
    assert_eq!(etcd.read(LIMIT).await.expect("read").entries, world.entries);
}

#[tokio::test]
async fn every_op_does_what_it_says_and_is_seen_before_the_commit_returns() {
    let cluster = Cluster::start(1).await;
    let (etcd, mut events) = connect(&cluster.config()).await;
    let session = wait_for(&mut events, "session", |event| match event {
        EtcdEvent::Lease(LeaseEvent::Session(session)) => Some(*session),
        _ => None,
    });
    let session = session.await;
    let mut admin = cluster.admin().await;
    let other = admin.lease_grant(30, None).await.expect("grant").id();
    while etcd.watched().is_none() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let member = Key::Member("a b/ü".into());
    let lease = LeaseRef::Other(LeaseId(other));
    let put = Txn::always(vec![
        Op::put_leased(member.clone(), "{}"),
        Op::Put {
            key: Key::Leader,
            value: "x".into(),
            lease,
        },
        Op::put(Key::Initialize, ""),
        Op::Delete(Key::Sync),
    ]);
    let TxnOutcome::Committed(at) = etcd.commit(&put, LIMIT).await else {
        panic!()
    };
    let folded = etcd.watched().expect("the watch stands");
    let read = etcd.read(LIMIT).await.expect("read");
    assert_eq!(folded.entries, read.entries);
    assert_eq!(read.revision, at);
    let leases: Vec<(&str, i64)> = read
        .entries
        .iter()
        .map(|(key, entry)| (key.as_str(), entry.lease.0))
        .collect();
    let name = member.to_string();
    let expected = [
        ("initialize", 0),
        ("leader", other),
        (name.as_str(), session.id.0),
    ];
    assert_eq!(leases, expected);
    let delete = Txn::always(vec![Op::Delete(Key::Leader), Op::Delete(Key::Initialize)]);
    assert!(matches!(
        etcd.commit(&delete, LIMIT).await,
        TxnOutcome::Committed(_)
    ));
    assert_eq!(etcd.watched().expect("stands").entries.len(), 1);
    etcd.delete_all().await.expect("delete");
    assert!(etcd.read(LIMIT).await.expect("read").entries.is_empty());
}

#[tokio::test]
async fn a_put_on_a_session_that_does_not_exist_writes_nothing() {
    let cluster = Cluster::start(1).await;
    let etcd = Etcd::open(&cluster.config(), keyspace()).expect("fine");
    let leased = Txn::always(vec![
        Op::put(Key::Sync, "x"),
        Op::put_leased(Key::Leader, "a"),
    ]);
    assert_eq!(etcd.commit(&leased, LIMIT).await, TxnOutcome::LeaseGone);
    let gone = LeaseRef::Other(LeaseId(4711));
    let put = Op::Put {
        key: Key::Leader,
        value: "a".into(),
        lease: gone,
    };
    let foreign = Txn::always(vec![Op::put(Key::Sync, "x"), put]);
    assert_eq!(etcd.commit(&foreign, LIMIT).await, TxnOutcome::LeaseGone);
    assert!(etcd.read(LIMIT).await.expect("read").entries.is_empty());
}

#[tokio::test]
async fn a_frozen_server_makes_the_outcome_unknown_within_the_limit() {
    let cluster = Cluster::start(1).await;
    let etcd = Etcd::open(&cluster.config(), keyspace()).expect("fine");
    let put = |value: &str| Txn::always(vec![Op::put(Key::Status, value)]);
    assert!(matches!(
        etcd.commit(&put("1"), LIMIT).await,
        TxnOutcome::Committed(_)
    ));
    cluster.servers[0].freeze();
    let begin = Instant::now();
    let outcome = etcd.commit(&put("2"), Duration::from_millis(500)).await;
    assert!(
        begin.elapsed() < Duration::from_millis(900),
        "{:?}",
        begin.elapsed()
    );
    let TxnOutcome::Unknown(text) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(!text.contains("not sent"), "{text}");
    // The server is known to be silent now, so the next one is not even sent.
    let outcome = etcd.commit(&put("3"), Duration::from_millis(500)).await;
    let TxnOutcome::Unknown(text) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(text.starts_with("not sent"), "{text}");
    cluster.servers[0].thaw();
    let world = etcd.read(LIMIT).await.expect("read");
    assert!(
        matches!(value_of(&world, "status"), Some("1" | "2")),
        "{world:?}"
    );
}

#[tokio::test]
async fn the_watch_lists_again_after_a_cut_during_which_history_was_compacted() {
    let cluster = Cluster::start(1).await;
    let mut relay = Relay::start(cluster.servers[0].port).await;
    let mut through = config([format!("http://127.0.0.1:{}", relay.port)]);
    through.use_proxies = true;
    let (etcd, mut events) = connect(&through).await;
    let first = wait_for(&mut events, "snapshot", snapshot).await;
    assert!(first.entries.is_empty());
    let mut admin = cluster.admin().await;
    admin
        .put("/service/demo/status", "1", None)
        .await
        .expect("put");
    let seen = wait_for(&mut events, "snapshot", snapshot).await;
    assert_eq!(value_of(&seen, "status"), Some("1"));
    relay.cut().await;
    wait_for(&mut events, "gap", |event| {
        matches!(event, EtcdEvent::Gap).then_some(())
    })
    .await;
    assert!(etcd.watched().is_none());
    for value in ["2", "3", "4"] {
        admin
            .put("/service/demo/status", value, None)
            .await
            .expect("put");
    }
    let last = admin
        .delete("/service/demo/config", None)
        .await
        .expect("delete");
    let revision = last.header().expect("header").revision();
    admin.compact(revision, None).await.expect("compact");
    relay.mend().await;
    let seen = wait_for(&mut events, "snapshot", snapshot).await;
    assert_eq!(
        (value_of(&seen, "status"), seen.revision),
        (Some("4"), Revision(revision))
    );
    admin
        .delete("/service/demo/status", None)
        .await
        .expect("delete");
    let seen = wait_for(&mut events, "snapshot", snapshot).await;
    assert!(seen.entries.is_empty());
}

#[tokio::test]
async fn a_quiet_watch_is_confirmed_every_second_and_a_frozen_one_is_not() {
    let cluster = Cluster::start(1).await;
    let (_etcd, mut events) = connect(&cluster.config()).await;
    let alive = |event: &EtcdEvent| matches!(event, EtcdEvent::Alive).then_some(Instant::now());
    let mut last = wait_for(&mut events, "sign of life", alive).await;
    for _ in 0..3 {
        let next = wait_for(&mut events, "sign of life", alive).await;
        assert!(
            next - last < Duration::from_millis(1500),
            "{:?}",
            next - last
        );
        last = next;
    }
    cluster.servers[0].freeze();
    let unreachable = |event: &EtcdEvent| matches!(event, EtcdEvent::Unreachable(_)).then_some(());
    wait_for(&mut events, "trouble", unreachable).await;
    assert!(
        last.elapsed() < Duration::from_secs(4),
        "{:?}",
        last.elapsed()
    );
    cluster.servers[0].thaw();
    wait_for(&mut events, "sign of life", alive).await;
}

#[tokio::test]
async fn another_cluster_behind_the_same_address_is_announced() {
    let mut cluster = Cluster::start(1).await;
    let (etcd, mut events) = connect(&cluster.config()).await;
    let put = Txn::always(vec![Op::put(Key::Status, "1")]);
    let old = wait_for(&mut events, "snapshot", snapshot).await;
    assert!(matches!(
        etcd.commit(&put, LIMIT).await,
        TxnOutcome::Committed(_)
    ));
    cluster.servers[0].wipe();
    let ids = wait_for(&mut events, "other cluster", |event| match event {
        EtcdEvent::OtherCluster { was, is } => Some((*was, *is)),
        _ => None,
    });
    let (was, is) = ids.await;
    assert_eq!(was, old.cluster_id);
    let new = wait_for(&mut events, "snapshot", snapshot).await;
    assert_eq!((new.cluster_id, new.entries.len()), (is, 0));
}
