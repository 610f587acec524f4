//! The data directory.

use super::context::PgContext;
use proto::core::observation::DataDir;
use proto::ids::Epoch;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::io;
use std::path::Path;

/// What `postmaster.pid` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostmasterPid {
    /// Process id; negative in single-user mode is given as positive with `single_user`.
    pub pid: i32,
    /// The file belongs to a single-user server.
    pub single_user: bool,
    /// Data directory.
    pub data_dir: String,
    /// Start time in seconds since 1970.
    pub start_time: i64,
    /// Port.
    pub port: Option<u16>,
    /// First directory of `unix_socket_directories`.
    pub socket_dir: Option<String>,
    /// First listen address.
    pub listen_addr: Option<String>,
    /// `starting`, `stopping`, `ready`, `standby`.
    pub status: Option<String>,
}

/// What must survive a restart of the agent: promise and WAL epoch (S19).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableState {
    /// Follow no epoch at or below this one.
    pub promised: Option<Epoch>,
    /// The epoch of the newest WAL that was received.
    pub wal_epoch: Epoch,
}

/// The durable state as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundState {
    /// Nothing was ever stored here.
    Never,
    /// Something is there, but it is torn or cannot be read: not the same as zero.
    Unknown,
    /// As stored.
    Known(DurableState),
}

/// Looks at the data directory, in a worker thread and with a limit: a hung disk gives `Unreadable`.
pub async fn inspect(ctx: &PgContext) -> DataDir {
    let _ = ctx;
    DataDir::Unknown
}

/// Looks at a directory; blocks.
pub fn look(dir: &Path) -> DataDir {
    let _ = dir;
    DataDir::Unknown
}

/// Parses `postmaster.pid`; `None` when there is none.
pub fn read_postmaster_pid(dir: &Path) -> io::Result<Option<PostmasterPid>> {
    let _ = dir;
    Ok(None)
}

/// The process id of the postmaster that runs on this directory, by `ha-behaviour.md` 2.1.
pub fn running_postmaster(dir: &Path) -> Option<i32> {
    let _ = dir;
    None
}

/// `standby.signal` or `recovery.signal` exists.
pub fn has_signal_file(dir: &Path) -> bool {
    let _ = dir;
    false
}

/// Marks the directory as not to be started, before work that leaves it broken when interrupted (S18).
pub fn mark_unfinished(dir: &Path, what: &str) -> io::Result<()> {
    let _ = (dir, what);
    Ok(())
}

/// Takes the mark away after the work has ended in order.
pub fn clear_unfinished(dir: &Path) -> io::Result<()> {
    let _ = dir;
    Ok(())
}

/// `PG_VERSION`, for example 15.
pub fn pg_version(dir: &Path) -> Option<u32> {
    let _ = dir;
    None
}

/// The cached dynamic configuration, `patroni.dynamic.json`.
pub fn read_dynamic(dir: &Path) -> Option<Map<String, Value>> {
    let _ = dir;
    None
}

/// Stores the dynamic configuration, atomically; nothing when it is unchanged.
pub fn save_dynamic(dir: &Path, dynamic: &Map<String, Value>) -> io::Result<()> {
    let _ = (dir, dynamic);
    Ok(())
}

/// Reads promise and WAL epoch.
pub fn read_state(dir: &Path) -> FoundState {
    let _ = dir;
    FoundState::Never
}

/// Stores promise and WAL epoch: temporary file, fsync, rename, fsync of the directory.
pub fn save_state(dir: &Path, state: &DurableState) -> io::Result<()> {
    let _ = (dir, state);
    Ok(())
}

/// Writes a file durably: temporary file beside it, fsync, rename, fsync of the directory.
pub fn write_durably(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let _ = (path, content, mode);
    Ok(())
}
