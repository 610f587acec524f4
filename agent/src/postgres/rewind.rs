//! `pg_rewind` (`ha-behaviour.md` 11.4) and the crash recovery before it (9.3).
//!
//! An interrupted rewind leaves pages of two histories behind an old control file, which PostgreSQL
//! would happily start (S18). `pg_rewind` removes every regular file that the source does not have, a
//! mark of ours included; but it looks at regular files, directories and links only. So the mark that
//! lies in the directory while it works is a FIFO ([`pgdata::REWINDING_FIFO`]).

use super::archive;
use super::conf;
use super::connect::{self, ConninfoKind};
use super::controldata;
use super::lineage;
use super::pgdata;
use super::shared::{JobCx, JobError, ProcessSet, chain};
use super::start::remove_signal_files;
use super::stop::{self, Stop};
use super::tool::{self, Tool};
use crate::clock;
use crate::config::PostgresConfig;
use proto::core::job::{Failure, JobEnd, Upstream};
use proto::core::observation::{ControlData, ControlState};
use proto::ids::MemberName;
use proto::wal::{Lsn, Timeline};
use std::ffi::OsString;
use std::time::Duration;
use tokio::time::Instant;

/// How long the source may take to have its timeline in its control file; its own agent orders a
/// checkpoint right after the promotion.
const SOURCE_CHECKPOINT_LIMIT: Duration = Duration::from_secs(30);

/// How often it is asked.
const SOURCE_POLL: Duration = Duration::from_millis(200);

/// Counting what a rewind throws away is for the log; it may not delay the rewind.
const COUNT_LIMIT: Duration = Duration::from_secs(5);

/// [`proto::core::job::Job::Rewind`]. PostgreSQL is down at the end, whatever the end is.
pub(super) async fn run(job: &JobCx, source: &Upstream) -> Result<JobEnd, JobError> {
    job.phase("checking the source").await;
    source_is_ready(job, source).await?;
    let limit = job.ctx().config().postgresql.pg_ctl_timeout;
    stop::halt(job, &Stop::fast(Some(limit))).await?;
    let control = controldata::read(job.ctx()).await?;
    let control = if tells_its_timeline(&control) {
        control
    } else {
        crash_recovery(job).await?;
        controldata::read(job.ctx()).await?
    };
    archive::flush(job).await?;
    report_loss(job, source, &control).await;
    rewind(job, source).await?;
    Ok(JobEnd::Done)
}

/// Whether `pg_rewind` finds in the control file on which timeline the WAL ends. Before PostgreSQL 16 it
/// looks at the last checkpoint alone, and a standby that went on to another timeline has none there: "no
/// rewind required", for ever. Single-user recovery goes as far and ends with a checkpoint.
fn tells_its_timeline(control: &ControlData) -> bool {
    let clean = [ControlState::ShutDown, ControlState::ShutDownInRecovery];
    clean.contains(&control.state) && control.min_recovery_timeline <= control.timeline
}

/// It must be out of recovery, with a checkpoint on its own timeline: `pg_rewind` reads the timeline
/// from the control file, and finds no divergence before that.
async fn source_is_ready(job: &JobCx, source: &Upstream) -> Result<(), JobError> {
    let client = lineage::session(job.ctx(), source)
        .await
        .map_err(|err| JobError::source(&err))?;
    let until = Instant::now() + SOURCE_CHECKPOINT_LIMIT;
    let mut ordered = false;
    loop {
        let row = client
            .query_one(
                "SELECT pg_catalog.pg_is_in_recovery(), CASE WHEN pg_catalog.pg_is_in_recovery() \
                 THEN NULL ELSE pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) END, \
                 (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint())",
                &[],
            )
            .await
            .map_err(|err| JobError::source(&err))?;
        let (in_recovery, segment, checkpointed): (bool, Option<String>, i32) =
            (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        let current = segment.as_deref().and_then(|name| name.get(..8));
        let current = current.and_then(|hex| i32::from_str_radix(hex, 16).ok());
        if in_recovery {
            return Err(unavailable("the source is in recovery"));
        }
        if current == Some(checkpointed) {
            return Ok(());
        }
        if !std::mem::replace(&mut ordered, true) {
            // Allowed to superusers, and from PostgreSQL 15 on to members of pg_checkpoint; others
            // wait for the checkpoint that the source's own agent orders.
            let order = client
                .batch_execute("SET statement_timeout = 0; CHECKPOINT")
                .await;
            if let Err(err) = order {
                tracing::debug!(error = chain(&err), "the source makes its own checkpoint");
            }
            continue;
        }
        if Instant::now() >= until {
            return Err(unavailable(
                "the source has not made a checkpoint on its timeline yet",
            ));
        }
        job.pause(SOURCE_POLL).await?;
    }
}

fn unavailable(why: &str) -> JobError {
    JobError::Failed(Failure::SourceUnavailable(why.to_owned()))
}

/// Says in the log what the rewind drops: the commits behind the point of divergence exist only here.
async fn report_loss(job: &JobCx, source: &Upstream, control: &ControlData) {
    let name = match source {
        Upstream::Member { name, .. } => name.clone(),
        Upstream::Remote { .. } | Upstream::None => MemberName::from("remote"),
    };
    let Ok(lineage) = lineage::ask(job.ctx(), name, source).await else {
        return;
    };
    let (timeline, end) = (
        control.timeline,
        control.checkpoint_end.unwrap_or(control.checkpoint),
    );
    let Some(divergence) = lineage
        .history
        .switch_point(timeline)
        .filter(|point| *point < end)
    else {
        return;
    };
    let commits = count_commits(job, timeline, divergence, end).await;
    tracing::warn!(
        timeline = timeline.0,
        from = %divergence,
        to = %end,
        bytes = end.bytes_ahead_of(divergence),
        commits,
        "the rewind drops WAL that only this member has"
    );
}

/// Commit records between two positions, as far as they can be counted in time.
async fn count_commits(job: &JobCx, timeline: Timeline, from: Lsn, to: Lsn) -> Option<usize> {
    let wal = job.ctx().data_dir().join("pg_wal");
    let tool = Tool::new(job.ctx().bin("pg_waldump"), ["--rmgr=Transaction"])
        .arg(format!("--timeline={}", timeline.0))
        .arg(format!("--start={from}"))
        .arg(format!("--end={to}"))
        .arg("--path")
        .arg(wal)
        .env("LC_ALL", "C")
        .limit(COUNT_LIMIT);
    let output = tool::run_until(tool, &job.cancel).await.ok()?;
    Some(
        output
            .text()
            .lines()
            .filter(|line| line.contains("desc: COMMIT"))
            .count(),
    )
}

async fn rewind(job: &JobCx, source: &Upstream) -> Result<(), JobError> {
    let config = job.ctx().config();
    let pg = &config.postgresql;
    let conninfo = connect::conninfo(job.ctx(), source, ConninfoKind::Rewind)
        .await
        .map_err(|err| JobError::source(&err))?;
    let version = job.ctx().major_version().await?;
    let tool = Tool::new(
        job.ctx().bin("pg_rewind"),
        rewind_args(pg, &conninfo, version),
    )
    .env("PGPASSFILE", &pg.pgpass)
    .env("PGOPTIONS", "-c statement_timeout=0")
    .env("LC_ALL", "C")
    .dies_with_us();
    let dir = pg.data_dir.clone();
    let promise = pgdata::read_state(&dir).or_strictest().promised;
    let marked = dir.clone();
    job.blocking(move || {
        remove_signal_files(&marked)?;
        pgdata::mark_rewinding(&marked)
    })
    .await?;
    job.phase("pg_rewind").await;
    let started = clock::now();
    let outcome = tool::run_until(tool, &job.cancel).await;
    let took = clock::now().since(started);
    match outcome {
        Ok(output) if output.status.success() => {
            tracing::info!(?took, result = output.last_words(), "pg_rewind done");
            job.blocking(move || {
                super::clone::own_state(&dir, promise)?;
                // It is consistent only after it has received more WAL: never to start without.
                std::fs::write(dir.join("standby.signal"), "")?;
                pgdata::clear_rewinding(&dir)
            })
            .await
        }
        Ok(output) if untouched(&output.stderr) => {
            job.blocking(move || pgdata::clear_rewinding(&dir)).await?;
            let said = output.last_words();
            tracing::error!(?took, said, "pg_rewind failed before it changed anything");
            if said.contains("could not connect") || said.contains("connection to server") {
                return Err(JobError::Failed(Failure::SourceUnavailable(said)));
            }
            Err(JobError::other(said))
        }
        Ok(output) => Err(half_done(output.last_words())),
        Err(err) => Err(half_done(chain(&err))),
    }
}

fn half_done(why: String) -> JobError {
    tracing::error!(
        why,
        "pg_rewind did not end, the data directory is not to be started"
    );
    JobError::Failed(Failure::HalfDone(why))
}

/// With `--progress`, `pg_rewind` says how much it is about to copy right before it changes the first
/// file (PostgreSQL source, `pg_rewind.c`, `main`).
fn untouched(stderr: &[u8]) -> bool {
    !String::from_utf8_lossy(stderr).contains("need to copy")
}

fn rewind_args(pg: &PostgresConfig, conninfo: &str, version: u32) -> Vec<OsString> {
    let mut target = OsString::from("--target-pgdata=");
    target.push(&pg.data_dir);
    let mut args = vec![
        target,
        format!("--source-server={conninfo}").into(),
        "--progress".into(),
    ];
    let inside = pg.config_dir == pg.data_dir;
    if has_restore_command(pg) && (inside || version >= 15) {
        args.push("--restore-target-wal".into());
    }
    if version >= 15 && !inside {
        let mut file = OsString::from("--config-file=");
        file.push(pg.config_dir.join(format!("{}.conf", pg.config_base_name)));
        args.push(file);
    }
    args.extend(pg.rewind_options.iter().map(OsString::from));
    args
}

fn has_restore_command(pg: &PostgresConfig) -> bool {
    let set = |value: Option<&serde_json::Value>| {
        value
            .and_then(serde_json::Value::as_str)
            .is_some_and(|text| !text.is_empty())
    };
    set(pg.recovery_conf.get("restore_command")) || set(pg.parameters.get("restore_command"))
}

/// [`proto::core::job::Job::CrashRecovery`], and before a rewind of a server that was not shut down in
/// order: replays its WAL in a single-user server, so that there is a shutdown checkpoint.
pub(super) async fn crash_recovery(job: &JobCx) -> Result<(), JobError> {
    if job.shared.process_set() != ProcessSet::Empty {
        return Err(JobError::other("PostgreSQL runs"));
    }
    job.phase("crash recovery").await;
    let dir = job.ctx().data_dir();
    let cleaned = dir.clone();
    job.blocking(move || remove_signal_files(&cleaned)).await?;
    let state = job.shared.conf_state(false, &Upstream::None);
    let mut words = conf::command_line(job.ctx(), &state).await?.into_iter();
    let program = words
        .next()
        .ok_or_else(|| JobError::other("no command to start PostgreSQL"))?;
    // Archiving is on, but fails: nothing is recycled as archived that is not.
    let args = std::iter::once(OsString::from("--single"))
        .chain(words)
        .chain(
            [
                "-c",
                "archive_mode=on",
                "-c",
                "archive_command=false",
                "template1",
            ]
            .map(Into::into),
        );
    let tool = Tool::new(program, args).dies_with_us();
    let output = job.tool(tool).await?;
    tracing::info!(took = ?output.took, "single-user crash recovery done");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_beyond_its_last_checkpoint_recovers_before_a_rewind() {
        let control = |state, checkpoint, recovery| ControlData {
            state,
            timeline: Timeline(checkpoint),
            min_recovery_timeline: Timeline(recovery),
            ..ControlData::default()
        };
        for (control, enough) in [
            (control(ControlState::ShutDown, 2, 0), true),
            (control(ControlState::ShutDownInRecovery, 2, 2), true),
            (control(ControlState::ShutDownInRecovery, 1, 2), false),
            (control(ControlState::InArchiveRecovery, 2, 2), false),
            (control(ControlState::InProduction, 1, 2), false),
        ] {
            assert_eq!(tells_its_timeline(&control), enough, "{control:?}");
        }
    }

    #[test]
    fn a_failure_before_the_copy_leaves_the_directory_usable() {
        assert!(untouched(
            b"pg_rewind: error: connection to server at \"a\" failed"
        ));
        assert!(!untouched(
            b"pg_rewind: need to copy 52 MB (total source ...)\npg_rewind: fatal"
        ));
    }
}
