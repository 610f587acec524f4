//! A configuration that cannot work ends the agent with one clear line that names the key and what was
//! expected, with a status other than zero, and leaves the data directory as it was. The real program
//! is run, since this is what an operator sees.

#[path = "common/etcd.rs"]
mod etcd;

use etcd::{Cluster, scratch};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// An agent that has not ended by itself by then has accepted what it should have refused.
const LIMIT: Duration = Duration::from_secs(20);

const GOOD: &str = r#"
scope: bad-input
name: node1
restapi:
  listen: 127.0.0.1:REST
  connect_address: 127.0.0.1:REST
etcd3:
  hosts: ETCD
bootstrap:
  dcs:
    ttl: 30
postgresql:
  listen: 127.0.0.1:POSTGRES
  connect_address: 127.0.0.1:POSTGRES
  data_dir: DATA
  bin_dir: /usr/lib/postgresql/15/bin
  pgpass: PGPASS
  authentication:
    superuser: {username: postgres, password: secret-one}
    replication: {username: replicator, password: secret-two}
"#;

struct Case {
    dir: PathBuf,
    text: String,
}

impl Case {
    fn new(what: &str, etcd_url: &str) -> Self {
        let dir = scratch(what);
        fs::create_dir_all(&dir).expect("make the directory");
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).expect("open the directory");
        let text = GOOD
            .replace("REST", &etcd::free_port().to_string())
            .replace("POSTGRES", &etcd::free_port().to_string())
            .replace("ETCD", etcd_url.trim_start_matches("http://"))
            .replace("PGPASS", &dir.join("pgpass").display().to_string())
            .replace("DATA", &dir.join("data").display().to_string());
        Self { dir, text }
    }

    fn with(mut self, old: &str, new: &str) -> Self {
        assert!(
            self.text.contains(old),
            "{old:?} is not in the configuration"
        );
        self.text = self.text.replacen(old, new, 1);
        self
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn run(&self) -> Output {
        let file = self.dir.join("patroni.yml");
        fs::write(&file, &self.text).expect("write the configuration");
        let mut command = Command::new("setpriv");
        // PostgreSQL refuses root, and root would not notice what an operator may not write.
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]);
        if !nix::unistd::geteuid().is_root() {
            command = Command::new("env");
        }
        let mut child = command
            .arg(env!("CARGO_BIN_EXE_garden-agent"))
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("start the agent");
        let until = Instant::now() + LIMIT;
        while child.try_wait().expect("ask for its end").is_none() {
            if Instant::now() > until {
                child.kill().expect("kill the agent");
                let output = child.wait_with_output().expect("read what it said");
                panic!("the agent accepted it: {}", words(&output));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        child.wait_with_output().expect("read what it said")
    }

    /// It ends with a status other than zero, and one line has all of `expected`.
    fn is_refused(&self, expected: &[&str]) {
        let output = self.run();
        let said = words(&output);
        assert!(!output.status.success(), "status {}: {said}", output.status);
        let clear = said
            .lines()
            .any(|line| expected.iter().all(|word| line.contains(word)));
        assert!(clear, "no line has {expected:?}:\n{said}");
        for secret in ["secret-one", "secret-two"] {
            assert!(!said.contains(secret), "a password is in: {said}");
        }
        assert!(!said.contains("panicked"), "{said}");
    }
}

fn words(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Paths below a directory, their sizes and modes: what "untouched" means.
fn picture(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let meta = entry.metadata().expect("look at a file");
            found.push(format!(
                "{:?} {} {:o}",
                entry.path(),
                meta.len(),
                meta.permissions().mode()
            ));
            if meta.is_dir() {
                open.push(entry.path());
            }
        }
    }
    found.sort();
    found
}

const NOWHERE: &str = "127.0.0.1:1";

#[test]
fn text_that_is_no_yaml_is_refused_with_its_place() {
    Case::new("yaml", NOWHERE)
        .with("scope: bad-input", "scope: [bad")
        .is_refused(&["patroni.yml"]);
}

#[test]
fn a_wrong_type_is_refused_with_its_key() {
    let case = Case::new("type", NOWHERE);
    let line = case
        .text
        .lines()
        .find(|l| l.contains("bin_dir"))
        .expect("there is one")
        .to_owned();
    case.with(&line, &format!("{line}\n  parameters: [1, 2]"))
        .is_refused(&["postgresql.parameters"]);
}

#[test]
fn another_kind_of_store_is_refused_by_name() {
    Case::new("store", NOWHERE)
        .with("etcd3:", "consul:")
        .is_refused(&["consul"]);
}

#[test]
fn a_missing_key_is_named() {
    Case::new("missing", NOWHERE)
        .with("name: node1", "")
        .is_refused(&["name"]);
    let case = Case::new("missing-dir", NOWHERE);
    let line = case
        .text
        .lines()
        .find(|l| l.contains("data_dir"))
        .expect("there is one")
        .to_owned();
    case.with(&line, "").is_refused(&["data_dir"]);
}

#[test]
fn missing_programs_are_named_with_their_place() {
    Case::new("programs", NOWHERE)
        .with("/usr/lib/postgresql/15/bin", "/nonexistent/bin")
        .is_refused(&["bin_dir", "/nonexistent/bin"]);
}

#[test]
fn a_directory_that_is_no_cluster_is_left_alone() {
    let case = Case::new("not-a-cluster", NOWHERE);
    fs::create_dir(case.data()).expect("make the directory");
    fs::write(case.data().join("thesis.txt"), "not yours").expect("write a file");
    fs::set_permissions(case.data(), fs::Permissions::from_mode(0o755)).expect("set its mode");
    let before = picture(&case.data());
    case.is_refused(&["data_dir"]);
    assert_eq!(picture(&case.data()), before);
}

#[test]
fn a_directory_of_another_major_version_is_left_alone() {
    let case = Case::new("version", NOWHERE);
    fs::create_dir_all(case.data().join("global")).expect("make the directory");
    fs::create_dir_all(case.data().join("pg_wal")).expect("make the directory");
    fs::write(case.data().join("PG_VERSION"), "14\n").expect("write a file");
    fs::write(case.data().join("global/pg_control"), "x").expect("write a file");
    fs::set_permissions(case.data(), fs::Permissions::from_mode(0o755)).expect("set its mode");
    let before = picture(&case.data());
    case.is_refused(&["data_dir"]);
    assert_eq!(picture(&case.data()), before);
}

#[test]
fn a_port_in_use_is_named() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cluster = runtime.block_on(Cluster::start(1));
    let taken = TcpListener::bind("127.0.0.1:0").expect("take a port");
    let port = taken.local_addr().expect("its number").port().to_string();
    let mut case = Case::new("port", &cluster.servers[0].url());
    let listen = case
        .text
        .lines()
        .find(|l| l.contains("  listen: 127.0.0.1"))
        .expect("there is one");
    case.text = case
        .text
        .replace(listen, &format!("  listen: 127.0.0.1:{port}"));
    case.is_refused(&["restapi", &port]);
    assert!(
        !case.data().join("PG_VERSION").exists(),
        "a refused start made a cluster"
    );
}

#[test]
fn wrong_credentials_for_etcd_are_said_and_end_the_agent() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let cluster = runtime.block_on(Cluster::start(1));
    runtime.block_on(async {
        let mut admin = cluster.admin().await;
        admin
            .user_add("root", "right", None)
            .await
            .expect("add a user");
        admin
            .user_grant_role("root", "root")
            .await
            .expect("grant a role");
        admin.auth_enable().await.expect("switch authentication on");
    });
    let url = cluster.servers[0].url();
    let hosts = url.trim_start_matches("http://").to_owned();
    Case::new("credentials", &url)
        .with(
            &format!("hosts: {hosts}"),
            &format!("hosts: {hosts}\n  username: root\n  password: wrong"),
        )
        .is_refused(&["etcd"]);
}
