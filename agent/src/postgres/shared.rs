//! What the driver's tasks have in common, and what a job may do with it.

use super::PgEvent;
use super::conf::{ConfError, ConfState};
use super::connect::ConnectError;
use super::context::{PgContext, ProgramError};
use super::controldata::ControlError;
use super::pgdata;
use super::tool::{self, Tool, ToolError};
use crate::guardian::{GuardianClient, GuardianError};
use proto::core::decision::WantedConf;
use proto::core::job::{Failure, JobEnd, Upstream};
use proto::core::observation::{AppliedConf, Lineage};
use proto::ids::JobId;
use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// How often a state of PostgreSQL is asked for while a job waits for it to change. A connection over a
/// socket costs about 2 ms.
pub(super) const POLL: Duration = Duration::from_millis(20);

/// The processes of the cluster, as the guardian reports them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum ProcessSet {
    /// No report yet: `postmaster.pid` tells.
    #[default]
    Unknown,
    /// None is left.
    Empty,
    /// The postmaster is gone, others are not known to be.
    Orphans,
    /// The postmaster lives.
    Alive(i32),
}

/// Everything that jobs and short tasks share.
pub(super) struct Shared {
    /// Configuration and programs.
    pub ctx: PgContext,
    /// Parent of the postmaster.
    pub guardian: GuardianClient,
    /// The guardian's reports.
    pub processes: watch::Sender<ProcessSet>,
    /// The configuration that was written last and loaded.
    pub applied: watch::Sender<AppliedConf>,
    /// The configuration that was last asked for.
    pub wanted: watch::Sender<Option<WantedConf>>,
    /// The last answer of a leader about its lineage.
    pub lineage: watch::Sender<Option<Lineage>>,
    /// Copies of logical slots that are not proved to be usable yet.
    pub unproved: watch::Sender<BTreeSet<String>>,
    /// Reports to the member loop.
    pub events: mpsc::Sender<PgEvent>,
    /// One writer at a time for the files that this driver owns: a job and a short task may both
    /// write the configuration, and the durable state is read, changed and written back. It guards
    /// files, not memory, and is held over the write.
    pub files: Mutex<()>,
}

impl Shared {
    /// The state of the process set, with `postmaster.pid` as the source while the guardian has not
    /// reported.
    pub fn process_set(&self) -> ProcessSet {
        let known = *self.processes.borrow();
        if known != ProcessSet::Unknown {
            return known;
        }
        match pgdata::running_postmaster(&self.ctx.data_dir()) {
            Some(pid) => ProcessSet::Alive(pid),
            None => ProcessSet::Empty,
        }
    }

    /// The configuration for a server that starts or changes its upstream now.
    pub fn conf_state(&self, standby: bool, follow: &Upstream) -> ConfState {
        let wanted = self.wanted.borrow();
        let wanted = WantedConf::at_start(wanted.as_ref(), &self.ctx.cluster(), standby);
        self.conf_of(wanted, standby, follow)
    }

    /// The configuration for a server that gets this order.
    pub fn conf_ordered(&self, order: WantedConf, standby: bool, follow: &Upstream) -> ConfState {
        let with = WantedConf::at_start(Some(&order), &self.ctx.cluster(), standby);
        self.conf_of(order.carried_out(with), standby, follow)
    }

    fn conf_of(&self, wanted: WantedConf, standby: bool, follow: &Upstream) -> ConfState {
        let promised = self.promised();
        ConfState {
            upstream: follow.allowed(standby, promised),
            cut_off: standby && promised,
            as_primary: wanted.as_primary,
            sync_names: wanted.sync_names,
            generation: wanted.generation,
            standby,
            ..ConfState::default()
        }
    }

    /// Whether a promise is stored, or might be: torn state counts as a promise.
    pub fn promised(&self) -> bool {
        pgdata::read_state(&self.ctx.data_dir())
            .or_strictest()
            .promised
            .is_some()
    }

    /// Writes the configuration; returns whether a file changed.
    pub async fn write_conf(&self, state: &ConfState) -> Result<bool, ConfError> {
        let _writer = self.files.lock().await;
        Ok(super::conf::write(&self.ctx, state).await?.changed)
    }

    /// Remembers what PostgreSQL was started with or has loaded.
    pub fn loaded(&self, state: &ConfState) {
        self.applied.send_replace(AppliedConf {
            generation: state.generation,
            upstream: state.upstream.clone(),
            sync_names: state.sync_names.clone().unwrap_or_default(),
            as_primary: state.as_primary,
        });
    }
}

/// One job's view of the driver.
#[derive(Clone)]
pub(super) struct JobCx {
    /// The driver.
    pub shared: Arc<Shared>,
    /// Which job.
    pub id: JobId,
    /// A deadline stood when it was ordered: what it starts as a primary may not outlive that.
    pub bounded: bool,
    /// Fires when the job shall end.
    pub cancel: CancellationToken,
}

impl JobCx {
    /// Configuration and programs.
    pub fn ctx(&self) -> &PgContext {
        &self.shared.ctx
    }

    /// Reports how far the job is.
    pub async fn phase(&self, phase: &str) {
        tracing::debug!(job = self.id.0, phase, "job phase");
        let event = PgEvent::JobPhase {
            id: self.id,
            phase: phase.to_owned(),
        };
        // The loop is gone only when the whole agent ends.
        let _ = self.shared.events.send(event).await;
    }

    /// Ends the job here if it was cancelled.
    pub fn check(&self) -> Result<(), JobError> {
        if self.cancel.is_cancelled() {
            Err(JobError::Cancelled)
        } else {
            Ok(())
        }
    }

    /// Runs a program that must succeed.
    pub async fn tool(&self, tool: Tool) -> Result<tool::Output, JobError> {
        Ok(tool::succeed(tool, &self.cancel).await?)
    }

    /// Waits, or ends the job when it is cancelled meanwhile.
    pub async fn pause(&self, time: Duration) -> Result<(), JobError> {
        let slept = self
            .cancel
            .run_until_cancelled(tokio::time::sleep(time))
            .await;
        slept.ok_or(JobError::Cancelled)
    }

    /// Waits until no process of the cluster is left; `false` after the limit.
    pub async fn wait_empty(&self, limit: Option<Duration>) -> Result<bool, JobError> {
        let mut processes = self.shared.processes.subscribe();
        let emptied = processes.wait_for(|set| *set == ProcessSet::Empty);
        let bounded = async {
            match limit {
                Some(limit) => tokio::time::timeout(limit, emptied).await.is_ok(),
                None => emptied.await.is_ok(),
            }
        };
        self.cancel
            .run_until_cancelled(bounded)
            .await
            .ok_or(JobError::Cancelled)
    }

    /// Runs blocking work on files on a worker thread.
    pub async fn blocking<T, F>(&self, work: F) -> Result<T, JobError>
    where
        T: Send + 'static,
        F: FnOnce() -> io::Result<T> + Send + 'static,
    {
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(JobError::other("the file worker ended")),
        }
    }
}

/// Why a job ends early.
#[derive(Debug)]
pub(super) enum JobError {
    /// It was cancelled.
    Cancelled,
    /// It failed.
    Failed(Failure),
}

impl JobError {
    /// A failure without a kind of its own.
    pub fn other(text: impl Into<String>) -> Self {
        Self::Failed(Failure::Other(text.into()))
    }

    /// The source is to blame, and nothing was changed.
    pub fn source(err: &dyn std::error::Error) -> Self {
        Self::Failed(Failure::SourceUnavailable(chain(err)))
    }
}

impl From<JobError> for JobEnd {
    fn from(err: JobError) -> Self {
        match err {
            JobError::Cancelled => Self::Cancelled,
            JobError::Failed(failure) => Self::Failed(failure),
        }
    }
}

impl From<ToolError> for JobError {
    fn from(err: ToolError) -> Self {
        match err {
            ToolError::Cancelled { .. } => Self::Cancelled,
            other => Self::other(chain(&other)),
        }
    }
}

macro_rules! other_failures {
    ($($kind:ty),+) => {
        $(impl From<$kind> for JobError {
            fn from(err: $kind) -> Self {
                Self::other(chain(&err))
            }
        })+
    };
}
other_failures!(
    io::Error,
    ConfError,
    ConnectError,
    ControlError,
    GuardianError,
    ProgramError,
    tokio_postgres::Error
);

/// An error with its sources on one line.
pub(super) fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(inner) = source {
        let said = inner.to_string();
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = inner.source();
    }
    text
}

/// Keeps the mark "not to be started" (S18) in `dir` while `work` runs. `initdb`, `pg_basebackup` and
/// most custom methods refuse a directory that is not empty, so the mark cannot be there before them:
/// it is written as soon as the first file is, and written again if a tool removes it. The mark stays;
/// the caller takes it away when all is well.
pub(super) async fn under_mark<T>(
    dir: &Path,
    what: &str,
    work: impl Future<Output = T>,
) -> io::Result<T> {
    tokio::pin!(work);
    let mut tick = tokio::time::interval(MARK_POLL);
    let done = loop {
        tokio::select! {
            done = &mut work => break done,
            // A failure shows when the mark is written for good, below.
            _ = tick.tick() => drop(mark_if_filled(dir, what)),
        }
    };
    mark_if_filled(dir, what)?;
    Ok(done)
}

/// How soon after its first file a directory carries the mark. Every tool writes `pg_control`, without
/// which nothing starts, much later than that.
const MARK_POLL: Duration = Duration::from_millis(10);

fn mark_if_filled(dir: &Path, what: &str) -> io::Result<()> {
    let mut entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(err) => return Err(err),
    };
    if entries.next().is_none() || dir.join(pgdata::UNFINISHED_FILE).exists() {
        return Ok(());
    }
    pgdata::mark_unfinished(dir, what)
}
