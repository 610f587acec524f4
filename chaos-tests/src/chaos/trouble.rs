//! What is done to the cluster, and how everything is made whole again.

mod disk;
mod etcd;
mod operator;
mod packets;
mod processes;

pub use disk::DiskFault;
pub use etcd::EtcdFault;
pub(super) use operator::HANG;
pub use operator::OperatorFault;
pub use packets::PacketFault;
pub use processes::ProcessFault;

use crate::cluster::{Cluster, Settled};
use crate::etcd_api;
use crate::member::Member;
use crate::netns::Network;
use crate::process;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::PathBuf;
use std::time::Duration;

/// Whose node it is, at the time of the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// The leader's.
    Primary,
    /// That of a standby for which commits wait, or of any where none is such.
    Standby,
}

/// A fault of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Signals to processes.
    Process(ProcessFault),
    /// Packets that do not arrive.
    Packets(PacketFault),
    /// etcd, or what is in it.
    Etcd(EtcdFault),
    /// What PostgreSQL writes to.
    Disk(DiskFault),
    /// People.
    Operator(OperatorFault),
}

/// Where a fault is injected.
pub struct Scene<'a> {
    /// The cluster.
    pub cluster: &'a Cluster,
    /// Its network, if it has one of its own.
    pub network: Option<&'a Network>,
    /// Who leads and follows now.
    pub now: &'a Settled,
    /// What must be given back when the fault ends.
    pub held: &'a mut Held,
}

/// What a fault keeps until it ends.
#[derive(Default)]
pub struct Held {
    sessions: Vec<tokio_postgres::Client>,
    files: Vec<PathBuf>,
    frozen: Vec<PathBuf>,
    entries: Vec<etcd_api::Entry>,
    paused: bool,
    mode_changed: bool,
    record_garbled: bool,
    etcd_wiped: bool,
}

impl Trouble {
    /// Whether it takes machines with a network of their own.
    pub fn needs_network(self) -> bool {
        matches!(self, Self::Packets(_))
    }

    /// Whether it takes disks of their own.
    pub fn needs_disks(self) -> bool {
        matches!(self, Self::Disk(_))
    }

    /// Whether it is about something that the released Patroni does not have.
    pub fn only_ours(self) -> bool {
        use EtcdFault as E;
        use ProcessFault as P;
        match self {
            Self::Process(fault) => matches!(
                fault,
                P::GuardianGone | P::GuardianStopped | P::GuardianKilled | P::GuardianPaused
            ),
            Self::Etcd(fault) => matches!(fault, E::RecordDeleted | E::RecordGarbage),
            _ => false,
        }
    }

    /// Does it, and sees that it bit.
    ///
    /// # Errors
    /// When it did not.
    pub async fn inject(self, scene: &mut Scene<'_>) -> Result<()> {
        match self {
            Self::Process(fault) => fault.inject(scene).await,
            Self::Packets(fault) => fault.inject(scene).await,
            Self::Etcd(fault) => fault.inject(scene).await,
            Self::Disk(fault) => fault.inject(scene),
            Self::Operator(fault) => fault.inject(scene).await,
        }
    }
}

impl Scene<'_> {
    pub(super) fn member(&self, who: Who) -> Result<&Member> {
        let index = match who {
            Who::Primary => self.now.leader,
            Who::Standby => self.standby()?,
        };
        self.cluster.member(index)
    }

    pub(super) fn standby(&self) -> Result<usize> {
        let found = self.now.synchronous.first().or(self.now.replicas.first());
        found.copied().context("there is no standby")
    }

    pub(super) fn etcd_ports(&self) -> Vec<u16> {
        etcd_ports(self.cluster)
    }
}

fn etcd_ports(cluster: &Cluster) -> Vec<u16> {
    cluster.etcds().iter().map(|e| e.client_port).collect()
}

/// Makes everything run and every packet arrive again.
///
/// # Errors
/// When something cannot be started.
pub async fn heal(cluster: &Cluster, network: Option<&Network>, held: &mut Held) -> Result<()> {
    disk::heal(held)?;
    held.sessions.clear();
    if let Some(network) = network {
        network.heal()?;
    }
    for etcd in cluster.etcds() {
        etcd.signal(Signal::SIGCONT)?;
        if !etcd.running() {
            etcd.start()?;
        }
    }
    for member in cluster.members() {
        let stopped = process::below(&member.dir).into_iter();
        for pid in stopped.filter(|pid| is_stopped(*pid)) {
            // It may have been killed meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
        }
        if member.agent().is_none() {
            member.start()?;
        }
    }
    for entry in std::mem::take(&mut held.entries) {
        etcd_api::put(&etcd_ports(cluster), &entry.key, &entry.value).await?;
    }
    etcd::heal(cluster, held).await?;
    operator::heal(cluster, held).await?;
    operator::name_the_best(cluster, held).await
}

pub(super) fn is_stopped(pid: i32) -> bool {
    process::stat(pid).is_some_and(|(state, _)| state == 'T')
}

pub(super) fn send(pids: &[i32], signal: Signal) -> Result<()> {
    for pid in pids {
        kill(Pid::from_raw(*pid), signal).with_context(|| format!("send {signal} to {pid}"))?;
    }
    Ok(())
}

/// Stops processes and sees that they are.
pub(super) fn stop(pids: &[i32]) -> Result<()> {
    ensure!(!pids.is_empty(), "there is nothing to stop");
    send(pids, Signal::SIGSTOP)?;
    std::thread::sleep(Duration::from_millis(5));
    for pid in pids {
        ensure!(
            is_stopped(*pid) || !process::alive(*pid),
            "process {pid} did not stop"
        );
    }
    Ok(())
}
