//! The first process of a container: runs the agent, starts it again when it crashed, passes signals on,
//! and takes the status of every orphan (what an `init` does).
//!
//! A process of its own and not the guardian: the kernel lets no first process kill itself by timer,
//! which is the guardian's last resort. Outside a container systemd does this work better.
#![expect(unsafe_code, reason = "a hook between fork and exec")]

use super::note::note;
use nix::errno::Errno;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, pthread_sigmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

/// What a Rust program ends with when it panicked.
const PANICKED: i32 = 101;

/// Exit status when the agent cannot be started.
const CANNOT_START: u8 = 1;

/// An agent that lived so long had no crash loop.
const STABLE: Duration = Duration::from_secs(30);

/// Wait before the second and later restarts in a row; the first is immediate, so that a crash of the
/// agent goes unnoticed by clients.
const DELAYS: [Duration; 4] = [
    Duration::ZERO,
    Duration::from_millis(300),
    Duration::from_secs(1),
    Duration::from_secs(5),
];

/// Signals that are the agent's.
const PASSED_ON: [Signal; 6] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
];

/// How the agent ended.
enum End {
    /// By its own decision, with this status.
    Exit(u8),
    /// It crashed.
    Crash,
}

/// Runs `garden-agent` with these words until it ends by its own decision; returns its exit status.
/// Signals that come meanwhile go to it.
pub fn run(words: &[OsString]) -> u8 {
    let mut set = SigSet::empty();
    PASSED_ON
        .into_iter()
        .chain([Signal::SIGCHLD])
        .for_each(|signal| set.add(signal));
    if let Err(error) = set.thread_block() {
        note!("ERROR", "cannot block signals: {error}");
        return CANNOT_START;
    }
    let mut crashes = 0usize;
    loop {
        let begin = crate::clock::now();
        let agent = match start(words) {
            Ok(pid) => pid,
            Err(error) => {
                note!("ERROR", "cannot start the agent: {error}");
                return CANNOT_START;
            }
        };
        match serve(agent, &set) {
            End::Exit(status) => return status,
            End::Crash => {}
        }
        crashes = if crate::clock::now().since(begin) >= STABLE {
            0
        } else {
            crashes + 1
        };
        let delay = DELAYS.get(crashes.saturating_sub(1)).unwrap_or(&DELAYS[3]);
        note!("ERROR", "the agent crashed, starting it again in {delay:?}");
        std::thread::sleep(*delay);
    }
}

fn start(words: &[OsString]) -> std::io::Result<Pid> {
    let mut command = Command::new(super::this_program());
    command.args(words);
    let unblock = || {
        let none = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&none), None).map_err(std::io::Error::from)
    };
    // SAFETY: the hook only sets the signal mask, which is allowed between fork and exec.
    let child = unsafe { command.pre_exec(unblock) }.spawn()?;
    // Never waited for through the handle: every status is taken below.
    Ok(Pid::from_raw(i32::try_from(child.id()).unwrap_or(i32::MAX)))
}

/// Passes signals on and takes statuses until the agent has ended.
fn serve(agent: Pid, set: &SigSet) -> End {
    let mut asked_to_end = false;
    loop {
        match set.wait() {
            Ok(Signal::SIGCHLD) => {
                if let Some(status) = reap(agent) {
                    return judge(status, asked_to_end);
                }
            }
            Ok(signal) => {
                asked_to_end |=
                    matches!(signal, Signal::SIGTERM | Signal::SIGINT | Signal::SIGQUIT);
                // Its status has not been taken, so nobody else has its pid.
                let _ = kill(agent, signal);
            }
            Err(_) => {}
        }
    }
}

/// Takes the status of everybody who has ended; the agent's, if it is among them.
fn reap(agent: Pid) -> Option<WaitStatus> {
    let mut found = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return found,
            Ok(status) if status.pid() == Some(agent) => found = Some(status),
            Ok(_) | Err(Errno::EINTR) => {}
            Err(_) => return found,
        }
    }
}

fn judge(status: WaitStatus, asked_to_end: bool) -> End {
    match status {
        WaitStatus::Exited(_, PANICKED) => End::Crash,
        WaitStatus::Exited(_, code) => End::Exit(u8::try_from(code).unwrap_or(1)),
        // Somebody wanted it to end, and then made it.
        WaitStatus::Signaled(_, signal, _) if asked_to_end => {
            End::Exit(128u8.saturating_add(u8::try_from(signal as i32).unwrap_or(0)))
        }
        _ => End::Crash,
    }
}

/// Whether this process is the first one of its container, and so has to be an `init` first.
pub fn is_first_process() -> bool {
    nix::unistd::getpid().as_raw() == 1
}
