//! A container's first process: starts a crashed agent again, passes signals on, ends with the agent.
//! The agent here waits for an etcd that does not exist; that is all it has to do.

use garden_agent::guardian::proc;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(20);

/// A configuration in a directory of its own, removed with this.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        let dir = std::env::temp_dir().join(format!("garden-supervise-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("directory");
        let text = format!(
            r#"
scope: supervised
name: a
restapi: {{listen: "127.0.0.1:27050", connect_address: "127.0.0.1:27050"}}
etcd3: {{hosts: "127.0.0.1:27051"}}
postgresql:
  listen: "127.0.0.1:27052"
  connect_address: "127.0.0.1:27052"
  data_dir: {}/data
  bin_dir: /usr/lib/postgresql/15/bin
  authentication:
    superuser: {{username: postgres, password: x}}
    replication: {{username: replicator, password: x}}
"#,
            dir.display()
        );
        std::fs::write(dir.join("a.yml"), text).expect("configuration");
        Self(dir)
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Killed when this is dropped, so that a failed test leaves nothing behind.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).unwrap_or(i32::MAX);
        let mut list = Vec::new();
        if self.0.try_wait().is_ok_and(|status| status.is_some()) || proc::all(&mut list).is_err() {
            return;
        }
        let _ = self.0.kill();
        for agent in list.iter().filter(|p| p.parent == pid) {
            agent.signal(rustix::process::Signal::KILL);
        }
        let _ = self.0.wait();
    }
}

fn supervise(words: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_garden-agent"))
        .args(["guardian", "--supervise"])
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("garden-agent")
}

/// The child of `parent` that is not `other`, as soon as there is one.
fn child_of(parent: i32, other: i32) -> i32 {
    let begin = Instant::now();
    let mut list = Vec::new();
    loop {
        proc::all(&mut list).expect("/proc");
        let is_it = |p: &&proc::Process| p.parent == parent && p.pid != other && p.is_alive();
        if let Some(found) = list.iter().find(is_it) {
            return found.pid;
        }
        assert!(begin.elapsed() < LIMIT, "no agent");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn a_killed_agent_is_started_again_and_a_stopped_one_ends_everything() {
    let dir = Dir::new();
    let config = dir.0.join("a.yml");
    let mut supervisor = Ended(supervise(&[config.to_str().expect("text")]));
    let pid = i32::try_from(supervisor.0.id()).expect("pid");
    let first = child_of(pid, 0);
    let begin = Instant::now();
    kill(Pid::from_raw(first), Signal::SIGKILL).expect("kill");
    let second = child_of(pid, first);
    println!("started again within {:?}", begin.elapsed());
    assert!(begin.elapsed() < Duration::from_secs(1));

    // The agent has to be far enough to take the signal as an order.
    let begin = Instant::now();
    let status = loop {
        let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        if let Some(status) = supervisor.0.try_wait().expect("wait") {
            break status;
        }
        assert!(begin.elapsed() < LIMIT, "it does not end");
        std::thread::sleep(Duration::from_millis(100));
    };
    println!("ended: {status}");
    assert!(proc::Process::read(second).is_none_or(|p| !p.is_alive()));
}

#[test]
fn an_agent_that_ends_by_itself_is_not_started_again() {
    let status = supervise(&["/nowhere/config.yml"]).wait().expect("wait");
    assert!(status.code().is_some_and(|code| code != 0), "{status}");
}
