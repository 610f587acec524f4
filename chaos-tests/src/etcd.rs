//! One etcd process.

use crate::http;
use crate::ports::{Ports, address};
use crate::process::{Launch, Process};
use anyhow::{Context, Result};
use nix::sys::signal::Signal;
use nix::unistd::User;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// A SIGTERM ends an etcd within this time, or SIGKILL does.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// One member of the etcd cluster.
#[derive(Debug)]
pub struct Etcd {
    /// Its name, `etcd1`, …
    pub name: String,
    /// Port for clients.
    pub client_port: u16,
    program: PathBuf,
    args: Vec<OsString>,
    dir: PathBuf,
    user: Option<User>,
    process: Mutex<Option<Process>>,
    /// It was taken out of the cluster once, and joins an existing one when it starts.
    joins: AtomicBool,
}

impl Etcd {
    pub(crate) fn new(
        (index, count): (u16, u16),
        ports: &Ports,
        program: PathBuf,
        dir: PathBuf,
        user: Option<User>,
    ) -> Self {
        let name = format!("etcd{}", index + 1);
        let client = format!("http://{}", address(ports.etcd + index));
        let peer = |index: u16| format!("http://{}", address(ports.etcd_peer + index));
        let all = (0..count).map(|each| format!("etcd{}={}", each + 1, peer(each)));
        let all = all.collect::<Vec<_>>().join(",");
        let data = dir.join("data").into_os_string();
        let own_peer = peer(index);
        // The directory of the whole cluster: etcds of another one that is still ending are refused.
        let token = dir.parent().unwrap_or(&dir).into();
        let pairs: [(&str, OsString); 9] = [
            ("--name", name.clone().into()),
            ("--data-dir", data),
            ("--listen-client-urls", client.clone().into()),
            ("--advertise-client-urls", client.into()),
            ("--listen-peer-urls", own_peer.clone().into()),
            ("--initial-advertise-peer-urls", own_peer.into()),
            ("--initial-cluster", all.into()),
            ("--initial-cluster-state", "new".into()),
            ("--initial-cluster-token", token),
        ];
        let args = pairs
            .into_iter()
            .flat_map(|(key, value)| [key.into(), value])
            .collect();
        let process = Mutex::new(None);
        Self {
            name,
            client_port: ports.etcd + index,
            program,
            args,
            dir,
            user,
            process,
            joins: AtomicBool::new(false),
        }
    }

    /// Removes what it has on disk; it must not run. `joins` says whether it comes back as a new member
    /// of the others' cluster, or as it was in the beginning.
    ///
    /// # Errors
    /// When the directory cannot be removed.
    pub fn wipe(&self, joins: bool) -> Result<()> {
        let data = self.dir.join("data");
        std::fs::remove_dir_all(&data).with_context(|| format!("remove {}", data.display()))?;
        self.joins.store(joins, Ordering::Relaxed);
        Ok(())
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts it, with what it had on disk.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(&self) -> Result<()> {
        let (cwd, log) = (self.dir.as_path(), self.dir.join("etcd.log"));
        let (mut args, user) = (self.args.clone(), self.user.as_ref());
        if self.joins.load(Ordering::Relaxed) {
            // The last one of a flag counts.
            args.extend(["--initial-cluster-state".into(), "existing".into()]);
        }
        let env = BTreeMap::new();
        let launch = Launch {
            program: &self.program,
            args,
            env,
            cwd,
            log: &log,
            user,
            network: None,
        };
        let process = Process::spawn(&launch).with_context(|| format!("start {}", self.name))?;
        *self.process() = Some(process);
        Ok(())
    }

    /// Sends a signal: SIGSTOP and SIGCONT freeze and thaw it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.process()
            .as_mut()
            .map_or(Ok(()), |process| process.signal(signal))
    }

    /// Whether its process runs.
    pub fn running(&self) -> bool {
        let mut process = self.process();
        process
            .as_mut()
            .is_some_and(|process| process.ended().is_none())
    }

    /// Stops it.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stop(&self) -> Result<()> {
        let Some(mut process) = self.process().take() else {
            return Ok(());
        };
        process.signal(Signal::SIGTERM)?;
        if process.wait(STOP_LIMIT).is_none() {
            process.signal(Signal::SIGKILL)?;
            process.wait(STOP_LIMIT);
        }
        Ok(())
    }

    /// Whether it says that it is healthy, which includes having a leader.
    pub async fn healthy(&self) -> bool {
        let answer = http::get(self.client_port, "/health", Duration::from_secs(2)).await;
        answer.is_ok_and(|answer| answer.status == 200 && answer.body.contains("true"))
    }
}
