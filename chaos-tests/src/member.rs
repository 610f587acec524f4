//! One member: an agent with its PostgreSQL, its REST and its files.

use crate::http;
use crate::process::{self, Launch, Process};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use std::collections::BTreeMap;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// An agent answers within this time or counts as not there.
const REST_LIMIT: Duration = Duration::from_secs(1);
/// All processes of a lost node are gone within this time.
const LOSS_LIMIT: Duration = Duration::from_secs(10);

/// What a member says about itself in `GET /patroni`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// `running`, `streaming`, …
    pub state: String,
    /// `primary` or `replica`.
    pub role: String,
    /// Timeline, when known.
    pub timeline: Option<u64>,
    /// Whether WAL is streaming in.
    pub streaming: bool,
    /// How far its WAL reaches, in bytes: written by a primary, received or replayed by a standby.
    pub position: Option<u64>,
}

/// Which agent a member runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Software {
    /// What the cluster is made of: `garden-agent`, or whatever `GARDEN_AGENT_BIN` names.
    Own,
    /// The released Patroni.
    Patroni,
}

/// The agents that a member may run, one at a time, from the same YAML and on the same data directory.
#[derive(Clone, Debug)]
pub(crate) struct Programs {
    pub own: PathBuf,
    pub patroni: Option<PathBuf>,
}

/// One member of the cluster.
#[derive(Debug)]
pub struct Member {
    /// Its name, `node1`, …
    pub name: String,
    /// Port of PostgreSQL.
    pub postgres_port: u16,
    /// Port of REST.
    pub rest_port: u16,
    /// Directory of everything it has.
    pub dir: PathBuf,
    /// Its YAML.
    pub config: PathBuf,
    pub(crate) programs: Programs,
    pub(crate) software: Mutex<Software>,
    pub(crate) has_disk: bool,
    pub(crate) libraries: Option<PathBuf>,
    pub(crate) user: Option<User>,
    pub(crate) network: Option<Arc<File>>,
    pub(crate) process: Mutex<Option<Process>>,
}

impl Member {
    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Data directory.
    pub fn data_dir(&self) -> PathBuf {
        self.disk().unwrap_or_else(|| self.dir.clone()).join("data")
    }

    /// Where its file system is mounted, if it has one of its own.
    pub fn disk(&self) -> Option<PathBuf> {
        self.has_disk.then(|| self.dir.join("disk"))
    }

    /// Log of the agent.
    pub fn log(&self) -> PathBuf {
        self.dir.join("agent.log")
    }

    /// Which agent it runs, or ran last.
    pub fn software(&self) -> Software {
        *self.software.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The next start is one of this agent. Nothing is stopped: a story says how the other one ends.
    ///
    /// # Errors
    /// While an agent runs, and when there is no such program.
    pub fn exchange(&self, software: Software) -> Result<()> {
        if self.agent().is_some() {
            bail!("{} still has an agent", self.name);
        }
        self.program(software)?;
        *self.software.lock().unwrap_or_else(PoisonError::into_inner) = software;
        Ok(())
    }

    fn program(&self, software: Software) -> Result<&Path> {
        match software {
            Software::Own => Ok(&self.programs.own),
            Software::Patroni => {
                let patroni = self.programs.patroni.as_deref();
                patroni.context("this cluster was built without the released Patroni")
            }
        }
    }

    /// Starts the agent.
    ///
    /// # Errors
    /// When it cannot be executed.
    pub fn start(&self) -> Result<()> {
        self.start_with(BTreeMap::new())
    }

    /// As [`Member::start`], with more in its environment.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn start_with(&self, mut env: BTreeMap<String, String>) -> Result<()> {
        let (cwd, log) = (self.dir.as_path(), self.log());
        let args = vec![self.config.clone().into_os_string()];
        env.insert("HOME".to_owned(), self.dir.display().to_string());
        if let Some(libraries) = &self.libraries {
            env.insert(
                "LD_LIBRARY_PATH".to_owned(),
                libraries.display().to_string(),
            );
        }
        let (program, user) = (self.program(self.software())?, self.user.as_ref());
        let launch = Launch {
            program,
            args,
            env,
            cwd,
            log: &log,
            user,
            network: self.network.as_ref().map(AsRawFd::as_raw_fd),
        };
        let process = Process::spawn(&launch);
        *self.process() = Some(process.with_context(|| format!("start {}", self.name))?);
        Ok(())
    }

    /// Pid of the agent, while it runs.
    pub fn agent(&self) -> Option<i32> {
        let mut process = self.process();
        let process = process.as_mut()?;
        process.ended().is_none().then(|| process.pid())
    }

    /// Sends a signal to the agent.
    ///
    /// # Errors
    /// When it does not run or the kernel refuses.
    pub fn signal_agent(&self, signal: Signal) -> Result<()> {
        let mut process = self.process();
        let process = process
            .as_mut()
            .with_context(|| format!("{} has no agent", self.name))?;
        process.signal(signal)
    }

    /// Waits for the end of the agent.
    pub fn wait_agent(&self, limit: Duration) -> bool {
        let mut process = self.process();
        process
            .as_mut()
            .is_none_or(|process| process.wait(limit).is_some())
    }

    /// Pid of the postmaster, while it runs.
    pub fn postmaster(&self) -> Option<i32> {
        let file = std::fs::read_to_string(self.data_dir().join("postmaster.pid")).ok()?;
        let pid = file.lines().next()?.trim().parse().ok()?;
        // The file may be left over from a life that has ended, and its pid be somebody else's.
        let own = process::below(&self.data_dir()).contains(&pid);
        own.then_some(pid)
    }

    /// Pid of the guardian, when there is one.
    pub fn guardian(&self) -> Option<i32> {
        let all = process::below(&self.dir).into_iter();
        let mut all = all.filter(|pid| process::arguments(*pid).iter().any(|a| a == "guardian"));
        all.next()
    }

    /// Ends everything of this member with SIGKILL, the agent first, as the loss of its machine
    /// would: nothing of it may act on the death of another part.
    ///
    /// # Errors
    /// When something is left.
    pub fn lose(&self) -> Result<()> {
        let first = [self.agent(), self.guardian(), self.postmaster()];
        for pid in first.into_iter().flatten() {
            // It may have followed one that was killed before it.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let until = Instant::now() + LOSS_LIMIT;
        let left = process::sweep(&self.dir);
        if !left.is_empty() || Instant::now() > until {
            bail!("{}: processes {left:?} did not end", self.name);
        }
        Ok(())
    }

    /// Status code of a health check, none when nothing answers.
    pub async fn check(&self, path: &str) -> Option<u16> {
        let answer = http::request(self.rest_port, "OPTIONS", path, None, REST_LIMIT).await;
        answer.ok().map(|answer| answer.status)
    }

    /// `GET /patroni`, none when nothing answers.
    pub async fn status(&self) -> Option<Status> {
        let answer = http::get(self.rest_port, "/patroni", REST_LIMIT)
            .await
            .ok()?;
        let json = answer.json().ok()?;
        let text = |key: &str| json.get(key).and_then(|v| v.as_str()).unwrap_or_default();
        Some(Status {
            state: text("state").to_owned(),
            role: text("role").to_owned(),
            timeline: json.get("timeline").and_then(serde_json::Value::as_u64),
            streaming: text("replication_state") == "streaming",
            position: ["location", "received_location", "replayed_location"]
                .iter()
                .filter_map(|key| json.pointer(&format!("/xlog/{key}"))?.as_u64())
                .max(),
        })
    }

    /// What the agent has logged since it had this many bytes.
    pub fn log_since(&self, bytes: usize) -> String {
        let log = std::fs::read(self.log()).unwrap_or_default();
        String::from_utf8_lossy(log.get(bytes..).unwrap_or_default()).into_owned()
    }

    /// Bytes that the agent has logged so far.
    pub fn log_bytes(&self) -> usize {
        std::fs::metadata(self.log()).map_or(0, |meta| meta.len().try_into().unwrap_or(usize::MAX))
    }
}
