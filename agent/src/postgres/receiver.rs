//! The WAL receiver of a standby, seen and ended by its process.

use super::connect;
use super::context::PgContext;
use super::shared::chain;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use std::time::Duration;
use tokio_postgres::Client;

/// The WAL receiver. `pg_stat_wal_receiver` hides one that is still connecting; `pg_stat_activity`
/// shows it.
const PRESENT: &str = "SELECT pid FROM pg_catalog.pg_stat_activity WHERE backend_type = 'walreceiver' \
    UNION SELECT pid FROM pg_catalog.pg_stat_wal_receiver WHERE pid IS NOT NULL LIMIT 1";

/// One that has been connecting for as long as this.
const HANGING: &str = "SELECT pid FROM pg_catalog.pg_stat_activity \
    WHERE backend_type = 'walreceiver' \
    AND pg_catalog.clock_timestamp() - backend_start >= pg_catalog.make_interval(secs => $1) \
    AND NOT EXISTS (SELECT FROM pg_catalog.pg_stat_get_wal_receiver() WHERE pid IS NOT NULL)";

/// The WAL receiver that is there.
pub(super) async fn find(client: &Client) -> Result<Option<i32>, String> {
    Which::Any.find(client).await
}

/// Ends it.
pub(super) async fn end(client: &Client, pid: i32) -> Result<(), String> {
    Which::Any.end(client, pid).await
}

/// Ends one that has been connecting for this long; the startup process starts another one.
pub(super) async fn end_if_hanging(ctx: &PgContext, limit: Duration) -> Result<(), String> {
    let client = connect::superuser(ctx).await.map_err(|err| chain(&err))?;
    let which = Which::Hanging(limit);
    match which.find(&client).await? {
        Some(pid) => which.end(&client, pid).await,
        None => Ok(()),
    }
}

enum Which {
    Any,
    Hanging(Duration),
}

impl Which {
    async fn find(&self, client: &Client) -> Result<Option<i32>, String> {
        let row = match self {
            Self::Any => client.query_opt(PRESENT, &[]).await,
            Self::Hanging(limit) => client.query_opt(HANGING, &[&limit.as_secs_f64()]).await,
        };
        let row = row.map_err(|err| chain(&err))?;
        row.map(|row| row.try_get(0))
            .transpose()
            .map_err(|err| chain(&err))
    }

    /// By signal: `pg_terminate_backend` knows client sessions only. The pidfd is opened before the second look, so
    /// the signal cannot reach another process that got the number meanwhile.
    async fn end(&self, client: &Client, pid: i32) -> Result<(), String> {
        let Some(raw) = Pid::from_raw(pid) else {
            return Ok(());
        };
        let Ok(handle) = pidfd_open(raw, PidfdFlags::empty()) else {
            return Ok(());
        };
        if self.find(client).await? == Some(pid) {
            match self {
                Self::Any => tracing::info!(pid, "ending the WAL receiver"),
                Self::Hanging(limit) => tracing::warn!(
                    pid,
                    ?limit,
                    "ending the WAL receiver, whose source has not answered: another one is started"
                ),
            }
            let _ = pidfd_send_signal(&handle, Signal::TERM);
        }
        Ok(())
    }
}
