//! Choosing servers, authentication and TLS, against real etcd servers.

#[path = "common/etcd.rs"]
mod common;

use common::{Cluster, PATIENCE, TlsFiles, config, free_port, keyspace, scratch, wait_for};
use etcd_client::{Permission, PermissionType};
use garden_agent::config::EtcdConfig;
use garden_agent::config::secret::Secret;
use garden_agent::etcd::{Etcd, EtcdError, EtcdEvent, LeaseEvent};
use proto::config::Timing;
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{Key, Op, Txn};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::path::Path;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(3);

fn put(value: &str) -> Txn {
    Txn::always(vec![Op::put(Key::Status, value)])
}

async fn commit(etcd: &Etcd, value: &str) {
    let outcome = etcd.commit(&put(value), LIMIT).await;
    assert!(matches!(outcome, TxnOutcome::Committed(_)), "{outcome:?}");
}

#[tokio::test]
async fn a_dead_endpoint_costs_no_transaction() {
    let cluster = Cluster::start(1).await;
    let dead = format!("http://127.0.0.1:{}", free_port());
    let etcd = Etcd::open(&config([dead, cluster.servers[0].url()]), keyspace()).expect("fine");
    for count in 0..20 {
        commit(&etcd, &count.to_string()).await;
    }
    assert_eq!(etcd.endpoint(), cluster.servers[0].url());
}

#[tokio::test]
async fn a_frozen_server_is_left_for_another() {
    let cluster = Cluster::start(3).await;
    let etcd = Etcd::open(&cluster.config(), keyspace()).expect("fine");
    commit(&etcd, "1").await;
    for server in &cluster.servers {
        server.freeze();
        let begin = Instant::now();
        let world = etcd
            .read(Duration::from_secs(10))
            .await
            .expect("two of three answer");
        assert_eq!(world.entries.len(), 1);
        // One silent endpoint costs a second; an election, when it was etcd's leader, some more.
        let took = begin.elapsed();
        assert!(took < Duration::from_secs(8), "{took:?}");
        assert_ne!(etcd.endpoint(), server.url());
        commit(&etcd, "2").await;
        server.thaw();
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test]
async fn the_watch_moves_to_another_server_when_its_own_freezes() {
    let cluster = Cluster::start(3).await;
    let (etcd, mut events) =
        Etcd::connect(&cluster.config(), keyspace(), Timing::default()).expect("fine");
    let alive = |event: &EtcdEvent| matches!(event, EtcdEvent::Alive).then_some(());
    wait_for(&mut events, "sign of life", alive).await;
    let url = etcd.endpoint();
    let server = cluster
        .servers
        .iter()
        .find(|server| server.url() == url)
        .expect("one of them");
    server.freeze();
    let gap = |event: &EtcdEvent| matches!(event, EtcdEvent::Gap).then_some(());
    wait_for(&mut events, "gap", gap).await;
    wait_for(&mut events, "sign of life", alive).await;
    server.thaw();
    commit(&etcd, "1").await;
    assert!(
        etcd.watched()
            .is_some_and(|world| world.entries.contains_key("status"))
    );
}

#[tokio::test]
async fn members_are_discovered_and_configured_endpoints_stay_as_a_fallback() {
    let mut cluster = Cluster::start(3).await;
    let only = cluster.servers[0].url();
    let (etcd, mut events) =
        Etcd::connect(&config([only.clone()]), keyspace(), Timing::default()).expect("fine");
    let alive = |event: &EtcdEvent| matches!(event, EtcdEvent::Alive).then_some(());
    for _ in 0..3 {
        wait_for(&mut events, "sign of life", alive).await;
    }
    assert_eq!(etcd.endpoint(), only, "a working endpoint is kept");
    cluster.servers[0].kill();
    wait_for(&mut events, "gap", |event| {
        matches!(event, EtcdEvent::Gap).then_some(())
    })
    .await;
    wait_for(&mut events, "sign of life", alive).await;
    assert_ne!(etcd.endpoint(), only);
    commit(&etcd, "1").await;
}

#[tokio::test]
async fn nobody_to_reach_is_an_error_within_the_limit() {
    let dead = format!("http://127.0.0.1:{}", free_port());
    let etcd = Etcd::open(&config([dead.clone()]), keyspace()).expect("fine");
    let begin = Instant::now();
    let error = etcd
        .read(Duration::from_millis(400))
        .await
        .expect_err("nobody is there");
    assert!(begin.elapsed() < Duration::from_secs(1));
    assert!(
        matches!(&error, EtcdError::Unreachable { last, .. } if last.contains(&dead)),
        "{error}"
    );
    let outcome = etcd.commit(&put("1"), Duration::from_millis(400)).await;
    assert!(
        matches!(&outcome, TxnOutcome::Unknown(t) if t.starts_with("not sent")),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_token_that_etcd_has_forgotten_is_renewed() {
    let mut cluster = Cluster::start(1).await;
    let mut admin = cluster.admin().await;
    admin
        .user_add("root", "secret", None)
        .await
        .expect("add root");
    admin
        .user_grant_role("root", "root")
        .await
        .expect("grant root");
    admin
        .user_add("garden", "hush", None)
        .await
        .expect("add a user");
    admin.role_add("garden").await.expect("add a role");
    let permission = Permission::new(PermissionType::Readwrite, "/service/demo/").with_prefix();
    admin
        .role_grant_permission("garden", permission)
        .await
        .expect("grant");
    admin
        .user_grant_role("garden", "garden")
        .await
        .expect("grant");
    admin.auth_enable().await.expect("enable");
    let login = |password: &str| EtcdConfig {
        username: Some("garden".into()),
        password: Some(Secret::new(password)),
        ..cluster.config()
    };
    let wrong = Etcd::open(&login("wrong"), keyspace()).expect("fine");
    let error = wrong
        .read(Duration::from_secs(1))
        .await
        .expect_err("a wrong password");
    assert!(matches!(error, EtcdError::Credentials(_)), "{error}");
    let nobody = Etcd::open(&cluster.config(), keyspace()).expect("fine");
    nobody
        .read(Duration::from_secs(1))
        .await
        .expect_err("without a name");
    let (etcd, mut events) =
        Etcd::connect(&login("hush"), keyspace(), Timing::default()).expect("fine");
    let session = |event: &EtcdEvent| match event {
        EtcdEvent::Lease(LeaseEvent::Session(session)) => Some(session.sent_at),
        _ => None,
    };
    let first = wait_for(&mut events, "session", session).await;
    commit(&etcd, "1").await;
    // Simple tokens live in the memory of the server.
    cluster.servers[0].restart();
    let begin = Instant::now();
    while !matches!(
        etcd.commit(&put("2"), LIMIT).await,
        TxnOutcome::Committed(_)
    ) {
        assert!(begin.elapsed() < PATIENCE);
    }
    let later = |event: &EtcdEvent| session(event).filter(|at| *at > first);
    wait_for(&mut events, "keepalive", later).await;
    let alive = |event: &EtcdEvent| matches!(event, EtcdEvent::Alive).then_some(());
    wait_for(&mut events, "sign of life", alive).await;
}

#[tokio::test]
async fn credentials_do_no_harm_where_authentication_is_off() {
    let cluster = Cluster::start(1).await;
    let login = EtcdConfig {
        username: Some("garden".into()),
        password: Some(Secret::new("hush")),
        ..cluster.config()
    };
    commit(&Etcd::open(&login, keyspace()).expect("fine"), "1").await;
}

/// A CA, and a certificate of it for 127.0.0.1 that serves both sides.
fn certificates(dir: &Path) -> TlsFiles {
    std::fs::create_dir_all(dir).expect("create a directory");
    let mut ca_params = CertificateParams::new(Vec::new()).expect("parameters");
    ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_key = KeyPair::generate().expect("a key");
    let ca_cert = ca_params.self_signed(&ca_key).expect("a CA");
    let issuer = Issuer::new(ca_params, ca_key);
    let key = KeyPair::generate().expect("a key");
    let params = CertificateParams::new(vec![String::from("127.0.0.1")]).expect("parameters");
    let cert = params.signed_by(&key, &issuer).expect("a certificate");
    let files = TlsFiles {
        ca: dir.join("ca.pem"),
        cert: dir.join("cert.pem"),
        key: dir.join("key.pem"),
    };
    std::fs::write(&files.ca, ca_cert.pem()).expect("write");
    std::fs::write(&files.cert, cert.pem()).expect("write");
    std::fs::write(&files.key, key.serialize_pem()).expect("write");
    files
}

#[tokio::test]
async fn tls_verifies_both_sides() {
    let dir = scratch("tls");
    let files = certificates(&dir.join("ours"));
    let strangers = certificates(&dir.join("strangers"));
    let cluster = Cluster::launch(1, Some(&files));
    let with = |ca: &TlsFiles, own: Option<&TlsFiles>| EtcdConfig {
        cacert: Some(ca.ca.clone()),
        cert: own.map(|files| files.cert.clone()),
        key: own.map(|files| files.key.clone()),
        ..cluster.config()
    };
    cluster.ready(&with(&files, Some(&files))).await;
    let (etcd, mut events) =
        Etcd::connect(&with(&files, Some(&files)), keyspace(), Timing::default()).expect("fine");
    let alive = |event: &EtcdEvent| matches!(event, EtcdEvent::Alive).then_some(());
    wait_for(&mut events, "sign of life", alive).await;
    commit(&etcd, "1").await;
    let refused = [
        with(&strangers, Some(&files)),
        with(&files, Some(&strangers)),
        with(&files, None),
    ];
    for config in refused {
        let etcd = Etcd::open(&config, keyspace()).expect("the files are there");
        etcd.read(Duration::from_millis(700))
            .await
            .expect_err("the handshake must fail");
    }
    let mut missing = with(&files, None);
    missing.cacert = Some(dir.join("nothing.pem"));
    let error = Etcd::open(&missing, keyspace()).err();
    assert!(
        matches!(
            error,
            Some(EtcdError::TlsFile {
                setting: "cacert",
                ..
            })
        ),
        "{error:?}"
    );
    std::fs::remove_dir_all(&dir).expect("clean up");
}
