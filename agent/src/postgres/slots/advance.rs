//! Moving a standby's copies of logical slots along with the leader's.

use super::super::connect::{self, ConnectError};
use super::super::context::PgContext;
use super::super::shared::chain;
use super::{ADVANCE, APPLICATION, STATEMENT_LIMIT};
use proto::wal::Lsn;
use tokio_postgres::Client;
use tokio_postgres::error::SqlState;
use tokio_util::sync::CancellationToken;

/// Makes room for a new copy. Only on a standby: on a primary the slot is the consumer's.
const DROP_COPY: &str = "SELECT pg_catalog.pg_drop_replication_slot(slot_name) \
    FROM pg_catalog.pg_replication_slots \
    WHERE slot_name = $1 AND NOT active AND pg_catalog.pg_is_in_recovery()";

/// Advances the copies (name, database, position). Each decodes all WAL up to its position, which has no
/// limit in time (`ha-behaviour.md` 15.3): one that began further back would never end. `stop` ends it.
/// A copy that cannot be advanced any more is dropped, so that it is copied anew.
pub async fn advance_copies(
    ctx: &PgContext,
    targets: &[(String, String, Lsn)],
    stop: &CancellationToken,
) {
    for (name, database, to) in targets {
        if stop.is_cancelled() {
            return;
        }
        if let Err(error) = advance(ctx, name, database, *to, stop).await {
            let error = chain(&error);
            tracing::warn!(
                slot = name,
                error,
                "cannot advance the copy of a logical slot"
            );
        }
    }
}

async fn advance(
    ctx: &PgContext,
    name: &str,
    database: &str,
    to: Lsn,
    stop: &CancellationToken,
) -> Result<(), ConnectError> {
    let failed = |err: tokio_postgres::Error| connect::classify(&err);
    let client = connect::superuser_to(ctx, Some(database), APPLICATION).await?;
    let unlimited = "SET statement_timeout = 0";
    client.batch_execute(unlimited).await.map_err(failed)?;
    // PostgreSQL writes four lines for each. Not everybody may set this, and errors are ours to tell.
    let quiet = "SET log_min_messages = fatal";
    if let Err(error) = client.batch_execute(quiet).await {
        tracing::debug!(
            error = chain(&error),
            "advancing slots fills the server's log"
        );
    }
    let pid = "SELECT pg_catalog.pg_backend_pid()";
    let row = client.query_one(pid, &[]).await.map_err(failed)?;
    let pid: i32 = row.try_get(0).map_err(failed)?;
    let to = to.to_string();
    let work = async { client.execute(ADVANCE, &[&name, &to]).await };
    let Some(result) = stop.run_until_cancelled(work).await else {
        return end(ctx, pid).await;
    };
    let Err(err) = result else { return Ok(()) };
    if is_useless(&err) {
        drop_copy(&client, name).await?;
    }
    Err(failed(err))
}

/// Whether this copy can never be advanced: its WAL is gone, or it was invalidated.
fn is_useless(err: &tokio_postgres::Error) -> bool {
    let code = err.code();
    code == Some(&SqlState::UNDEFINED_FILE)
        || code == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE)
}

async fn drop_copy(client: &Client, name: &str) -> Result<(), ConnectError> {
    let work = async { client.execute(DROP_COPY, &[&name]).await };
    match tokio::time::timeout(STATEMENT_LIMIT, work).await {
        Ok(done) => done.map(drop).map_err(|err| connect::classify(&err)),
        Err(_) => Err(ConnectError::Silent(format!(
            "no answer within {STATEMENT_LIMIT:?}"
        ))),
    }
}

/// Ends the session that advances: the server itself would go on without anybody who waits for it.
async fn end(ctx: &PgContext, pid: i32) -> Result<(), ConnectError> {
    let client = connect::superuser(ctx).await?;
    let sql = "SELECT pg_catalog.pg_terminate_backend($1)";
    client
        .execute(sql, &[&pid])
        .await
        .map(drop)
        .map_err(|err| connect::classify(&err))
}
