//! Why: the rule that fired, with the facts that made it fire. The log, the journal, `gardenctl
//! explain` and the tests show the same sentence.
//!
//! A rule's id never changes its meaning; the ids are part of the journal's form.

use super::election::Verdict;
use crate::ids::{Epoch, MemberName};
use crate::wal::Lsn;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident $({ $($field:ident : $ty:ty),* $(,)? })? = $id:literal, $text:literal;)+) => {
        /// The rule that decided.
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        pub enum Reason {
            $(
                $(#[$doc])*
                $variant $({ $(
                    #[allow(missing_docs, reason = "the sentence beside it says what the field is")]
                    $field: $ty
                ),* })?,
            )+
        }

        impl Reason {
            /// The rule's stable id.
            pub fn rule(&self) -> &'static str {
                match self { $(Self::$variant $({ $($field: _),* })? => $id,)+ }
            }

            /// Every rule's id, for coverage reports and the reference page.
            pub const RULES: &'static [(&'static str, &'static str)] = &[$(($id, $text),)+];
        }

        impl fmt::Display for Reason {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                match self { $(Self::$variant $({ $($field),* })? => write!(f, $text $($(, $field = Shown($field))*)?),)+ }
            }
        }
    };
}

/// Prints a field for people.
struct Shown<'a, T>(&'a T);

macro_rules! shown {
    ($($ty:ty),+) => { $(impl fmt::Display for Shown<'_, $ty> {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { write!(f, "{}", self.0) }
    })+ };
}
shown!(String, MemberName, Epoch, Lsn, u32, Verdict);

impl fmt::Display for Shown<'_, Duration> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.0.as_secs_f64())
    }
}

reasons! {
    // Looking around.
    /// PostgreSQL or the data directory was not looked at yet.
    NotLookedYet = "wait-first-look", "waiting for the first look at PostgreSQL";
    /// The guardian does not answer.
    GuardianLost = "wait-guardian", "the guardian does not answer: nothing is started or promoted without it";
    /// Long work runs.
    JobRunning { job: String, phase: String } = "job-running", "{job} in progress ({phase})";
    /// Long work was told to stop.
    JobCancelled { job: String, why: String } = "job-cancel", "cancelling {job}: {why}";
    /// Children of a dead postmaster.
    Orphans = "wait-orphans", "the postmaster is gone but processes of it are not: they are being ended first";
    /// The data directory cannot be read.
    DataUnreadable { why: String } = "data-unreadable", "the data directory cannot be used: {why}";
    /// The lock is ours although the data directory is gone.
    ReleasedForData = "release-no-data", "released the leader key voluntarily: the data directory is empty or unreadable";
    /// Another cluster's data.
    ForeignSystem { ours: String, cluster: String } = "foreign-system",
        "system ID mismatch, this node has {ours} but the cluster is {cluster}: not touching either";
    /// etcd was never read.
    EtcdNeverRead = "wait-etcd", "waiting for etcd: nothing is decided before its first answer";
    /// `/record` is garbled.
    RecordGarbled = "stop-record", "the lease record in etcd cannot be read: nobody may lead until an operator has looked at it";

    // No data yet.
    /// Somebody else initialises.
    WaitBootstrap = "wait-bootstrap", "waiting for the cluster to be initialised by another member";
    /// No leader to copy from.
    WaitLeader = "wait-leader", "waiting for leader to bootstrap";
    /// Handed over, the successor has not taken the lock yet.
    WaitSuccessor = "wait-successor", "handed over: waiting for the candidate to take the leader lock";
    /// Rewound, and nobody to stream the rest from.
    WaitSource = "wait-source", "rewound: waiting for a leader to stream the rest from";
    /// Race for the initialise key.
    ClaimInitialize = "bootstrap-race", "trying to bootstrap a new cluster";
    /// Bootstrap begins.
    Bootstrap = "bootstrap", "bootstrapping a new cluster";
    /// Its keys are being written.
    FinishBootstrap = "bootstrap-finish", "initialized a new cluster: writing its keys";
    /// It failed.
    BootstrapFailed { why: String } = "bootstrap-failed", "failed to bootstrap: {why}";
    /// Copy from a source.
    Clone { source: String } = "clone", "trying to bootstrap from {source}";
    /// A directory left half done.
    Recopy { why: String } = "recopy", "the data directory was left unfinished ({why}): copying it anew";
    /// The same, but no live primary to copy from.
    WaitRecopy { why: String } = "wait-recopy", "the data directory was left unfinished ({why}) and no primary is there to copy from: not starting it";

    // PostgreSQL is not running.
    /// Crash of the leader, started in place.
    RecoverPrimary = "recover-primary", "PostgreSQL crashed while we lead: starting it again in place";
    /// Crash of the leader, hand over.
    CrashFailover { candidate: String } = "crash-failover", "PostgreSQL crashed while we lead: releasing the leader key, {candidate} can take over";
    /// The leader starts as a standby and is promoted afterwards.
    StartForPromotion = "start-for-promotion", "starting as a standby to recover, promotion follows";
    /// Start as a standby.
    StartStandby { leader: String } = "start-standby", "starting as a secondary, following {leader}";
    /// Start as a standby without a source.
    StartAlone = "start-alone", "starting as a standby without a leader to follow";
    /// A start failed, wait.
    StartBackoff { failed: u32 } = "wait-start", "PostgreSQL failed to start {failed} times: waiting before the next attempt";
    /// The leader cannot start.
    ReleasedForStart = "release-start", "released the leader key voluntarily: PostgreSQL does not start";
    /// Starting takes its time.
    Starting = "starting", "PostgreSQL is still starting up";
    /// Starting takes too long.
    StartTooSlow { took: Duration } = "start-too-slow", "PostgreSQL has been starting for {took}: stepping down";
    /// Paused, not started.
    PausedDown = "paused-down", "PAUSE: PostgreSQL is not running";

    // We lead.
    /// Steady.
    Leading { me: MemberName } = "leading", "no action. I am ({me}), the leader with the lock";
    /// First confirmation after a restart of the agent.
    Inherit = "inherit", "the leader key carries our name: taking it over from an earlier life of this agent";
    /// The guardian must be armed.
    ArmFirst = "arm-first", "waiting for the guardian to confirm the deadline before anything may be writable";
    /// Promotion.
    Promote = "promote", "promoted self to leader by acquiring session lock";
    /// Before a promotion: the sync key.
    PreparePromotion { what: String } = "prepare-promotion", "before the promotion: {what}";
    /// In recovery after a finished promotion job.
    PromotionPending = "promotion-pending", "waiting for PostgreSQL to leave recovery";
    /// `pre_promote` refused.
    ReleasedForPrePromote { why: String } = "release-pre-promote", "released the leader key voluntarily: the pre_promote script failed: {why}";
    /// The watchdog is required and unusable.
    ReleasedForWatchdog = "release-watchdog", "released the leader key voluntarily: the watchdog is required and cannot be used";
    /// Giving the lock up.
    Releasing = "releasing", "giving up the leader key";
    /// Paused leader that is no primary.
    ReleasedInPause = "release-pause", "PAUSE: released leader key voluntarily as PostgreSQL is not running as primary";
    /// Paused and leading.
    PausedLeading { me: MemberName } = "paused-leading", "PAUSE: no action. I am ({me}), the leader with the lock";
    /// A switchover is prepared.
    HandoverPreparing { what: String } = "handover-prepare", "preparing to hand over: {what}";
    /// A request cannot be met.
    HandoverRefused { why: String } = "handover-refused", "not handing over: {why}";
    /// A switchover stops PostgreSQL.
    HandoverStop { candidate: String } = "handover-stop", "manual failover: demoting myself, {candidate} takes over";
    /// It has stopped; wait for the candidate's position.
    HandoverWait { candidate: String, lsn: Lsn } = "handover-wait", "waiting until {candidate} has everything up to {lsn}";
    /// The candidate did not get everything: back.
    HandoverBack { candidate: String } = "handover-back", "{candidate} did not receive the end of WAL in time: leading on instead of losing it";
    /// The lease runs out.
    LeaseSpent = "lease-spent", "demoted self because the lease could not be renewed in time";
    /// Somebody else has the lock.
    LostLock { leader: String } = "lost-lock", "demoting self because {leader} holds the leader lock";
    /// A primary without lock.
    NoLock = "no-lock", "demoting self because the leader lock is not ours and cannot be taken";
    /// etcd away, members agree.
    Failsafe { me: MemberName } = "failsafe", "continue to run as a leader because failsafe mode is enabled and all members are accessible ({me})";
    /// etcd away, the lease still holds.
    LeadingBlind { left: Duration } = "leading-blind", "etcd is not reachable, the lease holds for another {left}";
    /// Restart asked for.
    RestartWish = "restart", "restart requested";

    // Nobody leads.
    /// Asking the others.
    AskPeers = "race-ask", "the leader lock is free: asking the other members for their positions";
    /// Take it.
    Claim { verdict: Verdict } = "race-claim", "trying to acquire the leader lock: {verdict}";
    /// The candidate of a request takes it.
    ClaimAsCandidate = "race-candidate", "trying to acquire the leader lock: named as the candidate";
    /// Not the best.
    NotBest { verdict: Verdict } = "race-not-best", "following a different leader because {verdict}";
    /// Not allowed at all.
    NotAllowed { why: String } = "race-not-allowed", "following a different leader because I am not allowed to promote ({why})";
    /// Leave it to the candidate.
    LeaveToCandidate { candidate: MemberName } = "race-leave", "leaving the leader lock to {candidate}, the candidate of the request";
    /// WAL still moves.
    RaceBackoff = "race-backoff", "wal position moved since last heart beat loop: the old primary may be alive, waiting";
    /// Paused.
    PausedFree = "paused-free", "PAUSE: no action. No leader, and nobody is promoted in pause";

    // We follow.
    /// Steady.
    Following { me: MemberName, leader: MemberName } = "following", "no action. I am ({me}), a secondary, and following a leader ({leader})";
    /// No leader known.
    FollowingBlind = "following-blind", "etcd is not reachable: staying as we are, a standby";
    /// Change the source.
    ChangeUpstream { leader: String } = "change-upstream", "following a new source: {leader}";
    /// Logical slots of the leader that are not here.
    CopySlots { leader: MemberName, slots: String } = "copy-slots", "restarting to have logical slots of {leader} here, too: {slots}";
    /// Are we on the same branch?
    CheckLineage { leader: MemberName } = "check-lineage", "comparing timelines with {leader}";
    /// Not on the same branch.
    Rewind { leader: MemberName, why: String } = "rewind", "running pg_rewind from {leader}: {why}";
    /// Wait for the leader's checkpoint.
    WaitCheckpoint { leader: MemberName } = "wait-checkpoint", "waiting for a checkpoint of {leader} before pg_rewind";
    /// Copy instead.
    CopyAnew { leader: MemberName, why: String } = "copy-anew", "reinitializing due to diverged timelines from {leader}: {why}";
    /// Nothing allowed.
    Diverged { why: String } = "diverged", "our timeline has diverged and neither pg_rewind nor a new copy is possible or allowed: {why}";
    /// Asked for.
    Reinitialize = "reinitialize", "reinitialize requested";
    /// Leader of a standby cluster.
    StandbyLeading { me: MemberName } = "standby-leading", "no action. I am ({me}), the standby leader with the lock";
    /// Paused standby.
    PausedFollowing { me: MemberName } = "paused-following", "PAUSE: no action. I am ({me}), a secondary";

    // The end.
    /// Stop.
    ShutdownStop = "shutdown-stop", "shutting down: stopping PostgreSQL";
    /// Let go.
    ShutdownRelease = "shutdown-release", "shutting down: giving up the leader key";
    /// Leave synchronous duty first.
    ShutdownLeaveSync = "shutdown-leave-sync", "shutting down: asking to be released from synchronous duty";
    /// Gone.
    ShutdownDone = "shutdown-done", "shut down";

    // Quorum-fenced failover.
    /// The leader seems dead.
    Suspect { leader: MemberName, silent: Duration } = "suspect", "{leader} has been silent for {silent} and our stream from it is broken: promising to follow it no more";
    /// Promises are collected.
    WaitPromises { have: u32, need: u32 } = "wait-promises", "{have} of {need} promises against the old leader are there";
    /// Take over by quorum.
    FencedClaim { epoch: Epoch } = "fenced-claim", "a quorum has cut off the old leader and we are the most advanced: taking over in epoch {epoch}";
    /// Somebody else is further.
    LeaveToPromised { best: MemberName } = "leave-to-promised", "{best} has promised with more WAL than ours: leaving the takeover to it";
    /// Back to normal.
    Withdraw { why: String } = "withdraw", "withdrawing our promise: {why}";
}
