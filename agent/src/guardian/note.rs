//! The guardian's own log: lines like the agent's, written without ever waiting for whoever reads them.
//!
//! A log file may lie on the very disk that has hung, so a regular file is written by a child of its own
//! behind a pipe; and a pipe or socket that nobody empties loses lines (`safety.md` 6: logs drop).
#![expect(unsafe_code, reason = "fork, strftime in the local time zone")]

use nix::fcntl::{FcntlArg, OFlag, fcntl, open};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::stat::{FileStat, Mode, SFlag, fstat};
use nix::unistd::{ForkResult, fork, pipe2, read, write};
use std::fmt::Arguments;
use std::io::Write as _;
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

/// Where lines go.
static TARGET: AtomicI32 = AtomicI32::new(2);

/// Longest line; also what a pipe takes in one piece when it says that it is writable.
const LINE_MAX: usize = 1024;

/// Writes a line: `note!("INFO", "format", …)`.
macro_rules! note {
    ($level:literal, $($arg:tt)*) => {
        $crate::guardian::note::line($level, format_args!($($arg)*))
    };
}
pub(crate) use note;

/// An error with its causes, on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Writes one line, or drops it.
pub fn line(level: &str, text: Arguments<'_>) {
    let mut buffer = [0u8; LINE_MAX];
    let mut rest = buffer.as_mut_slice();
    let (stamp, millis) = stamp();
    let stamp = std::str::from_utf8(&stamp)
        .unwrap_or_default()
        .trim_end_matches('\0');
    // What does not fit is cut off.
    let _ = write!(rest, "{stamp},{millis:03} {level}: guardian: {text}");
    let left = rest.len().max(1);
    let end = LINE_MAX - left;
    if let Some(slot) = buffer.get_mut(end) {
        *slot = b'\n';
    }
    let raw = TARGET.load(Ordering::Relaxed);
    // SAFETY: the descriptor is standard error or the pipe of `divert`, both open for ever.
    let fd = unsafe { BorrowedFd::borrow_raw(raw) };
    let mut fds = [PollFd::new(fd, PollFlags::POLLOUT)];
    let ready = poll(&mut fds, PollTimeout::ZERO).is_ok_and(|n| n > 0)
        && fds[0]
            .revents()
            .is_some_and(|e| e.contains(PollFlags::POLLOUT));
    if ready {
        let _ = write(fd, buffer.get(..=end).unwrap_or_default());
    }
}

/// Local time as `YYYY-MM-DD hh:mm:ss`, NUL-padded, and milliseconds.
fn stamp() -> ([u8; 32], u32) {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = libc::time_t::try_from(now.as_secs()).unwrap_or(0);
    let mut text = [0u8; 32];
    // SAFETY: `tm` is plain data that localtime_r fills in; strftime writes at most the given length into
    // `text`, with a NUL, and the format is a constant. This process has one thread.
    unsafe {
        let mut tm: libc::tm = std::mem::zeroed();
        if !libc::localtime_r(&raw const seconds, &raw mut tm).is_null() {
            let format = c"%Y-%m-%d %H:%M:%S".as_ptr();
            libc::strftime(text.as_mut_ptr().cast(), text.len(), format, &raw const tm);
        }
    }
    (text, now.subsec_millis())
}

/// Decides where lines go: to `log`, else to standard error. Returns the pid of the child that writes,
/// when one is needed. To be called once, before anything else is open.
pub fn divert(log: Option<&Path>) -> nix::Result<Option<i32>> {
    let file = match log {
        Some(path) => {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_APPEND | OFlag::O_CLOEXEC;
            open(path, flags, Mode::from_bits_truncate(0o600))?
        }
        None => nix::unistd::dup(std::io::stderr())?,
    };
    let FileStat { st_mode, .. } = fstat(&file)?;
    if st_mode & SFlag::S_IFMT.bits() != SFlag::S_IFREG.bits() {
        if log.is_some() {
            TARGET.store(file.into_raw_fd(), Ordering::Relaxed);
        }
        return Ok(None);
    }
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
    // SAFETY: this process has one thread, and the child only reads and writes.
    match unsafe { fork() }? {
        ForkResult::Child => {
            drop(writer);
            copy(&reader, &file)
        }
        ForkResult::Parent { child } => {
            fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
            TARGET.store(writer.into_raw_fd(), Ordering::Relaxed);
            Ok(Some(child.as_raw()))
        }
    }
}

/// The child: copies until the guardian is gone.
fn copy(from: &OwnedFd, to: &OwnedFd) -> ! {
    let _ = nix::unistd::setsid();
    let keep: [RawFd; 2] = [from.as_raw_fd(), to.as_raw_fd()];
    super::spawn::close_others(&keep);
    let mut buffer = [0u8; 4096];
    loop {
        match read(from, &mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                let _ = write(to, buffer.get(..n).unwrap_or_default());
            }
            Err(nix::Error::EINTR) => {}
            Err(_) => break,
        }
    }
    super::spawn::exit_now(0)
}
