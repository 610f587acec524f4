//! The two clocks of `proto::time`, read. Nothing else in this crate reads a clock for a deadline.

use nix::time::{ClockId, clock_gettime};
use proto::time::{MonoTime, WallTime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Now on the boot clock, which counts suspend (D5 of the layout: a suspended machine must see its
/// lease as spent).
pub fn now() -> MonoTime {
    // CLOCK_BOOTTIME exists since Linux 2.6.39; a kernel without it cannot run this program.
    let spec = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the kernel has CLOCK_BOOTTIME");
    MonoTime::default() + Duration::from(spec)
}

/// The same on the clock that no time synchronisation slews, which misses suspend. Only differences of it
/// mean anything.
pub fn raw() -> MonoTime {
    // CLOCK_MONOTONIC_RAW exists since Linux 2.6.28.
    let spec =
        clock_gettime(ClockId::CLOCK_MONOTONIC_RAW).expect("the kernel has CLOCK_MONOTONIC_RAW");
    MonoTime::default() + Duration::from(spec)
}

/// Now for schedules and people.
pub fn wall() -> WallTime {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    WallTime(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
