//! Changing where a standby streams from (`ha-behaviour.md` 10), and restarting.

use super::pgdata;
use super::shared::{JobCx, JobError, ProcessSet};
use super::start;
use super::stop::{self, Stop};
use proto::core::job::{JobEnd, Upstream};
use std::time::Duration;

/// [`proto::core::job::Job::Follow`]. From PostgreSQL 14 on a reload is enough for all recovery
/// settings, so only a server that was started without `standby.signal` is restarted: it would leave
/// recovery when its WAL ends.
pub(super) async fn run(job: &JobCx, follow: &Upstream) -> Result<JobEnd, JobError> {
    let dir = job.ctx().data_dir();
    if !matches!(job.shared.process_set(), ProcessSet::Alive(_)) {
        return Err(JobError::other("PostgreSQL does not run"));
    }
    if !dir.join("standby.signal").exists() {
        let timeout = job.ctx().config().postgresql.pg_ctl_timeout;
        return restart(job, follow, true, timeout).await;
    }
    job.phase("reloading").await;
    let state = job.shared.conf_state(true, follow);
    job.shared.write_conf(&state).await?;
    // Even when no file changed: an earlier write may not have been loaded.
    start::reload(&job.shared).await?;
    job.shared.loaded(&state);
    tracing::info!(upstream = ?state.upstream, "standby follows");
    Ok(JobEnd::Done)
}

/// [`proto::core::job::Job::Restart`]: stop fast without a limit, start in the same role.
pub(super) async fn again(
    job: &JobCx,
    follow: &Upstream,
    timeout: Duration,
) -> Result<JobEnd, JobError> {
    let standby = pgdata::has_signal_file(&job.ctx().data_dir());
    restart(job, follow, standby, timeout).await
}

async fn restart(
    job: &JobCx,
    follow: &Upstream,
    standby: bool,
    timeout: Duration,
) -> Result<JobEnd, JobError> {
    let stop = Stop {
        checkpoint_first: true,
        ..Stop::fast(None)
    };
    stop::halt(job, &stop).await?;
    let end = if standby {
        start::standby(job, follow, timeout).await
    } else {
        start::primary(job, timeout).await
    };
    if let Err(JobError::Failed(failure)) = &end {
        tracing::error!(
            ?failure,
            "PostgreSQL did not come back after the stop of a restart"
        );
    }
    end
}
