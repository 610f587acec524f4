//! Promotion (`ha-behaviour.md` 7.2): the operator's `pre_promote`, the order, and a wait until the
//! server is out of recovery.

use super::connect;
use super::history;
use super::shared::{JobCx, JobError, ProcessSet, chain};
use super::tool::Tool;
use crate::config::value::shell_words;
use nix::sys::signal::Signal;
use proto::core::job::{Failure, JobEnd};
use proto::wal::Timeline;
use std::time::Duration;
use tokio::time::Instant;
use tokio_postgres::Client;

/// How often the server is asked whether it is out of recovery: 50 ms is what a promotion takes.
const OUT_POLL: Duration = Duration::from_millis(10);

/// The shortest time that the end of recovery is waited for, whatever `primary_start_timeout` says.
const OUT_LIMIT_MIN: Duration = Duration::from_secs(60);

/// `pre_promote` keeps the whole cluster without a primary; longer than this it is broken.
const PRE_PROMOTE_LIMIT: Duration = Duration::from_secs(300);

/// [`proto::core::job::Job::Promote`]. [`JobEnd::StillStarting`] when recovery did not end in time; it
/// goes on.
pub(super) async fn run(job: &JobCx, above: Timeline) -> Result<JobEnd, JobError> {
    pre_promote(job).await?;
    job.check()?;
    if !matches!(job.shared.process_set(), ProcessSet::Alive(_)) {
        return Err(JobError::other("PostgreSQL does not run"));
    }
    let dir = job.ctx().data_dir();
    job.blocking(move || history::occupy(&dir, above)).await?;
    for slot in job.shared.unproved.borrow().iter() {
        // Availability comes first: the operator decides what becomes of its consumer.
        tracing::warn!(
            slot,
            "this copy of a logical slot is not proved to be usable: its consumer may have to begin anew"
        );
    }
    job.phase("promoting").await;
    let client = match order(job).await {
        Ok(client) => client,
        Err(err) => {
            let dir = job.ctx().data_dir();
            job.blocking(move || history::vacate(&dir)).await?;
            return Err(err);
        }
    };
    let limit = OUT_LIMIT_MIN.max(job.ctx().cluster().primary_start_timeout);
    wait_out_of_recovery(job, client, Some(limit)).await
}

/// A failure here leaves everything as it was.
async fn pre_promote(job: &JobCx) -> Result<(), JobError> {
    let config = job.ctx().config();
    let Some(command) = &config.postgresql.pre_promote else {
        return Ok(());
    };
    job.phase("pre_promote").await;
    let refused = |why: String| JobError::Failed(Failure::PrePromote(why));
    let open_quote = || refused(format!("a quotation does not end: {command}"));
    let words = shell_words(command).ok_or_else(open_quote)?;
    let Some(script) = Tool::from_words(&words) else {
        return Ok(());
    };
    match job.tool(script.limit(PRE_PROMOTE_LIMIT)).await {
        Ok(_) => Ok(()),
        Err(JobError::Failed(Failure::Other(why))) => Err(refused(why)),
        Err(other) => Err(other),
    }
}

/// Orders the promotion: by SQL, or by file and signal when no session can be had (all connections are
/// taken, say). Returns the session, if there is one.
async fn order(job: &JobCx) -> Result<Option<Client>, JobError> {
    match connect::superuser(job.ctx()).await {
        Ok(client) => {
            if !in_recovery(&client).await? {
                return Ok(Some(client));
            }
            // Without waiting: the wait below notices a dead process and a cancelled job.
            client
                .query_one("SELECT pg_catalog.pg_promote(false)", &[])
                .await?;
            Ok(Some(client))
        }
        Err(err) => {
            tracing::warn!(
                error = chain(&err),
                "no session to promote with, using the signal file"
            );
            let file = job.ctx().data_dir().join("promote");
            job.blocking(move || std::fs::write(file, "")).await?;
            job.shared.guardian.signal(Signal::SIGUSR1)?;
            Ok(None)
        }
    }
}

/// Asks until the server is out of recovery. A session that breaks is opened again.
pub(super) async fn wait_out_of_recovery(
    job: &JobCx,
    mut client: Option<Client>,
    limit: Option<Duration>,
) -> Result<JobEnd, JobError> {
    let until = limit.map(|limit| Instant::now() + limit);
    loop {
        if let Some(session) = &client {
            match in_recovery(session).await {
                Ok(false) => return Ok(JobEnd::Done),
                Ok(true) => {}
                Err(_) => client = None,
            }
        }
        if !matches!(job.shared.process_set(), ProcessSet::Alive(_)) {
            return Err(JobError::other(
                "the postmaster ended before it was out of recovery",
            ));
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Ok(JobEnd::StillStarting);
        }
        job.pause(OUT_POLL).await?;
        if client.is_none() {
            client = connect::superuser(job.ctx()).await.ok();
        }
    }
}

/// `pg_is_in_recovery()`.
pub(super) async fn in_recovery(client: &Client) -> Result<bool, tokio_postgres::Error> {
    client
        .query_one("SELECT pg_catalog.pg_is_in_recovery()", &[])
        .await?
        .try_get(0)
}
