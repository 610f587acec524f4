//! Long work on the local PostgreSQL: one at a time, cancellable, its end a fact of the next
//! observation (I6).

use crate::ids::{Epoch, JobId, MemberName, SystemId};
use crate::time::MonoTime;
use crate::wal::{Lsn, Timeline};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Where a standby streams from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Upstream {
    /// Nowhere: archive recovery, or nothing at all.
    #[default]
    None,
    /// A member of this cluster.
    Member {
        /// Its name.
        name: MemberName,
        /// Its `conn_url`.
        conn_url: String,
    },
    /// The remote primary of a standby cluster.
    Remote {
        /// One or several hosts.
        host: Option<String>,
        /// Its port.
        port: Option<String>,
        /// The slot to use there.
        slot: Option<String>,
    },
}

impl Upstream {
    /// Where a server streams from that is to follow this: a stored promise wins over every order, until it is
    /// withdrawn (S19).
    pub fn allowed(&self, standby: bool, promised: bool) -> Self {
        match standby && !promised {
            true => self.clone(),
            false => Self::None,
        }
    }

    /// Whether WAL can be streamed from there: a remote source may be an archive alone.
    pub fn streams(&self) -> bool {
        match self {
            Self::None
            | Self::Remote {
                host: None,
                port: None,
                ..
            } => false,
            Self::Member { .. } | Self::Remote { .. } => true,
        }
    }
}

/// How a stop is asked of the postmaster (PostgreSQL documentation, "Shutting Down the Server").
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopMode {
    /// SIGTERM: waits for sessions.
    Smart,
    /// SIGINT: ends sessions, writes a shutdown checkpoint.
    Fast,
    /// SIGQUIT: no checkpoint; recovery at the next start.
    Immediate,
}

/// Long work.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Job {
    /// `initdb` or a custom method, first start, roles, `post_bootstrap`. The new cluster is a primary at the
    /// end, and its directory still carries the mark of unfinished work: nobody else knows of it, so an agent
    /// that finds it so begins again.
    Bootstrap,
    /// Fill an empty data directory from a source (`None`: by a method that needs none), and start it
    /// as a standby that follows it.
    Clone {
        /// From whom.
        source: Option<Upstream>,
        /// Whom to follow afterwards.
        follow: Upstream,
        /// Only by `pg_basebackup`.
        basebackup_only: bool,
    },
    /// The same over an existing data directory, which must have passed every check of S7.
    Reinitialize {
        /// From whom.
        source: Upstream,
        /// Whom to follow afterwards.
        follow: Upstream,
        /// Only by `pg_basebackup`.
        basebackup_only: bool,
        /// The wish that it answers.
        wish: Option<u64>,
    },
    /// Start without signal files: crash recovery on the same timeline. The guardian is armed first.
    StartPrimary {
        /// Limit.
        timeout: Duration,
    },
    /// Start in recovery.
    StartStandby {
        /// Whom to follow.
        follow: Upstream,
        /// Limit; after it the start goes on, but the job ends.
        timeout: Duration,
    },
    /// Stop; ends when no process is left (S10).
    Stop {
        /// How.
        mode: StopMode,
        /// `CHECKPOINT` first, while clients are still served.
        checkpoint_first: bool,
        /// After it: SIGQUIT, then every process is killed. `None`: no limit.
        timeout: Option<Duration>,
        /// Why, for people; part of the operation's name in REST.
        why: StopReason,
    },
    /// `pre_promote`, then promotion; ends when PostgreSQL is out of recovery.
    Promote {
        /// Our tenure; zero under a compatible lease.
        epoch: Epoch,
        /// The new timeline must be higher: up to here every number is taken
        /// ([`super::history::claim`]).
        above: Timeline,
    },
    /// Stop fast and start again in the same role.
    Restart {
        /// For the start.
        timeout: Duration,
        /// The wish that it answers.
        wish: Option<u64>,
        /// Whom a standby follows.
        follow: Upstream,
    },
    /// Change where a standby streams from: a reload where the version allows, else a restart.
    Follow {
        /// Whom to follow.
        follow: Upstream,
    },
    /// Read logical slots from the leader, stop, lay them down, and start again in recovery: PostgreSQL
    /// reads slots only when it starts. Without a restart when the leader has none that could be used here.
    CopySlots {
        /// Their names.
        slots: Vec<String>,
        /// The leader.
        leader: Upstream,
        /// Whom to follow afterwards.
        follow: Upstream,
        /// For the start.
        timeout: Duration,
    },
    /// Stop if needed, then `pg_rewind` from the leader.
    Rewind {
        /// The leader.
        source: Upstream,
    },
    /// Single-user crash recovery, so that a rewind can read the end of WAL.
    CrashRecovery,
    /// Remove the data directory, which must have passed every check of S7; the next decision clones.
    RemoveData,
    /// Stop what a bootstrap of our own has made, which never was in etcd, and keep its directory aside, as
    /// that of one that failed.
    SetAside {
        /// What it made; anything else is not touched. `None`: it must carry the mark.
        system: Option<SystemId>,
    },
}

/// Why PostgreSQL is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// A planned switchover.
    Switchover,
    /// A failover asked for by hand.
    ManualFailover,
    /// The lock is lost, or cannot be kept.
    LostLock,
    /// etcd is out of reach and the lease runs out.
    Offline,
    /// A start or a recovery took too long.
    TooSlow,
    /// The agent ends.
    Shutdown,
    /// The data directory is gone under a running server.
    DataDirGone,
    /// The cluster became a standby cluster.
    DemoteCluster,
}

impl Job {
    /// The name that REST shows before `already in progress` (`rest-api.md` 11.5).
    pub fn label(&self) -> String {
        let named = |verb: &str, from: &Upstream| match from {
            Upstream::Member { name, .. } => format!("{verb} '{name}'"),
            Upstream::Remote { .. } => format!("{verb} remote member"),
            Upstream::None => verb.to_owned(),
        };
        match self {
            Self::Bootstrap => "bootstrap".into(),
            Self::Clone { source: None, .. } => "bootstrap (without leader)".into(),
            Self::Clone {
                source: Some(source),
                follow,
                ..
            } if source == follow => named("bootstrap from leader", source),
            Self::Clone {
                source: Some(source),
                ..
            } => named("bootstrap from replica", source),
            Self::Reinitialize { .. } => "reinitialize".into(),
            Self::StartPrimary { .. } => "starting primary after failure".into(),
            Self::StartStandby { .. } => "restarting after failure".into(),
            Self::Stop { why, .. } => match why {
                StopReason::Switchover => "switchover: demote".into(),
                StopReason::ManualFailover => "manual failover: demote".into(),
                StopReason::DemoteCluster => "demoting to a standby cluster".into(),
                StopReason::LostLock
                | StopReason::Offline
                | StopReason::TooSlow
                | StopReason::Shutdown
                | StopReason::DataDirGone => "demote".into(),
            },
            Self::Promote { .. } => "promote".into(),
            Self::Restart { .. } => "restart".into(),
            Self::Follow { .. } => "changing primary_conninfo and restarting".into(),
            Self::CopySlots { .. } => "copy_logical_slots".into(),
            Self::Rewind { source } => match source {
                Upstream::Member { name, .. } => format!("running pg_rewind from {name}"),
                Upstream::Remote { .. } | Upstream::None => "running pg_rewind".into(),
            },
            Self::CrashRecovery => "doing crash recovery in a single user mode".into(),
            Self::RemoveData => "removing the data directory".into(),
            Self::SetAside { .. } => "setting a bootstrap aside".into(),
        }
    }
}

/// A job that ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Finished {
    /// Its id.
    pub id: JobId,
    /// What it was.
    pub job: Job,
    /// When it ended.
    pub at: MonoTime,
    /// How.
    pub end: JobEnd,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum JobEnd {
    /// As ordered.
    Done,
    /// A stop ended; this is where the WAL ends, when it ended in order.
    Stopped {
        /// End of the shutdown checkpoint and its timeline.
        shutdown: Option<(Timeline, Lsn)>,
    },
    /// PostgreSQL was launched, lives, but does not accept connections yet.
    StillStarting,
    /// Cancelled before it changed anything that matters.
    Cancelled,
    /// It failed.
    Failed(Failure),
}

/// Why a job failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Failure {
    /// `pre_promote` said no.
    PrePromote(String),
    /// The source could not be reached or was no primary; nothing was changed.
    SourceUnavailable(String),
    /// A rewind began and did not end: the data directory is not to be started (S18).
    HalfDone(String),
    /// Everything else.
    Other(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PrePromote(why) => write!(f, "pre_promote: {why}"),
            Self::SourceUnavailable(why) => write!(f, "the source is not available: {why}"),
            Self::HalfDone(why) => write!(f, "left half done: {why}"),
            Self::Other(why) => f.write_str(why),
        }
    }
}
