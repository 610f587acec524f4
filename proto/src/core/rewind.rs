//! Whether the local data directory has left the leader's history, and what can be done about it
//! (`ha-behaviour.md` 11).

use super::observation::{ControlData, ControlState, Lineage, LocalPostgres, Process, Sql};
use crate::config::Settings;
use crate::wal::{Lsn, Timeline};
use serde::{Deserialize, Serialize};

/// How far the question of divergence has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum RewindState {
    /// Nobody asked.
    #[default]
    Initial,
    /// To be found out as soon as a leader can be asked.
    Check,
    /// Diverged.
    Need,
    /// Not diverged.
    NotNeeded,
    /// Rewound; started next.
    Done,
    /// A rewind failed while the leader was in order: the data directory is not to be started as it
    /// is (S18).
    Failed,
}

impl RewindState {
    /// Asks for a check. What is known to have diverged stays so, and a failure is not forgotten.
    pub fn request(self) -> Self {
        match self {
            Self::Need | Self::Failed => self,
            Self::Initial | Self::Check | Self::NotNeeded | Self::Done => Self::Check,
        }
    }

    /// The state after a check.
    pub fn after(self, found: &Divergence) -> Self {
        match (self, found) {
            (Self::Check, Divergence::Same) => Self::NotNeeded,
            (Self::Check, Divergence::Need { .. }) => Self::Need,
            _ => self,
        }
    }
}

/// Whether the local WAL is part of the leader's past.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Divergence {
    /// It is: the server can go on by streaming.
    Same,
    /// It is not: bytes of it are on no timeline of the leader.
    Need {
        /// What was found.
        why: Diverged,
    },
    /// Cannot be told now; ask again.
    Unknown {
        /// What is missing.
        why: Unclear,
    },
}

/// How the local WAL left the leader's history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Diverged {
    /// The local timeline is newer than the leader's.
    NewerTimeline {
        /// Local.
        mine: Timeline,
        /// The leader's.
        leader: Timeline,
    },
    /// The leader's history does not know the local timeline.
    ForeignTimeline {
        /// Local.
        mine: Timeline,
        /// The leader's.
        leader: Timeline,
    },
    /// The same number, but another branch: two members made it independently.
    SameNumber {
        /// Both.
        timeline: Timeline,
    },
    /// The local WAL goes on after the timeline had ended for the leader.
    BeyondSwitch {
        /// Local.
        timeline: Timeline,
        /// How far it goes.
        lsn: Lsn,
        /// Where it ended.
        switch: Lsn,
    },
    /// A shut down primary whose WAL does not end exactly where the timeline ended.
    ShutdownElsewhere {
        /// Local.
        timeline: Timeline,
        /// End of its shutdown checkpoint.
        end: Lsn,
        /// Where the timeline ended.
        switch: Lsn,
    },
}

impl std::fmt::Display for Diverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NewerTimeline { mine, leader } => {
                write!(f, "we are on timeline {mine}, the leader is on {leader}")
            }
            Self::ForeignTimeline { mine, leader } => {
                write!(
                    f,
                    "our timeline {mine} is no ancestor of the leader's {leader}"
                )
            }
            Self::SameNumber { timeline } => {
                write!(
                    f,
                    "our timeline {timeline} is another branch with the leader's number"
                )
            }
            Self::BeyondSwitch {
                timeline,
                lsn,
                switch,
            } => write!(
                f,
                "we have timeline {timeline} up to {lsn}, but it ended at {switch} for the leader"
            ),
            Self::ShutdownElsewhere {
                timeline,
                end,
                switch,
            } => write!(
                f,
                "we shut down at {end} of timeline {timeline}, but it ended at {switch} for the leader"
            ),
        }
    }
}

/// Why it cannot be told.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Unclear {
    /// The leader is in recovery.
    LeaderNotPrimary,
    /// The leader has another system identifier: nothing here can follow it.
    OtherCluster,
    /// The local server runs as a primary.
    StillPrimary,
    /// Timeline or position of the local server are not known.
    NoLocalPosition,
    /// The server was not shut down in order; where its WAL ends is known after crash recovery.
    Unclean,
    /// The end of the shutdown checkpoint could not be read.
    NoCheckpointEnd,
}

/// Where the local WAL ends.
enum LocalEnd {
    /// A standby, at what it replayed and what it received.
    Standby {
        timeline: Timeline,
        replayed: Lsn,
        received: Lsn,
    },
    /// A primary that was shut down.
    Primary {
        timeline: Timeline,
        checkpoint: Lsn,
        end: Option<Lsn>,
    },
    /// A primary that was not shut down: its WAL goes at least this far.
    Crashed { timeline: Timeline, at_least: Lsn },
}

impl LocalEnd {
    fn timeline(&self) -> Timeline {
        match self {
            Self::Standby { timeline, .. }
            | Self::Primary { timeline, .. }
            | Self::Crashed { timeline, .. } => *timeline,
        }
    }
}

/// Received WAL may go this far beyond the end of a timeline without being counted as diverged.
///
/// A primary that dies while it sends leaves a torn record, which is no WAL yet: replay stops before
/// it, and so did the new leader. It must not cost a rewind, or where none is possible, the data
/// directory. Records are rarely longer than one page with its image; what lies within this bound and
/// is valid is caught when it is replayed.
pub const TORN_RECORD_MAX: u64 = 16 * 1024;

/// Compares the local server with the leader's lineage (`ha-behaviour.md` 11.2).
///
/// Beyond Patroni: WAL that a running standby has received but not replayed counts as soon as it
/// cannot be a torn record, since it will be replayed; and equal timeline numbers are only taken
/// for the same timeline when their histories agree. [`Divergence::Same`] of a standby that runs
/// is therefore worth asking again as long as it does not stream. And a crashed server is not started
/// to find out what its control file tells already: as a standby it would follow its own timeline, of
/// which `pg_rewind` before PostgreSQL 16 sees nothing without a checkpoint.
pub fn check(local: &LocalPostgres, lineage: &Lineage) -> Divergence {
    let unknown = |why| Divergence::Unknown { why };
    if !lineage.is_primary {
        return unknown(Unclear::LeaderNotPrimary);
    }
    if local
        .control
        .as_ref()
        .is_some_and(|c| c.system_id != lineage.system_id)
    {
        return unknown(Unclear::OtherCluster);
    }
    let end = match local_end(local) {
        Ok(end) => end,
        Err(why) => return unknown(why),
    };
    let (mine, leader) = (end.timeline(), lineage.history.timeline);
    if mine > leader {
        return Divergence::Need {
            why: Diverged::NewerTimeline { mine, leader },
        };
    }
    // The number says nothing where two members made the timeline independently (S4): what came before it must agree. A
    // file without a line only says that its number is taken.
    let ours = local.history.as_ref().map(|(history, _)| history);
    let ours = ours.filter(|history| history.timeline == mine && !history.switches.is_empty());
    let theirs = points(&lineage.history).into_iter();
    let before = theirs.take_while(|(parent, _)| *parent != mine);
    if ours.is_some_and(|ours| before.ne(points(ours))) {
        return Divergence::Need {
            why: Diverged::SameNumber { timeline: mine },
        };
    }
    if mine == leader {
        return if matches!(end, LocalEnd::Crashed { .. }) {
            unknown(Unclear::Unclean)
        } else {
            Divergence::Same
        };
    }
    match lineage.history.switch_point(mine) {
        None => Divergence::Need {
            why: Diverged::ForeignTimeline { mine, leader },
        },
        Some(switch) => beside(&end, switch),
    }
}

/// The part of a history that two copies of it must share; reasons are words for people.
fn points(history: &crate::wal::TimelineHistory) -> Vec<(Timeline, Lsn)> {
    history
        .switches
        .iter()
        .map(|s| (s.parent, s.switch))
        .collect()
}

/// Whether an end on an older timeline is beside the point at which that timeline ended.
fn beside(end: &LocalEnd, switch: Lsn) -> Divergence {
    let beyond = |timeline, lsn| Divergence::Need {
        why: Diverged::BeyondSwitch {
            timeline,
            lsn,
            switch,
        },
    };
    match *end {
        LocalEnd::Standby {
            timeline,
            replayed,
            received,
        } => {
            if replayed > switch {
                beyond(timeline, replayed)
            } else if received.bytes_ahead_of(switch) > TORN_RECORD_MAX {
                beyond(timeline, received)
            } else {
                Divergence::Same
            }
        }
        LocalEnd::Primary {
            timeline,
            checkpoint,
            ..
        } if checkpoint >= switch => beyond(timeline, checkpoint),
        LocalEnd::Primary { end: None, .. } => Divergence::Unknown {
            why: Unclear::NoCheckpointEnd,
        },
        LocalEnd::Primary {
            timeline,
            end: Some(end),
            ..
        } if end != switch => Divergence::Need {
            why: Diverged::ShutdownElsewhere {
                timeline,
                end,
                switch,
            },
        },
        LocalEnd::Primary { .. } => Divergence::Same,
        LocalEnd::Crashed { timeline, at_least } if at_least > switch => beyond(timeline, at_least),
        LocalEnd::Crashed { .. } => Divergence::Unknown {
            why: Unclear::Unclean,
        },
    }
}

fn local_end(local: &LocalPostgres) -> Result<LocalEnd, Unclear> {
    if let (Process::Alive { .. }, Sql::Sample(sample)) = (&local.process, &local.sql) {
        if !sample.in_recovery {
            return Err(Unclear::StillPrimary);
        }
        let timeline = sample.timeline.ok_or(Unclear::NoLocalPosition)?;
        let replayed = sample.replay_lsn.some().ok_or(Unclear::NoLocalPosition)?;
        return Ok(LocalEnd::Standby {
            timeline,
            replayed,
            received: sample.receive_lsn,
        });
    }
    let control = local.control.as_ref().ok_or(Unclear::NoLocalPosition)?;
    match control.state {
        ControlState::ShutDown => Ok(ended_primary(control)),
        ControlState::InArchiveRecovery | ControlState::ShutDownInRecovery => {
            let known =
                control.min_recovery_end != Lsn::NONE && control.min_recovery_timeline.0 != 0;
            // Without an end of recovery it was a primary until a moment ago, set up as a standby
            // but never run as one.
            if !known {
                return Ok(ended_primary(control));
            }
            Ok(LocalEnd::Standby {
                timeline: control.min_recovery_timeline,
                replayed: control.min_recovery_end,
                received: Lsn::NONE,
            })
        }
        ControlState::Unknown => Err(Unclear::Unclean),
        ControlState::StartingUp
        | ControlState::ShuttingDown
        | ControlState::InCrashRecovery
        | ControlState::InProduction => Ok(crashed(control)),
    }
}

/// A promotion writes its timeline and the end of recovery here at once, and a checkpoint only later
/// (PostgreSQL source, `CreateEndOfRecoveryRecord`).
fn crashed(control: &ControlData) -> LocalEnd {
    if control.min_recovery_timeline > control.timeline {
        return LocalEnd::Crashed {
            timeline: control.min_recovery_timeline,
            at_least: control.min_recovery_end,
        };
    }
    LocalEnd::Crashed {
        timeline: control.timeline,
        // A record begins here.
        at_least: Lsn(control.checkpoint.0.saturating_add(1)),
    }
}

fn ended_primary(control: &ControlData) -> LocalEnd {
    LocalEnd::Primary {
        timeline: control.timeline,
        checkpoint: control.checkpoint,
        end: control.checkpoint_end,
    }
}

/// Whether `pg_rewind` may be used and can work.
pub fn can_rewind(settings: &Settings, control: Option<&ControlData>) -> bool {
    settings.use_pg_rewind && control.is_some_and(|c| c.rewindable)
}

/// What to do about a data directory that has diverged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Remedy {
    /// Crash recovery in single-user mode, then ask again: `pg_rewind` must find the end of WAL.
    RecoverFirst,
    /// `pg_rewind`.
    Rewind,
    /// Remove it and clone; every check of S7 still stands before that.
    Reinitialise,
    /// A person must look: it may neither be rewound nor removed.
    Nothing,
}

/// The remedy for [`RewindState::Need`] (`ha-behaviour.md` 11.3).
pub fn remedy(settings: &Settings, local: &LocalPostgres) -> Remedy {
    if can_rewind(settings, local.control.as_ref()) {
        let state = local
            .control
            .as_ref()
            .map_or(ControlState::Unknown, |c| c.state);
        let down = local.process == Process::Gone;
        return if down && is_unclean(state) {
            Remedy::RecoverFirst
        } else {
            Remedy::Rewind
        };
    }
    if settings.wipe_on_divergence && settings.cluster.standby_cluster.is_none() {
        return Remedy::Reinitialise;
    }
    Remedy::Nothing
}

/// The remedy for [`RewindState::Failed`] (`ha-behaviour.md` 11.4, rule 8). Unlike Patroni, a data
/// directory that may be half rewound is never started (W28).
pub fn remedy_after_failure(settings: &Settings) -> Remedy {
    if settings.wipe_on_rewind_failure || settings.wipe_on_divergence {
        Remedy::Reinitialise
    } else {
        Remedy::Nothing
    }
}

/// Whether a server that is down in this state was not shut down in order.
pub fn is_unclean(state: ControlState) -> bool {
    !matches!(
        state,
        ControlState::ShutDown | ControlState::ShutDownInRecovery
    )
}

#[cfg(test)]
mod tests;
