//! The witness: a child of the guardian that does nothing but see it die.
//!
//! When the guardian dies, the parent-death signal ends the postmaster, but backends that are busy live
//! on and can still commit. The witness ends them. It is what makes the kernel timer, and a SIGKILL that
//! hits the guardian and the agent together, end the whole cluster.
#![expect(
    unsafe_code,
    reason = "fork, and one page shared between two processes"
)]

use super::{fence, proc, spawn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{ForkResult, Pid, fork, getpid};
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, AsRawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long one round of ending processes may take before the next begins.
const SWEEP_LIMIT: Duration = Duration::from_secs(5);

/// What must end with the guardian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Duty {
    /// Nothing: no server, or one that others started and that holds no lease.
    Nothing = 0,
    /// Every process of the cluster.
    Everything = 1,
}

/// The guardian's end of it.
#[derive(Debug)]
pub struct Witness {
    pid: Pid,
    duty: &'static AtomicU32,
}

impl Witness {
    /// Starts it. To be called while this process has nothing open that must end with it.
    ///
    /// # Errors
    /// As of mmap(2) and fork(2).
    pub fn start(data_dir: &[u8]) -> nix::Result<Self> {
        let size = NonZeroUsize::MIN.saturating_add(4095);
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a fresh anonymous mapping, which nothing else refers to.
        let page = unsafe { mmap_anonymous(None, size, access, MapFlags::MAP_SHARED)? };
        // SAFETY: the page is zeroed, aligned, large enough for the number, and never unmapped.
        let duty: &'static AtomicU32 = unsafe { NonNull::cast::<AtomicU32>(page).as_ref() };
        let guardian = proc::pidfd(getpid().as_raw()).ok_or(nix::Error::ESRCH)?;
        // SAFETY: this process has one thread, and the child keeps to itself.
        match unsafe { fork() }? {
            ForkResult::Child => watch(&guardian, data_dir, duty),
            ForkResult::Parent { child } => Ok(Self { pid: child, duty }),
        }
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid.as_raw()
    }

    /// Says what must end if the guardian ended now. Set before it becomes true, cleared after.
    pub fn set(&self, duty: Duty) {
        self.duty.store(duty as u32, Ordering::SeqCst);
    }

    /// The guardian ends in order.
    pub fn dismiss(&self) {
        self.set(Duty::Nothing);
        let _ = kill(self.pid, Signal::SIGKILL);
    }
}

/// The child.
fn watch(guardian: &impl AsFd, data_dir: &[u8], duty: &AtomicU32) -> ! {
    let _ = nix::unistd::setsid();
    spawn::close_others(&[guardian.as_fd().as_raw_fd()]);
    let mut fds = [PollFd::new(guardian.as_fd(), PollFlags::POLLIN)];
    while !matches!(poll(&mut fds, PollTimeout::NONE), Ok(n) if n > 0) {}
    if duty.load(Ordering::SeqCst) == Duty::Everything as u32 {
        let scope = fence::Scope {
            data_dir: Some(data_dir),
            ..fence::Scope::default()
        };
        while fence::sweep(&scope, SWEEP_LIMIT).is_none() {}
    }
    spawn::exit_now(0)
}
