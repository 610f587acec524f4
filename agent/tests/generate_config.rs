//! `--generate-config` against a real PostgreSQL: what it writes can be started from.

#[path = "common/again.rs"]
mod again;

use garden_agent::config::{Loader, generate};
use garden_agent::exit::Exit;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Map, Value};
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

fn bin_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("GARDEN_PG_BIN") {
        return dir.into();
    }
    let installed = fs::read_dir("/usr/lib/postgresql").expect("PostgreSQL is installed");
    let mut dirs: Vec<PathBuf> = installed.flatten().map(|e| e.path().join("bin")).collect();
    dirs.retain(|dir| dir.join("postgres").exists());
    dirs.sort();
    dirs.pop().expect("PostgreSQL is installed")
}

/// A server that ends with the test.
struct Server {
    dir: PathBuf,
    port: u16,
    process: Child,
}

impl Server {
    fn start() -> Self {
        let dir = std::env::temp_dir().join(format!("garden-generate-{}.d", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("create");
        let data = dir.join("data");
        let initdb = Command::new(bin_dir().join("initdb"))
            .args(["-A", "trust", "-U", "boss", "-D"])
            .arg(&data)
            .stdout(Stdio::null())
            .status()
            .expect("initdb");
        assert!(initdb.success());
        let free = TcpListener::bind("127.0.0.1:0")
            .and_then(|l| l.local_addr())
            .expect("a port");
        let port = free.port();
        let settings = format!(
            "port = {port}\nlisten_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\n\
             cluster_name = 'demo'\nwork_mem = 8MB\nmax_connections = 55\n\
             archive_command = '/bin/true'\nrecovery_target_timeline = 'latest'\n",
            dir.display()
        );
        let file = data.join("postgresql.conf");
        let before = fs::read_to_string(&file).expect("postgresql.conf");
        fs::write(&file, before + &settings).expect("postgresql.conf");
        let process = Command::new(bin_dir().join("postgres"))
            .arg("-D")
            .arg(&data)
            .stderr(Stdio::null())
            .spawn()
            .expect("postgres");
        let server = Self { dir, port, process };
        let until = Instant::now() + Duration::from_secs(30);
        while !server.is_ready() {
            assert!(Instant::now() < until, "PostgreSQL does not start");
            std::thread::sleep(Duration::from_millis(50));
        }
        server
    }

    fn is_ready(&self) -> bool {
        Command::new(bin_dir().join("pg_isready"))
            .args(["-q", "-h", "127.0.0.1", "-p", &self.port.to_string()])
            .status()
            .is_ok_and(|status| status.success())
    }

    fn sql(&self, text: &str) {
        let status = Command::new(bin_dir().join("psql"))
            .args([
                "-q",
                "-h",
                "127.0.0.1",
                "-U",
                "boss",
                "-d",
                "postgres",
                "-c",
                text,
            ])
            .args(["-p", &self.port.to_string()])
            .status()
            .expect("psql");
        assert!(status.success(), "{text}");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An immediate shutdown: the postmaster ends its children itself.
        if let Ok(pid) = i32::try_from(self.process.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
        }
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn generated(server: &Server, user: &str, output: &Path) -> Exit {
    let dsn = format!(
        "postgresql://{user}@127.0.0.1:{}/postgres?sslmode=prefer",
        server.port
    );
    generate::from_server(Some(output), Some(&dsn), &Default::default())
}

#[test]
fn a_running_server_becomes_a_configuration() {
    if again::done_as_postgres("a_running_server_becomes_a_configuration") {
        return;
    }
    let server = Server::start();
    let output = server.dir.join("new/agent.yml");
    assert_eq!(generated(&server, "boss", &output), Exit::Success);
    // It may hold a password.
    let mode = fs::metadata(&output).expect("written").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let text = fs::read_to_string(&output).expect("written");
    fs::write(&output, text.replace("'#FIXME'", "known")).expect("filled in");
    let local = Loader::new(Some(&output), Default::default())
        .and_then(|l| l.load())
        .expect("loads");
    let dynamic = local.bootstrap_dcs().expect("bootstrap");
    let (config, _) = local.effective(&dynamic).expect("effective");
    let pg = &config.postgresql;
    assert_eq!(config.scope, "demo");
    assert_eq!(pg.data_dir, server.dir.join("data"));
    assert_eq!(pg.bin_dir, Some(bin_dir()));
    assert_eq!(
        (pg.listen_hosts.as_slice(), pg.port),
        (["127.0.0.1".into()].as_slice(), server.port)
    );
    assert_eq!(pg.superuser.username.as_deref(), Some("boss"));
    assert_eq!(
        pg.superuser.options.get("sslmode").map(String::as_str),
        Some("prefer")
    );
    assert_eq!(pg.parameters.get("work_mem"), Some(&Value::from("8MB")));
    assert_eq!(pg.parameters.get("max_connections"), Some(&Value::from(55)));
    assert!(
        pg.pg_hba
            .as_ref()
            .is_some_and(|lines| lines.iter().all(|l| !l.starts_with('#')))
    );
    let shared = dynamic.get("postgresql").and_then(|p| p.get("parameters"));
    let shared = shared
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_else(Map::new);
    for absent in [
        "archive_command",
        "port",
        "cluster_name",
        "recovery_target_timeline",
    ] {
        assert!(!shared.contains_key(absent), "{absent}");
    }

    server.sql("CREATE ROLE guest LOGIN");
    assert_eq!(generated(&server, "guest", &output), Exit::Failure);
}
