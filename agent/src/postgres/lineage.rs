//! Where another server stands in the tree of timelines, asked of itself.

use super::connect::{self, ConnectError, Role};
use super::context::PgContext;
use super::walsender::{self, WalsenderError};
use crate::clock;
use proto::core::job::Upstream;
use proto::core::observation::Lineage;
use proto::ids::{MemberName, SystemId};
use proto::wal::{BadHistory, Timeline, TimelineHistory};
use std::time::Duration;
use tokio_postgres::Client;

/// For all questions together. A leader that takes longer is asked again in the next cycle.
const LIMIT: Duration = Duration::from_secs(5);

/// Why the lineage is not known.
#[derive(Debug, thiserror::Error)]
pub enum LineageError {
    /// No connection.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A query.
    #[error("ask the server")]
    Query(#[from] tokio_postgres::Error),
    /// The walsender.
    #[error(transparent)]
    Walsender(#[from] WalsenderError),
    /// The history file.
    #[error("read the history file")]
    History(#[from] BadHistory),
    /// An answer that makes no sense.
    #[error("the server gave no usable {0}")]
    Answer(&'static str),
    /// It took too long.
    #[error("the server did not answer within {LIMIT:?}")]
    Slow,
}

/// Asks `upstream` whether it is out of recovery, and by which timelines it got where it is.
pub async fn ask(
    ctx: &PgContext,
    leader: MemberName,
    upstream: &Upstream,
) -> Result<Lineage, LineageError> {
    let answer = async {
        let client = session(ctx, upstream).await?;
        let is_primary = !super::promote::in_recovery(&client).await?;
        let (system_id, history) = match by_walsender(ctx, upstream).await {
            Ok(found) => found,
            // `pg_hba.conf` may allow one kind of connection and not the other.
            Err(err) if is_primary => {
                tracing::debug!(error = super::shared::chain(&err), "asking by SQL instead");
                by_sql(&client).await?
            }
            Err(err) => return Err(err),
        };
        Ok(Lineage {
            leader,
            at: clock::now(),
            is_primary,
            system_id,
            history,
        })
    };
    tokio::time::timeout(LIMIT, answer)
        .await
        .unwrap_or(Err(LineageError::Slow))
}

/// A session of the rewind user, or of the superuser where there is no such user yet.
pub(super) async fn session(ctx: &PgContext, upstream: &Upstream) -> Result<Client, ConnectError> {
    match connect::remote(ctx, upstream, Role::Rewind).await {
        Err(ConnectError::Other(_)) if ctx.config().postgresql.rewind.is_some() => {
            connect::remote(ctx, upstream, Role::Superuser).await
        }
        other => other,
    }
}

async fn by_walsender(
    ctx: &PgContext,
    upstream: &Upstream,
) -> Result<(SystemId, TimelineHistory), LineageError> {
    let client = connect::replication(ctx, upstream, Role::Replication).await?;
    let identity = walsender::identify(&client).await?;
    let history = walsender::history(&client, identity.timeline).await?;
    Ok((identity.system_id, history))
}

/// The same through functions; right on a primary only.
async fn by_sql(client: &Client) -> Result<(SystemId, TimelineHistory), LineageError> {
    let row = client
        .query_one(
            "SELECT system_identifier::text, \
             pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_lsn()) \
             FROM pg_catalog.pg_control_system()",
            &[],
        )
        .await?;
    let (id, segment): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let system_id = id
        .parse()
        .map(SystemId)
        .map_err(|_| LineageError::Answer("identifier"))?;
    let timeline = segment
        .get(..8)
        .and_then(|hex| u32::from_str_radix(hex, 16).ok());
    let timeline = timeline
        .map(Timeline)
        .ok_or(LineageError::Answer("timeline"))?;
    if timeline <= Timeline::FIRST {
        return Ok((system_id, TimelineHistory::first()));
    }
    let file = format!("pg_wal/{:08X}.history", timeline.0);
    let row = client
        .query_one("SELECT pg_catalog.pg_read_binary_file($1)", &[&file])
        .await?;
    let content: Vec<u8> = row.try_get(0)?;
    let history = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&content))?;
    Ok((system_id, history))
}
