//! Two kinds of time, never mixed: the boot clock that deadlines count on, and wall-clock time that
//! people read and schedule by. Neither is read here; both are handed in.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Sub};
use std::time::Duration;

/// Nanoseconds on one machine's boot clock (`CLOCK_BOOTTIME`). Never sent to another machine, and
/// never compared with a value of one. Suspend counts, wall-clock jumps do not.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct MonoTime(pub u64);

impl MonoTime {
    /// Time passed since `earlier`; zero when `earlier` lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }

    /// Time left until `later`; zero when it has passed.
    pub fn until(self, later: Self) -> Duration {
        later.since(self)
    }
}

impl Add<Duration> for MonoTime {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

impl Sub<Duration> for MonoTime {
    type Output = Self;
    fn sub(self, rhs: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(rhs.as_nanos()).unwrap_or(u64::MAX)),
        )
    }
}

/// Milliseconds since 1970 in UTC. For schedules, histories and people; never for a deadline.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct WallTime(pub i64);

impl WallTime {
    /// Parses ISO 8601 with an offset or `Z`; `T` or a blank between date and time.
    /// Text without a zone is not a moment, and gives `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let stamp: jiff::Timestamp = text.trim().parse().ok()?;
        // Cut off as in the text, also before 1970.
        let millis = stamp.as_nanosecond().div_euclid(1_000_000);
        i64::try_from(millis).ok().map(Self)
    }

    /// ISO 8601 in UTC with microseconds and a numeric offset, as Patroni's readers parse it.
    pub fn to_iso(self) -> String {
        match jiff::Timestamp::from_millisecond(self.0) {
            Ok(stamp) => {
                let text = stamp.to_string();
                format!("{}+00:00", text.trim_end_matches('Z'))
            }
            Err(_) => String::from("1970-01-01T00:00:00+00:00"),
        }
    }

    /// Signed milliseconds from `self` to `later`.
    pub fn millis_until(self, later: Self) -> i64 {
        later.0.saturating_sub(self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_time_needs_a_zone() {
        assert_eq!(
            WallTime::parse("1970-01-01T00:00:01+00:00"),
            Some(WallTime(1000))
        );
        assert_eq!(
            WallTime::parse("1970-01-01 01:00:01+01:00"),
            Some(WallTime(1000))
        );
        assert_eq!(
            WallTime::parse("1970-01-01T00:00:01Z"),
            Some(WallTime(1000))
        );
        assert_eq!(WallTime::parse("2030-01-01T00:00:00"), None);
        assert_eq!(WallTime::parse("soon"), None);
    }

    #[test]
    fn mono_time_saturates() {
        let t = MonoTime(5);
        assert_eq!(t - Duration::from_secs(1), MonoTime(0));
        assert_eq!(MonoTime(3).since(t), Duration::ZERO);
        assert_eq!(t + Duration::from_nanos(2), MonoTime(7));
    }
}
