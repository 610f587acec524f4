//! Known mistakes that are put back in on purpose (`safety.md` 8, layer 6). Each is a switch in the
//! simulated agent or in what it hands to the real core; the core itself has none.

use super::aimed;
use super::faults::Kind;
use super::run::{Nursery, Plan, Shape};

macro_rules! mutations {
    ($($name:ident = $text:literal,)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Mutation { $($name,)+ }
        impl Mutation {
            pub const ALL: &'static [Mutation] = &[$(Mutation::$name,)+];
            pub fn text(self) -> &'static str {
                match self { $(Mutation::$name => $text,)+ }
            }
        }
    };
}

mutations! {
    // Lease and guardian.
    DeadlineFromReply = "the deadline counts from the answer",
    WaitHalved = "a candidate waits half of W",
    GuardianAbsent = "nothing enforces the deadline",
    NeverArmed = "the guardian is not told the deadline",
    StartUnbounded = "a start goes on after the deadline under which it was ordered",
    KeepaliveTrusted = "an answered keepalive earns a deadline",
    ReleaseBeforeEmpty = "the lock is released before the last process is gone",
    StaleViewTrusted = "a view counts as confirmed however old it is",
    // Compares.
    ClaimWithoutCompare = "a record is taken whatever it says",
    LeaderWithoutCompare = "/leader is taken whatever it says",
    RenewWithoutCompare = "a renewal overwrites what others wrote",
    FenceNotCompared = "the takeover does not compare the promises",
    SyncWithoutCompare = "/sync is written whatever it says",
    PromiseWithoutCompare = "a promise is published over whatever came later",
    WithdrawWithoutCompare = "a promise is withdrawn after it was counted",
    TimelineWithoutCompare = "the number of a timeline is taken whatever /history says",
    InitializeWithoutCompare = "a cluster is made although another one was",
    EpochReused = "a takeover keeps the epoch",
    // Promises and positions.
    PromiseForgotten = "a restarted agent has forgotten its promise",
    StreamNotCut = "a promise does not cut the stream",
    WithdrawDiskFirst = "the disk forgets a promise before etcd does",
    EpochUntold = "a primary that finds etcd emptied is not told that others have led since",
    HandPromotionTrusted = "a standby that somebody promoted takes itself for the last primary",
    ConnectedUncompared = "a standby connects to a leader before its WAL was compared",
    QuorumOneShort = "one promise less is asked for",
    LsnOrderOnly = "positions compare without their timeline, whoever is listed votes",
    TimelineNumberOnly = "a timeline is known by its number alone",
    ReceiverHangs = "a WAL receiver connects for ever",
    // Synchronous replication.
    NamesUnproved = "a standby counts before it has proved itself",
    NamesEmptyAtPromotion = "a promotion leaves the names empty",
    HoldBackIgnored = "clients are let in while recovered WAL is not on a quorum",
    // Failsafe mode.
    FailsafeMajority = "one member's consent is taken for all",
    FailsafeForgotten = "a member that consented leads all the same",
    // Data.
    UnfinishedHidden = "a copy that was left half done passes for data",
    WipeUnchecked = "data is thrown away without a primary to copy from",
}

/// What shows a lease, whatever else happens.
const LEASES: &[Kind] = &[
    Kind::CutEtcd,
    Kind::EtcdSlow,
    Kind::EtcdLossy,
    Kind::Isolate,
    Kind::LoopStall,
    Kind::AgentFreeze,
    Kind::NodeFreeze,
    Kind::EtcdDown,
    Kind::AgentCrash,
];

impl Mutation {
    /// The plan of a seed with this mistake in it: one that is aimed at it, or one that chance makes of faults
    /// that concern it.
    pub fn plan(self, seed: u64, nursery: &mut Nursery) -> Plan {
        if let Some(plan) = aimed::plan(self, seed, nursery) {
            return plan;
        }
        let mut rng = fastrand::Rng::with_seed(seed ^ 0xbad);
        let mut shape = Shape::random(&mut rng);
        // Nobody's help is waited for.
        shape.wipe = true;
        let kinds = if self == Self::ReleaseBeforeEmpty {
            Kind::ALL
        } else {
            shape.native = true;
            LEASES
        };
        let mut plan = Plan::among(kinds, shape, false, seed, &mut rng);
        plan.mutation = Some(self);
        plan
    }
}
