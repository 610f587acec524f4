//! Small file systems of their own for the data directories, in files, so that one can be filled or made
//! to hang without touching the machine's.
//!
//! The harness moves into a mount namespace first, so nobody else sees them, and they are gone with the
//! last process in it.

use crate::process::tool;
use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};
use std::path::Path;
use std::process::Command;

/// Enough for the WAL that is kept and the little data that there is.
const MEGABYTES: u64 = 4096;

/// Moves this process into a mount namespace of its own. Before any other thread is started.
///
/// # Errors
/// When the process may not do that (it is not root).
pub fn enter() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("make a mount namespace (needs root)")?;
    run("mount", &["--make-rprivate".as_ref(), "/".as_ref()]).context("keep mounts to ourselves")
}

/// Makes a file system and mounts it on this directory, which is empty.
///
/// # Errors
/// When a tool refuses: without loop devices, say.
pub fn make(at: &Path) -> Result<()> {
    let image = at.with_extension("img");
    let file = std::fs::File::create(&image);
    let file = file.with_context(|| format!("create {}", image.display()))?;
    file.set_len(MEGABYTES << 20).context("size a disk")?;
    run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), image.as_ref()])?;
    run(
        "mount",
        &["-o".as_ref(), "loop".as_ref(), image.as_ref(), at.as_ref()],
    )
}

/// Takes it away again, also while somebody still looks into it.
pub fn remove(at: &Path) {
    // It may not be there; then there is nothing to do.
    let _ = run("umount", &["-l".as_ref(), at.as_ref()]);
}

/// From now on writes and flushes wait.
///
/// # Errors
/// When the kernel refuses.
pub fn freeze(at: &Path) -> Result<()> {
    run("fsfreeze", &["-f".as_ref(), at.as_ref()])
}

/// They go on.
///
/// # Errors
/// When the kernel refuses.
pub fn thaw(at: &Path) -> Result<()> {
    run("fsfreeze", &["-u".as_ref(), at.as_ref()])
}

fn run(program: &str, args: &[&std::ffi::OsStr]) -> Result<()> {
    let mut command = Command::new(program);
    command.args(args);
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    tool(command, "").map(|_| ())
}
