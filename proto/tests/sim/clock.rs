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
        MonoTime(self.offset.saturating_add_signed(drifted(t, self.ppm)))
    }

    /// When it will have shown this.
    pub fn truth(&self, at: MonoTime) -> T {
        let since = i128::from(at.0) - i128::from(self.offset);
        let t = since.max(0) * 1_000_000 / i128::from(1_000_000 + self.ppm);
        u64::try_from(t).unwrap_or(0) + 1
    }
}

/// How far the clock is off after this time. Runs are short: the product is far below 64 bits.
fn drifted(t: T, ppm: i64) -> i64 {
    let drift = i64::try_from(t).unwrap_or(0).saturating_mul(ppm) / 1_000_000;
    i64::try_from(t).unwrap_or(0).saturating_add(drift)
}

pub fn dur(t: T) -> Duration {
    Duration::from_nanos(t)
}

pub fn nanos(d: Duration) -> T {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX / 4)
}
