//! Signals to processes.

use super::{Scene, Who, is_stopped, send, stop};
use crate::fault::Fault;
use crate::member::Member;
use crate::process;
use crate::session;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::time::Duration;

/// A supervisor (systemd) starts a crashed agent again after this time.
const SUPERVISOR: Duration = Duration::from_millis(300);
/// Sees a process through every fork that was under way: the scan is repeated this often.
const SCANS: u32 = 3;
/// An agent that crashes again and again lives so long each time, so often.
const CRASHES: (Duration, u32) = (Duration::from_millis(700), 12);

/// What is done to processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProcessFault {
    /// SIGKILL of the agent, started again by its supervisor.
    AgentRestarted(Who),
    /// SIGKILL of the agent, which stays away.
    AgentGone(Who),
    /// SIGSTOP of the agent.
    AgentStopped(Who),
    /// The agent is killed shortly after each start.
    AgentCrashLoop,
    /// SIGKILL of the primary's agent and guardian.
    GuardianGone,
    /// SIGSTOP of the primary's agent and guardian.
    GuardianStopped,
    /// SIGKILL of the primary's guardian alone.
    GuardianKilled,
    /// SIGSTOP of the primary's guardian alone.
    GuardianPaused,
    /// SIGSTOP of everything on the node.
    NodeFrozen(Who),
    /// SIGKILL of everything on the node.
    NodeLost(Who),
    /// SIGKILL of everything on all standbys.
    StandbysLost,
    /// SIGKILL of everything on the primary's node and on a standby's.
    TwoLost,
    /// SIGKILL of everything but etcd.
    AllLost,
    /// SIGKILL of the postmaster.
    PostmasterGone(Who),
    /// SIGSTOP of the postmaster.
    PostmasterStopped(Who),
    /// SIGKILL of a session's process, which makes PostgreSQL restart all of them.
    BackendKilled,
    /// SIGSTOP of all sessions' processes.
    BackendsStopped,
    /// SIGKILL of the checkpointer.
    CheckpointerKilled,
    /// SIGSTOP of the walsenders of a synchronous standby.
    WalsenderStopped,
    /// SIGKILL of those.
    WalsenderKilled,
    /// SIGSTOP of a synchronous standby's walreceiver.
    WalreceiverStopped,
}

impl ProcessFault {
    pub(super) async fn inject(self, scene: &Scene<'_>) -> Result<()> {
        let primary = scene.member(Who::Primary)?;
        match self {
            Self::AgentRestarted(who) => {
                kill_agent(scene.member(who)?)?;
                tokio::time::sleep(SUPERVISOR).await;
                scene.member(who)?.start()
            }
            Self::AgentGone(who) => kill_agent(scene.member(who)?),
            Self::AgentStopped(who) => {
                stop(&[scene.member(who)?.agent().context("no agent runs")?])
            }
            Self::AgentCrashLoop => crash_loop(primary).await,
            Self::GuardianGone => send(&agent_and_guardian(primary)?, Signal::SIGKILL),
            Self::GuardianStopped => stop(&agent_and_guardian(primary)?),
            Self::GuardianKilled => {
                let guardian = primary.guardian().context("no guardian runs")?;
                send(&[guardian], Signal::SIGKILL)
            }
            Self::GuardianPaused => stop(&[primary.guardian().context("no guardian runs")?]),
            Self::NodeFrozen(who) => freeze(scene.member(who)?),
            Self::NodeLost(who) => scene.member(who)?.lose(),
            Self::StandbysLost => {
                let mut standbys = scene.now.replicas.iter();
                standbys.try_for_each(|index| scene.cluster.member(*index)?.lose())
            }
            Self::TwoLost => {
                scene.member(Who::Standby)?.lose()?;
                primary.lose()
            }
            Self::AllLost => scene.cluster.members().iter().try_for_each(Member::lose),
            Self::PostmasterGone(who) => {
                let index = match who {
                    Who::Primary => scene.now.leader,
                    Who::Standby => scene.standby()?,
                };
                Fault::KillPostmaster(index).inject(scene.cluster)
            }
            Self::PostmasterStopped(who) => {
                let postmaster = scene.member(who)?.postmaster();
                stop(&[postmaster.context("no postmaster runs")?])
            }
            Self::BackendKilled => {
                let pids = pids(primary, OF_CLIENTS).await?;
                let one = pids.first().context("there is no session")?;
                send(&[*one], Signal::SIGKILL)
            }
            Self::BackendsStopped => stop(&pids(primary, OF_CLIENTS).await?),
            Self::CheckpointerKilled => {
                send(&pids(primary, OF_CHECKPOINTER).await?, Signal::SIGKILL)
            }
            Self::WalsenderStopped => stop(&walsenders(scene).await?),
            Self::WalsenderKilled => send(&walsenders(scene).await?, Signal::SIGKILL),
            Self::WalreceiverStopped => {
                stop(&pids(scene.member(Who::Standby)?, OF_WALRECEIVER).await?)
            }
        }
    }
}

const OF_CLIENTS: &str = "SELECT pid FROM pg_stat_activity \
     WHERE application_name = 'chaos' AND pid <> pg_backend_pid()";
const OF_CHECKPOINTER: &str =
    "SELECT pid FROM pg_stat_activity WHERE backend_type = 'checkpointer'";
const OF_WALRECEIVER: &str = "SELECT pid FROM pg_stat_wal_receiver WHERE pid IS NOT NULL";

async fn pids(member: &Member, query: &str) -> Result<Vec<i32>> {
    let client = session::client(member.postgres_port).await?;
    let rows = tokio::time::timeout(session::STATEMENT_LIMIT, client.query(query, &[])).await;
    let rows = rows.context("ask for processes: no answer")?;
    let rows = rows.context("ask for processes")?;
    ensure!(!rows.is_empty(), "{} has no such process", member.name);
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

async fn walsenders(scene: &Scene<'_>) -> Result<Vec<i32>> {
    // The harness names its members itself: there is nothing to escape.
    let standby = &scene.member(Who::Standby)?.name;
    let query = format!("SELECT pid FROM pg_stat_replication WHERE application_name = '{standby}'");
    pids(scene.member(Who::Primary)?, &query).await
}

fn kill_agent(member: &Member) -> Result<()> {
    ensure!(member.agent().is_some(), "no agent runs");
    member.signal_agent(Signal::SIGKILL)?;
    ensure!(
        member.wait_agent(Duration::from_secs(5)),
        "it survives SIGKILL"
    );
    Ok(())
}

async fn crash_loop(member: &Member) -> Result<()> {
    let (life, times) = CRASHES;
    for _ in 0..times {
        if member.agent().is_some() {
            kill_agent(member)?;
        }
        tokio::time::sleep(SUPERVISOR).await;
        member.start()?;
        tokio::time::sleep(life).await;
    }
    Ok(())
}

fn agent_and_guardian(member: &Member) -> Result<[i32; 2]> {
    let agent = member.agent().context("no agent runs")?;
    Ok([agent, member.guardian().context("no guardian runs")?])
}

/// Everything of a node, the agent and the guardian first.
fn freeze(member: &Member) -> Result<()> {
    let first = [member.agent(), member.guardian()];
    let first: Vec<i32> = first.into_iter().flatten().collect();
    send(&first, Signal::SIGSTOP)?;
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
