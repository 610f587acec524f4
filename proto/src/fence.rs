//! The guardian's own state machine: until when PostgreSQL may live, and what to do when that passes.
//!
//! ```text
//!            arm                     deadline passed, or `fence`
//! Disarmed ───────▶ Armed ─────────────────────────────────▶ Fencing
//!    ▲ ▲              │  ▲                                      │
//!    │ └── disarm ────┘  └─ arm (a renewal)                     │
//!    └───────────────────────────────── emptied ───────────────┘
//! ```
//!
//! Pure like the rest of the crate: it is told what time it is, on both clocks. It never moves its
//! deadline by itself, and nothing here judges whether a lease is held: that is the agent's business.
//! The messages between agent and guardian are in [`wire`].

pub mod wire;

pub use crate::core::observation::Armed;
use crate::ids::Epoch;
use crate::time::MonoTime;
use std::time::Duration;

/// Below this much time to the deadline the guardian looks at its clocks every [`POLL_CLOSE`].
pub const CLOSE: Duration = Duration::from_millis(500);

/// Interval of looking at the clocks close to the deadline (`safety.md` 2: 20 ms).
pub const POLL_CLOSE: Duration = Duration::from_millis(20);

/// Longest sleep while armed. Far from the deadline half of what is left would do; this bounds how
/// stale the backstop may be.
pub const POLL_FAR: Duration = Duration::from_secs(5);

/// Added to the backstop, so that a guardian that is awake always acts before its own kernel timer:
/// twice [`POLL_CLOSE`]. It is part of the fencing bound F.
pub const BACKSTOP_SLACK: Duration = Duration::from_millis(40);

/// A moment on the two clocks that deadlines count on. The boot clock counts suspend but is slewed by
/// time synchronisation (chrony: up to 8.3 % by default); the raw clock is not slewed but misses
/// suspend. The holder of a lease trusts whichever has seen more time pass (`safety.md` 2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moment {
    /// `CLOCK_BOOTTIME`.
    pub boot: MonoTime,
    /// `CLOCK_MONOTONIC_RAW`.
    pub raw: MonoTime,
}

/// What the agent knows about PostgreSQL when it asks to be disarmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Basis {
    /// Nothing: the guardian must see for itself that no postmaster lives.
    Unknown,
    /// PostgreSQL is in recovery, and stays so without a deadline that was confirmed first.
    InRecovery,
    /// The cluster is paused: leadership is the operator's business (S13).
    Paused,
}

/// Why a request was refused. The deadline is what it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// An older tenure must not move the deadline of a newer one.
    #[error("epoch {asked} is below epoch {known}")]
    LowerEpoch {
        /// In the request.
        asked: Epoch,
        /// Highest that was ever armed.
        known: Epoch,
    },
    /// The deadline had already passed when it arrived.
    #[error("the deadline has already passed")]
    Passed,
    /// Every process is being ended; ask again when that is over.
    #[error("fencing is under way")]
    Fencing,
    /// A PostgreSQL that may be writable is running.
    #[error("a PostgreSQL that may be writable is running")]
    MayBeWritable,
    /// The server was to run under a deadline, and none stands any more.
    #[error("the deadline under which the start was ordered is over")]
    NoDeadline,
}

/// What the guardian has to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing is armed.
    Idle,
    /// Look at the clocks again after `wake`; have the kernel kill the guardian after `backstop` if it
    /// has not looked by then.
    Wait {
        /// At most this long.
        wake: Duration,
        /// From now; see [`FenceClock::backstop`].
        backstop: Duration,
    },
    /// End every process of the cluster, and go on until none is left.
    Fence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Disarmed,
    Armed { epoch: Epoch, at: Moment },
    Fencing,
}

/// The guardian's state; see the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FenceClock {
    highest: Epoch,
    state: State,
}

impl Default for FenceClock {
    fn default() -> Self {
        Self {
            highest: Epoch(0),
            state: State::Disarmed,
        }
    }
}

impl FenceClock {
    /// The deadline that is armed, in the form in which it was asked for.
    pub fn armed(&self) -> Option<Armed> {
        match self.state {
            State::Armed { epoch, at } => Some(Armed {
                epoch,
                deadline: at.boot,
            }),
            State::Disarmed | State::Fencing => None,
        }
    }

    /// The highest epoch that was ever armed.
    pub fn highest(&self) -> Epoch {
        self.highest
    }

    /// Whether processes are being ended.
    pub fn is_fencing(&self) -> bool {
        self.state == State::Fencing
    }

    /// Sets the deadline of a tenure. The newest request counts, also when it is earlier than the one
    /// before: a lease that was shortened must end sooner. Epoch zero is a compatible lease, which has
    /// no epochs to compare.
    ///
    /// # Errors
    /// [`Refusal`]; a deadline in the past is refused when nothing is armed, and otherwise taken, so that
    /// it fences at once.
    pub fn arm(&mut self, now: Moment, epoch: Epoch, deadline: MonoTime) -> Result<Armed, Refusal> {
        if epoch != Epoch(0) && epoch < self.highest {
            return Err(Refusal::LowerEpoch {
                asked: epoch,
                known: self.highest,
            });
        }
        match self.state {
            State::Fencing => return Err(Refusal::Fencing),
            State::Disarmed if deadline <= now.boot => return Err(Refusal::Passed),
            State::Disarmed | State::Armed { .. } => {}
        }
        self.highest = self.highest.max(epoch);
        let at = Moment {
            boot: deadline,
            raw: now.raw + now.boot.until(deadline),
        };
        self.state = State::Armed { epoch, at };
        Ok(Armed { epoch, deadline })
    }

    /// Gives the deadline up.
    ///
    /// # Errors
    /// [`Refusal`]; in particular while a postmaster lives that nobody has called harmless.
    pub fn disarm(&mut self, epoch: Epoch, basis: Basis, alive: bool) -> Result<(), Refusal> {
        if epoch != Epoch(0) && epoch < self.highest {
            return Err(Refusal::LowerEpoch {
                asked: epoch,
                known: self.highest,
            });
        }
        if self.is_fencing() {
            return Err(Refusal::Fencing);
        }
        if alive && basis == Basis::Unknown {
            return Err(Refusal::MayBeWritable);
        }
        self.state = State::Disarmed;
        Ok(())
    }

    /// Whether a server may be started. One that may become writable, and was ordered while a deadline stood, is
    /// `bounded`: work that goes on while its agent stands still must not start it after that deadline, with
    /// nothing to end it (S2).
    ///
    /// # Errors
    /// [`Refusal`].
    pub fn may_start(&self, bounded: bool) -> Result<(), Refusal> {
        match self.state {
            State::Fencing => Err(Refusal::Fencing),
            State::Disarmed if bounded => Err(Refusal::NoDeadline),
            State::Disarmed | State::Armed { .. } => Ok(()),
        }
    }

    /// Fences now, whatever the deadline.
    pub fn fence(&mut self) {
        self.state = State::Fencing;
    }

    /// No process is left.
    pub fn emptied(&mut self) {
        if self.is_fencing() {
            self.state = State::Disarmed;
        }
    }

    /// Time left until the deadline: the smaller of what the two clocks say.
    pub fn remaining(&self, now: Moment) -> Option<Duration> {
        match self.state {
            State::Armed { at, .. } => Some(now.boot.until(at.boot).min(now.raw.until(at.raw))),
            State::Disarmed | State::Fencing => None,
        }
    }

    /// Looks at the clocks.
    pub fn poll(&mut self, now: Moment) -> Verdict {
        match self.remaining(now) {
            None if self.is_fencing() => Verdict::Fence,
            None => Verdict::Idle,
            Some(Duration::ZERO) => {
                self.fence();
                Verdict::Fence
            }
            Some(left) => Verdict::Wait {
                wake: Self::wake(left),
                backstop: Self::backstop(left),
            },
        }
    }

    fn wake(left: Duration) -> Duration {
        if left <= CLOSE {
            left.min(POLL_CLOSE)
        } else {
            (left / 2).min(POLL_FAR)
        }
    }

    /// After how much time on the boot clock the kernel shall kill a guardian that has stopped looking.
    /// 92 % of what is left absorbs the strongest slew of that clock (0.92 × 1.083 < 1), so a stopped
    /// guardian is dead by the deadline plus [`BACKSTOP_SLACK`]. One that is awake moves it on at every
    /// look, and near the deadline the slack keeps it behind the deadline itself.
    fn backstop(left: Duration) -> Duration {
        left * 23 / 25 + BACKSTOP_SLACK
    }
}

#[cfg(test)]
mod tests;
