//! The answer to the question whether a member may take the lock, with its facts.

use crate::ids::MemberName;
use crate::wal::{Lsn, Timeline};
use serde::{Deserialize, Serialize};

/// May this member take the lock, and if not, why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Verdict {
    /// Yes: nobody that may be promoted is known to be better.
    Best,
    /// Yes: the request names this member.
    Requested,
    /// The tags say that it must never lead.
    NoFailover,
    /// It is not named in `/failsafe`, so the last leader did not count on it.
    NotInFailsafe,
    /// It is not named in `/sync`, so it may lack acknowledged commits.
    NotSynchronous,
    /// The cluster is paused.
    Paused,
    /// It is too far behind what the last leader published.
    Lagging {
        /// By how many bytes.
        behind: u64,
        /// How many are allowed.
        limit: u64,
    },
    /// `check_timeline`: it is on an older timeline than the cluster was.
    OldTimeline {
        /// Its own.
        mine: Option<Timeline>,
        /// The cluster's, from `/history`.
        cluster: Timeline,
    },
    /// A peer runs as a primary.
    PeerIsPrimary {
        /// Who.
        peer: MemberName,
    },
    /// A peer has more WAL.
    PeerAhead {
        /// Who.
        peer: MemberName,
        /// Its position.
        its: Lsn,
        /// Ours.
        mine: Lsn,
    },
    /// A peer is on a newer timeline.
    PeerOnNewerTimeline {
        /// Who.
        peer: MemberName,
        /// Its timeline.
        its: Timeline,
        /// Ours.
        mine: Timeline,
    },
    /// Our timeline comes of a promotion by hand, the peer's is one of a leader.
    PeerOnClaimedTimeline {
        /// Who.
        peer: MemberName,
        /// Its timeline.
        its: Timeline,
        /// Ours.
        mine: Timeline,
    },
    /// A peer with the same position is preferred.
    HigherPriority {
        /// Who.
        peer: MemberName,
        /// Its `failover_priority`.
        its: i64,
        /// Ours.
        mine: i64,
    },
    /// Too few voters confirmed that they are not ahead.
    NotEnoughVotes {
        /// Votes, its own not counted; −1 for a member that is no voter itself.
        have: i64,
        /// `quorum` of `/sync`.
        need: u32,
    },
    /// The request names another member, which is alive.
    LeaveTo {
        /// Who.
        candidate: MemberName,
    },
    /// The request wants this member to step down, and somebody can replace it.
    SteppingDown {
        /// Who can.
        replaced_by: Vec<MemberName>,
    },
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Best => f.write_str("nobody is known to be better"),
            Self::Requested => f.write_str("the request names this member"),
            Self::NoFailover => f.write_str("I am not allowed to promote"),
            Self::NotInFailsafe => f.write_str("I am not named in the failsafe key"),
            Self::NotSynchronous => f.write_str("I am not named in the sync key"),
            Self::Paused => f.write_str("the cluster is paused"),
            Self::Lagging { behind, limit } => {
                write!(
                    f,
                    "I am {behind} bytes behind, more than the {limit} that are allowed"
                )
            }
            Self::OldTimeline { mine, cluster } => match mine {
                Some(mine) => write!(
                    f,
                    "my timeline {mine} is older than the cluster's {cluster}"
                ),
                None => write!(f, "my timeline is not known, the cluster's is {cluster}"),
            },
            Self::PeerIsPrimary { peer } => write!(f, "{peer} is running as a primary"),
            Self::PeerAhead { peer, .. } => {
                write!(f, "Wal position of {peer} is ahead of my wal position")
            }
            Self::PeerOnNewerTimeline { peer, its, mine } => {
                write!(f, "{peer} is on timeline {its}, this node is on {mine}")
            }
            Self::PeerOnClaimedTimeline { peer, its, mine } => write!(
                f,
                "{peer} is on timeline {its}, this node is on {mine}, which nobody has claimed"
            ),
            Self::HigherPriority { peer, its, mine } => write!(
                f,
                "{peer} has equally tolerable WAL position and priority {its}, \
                 while this node has priority {mine}"
            ),
            Self::NotEnoughVotes { have, need } => {
                write!(
                    f,
                    "only {have} of {need} other voters confirmed my position"
                )
            }
            Self::LeaveTo { candidate } => write!(f, "{candidate} is the candidate of the request"),
            Self::SteppingDown { .. } => f.write_str("the request wants me to step down"),
        }
    }
}

impl Verdict {
    /// Whether the member may try to take the lock.
    pub fn is_yes(&self) -> bool {
        matches!(self, Self::Best | Self::Requested)
    }
}
