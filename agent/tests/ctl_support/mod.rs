//! A cluster that exists only in etcd, with agents that answer what a test wants, and the control tool
//! run as a program against it.
#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod clusters;
#[path = "../common/etcd.rs"]
pub mod etcd;

use garden_agent::etcd::Etcd;
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{Key, Op, Snapshot, Txn};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Longest time that one command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// Budget of a read or write in etcd.
const ETCD_LIMIT: Duration = Duration::from_secs(5);

/// The name of the cluster; [`etcd::keyspace`] has it, too.
pub const SCOPE: &str = "demo";

/// What an agent answers to a request such as `POST /restart`: status and body. Status 0 closes the
/// connection instead.
pub type Answers = BTreeMap<(String, String), (u16, String)>;

/// Agents that record what they are asked.
pub struct Agents {
    ports: BTreeMap<String, u16>,
    answers: Arc<Mutex<Answers>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Agents {
    /// One for each name, on free ports.
    pub fn start(names: &[&str]) -> Self {
        let (answers, asked) = (Arc::<Mutex<Answers>>::default(), Arc::default());
        let mut ports = BTreeMap::new();
        for name in names {
            let listener = TcpListener::bind(("127.0.0.1", 0)).expect("bind");
            ports.insert(
                (*name).to_owned(),
                listener.local_addr().expect("an address").port(),
            );
            let agent = Agent {
                name: (*name).to_owned(),
                answers: Arc::clone(&answers),
                asked: Arc::clone(&asked),
            };
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    // A client that goes away is no failure of the test.
                    let _ = agent.serve(stream);
                }
            });
        }
        Self {
            ports,
            answers,
            asked,
        }
    }

    /// Its `api_url`.
    pub fn api_url(&self, name: &str) -> String {
        let port = self.ports.get(name).expect("an agent of this name");
        format!("http://127.0.0.1:{port}/patroni")
    }

    /// From now on `name` answers this; an empty name stands for all. Without an answer it is 200 `ok`.
    pub fn answer(&self, name: &str, request: &str, status: u16, body: &str) {
        let key = (name.to_owned(), request.to_owned());
        self.answers
            .lock()
            .expect("unpoisoned")
            .insert(key, (status, body.to_owned()));
    }

    /// Forgets all answers.
    pub fn forget_answers(&self) {
        self.answers.lock().expect("unpoisoned").clear();
    }

    /// What was asked since the last call, as `name METHOD /path body`.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.asked.lock().expect("unpoisoned"))
    }
}

struct Agent {
    name: String,
    answers: Arc<Mutex<Answers>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    fn serve(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let request = line.split(' ').take(2).collect::<Vec<_>>().join(" ");
        let mut length = 0;
        loop {
            let mut header = String::new();
            if reader.read_line(&mut header)? <= 2 {
                break;
            }
            if let Some((name, value)) = header.split_once(':')
                && name.eq_ignore_ascii_case("content-length")
            {
                length = value.trim().parse().unwrap_or(0);
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let body = String::from_utf8_lossy(&body).into_owned();
        let told = format!("{} {request} {body}", self.name);
        self.asked
            .lock()
            .expect("unpoisoned")
            .push(told.trim_end().to_owned());
        let answers = self.answers.lock().expect("unpoisoned").clone();
        let find = |name: &str| answers.get(&(name.to_owned(), request.clone())).cloned();
        let (status, text) = find(&self.name)
            .or_else(|| find(""))
            .unwrap_or((200, String::from("ok")));
        if status == 0 {
            return Ok(());
        }
        write!(
            stream,
            "HTTP/1.0 {status} X\r\nContent-Type: text/plain\r\n\r\n{text}"
        )
    }
}

/// etcd, agents, and a configuration file that names them.
pub struct Stage {
    /// etcd.
    pub etcd: etcd::Cluster,
    /// The agents of `gd-a`, `gd-b` and `gd-c`.
    pub agents: Agents,
    directory: PathBuf,
}

/// How a program ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Exit status.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Stage {
    /// Starts everything; the cluster has no keys yet.
    pub async fn start() -> Self {
        let etcd = etcd::Cluster::start(1).await;
        let directory = etcd::scratch("ctl");
        std::fs::create_dir_all(&directory).expect("create a directory");
        let port = etcd.servers.first().expect("a server").port;
        let config = format!(
            "scope: {SCOPE}\netcd3:\n  host: 127.0.0.1:{port}\n\
             ctl:\n  authentication:\n    username: u\n    password: p\n"
        );
        std::fs::write(directory.join("ctl.yml"), config).expect("write the configuration");
        let agents = Agents::start(&["gd-a", "gd-b", "gd-c"]);
        Self {
            etcd,
            agents,
            directory,
        }
    }

    /// A path in a directory of its own.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn connection(&self) -> Etcd {
        Etcd::open(&self.etcd.config(), etcd::keyspace()).expect("the configuration is fine")
    }

    /// Replaces all keys of the cluster.
    pub async fn put(&self, keys: &[(String, String)]) {
        let etcd = self.connection();
        etcd.delete_all().await.expect("delete");
        let put = |(suffix, value): &(String, String)| {
            Op::put(
                Key::parse(suffix).expect("a key of the cluster"),
                value.clone(),
            )
        };
        let txn = Txn::always(keys.iter().map(put).collect());
        let outcome = etcd.commit(&txn, ETCD_LIMIT).await;
        assert!(matches!(outcome, TxnOutcome::Committed(_)), "{outcome:?}");
    }

    /// What etcd holds.
    pub async fn snapshot(&self) -> Snapshot {
        self.connection().read(ETCD_LIMIT).await.expect("read")
    }

    /// The value of a key.
    pub async fn value(&self, suffix: &str) -> Option<String> {
        let snapshot = self.snapshot().await;
        snapshot
            .entries
            .get(suffix)
            .map(|entry| entry.value.clone())
    }

    /// Runs gardenctl.
    pub fn gardenctl(&self, args: &[&str], input: &str) -> Outcome {
        self.run(env!("CARGO_BIN_EXE_gardenctl"), args, input)
    }

    /// Runs a control tool with this stage's configuration.
    pub fn run(&self, program: &str, args: &[&str], input: &str) -> Outcome {
        let mut child = Command::new(program)
            .args(args)
            .env("PATRONICTL_CONFIG_FILE", self.file("ctl.yml"))
            .env_remove("DCS_URL")
            .env("TZ", "UTC")
            .env("LC_ALL", "C.UTF-8")
            .env("PYTHONIOENCODING", "utf-8")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|err| panic!("start {program}: {err}"));
        let mut stdin = child.stdin.take().expect("a pipe");
        // It may end without having read everything.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let (stdout, stderr) = (reader(child.stdout.take()), reader(child.stderr.take()));
        let deadline = Instant::now() + COMMAND_LIMIT;
        let code = loop {
            if let Some(status) = child.try_wait().expect("wait") {
                break status.code();
            }
            if Instant::now() > deadline {
                let _ = child.kill();
                let _ = child.wait();
                panic!("{program} {args:?} does not end");
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        let text = |thread: std::thread::JoinHandle<String>| thread.join().expect("reads");
        Outcome {
            code,
            stdout: text(stdout),
            stderr: text(stderr),
        }
    }

    /// A leader, a synchronous standby, and a replica that is stopped.
    pub fn usual(&self) -> Vec<(String, String)> {
        let url = |name: &str| self.agents.api_url(name);
        let member_a = format!(
            r#"{{"conn_url":"postgres://192.0.2.11:5432/postgres","api_url":"{}","state":"running","role":"primary","version":"4.1.4","xlog_location":67419744,"timeline":5}}"#,
            url("gd-a")
        );
        let member_b = format!(
            r#"{{"conn_url":"postgres://192.0.2.12:5432/postgres","api_url":"{}","state":"running","role":"replica","version":"4.1.4","xlog_location":67419744,"replay_lsn":62176864,"receive_lsn":67419744,"replication_state":"streaming","timeline":5,"tags":{{"clonefrom":true}},"pending_restart":true,"pending_restart_reason":{{"max_connections":{{"old_value":"100","new_value":"200"}}}}}}"#,
            url("gd-b")
        );
        let member_c = format!(
            r#"{{"conn_url":"postgres://192.0.2.13:5432/postgres","api_url":"{}","state":"stopped","role":"replica","scheduled_restart":{{"schedule":"2030-01-01T00:00:00+00:00","postgres_version":"15.0.0"}}}}"#,
            url("gd-c")
        );
        keys(&[
            ("initialize", "7268616322854375442"),
            ("leader", "gd-a"),
            (
                "config",
                r#"{"ttl":30,"loop_wait":1,"retry_timeout":10,"synchronous_mode":true,"postgresql":{"parameters":{"max_connections":100,"a.b":"on"},"use_pg_rewind":true}}"#,
            ),
            ("status", r#"{"optime":67419744}"#),
            ("sync", r#"{"leader":"gd-a","sync_standby":"gd-b"}"#),
            (
                "history",
                r#"[[1,25623960,"no recovery target specified","2026-01-01T00:00:00.000000+00:00","gd-b"],[2,25624360,"no recovery target specified"]]"#,
            ),
            ("members/gd-a", &member_a),
            ("members/gd-b", &member_b),
            ("members/gd-c", &member_c),
        ])
    }

    /// [`Self::usual`], with some keys replaced or added.
    pub fn usual_but(&self, changes: &[(&str, &str)]) -> Vec<(String, String)> {
        let mut keys: BTreeMap<String, String> = self.usual().into_iter().collect();
        keys.extend(
            changes
                .iter()
                .map(|(key, value)| ((*key).to_owned(), (*value).to_owned())),
        );
        keys.into_iter().collect()
    }

    /// [`Self::usual`] without the keys that begin like this.
    pub fn usual_without(&self, prefix: &str) -> Vec<(String, String)> {
        let mut keys = self.usual();
        keys.retain(|(key, _)| !key.starts_with(prefix));
        keys
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Owned keys and values.
pub fn keys(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
        .collect()
}

fn reader(pipe: Option<impl Read + Send + 'static>) -> std::thread::JoinHandle<String> {
    let mut pipe = pipe.expect("a pipe");
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}
