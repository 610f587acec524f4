//! Members without an etcd: a driver, a guardian and a PostgreSQL 15 each, run as the user `postgres`.

#[path = "again.rs"]
mod again;

use garden_agent::config::{AgentConfig, Loader};
use garden_agent::guardian::{AttachOptions, GuardianClient};
use garden_agent::postgres::{PgContext, PgEvent, Postgres, connect, pgdata};
use proto::config::ClusterConfig;
use proto::core::job::{Job, JobEnd, Upstream};
use proto::core::observation::{DataDir, LocalPostgres, Sql, SqlSample, Task, TaskResult};
use proto::ids::JobId;
use serde_json::{Map, Value};
use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Longest wait for anything that must happen.
pub const LIMIT: Duration = Duration::from_secs(20);

/// A job that has a time of its own has this one.
pub const TIMEOUT: Duration = Duration::from_secs(30);

/// Lines of each log that a failure shows.
const LOG_LINES: usize = 15;

/// Servers are many; tests of one program run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

/// PostgreSQL refuses root, so a test that root runs runs itself again as `postgres`. `test` is the
/// test's own name.
pub fn as_postgres(test: &str, body: impl Future<Output = ()>) {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if !again::done_as_postgres(test) {
        run(body);
    }
}

fn run(body: impl Future<Output = ()>) {
    if std::env::var_os("GARDEN_TEST_LOG").is_some() {
        let _ = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .try_init();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("runtime");
    runtime.block_on(async {
        tokio::time::timeout(LIMIT * 6, body)
            .await
            .expect("test in time")
    });
}

/// Marks the run of a test that has its mount already.
const MOUNTED: &str = "GARDEN_TEST_MOUNTED";

/// As [`as_postgres`], and the data directory of the member `name` is the root of a file system of its
/// own, which exists for this test only.
#[allow(dead_code, reason = "not every program needs it")]
pub fn as_postgres_on_a_mount(test: &str, name: &str, body: impl Future<Output = ()>) {
    let _alone = ALONE
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    if std::env::var_os(MOUNTED).is_some() {
        return run(body);
    }
    // `exec` keeps the process id, by which members name their directories.
    let prepare = |options: &str| {
        format!(
            "root=${{TMPDIR:-/tmp}}/garden-jobs-$$-{name}; mkdir -p $root/data && \
             mount -t tmpfs -o mode=0700{options} tmpfs $root/data"
        )
    };
    let exe = std::env::current_exe().expect("the path of this program");
    let exe = exe.display();
    let (unshare, script): (&[&str], String) = if nix::unistd::geteuid().is_root() {
        let mount = prepare(",uid=postgres,gid=postgres");
        let drop = "setpriv --reuid=postgres --regid=postgres --init-groups --";
        (
            &["--mount"],
            format!(
                "{mount} && chown postgres: $root && exec {drop} {exe} {test} --exact --nocapture"
            ),
        )
    } else {
        // Root of a namespace may mount, but PostgreSQL refuses root: back to oneself in another one.
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let mount = prepare("");
        let drop = format!("unshare --user --map-user={uid} --map-group={gid} --");
        (
            &["--user", "--map-root-user", "--mount"],
            format!("{mount} && exec {drop} {exe} {test} --exact --nocapture"),
        )
    };
    let mut child = Command::new("unshare")
        .args(unshare)
        .args(["--", "sh", "-c", &script])
        .current_dir("/")
        .env("HOME", "/tmp")
        .env(MOUNTED, "1")
        .spawn()
        .expect("unshare");
    let status = child.wait().expect("its end");
    // The mount went with its namespace, the mount point is left.
    let root = std::env::temp_dir().join(format!("garden-jobs-{}-{name}", child.id()));
    let _ = std::fs::remove_dir_all(root);
    assert!(status.success(), "{test} failed on a mount of its own");
}

fn guardian_options(root: &Path) -> AttachOptions {
    AttachOptions {
        program: PathBuf::from(env!("CARGO_BIN_EXE_garden-agent")),
        log: Some(root.join("guardian.log")),
        ..AttachOptions::default()
    }
}

/// A job that copies the source and streams from it.
pub fn clone_of(source: &Node) -> Job {
    Job::Clone {
        source: Some(source.upstream()),
        follow: source.upstream(),
        basebackup_only: false,
    }
}

/// A member with a new cluster; `extra` is added to its configuration.
pub async fn primary(name: &'static str, port: u16, extra: &str) -> Node {
    let mut node = Node::new(name, port, extra);
    node.make_cluster().await;
    node
}

/// A member.
pub struct Node {
    pub name: &'static str,
    pub root: PathBuf,
    pub port: u16,
    pub ctx: PgContext,
    pub driver: Postgres,
    pub guardian: GuardianClient,
    events: mpsc::Receiver<PgEvent>,
    last_id: u64,
    _config: watch::Sender<Arc<AgentConfig>>,
    _cluster: watch::Sender<Arc<ClusterConfig>>,
}

impl Node {
    /// A new cluster, as it is when etcd has its keys: until then its directory carries the mark.
    pub async fn make_cluster(&mut self) {
        assert_eq!(self.job(Job::Bootstrap).await, JobEnd::Done);
        assert!(pgdata::look(&self.data()).abandoned());
        self.driver.clear_mark();
        assert_eq!(self.task(Task::ClearMark).await, TaskResult::Done);
        assert_eq!(pgdata::look(&self.data()), DataDir::Initialised);
    }

    /// A member with an empty data directory; `extra` is YAML added to the `postgresql` section.
    pub fn new(name: &'static str, port: u16, extra: &str) -> Self {
        let root = std::env::temp_dir().join(format!("garden-jobs-{}-{name}", std::process::id()));
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir_all(&root).expect("create");
        let file = root.join("patroni.yml");
        std::fs::write(&file, configuration(name, &root, port, extra)).expect("write");
        let local = Loader::new(Some(&file), Default::default()).and_then(|loader| loader.load());
        let (config, _) = local
            .and_then(|local| local.effective(&Map::new()))
            .expect("configuration");
        // Nobody creates the members' slots here.
        let cluster = ClusterConfig {
            use_slots: false,
            ..ClusterConfig::default()
        };
        let (config, config_rx) = watch::channel(Arc::new(config));
        let (cluster, cluster_rx) = watch::channel(Arc::new(cluster));
        let ctx = PgContext::new(config_rx, cluster_rx);
        let (guardian, mut reports, _) =
            GuardianClient::attach(&root.join("data"), guardian_options(&root)).expect("guardian");
        let (driver, events) = Postgres::spawn(ctx.clone(), guardian.clone());
        let listener = driver.clone();
        tokio::spawn(async move {
            while let Some(event) = reports.recv().await {
                listener.guardian_event(&event);
            }
        });
        let (_config, _cluster) = (config, cluster);
        Self {
            name,
            root,
            port,
            ctx,
            driver,
            guardian,
            events,
            last_id: 0,
            _config,
            _cluster,
        }
    }

    pub fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    /// What others stream from.
    pub fn upstream(&self) -> Upstream {
        Upstream::Member {
            name: self.name.into(),
            conn_url: format!("postgres://127.0.0.1:{}/postgres", self.port),
        }
    }

    /// Gives a job to the driver.
    pub fn start(&mut self, job: Job) -> JobId {
        self.last_id += 1;
        let id = JobId(self.last_id);
        self.driver.run(id, job, false);
        id
    }

    /// Runs a job to its end.
    pub async fn job(&mut self, job: Job) -> JobEnd {
        let id = self.start(job);
        self.end_of(id).await
    }

    pub async fn end_of(&mut self, id: JobId) -> JobEnd {
        self.next(|event| match event {
            PgEvent::JobEnded(finished) if finished.id == id => Some(finished.end),
            _ => None,
        })
        .await
    }

    pub async fn phase_of(&mut self, id: JobId, wanted: &str) {
        let wanted = wanted.to_owned();
        self.next(move |event| match event {
            PgEvent::JobPhase { id: of, phase } if of == id && phase == wanted => Some(()),
            _ => None,
        })
        .await
    }

    pub async fn task(&mut self, task: Task) -> TaskResult {
        self.next(|event| match event {
            PgEvent::TaskEnded(ended, result) if ended == task => Some(result),
            _ => None,
        })
        .await
    }

    /// Waits for a sample that satisfies.
    pub async fn sample(
        &mut self,
        mut fits: impl FnMut(&LocalPostgres) -> bool,
    ) -> Arc<LocalPostgres> {
        self.driver.probe_every(Duration::from_millis(50));
        self.next(|event| match event {
            PgEvent::Sample(sample) if fits(&sample) => Some(sample),
            _ => None,
        })
        .await
    }

    /// Waits until it streams from `other`.
    pub async fn streams_from(&mut self, other: &Node) {
        let port = other.port;
        self.sample(move |pg| {
            sql_of(pg).is_some_and(|sql| {
                let receiver = sql.receiver.as_ref();
                receiver.is_some_and(|r| {
                    r.status == "streaming" && r.sender.as_ref().is_some_and(|s| s.1 == port)
                })
            })
        })
        .await;
    }

    pub async fn next<T>(&mut self, mut wanted: impl FnMut(PgEvent) -> Option<T>) -> T {
        let mut last = String::new();
        let found = async {
            loop {
                let event = self.events.recv().await.expect("the driver lives");
                last = format!("{event:?}");
                if let Some(found) = wanted(event) {
                    return found;
                }
            }
        };
        match tokio::time::timeout(LIMIT, found).await {
            Ok(found) => found,
            Err(_) => panic!(
                "{}: it never came; last: {last}\n{}",
                self.name,
                self.logs()
            ),
        }
    }

    /// The first column of the first row as text.
    pub async fn query(&self, sql: &str) -> Option<String> {
        let client = connect::superuser(&self.ctx).await.expect("session");
        let rows = client
            .simple_query(sql)
            .await
            .unwrap_or_else(|err| panic!("{sql}: {err:?}"));
        rows.into_iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
            _ => None,
        })
    }

    /// Repeats a query until it gives `wanted`.
    pub async fn query_until(&self, sql: &str, wanted: &str) {
        let until = tokio::time::Instant::now() + LIMIT;
        loop {
            let client = connect::superuser(&self.ctx).await;
            let row = match client {
                Ok(client) => client.simple_query(sql).await.ok(),
                Err(_) => None,
            };
            let found = row.into_iter().flatten().find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            });
            if found.as_deref() == Some(wanted) {
                return;
            }
            assert!(
                tokio::time::Instant::now() < until,
                "{sql} gives {found:?}, not {wanted}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The ends of the logs.
    fn logs(&self) -> String {
        let end = |file: PathBuf| {
            let text = std::fs::read_to_string(file).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
        };
        let guardian = end(self.root.join("guardian.log"));
        let server = end(self.data().join("log/server.log"));
        format!("guardian:\n{guardian}\nserver:\n{server}")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.guardian.fence();
        let until = std::time::Instant::now() + Duration::from_secs(5);
        while self.guardian.postmaster().is_some() && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = self.guardian.leave();
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.root);
        }
    }
}

/// The answer of a sample, if it has one.
pub fn sql_of(pg: &LocalPostgres) -> Option<&SqlSample> {
    match &pg.sql {
        Sql::Sample(sql) => Some(sql),
        _ => None,
    }
}

fn configuration(name: &str, root: &Path, port: u16, extra: &str) -> String {
    let root = root.display();
    let mut doc: Value = garden_agent::config::yaml::from_str(&format!(
        "
scope: batman
name: {name}
restapi: {{listen: '127.0.0.1:{rest}', connect_address: '127.0.0.1:{rest}'}}
etcd3: {{host: '127.0.0.1:2379'}}
bootstrap:
  initdb: [{{encoding: UTF8}}, data-checksums, no-sync]
  pg_hba: ['host all all 127.0.0.1/32 scram-sha-256']
postgresql:
  listen: 127.0.0.1:{port}
  connect_address: 127.0.0.1:{port}
  data_dir: {root}/data
  bin_dir: {BIN}
  pgpass: {root}/pgpass
  use_unix_socket: true
  use_pg_rewind: true
  authentication:
    superuser: {{username: postgres, password: 'su''per'}}
    replication: {{username: replicator, password: rep}}
    rewind: {{username: rewinder, password: 'rew ind'}}
  pg_hba:
  - local all all scram-sha-256
  - host all all 127.0.0.1/32 scram-sha-256
  - local replication replicator scram-sha-256
  - host replication replicator 127.0.0.1/32 scram-sha-256
  basebackup: [no-sync]
  rewind: [no-sync]
  parameters:
    fsync: 'off'
    unix_socket_directories: {root}
    logging_collector: 'on'
    log_directory: log
    log_filename: server.log
    wal_retrieve_retry_interval: 100ms
",
        rest = port + 500,
    ))
    .expect("valid");
    if !extra.is_empty() {
        let extra: Value = garden_agent::config::yaml::from_str(extra).expect("valid");
        if let (Some(doc), Some(extra)) = (doc.as_object_mut(), extra.as_object()) {
            garden_agent::config::merge::patch(doc, extra);
        }
    }
    doc.to_string()
}
