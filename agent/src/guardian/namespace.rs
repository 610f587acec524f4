//! The strict form: PostgreSQL in a PID namespace of its own.
//!
//! ```text
//! guardian ── first process of the namespace ── postmaster ── backends …
//!      └─ dies: SIGKILL (parent death) ─┘ dies: the kernel ends all that is in the namespace
//! ```
//!
//! Nothing in user space has to be scheduled for it: the guardian's kernel timer ends everything even
//! while every process of this machine is stopped. An unprivileged user may do it through a user
//! namespace, which maps only this user: files of other owners seem to belong to nobody.
//!
//! Pids inside differ from those outside, except the postmaster's: it is made to have the same on both
//! sides, so that `postmaster.pid` and `pg_ctl` keep their meaning. Backends are numbered from within.
#![expect(
    unsafe_code,
    reason = "clone3, and wait in the form that gives the raw status"
)]

use super::proc::{self, Process};
use super::spawn::{self, Postmaster, Prepared, SpawnError};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::{getegid, geteuid, pipe2, read, write};
use rustix::process::{Signal as RawSignal, pidfd_send_signal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::Duration;

/// How long the first process may take to do one step.
const STEP_LIMIT: Duration = Duration::from_secs(1);

/// How often a pid that is the same on both sides is tried for. Each try misses only when another
/// process of this machine was started in between.
const TRIES: u32 = 30;

/// "Whatever pid comes."
const ANY: i32 = 0;

/// How long others may outlive a postmaster that ended in order: its log writer does.
const GRACE: Duration = Duration::from_millis(200);

/// The first process of a namespace, as the guardian holds it.
#[derive(Debug)]
pub struct Init {
    /// What it is, seen from outside.
    pub process: Process,
    pidfd: OwnedFd,
    line: OwnedFd,
}

impl Init {
    /// Ends everything in the namespace.
    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, RawSignal::KILL);
    }

    /// How the postmaster ended, as of wait(2), if its end has come before that of the namespace.
    pub fn status(&self) -> Option<i32> {
        receive(&self.line, MsgFlags::MSG_DONTWAIT)
    }
}

/// Whether this machine lets us: containers and some distributions do not.
pub fn is_possible() -> bool {
    let ids = Ids(geteuid(), getegid());
    match clone3(libc::CLONE_NEWUSER | libc::CLONE_NEWPID, ANY) {
        Ok(0) => spawn::exit_now(i32::from(!map_ids(ids))),
        Ok(pid) => {
            let pid = nix::unistd::Pid::from_raw(pid);
            let status = nix::sys::wait::waitpid(pid, None);
            matches!(status, Ok(nix::sys::wait::WaitStatus::Exited(_, 0)))
        }
        Err(_) => false,
    }
}

/// Starts a postmaster in a fresh namespace.
///
/// # Errors
/// See [`SpawnError`]; that the program cannot be executed shows as its exit with 127.
pub fn start(prepared: &Prepared<'_>) -> Result<Postmaster, SpawnError> {
    let kind = SockType::SeqPacket;
    let (line, theirs) = socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC)?;
    let ids = Ids(geteuid(), getegid());
    let pid = match clone3(libc::CLONE_NEWUSER | libc::CLONE_NEWPID, ANY)? {
        0 => {
            drop(line);
            be_first(&theirs, prepared, ids)
        }
        pid => pid,
    };
    drop(theirs);
    let pidfd = proc::pidfd(pid).ok_or(SpawnError::Gone(pid))?;
    let process = Process::read(pid).ok_or(SpawnError::Gone(pid))?;
    let init = Init {
        process,
        pidfd,
        line,
    };
    match agree(&init) {
        Ok(mut postmaster) => {
            postmaster.init = Some(init);
            Ok(postmaster)
        }
        Err(error) => {
            init.kill();
            Err(error)
        }
    }
}

/// Has the first process make a postmaster with the same pid on both sides, and lets it run.
fn agree(init: &Init) -> Result<Postmaster, SpawnError> {
    let mut wanted = init.process.pid.saturating_add(1);
    let mut list = Vec::new();
    for left in (0..TRIES).rev() {
        tell(&init.line, wanted)?;
        let answer = answer(&init.line)?;
        if answer < 0 && wanted == ANY {
            return Err(SpawnError::Namespace(
                "its first process cannot start another",
            ));
        }
        if answer < 0 {
            // No right to choose, or no such pid.
            wanted = ANY;
            continue;
        }
        proc::all(&mut list)?;
        let child = list.iter().find(|p| p.parent == init.process.pid);
        let pid = child
            .ok_or(SpawnError::Namespace("its postmaster is gone"))?
            .pid;
        if pid == answer || wanted == ANY || left == 0 {
            let postmaster = spawn::hold(pid)?;
            tell(&init.line, 1)?;
            return Ok(postmaster);
        }
        tell(&init.line, 0)?;
        // The next pid of this machine is most likely the one after the last.
        wanted = pid.saturating_add(1);
    }
    Err(SpawnError::Namespace("no pid"))
}

fn tell(line: &OwnedFd, number: i32) -> nix::Result<()> {
    send(
        line.as_raw_fd(),
        &number.to_ne_bytes(),
        MsgFlags::MSG_NOSIGNAL,
    )
    .map(drop)
}

fn receive(line: &OwnedFd, flags: MsgFlags) -> Option<i32> {
    let mut number = [0u8; 4];
    match recv(line.as_raw_fd(), &mut number, flags) {
        Ok(4) => Some(i32::from_ne_bytes(number)),
        _ => None,
    }
}

fn answer(line: &OwnedFd) -> Result<i32, SpawnError> {
    let mut fds = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
    let _ = poll(
        &mut fds,
        PollTimeout::try_from(STEP_LIMIT).unwrap_or(PollTimeout::ZERO),
    );
    receive(line, MsgFlags::MSG_DONTWAIT)
        .ok_or(SpawnError::Namespace("its first process is silent"))
}

/// Like fork, with these flags and, unless [`ANY`], this pid in the namespace of the child.
fn clone3(flags: i32, pid: i32) -> nix::Result<i32> {
    // SAFETY: the structure is plain numbers, all zero is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(flags.unsigned_abs());
    arguments.exit_signal = u64::from(libc::SIGCHLD.unsigned_abs());
    if pid != ANY {
        arguments.set_tid = (&raw const pid) as u64;
        arguments.set_tid_size = 1;
    }
    // SAFETY: without CLONE_VM this is fork: the child has a copy of everything, and this process has one
    // thread, so no lock is held in it. `pid` outlives the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const arguments,
            size_of::<libc::clone_args>(),
        )
    };
    Errno::result(result).map(|pid| i32::try_from(pid).unwrap_or(i32::MAX))
}

/// A user and a group, as seen from outside: inside they are nobody until they are mapped.
#[derive(Clone, Copy)]
struct Ids(nix::unistd::Uid, nix::unistd::Gid);

/// Maps this user and group to themselves: the only ones that a user without privileges may map.
fn map_ids(Ids(uid, gid): Ids) -> bool {
    let put = |name: &str, text: String| std::fs::write(format!("/proc/self/{name}"), text).is_ok();
    put("setgroups", String::from("deny"))
        && put("uid_map", format!("{uid} {uid} 1"))
        && put("gid_map", format!("{gid} {gid} 1"))
}

/// The first process of the namespace: starts the postmaster, waits for it, and ends with it.
fn be_first(line: &OwnedFd, prepared: &Prepared<'_>, ids: Ids) -> ! {
    // Sent from outside the namespace, this one cannot be ignored, not even by a first process.
    if prctl::set_pdeathsig(Signal::SIGKILL).is_err() || !map_ids(ids) {
        spawn::exit_now(1);
    }
    let _ = nix::unistd::setsid();
    let postmaster = loop {
        // Nothing to read means that the guardian died before the death signal was set.
        let Some(wanted) = receive(line, MsgFlags::empty()) else {
            spawn::exit_now(1)
        };
        let Ok((reader, writer)) = pipe2(OFlag::O_CLOEXEC) else {
            spawn::exit_now(1)
        };
        let child = match clone3(0, wanted) {
            Ok(0) => {
                drop(writer);
                match read(&reader, &mut [0u8; 1]) {
                    Ok(1) => prepared.become_it(None),
                    _ => spawn::exit_now(1),
                }
            }
            Ok(pid) => pid,
            Err(_) => -1,
        };
        if tell(line, child).is_err() {
            spawn::exit_now(1);
        }
        if child < 0 {
            continue;
        }
        match receive(line, MsgFlags::empty()) {
            Some(1) if write(&writer, b"1").is_ok() => break child,
            Some(0) => {}
            _ => spawn::exit_now(1),
        }
        drop(writer);
        wait_for(child);
    };
    // Our copies of the guardian's descriptors; its socket, for one, must end with it.
    spawn::close_others(&[line.as_raw_fd()]);
    let status = wait_for(postmaster);
    let _ = tell(line, status);
    if status == 0 {
        drain();
    }
    spawn::exit_now(0)
}

/// Takes the status of everybody until that of `pid` comes.
fn wait_for(pid: i32) -> i32 {
    loop {
        let mut status = 0;
        // SAFETY: `status` is valid for the call.
        let ended = unsafe { libc::waitpid(-1, &raw mut status, 0) };
        if ended == pid || (ended < 0 && Errno::last() == Errno::ECHILD) {
            return status;
        }
    }
}

/// Waits a little until nobody else is left.
fn drain() {
    let step = GRACE / 100;
    for _ in 0..100 {
        match nix::sys::wait::waitpid(None, Some(nix::sys::wait::WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            Ok(nix::sys::wait::WaitStatus::StillAlive) => std::thread::sleep(step),
            Ok(_) | Err(_) => {}
        }
    }
}
