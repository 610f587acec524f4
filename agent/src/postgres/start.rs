//! Starting PostgreSQL: write its configuration, have the guardian launch it, wait until it accepts
//! connections (`ha-behaviour.md` 9.1).

use super::conf::{self, ConfState};
use super::connect::{self, ConnectError};
use super::history;
use super::pgdata;
use super::shared::{JobCx, JobError, POLL, ProcessSet, chain};
use crate::config::env;
use nix::sys::signal::Signal;
use proto::core::job::{Failure, JobEnd, Upstream};
use proto::core::observation::DataDir;
use std::ffi::OsString;
use std::time::Duration;
use tokio::time::Instant;

/// How long the end of a postmaster may take to be reported after its last process is gone; a start
/// that comes right after a stop waits for it.
const EMPTY_LIMIT: Duration = Duration::from_secs(5);

/// How long a reload may take to reach new sessions. The postmaster reads its files between two
/// connections; only a stuck disk makes that slow.
const RELOAD_LIMIT: Duration = Duration::from_secs(2);

/// [`proto::core::job::Job::StartPrimary`].
pub(super) async fn primary(job: &JobCx, timeout: Duration) -> Result<JobEnd, JobError> {
    let dir = job.ctx().data_dir();
    job.blocking(move || remove_signal_files(&dir)).await?;
    let state = job.shared.conf_state(false, &Upstream::None);
    launch(job, &state, timeout).await
}

/// [`proto::core::job::Job::StartStandby`].
pub(super) async fn standby(
    job: &JobCx,
    follow: &Upstream,
    timeout: Duration,
) -> Result<JobEnd, JobError> {
    let dir = job.ctx().data_dir();
    job.blocking(move || history::vacate(&dir)).await?;
    let state = job.shared.conf_state(true, follow);
    launch(job, &state, timeout).await
}

/// Writes the files, launches the postmaster and waits. When it lives but does not accept connections
/// at the limit, or when the job is cancelled from then on, the start goes on without the job.
pub(super) async fn launch(
    job: &JobCx,
    state: &ConfState,
    timeout: Duration,
) -> Result<JobEnd, JobError> {
    ready_to_start(job).await?;
    job.shared.write_conf(state).await?;
    launch_written(job, state, timeout).await
}

/// The same for what a bootstrap has just made, which carries its mark.
pub(super) async fn launch_made(
    job: &JobCx,
    state: &ConfState,
    timeout: Duration,
) -> Result<JobEnd, JobError> {
    nothing_runs(job).await?;
    job.shared.write_conf(state).await?;
    job.phase("starting").await;
    start_postmaster(job, state, timeout).await
}

/// The same with files that are written already.
pub(super) async fn launch_written(
    job: &JobCx,
    state: &ConfState,
    timeout: Duration,
) -> Result<JobEnd, JobError> {
    job.phase("starting").await;
    ready_to_start(job).await?;
    start_postmaster(job, state, timeout).await
}

async fn start_postmaster(
    job: &JobCx,
    state: &ConfState,
    timeout: Duration,
) -> Result<JobEnd, JobError> {
    let command = conf::command_line(job.ctx(), state).await?;
    job.check()?;
    let env = postmaster_environment(job);
    // S2: the agent may have stood still since it ordered this, for longer than the deadline of then.
    let bounded = job.bounded && !state.standby;
    let pid = job
        .shared
        .guardian
        .start_postmaster(command, env, None, bounded)
        .await?;
    // The guardian's own report may already have said more, for example that it has ended.
    job.shared.processes.send_if_modified(|set| {
        let fresh = matches!(*set, ProcessSet::Unknown | ProcessSet::Empty);
        if fresh && job.shared.guardian.postmaster() == Some(pid) {
            *set = ProcessSet::Alive(pid);
        }
        fresh
    });
    job.shared.loaded(state);
    tracing::info!(pid, standby = state.standby, "postmaster started");
    let end = wait_accepting(job, pid, timeout).await?;
    save_config_copies(job).await;
    Ok(end)
}

/// Whoever clones from here gets the configuration files with the data.
async fn save_config_copies(job: &JobCx) {
    let config = job.ctx().config();
    let work = move || {
        let pg = &config.postgresql;
        super::clone::save_config_copies(&pg.data_dir, &pg.config_dir, &pg.config_base_name)
    };
    if let Some(Err(err)) = pgdata::on_disk(work).await {
        tracing::warn!(error = chain(&err), "cannot copy the configuration files");
    }
}

/// Nothing may run, and nothing unfinished may be started (S10, S18).
async fn ready_to_start(job: &JobCx) -> Result<(), JobError> {
    nothing_runs(job).await?;
    match pgdata::inspect(job.ctx()).await {
        DataDir::Initialised => Ok(()),
        DataDir::Unfinished(what) => Err(JobError::Failed(Failure::HalfDone(what))),
        other => Err(JobError::other(format!(
            "the data directory cannot be started: {other:?}"
        ))),
    }
}

async fn nothing_runs(job: &JobCx) -> Result<(), JobError> {
    match job.shared.process_set() {
        ProcessSet::Alive(pid) => {
            return Err(JobError::other(format!("postmaster {pid} runs already")));
        }
        ProcessSet::Orphans => {
            if !job.wait_empty(Some(EMPTY_LIMIT)).await? {
                return Err(JobError::other(
                    "processes of an earlier postmaster are left",
                ));
            }
        }
        ProcessSet::Empty | ProcessSet::Unknown => {}
    }
    Ok(())
}

/// The environment of the postmaster. A stale `postmaster.pid` whose number meanwhile belongs to
/// another process, as happens in containers, would keep PostgreSQL from starting; it ignores the one
/// named by `PG_GRANDPARENT_PID` (PostgreSQL source, `CreateLockFile`).
fn postmaster_environment(job: &JobCx) -> Vec<(OsString, OsString)> {
    let mut env = env::postmaster_env();
    let dir = job.ctx().data_dir();
    let stale = pgdata::read_postmaster_pid(&dir).ok().flatten();
    if let Some(stale) = stale.filter(|_| pgdata::running_postmaster(&dir).is_none()) {
        env.push(("PG_GRANDPARENT_PID".into(), stale.pid.to_string().into()));
    }
    env
}

/// Asks by connecting, which is what clients do, until the server accepts, the process dies, or the
/// time is over.
async fn wait_accepting(job: &JobCx, pid: i32, timeout: Duration) -> Result<JobEnd, JobError> {
    let until = Instant::now() + timeout;
    let mut processes = job.shared.processes.subscribe();
    loop {
        if !matches!(*processes.borrow_and_update(), ProcessSet::Alive(alive) if alive == pid) {
            return Err(JobError::other(format!(
                "postmaster {pid} ended while it was starting"
            )));
        }
        match connect::superuser(job.ctx()).await {
            Ok(_) => return Ok(JobEnd::Done),
            // It accepts, whoever may come: that is what this job waits for. The probe tells the rest.
            Err(ConnectError::Other(text)) => {
                tracing::warn!(
                    error = text,
                    "PostgreSQL started, but does not let the superuser in"
                );
                return Ok(JobEnd::Done);
            }
            Err(ConnectError::NoAddress(text)) => return Err(JobError::other(text)),
            Err(
                ConnectError::Refused(_) | ConnectError::Rejecting(_) | ConnectError::Silent(_),
            ) => {}
        }
        if Instant::now() >= until || job.cancel.is_cancelled() {
            return Ok(JobEnd::StillStarting);
        }
        tokio::select! {
            () = tokio::time::sleep(POLL) => {}
            _ = processes.changed() => {}
            () = job.cancel.cancelled() => {}
        }
    }
}

/// Sends SIGHUP and waits until new sessions see the new files; then every other process has been told,
/// too, since the postmaster passes the signal on before it accepts the next session.
pub(super) async fn reload(shared: &super::shared::Shared) -> Result<(), ConnectError> {
    let before = load_time(shared).await?;
    shared
        .guardian
        .signal(Signal::SIGHUP)
        .map_err(|err| ConnectError::Other(chain(&err)))?;
    let until = Instant::now() + RELOAD_LIMIT;
    while Instant::now() < until {
        if load_time(shared).await? != before {
            return Ok(());
        }
        tokio::time::sleep(POLL / 2).await;
    }
    Err(ConnectError::Silent(format!(
        "the reload was not seen within {RELOAD_LIMIT:?}"
    )))
}

/// When the postmaster last read its files, as a fresh session inherits it.
async fn load_time(shared: &super::shared::Shared) -> Result<String, ConnectError> {
    let client = connect::superuser(&shared.ctx).await?;
    let row = client
        .query_one("SELECT pg_catalog.pg_conf_load_time()::text", &[])
        .await
        .map_err(|err| ConnectError::Other(chain(&err)))?;
    row.try_get(0)
        .map_err(|err| ConnectError::Other(chain(&err)))
}

/// Removes `standby.signal` and `recovery.signal`.
pub(super) fn remove_signal_files(dir: &std::path::Path) -> std::io::Result<()> {
    for name in ["standby.signal", "recovery.signal"] {
        match std::fs::remove_file(dir.join(name)) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(err),
            Ok(()) | Err(_) => {}
        }
    }
    Ok(())
}
