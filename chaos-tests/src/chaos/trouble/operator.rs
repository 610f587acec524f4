//! People, by the control tool and by hand.

use super::{Held, Scene, Who};
use crate::cluster::Cluster;
use crate::etcd_api;
use crate::process::{self, Launch};
use crate::session;
use crate::steps::SETTLE_LIMIT;
use crate::template::SCOPE;
use crate::wait;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Sessions that are opened at most to use all of them up.
const SESSIONS_MAX: usize = 120;
/// PostgreSQL ends by hand within this time.
const STOP_LIMIT: Duration = Duration::from_secs(60);
/// A member that is down in pause stays so for this long.
const PAUSE: Duration = Duration::from_secs(6);
/// Who led last leads again this long after etcd was lost: `ttl`, in which another member could still hold a lease
/// that this etcd knows nothing of, and a start of its PostgreSQL.
const LOST_ETCD: Duration = Duration::from_secs(60);
/// A member that was named leads within this time.
const NAMED: Duration = Duration::from_secs(20);
/// So often somebody is named: the first may have been restarted just then.
const NAMED_MAX: usize = 4;

/// What people do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorFault {
    /// A planned switchover.
    Switchover,
    /// Two at once, to different members.
    SwitchoverTwice,
    /// To a member that is dead: it must be refused.
    SwitchoverToDead,
    /// To a standby whose replay and stream stand still.
    SwitchoverToStopped,
    /// With a callback that never ends.
    SwitchoverHungCallback,
    /// A failover to a named standby, forced.
    ForcedFailover,
    /// Pause, the primary's postmaster is killed, resume.
    PauseKillResume,
    /// Pause, the primary's node is lost, resume.
    PauseLoseResume,
    /// `pg_promote()` on a standby.
    HandPromote,
    /// `pg_ctl stop -m fast` on the primary.
    HandStop,
    /// `ALTER SYSTEM SET synchronous_standby_names = ''` on the primary.
    HandSyncNames,
    /// A restart of the primary.
    Restart,
    /// A standby is copied anew.
    Reinit,
    /// Replication becomes asynchronous, and what it was again.
    ModeChange,
    /// All connections of the primary are taken.
    ConnectionsGone,
}

impl OperatorFault {
    pub(super) async fn inject(self, scene: &mut Scene<'_>) -> Result<()> {
        let cluster = scene.cluster;
        let leader = scene.member(Who::Primary)?.name.clone();
        let standby = scene.member(Who::Standby)?.name.clone();
        let switchover = ["switchover", SCOPE, "--leader", &leader, "--force"];
        match self {
            Self::Switchover => cluster.ctl_ok(&switchover).await.map(|_| ()),
            Self::SwitchoverTwice => twice(scene, &switchover).await,
            Self::SwitchoverToDead => {
                scene.member(Who::Standby)?.lose()?;
                tokio::time::sleep(Duration::from_secs(1)).await;
                let to = [&switchover[..], &["--candidate", &standby]].concat();
                let (status, output) = cluster.ctl(&to).await?;
                // Whether it was refused shows in who leads; the tool may have been told later.
                ensure!(!status.success() || !output.is_empty(), "no answer at all");
                Ok(())
            }
            Self::SwitchoverToStopped => {
                let pids = process::below(&scene.member(Who::Standby)?.data_dir());
                super::stop(&pids)?;
                let to = [&switchover[..], &["--candidate", &standby]].concat();
                cluster.ctl(&to).await.map(|_| ())
            }
            Self::SwitchoverHungCallback => {
                let flag = cluster.dir().join(HANG);
                std::fs::write(&flag, "").context("make callbacks hang")?;
                scene.held.files.push(flag);
                cluster.ctl_ok(&switchover).await.map(|_| ())
            }
            Self::ForcedFailover => {
                let args = ["failover", SCOPE, "--candidate", &standby, "--force"];
                cluster.ctl_ok(&args).await.map(|_| ())
            }
            Self::PauseKillResume => {
                pause(scene).await?;
                let pid = scene.member(Who::Primary)?.postmaster();
                let pid = pid.context("no postmaster runs")?;
                kill(Pid::from_raw(pid), Signal::SIGKILL).context("send SIGKILL")?;
                tokio::time::sleep(PAUSE).await;
                resume(cluster, scene.held).await
            }
            Self::PauseLoseResume => {
                pause(scene).await?;
                scene.member(Who::Primary)?.lose()?;
                tokio::time::sleep(PAUSE).await;
                resume(cluster, scene.held).await
            }
            Self::HandPromote => {
                let query = "SELECT pg_promote(false)";
                run_sql(scene.member(Who::Standby)?.postgres_port, &[query]).await
            }
            Self::HandStop => hand_stop(scene).await,
            Self::HandSyncNames => {
                let set = "ALTER SYSTEM SET synchronous_standby_names = ''";
                let statements = [set, "SELECT pg_reload_conf()"];
                run_sql(scene.member(Who::Primary)?.postgres_port, &statements).await
            }
            Self::Restart => {
                let args = ["restart", SCOPE, &leader, "--force"];
                cluster.ctl_ok(&args).await.map(|_| ())
            }
            Self::Reinit => {
                let args = ["reinit", SCOPE, &standby, "--force"];
                cluster.ctl_ok(&args).await.map(|_| ())
            }
            Self::ModeChange => {
                scene.held.mode_changed = true;
                set_mode(cluster, "off").await
            }
            Self::ConnectionsGone => take_connections(scene).await,
        }
    }
}

/// While this file is there, callbacks of all members do not end.
pub(in crate::chaos) const HANG: &str = "callbacks-hang";

async fn twice(scene: &Scene<'_>, switchover: &[&str]) -> Result<()> {
    let mut asked = Vec::new();
    for index in &scene.now.replicas {
        asked.push(scene.cluster.member(*index)?.name.clone());
    }
    let [one, other] = asked.as_slice() else {
        anyhow::bail!("there are not two standbys");
    };
    let one = [switchover, &["--candidate", one]].concat();
    let other = [switchover, &["--candidate", other]].concat();
    let (one, other) = tokio::join!(scene.cluster.ctl(&one), scene.cluster.ctl(&other));
    let (one, other) = (one?.0.success(), other?.0.success());
    ensure!(one || other, "both were refused");
    Ok(())
}

async fn pause(scene: &mut Scene<'_>) -> Result<()> {
    scene.held.paused = true;
    scene.cluster.ctl_ok(&["pause", SCOPE, "--wait"]).await?;
    Ok(())
}

async fn resume(cluster: &Cluster, held: &mut Held) -> Result<()> {
    let (_, output) = cluster.ctl(&["resume", SCOPE]).await?;
    // It ends with 0 also when the member that it asked could not reach etcd. And where etcd was away, the pause
    // may never have begun.
    let resumed = ["Success", "Cluster is not paused"];
    let resumed = resumed.iter().any(|text| output.contains(text));
    ensure!(resumed, "resume: {output}");
    held.paused = false;
    Ok(())
}

async fn set_mode(cluster: &Cluster, mode: &str) -> Result<()> {
    let set = format!("synchronous_mode={mode}");
    cluster
        .ctl_ok(&["edit-config", SCOPE, "--set", &set, "--force"])
        .await?;
    Ok(())
}

/// Puts back what people had changed.
pub(super) async fn heal(cluster: &Cluster, held: &mut Held) -> Result<()> {
    let end = Instant::now() + SETTLE_LIMIT;
    while held.paused {
        match resume(cluster, held).await {
            Err(error) if Instant::now() > end => return Err(error),
            _ => tokio::time::sleep(wait::POLL).await,
        }
    }
    if std::mem::take(&mut held.mode_changed) {
        let mode = match cluster.synchronous() {
            serde_json::Value::String(mode) => mode.clone(),
            other => other.to_string(),
        };
        set_mode(cluster, &mode).await?;
    }
    Ok(())
}

/// What `docs/how-to/recover-from-lost-etcd.md` asks when the member that led last is lost together with etcd (S23):
/// nobody leads by itself, so the member with the most WAL is named.
pub(super) async fn name_the_best(cluster: &Cluster, held: &mut Held) -> Result<()> {
    if !std::mem::take(&mut held.etcd_wiped) {
        return Ok(());
    }
    let ports = super::etcd_ports(cluster);
    let key = format!("/service/{SCOPE}/initialize");
    let known = || async {
        let entry = etcd_api::get(&ports, &key).await;
        let entry = entry.map_err(|error| format!("{error:#}"))?;
        // Empty while somebody makes a cluster.
        let known = !entry.value.is_empty();
        known.then_some(()).ok_or("nobody leads".to_owned())
    };
    let mut limit = LOST_ETCD;
    for _ in 0..NAMED_MAX {
        if wait::until("the last primary to lead", limit, known)
            .await
            .is_ok()
        {
            return Ok(());
        }
        let best = most_wal(cluster).await;
        let best = best.context("no member says how much WAL it has")?;
        println!("    etcd was lost with the last primary: {best} is named");
        let args = ["failover", SCOPE, "--candidate", &best, "--force"];
        cluster.ctl(&args).await?;
        limit = NAMED;
    }
    wait::until("the member that was named to lead", limit, known).await
}

/// By timeline first, then by position, as the page says.
async fn most_wal(cluster: &Cluster) -> Option<String> {
    let mut best = None;
    for member in cluster.members() {
        if let Some(status) = member.status().await {
            let has = (status.timeline, status.position, &member.name);
            best = best.max(status.position.is_some().then_some(has));
        }
    }
    best.map(|(_, _, name)| name.clone())
}

async fn run_sql(port: u16, statements: &[&str]) -> Result<()> {
    let client = session::client(port).await?;
    for statement in statements {
        let done = tokio::time::timeout(session::STATEMENT_LIMIT, client.batch_execute(statement));
        done.await
            .with_context(|| format!("{statement}: no answer"))?
            .with_context(|| (*statement).to_owned())?;
    }
    Ok(())
}

async fn take_connections(scene: &mut Scene<'_>) -> Result<()> {
    let port = scene.member(Who::Primary)?.postgres_port;
    for _ in 0..SESSIONS_MAX {
        match session::client(port).await {
            Ok(client) => scene.held.sessions.push(client),
            Err(_) => return Ok(()),
        }
    }
    anyhow::bail!("{SESSIONS_MAX} sessions were not enough")
}

async fn hand_stop(scene: &Scene<'_>) -> Result<()> {
    let primary = scene.member(Who::Primary)?;
    let program = scene.cluster.binaries().postgres.join("pg_ctl");
    let (data, dir) = (primary.data_dir(), primary.dir.clone());
    let (user, network) = (primary.user.clone(), primary.network.clone());
    let task = tokio::task::spawn_blocking(move || {
        let log = dir.join("pg_ctl.log");
        let args = ["stop", "-m", "fast", "-w", "-D"].map(Into::into);
        let launch = Launch {
            program: &program,
            args: args.into_iter().chain([data.into_os_string()]).collect(),
            env: BTreeMap::new(),
            cwd: &dir,
            log: &log,
            user: user.as_ref(),
            network: network.as_ref().map(AsRawFd::as_raw_fd),
        };
        process::run(&launch, STOP_LIMIT)
    });
    let (status, output) = task.await.context("run pg_ctl")??;
    // The agent may have been quicker than pg_ctl in finding it gone, and started it again.
    ensure!(status.success() || output.contains("stop"), "{output}");
    Ok(())
}
