//! What is done to a cluster.

use crate::cluster::Cluster;
use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fmt;
use std::time::Duration;

/// A killed agent is gone within this time.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A fault, or its healing. Members and etcds are counted from zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL of the postmaster; its agent lives.
    KillPostmaster(usize),
    /// SIGKILL of agent, guardian and every PostgreSQL process: the machine is gone.
    LoseNode(usize),
    /// Start of the agent on what is on disk: the machine is back.
    ReturnNode(usize),
    /// SIGKILL of the agent alone.
    KillAgent(usize),
    /// SIGSTOP of the agent alone.
    StopAgent(usize),
    /// SIGCONT of the agent.
    ContinueAgent(usize),
    /// SIGSTOP of every etcd: nothing answers, no connection breaks.
    FreezeEtcd,
    /// SIGCONT of every etcd.
    ThawEtcd,
}

impl Fault {
    /// Does it.
    ///
    /// # Errors
    /// When its object is not there, or the kernel refuses.
    pub fn inject(self, cluster: &Cluster) -> Result<()> {
        self.apply(cluster).with_context(|| format!("{self}"))
    }

    fn apply(self, cluster: &Cluster) -> Result<()> {
        match self {
            Self::KillPostmaster(index) => {
                let pid = cluster
                    .member(index)?
                    .postmaster()
                    .context("no postmaster runs")?;
                kill(Pid::from_raw(pid), Signal::SIGKILL).context("send SIGKILL")
            }
            Self::LoseNode(index) => cluster.member(index)?.lose(),
            Self::ReturnNode(index) => cluster.member(index)?.start(),
            Self::KillAgent(index) => {
                let member = cluster.member(index)?;
                member.signal_agent(Signal::SIGKILL)?;
                anyhow::ensure!(member.wait_agent(KILL_LIMIT), "it survives SIGKILL");
                Ok(())
            }
            Self::StopAgent(index) => cluster.member(index)?.signal_agent(Signal::SIGSTOP),
            Self::ContinueAgent(index) => cluster.member(index)?.signal_agent(Signal::SIGCONT),
            Self::FreezeEtcd => cluster
                .etcds()
                .iter()
                .try_for_each(|e| e.signal(Signal::SIGSTOP)),
            Self::ThawEtcd => cluster
                .etcds()
                .iter()
                .try_for_each(|e| e.signal(Signal::SIGCONT)),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KillPostmaster(index) => write!(f, "SIGKILL of node{}'s postmaster", index + 1),
            Self::LoseNode(index) => {
                write!(
                    f,
                    "SIGKILL of node{}'s agent and PostgreSQL together",
                    index + 1
                )
            }
            Self::ReturnNode(index) => write!(f, "return of node{}", index + 1),
            Self::KillAgent(index) => write!(f, "SIGKILL of node{}'s agent", index + 1),
            Self::StopAgent(index) => write!(f, "SIGSTOP of node{}'s agent", index + 1),
            Self::ContinueAgent(index) => write!(f, "SIGCONT of node{}'s agent", index + 1),
            Self::FreezeEtcd => f.write_str("SIGSTOP of all etcd"),
            Self::ThawEtcd => f.write_str("SIGCONT of all etcd"),
        }
    }
}
