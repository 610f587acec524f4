//! What a walsender tells about its server (PostgreSQL documentation, "Streaming Replication
//! Protocol"): `IDENTIFY_SYSTEM` and `TIMELINE_HISTORY`.

use proto::ids::SystemId;
use proto::wal::{BadHistory, Lsn, Timeline, TimelineHistory};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

/// Why a walsender gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum WalsenderError {
    /// The connection or the server.
    #[error("ask the walsender")]
    Query(#[from] tokio_postgres::Error),
    /// An answer without the field.
    #[error("the walsender's answer has no usable {0}")]
    Field(&'static str),
    /// A history that breaks the format.
    #[error("read the walsender's history")]
    History(#[from] BadHistory),
}

/// `IDENTIFY_SYSTEM`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's identifier.
    pub system_id: SystemId,
    /// The timeline that it is on.
    pub timeline: Timeline,
    /// Primary: flushed. Standby: replayed or received, the larger.
    pub lsn: Lsn,
}

/// Asks who the server is. `client` is a session in replication mode.
pub async fn identify(client: &Client) -> Result<Identity, WalsenderError> {
    let row = only_row(client, "IDENTIFY_SYSTEM").await?;
    let text = |name| row.try_get(name).ok().flatten();
    let number = |name| text(name).and_then(|t: &str| t.parse().ok());
    Ok(Identity {
        system_id: SystemId(number("systemid").ok_or(WalsenderError::Field("systemid"))?),
        timeline: number("timeline")
            .and_then(|n: u64| u32::try_from(n).ok())
            .map(Timeline)
            .ok_or(WalsenderError::Field("timeline"))?,
        lsn: text("xlogpos")
            .and_then(|t| t.parse().ok())
            .ok_or(WalsenderError::Field("xlogpos"))?,
    })
}

/// Asks for a timeline's ancestors. The first one has none, and no file either.
pub async fn history(
    client: &Client,
    timeline: Timeline,
) -> Result<TimelineHistory, WalsenderError> {
    if timeline <= Timeline::FIRST {
        return Ok(TimelineHistory::first());
    }
    let row = only_row(client, &format!("TIMELINE_HISTORY {timeline}")).await?;
    let content = row
        .try_get("content")
        .ok()
        .flatten()
        .ok_or(WalsenderError::Field("content"))?;
    Ok(TimelineHistory::parse(timeline, content)?)
}

async fn only_row(client: &Client, command: &str) -> Result<SimpleQueryRow, WalsenderError> {
    let messages = client.simple_query(command).await?;
    let row = messages.into_iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        _ => None,
    });
    row.ok_or(WalsenderError::Field("row"))
}
