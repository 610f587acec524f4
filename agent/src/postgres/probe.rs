//! One look at the local PostgreSQL: directory, process, session, control file.
//!
//! Three verdicts, not one: the process lives, it accepts connections, it answers a query. The session
//! is kept between looks, waits for no lock for longer than its statement timeout, keeps out of
//! statistics extensions and writes nothing. A sample takes no longer than [`SQL_LIMIT`] plus twice
//! [`pgdata::DISK_LIMIT`], whatever PostgreSQL or the disk do.

use super::connect::{self, ConnectError};
use super::context::PgContext;
use super::controldata;
use super::history;
use super::monitor::{self, MonitorError};
use super::pgdata::{self, DurableState, FoundState};
use crate::clock;
use proto::core::observation::{
    AppliedConf, ControlData, DataDir, LocalPostgres, Process, Sql, SqlSample,
};
use proto::ids::Epoch;
use proto::time::MonoTime;
use proto::wal::{Timeline, TimelineHistory};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// How long connecting and asking may take together.
pub const SQL_LIMIT: Duration = Duration::from_secs(2);

/// How old the control file's content may be while PostgreSQL runs: reading it costs a process, and
/// nothing urgent is in it then.
const CONTROL_AGE_MAX: Duration = Duration::from_secs(10);

/// How old the list of settings that wait for a restart may be.
const PENDING_AGE_MAX: Duration = Duration::from_secs(2);

/// How old the history may be while the timeline stays: looking for it lists all of `pg_wal`.
const HISTORY_AGE_MAX: Duration = Duration::from_secs(10);

/// What lives between two samples. The public fields are inputs that the caller keeps current.
#[derive(Debug, Default)]
pub struct ProbeState {
    /// The postmaster that the guardian knows of; `None`: look into `postmaster.pid`.
    pub postmaster: Option<i32>,
    /// Processes of a dead postmaster are left.
    pub orphans: bool,
    /// The configuration that is in force; copied into the sample.
    pub conf: AppliedConf,
    /// Read the control file for this sample even while PostgreSQL runs.
    pub refresh_control: bool,
    session: Option<monitor::Session>,
    disk: Option<JoinHandle<DiskFacts>>,
    last_disk: Option<DiskFacts>,
    control: Option<Control>,
    history: Option<History>,
    pending: Option<(MonoTime, u64)>,
    last: Option<SqlSample>,
}

/// The control file as last read.
#[derive(Debug)]
struct Control {
    data: ControlData,
    at: MonoTime,
    modified: Option<SystemTime>,
}

/// The newest history file as last looked for.
#[derive(Debug)]
struct History {
    found: Option<(TimelineHistory, String)>,
    at: MonoTime,
    timeline: Option<Timeline>,
}

/// What one trip to the disk tells.
#[derive(Clone, Debug)]
struct DiskFacts {
    data_dir: DataDir,
    running: Option<i32>,
    signal_file: bool,
    state: FoundState,
    control_modified: Option<SystemTime>,
    history: Option<Option<(TimelineHistory, String)>>,
}

impl DiskFacts {
    /// Blocks.
    fn read(dir: &Path, known: Option<i32>, with_history: bool) -> Self {
        let alive = known.filter(|pid| pgdata::is_alive(*pid));
        let control = std::fs::metadata(dir.join("global/pg_control"));
        Self {
            data_dir: pgdata::look(dir),
            running: alive.or_else(|| pgdata::running_postmaster(dir)),
            signal_file: pgdata::has_signal_file(dir),
            state: pgdata::read_state(dir),
            control_modified: control.and_then(|meta| meta.modified()).ok(),
            history: with_history.then(|| history::newest(dir)),
        }
    }
}

/// Takes a sample.
pub async fn sample(ctx: &PgContext, state: &mut ProbeState) -> LocalPostgres {
    let dir = ctx.data_dir();
    let disk = state.look_at_disk(&dir).await;
    let process = state.process(disk.as_ref());
    let (sql, sql_at) = match process {
        Process::Alive { .. } => state.ask(ctx).await,
        Process::Unknown | Process::Gone | Process::Orphans => {
            state.forget_server();
            (Sql::None, clock::now())
        }
    };
    let running = matches!(process, Process::Alive { .. });
    let readable = disk
        .as_ref()
        .is_some_and(|d| d.data_dir == DataDir::Initialised);
    let modified = disk.as_ref().and_then(|d| d.control_modified);
    if readable {
        state.read_control(ctx, running, modified).await;
    } else if disk.is_some() {
        state.control = None;
    }
    let promise = match disk.as_ref().map(|d| d.state) {
        Some(found) => found.or_strictest(),
        None => state
            .last_disk
            .as_ref()
            .map_or(NOTHING_KNOWN, |d| d.state.or_strictest()),
    };
    let hung = || DataDir::Unreadable(String::from("the disk does not answer"));
    LocalPostgres {
        data_dir: disk.as_ref().map_or_else(hung, |d| d.data_dir.clone()),
        process,
        sql,
        sql_at,
        control: state.control.as_ref().map(|c| c.data.clone()),
        signal_file: disk
            .as_ref()
            .or(state.last_disk.as_ref())
            .is_some_and(|d| d.signal_file),
        major_version: ctx.major_version().await.unwrap_or(0),
        conf: state.conf.clone(),
        history: state.history.as_ref().and_then(|h| h.found.clone()),
        promised: promise.promised,
        wal_epoch: promise.wal_epoch,
        led: promise.led,
    }
}

/// Before the first answer of the disk: see [`FoundState::or_strictest`].
const NOTHING_KNOWN: DurableState = DurableState {
    promised: Some(Epoch(u64::MAX)),
    wal_epoch: Epoch(0),
    led: None,
};

impl ProbeState {
    /// `None` while the disk does not answer. At most one worker waits for it, however often we look.
    async fn look_at_disk(&mut self, dir: &Path) -> Option<DiskFacts> {
        let mut job = self
            .disk
            .take()
            .unwrap_or_else(|| self.send_to_disk(dir.to_owned()));
        match tokio::time::timeout(pgdata::DISK_LIMIT, &mut job).await {
            Ok(Ok(facts)) => {
                if let Some(found) = &facts.history {
                    let timeline = self.timeline();
                    let found = found.clone();
                    self.history = Some(History {
                        found,
                        at: clock::now(),
                        timeline,
                    });
                }
                if self.last_disk.as_ref().map(|last| &last.state) != Some(&facts.state)
                    && facts.state == FoundState::Unknown
                {
                    tracing::error!(
                        file = %dir.join(pgdata::STATE_FILE).display(),
                        "the stored promise cannot be read: this member follows nobody until a \
                         promise is withdrawn, or the file is removed by hand"
                    );
                }
                self.last_disk = Some(facts.clone());
                Some(facts)
            }
            Ok(Err(_)) => None,
            Err(_) => {
                self.disk = Some(job);
                None
            }
        }
    }

    fn send_to_disk(&self, dir: PathBuf) -> JoinHandle<DiskFacts> {
        let now = clock::now();
        let fresh = self
            .history
            .as_ref()
            .is_some_and(|h| now.since(h.at) < HISTORY_AGE_MAX && h.timeline == self.timeline());
        let known = self.postmaster;
        tokio::task::spawn_blocking(move || DiskFacts::read(&dir, known, !fresh))
    }

    /// The timeline as last seen, by whichever source.
    fn timeline(&self) -> Option<Timeline> {
        let sql = self.last.as_ref().and_then(|sample| sample.timeline);
        sql.or_else(|| self.control.as_ref().map(|control| control.data.timeline))
    }

    fn process(&self, disk: Option<&DiskFacts>) -> Process {
        // `/proc` answers even when the disk does not.
        let known = self.postmaster.filter(|pid| pgdata::is_alive(*pid));
        match (known.or_else(|| disk.and_then(|d| d.running)), disk) {
            (Some(pid), _) => Process::Alive { pid },
            (None, _) if self.orphans => Process::Orphans,
            (None, Some(_)) => Process::Gone,
            (None, None) => Process::Unknown,
        }
    }

    fn forget_server(&mut self) {
        self.session = None;
        self.last = None;
        self.pending = None;
    }

    /// Asks over the kept session, and over a new one when that has broken: a restarted server must
    /// not look dead once.
    async fn ask(&mut self, ctx: &PgContext) -> (Sql, MonoTime) {
        let started = clock::now();
        let deadline = tokio::time::Instant::now() + SQL_LIMIT;
        let answer = tokio::time::timeout_at(deadline, self.ask_twice(ctx)).await;
        let sql = match answer {
            Ok(Ok(sample)) => {
                self.last = Some(sample.clone());
                return (Sql::Sample(Box::new(sample)), started);
            }
            Ok(Err(err)) => {
                tracing::debug!(error = %err, "the monitoring query failed");
                verdict(&err)
            }
            Err(_) => Sql::Silent,
        };
        // Whatever went wrong, the session's state is unknown.
        self.session = None;
        (sql, started)
    }

    async fn ask_twice(&mut self, ctx: &PgContext) -> Result<SqlSample, MonitorError> {
        if let Some(session) = self.session.take() {
            match self.ask_over(ctx, &session).await {
                Ok(sample) => {
                    self.session = Some(session);
                    return Ok(sample);
                }
                Err(err) if !err.may_be_stale() => return Err(err),
                Err(_) => {}
            }
        }
        let session = monitor::Session::open(connect::superuser(ctx).await?).await?;
        let sample = self.ask_over(ctx, &session).await?;
        self.session = Some(session);
        Ok(sample)
    }

    async fn ask_over(
        &mut self,
        ctx: &PgContext,
        session: &monitor::Session,
    ) -> Result<SqlSample, MonitorError> {
        let mut sample = session.sample().await?;
        self.settle_timeline(&mut sample);
        self.confirm_sync_names(ctx, &mut sample).await?;
        self.pending_restart(session, &mut sample).await?;
        Ok(sample)
    }

    /// Between two receivers a standby knows its timeline only from the control file, which lags. It
    /// never goes back while the server runs.
    fn settle_timeline(&self, sample: &mut SqlSample) {
        let same_server = |last: &&SqlSample| {
            last.in_recovery && last.postmaster_start_time == sample.postmaster_start_time
        };
        if !sample.in_recovery {
            return;
        }
        if let Some(last) = self.last.as_ref().filter(same_server) {
            sample.timeline = sample.timeline.max(last.timeline);
        }
    }

    /// A kept session sees a changed `synchronous_standby_names` when its own process has reloaded,
    /// which says nothing about others. A fresh one is forked by the postmaster, after that has
    /// reloaded and told all its children (`safety.md` 4.2), so a change counts only when that sees it.
    async fn confirm_sync_names(
        &self,
        ctx: &PgContext,
        sample: &mut SqlSample,
    ) -> Result<(), MonitorError> {
        let confirmed = self.last.as_ref().is_some_and(|last| {
            last.postmaster_start_time == sample.postmaster_start_time
                && last.synchronous_standby_names == sample.synchronous_standby_names
        });
        if !confirmed {
            let fresh: Client = connect::superuser(ctx).await?;
            sample.synchronous_standby_names = monitor::sync_names(&fresh).await?;
        }
        Ok(())
    }

    async fn pending_restart(
        &mut self,
        session: &monitor::Session,
        sample: &mut SqlSample,
    ) -> Result<(), MonitorError> {
        let now = clock::now();
        let same_server = self
            .last
            .as_ref()
            .filter(|last| last.postmaster_start_time == sample.postmaster_start_time);
        let fresh = self.pending.is_some_and(|(at, generation)| {
            now.since(at) < PENDING_AGE_MAX && generation == self.conf.generation
        });
        match same_server {
            Some(last) if fresh => sample.pending_restart = last.pending_restart.clone(),
            Some(_) | None => {
                sample.pending_restart = session.pending_restart().await?;
                self.pending = Some((now, self.conf.generation));
            }
        }
        Ok(())
    }

    /// While PostgreSQL is down the file is read again whenever it changed.
    async fn read_control(&mut self, ctx: &PgContext, running: bool, modified: Option<SystemTime>) {
        let now = clock::now();
        let asked = std::mem::take(&mut self.refresh_control);
        let fresh = self.control.as_ref().is_some_and(|control| {
            if running {
                now.since(control.at) < CONTROL_AGE_MAX
            } else {
                control.modified == modified
            }
        });
        if fresh && !asked {
            return;
        }
        let read = tokio::time::timeout(pgdata::DISK_LIMIT, controldata::read(ctx)).await;
        match read {
            Ok(Ok(data)) => {
                self.control = Some(Control {
                    data,
                    at: now,
                    modified,
                })
            }
            failed => {
                tracing::debug!(result = ?failed, "read the control file");
                // While it runs, the old content is still good for what is read of it.
                if !running {
                    self.control = None;
                }
            }
        }
    }
}

/// What an error says about the server.
fn verdict(err: &MonitorError) -> Sql {
    match err {
        MonitorError::Connect(ConnectError::Refused(_)) => Sql::Refused,
        MonitorError::Connect(ConnectError::Rejecting(_)) => Sql::Rejecting,
        // A wrong password or a missing database: it is there and serves others.
        MonitorError::Connect(
            ConnectError::Silent(_) | ConnectError::Other(_) | ConnectError::NoAddress(_),
        )
        | MonitorError::Answer(_) => Sql::Silent,
    }
}
