//! One look at the local PostgreSQL.

use super::context::PgContext;
use proto::core::observation::{AppliedConf, LocalPostgres};

/// What lives between two samples. The public fields are inputs that the caller keeps current.
#[derive(Debug, Default)]
pub struct ProbeState {
    /// The postmaster that the guardian knows of; `None`: look into `postmaster.pid`.
    pub postmaster: Option<i32>,
    /// Processes of a dead postmaster are left.
    pub orphans: bool,
    /// The configuration that is in force; copied into the sample.
    pub conf: AppliedConf,
    /// Read the control file for this sample even while PostgreSQL runs.
    pub refresh_control: bool,
}

/// Takes a sample; never longer than about four seconds, whatever PostgreSQL or the disk do.
pub async fn sample(ctx: &PgContext, state: &mut ProbeState) -> LocalPostgres {
    let _ = ctx;
    LocalPostgres { conf: state.conf.clone(), ..LocalPostgres::default() }
}
