//! Stopping PostgreSQL (`ha-behaviour.md` 8.3). The job ends when the guardian reports that no process
//! is left (S10), never when the postmaster alone is gone.

use super::connect;
use super::controldata;
use super::pgdata;
use super::shared::{JobCx, JobError, ProcessSet, Shared, chain};
use super::tool::Tool;
use crate::config::value::shell_words;
use nix::sys::signal::Signal;
use proto::core::job::{JobEnd, StopMode};
use proto::core::observation::ControlState;
use proto::wal::{Lsn, Timeline};
use std::time::Duration;

/// The checkpoint before a stop is a courtesy: what it does not write, the shutdown checkpoint will.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(300);

/// After SIGQUIT the postmaster itself kills its children after five seconds (PostgreSQL source,
/// `SIGKILL_CHILDREN_AFTER_SECS`).
const QUIT_LIMIT: Duration = Duration::from_secs(6);

/// How long the guardian may take to end what SIGQUIT did not.
const FENCE_LIMIT: Duration = Duration::from_secs(10);

/// How to stop.
pub(super) struct Stop {
    /// How the postmaster is asked.
    pub mode: StopMode,
    /// `CHECKPOINT` first.
    pub checkpoint_first: bool,
    /// Before it is asked less politely; `None`: no limit.
    pub timeout: Option<Duration>,
}

impl Stop {
    /// Fast, without a checkpoint, with a limit: before a rewind, a reinitialisation, a restart.
    pub fn fast(timeout: Option<Duration>) -> Self {
        Self {
            mode: StopMode::Fast,
            checkpoint_first: false,
            timeout,
        }
    }

    /// Immediate: what is in the directory will not be needed.
    pub fn immediate() -> Self {
        Self {
            mode: StopMode::Immediate,
            checkpoint_first: false,
            timeout: Some(QUIT_LIMIT),
        }
    }
}

/// [`proto::core::job::Job::Stop`].
pub(super) async fn run(job: &JobCx, stop: &Stop) -> Result<JobEnd, JobError> {
    halt(job, stop).await?;
    Ok(JobEnd::Stopped {
        shutdown: shutdown_position(job).await,
    })
}

/// Stops, whatever runs. Cancelling it after the signal leaves PostgreSQL shutting down.
pub(super) async fn halt(job: &JobCx, stop: &Stop) -> Result<(), JobError> {
    match job.shared.process_set() {
        ProcessSet::Empty | ProcessSet::Unknown => return Ok(()),
        // Only the guardian's way ends processes without a postmaster.
        ProcessSet::Orphans => return fence(job).await,
        ProcessSet::Alive(pid) => adopt(job, pid).await?,
    }
    if stop.checkpoint_first {
        job.phase("checkpoint").await;
        let limit = stop.timeout.unwrap_or(CHECKPOINT_LIMIT);
        let done = job
            .cancel
            .run_until_cancelled(checkpoint(&job.shared, limit))
            .await;
        if let Err(error) = done.ok_or(JobError::Cancelled)? {
            tracing::warn!(error, "checkpoint before the stop failed");
        }
    }
    before_stop(job).await?;
    job.check()?;
    job.phase("stopping").await;
    let signal = match stop.mode {
        StopMode::Smart => Signal::SIGTERM,
        StopMode::Fast => Signal::SIGINT,
        StopMode::Immediate => Signal::SIGQUIT,
    };
    job.shared.guardian.signal(signal)?;
    if job.wait_empty(stop.timeout).await? {
        return Ok(());
    }
    if stop.mode != StopMode::Immediate {
        tracing::warn!(limit = ?stop.timeout, "stop took too long, asking for an immediate one");
        job.phase("stopping immediately").await;
        job.shared.guardian.signal(Signal::SIGQUIT)?;
        if job.wait_empty(Some(QUIT_LIMIT)).await? {
            return Ok(());
        }
    }
    fence(job).await
}

/// Has the guardian end every process.
async fn fence(job: &JobCx) -> Result<(), JobError> {
    tracing::warn!("ending every process of PostgreSQL");
    job.phase("fencing").await;
    job.shared.guardian.fence()?;
    if job.wait_empty(Some(FENCE_LIMIT)).await? {
        return Ok(());
    }
    Err(JobError::other(format!(
        "processes are left {FENCE_LIMIT:?} after they were killed"
    )))
}

/// A postmaster that somebody else started is taken over first, so that its end is seen. A single-user
/// server is never signalled: it is somebody's open session.
async fn adopt(job: &JobCx, pid: i32) -> Result<(), JobError> {
    if job.shared.guardian.postmaster().is_some() {
        return Ok(());
    }
    let file = pgdata::read_postmaster_pid(&job.ctx().data_dir())?;
    if file.is_some_and(|file| file.single_user) {
        return Err(JobError::other(format!(
            "process {pid} is a single-user server"
        )));
    }
    job.shared.guardian.adopt(pid).await?;
    job.shared.processes.send_replace(ProcessSet::Alive(pid));
    Ok(())
}

/// `CHECKPOINT` on the local server.
pub(super) async fn checkpoint(shared: &Shared, limit: Duration) -> Result<(), String> {
    let work = async {
        let client = connect::superuser(&shared.ctx)
            .await
            .map_err(|err| chain(&err))?;
        let sql = "SET statement_timeout = 0; CHECKPOINT";
        client.batch_execute(sql).await.map_err(|err| chain(&err))
    };
    let late = || format!("it took longer than {limit:?}");
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// Runs the operator's script; it cannot prevent the stop.
async fn before_stop(job: &JobCx) -> Result<(), JobError> {
    let config = job.ctx().config();
    let Some(command) = &config.postgresql.before_stop else {
        return Ok(());
    };
    job.phase("before_stop").await;
    let words = shell_words(command).unwrap_or_default();
    let Some(script) = Tool::from_words(&words) else {
        return Ok(());
    };
    match job
        .tool(script.limit(config.postgresql.pg_ctl_timeout))
        .await
    {
        Ok(_) => {}
        Err(JobError::Cancelled) => return Err(JobError::Cancelled),
        Err(JobError::Failed(failure)) => tracing::warn!(?failure, "before_stop failed"),
    }
    Ok(())
}

/// Where the WAL of a primary that was shut down in order ends, and on which timeline. A standby's last
/// checkpoint record is its primary's, so it says nothing about an end.
async fn shutdown_position(job: &JobCx) -> Option<(Timeline, Lsn)> {
    let control = match controldata::read(job.ctx()).await {
        Ok(control) => control,
        Err(err) => {
            tracing::warn!(error = chain(&err), "cannot say where the WAL ends");
            return None;
        }
    };
    match control.state {
        ControlState::ShutDown => Some((control.timeline, control.checkpoint_end?)),
        _ => None,
    }
}
