//! One round of ending processes, pass by pass, so that the loop goes on meanwhile.

use crate::guardian::fence::{Pass, Scope, Sweeper};
use proto::time::MonoTime;
use std::time::Duration;

/// How long the log writer of a postmaster that ended in order may take to write what is left.
pub(super) const LOGGER_GRACE: Duration = Duration::from_millis(200);

/// Why processes are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cause {
    /// The deadline, or an order.
    Fence,
    /// The postmaster is gone.
    Orphans,
}

/// A round.
#[derive(Debug)]
pub(super) struct Sweep {
    pub cause: Cause,
    since: MonoTime,
    spare_until: MonoTime,
    /// How many the first pass that killed found.
    pub found: u32,
    killed: bool,
    /// The last pass saw nobody.
    pub is_over: bool,
}

impl Sweep {
    pub fn new(cause: Cause, since: MonoTime, grace: Duration) -> Self {
        Self {
            cause,
            since,
            spare_until: since + grace,
            found: 0,
            killed: false,
            is_over: false,
        }
    }

    /// One pass. Returns how many are being ended, the first time that any are.
    pub fn pass(&mut self, sweeper: &mut Sweeper, scope: &Scope<'_>, now: MonoTime) -> Option<u32> {
        let Pass { alive, blind } = if now < self.spare_until {
            sweeper.count(scope)
        } else {
            sweeper.kill(scope)
        };
        self.is_over = alive == 0 && !blind;
        if self.killed || alive == 0 || now < self.spare_until {
            return None;
        }
        self.killed = true;
        self.found = alive;
        Some(alive)
    }

    /// How long it has been going on.
    pub fn took(&self, now: MonoTime) -> Duration {
        now.since(self.since)
    }
}
