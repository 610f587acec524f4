//! Processes as `/proc` shows them, read without allocating: fencing must work on a machine that has
//! no memory left.
#![expect(
    unsafe_code,
    reason = "getdents64 and readlink on buffers of our own: std's forms allocate"
)]

use nix::fcntl::{OFlag, open};
use nix::libc;
use nix::sys::stat::Mode;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};

/// Room for a link in `/proc`: Linux's `PATH_MAX`.
const LINK_MAX: usize = 4096;

/// What the kernel appends to a link whose target was removed.
const DELETED: &[u8] = b" (deleted)";

/// One process at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: i32,
    /// Its parent.
    pub parent: i32,
    /// State letter; `Z` and `X` run no code any more.
    pub state: u8,
    /// Start time in clock ticks since boot. With the pid it names one process for ever.
    pub start: u64,
}

impl Process {
    /// Whether it can still run code of its own.
    pub fn is_alive(&self) -> bool {
        !matches!(self.state, b'Z' | b'X')
    }

    /// Reads one process; `None` when it is gone.
    pub fn read(pid: i32) -> Option<Self> {
        let mut buffer = [0u8; 1024];
        let file = open_proc(pid, "stat")?;
        let n = nix::unistd::read(&file, &mut buffer).ok()?;
        Self::parse(buffer.get(..n)?)
    }

    /// Reads the text of `/proc/<pid>/stat`; the name in it may contain anything, brackets too.
    pub(crate) fn parse(stat: &[u8]) -> Option<Self> {
        let open = stat.iter().position(|b| *b == b'(')?;
        let close = stat.iter().rposition(|b| *b == b')')?;
        let pid = number(stat.get(..open)?)?;
        let mut fields = stat
            .get(close + 1..)?
            .split(|b| *b == b' ')
            .filter(|f| !f.is_empty());
        let state = *fields.next()?.first()?;
        let parent = number(fields.next()?)?;
        // `starttime` is field 22 in proc(5), counted from 1; two behind the name are consumed.
        let start = fields.nth(17).and_then(number)?;
        Some(Self {
            pid,
            parent,
            state,
            start,
        })
    }

    /// Sends a signal to exactly this process, never to a later one with the same pid. Returns whether
    /// it was sent.
    pub fn signal(&self, signal: Signal) -> bool {
        let Some(fd) = pidfd(self.pid) else {
            return false;
        };
        // The descriptor holds whatever has this pid now; only then is it compared.
        match Self::read(self.pid) {
            Some(now) if now.start == self.start => pidfd_send_signal(&fd, signal).is_ok(),
            _ => false,
        }
    }
}

/// A descriptor that stands for a process, readable when it has ended.
pub fn pidfd(pid: i32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()
}

/// A text of digits, blanks around it allowed.
fn number<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}

/// A short path under `/proc`, built on the stack.
fn proc_path(pid: i32, name: &str) -> ([u8; 48], usize) {
    let mut path = [0u8; 48];
    let mut rest = path.as_mut_slice();
    // 48 bytes hold `/proc/`, ten digits and every name used here.
    let _ = write!(rest, "/proc/{pid}/{name}");
    let left = rest.len();
    (path, 48 - left)
}

fn open_proc(pid: i32, name: &str) -> Option<OwnedFd> {
    let (path, n) = proc_path(pid, name);
    open(
        path.get(..n)?,
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )
    .ok()
}

/// Reads a link of a process (`cwd`, `exe`) into `buffer`; without the mark of a removed target.
fn link<'a>(pid: i32, name: &str, buffer: &'a mut [u8; LINK_MAX]) -> Option<&'a [u8]> {
    let (path, _) = proc_path(pid, name);
    // SAFETY: `path` is NUL-terminated (it is zeroed and longer than what is written), and the kernel
    // writes at most `LINK_MAX` bytes into `buffer`.
    let n = unsafe { libc::readlink(path.as_ptr().cast(), buffer.as_mut_ptr().cast(), LINK_MAX) };
    let text = buffer.get(..usize::try_from(n).ok()?)?;
    Some(text.strip_suffix(DELETED).unwrap_or(text))
}

/// Whether a process works in this directory and is a PostgreSQL server program. Every server process
/// enters its data directory at start and stays there (`ChangeToDataDir`), so this finds postmasters,
/// their children, orphans and single-user servers alike, and neither a shell of an operator nor a
/// server of another cluster.
pub fn is_server_in(pid: i32, data_dir: &[u8]) -> bool {
    let mut buffer = [0u8; LINK_MAX];
    if link(pid, "cwd", &mut buffer) != Some(data_dir) {
        return false;
    }
    let program = link(pid, "exe", &mut buffer);
    let name = program.and_then(|path| path.rsplit(|b| *b == b'/').next());
    name.is_some_and(|name| name.starts_with(b"postgres") || name == b"postmaster")
}

/// What a server program was started as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// A postmaster, or a child of one that has not named itself yet.
    Postmaster,
    /// A backend or another child of a postmaster.
    Child,
    /// A server without a postmaster: single-user, bootstrap, checks.
    Tool,
}

impl Server {
    /// `None` when the process is gone. Only for one that [`is_server_in`].
    pub fn of(pid: i32) -> Option<Self> {
        let mut buffer = [0u8; 512];
        let file = open_proc(pid, "cmdline")?;
        let n = nix::unistd::read(&file, &mut buffer)
            .ok()
            .filter(|n| *n > 0)?;
        Some(Self::from_words(buffer.get(..n)?))
    }

    /// Children show their title there (PostgreSQL's `ps_status.c`); the modes without a postmaster are
    /// chosen by the first argument (its `main.c`).
    fn from_words(words: &[u8]) -> Self {
        if words.starts_with(b"postgres: ") {
            return Self::Child;
        }
        match words.split(|b| *b == 0).nth(1) {
            Some(b"--single" | b"--boot" | b"--check" | b"--describe-config") => Self::Tool,
            _ => Self::Postmaster,
        }
    }
}

/// Replaces `into` with all processes that this machine shows, in no order.
///
/// # Errors
/// `/proc` cannot be read.
pub fn all(into: &mut Vec<Process>) -> nix::Result<()> {
    into.clear();
    let dir = open(
        "/proc",
        OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut buffer = [0u64; 1024];
    loop {
        // SAFETY: the kernel writes at most the given number of bytes, all of them inside `buffer`,
        // whose alignment is that of `struct linux_dirent64`.
        let n = unsafe {
            libc::syscall(
                libc::SYS_getdents64,
                dir.as_raw_fd(),
                buffer.as_mut_ptr(),
                size_of_val(&buffer),
            )
        };
        let n = usize::try_from(nix::errno::Errno::result(n)?).unwrap_or(0);
        if n == 0 {
            return Ok(());
        }
        // SAFETY: the buffer is plain numbers, fully initialised, and `n` is at most its size.
        let bytes = unsafe { std::slice::from_raw_parts(buffer.as_ptr().cast::<u8>(), n) };
        entries(bytes, |pid| into.extend(Process::read(pid)));
    }
}

/// Calls `found` for each numeric name in a buffer of `struct linux_dirent64` (getdents64(2)): inode and
/// offset (8 bytes each), length of the record (2), type (1), name with its NUL.
fn entries(mut bytes: &[u8], mut found: impl FnMut(i32)) {
    while let Some(length) = bytes.get(16..18) {
        let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
        let Some((record, rest)) = bytes.split_at_checked(length) else {
            return;
        };
        if length == 0 {
            return;
        }
        let name = record
            .get(19..)
            .and_then(|name| name.split(|b| *b == 0).next());
        if let Some(pid) = name.and_then(number) {
            found(pid);
        }
        bytes = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_confuse_the_parser() {
        let stat = b"4711 (a) (b c)) S 42 1 1 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 987654 1 2 3\n";
        let expected = Process {
            pid: 4711,
            parent: 42,
            state: b'S',
            start: 987_654,
        };
        assert_eq!(Process::parse(stat), Some(expected));
        for cut in 0..stat.len() - 8 {
            let _ = Process::parse(&stat[..cut]);
        }
    }

    #[test]
    fn the_list_holds_this_process_and_its_parent() {
        let mut list = Vec::new();
        all(&mut list).unwrap();
        let me = i32::try_from(std::process::id()).unwrap();
        let mine = list.iter().find(|p| p.pid == me).expect("this process");
        assert!(mine.is_alive());
        assert_eq!(mine.parent, nix::unistd::getppid().as_raw());
        assert_eq!(Process::read(me).map(|p| p.start), Some(mine.start));
    }

    #[test]
    fn servers_are_told_apart_by_their_words() {
        let server = |words: &str| Server::from_words(words.as_bytes());
        assert_eq!(server("/bin/postgres\0-D\0/data\0"), Server::Postmaster);
        assert_eq!(server("/bin/postgres\0--port=1\0"), Server::Postmaster);
        assert_eq!(server("postgres: walwriter \0\0"), Server::Child);
        assert_eq!(
            server("postgres: main: app app [local] idle"),
            Server::Child
        );
        assert_eq!(server("/bin/postgres\0--single\0-D\0/data\0"), Server::Tool);
    }

    #[test]
    fn a_process_with_another_start_time_is_not_signalled() {
        let me = Process::read(i32::try_from(std::process::id()).unwrap()).expect("this process");
        assert!(
            !Process {
                start: me.start + 1,
                ..me
            }
            .signal(Signal::KILL)
        );
    }
}
