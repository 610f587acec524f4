//! What is done to the cluster, and how everything is made whole again.

use crate::cluster::{Cluster, Settled};
use crate::fault::Fault;
use crate::http;
use crate::member::Member;
use crate::netns::{Cut, Network};
use crate::process;
use crate::session;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// A supervisor (systemd) starts a crashed agent again after this time.
pub const SUPERVISOR: Duration = Duration::from_millis(300);
/// Sees a process through every fork that was under way: the scan is repeated this often.
const SCANS: u32 = 3;
/// etcd answers a question about itself within this time.
const ETCD_LIMIT: Duration = Duration::from_secs(1);

/// A fault of the matrix; "the primary" is who leads when it is injected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// SIGKILL of the primary's agent, started again by its supervisor.
    AgentRestarted,
    /// SIGKILL of the primary's agent, which stays away.
    AgentGone,
    /// SIGSTOP of the primary's agent.
    AgentStopped,
    /// SIGKILL of the primary's agent and guardian.
    GuardianGone,
    /// SIGSTOP of the primary's agent and guardian.
    GuardianStopped,
    /// SIGSTOP of everything on the primary's node.
    NodeFrozen,
    /// SIGKILL of everything on the primary's node.
    NodeLost,
    /// Packets of the primary's node are lost.
    Network(Cut),
    /// SIGKILL of the primary's postmaster.
    PostmasterGone,
    /// SIGSTOP of the primary's postmaster.
    PostmasterStopped,
    /// An operator's switchover.
    Switchover,
    /// SIGKILL of everything on a synchronous standby's node.
    StandbyLost,
    /// SIGKILL of the etcd that leads.
    EtcdLeaderGone,
    /// SIGSTOP of the etcd that leads.
    EtcdLeaderStopped,
    /// SIGSTOP of all etcd.
    EtcdStopped,
    /// SIGSTOP of the walsenders of a synchronous standby.
    WalsenderStopped,
}

impl Trouble {
    /// Whether it takes machines with a network of their own.
    pub fn needs_network(self) -> bool {
        matches!(self, Self::Network(_))
    }

    /// Does it, and sees that it bit.
    ///
    /// # Errors
    /// When it did not.
    pub async fn inject(
        self,
        cluster: &Cluster,
        network: Option<&Network>,
        now: &Settled,
    ) -> Result<()> {
        let primary = cluster.member(now.leader)?;
        match self {
            Self::AgentRestarted => {
                Fault::KillAgent(now.leader).inject(cluster)?;
                tokio::time::sleep(SUPERVISOR).await;
                primary.start()
            }
            Self::AgentGone => Fault::KillAgent(now.leader).inject(cluster),
            Self::AgentStopped => stop(&[primary.agent().context("no agent runs")?]),
            Self::GuardianGone => send(&agent_and_guardian(primary)?, Signal::SIGKILL),
            Self::GuardianStopped => stop(&agent_and_guardian(primary)?),
            Self::NodeFrozen => freeze(primary),
            Self::NodeLost => primary.lose(),
            Self::Network(cut) => {
                let network = network.context("the nodes have no network of their own")?;
                network.cut(now.leader, cut)?;
                let reachable = primary.check("/liveness").await.is_some();
                let all = matches!(cut, Cut::Everything | Cut::Link);
                ensure!(reachable != all, "the cut did not bite");
                Ok(())
            }
            Self::PostmasterGone => Fault::KillPostmaster(now.leader).inject(cluster),
            Self::PostmasterStopped => {
                stop(&[primary.postmaster().context("no postmaster runs")?])
            }
            Self::Switchover => switchover(cluster, now).await,
            Self::StandbyLost => cluster.member(synchronous(now)?)?.lose(),
            Self::EtcdLeaderGone => signal_etcd_leader(cluster, Signal::SIGKILL).await,
            Self::EtcdLeaderStopped => signal_etcd_leader(cluster, Signal::SIGSTOP).await,
            Self::EtcdStopped => Fault::FreezeEtcd.inject(cluster),
            Self::WalsenderStopped => stop_walsenders(cluster, now).await,
        }
    }
}

/// Makes everything run and every packet arrive again.
///
/// # Errors
/// When something cannot be started.
pub fn heal(cluster: &Cluster, network: Option<&Network>) -> Result<()> {
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
    Ok(())
}

fn is_stopped(pid: i32) -> bool {
    process::stat(pid).is_some_and(|(state, _)| state == 'T')
}

fn agent_and_guardian(member: &Member) -> Result<[i32; 2]> {
    let agent = member.agent().context("no agent runs")?;
    Ok([agent, member.guardian().context("no guardian runs")?])
}

fn send(pids: &[i32], signal: Signal) -> Result<()> {
    for pid in pids {
        kill(Pid::from_raw(*pid), signal).with_context(|| format!("send {signal} to {pid}"))?;
    }
    Ok(())
}

/// Stops processes and sees that they are.
fn stop(pids: &[i32]) -> Result<()> {
    send(pids, Signal::SIGSTOP)?;
    std::thread::sleep(Duration::from_millis(5));
    for pid in pids {
        ensure!(is_stopped(*pid), "process {pid} did not stop");
    }
    Ok(())
}

/// Everything of a node, the agent and the guardian first.
fn freeze(member: &Member) -> Result<()> {
    send(&agent_and_guardian(member)?, Signal::SIGSTOP)?;
    for _ in 0..SCANS {
        for pid in process::below(&member.dir) {
            // A backend may have ended since it was seen.
            let _ = kill(Pid::from_raw(pid), Signal::SIGSTOP);
        }
    }
    let runs = process::below(&member.dir)
        .into_iter()
        .find(|pid| !is_stopped(*pid));
    ensure!(
        runs.is_none(),
        "process {runs:?} of {} is not stopped",
        member.name
    );
    Ok(())
}

async fn switchover(cluster: &Cluster, now: &Settled) -> Result<()> {
    let leader = &cluster.member(now.leader)?.name;
    let args = [
        "switchover",
        crate::template::SCOPE,
        "--leader",
        leader,
        "--force",
    ];
    cluster.ctl_ok(&args).await?;
    Ok(())
}

/// A standby for which commits wait, or any where none is.
fn synchronous(now: &Settled) -> Result<usize> {
    let found = now.synchronous.first().or(now.replicas.first());
    found.copied().context("there is no standby")
}

async fn stop_walsenders(cluster: &Cluster, now: &Settled) -> Result<()> {
    let standby = cluster.member(synchronous(now)?)?.name.clone();
    let client = session::client(cluster.member(now.leader)?.postgres_port).await?;
    let query = "SELECT pid FROM pg_stat_replication WHERE application_name = $1";
    let rows = client
        .query(query, &[&standby])
        .await
        .context("find the walsenders")?;
    let pids: Vec<i32> = rows.iter().map(|row| row.get(0)).collect();
    ensure!(!pids.is_empty(), "{standby} has no walsender");
    stop(&pids)
}

async fn signal_etcd_leader(cluster: &Cluster, signal: Signal) -> Result<()> {
    for etcd in cluster.etcds() {
        let answer = http::request(
            etcd.client_port,
            "POST",
            "/v3/maintenance/status",
            Some("{}"),
            ETCD_LIMIT,
        );
        let status = answer.await?.json()?;
        let leader = status.get("leader").context("etcd names no leader")?;
        if status.pointer("/header/member_id") == Some(leader) {
            return etcd.signal(signal);
        }
    }
    bail!("no etcd leads")
}
