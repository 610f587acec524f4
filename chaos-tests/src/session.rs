//! Sessions of the harness with a PostgreSQL of the cluster.

use crate::template::{SUPERUSER, SUPERUSER_PASSWORD};
use anyhow::{Context, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio_postgres::{AsyncMessage, Client, Config, NoTls};

/// Sessions of stories and of the harness itself, which are in no hurry, are ready within this time.
pub const CONNECT_LIMIT: Duration = Duration::from_millis(2400);
/// A question about the server is answered within this time.
pub const STATEMENT_LIMIT: Duration = Duration::from_millis(1500);

/// Connects as superuser; the flag is set once the server warned that a commit did not wait for a
/// standby.
pub(crate) async fn connect(port: u16, limit: Duration) -> Result<(Client, Arc<AtomicBool>)> {
    let mut config = Config::new();
    config
        .host(crate::ports::host(port).to_string())
        .port(port)
        .user(SUPERUSER)
        .password(SUPERUSER_PASSWORD);
    config
        .dbname("postgres")
        .application_name("chaos")
        .connect_timeout(limit);
    let connected = tokio::time::timeout(limit, config.connect(NoTls)).await;
    let (client, mut connection) = connected
        .context(TimedOut)?
        .context("connect to PostgreSQL")?;
    let warned = Arc::new(AtomicBool::new(false));
    let flag = warned.clone();
    tokio::spawn(async move {
        // The notice precedes the answer on the wire, and is handled here before it.
        while let Some(message) = std::future::poll_fn(|cx| connection.poll_message(cx)).await {
            match message {
                Ok(AsyncMessage::Notice(notice)) if notice.severity() == "WARNING" => {
                    flag.store(true, Ordering::SeqCst);
                }
                Ok(_) => {}
                Err(_) => return,
            }
        }
    });
    Ok((client, warned))
}

/// A session as superuser for what a story does itself.
///
/// # Errors
/// When the server does not take it.
pub async fn client(port: u16) -> Result<Client> {
    Ok(connect(port, CONNECT_LIMIT).await?.0)
}

/// Timeline on which this server writes.
///
/// # Errors
/// When it does not answer, or is a standby.
pub async fn timeline(client: &Client) -> Result<u32> {
    let query = "SELECT substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)";
    let row = tokio::time::timeout(STATEMENT_LIMIT, client.query_one(query, &[])).await;
    let row = row
        .context("ask for the timeline: no answer")?
        .context("ask for the timeline")?;
    u32::from_str_radix(row.get(0), 16).context("read the timeline")
}

/// Who streams from this server: name, and whether commits wait for it.
///
/// # Errors
/// When the server does not answer.
pub async fn replication(port: u16) -> Result<Vec<(String, bool)>> {
    let (client, _) = connect(port, CONNECT_LIMIT).await?;
    let query = "SELECT application_name, state = 'streaming' AND sync_state IN ('sync', 'quorum') \
                 FROM pg_stat_replication";
    let rows = tokio::time::timeout(STATEMENT_LIMIT, client.query(query, &[])).await;
    let rows = rows
        .context("pg_stat_replication: no answer")?
        .context("pg_stat_replication")?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

/// A connection that was not ready in time; distinguished because only this asks for patience.
#[derive(Debug)]
pub(crate) struct TimedOut;

impl std::fmt::Display for TimedOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no connection in time")
    }
}
