//! `postgresql.conf` and the files beside it.

use super::context::PgContext;
use proto::core::job::Upstream;
use std::ffi::OsString;

/// What the configuration is to be written for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConfState {
    /// Where a standby streams from.
    pub upstream: Upstream,
    /// For a primary.
    pub as_primary: bool,
    /// `synchronous_standby_names`: empty means none, `None` the operator's own value.
    pub sync_names: Option<String>,
    /// `Settings::conf_generation`.
    pub generation: u64,
    /// Write recovery settings and `standby.signal`; otherwise the signal files are removed.
    pub standby: bool,
    /// During bootstrap: `pg_hba.conf` begins with a line that trusts the local superuser.
    pub bootstrap_trust: bool,
}

/// What a write did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// Some file has another content than before: a reload is due.
    pub changed: bool,
}

/// Why the files could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ConfError {
    /// A file.
    #[error("{operation} {path}")]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: std::path::PathBuf,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A program.
    #[error(transparent)]
    Program(#[from] super::context::ProgramError),
    /// The connection string.
    #[error(transparent)]
    Connect(#[from] super::connect::ConnectError),
    /// The control file.
    #[error(transparent)]
    Control(#[from] super::controldata::ControlError),
}

/// Writes `postgresql.conf`, `pg_hba.conf`, `pg_ident.conf` and the signal files.
pub async fn write(ctx: &PgContext, state: &ConfState) -> Result<Written, ConfError> {
    let _ = (ctx, state);
    Ok(Written::default())
}

/// The command that starts the postmaster, the program first (`configuration.md` 8.1).
pub async fn command_line(ctx: &PgContext, state: &ConfState) -> Result<Vec<OsString>, ConfError> {
    let _ = (ctx, state);
    Ok(Vec::new())
}
