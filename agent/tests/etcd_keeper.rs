//! The keeper against a real etcd: sessions, `/leader`, the record, and what happens to them when
//! servers die or freeze, or somebody else writes.

#[path = "common/etcd.rs"]
mod common;

use common::{Cluster, PATIENCE, config, free_port, keyspace, stays_quiet, wait_for};
use garden_agent::clock;
use garden_agent::config::EtcdConfig;
use garden_agent::etcd::keeper::COMPATIBLE_MARGIN;
use garden_agent::etcd::{Etcd, EtcdEvent, LeaseEvent};
use proto::config::Timing;
use proto::core::decision::LeaseGoal;
use proto::core::observation::{HeldRecord, Session};
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{Compare, Key, LeaseRecord, Op, RECORD_VERSION, RecordEntry, RecordState, Txn};
use proto::ids::Epoch;
use proto::time::MonoTime;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::mpsc;

const LIMIT: Duration = Duration::from_secs(3);
const TTL: Duration = Duration::from_secs(3);

/// An agent as far as the keeper is concerned: its loop makes progress until told to hang.
struct Agent {
    etcd: Etcd,
    events: mpsc::Receiver<EtcdEvent>,
    renewals: mpsc::UnboundedReceiver<(Epoch, MonoTime)>,
    hung: Arc<AtomicBool>,
    ticker: tokio::task::JoinHandle<()>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.ticker.abort();
    }
}

impl Agent {
    fn start(config: &EtcdConfig) -> Self {
        let started = Etcd::connect(config, keyspace(), Timing::default());
        let (etcd, events) = started.expect("the configuration is fine");
        let (sender, renewals) = mpsc::unbounded_channel();
        etcd.keeper().on_renewed(Box::new(move |epoch, deadline| {
            let _ = sender.send((epoch, deadline));
        }));
        let hung = Arc::new(AtomicBool::new(false));
        let (loops, handle) = (hung.clone(), etcd.clone());
        let ticker = tokio::spawn(async move {
            loop {
                if !loops.load(Ordering::Relaxed) {
                    handle.keeper().progress();
                }
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        Self {
            etcd,
            events,
            renewals,
            hung,
            ticker,
        }
    }

    async fn session(&mut self) -> Session {
        wait_for(&mut self.events, "session", session).await
    }

    /// The session of the short length that these tests work with.
    async fn short_session(&mut self) -> Session {
        self.etcd.keeper().set(LeaseGoal::Session { ttl: TTL });
        let short = |event: &EtcdEvent| session(event).filter(|s| s.ttl == TTL);
        wait_for(&mut self.events, "short session", short).await
    }

    async fn commit(&self, txn: Txn) {
        let outcome = self.etcd.commit(&txn, LIMIT).await;
        assert!(matches!(outcome, TxnOutcome::Committed(_)), "{outcome:?}");
    }

    /// Wins the record with a transaction, as the member loop does, and gives it to the keeper.
    async fn take_record(&self, length: Duration) {
        let record = record(length);
        let sent_at = clock::now();
        let put = vec![Op::put(Key::Record, record.to_value())];
        let take = Txn::when(vec![Compare::Absent(Key::Record)], put);
        let outcome = self.etcd.commit(&take, LIMIT).await;
        let TxnOutcome::Committed(modified) = outcome else {
            panic!("{outcome:?}")
        };
        let held = HeldRecord {
            epoch: record.epoch,
            sent_at,
            length,
            modified,
            seq: record.seq,
        };
        self.etcd.keeper().adopt_record(record, held);
    }

    async fn renewal(&mut self) -> (Epoch, MonoTime) {
        let renewed = tokio::time::timeout(PATIENCE, self.renewals.recv()).await;
        renewed
            .expect("a renewal in time")
            .expect("the keeper lives")
    }

    /// Everything that was renewed up to now does not count.
    fn forget_renewals(&mut self) {
        while self.renewals.try_recv().is_ok() {}
    }

    async fn entry(&self, suffix: &str) -> Option<proto::dcs::Entry> {
        self.etcd
            .read(LIMIT)
            .await
            .expect("read")
            .entries
            .remove(suffix)
    }
}

fn session(event: &EtcdEvent) -> Option<Session> {
    match event {
        EtcdEvent::Lease(LeaseEvent::Session(session)) => Some(*session),
        _ => None,
    }
}

fn held(event: &EtcdEvent) -> Option<HeldRecord> {
    match event {
        EtcdEvent::Lease(LeaseEvent::Record(held)) => Some(*held),
        _ => None,
    }
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).expect("it is short")
}

fn record(length: Duration) -> LeaseRecord {
    LeaseRecord {
        v: RECORD_VERSION,
        epoch: Epoch(5),
        owner: "a".into(),
        session: String::from("s1"),
        seq: 0,
        state: RecordState::Held,
        l_ms: millis(length),
        w_ms: millis(length) + 600,
        members: vec!["a".into()],
        final_position: None,
    }
}

fn record_goal(length: Duration, every: Duration) -> LeaseGoal {
    LeaseGoal::Record {
        ttl: TTL,
        epoch: Epoch(5),
        length,
        wait: length + Duration::from_millis(600),
        every,
        members: vec!["a".into(), "b".into()],
    }
}

#[tokio::test]
async fn a_session_outlives_its_length_and_is_replaced_when_etcd_loses_it() {
    let cluster = Cluster::start(1).await;
    let mut agent = Agent::start(&cluster.config());
    let first = agent.short_session().await;
    assert!(clock::now().since(first.sent_at) < LIMIT);
    agent
        .commit(Txn::always(vec![Op::put_leased(
            Key::Member("a".into()),
            "{}",
        )]))
        .await;
    tokio::time::sleep(TTL + Duration::from_secs(1)).await;
    assert_eq!(
        agent.entry("members/a").await.map(|entry| entry.lease),
        Some(first.id)
    );
    cluster
        .admin()
        .await
        .lease_revoke(first.id.0)
        .await
        .expect("revoke");
    let lost = wait_for(&mut agent.events, "loss", |event| match event {
        EtcdEvent::Lease(LeaseEvent::SessionLost(id)) => Some(*id),
        _ => None,
    });
    assert_eq!(lost.await, first.id);
    let second = agent.session().await;
    assert!(second.id != first.id && agent.etcd.keeper().session_id() == second.id);
}

#[tokio::test]
async fn leader_earns_deadlines_only_while_its_key_is_on_its_lease() {
    let cluster = Cluster::start(1).await;
    let mut agent = Agent::start(&cluster.config());
    let session = agent.short_session().await;
    agent
        .commit(Txn::always(vec![Op::put_leased(Key::Leader, "a")]))
        .await;
    agent.etcd.keeper().set(LeaseGoal::Leader { ttl: TTL });
    for _ in 0..3 {
        let (epoch, deadline) = agent.renewal().await;
        let left = clock::now().until(deadline);
        assert_eq!(epoch, Epoch(0));
        assert!(
            left <= TTL - COMPATIBLE_MARGIN && left > Duration::from_secs(1),
            "{left:?}"
        );
    }
    let revision = agent.entry("leader").await.map(|entry| entry.modified);
    let leader = agent.entry("leader").await.expect("it is there");
    assert_eq!(
        (leader.lease, Some(leader.modified)),
        (session.id, revision)
    );
    let mut admin = cluster.admin().await;
    admin
        .put("/service/demo/leader", "a", None)
        .await
        .expect("put");
    wait_for(&mut agent.events, "refusal", |event| {
        matches!(event, EtcdEvent::Lease(LeaseEvent::Refused(_))).then_some(())
    })
    .await;
    agent.forget_renewals();
    stays_quiet(&mut agent.events, Duration::from_secs(1), |event| {
        self::session(event).is_some()
    })
    .await;
    assert!(agent.renewals.try_recv().is_err());
    agent.etcd.keeper().set(LeaseGoal::Session { ttl: TTL });
    let lost = wait_for(&mut agent.events, "lost session", |event| match event {
        EtcdEvent::Lease(LeaseEvent::SessionLost(id)) => Some(*id),
        EtcdEvent::Lease(LeaseEvent::Session(session)) => panic!("{session:?} counts"),
        _ => None,
    })
    .await;
    assert_eq!(lost, session.id);
    assert_ne!(agent.session().await.id, session.id);
}

#[tokio::test]
async fn another_length_moves_the_leader_key_to_the_new_lease() {
    let cluster = Cluster::start(1).await;
    let mut agent = Agent::start(&cluster.config());
    let first = agent.short_session().await;
    agent
        .commit(Txn::always(vec![Op::put_leased(Key::Leader, "a")]))
        .await;
    let longer = TTL * 2;
    agent.etcd.keeper().set(LeaseGoal::Leader { ttl: longer });
    let pick = |event: &EtcdEvent| session(event).filter(|s| s.ttl == longer);
    let second = wait_for(&mut agent.events, "longer session", pick).await;
    assert_ne!(first.id, second.id);
    let (_, deadline) = agent.renewal().await;
    assert!(clock::now().until(deadline) > TTL);
    let leader = agent.entry("leader").await.expect("it is there");
    assert_eq!((leader.value.as_str(), leader.lease), ("a", second.id));
}

#[tokio::test]
async fn record_renewals_count_from_the_send_and_carry_the_leader_key() {
    let cluster = Cluster::start(1).await;
    let mut agent = Agent::start(&cluster.config());
    let session = agent.short_session().await;
    let (length, every) = (Duration::from_secs(3), Duration::from_millis(200));
    agent.take_record(length).await;
    agent.etcd.keeper().set(record_goal(length, every));
    let mut last: Option<HeldRecord> = None;
    for _ in 0..4 {
        let (epoch, deadline) = agent.renewal().await;
        let held = wait_for(&mut agent.events, "renewal", held).await;
        assert_eq!((epoch, deadline), (Epoch(5), held.sent_at + length));
        if let Some(last) = last {
            assert_eq!(held.seq, last.seq + 1);
            assert!(held.modified > last.modified && held.sent_at >= last.sent_at + every);
        }
        last = Some(held);
    }
    agent.etcd.keeper().set(LeaseGoal::Session { ttl: TTL });
    tokio::time::sleep(every).await;
    agent.forget_renewals();
    let before = agent.entry("record").await.expect("it is there");
    tokio::time::sleep(every * 4).await;
    assert!(agent.renewals.try_recv().is_err());
    assert_eq!(agent.entry("record").await, Some(before.clone()));
    let stands = RecordEntry::parse(&before.value, before.modified)
        .expect("a record")
        .record;
    assert_eq!((stands.l_ms, stands.members.len()), (millis(length), 2));
    let leader = agent.entry("leader").await.expect("it is there");
    assert_eq!((leader.value.as_str(), leader.lease), ("a", session.id));
}

#[tokio::test]
async fn a_record_that_another_took_is_lost_and_not_renewed() {
    let cluster = Cluster::start(1).await;
    let mut agent = Agent::start(&cluster.config());
    agent.short_session().await;
    let length = Duration::from_secs(3);
    agent.take_record(length).await;
    agent
        .etcd
        .keeper()
        .set(record_goal(length, Duration::from_millis(200)));
    agent.renewal().await;
    let thief = LeaseRecord {
        epoch: Epoch(6),
        owner: "b".into(),
        ..record(length)
    };
    let thief = thief.to_value();
    let mut admin = cluster.admin().await;
    admin
        .put("/service/demo/record", thief.as_str(), None)
        .await
        .expect("put");
    let lost = wait_for(&mut agent.events, "loss", |event| match event {
        EtcdEvent::Lease(LeaseEvent::RecordLost { epoch, why }) => Some((*epoch, why.clone())),
        _ => None,
    });
    let (epoch, why) = lost.await;
    assert_eq!(epoch, Epoch(5));
    assert!(why.contains("epoch 6 of b"), "{why}");
    agent.forget_renewals();
    stays_quiet(&mut agent.events, Duration::from_secs(1), |event| {
        held(event).is_some()
    })
    .await;
    assert!(agent.renewals.try_recv().is_err());
    assert_eq!(
        agent.entry("record").await.map(|entry| entry.value),
        Some(thief)
    );
}

#[tokio::test]
async fn a_lost_session_does_not_delay_the_record() {
    let cluster = Cluster::start(1).await;
    let mut agent = Agent::start(&cluster.config());
    let first = agent.short_session().await;
    let length = Duration::from_secs(3);
    agent.take_record(length).await;
    agent
        .etcd
        .keeper()
        .set(record_goal(length, Duration::from_millis(200)));
    agent.renewal().await;
    cluster
        .admin()
        .await
        .lease_revoke(first.id.0)
        .await
        .expect("revoke");
    let second = loop {
        let session = agent.session().await;
        if session.id != first.id {
            break session;
        }
    };
    for _ in 0..3 {
        let (_, deadline) = agent.renewal().await;
        assert!(deadline > clock::now() + length / 2);
    }
    agent.forget_renewals();
    agent.renewal().await;
    agent.renewal().await;
    assert_eq!(
        agent.entry("leader").await.map(|entry| entry.lease),
        Some(second.id)
    );
}

#[tokio::test]
async fn a_hung_member_loop_ends_the_renewals_and_not_the_session() {
    let cluster = Cluster::start(1).await;
    let mut agent = Agent::start(&cluster.config());
    agent.short_session().await;
    let length = Duration::from_secs(3);
    agent.take_record(length).await;
    agent
        .etcd
        .keeper()
        .set(record_goal(length, Duration::from_millis(200)));
    agent.renewal().await;
    agent.hung.store(true, Ordering::Relaxed);
    tokio::time::sleep(Duration::from_millis(2400)).await;
    agent.forget_renewals();
    let at = clock::now();
    let later = |event: &EtcdEvent| session(event).filter(|s| s.sent_at > at);
    wait_for(&mut agent.events, "keepalive", later).await;
    assert!(agent.renewals.try_recv().is_err());
    agent.hung.store(false, Ordering::Relaxed);
    agent.renewal().await;
}

#[tokio::test]
async fn renewals_go_on_with_one_endpoint_dead_and_one_server_frozen() {
    let cluster = Cluster::start(3).await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let mut endpoints = cluster.config().endpoints;
    endpoints.insert(0, dead);
    let mut agent = Agent::start(&config(endpoints));
    agent.short_session().await;
    let (length, every) = (Duration::from_secs(5), Duration::from_millis(500));
    agent.take_record(length).await;
    agent.etcd.keeper().set(record_goal(length, every));
    let mut deadline = agent.renewal().await.1;
    for frozen in &cluster.servers {
        frozen.freeze();
        let end = clock::now() + Duration::from_secs(4);
        while clock::now() < end {
            let (_, next) = agent.renewal().await;
            assert!(clock::now() < deadline, "the lease ran out");
            assert!(next > deadline);
            deadline = next;
        }
        frozen.thaw();
        // The others have made a new leader if need be; let the thawed one catch up.
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let (_, last) = agent.renewal().await;
    assert!(last > deadline);
}

#[tokio::test]
async fn an_answer_that_was_lost_is_found_and_counts_from_the_first_send() {
    let cluster = Cluster::start(1).await;
    let mut agent = Agent::start(&cluster.config());
    agent.short_session().await;
    let length = Duration::from_secs(6);
    agent.take_record(length).await;
    agent
        .etcd
        .keeper()
        .set(record_goal(length, Duration::from_millis(50)));
    agent.renewal().await;
    for _ in 0..3 {
        let frozen_at = clock::now();
        cluster.servers[0].freeze();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let thawed_at = clock::now();
        cluster.servers[0].thaw();
        // The renewal that was under way counts from its first attempt, near the beginning.
        let late = |event: &EtcdEvent| {
            held(event).filter(|h| h.sent_at + Duration::from_millis(100) > frozen_at)
        };
        let held = wait_for(&mut agent.events, "renewal", late).await;
        assert!(
            held.sent_at < frozen_at + Duration::from_millis(300),
            "counted from a later send"
        );
        let next = |event: &EtcdEvent| self::held(event).filter(|h| h.sent_at > thawed_at);
        wait_for(&mut agent.events, "next renewal", next).await;
    }
    let entry = agent.entry("record").await.expect("it is there");
    assert_eq!(
        RecordEntry::parse(&entry.value, entry.modified)
            .expect("ours")
            .record
            .epoch,
        Epoch(5)
    );
}

#[tokio::test]
async fn a_restarted_agent_carries_on_from_a_record_that_moved_on() {
    let cluster = Cluster::start(1).await;
    let mut agent = Agent::start(&cluster.config());
    agent.short_session().await;
    let length = Duration::from_secs(3);
    agent.take_record(length).await;
    agent
        .etcd
        .keeper()
        .set(record_goal(length, Duration::from_millis(100)));
    let held = wait_for(&mut agent.events, "renewal", held).await;
    for _ in 0..3 {
        agent.renewal().await;
    }
    drop(agent);
    // It was renewed after what the guardian remembers.
    let mut agent = Agent::start(&cluster.config());
    agent.short_session().await;
    let known = LeaseRecord {
        seq: held.seq,
        ..record(length)
    };
    agent.etcd.keeper().adopt_record(known, held);
    let start = clock::now();
    agent
        .etcd
        .keeper()
        .set(record_goal(length, Duration::from_millis(100)));
    let (epoch, deadline) = agent.renewal().await;
    assert_eq!(epoch, Epoch(5));
    assert!(deadline > start + length);
    let again = wait_for(&mut agent.events, "renewal", self::held).await;
    assert!(again.seq > held.seq + 1 && again.sent_at > start);
}
