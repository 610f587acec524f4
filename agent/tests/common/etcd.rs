//! Real etcd servers for tests: started on loopback, frozen, killed, restarted, and gone at the end.
//!
//! `GARDEN_ETCD` names another binary than the one in `PATH`.
#![allow(dead_code, reason = "each test program uses a part of it")]

use garden_agent::config::EtcdConfig;
use garden_agent::etcd::{Etcd, EtcdEvent};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::dcs::Keyspace;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

/// Longest wait for anything in these tests.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Ports of the test programs. Each starts somewhere else, so that two do not ask for the same at once.
const FIRST_PORT: u16 = 21000;
const PORTS: u16 = 900;

/// A port that nobody listens on.
pub fn free_port() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let start = u16::try_from(std::process::id() % u32::from(PORTS)).expect("it is below PORTS");
    for _ in 0..PORTS {
        let port = FIRST_PORT + (start + NEXT.fetch_add(1, Ordering::Relaxed)) % PORTS;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port is free");
}

/// TLS files for servers that want client certificates.
#[derive(Clone)]
pub struct TlsFiles {
    /// The CA's certificate.
    pub ca: PathBuf,
    /// Certificate of server and client.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// One server.
pub struct Server {
    args: Vec<String>,
    data_dir: PathBuf,
    /// Its client port.
    pub port: u16,
    tls: bool,
    child: Option<Child>,
}

impl Server {
    fn spawn(&mut self) {
        let binary = std::env::var("GARDEN_ETCD").unwrap_or_else(|_| String::from("etcd"));
        let log = std::fs::File::create(self.data_dir.with_extension("log")).expect("create a log");
        let mut command = Command::new(binary);
        command
            .args(&self.args)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        command.env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH);
        // SAFETY: the closure makes one system call and allocates nothing.
        unsafe {
            command.pre_exec(|| {
                nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(std::io::Error::from)
            });
        }
        self.child = Some(command.spawn().expect("start etcd"));
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let pid = Pid::from_raw(i32::try_from(child.id()).expect("pids are positive"));
            kill(pid, signal).expect("signal etcd");
        }
    }

    /// SIGSTOP: accepts connections and never answers.
    pub fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    /// SIGCONT.
    pub fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts again with what it had on disk.
    pub fn restart(&mut self) {
        self.kill();
        self.spawn();
    }

    /// Starts again with nothing: another cluster.
    pub fn wipe(&mut self) {
        self.kill();
        std::fs::remove_dir_all(&self.data_dir).expect("remove the data directory");
        let token = self
            .args
            .iter_mut()
            .find(|a| a.starts_with("--initial-cluster-token"));
        token.expect("it is always given").push('x');
        self.spawn();
    }

    /// What clients connect to.
    pub fn url(&self) -> String {
        format!(
            "{}://127.0.0.1:{}",
            if self.tls { "https" } else { "http" },
            self.port
        )
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = std::fs::remove_dir_all(&self.data_dir);
        let _ = std::fs::remove_file(self.data_dir.with_extension("log"));
    }
}

/// A directory for one test, removed by whoever made it.
pub fn scratch(what: &str) -> PathBuf {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let count = NEXT.fetch_add(1, Ordering::Relaxed);
    std::env::temp_dir().join(format!("garden-{what}-{}-{count}", std::process::id()))
}

/// A cluster.
pub struct Cluster {
    /// Its servers.
    pub servers: Vec<Server>,
}

impl Cluster {
    /// Starts `count` servers, and does not wait for them.
    pub fn launch(count: usize, tls: Option<&TlsFiles>) -> Self {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let ports: Vec<(u16, u16)> = (0..count).map(|_| (free_port(), free_port())).collect();
        let members: Vec<String> = ports
            .iter()
            .enumerate()
            .map(|(at, (_, peer))| format!("e{at}=http://127.0.0.1:{peer}"))
            .collect();
        let token = ports
            .first()
            .map_or_else(String::new, |(port, _)| format!("t{port}"));
        let server = |(at, (port, peer)): (usize, &(u16, u16))| {
            let data_dir = scratch("etcd");
            let client_url = format!("{scheme}://127.0.0.1:{port}");
            let peer_url = format!("http://127.0.0.1:{peer}");
            let mut args = vec![
                format!("--name=e{at}"),
                format!("--data-dir={}", data_dir.display()),
                format!("--listen-client-urls={client_url}"),
                format!("--advertise-client-urls={client_url}"),
                format!("--listen-peer-urls={peer_url}"),
                format!("--initial-advertise-peer-urls={peer_url}"),
                format!("--initial-cluster={}", members.join(",")),
                format!("--initial-cluster-token={token}"),
                String::from("--heartbeat-interval=50"),
                String::from("--election-timeout=500"),
                String::from("--log-level=warn"),
                String::from("--logger=zap"),
            ];
            if let Some(files) = tls {
                args.extend([
                    format!("--cert-file={}", files.cert.display()),
                    format!("--key-file={}", files.key.display()),
                    format!("--trusted-ca-file={}", files.ca.display()),
                    String::from("--client-cert-auth"),
                ]);
            }
            let tls = tls.is_some();
            let mut server = Server {
                args,
                data_dir,
                port: *port,
                tls,
                child: None,
            };
            server.spawn();
            server
        };
        Self {
            servers: ports.iter().enumerate().map(server).collect(),
        }
    }

    /// Starts `count` servers and waits until they answer.
    pub async fn start(count: usize) -> Self {
        let cluster = Self::launch(count, None);
        cluster.ready(&cluster.config()).await;
        cluster
    }

    /// Waits until a linearizable read works.
    pub async fn ready(&self, config: &EtcdConfig) {
        let etcd = Etcd::open(config, keyspace()).expect("the configuration is fine");
        let deadline = Instant::now() + PATIENCE;
        loop {
            match etcd.read(Duration::from_secs(1)).await {
                Ok(_) => return,
                Err(err) => assert!(Instant::now() < deadline, "etcd does not come up: {err}"),
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All of its endpoints.
    pub fn config(&self) -> EtcdConfig {
        config(self.servers.iter().map(Server::url))
    }

    /// The library's own client, for what the agent never does.
    pub async fn admin(&self) -> etcd_client::Client {
        let url = self.servers.first().expect("there is a server").url();
        etcd_client::Client::connect([url], None)
            .await
            .expect("connect")
    }
}

/// A configuration with just these endpoints.
pub fn config(endpoints: impl IntoIterator<Item = String>) -> EtcdConfig {
    EtcdConfig {
        endpoints: endpoints.into_iter().collect(),
        ..EtcdConfig::default()
    }
}

/// Where the tests write.
pub fn keyspace() -> Keyspace {
    Keyspace::new("service", "demo")
}

/// Waits for an event that `pick` takes, and drops the others.
pub async fn wait_for<T>(
    events: &mut mpsc::Receiver<EtcdEvent>,
    what: &str,
    mut pick: impl FnMut(&EtcdEvent) -> Option<T>,
) -> T {
    let found = timeout(PATIENCE, async {
        loop {
            let event = events.recv().await.expect("the driver lives");
            if let Some(found) = pick(&event) {
                return found;
            }
        }
    });
    found
        .await
        .unwrap_or_else(|_| panic!("no {what} within {PATIENCE:?}"))
}

/// Asserts that no event that `pick` takes arrives within `quiet`.
pub async fn stays_quiet(
    events: &mut mpsc::Receiver<EtcdEvent>,
    quiet: Duration,
    mut pick: impl FnMut(&EtcdEvent) -> bool,
) {
    let end = Instant::now() + quiet;
    while let Ok(event) = tokio::time::timeout_at(end, events.recv()).await {
        let event = event.expect("the driver lives");
        assert!(!pick(&event), "unexpected {event:?}");
    }
}

/// A TCP relay that can be cut.
pub struct Relay {
    /// Where it listens.
    pub port: u16,
    target: u16,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Relay {
    /// Relays to `target`.
    pub async fn start(target: u16) -> Self {
        let mut relay = Self {
            port: free_port(),
            target,
            task: None,
        };
        relay.mend().await;
        relay
    }

    /// Ends all connections and refuses new ones.
    pub async fn cut(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            let _ = task.await;
        }
    }

    /// Relays again.
    pub async fn mend(&mut self) {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", self.port))
            .await
            .expect("bind");
        let target = self.target;
        self.task = Some(tokio::spawn(async move {
            let mut pairs = JoinSet::new();
            while let Ok((mut inside, _)) = listener.accept().await {
                pairs.spawn(async move {
                    if let Ok(mut outside) = TcpStream::connect(("127.0.0.1", target)).await {
                        let _ = tokio::io::copy_bidirectional(&mut inside, &mut outside).await;
                    }
                });
            }
        }));
    }
}
