//! The facts about a local PostgreSQL, taken from a real one: a primary and its standby, configured
//! and started with what the driver writes.

#[path = "common/again.rs"]
mod again;

use garden_agent::config::{
    AgentConfig, Credentials, CtlConfig, EtcdConfig, LogConfig, PostgresConfig, ReplicaMethod,
    RestApiConfig, WatchdogConfig, WatchdogMode,
};
use garden_agent::postgres::conf::{self, ConfState};
use garden_agent::postgres::connect::{self, ConninfoKind, Role};
use garden_agent::postgres::probe::{self, ProbeState};
use garden_agent::postgres::{PgContext, controldata, pgdata, slots};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::config::{ClusterConfig, Tags};
use proto::core::decision::SlotPlan;
use proto::core::job::Upstream;
use proto::core::observation::{ControlState, DataDir, LocalPostgres, Process, Sql, SqlSample};
use proto::wal::{Lsn, Timeline};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Programs of the oldest installed version.
fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("GARDEN_PG_BIN") {
        return dir.into();
    }
    let installed = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let mut dirs: Vec<PathBuf> = installed.flatten().map(|e| e.path().join("bin")).collect();
    dirs.retain(|dir| dir.join("postgres").exists());
    dirs.sort();
    dirs.into_iter().next().expect("PostgreSQL is installed")
}

/// A server with its own directory; both are gone at the end of the test.
struct Node {
    dir: PathBuf,
    config: AgentConfig,
    publish: watch::Sender<Arc<AgentConfig>>,
    ctx: PgContext,
    _cluster: watch::Sender<Arc<ClusterConfig>>,
    server: Option<Child>,
}

impl Node {
    fn new(name: &str, port: u16) -> Self {
        let dir = std::env::temp_dir().join(format!("garden-facts-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("create");
        let config = agent_config(name, port, &dir);
        let (publish, receiver) = watch::channel(Arc::new(config.clone()));
        let (cluster, cluster_rx) = watch::channel(Arc::new(ClusterConfig::default()));
        let ctx = PgContext::new(receiver, cluster_rx);
        Self {
            dir,
            config,
            publish,
            ctx,
            _cluster: cluster,
            server: None,
        }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn configure(&mut self, change: impl FnOnce(&mut PostgresConfig)) {
        change(&mut self.config.postgresql);
        self.publish.send_replace(Arc::new(self.config.clone()));
    }

    async fn start(&mut self, state: &ConfState) {
        conf::write(&self.ctx, state)
            .await
            .expect("write the configuration");
        let command = conf::command_line(&self.ctx, state)
            .await
            .expect("command line");
        let log = fs::File::create(self.dir.join("log")).expect("log");
        let (program, args) = command.split_first().expect("a program");
        let child = Command::new(program)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .spawn()
            .expect("start PostgreSQL");
        self.server = Some(child);
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.server.as_ref().expect("runs").id()).expect("a pid")
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid()), signal).expect("signal the postmaster");
    }

    fn stop(&mut self, signal: Signal) {
        self.signal(signal);
        self.server.take().expect("runs").wait().expect("wait");
    }

    /// A sample with the server as the guardian would name it: one of our own children is never taken
    /// from `postmaster.pid`.
    async fn sample(&self, state: &mut ProbeState) -> LocalPostgres {
        state.postmaster = self
            .server
            .as_ref()
            .and_then(|s| i32::try_from(s.id()).ok());
        probe::sample(&self.ctx, state).await
    }

    async fn until<T>(
        &self,
        state: &mut ProbeState,
        wanted: impl Fn(&LocalPostgres) -> Option<T>,
    ) -> T {
        let started = Instant::now();
        loop {
            let seen = self.sample(state).await;
            if let Some(found) = wanted(&seen) {
                return found;
            }
            let log = self.log();
            assert!(
                started.elapsed() < Duration::from_secs(20),
                "last seen {seen:#?}\n{log}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let pid = Pid::from_raw(i32::try_from(server.id()).unwrap_or(0));
            let _ = kill(pid, Signal::SIGCONT);
            let _ = kill(pid, Signal::SIGQUIT);
            let _ = server.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn agent_config(name: &str, port: u16, dir: &Path) -> AgentConfig {
    let parameters = [
        ("max_connections", json!(40)),
        ("shared_buffers", json!("16MB")),
        ("unix_socket_directories", json!(dir.to_string_lossy())),
        ("restore_command", json!("false")),
        ("wal_keep_segments", json!(3)),
        ("log_line_prefix", json!("it's \\ %p ")),
        ("wal_level", json!("logical")),
        // Three that a server would refuse to start with.
        ("no_such_setting", json!(1)),
        ("autovacuum_max_workers", json!(0)),
        ("log_min_messages", json!("loud")),
    ];
    let user = |name: &str, password: &str| Credentials {
        username: Some(name.into()),
        password: Some(garden_agent::config::secret::Secret::new(password)),
        options: BTreeMap::new(),
    };
    AgentConfig {
        name: name.into(),
        scope: "facts".into(),
        namespace: "service".into(),
        log: LogConfig {
            json: false,
            level: "INFO".into(),
            traceback_level: "ERROR".into(),
            format: Value::Null,
            dateformat: None,
            static_fields: Map::new(),
            max_queue_size: 1000,
            dir: None,
            mode: None,
            file_size: 0,
            file_num: 0,
            loggers: BTreeMap::new(),
            deduplicate_heartbeat_logs: false,
        },
        restapi: RestApiConfig {
            listen_host: String::new(),
            listen_port: 0,
            connect_address: String::new(),
            authentication: None,
            tls: None,
            allowlist: Vec::new(),
            allowlist_include_members: false,
            http_extra_headers: BTreeMap::new(),
            https_extra_headers: BTreeMap::new(),
            request_queue_size: 5,
            server_tokens: "minimal".into(),
        },
        ctl: CtlConfig::default(),
        etcd: EtcdConfig::default(),
        tags: Tags::default(),
        guardian: garden_agent::config::GuardianConfig::default(),
        watchdog: WatchdogConfig {
            mode: WatchdogMode::Off,
            device: PathBuf::new(),
            driver: "default".into(),
            safety_margin: 5,
        },
        bootstrap: None,
        postgresql: PostgresConfig {
            listen_hosts: vec!["127.0.0.1".into()],
            port,
            connect_address: format!("127.0.0.1:{port}"),
            proxy_address: None,
            data_dir: dir.join("data"),
            config_dir: dir.join("data"),
            bin_dir: Some(bin_dir()),
            bin_name: BTreeMap::new(),
            pgpass: dir.join("pgpass"),
            superuser: user("super", "s:ecr\\et"),
            replication: user("repl", "replsecret"),
            rewind: None,
            database: "postgres".into(),
            config_base_name: "postgresql".into(),
            parameters: parameters
                .into_iter()
                .map(|(k, v)| (k.to_owned(), v))
                .collect(),
            parameters_by_role: BTreeMap::new(),
            pg_hba: Some(vec![
                "local all all scram-sha-256".into(),
                "host all all 127.0.0.1/32 scram-sha-256".into(),
                "host replication repl 127.0.0.1/32 scram-sha-256".into(),
            ]),
            pg_hba_by_role: BTreeMap::new(),
            pg_ident: None,
            pg_ident_by_role: BTreeMap::new(),
            recovery_conf: Map::new(),
            custom_conf: None,
            use_pg_rewind: false,
            rewind_options: Vec::new(),
            wipe_on_rewind_failure: false,
            wipe_on_divergence: false,
            create_replica_methods: vec![ReplicaMethod::Basebackup],
            methods: BTreeMap::new(),
            basebackup_options: Vec::new(),
            callbacks: BTreeMap::new(),
            pre_promote: None,
            before_stop: None,
            pg_ctl_timeout: Duration::from_secs(60),
            use_unix_socket: true,
            use_unix_socket_repl: false,
            krbsrvname: None,
        },
    }
}

fn initdb(node: &Node) {
    let password = node.dir.join("pw");
    fs::write(&password, "s:ecr\\et").expect("write");
    let output = Command::new(bin_dir().join("initdb"))
        .args(["--username=super", "--auth=scram-sha-256", "--no-sync"])
        .arg(format!("--pwfile={}", password.display()))
        .arg(format!("--pgdata={}", node.data().display()))
        .output()
        .expect("run initdb");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn answer(seen: &LocalPostgres) -> Option<SqlSample> {
    match &seen.sql {
        Sql::Sample(sample) => Some((**sample).clone()),
        _ => None,
    }
}

const PRIMARY: ConfState = ConfState {
    upstream: Upstream::None,
    as_primary: true,
    sync_names: None,
    generation: 1,
    standby: false,
    cut_off: false,
    bootstrap_trust: false,
    custom_recovery: None,
    keep_existing_recovery: false,
};

async fn started_primary(name: &str, port: u16, state: &mut ProbeState) -> Node {
    let mut node = Node::new(name, port);
    assert_eq!(pgdata::inspect(&node.ctx).await, DataDir::Empty);
    initdb(&node);
    node.start(&PRIMARY).await;
    node.until(state, answer).await;
    let client = connect::superuser(&node.ctx).await.expect("connect");
    let role = "CREATE ROLE repl LOGIN REPLICATION PASSWORD 'replsecret'";
    client.batch_execute(role).await.expect("create role");
    node
}

#[tokio::test]
async fn primary_and_standby_are_seen_as_they_are() {
    if again::done_as_postgres("primary_and_standby_are_seen_as_they_are") {
        return;
    }
    let mut state = ProbeState::default();
    let mut primary = started_primary("primary", 22010, &mut state).await;
    let seen = primary.sample(&mut state).await;
    assert_eq!(seen.data_dir, DataDir::Initialised);
    assert_eq!(seen.process, Process::Alive { pid: primary.pid() });
    assert_eq!((seen.signal_file, seen.promised), (false, None));
    let sample = answer(&seen).expect("answers");
    assert!(
        !sample.in_recovery && sample.flush_lsn > Lsn::NONE,
        "{sample:#?}"
    );
    assert_eq!(sample.timeline, Some(Timeline(1)));
    assert_eq!(sample.server_version / 10_000, seen.major_version);
    assert!(
        sample.postmaster_start_time.contains(' '),
        "{}",
        sample.postmaster_start_time
    );
    check_written(&primary);

    let upstream = Upstream::Member {
        name: "primary".into(),
        conn_url: String::from("postgres://127.0.0.1:22010/postgres"),
    };
    let mut standby = Node::new("standby", 22011);
    base_backup(&standby, &upstream).await;
    let follow = ConfState {
        upstream: upstream.clone(),
        as_primary: false,
        standby: true,
        ..PRIMARY
    };
    create_slot(&primary, "standby").await;
    standby.start(&follow).await;
    let mut standby_state = ProbeState::default();
    let streaming = standby
        .until(&mut standby_state, |seen| {
            let sample = answer(seen)?;
            let receiver = sample.receiver.clone()?;
            (receiver.status == "streaming" && seen.signal_file).then_some(sample)
        })
        .await;
    assert!(streaming.in_recovery && streaming.has_restore_command && !streaming.replay_paused);
    assert_eq!(streaming.timeline, Some(Timeline(1)));
    let receiver = streaming.receiver.expect("streams");
    assert_eq!(receiver.sender, Some(("127.0.0.1".into(), 22010)));
    assert_eq!(receiver.slot.as_deref(), Some("standby"));
    check_senders(&primary, &mut state).await;
    check_walsender(&primary, &standby, &upstream).await;
    check_slots(&primary, &mut state).await;
    check_slot_copy(&primary, &mut standby, &follow, &mut standby_state).await;
    check_promise(&mut standby, &upstream, &mut standby_state).await;
    check_shutdown(&mut primary, &mut state).await;
}

/// What a server would not start with is not in the file; the rest is, quoted.
fn check_written(node: &Node) {
    let text = fs::read_to_string(node.data().join("postgresql.conf")).expect("written");
    assert!(text.contains("include 'postgresql.base.conf'\n"), "{text}");
    assert!(
        text.contains("log_line_prefix = 'it''s \\\\ %p '\n"),
        "{text}"
    );
    assert!(text.contains("wal_keep_size = '48MB'\n") && !text.contains("wal_keep_segments"));
    assert!(
        text.contains("autovacuum_max_workers = '1'\n"),
        "clamped: {text}"
    );
    assert!(
        !text.contains("no_such_setting") && !text.contains("log_min_messages"),
        "{text}"
    );
    assert!(node.data().join("postgresql.base.conf").exists());
}

async fn base_backup(standby: &Node, upstream: &Upstream) {
    let conninfo = connect::conninfo(&standby.ctx, upstream, ConninfoKind::Basebackup).await;
    let conninfo = conninfo.expect("conninfo");
    assert!(!conninfo.contains("replsecret"), "{conninfo}");
    let passfile = standby.dir.join("pgpass");
    assert_eq!(
        fs::metadata(&passfile)
            .expect("written")
            .permissions()
            .mode()
            & 0o777,
        0o600
    );
    let output = Command::new(bin_dir().join("pg_basebackup"))
        .args([
            "-X",
            "stream",
            "--checkpoint=fast",
            "--no-sync",
            "-w",
            "--dbname",
            &conninfo,
        ])
        .arg(format!("--pgdata={}", standby.data().display()))
        .output()
        .expect("run pg_basebackup");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    fs::write(
        standby.data().join("postgresql.auto.conf"),
        "# kept\nprimary_conninfo = 'host=nowhere'\nwork_mem = '5MB'\n",
    )
    .expect("write");
}

async fn create_slot(primary: &Node, name: &str) {
    let plan = SlotPlan {
        create_physical: vec![name.into()],
        ..SlotPlan::default()
    };
    assert_eq!(
        slots::carry_out(&primary.ctx, &plan).await,
        Vec::<String>::new()
    );
    // Ordering the same again changes nothing.
    assert_eq!(
        slots::carry_out(&primary.ctx, &plan).await,
        Vec::<String>::new()
    );
}

async fn check_senders(primary: &Node, state: &mut ProbeState) {
    let sample = primary
        .until(state, |seen| {
            let sample = answer(seen)?;
            sample
                .wal_senders
                .iter()
                .any(|s| s.state == "streaming")
                .then_some(sample)
        })
        .await;
    let sender = sample.wal_senders.first().expect("one");
    assert_eq!(sender.application_name, "standby");
    assert_eq!(sender.usename.as_deref(), Some("repl"));
    assert_eq!(sender.client_addr.as_deref(), Some("127.0.0.1"));
    assert_eq!(sender.sync_state, "async");
    let slot = sample
        .slots
        .iter()
        .find(|slot| slot.name == "standby")
        .expect("the slot");
    assert!(slot.active && !slot.logical && !slot.lost);
}

async fn check_walsender(primary: &Node, standby: &Node, upstream: &Upstream) {
    let control = controldata::read(&primary.ctx).await.expect("control data");
    for client in [
        connect::replication_local(&primary.ctx)
            .await
            .expect("local"),
        connect::replication(&standby.ctx, upstream, Role::Replication)
            .await
            .expect("remote"),
    ] {
        let answer = client
            .simple_query("IDENTIFY_SYSTEM")
            .await
            .expect("walsender");
        let found = answer.iter().any(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => {
                row.get(0) == Some(control.system_id.to_string().as_str())
            }
            _ => false,
        });
        assert!(found, "{answer:?}");
    }
    let client = connect::remote(&standby.ctx, upstream, Role::Rewind)
        .await
        .expect("remote");
    let row = client
        .query_one("SHOW statement_timeout", &[])
        .await
        .expect("query");
    assert_eq!(row.get::<_, String>(0), "2s");
}

async fn check_slots(primary: &Node, state: &mut ProbeState) {
    let sample = primary.until(state, answer).await;
    let plan = SlotPlan {
        create_physical: vec!["p".into()],
        create_logical: vec![("l".into(), "postgres".into(), "pgoutput".into())],
        ..SlotPlan::default()
    };
    assert_eq!(
        slots::carry_out(&primary.ctx, &plan).await,
        Vec::<String>::new()
    );
    let client = connect::superuser(&primary.ctx).await.expect("connect");
    client
        .batch_execute("CREATE TABLE t AS SELECT generate_series(1,1000)")
        .await
        .expect("write");
    let end = primary
        .until(state, |s| answer(s).filter(|s| s.slots.len() == 3))
        .await
        .flush_lsn;
    assert!(end > sample.flush_lsn);
    let plan = SlotPlan {
        advance: vec![("p".into(), end)],
        ..SlotPlan::default()
    };
    for time in ["once", "twice"] {
        let problems = slots::carry_out(&primary.ctx, &plan).await;
        assert_eq!(problems, Vec::<String>::new(), "{time}");
    }
    let copies = [("l".to_owned(), "postgres".to_owned(), end)];
    let stopped = CancellationToken::new();
    stopped.cancel();
    slots::advance_copies(&primary.ctx, &copies, &stopped).await;
    let before = primary.until(state, answer).await;
    let confirmed = |sample: &SqlSample| {
        let slot = sample.slots.iter().find(|slot| slot.name == "l");
        slot.expect("exists").confirmed_flush_lsn
    };
    assert!(
        confirmed(&before) < end,
        "whoever is told to stop begins nothing"
    );
    slots::advance_copies(&primary.ctx, &copies, &CancellationToken::new()).await;
    let sample = primary.until(state, answer).await;
    let slot = |name: &str| {
        sample
            .slots
            .iter()
            .find(|s| s.name == name)
            .expect("exists")
            .clone()
    };
    assert_eq!(slot("p").restart_lsn, end);
    assert_eq!(slot("l").confirmed_flush_lsn, end);
    assert_eq!(slot("l").plugin.as_deref(), Some("pgoutput"));
    let plan = SlotPlan {
        drop: vec!["p".into(), "l".into(), "gone".into()],
        ..SlotPlan::default()
    };
    assert_eq!(
        slots::carry_out(&primary.ctx, &plan).await,
        Vec::<String>::new()
    );
    let sample = primary.until(state, answer).await;
    assert_eq!(sample.slots.len(), 1, "{:?}", sample.slots);
}

/// A logical slot of the leader exists on the standby after a copy and a restart, and is moved on there.
async fn check_slot_copy(
    primary: &Node,
    standby: &mut Node,
    follow: &ConfState,
    state: &mut ProbeState,
) {
    let logical = (
        "copied".to_owned(),
        "postgres".to_owned(),
        "pgoutput".to_owned(),
    );
    let plan = SlotPlan {
        create_logical: vec![logical],
        ..SlotPlan::default()
    };
    assert_eq!(
        slots::carry_out(&primary.ctx, &plan).await,
        Vec::<String>::new()
    );
    let names = ["copied".to_owned(), "gone".to_owned()];
    let files = slots::fetch(&standby.ctx, &follow.upstream, &names)
        .await
        .expect("fetch");
    assert_eq!(files.len(), 1);
    standby.stop(Signal::SIGINT);
    slots::install(&standby.data(), &files).expect("install");
    standby.start(follow).await;
    let copied = standby
        .until(state, |seen| {
            answer(seen)?.slots.into_iter().find(|s| s.name == "copied")
        })
        .await;
    assert!(
        copied.logical && copied.confirmed_flush_lsn > Lsn::NONE && !copied.lost,
        "{copied:?}"
    );
    assert_eq!(copied.confirmed_flush_lsn, files[0].confirmed);
    let client = connect::superuser(&primary.ctx).await.expect("connect");
    let sql = "CREATE TABLE moved AS SELECT generate_series(1,1000)";
    client.batch_execute(sql).await.expect("write");
    let end = primary
        .until(&mut ProbeState::default(), answer)
        .await
        .flush_lsn;
    standby
        .until(state, |seen| {
            answer(seen).filter(|sample| sample.replay_lsn >= end)
        })
        .await;
    let copies = [("copied".to_owned(), "postgres".to_owned(), end)];
    slots::advance_copies(&standby.ctx, &copies, &CancellationToken::new()).await;
    let moved = standby
        .until(state, |seen| {
            answer(seen)?.slots.into_iter().find(|s| s.name == "copied")
        })
        .await;
    assert_eq!(moved.confirmed_flush_lsn, end);
}

/// A promise not to follow stops the receiver with a reload, and only recovery settings of ours are in
/// the files.
async fn check_promise(standby: &mut Node, upstream: &Upstream, state: &mut ProbeState) {
    let auto = fs::read_to_string(standby.data().join("postgresql.auto.conf")).expect("read");
    assert_eq!(auto, "# kept\nwork_mem = '5MB'\n");
    let cut = ConfState {
        upstream: upstream.clone(),
        as_primary: false,
        standby: true,
        cut_off: true,
        ..PRIMARY
    };
    assert!(
        conf::write(&standby.ctx, &cut)
            .await
            .expect("write")
            .changed
    );
    assert!(
        !conf::write(&standby.ctx, &cut)
            .await
            .expect("write")
            .changed,
        "the same again"
    );
    standby.signal(Signal::SIGHUP);
    let sample = standby
        .until(state, |seen| answer(seen).filter(|s| s.receiver.is_none()))
        .await;
    assert!(!sample.has_restore_command);
    assert_eq!(
        sample.timeline,
        Some(Timeline(1)),
        "known without a receiver"
    );
    assert!(sample.receive_lsn > Lsn::NONE);
    standby.stop(Signal::SIGINT);
}

async fn check_shutdown(primary: &mut Node, state: &mut ProbeState) {
    primary.stop(Signal::SIGINT);
    let seen = primary.sample(state).await;
    assert_eq!((seen.process, &seen.sql), (Process::Gone, &Sql::None));
    let control = seen.control.expect("read");
    assert_eq!(control.state, ControlState::ShutDown);
    assert!(control.rewindable, "wal_log_hints is on");
    let end = control.checkpoint_end.expect("pg_waldump knows");
    assert!(
        end > control.checkpoint && end.bytes_ahead_of(control.checkpoint) < 256,
        "{end}"
    );
    assert_eq!(
        controldata::checkpoint_end(&primary.ctx, &control).await,
        Some(end)
    );
}

#[tokio::test]
async fn frozen_and_unwilling_servers_get_their_verdict_in_time() {
    if again::done_as_postgres("frozen_and_unwilling_servers_get_their_verdict_in_time") {
        return;
    }
    let mut state = ProbeState::default();
    let mut node = started_primary("verdicts", 22020, &mut state).await;
    let client = connect::superuser_to(&node.ctx, None, "test")
        .await
        .expect("connect");
    let query = "SELECT pid FROM pg_stat_activity WHERE application_name = 'Patroni heartbeat'";
    let rows = client.query(query, &[]).await.expect("query");
    let backends: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    let backend = *backends.first().expect("the probe's own");

    kill(Pid::from_raw(backend), Signal::SIGSTOP).expect("freeze");
    assert_eq!(timed(&node, &mut state).await, Sql::Silent);
    // Another session is served meanwhile, so the next look sees the server.
    node.until(&mut state, answer).await;
    kill(Pid::from_raw(backend), Signal::SIGCONT).expect("thaw");

    node.signal(Signal::SIGSTOP);
    assert_eq!(timed(&node, &mut ProbeState::default()).await, Sql::Silent);
    node.signal(Signal::SIGCONT);

    check_pending(&mut node, &mut state).await;
    check_sync_names(&node, &mut state).await;

    // A smart shutdown waits for the session above and lets nobody in.
    node.signal(Signal::SIGTERM);
    let mut fresh = ProbeState::default();
    node.until(&mut fresh, |seen| {
        (seen.sql == Sql::Rejecting).then_some(())
    })
    .await;
    drop(client);
    drop(state);
    let mut server = node.server.take().expect("runs");
    let started = Instant::now();
    // Not a blocking wait: the closed sessions say good-bye in tasks of this thread.
    while server.try_wait().expect("wait").is_none() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "{}",
            node.log()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let seen = node.sample(&mut fresh).await;
    assert_eq!((seen.process, seen.sql), (Process::Gone, Sql::None));
    assert!(matches!(
        connect::superuser(&node.ctx).await,
        Err(connect::ConnectError::Refused(_))
    ));
}

async fn timed(node: &Node, state: &mut ProbeState) -> Sql {
    let started = Instant::now();
    let seen = node.sample(state).await;
    let took = started.elapsed();
    assert!(
        took < probe::SQL_LIMIT + Duration::from_millis(700),
        "{took:?}"
    );
    assert_eq!(seen.process, Process::Alive { pid: node.pid() });
    seen.sql
}

/// A changed setting that needs a restart is shown with both values, in units.
async fn check_pending(node: &mut Node, state: &mut ProbeState) {
    node.configure(|pg| {
        pg.parameters.insert("max_connections".into(), json!(50));
        pg.parameters.insert("shared_buffers".into(), json!("32MB"));
        pg.parameters.insert("work_mem".into(), json!("5MB"));
    });
    let client = connect::superuser(&node.ctx).await.expect("connect");
    let running = conf::running_settings(&client).await.expect("settings");
    let wanted = conf::wanted_settings(&node.ctx, &PRIMARY)
        .await
        .expect("settings");
    let changes = conf::changed_settings(&wanted, &wanted, &running);
    let changed = |old: &str, new: &str| (old.to_owned(), Some(new.to_owned()));
    assert_eq!(
        changes.restart.get("max_connections"),
        Some(&changed("40", "50"))
    );
    assert_eq!(
        changes.reload,
        BTreeMap::from([("work_mem".into(), changed("4MB", "5MB"))])
    );

    assert!(
        conf::write(&node.ctx, &PRIMARY)
            .await
            .expect("write")
            .changed
    );
    state.conf.generation += 1;
    node.signal(Signal::SIGHUP);
    let pending = node
        .until(state, |seen| {
            answer(seen)
                .map(|s| s.pending_restart)
                .filter(|p| p.len() == 2)
        })
        .await;
    let both = |old: &str, new: &str| (old.to_owned(), new.to_owned());
    assert_eq!(pending.get("max_connections"), Some(&both("40", "50")));
    assert_eq!(pending.get("shared_buffers"), Some(&both("16MB", "32MB")));
}

async fn check_sync_names(node: &Node, state: &mut ProbeState) {
    let sync = ConfState {
        sync_names: Some("ANY 1 (a,\"b-c\")".into()),
        ..PRIMARY
    };
    conf::write(&node.ctx, &sync).await.expect("write");
    node.signal(Signal::SIGHUP);
    node.until(state, |seen| {
        (answer(seen)?.synchronous_standby_names == "ANY 1 (a,\"b-c\")").then_some(())
    })
    .await;
}

/// One self-signed certificate that is CA and server at once is accepted, another CA is not, and a
/// missing one means "do not verify".
#[tokio::test]
async fn a_leaf_that_is_its_own_anchor_is_accepted() {
    if again::done_as_postgres("a_leaf_that_is_its_own_anchor_is_accepted") {
        return;
    }
    let mut node = Node::new("tls", 22030);
    initdb(&node);
    let cert = node.dir.join("server.crt");
    let key = node.dir.join("server.key");
    for (cert, key) in [
        (&cert, &key),
        (&node.dir.join("other.crt"), &node.dir.join("other.key")),
    ] {
        self_signed(cert, key);
    }
    let (cert_text, key_text) = (
        cert.to_string_lossy().into_owned(),
        key.to_string_lossy().into_owned(),
    );
    node.configure(|pg| {
        pg.parameters.insert("ssl".into(), json!(true));
        pg.parameters
            .insert("ssl_cert_file".into(), json!(cert_text.clone()));
        pg.parameters.insert("ssl_key_file".into(), json!(key_text));
        pg.pg_hba = Some(vec!["hostssl all all 127.0.0.1/32 scram-sha-256".into()]);
        pg.use_unix_socket = false;
    });
    node.start(&PRIMARY).await;
    node.until(&mut ProbeState::default(), answer).await;
    let other = node.dir.join("other.crt").to_string_lossy().into_owned();
    for (mode, root, binding, works) in [
        ("verify-full", Some(&cert_text), "require", true),
        ("verify-ca", Some(&cert_text), "prefer", true),
        ("verify-ca", Some(&other), "prefer", false),
        ("require", None, "prefer", true),
        ("disable", None, "prefer", false),
    ] {
        node.configure(|pg| {
            let mut options = BTreeMap::from([
                ("sslmode".to_owned(), mode.to_owned()),
                ("channel_binding".to_owned(), binding.to_owned()),
            ]);
            options.extend(root.map(|root| ("sslrootcert".to_owned(), root.clone())));
            pg.superuser.options = options;
        });
        let result = connect::superuser(&node.ctx).await;
        assert_eq!(result.is_ok(), works, "{mode} {root:?}: {:?}", result.err());
    }
}

fn self_signed(cert: &Path, key: &Path) {
    let pair = rcgen::KeyPair::generate().expect("key");
    let mut params =
        rcgen::CertificateParams::new(vec!["127.0.0.1".into(), "localhost".into()]).expect("names");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let made = params.self_signed(&pair).expect("certificate");
    fs::write(cert, made.pem()).expect("write");
    fs::write(key, pair.serialize_pem()).expect("write");
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).expect("mode");
}
