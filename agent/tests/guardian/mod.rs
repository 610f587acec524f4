//! A PostgreSQL of its own under a guardian of its own, as the user `postgres`.

#[path = "../common/again.rs"]
mod again;

use garden_agent::guardian::fence::{Scope, Sweeper};
use garden_agent::guardian::{
    self, AttachOptions, GuardianClient, GuardianError, GuardianEvent, Hello,
};
use proto::time::MonoTime;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;

const BIN: &str = "/usr/lib/postgresql/15/bin";

/// Longest wait for anything that must happen.
pub const LIMIT: Duration = Duration::from_secs(20);

/// F of the default profile.
pub const FENCE_BOUND: Duration = Duration::from_millis(500);

/// Runs a test as the user `postgres`; `test` is its own name.
pub fn as_postgres(test: &str, body: impl FnOnce()) {
    // Its own run takes the lock, too, by making a cluster.
    let alone = nix::unistd::geteuid().is_root().then(|| {
        ALONE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    });
    let done = again::done_as_postgres(test);
    drop(alone);
    if !done {
        body();
    }
}

fn options(dir: &Path) -> AttachOptions {
    AttachOptions {
        program: PathBuf::from(env!("CARGO_BIN_EXE_garden-agent")),
        log: Some(dir.with_extension("guardian.log")),
        fence_bound: FENCE_BOUND,
        ..AttachOptions::default()
    }
}

fn run(program: &str, args: &[&str]) {
    let output = Command::new(format!("{BIN}/{program}"))
        .args(args)
        .output()
        .expect(program);
    assert!(
        output.status.success(),
        "{program}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// A data directory, and whatever runs in it.
pub struct Cluster {
    pub dir: PathBuf,
    port: u16,
    pub runtime: tokio::runtime::Runtime,
    _alone: MutexGuard<'static, ()>,
}

/// One at a time: delays are measured.
static ALONE: Mutex<()> = Mutex::new(());

/// The client's end of a guardian.
pub struct Agent {
    pub client: GuardianClient,
    pub events: mpsc::Receiver<GuardianEvent>,
    pub hello: Hello,
}

impl Cluster {
    pub fn new(name: &str, port: u16) -> Self {
        let alone = ALONE
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        let dir = std::env::temp_dir().join(format!("garden-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&dir);
        run(
            "initdb",
            &[
                "-N",
                "-A",
                "trust",
                "-U",
                "postgres",
                "-D",
                dir.to_str().expect("text"),
            ],
        );
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("runtime");
        Self {
            dir,
            port,
            runtime,
            _alone: alone,
        }
    }

    /// An agent: finds or starts the guardian.
    pub fn agent(&self) -> Agent {
        let (client, events, hello) =
            GuardianClient::attach(&self.dir, options(&self.dir)).expect("guardian");
        Agent {
            client,
            events,
            hello,
        }
    }

    /// The same, with PostgreSQL in a PID namespace.
    pub fn strict_agent(&self) -> Agent {
        let options = AttachOptions {
            namespace: true,
            ..options(&self.dir)
        };
        let (client, events, hello) = GuardianClient::attach(&self.dir, options).expect("guardian");
        Agent {
            client,
            events,
            hello,
        }
    }

    pub fn second_agent(&self) -> Result<(), guardian::GuardianError> {
        GuardianClient::attach(&self.dir, options(&self.dir)).map(drop)
    }

    fn settings(&self) -> Vec<String> {
        let dir = self.dir.to_str().expect("text");
        let mut words: Vec<String> =
            vec!["-D".into(), dir.into(), "-p".into(), self.port.to_string()];
        let fast = "autovacuum=off max_connections=60 fsync=off restart_after_crash=off";
        let mut all: Vec<String> = fast.split(' ').map(String::from).collect();
        all.push(format!("unix_socket_directories={dir}"));
        all.push(String::from("listen_addresses=127.0.0.1"));
        words.extend(all.into_iter().flat_map(|setting| ["-c".into(), setting]));
        words
    }

    /// Starts PostgreSQL through the guardian and waits until it can be used.
    pub fn start(&self, agent: &Agent) -> i32 {
        self.try_start(agent, false).expect("start")
    }

    /// The same, only while a deadline stands if it is `bounded`.
    pub fn try_start(&self, agent: &Agent, bounded: bool) -> Result<i32, GuardianError> {
        let mut command = vec![OsString::from(format!("{BIN}/postgres"))];
        command.extend(self.settings().into_iter().map(OsString::from));
        let env = vec![(OsString::from("PATH"), OsString::from("/usr/bin:/bin"))];
        let log = self.dir.with_extension("log");
        let start = agent
            .client
            .start_postmaster(command, env, Some(log), bounded);
        let pid = self.runtime.block_on(start)?;
        self.wait_until_ready();
        Ok(pid)
    }

    /// Starts PostgreSQL behind the guardian's back; returns the pid of the postmaster.
    pub fn start_by_hand(&self) -> i32 {
        let words = self.settings();
        let rest: Vec<&str> = words.iter().skip(2).map(String::as_str).collect();
        let log = self.dir.with_extension("log");
        let log = log.to_str().expect("text");
        let dir = self.dir.to_str().expect("text");
        run(
            "pg_ctl",
            &["start", "-w", "-D", dir, "-l", log, "-o", &rest.join(" ")],
        );
        self.pid_in_file()
    }

    /// What `postmaster.pid` says.
    pub fn pid_in_file(&self) -> i32 {
        let file =
            std::fs::read_to_string(self.dir.join("postmaster.pid")).expect("postmaster.pid");
        file.lines()
            .next()
            .and_then(|line| line.parse().ok())
            .expect("pid")
    }

    pub fn stop_by_hand(&self, mode: &str) {
        run(
            "pg_ctl",
            &[
                "stop",
                "-w",
                "-m",
                mode,
                "-D",
                self.dir.to_str().expect("text"),
            ],
        );
    }

    fn config(&self) -> tokio_postgres::Config {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.dir)
            .port(self.port)
            .user("postgres")
            .dbname("postgres");
        config.connect_timeout(Duration::from_secs(2));
        config
    }

    pub async fn connect(&self) -> Result<tokio_postgres::Client, tokio_postgres::Error> {
        let (client, connection) = self.config().connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    fn wait_until_ready(&self) {
        let begin = Instant::now();
        self.runtime.block_on(async {
            while self.connect().await.is_err() {
                assert!(
                    begin.elapsed() < LIMIT,
                    "PostgreSQL does not accept connections"
                );
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        });
    }

    /// Busy sessions: some commit from the client, some are in a loop inside the server.
    pub fn load(&self, clients: usize, loops: usize) -> Load {
        self.runtime.block_on(async {
            let client = self.connect().await.expect("connect");
            let ddl = "create table if not exists t(at timestamptz default clock_timestamp())";
            client.batch_execute(ddl).await.expect("table");
        });
        let mut load = Load {
            last_ack: Arc::default(),
            stop: Arc::default(),
            threads: Vec::new(),
        };
        let connected = Arc::new(AtomicUsize::new(0));
        for n in 0..clients + loops {
            let config = self.config();
            let (last, stop) = (Arc::clone(&load.last_ack), Arc::clone(&load.stop));
            let connected = Arc::clone(&connected);
            let inside = n
                .checked_sub(clients)
                .map(|n| if n % 2 == 0 { BUSY } else { COMMITTING });
            load.threads.push(std::thread::spawn(move || {
                let runtime = tokio::runtime::Builder::new_current_thread()
                    .enable_all()
                    .build();
                runtime
                    .expect("runtime")
                    .block_on(session(config, inside, &connected, &last, &stop));
            }));
        }
        let begin = Instant::now();
        let acknowledged = || clients == 0 || load.last_ack.load(Ordering::SeqCst) > 0;
        while connected.load(Ordering::SeqCst) < clients || !acknowledged() {
            assert!(begin.elapsed() < LIMIT, "no load");
            std::thread::sleep(Duration::from_millis(5));
        }
        self.runtime.block_on(async {
            let client = self.connect().await.expect("connect");
            let busy =
                "select count(*) from pg_stat_activity where state = 'active' and query ~ '^do'";
            while client
                .query_one(busy, &[])
                .await
                .expect("count")
                .get::<_, i64>(0)
                < loops as i64
            {
                assert!(begin.elapsed() < LIMIT, "no load inside the server");
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        load
    }

    /// Living processes of this PostgreSQL.
    pub fn alive(&self) -> u32 {
        let scope = Scope {
            data_dir: Some(self.dir.as_os_str().as_bytes()),
            ..Scope::default()
        };
        Sweeper::default().count(&scope).alive
    }

    /// Every process of this PostgreSQL and of its guardian, as pids.
    pub fn everybody(&self, guardian: i32) -> Vec<i32> {
        let mut list = Vec::new();
        guardian::proc::all(&mut list).expect("/proc");
        let dir = self.dir.as_os_str().as_bytes();
        let ours = |pid, parent| {
            pid == guardian || parent == guardian || guardian::proc::is_server_in(pid, dir)
        };
        list.iter()
            .filter(|p| p.is_alive() && ours(p.pid, p.parent))
            .map(|p| p.pid)
            .collect()
    }

    /// Waits until no process is left; returns when that was.
    pub fn wait_empty(&self) -> MonoTime {
        let begin = Instant::now();
        while self.alive() > 0 {
            assert!(
                begin.elapsed() < LIMIT,
                "{} processes are left",
                self.alive()
            );
            std::thread::sleep(Duration::from_millis(1));
        }
        garden_agent::clock::now()
    }

    /// Waits until somebody has taken the status of a process that has ended. Only a postmaster that the
    /// guardian starts knows how to live without that.
    pub fn wait_reaped(&self, pid: i32) {
        let begin = Instant::now();
        while guardian::proc::Process::read(pid).is_some() {
            assert!(begin.elapsed() < LIMIT, "process {pid} is not reaped");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// When the last row that is in the table was written, by the wall clock.
    pub fn last_commit(&self, agent: &Agent) -> std::time::SystemTime {
        self.start(agent);
        self.runtime.block_on(async {
            let client = self.connect().await.expect("connect");
            let row = client
                .query_one("select max(at) from t", &[])
                .await
                .expect("query");
            row.get(0)
        })
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let scope = Scope {
            data_dir: Some(self.dir.as_os_str().as_bytes()),
            ..Scope::default()
        };
        guardian::fence::sweep(&scope, LIMIT);
        if std::thread::panicking() {
            for log in ["guardian.log", "log"] {
                let text =
                    std::fs::read_to_string(self.dir.with_extension(log)).unwrap_or_default();
                eprintln!("--- {log}\n{text}");
            }
        }
        let _ = std::fs::remove_dir_all(&self.dir);
        for log in ["guardian.log", "log"] {
            let _ = std::fs::remove_file(self.dir.with_extension(log));
        }
    }
}

/// Sessions under load.
pub struct Load {
    last_ack: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Load {
    /// Waits for the sessions to end; returns when the last commit was acknowledged.
    pub fn last_ack(self) -> MonoTime {
        self.stop.store(true, Ordering::SeqCst);
        for thread in self.threads {
            thread.join().expect("session");
        }
        MonoTime(self.last_ack.load(Ordering::SeqCst))
    }
}

/// Never looks whether the postmaster lives: only the death of the backend ends it.
const BUSY: &str = "do $$ begin loop perform 1; end loop; end $$";

/// Commits without a client.
const COMMITTING: &str = "do $$ begin loop insert into t default values; commit; end loop; end $$";

async fn session(
    config: tokio_postgres::Config,
    inside: Option<&str>,
    connected: &AtomicUsize,
    last: &AtomicU64,
    stop: &AtomicBool,
) {
    let Ok((client, connection)) = config.connect(tokio_postgres::NoTls).await else {
        return;
    };
    tokio::spawn(connection);
    connected.fetch_add(1, Ordering::SeqCst);
    if let Some(endless) = inside {
        let _ = client.batch_execute(endless).await;
        return;
    }
    while !stop.load(Ordering::SeqCst) {
        if client
            .execute("insert into t default values", &[])
            .await
            .is_err()
        {
            return;
        }
        last.fetch_max(garden_agent::clock::now().0, Ordering::SeqCst);
    }
}

impl Agent {
    /// The next event that is wanted; the ones before it are dropped, and returned on the way.
    pub fn wait_for(&mut self, wanted: impl Fn(&GuardianEvent) -> bool) -> Vec<GuardianEvent> {
        let begin = Instant::now();
        let mut seen = Vec::new();
        loop {
            match self.events.try_recv() {
                Ok(event) => {
                    let found = wanted(&event);
                    seen.push(event);
                    if found {
                        return seen;
                    }
                }
                Err(_) => {
                    assert!(
                        begin.elapsed() < LIMIT,
                        "event did not come; seen: {seen:?}"
                    );
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    }

    /// Has a deadline so far ahead confirmed; returns it.
    pub fn arm(&mut self, epoch: u64, ahead: Duration) -> MonoTime {
        let deadline = garden_agent::clock::now() + ahead;
        self.client
            .arm(proto::ids::Epoch(epoch), deadline)
            .expect("arm");
        self.wait_for(|event| matches!(event, GuardianEvent::Armed(a) if a.deadline == deadline));
        deadline
    }
}

/// Sends a signal to a process that this test may signal.
pub fn kill(pid: i32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("kill");
}
