//! What a decision orders, and why.

use super::job::{Job, Upstream};
use super::observation::{Led, Task};
use crate::config::ClusterConfig;
use crate::dcs::txn::Txn;
use crate::dcs::{PgRole, PgState};
use crate::ids::{Epoch, JobId, MemberName};
use crate::time::MonoTime;
use crate::wal::Lsn;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// One decision: why, and what to do. The same observation, memory and settings always give the same.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// The rule that fired, and its facts.
    pub reason: super::reason::Reason,
    /// Orders, to be given in this sequence. Each one is idempotent.
    pub actions: Vec<Action>,
    /// When to decide again if nothing happens before.
    pub wake_at: MonoTime,
    /// How often PostgreSQL shall be looked at meanwhile.
    pub probe_every: Duration,
    /// What REST must know beyond the observation: see [`Standing`].
    pub standing: Standing,
}

/// What the decision means for whoever asks over REST.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// `state` of our PostgreSQL.
    pub state: PgState,
    /// `role` of our PostgreSQL.
    pub role: PgRole,
    /// We hold the lock until this moment (S16).
    pub leader_until: Option<MonoTime>,
    /// Why primary checks answer 503 although we hold the lock (S9).
    pub hold_back: Option<String>,
    /// Failsafe mode keeps us, or the member that asked us, going.
    pub failsafe_active: bool,
    /// The highest epoch that we know of, for a primary that asks whether others have led since (S23).
    #[serde(default)]
    pub epoch: Epoch,
    /// What the keeper of leases holds.
    pub goal: LeaseGoal,
}

/// One order.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Action {
    /// Commit a transaction. Not repeated while one of its kind is under way; an unknown outcome is
    /// followed by a read before anything else of that kind (I5).
    Write {
        /// Its kind.
        task: Task,
        /// What to commit.
        txn: Txn,
    },
    /// What the keeper of leases shall hold from now on. Level-triggered: the whole goal, each time.
    Hold(LeaseGoal),
    /// Start a job. Only given when none runs.
    Start(Job),
    /// Cancel the job, if it can be cancelled where it is.
    Cancel(JobId),
    /// Tell the guardian its deadline for the first time in this tenure, or move it under failsafe
    /// mode; renewals move it on without passing through here. Must be confirmed before PostgreSQL may
    /// become writable (I1, S2).
    Arm {
        /// Our tenure.
        epoch: Epoch,
        /// When the guardian fences.
        deadline: MonoTime,
    },
    /// Tell the guardian that no deadline is needed: nothing is writable, or the cluster is paused.
    Disarm,
    /// Have the guardian end every process of the cluster now.
    Fence,
    /// Bring the PostgreSQL configuration to this state and reload.
    Configure(WantedConf),
    /// `CHECKPOINT`, so that a rewind from here is possible.
    Checkpoint,
    /// Bring the replication slots to this state.
    Slots(SlotPlan),
    /// Ask `GET <api_url>`, all in parallel, no longer than `limit`.
    AskPeers {
        /// Whom.
        peers: BTreeMap<MemberName, String>,
        /// How long to wait for the slowest.
        limit: Duration,
    },
    /// Ask the leader's PostgreSQL for its lineage.
    AskLineage {
        /// Whom.
        leader: MemberName,
        /// Where.
        upstream: Upstream,
    },
    /// `POST /failsafe` to all of these.
    AskFailsafe {
        /// Name and REST URL.
        peers: BTreeMap<MemberName, String>,
        /// Our slots and positions.
        slots: BTreeMap<String, u64>,
    },
    /// Store the promise on disk, cut the WAL stream, read the frozen position; then write
    /// `/fence/<me>` (S19).
    Promise(Epoch),
    /// Delete `/fence/<me>`, then forget the promise on disk; only then may the member stream again.
    Withdraw(Epoch),
    /// Keep on disk which epoch the received WAL belongs to.
    NoteWalEpoch(Epoch),
    /// Keep on disk that this server leads in this tenure; its WAL is of that epoch.
    NoteLed(Led),
    /// Take away the mark that a bootstrap leaves on what it has made: from now on etcd may name it, and then
    /// it is not ours alone to throw away (S7).
    ClearMark,
    /// Resume WAL replay that PostgreSQL paused by itself.
    ResumeReplay,
    /// End a WAL receiver that has been connecting for as long as this; PostgreSQL starts another one.
    EndReceiver(Duration),
    /// Run a callback script: its name and the role it is told.
    Callback {
        /// `on_role_change` and others.
        event: String,
        /// Second argument.
        role: String,
    },
    /// Tell whoever made a wish how it ended.
    Answer {
        /// Which wish.
        wish: Wish,
        /// How it ended.
        outcome: WishOutcome,
    },
    /// A line for the log that is not the decision itself.
    Log {
        /// `warn` and above are for people.
        level: LogLevel,
        /// The sentence.
        text: String,
    },
    /// End the process.
    Exit {
        /// Exit status.
        code: u8,
        /// Why.
        why: String,
    },
}

impl Action {
    /// The short work that the order begins; nothing else of its kind may be ordered before it ends.
    pub fn task(&self) -> Option<Task> {
        match self {
            Self::Write { task, .. } => Some(*task),
            Self::Configure(_) => Some(Task::Configure),
            Self::Checkpoint => Some(Task::Checkpoint),
            Self::Slots(_) => Some(Task::Slots),
            Self::ClearMark => Some(Task::ClearMark),
            Self::AskPeers { .. } => Some(Task::Peers),
            Self::AskLineage { .. } => Some(Task::Lineage),
            Self::AskFailsafe { .. } => Some(Task::AskFailsafe),
            Self::Promise(_) | Self::Withdraw(_) => Some(Task::Fence),
            Self::Hold(_)
            | Self::Start(_)
            | Self::Cancel(_)
            | Self::Arm { .. }
            | Self::Disarm
            | Self::Fence
            | Self::NoteWalEpoch(_)
            | Self::NoteLed(_)
            | Self::ResumeReplay
            | Self::EndReceiver(_)
            | Self::Callback { .. }
            | Self::Answer { .. }
            | Self::Log { .. }
            | Self::Exit { .. } => None,
        }
    }
}

/// Severity of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum LogLevel {
    /// Details.
    Debug,
    /// State changes.
    Info,
    /// Odd, we carry on.
    Warning,
    /// A person must look.
    Error,
    /// We end.
    Critical,
}

/// A wish of an operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Wish {
    /// `POST /restart`.
    Restart(u64),
    /// A scheduled restart.
    ScheduledRestart,
}

/// How a wish ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WishOutcome {
    /// As wished.
    Done,
    /// Under way.
    Started,
    /// No.
    Refused(String),
    /// It was tried.
    Failed(String),
}

/// What the keeper of leases shall hold. It renews on a thread of its own, and only while decisions
/// keep coming and the guardian has confirmed the deadline.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LeaseGoal {
    /// Our session, for the member key.
    Session {
        /// Length to ask for.
        ttl: Duration,
    },
    /// The session, with `/leader` on it: a compatible lease.
    Leader {
        /// Length to ask for.
        ttl: Duration,
    },
    /// The record, and `/leader` beside it for others to see.
    Record {
        /// Length of the session to ask for.
        ttl: Duration,
        /// Our tenure.
        epoch: Epoch,
        /// Length of the record lease.
        length: Duration,
        /// How long candidates must wait.
        wait: Duration,
        /// Time between renewals.
        every: Duration,
        /// Who may take over.
        members: Vec<MemberName>,
    },
}

/// The PostgreSQL configuration that a member should have right now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WantedConf {
    /// See [`super::observation::AppliedConf`].
    pub generation: u64,
    /// `synchronous_standby_names`; empty means none. `None`: the operator's own value.
    pub sync_names: Option<String>,
    /// For a primary, or for a standby.
    pub as_primary: bool,
}

impl WantedConf {
    /// What a server is configured with that starts now or changes its upstream, after the last `order`.
    ///
    /// A primary whose names nobody has ordered yet gets the placeholder, so that it acknowledges nothing until
    /// the rules have spoken (S9). A standby has it too ([`super::sync::standby_names`]).
    pub fn at_start(order: Option<&Self>, config: &ClusterConfig, standby: bool) -> Self {
        let ordered = order
            .filter(|order| order.as_primary != standby)
            .and_then(|order| order.sync_names.clone());
        Self {
            generation: order.map_or(0, |order| order.generation),
            sync_names: config
                .is_synchronous()
                .then(|| ordered.unwrap_or_else(super::sync::placeholder)),
            as_primary: !standby,
        }
    }

    /// What a server is configured with that gets this order, where it would start `with` that. Without names in
    /// the order the cautious ones stay: a standby's are never empty (S3).
    pub fn carried_out(self, with: Self) -> Self {
        Self {
            sync_names: self.sync_names.or(with.sync_names),
            ..self
        }
    }
}

/// The slots that should exist, and how far they should be.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotPlan {
    /// Create these physical slots, reserving WAL at once.
    pub create_physical: Vec<String>,
    /// Create these logical slots: name, database, plugin.
    pub create_logical: Vec<(String, String, String)>,
    /// Advance these physical slots.
    pub advance: Vec<(String, Lsn)>,
    /// Advance these logical slots: name, database, position.
    pub advance_logical: Vec<(String, String, Lsn)>,
    /// Drop these (S15: only ones that nobody uses and nobody asked to keep).
    pub drop: Vec<String>,
}

impl SlotPlan {
    /// Nothing to do.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}
