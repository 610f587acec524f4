//! What a member sees at one moment. Plain data: it can be recorded, sent, and decided upon again.
//!
//! Every fact says how old it is where that matters, and "unknown" is a value of its own, never the
//! same as "none" (I4, S11).

use super::job::{Finished, Job, Upstream};
use crate::dcs::txn::TxnOutcome;
use crate::dcs::{ClusterView, FencePromise};
use crate::ids::{Epoch, JobId, LeaseId, MemberName, Revision, SystemId};
use crate::time::{MonoTime, WallTime};
use crate::wal::{Lsn, Timeline, TimelineHistory};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One member's picture of the world.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Observation {
    /// Now, on this machine's boot clock.
    pub now: MonoTime,
    /// Now, for schedules and people.
    pub wall: WallTime,
    /// A random number, drawn anew for every observation.
    pub dice: u64,
    /// What etcd says.
    pub dcs: Dcs,
    /// What the local PostgreSQL looks like.
    pub postgres: LocalPostgres,
    /// What the guardian says.
    pub guardian: Guardian,
    /// The long work under way.
    pub job: Option<RunningJob>,
    /// The last long work that ended, until the next one ends.
    pub finished: Option<Finished>,
    /// Short work under way: never ordered twice.
    pub in_flight: BTreeSet<Task>,
    /// How the last short work of each kind ended.
    pub outcomes: BTreeMap<Task, Outcome>,
    /// What the peers answered when they were last asked.
    pub peers: BTreeMap<MemberName, PeerAnswer>,
    /// The leader's lineage as it was last read from the leader itself.
    pub lineage: Option<Lineage>,
    /// What operators asked this member for.
    pub wishes: Wishes,
    /// Who called `POST /failsafe` here.
    pub failsafe_caller: Option<FailsafeCaller>,
    /// A watchdog is required and cannot be used.
    pub watchdog_failed: bool,
}

/// etcd.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Dcs {
    /// The records as last known; `None` before the first read and after the world changed.
    pub view: Option<ClusterView>,
    /// Whether `view` is complete up to now as far as we can tell: the watch is alive and has shown a
    /// sign of life lately. Without it the view is history, and "no leader" in it means nothing (I4).
    pub confirmed: bool,
    /// When the view was last confirmed.
    pub confirmed_at: MonoTime,
    /// Our session lease.
    pub session: Option<Session>,
    /// Our record, when we hold one.
    pub held: Option<HeldRecord>,
    /// The record of whoever holds it, and since when it has stood still in our eyes.
    pub record_seen: Option<RecordSeen>,
    /// Since when we have watched without a gap. A newcomer waits `W` from here (S21).
    pub watching_since: Option<MonoTime>,
}

/// The etcd lease of this process, for `/members/<me>` and `/leader`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Session {
    /// Its id.
    pub id: LeaseId,
    /// The length that etcd granted, which may exceed the one asked for.
    pub ttl: Duration,
    /// When the last renewal that succeeded was sent (I2).
    pub sent_at: MonoTime,
}

/// The record lease that we hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HeldRecord {
    /// Our tenure.
    pub epoch: Epoch,
    /// When the first attempt of the last committed renewal was sent.
    pub sent_at: MonoTime,
    /// Length of the lease that this renewal wrote.
    pub length: Duration,
    /// Revision of the record after it.
    pub modified: Revision,
    /// Counter of the last committed renewal.
    pub seq: u64,
}

/// A record standing still.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordSeen {
    /// The revision that stands.
    pub modified: Revision,
    /// When we first received it.
    pub since: MonoTime,
}

/// The data directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum DataDir {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// Missing, or without a cluster in it.
    Empty,
    /// There, but it cannot be read; the text says why.
    Unreadable(String),
    /// Left behind by work that did not end (a rewind, a clone): never to be started (S18).
    Unfinished(String),
    /// A cluster.
    Initialised,
}

impl DataDir {
    /// What is there was begun by a bootstrap or a copy that did not end: nothing in it is not
    /// elsewhere. A rewind that did not end may have left the last copy.
    pub fn abandoned(&self) -> bool {
        matches!(self, Self::Unfinished(what) if !what.starts_with(REWIND_MARK))
    }

    /// What is there was made by a bootstrap of this member, and never was in etcd.
    pub fn never_presented(&self) -> bool {
        matches!(self, Self::Unfinished(what) if what.starts_with(BOOTSTRAP_MARK))
    }
}

/// The beginning of the text of [`DataDir::Unfinished`] that a rewind leaves.
pub const REWIND_MARK: &str = "rewind";

/// The same of a bootstrap, until its cluster is presented.
pub const BOOTSTRAP_MARK: &str = "bootstrap";

/// The postmaster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Process {
    /// Not looked at yet.
    #[default]
    Unknown,
    /// None, and no descendant of one is left.
    Gone,
    /// The postmaster is gone, but some of its children are not: they can still commit.
    Orphans,
    /// Alive.
    Alive {
        /// Its process id.
        pid: i32,
    },
}

/// What a session to the local PostgreSQL says. Three verdicts, not one: the process lives
/// ([`Process`]), it accepts connections, it answers queries.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum Sql {
    /// Nobody asked, since no process lives.
    #[default]
    None,
    /// The port refuses.
    Refused,
    /// It accepts a connection and says that it is starting up or shutting down.
    Rejecting,
    /// It accepted, but did not answer in time or has no connection left. Counts as alive.
    Silent,
    /// It answered.
    Sample(Box<SqlSample>),
}

/// One answer of the monitoring query.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SqlSample {
    /// `pg_is_in_recovery()`.
    pub in_recovery: bool,
    /// Primary: current. Standby: of the receiver, else of the last checkpoint or `IDENTIFY_SYSTEM`.
    pub timeline: Option<Timeline>,
    /// Primary: flushed.
    pub flush_lsn: Lsn,
    /// Standby: received (written or flushed, the larger).
    pub receive_lsn: Lsn,
    /// Standby: replayed.
    pub replay_lsn: Lsn,
    /// Standby: replay is paused.
    pub replay_paused: bool,
    /// Standby: time of the last replayed transaction, as text with a blank and an offset.
    pub replayed_timestamp: Option<String>,
    /// Standby: a WAL receiver is streaming.
    pub receiver: Option<Receiver>,
    /// Standby: so long a WAL receiver has been waiting for the first answer of its source.
    #[serde(default)]
    pub connecting: Option<Duration>,
    /// Standby: a `restore_command` is set.
    pub has_restore_command: bool,
    /// `pg_postmaster_start_time()` as text.
    pub postmaster_start_time: String,
    /// For example 150018.
    pub server_version: u32,
    /// `synchronous_standby_names` as a fresh session sees it.
    pub synchronous_standby_names: String,
    /// `synchronous_commit`.
    pub synchronous_commit: String,
    /// `pg_stat_replication`.
    pub wal_senders: Vec<WalSender>,
    /// `pg_replication_slots`.
    pub slots: Vec<SlotRow>,
    /// Settings that wait for a restart: name, old and new value in human units.
    pub pending_restart: BTreeMap<String, (String, String)>,
}

/// `pg_stat_wal_receiver`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Receiver {
    /// `streaming` and others.
    pub status: String,
    /// Where it connects to: host and port.
    pub sender: Option<(String, u16)>,
    /// The slot that it uses.
    pub slot: Option<String>,
    /// Timeline that it receives.
    pub timeline: Option<Timeline>,
    /// The leader's end of WAL as last reported to it.
    pub latest_end_lsn: Lsn,
}

/// A row of `pg_stat_replication`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalSender {
    /// Process id.
    pub pid: i32,
    /// User.
    pub usename: Option<String>,
    /// The standby's name.
    pub application_name: String,
    /// `client_addr`.
    pub client_addr: Option<String>,
    /// `streaming`, `catchup`, …
    pub state: String,
    /// `sync`, `quorum`, `potential`, `async`.
    pub sync_state: String,
    /// `sync_priority`.
    pub sync_priority: i32,
    /// Written by the standby.
    pub write_lsn: Lsn,
    /// Flushed by the standby.
    pub flush_lsn: Lsn,
    /// Replayed by the standby.
    pub replay_lsn: Lsn,
}

/// A row of `pg_replication_slots`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotRow {
    /// Its name.
    pub name: String,
    /// `physical` or `logical`.
    pub logical: bool,
    /// Database of a logical slot.
    pub database: Option<String>,
    /// Plugin of a logical slot.
    pub plugin: Option<String>,
    /// Somebody uses it.
    pub active: bool,
    /// It holds back vacuum.
    pub has_xmin: bool,
    /// `restart_lsn`.
    pub restart_lsn: Lsn,
    /// `confirmed_flush_lsn` of a logical slot.
    pub confirmed_flush_lsn: Lsn,
    /// `wal_status` is `lost`, or the slot was invalidated.
    pub lost: bool,
    /// A failover slot of PostgreSQL 17 and later.
    pub failover: bool,
    /// Kept up by PostgreSQL's own slot synchronisation.
    pub synced: bool,
}

/// `pg_controldata`, as far as rules read it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlData {
    /// `Database system identifier`.
    pub system_id: SystemId,
    /// `Database cluster state`.
    pub state: ControlState,
    /// `Latest checkpoint's TimeLineID`.
    pub timeline: Timeline,
    /// `Latest checkpoint location`.
    pub checkpoint: Lsn,
    /// `Latest checkpoint's REDO location`.
    pub redo: Lsn,
    /// End of the latest checkpoint record, which for a clean shutdown is the end of WAL. Read with
    /// `pg_waldump`; `None` when that did not work.
    pub checkpoint_end: Option<Lsn>,
    /// `Minimum recovery ending location`.
    pub min_recovery_end: Lsn,
    /// `Min recovery ending loc's timeline`.
    pub min_recovery_timeline: Timeline,
    /// `wal_log_hints setting` is on, or data pages have checksums: `pg_rewind` can work.
    pub rewindable: bool,
}

/// `Database cluster state` of `pg_controldata`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlState {
    /// Something else.
    #[default]
    Unknown,
    /// `starting up`.
    StartingUp,
    /// `shut down`.
    ShutDown,
    /// `shut down in recovery`.
    ShutDownInRecovery,
    /// `shutting down`.
    ShuttingDown,
    /// `in crash recovery`.
    InCrashRecovery,
    /// `in archive recovery`.
    InArchiveRecovery,
    /// `in production`.
    InProduction,
}

/// The local PostgreSQL.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LocalPostgres {
    /// The data directory.
    pub data_dir: DataDir,
    /// The postmaster.
    pub process: Process,
    /// What it says.
    pub sql: Sql,
    /// When `sql` was taken.
    pub sql_at: MonoTime,
    /// The control file; kept current while PostgreSQL is down.
    pub control: Option<ControlData>,
    /// `standby.signal` or `recovery.signal` exists.
    pub signal_file: bool,
    /// Major version of the binaries, for example 15.
    pub major_version: u32,
    /// The configuration that is in force.
    pub conf: AppliedConf,
    /// `<timeline>.history` files that exist locally: the newest one, parsed, and its time as ISO text.
    pub history: Option<(TimelineHistory, String)>,
    /// What a promise on disk says: follow no epoch at or below this one (S19).
    pub promised: Option<Epoch>,
    /// The epoch of the newest WAL that was received, kept on disk.
    pub wal_epoch: Epoch,
    /// The tenure in which this data was written by its primary last, kept on disk.
    #[serde(default)]
    pub led: Option<Led>,
}

/// A tenure that a server has led in. An epoch of a native cluster has one leader (S4), so where etcd has forgotten
/// who it was, this tells the last primary from a standby that somebody promoted by hand (S23).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Led {
    /// Which one.
    pub epoch: Epoch,
    /// By record. Under `/leader` alone others may have led in the same epoch since.
    pub native: bool,
}

/// What the driver last wrote and PostgreSQL loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppliedConf {
    /// [`crate::config::Settings::conf_generation`] of the last write.
    pub generation: u64,
    /// Where a standby streams from.
    pub upstream: Upstream,
    /// `synchronous_standby_names` that was written.
    pub sync_names: String,
    /// Written for a primary.
    pub as_primary: bool,
}

/// The guardian.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Guardian {
    /// The connection to it is up and it has answered lately.
    pub alive: bool,
    /// Its test of the fencing bound passed; without it this member may not lead.
    pub fit: bool,
    /// The deadline that it confirmed: no process of PostgreSQL survives it. `None` while disarmed.
    pub armed: Option<Armed>,
    /// Which life of the guardian this is: the `session` of a record.
    pub session: String,
    /// The highest epoch that it knows of, from us or from an agent before us: it takes no lower one.
    #[serde(default)]
    pub epoch: Epoch,
}

/// A deadline that the guardian confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Armed {
    /// The tenure that it belongs to; zero under a compatible lease.
    pub epoch: Epoch,
    /// When it fences.
    pub deadline: MonoTime,
}

/// A job under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningJob {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub job: Job,
    /// Since when.
    pub started: MonoTime,
    /// How far it is, in the job's own words: `pre_promote`, `stopping`, `promoting`, …
    pub phase: String,
    /// Cancelling was ordered.
    pub cancelled: bool,
}

/// Short work, at most one of a kind at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Task {
    /// Take or hand over the lock.
    Lock,
    /// Our member key.
    Member,
    /// `/status`.
    Status,
    /// `/sync`.
    Sync,
    /// `/failover`.
    Failover,
    /// `/history`.
    History,
    /// `/initialize`.
    Initialize,
    /// `/config`.
    Config,
    /// `/failsafe`.
    Failsafe,
    /// `/fence/<me>`, and the promise on disk before it.
    Fence,
    /// Rewriting the PostgreSQL configuration and reloading.
    Configure,
    /// Creating, advancing and dropping slots.
    Slots,
    /// `CHECKPOINT`.
    Checkpoint,
    /// Asking the peers.
    Peers,
    /// Taking the mark of a bootstrap away.
    ClearMark,
    /// Asking the leader for its lineage.
    Lineage,
    /// Asking the members whether we may go on without etcd.
    AskFailsafe,
}

/// How short work ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// When.
    pub at: MonoTime,
    /// How.
    pub result: TaskResult,
}

/// How short work ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum TaskResult {
    /// A transaction.
    Txn(TxnOutcome),
    /// Other work that succeeded.
    Done,
    /// Other work that failed.
    Failed(String),
    /// The promise is on disk, the stream is cut, and this is what it cut off.
    Promised(FencePromise),
    /// All members agreed, or not.
    Failsafe {
        /// Every one accepted.
        accepted: bool,
        /// When the first request was sent.
        sent_at: MonoTime,
    },
}

/// What a peer answered to `GET <api_url>`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerAnswer {
    /// When the question was sent.
    pub asked_at: MonoTime,
    /// The answer; `None` when there was none in time.
    pub status: Option<PeerStatus>,
}

/// The part of a peer's answer that an election reads (`dcs-layout.md` 12). No `xlog` in the answer
/// means no [`PeerStatus`]: the peer counts as unreachable.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// It runs as a primary.
    pub is_primary: bool,
    /// Its position.
    pub position: Lsn,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// Its tags.
    pub tags: Map<String, Value>,
    /// Its watchdog is required and unusable.
    pub watchdog_failed: bool,
    /// It receives WAL from its primary right now.
    pub streaming: bool,
    /// The agent answered, but its PostgreSQL did not: it cannot vote, but the node is not dead.
    pub agent_only: bool,
    /// How old the position was when it was told. Patroni looks when it is asked: zero.
    #[serde(default)]
    pub age: Duration,
    /// The highest epoch that it knows of. A Patroni knows of none: zero.
    #[serde(default)]
    pub epoch: Epoch,
}

impl PeerAnswer {
    /// Whether the answer tells of a moment after this one: a position from before the lock was free may
    /// lack what the old primary acknowledged last (S3).
    pub fn tells_since(&self, since: MonoTime) -> bool {
        let age = self.status.as_ref().map_or(Duration::ZERO, |s| s.age);
        self.asked_at >= since + age
    }
}

/// Where the leader stands in the tree of timelines, asked of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Lineage {
    /// Who was asked.
    pub leader: MemberName,
    /// When.
    pub at: MonoTime,
    /// Out of recovery.
    pub is_primary: bool,
    /// Its identifier.
    pub system_id: SystemId,
    /// Its timeline and ancestors.
    pub history: TimelineHistory,
}

/// What operators asked of this member, through REST or a signal.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Wishes {
    /// Stop PostgreSQL cleanly, hand over, end.
    pub shutdown: bool,
    /// Restart PostgreSQL now.
    pub restart: Option<RestartWish>,
    /// Restart PostgreSQL at a time.
    pub scheduled_restart: Option<ScheduledRestart>,
    /// Throw the data directory away and clone.
    pub reinitialize: Option<ReinitWish>,
}

/// An accepted `POST /restart`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RestartWish {
    /// Grows with each wish, so that its end can be told to whoever asked.
    pub id: u64,
    /// Limit in seconds; none means `primary_start_timeout`.
    pub timeout: Option<u64>,
}

/// A restart at a time, with its conditions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScheduledRestart {
    /// As written.
    pub schedule: String,
    /// What it means.
    pub at: WallTime,
    /// Cancelled when PostgreSQL was restarted meanwhile.
    pub postmaster_start_time: Option<String>,
    /// Only in this role.
    pub role: Option<String>,
    /// Only below this version, as a number.
    pub below_version: Option<u32>,
    /// Limit in seconds.
    pub timeout: Option<u64>,
    /// Only if a restart is pending.
    pub restart_pending: bool,
    /// The request's own fields, for the member key.
    pub raw: Map<String, Value>,
}

/// An accepted `POST /reinitialize`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReinitWish {
    /// Grows with each wish.
    pub id: u64,
    /// Copy from the leader, not from a `clonefrom` member.
    pub from_leader: bool,
}

/// A primary that lost etcd and asked this member.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FailsafeCaller {
    /// Who.
    pub name: MemberName,
    /// When the question arrived.
    pub at: MonoTime,
    /// Its addresses and slots.
    pub conn_url: String,
    /// Its REST URL.
    pub api_url: String,
    /// Its slots.
    pub slots: BTreeMap<String, u64>,
}
