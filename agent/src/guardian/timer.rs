//! The guardian's clocks and timers, and its place in the scheduler.
#![expect(unsafe_code, reason = "sched_setscheduler has no safe form here")]

use nix::libc;
use nix::sys::signal::{SigEvent, SigevNotify, Signal};
use nix::sys::time::TimeSpec;
use nix::sys::timer::{Expiration as TimerExpiration, Timer, TimerSetTimeFlags};
use nix::sys::timerfd::{
    ClockId as FdClock, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags as FdFlags,
};
use nix::time::ClockId;
use proto::fence::Moment;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::time::Duration;

/// Now, on both clocks.
pub fn moment() -> Moment {
    Moment {
        boot: crate::clock::now(),
        raw: crate::clock::raw(),
    }
}

/// Wakes the loop. On the boot clock, so that a machine that was suspended wakes it at once.
#[derive(Debug)]
pub struct Alarm(TimerFd);

impl Alarm {
    /// A timer that is not set.
    ///
    /// # Errors
    /// As of timerfd_create(2).
    pub fn new() -> nix::Result<Self> {
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        TimerFd::new(FdClock::CLOCK_BOOTTIME, flags).map(Self)
    }

    /// Becomes readable after `delay`; `None`: never.
    pub fn set(&self, delay: Option<Duration>) {
        let result = match delay {
            // A timer set to zero would be off.
            Some(delay) => self.0.set(
                Expiration::OneShot(TimeSpec::from(delay.max(Duration::from_nanos(1)))),
                FdFlags::empty(),
            ),
            None => self.0.unset(),
        };
        // The arguments are in range by construction, and there is nothing else that can fail.
        debug_assert!(result.is_ok(), "timerfd_settime: {result:?}");
    }

    /// For `poll`.
    pub fn fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// Has the kernel kill this process. Nothing in user space has to be scheduled for it: it works on a
/// process that is stopped, and the parent-death signal then takes the postmaster along.
#[derive(Debug)]
pub struct Backstop(Timer);

impl Backstop {
    /// A timer that is not set.
    ///
    /// # Errors
    /// As of timer_create(2).
    pub fn new() -> nix::Result<Self> {
        let kill = SigevNotify::SigevSignal {
            signal: Signal::SIGKILL,
            si_value: 0,
        };
        Timer::new(ClockId::CLOCK_BOOTTIME, SigEvent::new(kill)).map(Self)
    }

    /// Kills this process after `delay`, unless it is set again before; `None`: not at all.
    pub fn set(&mut self, delay: Option<Duration>) {
        let at = match delay {
            Some(delay) => TimeSpec::from(delay.max(Duration::from_nanos(1))),
            None => TimeSpec::from(Duration::ZERO),
        };
        let result = self
            .0
            .set(TimerExpiration::OneShot(at), TimerSetTimeFlags::empty());
        debug_assert!(result.is_ok(), "timer_settime: {result:?}");
    }
}

/// Makes this process, and none of its children, run before every ordinary one. Whether that worked.
pub fn become_real_time(priority: i32) -> bool {
    let parameters = libc::sched_param {
        sched_priority: priority,
    };
    // A postmaster must not inherit it: hundreds of backends would starve the machine.
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: the structure is valid for the call.
    unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) == 0 }
}
