//! A REST server on a free loopback port, fed with a hand-made status, and a client that sees raw
//! bytes. etcd is a map behind a mutex.
#![allow(dead_code, reason = "each test file uses another part")]

use garden_agent::clock;
use garden_agent::config::{AgentConfig, Loader};
use garden_agent::journal::JournalReader;
use garden_agent::peers::Peers;
use garden_agent::postgres::Copied;
use garden_agent::rest::{RestHandle, RestRequest, RestState, Store, StoreFuture, serve};
use proto::config::{ClusterConfig, Settings, Tags};
use proto::core::observation::{LocalPostgres, Process, Receiver, Sql, SqlSample};
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{ClusterView, Entry, PgRole, PgState, Snapshot, Txn};
use proto::ids::{LeaseId, Revision};
use proto::rest::Published;
use proto::wal::{Lsn, Timeline};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

/// The records, in memory.
#[derive(Default)]
pub struct FakeEtcd {
    snapshot: Mutex<Snapshot>,
    down: Mutex<bool>,
}

impl FakeEtcd {
    pub fn put(&self, key: &str, value: &str) {
        let mut snapshot = self.snapshot.lock().expect("lock");
        let modified = Revision(snapshot.revision.0 + 1);
        let entry = Entry {
            value: value.to_owned(),
            lease: LeaseId(1),
            created: modified,
            modified,
        };
        snapshot.apply_put(key, entry);
    }

    pub fn get(&self, key: &str) -> Option<String> {
        self.snapshot
            .lock()
            .expect("lock")
            .entries
            .get(key)
            .map(|e| e.value.clone())
    }

    pub fn view(&self) -> Arc<ClusterView> {
        Arc::new(ClusterView::read(&self.snapshot.lock().expect("lock")))
    }

    pub fn set_down(&self, down: bool) {
        *self.down.lock().expect("lock") = down;
    }
}

impl Store for FakeEtcd {
    fn commit<'a>(&'a self, txn: &'a Txn, _limit: Duration) -> StoreFuture<'a, TxnOutcome> {
        Box::pin(async move {
            if *self.down.lock().expect("lock") {
                return TxnOutcome::Unknown("down".into());
            }
            let mut snapshot = self.snapshot.lock().expect("lock");
            if !txn.when.iter().all(|compare| snapshot.holds(compare)) {
                return TxnOutcome::Refused;
            }
            let revision = Revision(snapshot.revision.0 + 1);
            snapshot.apply_own(txn, LeaseId(1), revision);
            TxnOutcome::Committed(revision)
        })
    }

    fn read(&self, _limit: Duration) -> StoreFuture<'_, Option<Snapshot>> {
        Box::pin(async move {
            let up = !*self.down.lock().expect("lock");
            up.then(|| self.snapshot.lock().expect("lock").clone())
        })
    }
}

/// The configuration of a member whose REST server takes any free port of the loopback interface.
pub fn config(edit: impl FnOnce(&mut AgentConfig)) -> Arc<AgentConfig> {
    let text = "
scope: garden
name: gd-a
restapi: {listen: '127.0.0.1:8008', connect_address: '127.0.0.1:8008'}
etcd3: {hosts: '127.0.0.1:2379'}
postgresql:
  listen: 127.0.0.1:5433
  connect_address: 127.0.0.1:5433
  data_dir: /nowhere/data
  pgpass: /nowhere/pgpass
  authentication:
    replication: {username: replicator, password: x}
    superuser: {username: postgres, password: x}
";
    let environment = BTreeMap::from([(String::from("PATRONI_CONFIGURATION"), text.to_owned())]);
    let local = Loader::new(None, environment)
        .and_then(|l| l.load())
        .expect("loads");
    let (mut config, _) = local.effective(&Map::new()).expect("effective");
    config.restapi.listen_port = 0;
    edit(&mut config);
    Arc::new(config)
}

fn settings(dynamic: Map<String, Value>) -> Settings {
    Settings {
        me: "gd-a".into(),
        scope: "garden".into(),
        version: "4.1.4".into(),
        conn_url: "postgres://127.0.0.1:5433/postgres".into(),
        api_url: "http://127.0.0.1:8008/patroni".into(),
        proxy_url: None,
        tags: Tags::default(),
        cluster: ClusterConfig::parse(&dynamic),
        dynamic,
        can_bootstrap: true,
        can_clone_without_leader: false,
        use_pg_rewind: false,
        wipe_on_rewind_failure: false,
        wipe_on_divergence: false,
        has_pre_promote: false,
        watchdog_required: false,
        conf_generation: 1,
    }
}

fn with_sample(published: &mut Published, sample: SqlSample) {
    published.state = PgState::Running;
    published.postgres = Arc::new(LocalPostgres {
        process: Process::Alive { pid: 1 },
        sql: Sql::Sample(Box::new(SqlSample {
            timeline: Some(Timeline(5)),
            postmaster_start_time: "2026-07-24 10:00:00+00".into(),
            server_version: 150_018,
            ..sample
        })),
        ..LocalPostgres::default()
    });
}

/// A running primary that holds the lock for a minute.
pub fn leader(etcd: &FakeEtcd) -> Published {
    let mut published = published(etcd);
    published.role = PgRole::Primary;
    published.leader_until = Some(clock::now() + Duration::from_secs(60));
    with_sample(
        &mut published,
        SqlSample {
            flush_lsn: Lsn(100),
            ..SqlSample::default()
        },
    );
    published
}

/// A streaming standby.
pub fn replica(etcd: &FakeEtcd) -> Published {
    let mut published = published(etcd);
    published.role = PgRole::Replica;
    let receiver = Receiver {
        status: "streaming".into(),
        ..Receiver::default()
    };
    let sample = SqlSample {
        in_recovery: true,
        receive_lsn: Lsn(100),
        replay_lsn: Lsn(90),
        receiver: Some(receiver),
        ..SqlSample::default()
    };
    with_sample(&mut published, sample);
    published
}

fn published(etcd: &FakeEtcd) -> Published {
    let view = etcd.view();
    let dynamic = view.config.document().cloned().unwrap_or_default();
    let mut published = Published::starting(Arc::new(settings(dynamic)), clock::now());
    published.view = Some(view);
    published.next_run = clock::now() + Duration::from_secs(10);
    published
}

/// A server with everything around it.
pub struct Server {
    pub etcd: Arc<FakeEtcd>,
    pub published: watch::Sender<Arc<Published>>,
    pub config: watch::Sender<Arc<AgentConfig>>,
    pub requests: mpsc::Receiver<RestRequest>,
    pub address: SocketAddr,
    pub handle: RestHandle,
}

impl Server {
    /// Starts one that publishes what `describe` makes of the records.
    pub async fn start(
        config: Arc<AgentConfig>,
        records: &[(&str, &str)],
        describe: impl FnOnce(&FakeEtcd) -> Published,
    ) -> Self {
        Self::start_with(JournalReader::default(), config, records, describe).await
    }

    /// The same with a journal.
    pub async fn start_with(
        journal: JournalReader,
        config: Arc<AgentConfig>,
        records: &[(&str, &str)],
        describe: impl FnOnce(&FakeEtcd) -> Published,
    ) -> Self {
        let etcd = Arc::new(FakeEtcd::default());
        for (key, value) in records {
            etcd.put(key, value);
        }
        let (published, published_rx) = watch::channel(Arc::new(describe(&etcd)));
        let (config_tx, config_rx) = watch::channel(config.clone());
        let (requests_tx, requests) = mpsc::channel(4);
        let handle = serve(RestState {
            published: published_rx,
            requests: requests_tx,
            etcd: etcd.clone(),
            peers: Peers::new(&config.ctl).expect("client"),
            config: config_rx,
            journal,
            copied: Copied::default(),
        })
        .await
        .expect("server starts");
        let address = handle.addresses()[0];
        Self {
            etcd,
            published,
            config: config_tx,
            requests,
            address,
            handle,
        }
    }

    /// Replaces what is published.
    pub fn publish(&self, edit: impl FnOnce(&mut Published)) {
        self.published
            .send_modify(|current| edit(Arc::make_mut(current)));
    }

    /// One request on a connection of its own.
    pub async fn ask(&self, method: &str, target: &str, body: Option<&str>) -> Reply {
        self.ask_with(method, target, "", body).await
    }

    /// The same with more header lines, each ended by CRLF.
    pub async fn ask_with(
        &self,
        method: &str,
        target: &str,
        headers: &str,
        body: Option<&str>,
    ) -> Reply {
        let length = body
            .map(|b| format!("Content-Length: {}\r\n", b.len()))
            .unwrap_or_default();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}{length}\r\n{}",
            body.unwrap_or_default()
        );
        let stream = TcpStream::connect(self.address).await.expect("connects");
        exchange(stream, &request).await
    }

    pub async fn code(&self, method: &str, target: &str) -> u16 {
        self.ask(method, target, None).await.code
    }
}

/// What came back. Code 0 stands for a connection that was closed without an answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    pub code: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        let line = |l: &'_ str| l.to_ascii_lowercase().starts_with(&format!("{name}:"));
        self.head
            .lines()
            .find(|l| line(l))
            .and_then(|l| l.split_once(": "))
            .map(|(_, v)| v)
    }
}

/// Sends a request and reads until the other side closes.
pub async fn exchange(
    mut stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    request: &str,
) -> Reply {
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut bytes = Vec::new();
    // A reset after the answer is not an error here: refused bodies are not read.
    let _ = tokio::time::timeout(Duration::from_secs(30), stream.read_to_end(&mut bytes))
        .await
        .expect("an answer in time");
    let text = String::from_utf8(bytes).expect("text");
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let code = head
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse().ok())
        .unwrap_or(0);
    Reply {
        code,
        head: head.to_owned(),
        body: body.to_owned(),
    }
}
