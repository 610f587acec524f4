//! Starting a postmaster, adopting one, and what a fresh process of the guardian has to do.
#![expect(
    unsafe_code,
    reason = "fork and exec, and descriptors by number before exec"
)]

use super::namespace::Init;
use super::proc::{self, Process};
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::unistd::{ForkResult, Pid, fork, getpid, getppid, setsid};
use proto::fence::wire::Start;
use std::ffi::CString;
use std::os::fd::{OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

/// Exit status of a child that could not execute the program, as of a shell.
const NOT_EXECUTED: i32 = 127;

/// How long a process that has ended may wait for its status to be taken before a new postmaster stops
/// respecting its lock files.
const REAP_LIMIT: Duration = Duration::from_secs(2);

/// A postmaster, held so that no other process can be mistaken for it.
#[derive(Debug)]
pub struct Postmaster {
    /// What it is.
    pub process: Process,
    /// Readable when it has ended; signals go through it.
    pub pidfd: OwnedFd,
    /// It is our child: we get its status, and it dies with us.
    pub is_child: bool,
    /// The first process of its PID namespace, when it has one: then that is our child.
    pub init: Option<Init>,
}

impl Postmaster {
    /// Our own child whose end is the postmaster's.
    pub fn child(&self) -> Option<i32> {
        let direct = self.is_child.then_some(self.process.pid);
        self.init.as_ref().map(|init| init.process.pid).or(direct)
    }
}

/// Why there is no postmaster.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// A text holds a NUL, or there is no program.
    #[error("bad command line or environment")]
    BadCommand,
    /// The operating system said no.
    #[error("start the postmaster")]
    System(#[from] nix::Error),
    /// It has already ended.
    #[error("process {0} is gone")]
    Gone(i32),
    /// The kernel does not let us make a PID namespace, or its first process did not answer.
    #[error("start the postmaster in a PID namespace: {0}")]
    Namespace(&'static str),
    /// It is something else.
    #[error("process {0} is not a PostgreSQL server in this data directory")]
    NotOurs(i32),
}

/// A command line, checked and in the form that the kernel takes: nothing is left to fail or to be
/// allocated in the child.
#[derive(Debug)]
pub struct Prepared<'a> {
    argv: Vec<CString>,
    env: Vec<CString>,
    log: Option<CString>,
    cwd: Option<CString>,
    data_dir: &'a Path,
    oom_score: i32,
}

impl<'a> Prepared<'a> {
    /// Checks it. `oom_score` is what the postmaster gets.
    ///
    /// # Errors
    /// [`SpawnError::BadCommand`].
    pub fn new(start: &Start, data_dir: &'a Path, oom_score: i32) -> Result<Self, SpawnError> {
        let text =
            |bytes: &Vec<u8>| CString::new(bytes.clone()).map_err(|_| SpawnError::BadCommand);
        let argv: Vec<CString> = start.argv.iter().map(text).collect::<Result<_, _>>()?;
        if argv.is_empty() {
            return Err(SpawnError::BadCommand);
        }
        let pair =
            |(name, value): &(Vec<u8>, Vec<u8>)| text(&[name.as_slice(), b"=", value].concat());
        let env = start.env.iter().map(pair).collect::<Result<_, _>>()?;
        let log = (!start.log.is_empty())
            .then(|| text(&start.log))
            .transpose()?;
        let cwd = (!start.cwd.is_empty())
            .then(|| text(&start.cwd))
            .transpose()?;
        Ok(Self {
            argv,
            env,
            log,
            cwd,
            data_dir,
            oom_score,
        })
    }

    /// Turns this process, a fresh child, into the postmaster. It does whatever may block, the opening
    /// of its log and the reading of the program among it, so that a hung disk hangs only the child.
    /// What fails on the way is not worth failing for, except the death signal.
    pub fn become_it(&self, parent: Option<Pid>) -> ! {
        let _ = setsid();
        if prctl::set_pdeathsig(Signal::SIGKILL).is_err() || parent.is_some_and(|p| getppid() != p)
        {
            // Without it nothing would end this server if the guardian died; or it has died already.
            exit_now(NOT_EXECUTED);
        }
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None);
        set_oom_score(self.oom_score);
        self.redirect();
        close_others(&[]);
        forget_the_dead(self.data_dir);
        let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
            list.iter()
                .map(|s| s.as_ptr())
                .chain([std::ptr::null()])
                .collect()
        };
        let (argv, env) = (pointers(&self.argv), pointers(&self.env));
        if let Some(program) = self.argv.first() {
            // SAFETY: all pointers are to NUL-terminated texts that outlive the call, and both lists end
            // with a null pointer.
            unsafe { libc::execve(program.as_ptr(), argv.as_ptr(), env.as_ptr()) };
        }
        exit_now(NOT_EXECUTED)
    }

    /// Standard streams and working directory.
    fn redirect(&self) {
        // SAFETY: plain system calls on descriptors and texts that are valid here.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let null = libc::open(c"/dev/null".as_ptr(), libc::O_RDWR);
            libc::dup2(null, 0);
            if let Some(log) = &self.log {
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_APPEND;
                let fd = libc::open(log.as_ptr(), flags, 0o600);
                if fd >= 0 {
                    libc::dup2(fd, 1);
                    libc::dup2(fd, 2);
                }
            }
            if let Some(cwd) = &self.cwd {
                libc::chdir(cwd.as_ptr());
            }
        }
    }
}

/// Starts a postmaster as our child.
///
/// # Errors
/// See [`SpawnError`]; that the program cannot be executed shows as its exit with 127.
pub fn start(prepared: &Prepared<'_>) -> Result<Postmaster, SpawnError> {
    let parent = getpid();
    // SAFETY: this process has one thread, so the child finds no lock held.
    match unsafe { fork() }? {
        ForkResult::Child => prepared.become_it(Some(parent)),
        ForkResult::Parent { child } => hold(child.as_raw()),
    }
}

/// Takes hold of a child, or a child's child, that nobody has reaped: the pid cannot be another's.
pub fn hold(pid: i32) -> Result<Postmaster, SpawnError> {
    let pidfd = proc::pidfd(pid).ok_or(SpawnError::Gone(pid))?;
    let process = Process::read(pid).ok_or(SpawnError::Gone(pid))?;
    Ok(Postmaster {
        process,
        pidfd,
        is_child: true,
        init: None,
    })
}

/// Deals with lock files of a postmaster that has ended but was not reaped. PostgreSQL takes such a pid
/// for a living one and refuses to start; a container's first process may reap late, or never.
fn forget_the_dead(data_dir: &Path) {
    let file = data_dir.join("postmaster.pid");
    let Ok(text) = std::fs::read_to_string(&file) else {
        return;
    };
    // Lines of the file (PostgreSQL's `miscadmin.h`): pid, directory, start time, port, socket directory.
    let mut lines = text.lines();
    let Some(pid) = lines.next().and_then(|line| line.trim().parse().ok()) else {
        return;
    };
    let begin = crate::clock::now();
    while Process::read(pid).is_some_and(|p| !p.is_alive()) {
        if crate::clock::now().since(begin) < REAP_LIMIT {
            std::thread::sleep(REAP_LIMIT / 200);
            continue;
        }
        // The dead hold nothing. Its socket has a lock file of the same kind.
        if let (Some(port), Some(dir)) = (lines.nth(2), lines.next()) {
            let _ = std::fs::remove_file(Path::new(dir).join(format!(".s.PGSQL.{port}.lock")));
        }
        let _ = std::fs::remove_file(&file);
        return;
    }
}

/// Takes hold of a running postmaster.
///
/// # Errors
/// See [`SpawnError`].
pub fn adopt(pid: i32, data_dir: &[u8]) -> Result<Postmaster, SpawnError> {
    // The descriptor first: what is checked after it is the process that it holds.
    let pidfd = proc::pidfd(pid).ok_or(SpawnError::Gone(pid))?;
    let process = Process::read(pid)
        .filter(Process::is_alive)
        .ok_or(SpawnError::Gone(pid))?;
    if !proc::is_server_in(pid, data_dir) {
        return Err(SpawnError::NotOurs(pid));
    }
    let is_child = process.parent == getpid().as_raw();
    Ok(Postmaster {
        process,
        pidfd,
        is_child,
        init: None,
    })
}

/// Closes every descriptor above the standard streams except these (at most a few).
pub fn close_others(keep: &[RawFd]) {
    let mut first: u32 = 3;
    let mut sorted: [u32; 4] = [u32::MAX; 4];
    for (slot, fd) in sorted.iter_mut().zip(keep) {
        *slot = u32::try_from(*fd).unwrap_or(u32::MAX);
    }
    sorted.sort_unstable();
    for fd in sorted {
        if fd > first {
            // SAFETY: a plain system call; nothing that this process still uses has these numbers.
            unsafe {
                libc::syscall(
                    libc::SYS_close_range,
                    first,
                    fd - u32::from(fd != u32::MAX),
                    0,
                )
            };
        }
        first = fd.saturating_add(1).max(first);
    }
}

/// Ends a forked child without running anything of its parent's.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: ends the process, nothing else.
    unsafe { libc::_exit(status) }
}

/// How likely the kernel is to kill this process when memory runs out; `None` when it cannot be read.
pub fn oom_score() -> Option<i32> {
    std::fs::read_to_string("/proc/self/oom_score_adj")
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// Changes it; whether that worked. Does not allocate.
pub fn set_oom_score(score: i32) -> bool {
    use std::io::Write;
    let mut text = [0u8; 16];
    let mut rest = text.as_mut_slice();
    let _ = write!(rest, "{score}");
    let n = 16 - rest.len();
    let Ok(fd) = nix::fcntl::open(
        c"/proc/self/oom_score_adj",
        nix::fcntl::OFlag::O_WRONLY | nix::fcntl::OFlag::O_CLOEXEC,
        nix::sys::stat::Mode::empty(),
    ) else {
        return false;
    };
    nix::unistd::write(&fd, text.get(..n).unwrap_or_default()).is_ok()
}
