//! Connections to the local PostgreSQL and to others.

use super::context::PgContext;
use proto::core::job::Upstream;

/// Which of the configured users connects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `authentication.superuser`.
    Superuser,
    /// `authentication.replication`.
    Replication,
    /// `authentication.rewind`, else the superuser.
    Rewind,
}

/// What a libpq connection string is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConninfoKind {
    /// `primary_conninfo` of a standby.
    PrimaryConninfo,
    /// `pg_basebackup --dbname` and custom replica methods.
    Basebackup,
    /// `pg_rewind --source-server`.
    Rewind,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// Nobody listens.
    #[error("connection refused: {0}")]
    Refused(String),
    /// The server is starting up, shutting down or in recovery without hot standby (57P03).
    #[error("the server rejects connections: {0}")]
    Rejecting(String),
    /// It accepted but did not answer in time, or has no connection left.
    #[error("the server does not answer: {0}")]
    Silent(String),
    /// Anything else: authentication, TLS, a missing database.
    #[error("connect: {0}")]
    Other(String),
    /// There is nowhere to connect to.
    #[error("no address to connect to: {0}")]
    NoAddress(String),
}

/// A session of the superuser with the local server, `application_name` "Patroni heartbeat".
pub async fn superuser(ctx: &PgContext) -> Result<tokio_postgres::Client, ConnectError> {
    superuser_to(ctx, None, "Patroni heartbeat").await
}

/// The same with another database (`None`: the configured one) and `application_name`.
pub async fn superuser_to(
    ctx: &PgContext,
    database: Option<&str>,
    application_name: &str,
) -> Result<tokio_postgres::Client, ConnectError> {
    let _ = (ctx, database, application_name);
    Err(ConnectError::NoAddress(String::new()))
}

/// A session with another server, in the configured database.
pub async fn remote(
    ctx: &PgContext,
    upstream: &Upstream,
    role: Role,
) -> Result<tokio_postgres::Client, ConnectError> {
    let _ = (ctx, upstream, role);
    Err(ConnectError::NoAddress(String::new()))
}

/// A session in replication mode (`replication=true` in the startup packet) for `IDENTIFY_SYSTEM`,
/// `TIMELINE_HISTORY n` and `SHOW` by `simple_query`.
pub async fn replication(
    ctx: &PgContext,
    upstream: &Upstream,
    role: Role,
) -> Result<tokio_postgres::Client, ConnectError> {
    let _ = (ctx, upstream, role);
    Err(ConnectError::NoAddress(String::new()))
}

/// Replication mode with the local server, by the configured replication user.
pub async fn replication_local(ctx: &PgContext) -> Result<tokio_postgres::Client, ConnectError> {
    let _ = ctx;
    Err(ConnectError::NoAddress(String::new()))
}

/// A libpq keyword/value string for a program or for `primary_conninfo`. Passwords go to the passfile
/// (`postgresql.pgpass`), which is written here, and `passfile=` into the text.
pub async fn conninfo(
    ctx: &PgContext,
    upstream: &Upstream,
    kind: ConninfoKind,
) -> Result<String, ConnectError> {
    let _ = (ctx, upstream, kind);
    Err(ConnectError::NoAddress(String::new()))
}
