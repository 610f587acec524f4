//! True time, and the clocks of the machines, which start anywhere and drift.

use proto::time::MonoTime;
use std::time::Duration;

/// True time in nanoseconds since the run began. No machine knows it.
pub type T = u64;

pub const MS: T = 1_000_000;
pub const SEC: T = 1_000 * MS;

/// One machine's boot clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    pub offset: u64,
    pub ppm: i64,
}

impl Clock {
    /// What it shows.
    pub fn local(&self, t: T) -> MonoTime {
        let drift = i128::from(t) * i128::from(self.ppm) / 1_000_000;
        let shown = i128::from(self.offset) + i128::from(t) + drift;
        MonoTime(u64::try_from(shown).unwrap_or(0))
    }

    /// When it will have shown this.
    pub fn truth(&self, at: MonoTime) -> T {
        let since = i128::from(at.0) - i128::from(self.offset);
        let t = since.max(0) * 1_000_000 / i128::from(1_000_000 + self.ppm);
        u64::try_from(t).unwrap_or(0) + 1
    }
}

pub fn dur(t: T) -> Duration {
    Duration::from_nanos(t)
}

pub fn nanos(d: Duration) -> T {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX / 4)
}
