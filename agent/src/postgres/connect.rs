//! Connections to the local PostgreSQL and to others.
//!
//! libpq is not used; what it does with `sslmode`, several hosts and timeouts is done here. Connection
//! strings for programs that do use it come from [`conninfo`].

use super::context::PgContext;
use super::pgdata;
use super::startup::{Inside, Startup};
use super::target::{self, Address};
use crate::config::Credentials;
use crate::tls::{self, ClientTls, Trust};
use nix::sys::socket::{setsockopt, sockopt};
use proto::core::job::Upstream;
use std::io;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_postgres::config::{ChannelBinding, Config, SslMode, SslNegotiation};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::MakeTlsConnect;
use tokio_postgres::{Client, NoTls};
use tokio_postgres_rustls::MakeRustlsConnect;

pub use super::target::user_of;

/// How long connecting to one host may take (`configuration.md` 7.1).
pub const CONNECT_LIMIT: Duration = Duration::from_secs(3);

/// `statement_timeout` of our sessions in milliseconds; also guards against waiting for a lock.
const STATEMENT_TIMEOUT_MS: u32 = 2000;

/// Dead peers are noticed after `idle + interval * count` seconds (`safety.md` 4.5).
pub(super) const KEEPALIVE: (u32, u32, u32) = (2, 2, 3);

/// The same for data that is not acknowledged, in milliseconds.
pub(super) const TCP_USER_TIMEOUT_MS: u32 = 8000;

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

/// Why there is no connection. The first three are the verdicts of [`super::probe`].
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
pub async fn superuser(ctx: &PgContext) -> Result<Client, ConnectError> {
    superuser_to(ctx, None, "Patroni heartbeat").await
}

/// The same with another database (`None`: the configured one) and `application_name`.
pub async fn superuser_to(
    ctx: &PgContext,
    database: Option<&str>,
    application_name: &str,
) -> Result<Client, ConnectError> {
    let config = ctx.config();
    let pg = &config.postgresql;
    let addresses = target::local(ctx, pg.use_unix_socket).await;
    let session = Session {
        database: database.unwrap_or(&pg.database),
        application_name,
        credentials: &pg.superuser,
        kind: SessionKind::Superuser,
    };
    first_of(&addresses, &session).await
}

/// A session with a server that no configuration describes yet, for `--generate-config`. Each host is a
/// name, an address or the directory of a socket; none means the usual directories.
pub async fn direct(
    hosts: &[String],
    port: u16,
    database: &str,
    credentials: &Credentials,
) -> Result<Client, ConnectError> {
    let addresses: Vec<Address> = match hosts {
        [] => target::default_socket_dirs(None)
            .into_iter()
            .map(|dir| Address::Socket(dir, port))
            .collect(),
        hosts => hosts
            .iter()
            .map(|host| match host.strip_prefix('/') {
                Some(_) => Address::Socket(PathBuf::from(host), port),
                None => Address::Tcp(host.clone(), port),
            })
            .collect(),
    };
    let application_name = "garden-agent";
    let session = Session {
        database,
        application_name,
        credentials,
        kind: SessionKind::Plain,
    };
    first_of(&addresses, &session).await
}

/// A session with another server, in the configured database.
pub async fn remote(
    ctx: &PgContext,
    upstream: &Upstream,
    role: Role,
) -> Result<Client, ConnectError> {
    let kind = match role {
        Role::Superuser => SessionKind::Superuser,
        Role::Replication | Role::Rewind => SessionKind::Plain,
    };
    to_upstream(ctx, upstream, role, kind).await
}

/// A session in replication mode (`replication=true` in the startup packet) for `IDENTIFY_SYSTEM`,
/// `TIMELINE_HISTORY n` and `SHOW` by `simple_query`.
pub async fn replication(
    ctx: &PgContext,
    upstream: &Upstream,
    role: Role,
) -> Result<Client, ConnectError> {
    to_upstream(ctx, upstream, role, SessionKind::Replication).await
}

/// Replication mode with the local server, by the configured replication user.
pub async fn replication_local(ctx: &PgContext) -> Result<Client, ConnectError> {
    let config = ctx.config();
    let pg = &config.postgresql;
    let addresses = target::local(ctx, pg.use_unix_socket_repl).await;
    let session = Session {
        database: &pg.database,
        application_name: "Patroni heartbeat",
        credentials: &pg.replication,
        kind: SessionKind::Replication,
    };
    first_of(&addresses, &session).await
}

async fn to_upstream(
    ctx: &PgContext,
    upstream: &Upstream,
    role: Role,
    kind: SessionKind,
) -> Result<Client, ConnectError> {
    let config = ctx.config();
    let pg = &config.postgresql;
    let addresses: Vec<Address> = target::remote(upstream)?
        .into_iter()
        .map(|(host, port)| match host.strip_prefix('/') {
            Some(_) => Address::Socket(PathBuf::from(host), port),
            None => Address::Tcp(host, port),
        })
        .collect();
    let session = Session {
        database: &pg.database,
        application_name: &config.name,
        credentials: target::credentials(pg, role),
        kind,
    };
    if kind != SessionKind::Replication && addresses.len() > 1 {
        return primary_of(&addresses, &session).await;
    }
    first_of(&addresses, &session).await
}

/// A libpq keyword/value string for a program or for `primary_conninfo`. Passwords go to the passfile
/// (`postgresql.pgpass`), which is written here, and `passfile=` into the text.
pub async fn conninfo(
    ctx: &PgContext,
    upstream: &Upstream,
    kind: ConninfoKind,
) -> Result<String, ConnectError> {
    let config = ctx.config();
    let pg = &config.postgresql;
    let version = ctx
        .major_version()
        .await
        .map_err(|err| ConnectError::Other(err.to_string()))?;
    let passwords = target::passfile(pg, &target::remote(upstream)?);
    let with_passfile = target::credentials(pg, target::role_of(kind))
        .password
        .is_some();
    if let Some(text) = passwords {
        write_passfile(pg.pgpass.clone(), text).await?;
    }
    target::conninfo(&config, upstream, kind, version, with_passfile)
}

/// The same for the superuser and the local server, for scripts of the operator.
pub async fn local_conninfo(ctx: &PgContext) -> Result<String, ConnectError> {
    let config = ctx.config();
    let pg = &config.postgresql;
    let (host, port) = match target::local(ctx, pg.use_unix_socket)
        .await
        .into_iter()
        .next()
    {
        Some(Address::Socket(dir, port)) => (dir.to_string_lossy().into_owned(), port),
        Some(Address::Tcp(host, port)) => (host, port),
        None => return Err(ConnectError::NoAddress(String::from("no local address"))),
    };
    if let Some(text) = target::passfile(pg, &[(host.clone(), port)]) {
        write_passfile(pg.pgpass.clone(), text).await?;
    }
    let port = port.to_string();
    let user = user_of(&pg.superuser);
    let words = [
        ("dbname", &pg.database),
        ("user", &user),
        ("host", &host),
        ("port", &port),
    ];
    let quoted = |value: &str| value.replace('\\', "\\\\").replace('\'', "\\'");
    let words = words.map(|(name, value)| format!("{name}='{}'", quoted(value)));
    Ok(words.join(" "))
}

async fn write_passfile(path: PathBuf, text: String) -> Result<(), ConnectError> {
    let name = path.display().to_string();
    let failed = move |why: String| ConnectError::Other(format!("write passfile {name}: {why}"));
    let write = move || {
        if pgdata::read_small(&path)?.as_deref() == Some(text.as_bytes()) {
            return Ok(());
        }
        // libpq ignores a passfile that others may read.
        pgdata::write_durably(&path, text.as_bytes(), 0o600)
    };
    match pgdata::on_disk(write).await {
        Some(result) => result.map_err(|err: io::Error| failed(err.to_string())),
        None => Err(failed(String::from("no answer from the disk"))),
    }
}

/// What distinguishes our sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SessionKind {
    /// May set what only a superuser may.
    Superuser,
    /// A normal session.
    Plain,
    /// A walsender.
    Replication,
}

/// Who connects, for what.
#[derive(Clone, Copy, Debug)]
struct Session<'a> {
    database: &'a str,
    application_name: &'a str,
    credentials: &'a Credentials,
    kind: SessionKind,
}

/// The first address that answers; else the error of the last one.
async fn first_of(addresses: &[Address], session: &Session<'_>) -> Result<Client, ConnectError> {
    let mut failure = ConnectError::NoAddress(String::from("none configured"));
    for address in addresses {
        match connect(address, session).await {
            Ok(client) => return Ok(client),
            Err(err) => failure = err,
        }
    }
    Err(failure)
}

/// The first address with a primary behind it, else the first that answers: the remote side of a
/// standby cluster may itself be a standby.
async fn primary_of(addresses: &[Address], session: &Session<'_>) -> Result<Client, ConnectError> {
    let mut standby = None;
    let mut failure = ConnectError::NoAddress(String::from("none configured"));
    for address in addresses {
        let client = match connect(address, session).await {
            Ok(client) => client,
            Err(err) => {
                failure = err;
                continue;
            }
        };
        let question = client.query_one("SELECT pg_catalog.pg_is_in_recovery()", &[]);
        let answer = tokio::time::timeout(CONNECT_LIMIT, question).await;
        match answer.map(|row| row.and_then(|row| row.try_get(0))) {
            Ok(Ok(false)) => return Ok(client),
            Ok(Ok(true)) => standby = standby.or(Some(client)),
            Ok(Err(err)) => failure = classify(&err),
            Err(_) => failure = ConnectError::Silent(format!("{address:?}")),
        }
    }
    standby.ok_or(failure)
}

/// One host, with the fallbacks of `sslmode=prefer`.
async fn connect(address: &Address, session: &Session<'_>) -> Result<Client, ConnectError> {
    let mode = match address {
        Address::Socket(..) => TlsMode::Disable,
        Address::Tcp(..) => TlsMode::of(session.credentials),
    };
    let first = limited(address, session, mode).await;
    match first {
        // As libpq does: without TLS after a failed handshake, or when `pg_hba.conf` wants it so.
        Err(ConnectError::Other(_)) if mode == TlsMode::Prefer => {
            limited(address, session, TlsMode::Disable).await
        }
        other => other,
    }
}

async fn limited(
    address: &Address,
    session: &Session<'_>,
    mode: TlsMode,
) -> Result<Client, ConnectError> {
    tokio::time::timeout(CONNECT_LIMIT, open(address, session, mode))
        .await
        .unwrap_or_else(|_| {
            Err(ConnectError::Silent(format!(
                "no session within {CONNECT_LIMIT:?}"
            )))
        })
}

async fn open(
    address: &Address,
    session: &Session<'_>,
    mode: TlsMode,
) -> Result<Client, ConnectError> {
    let config = session.startup(mode)?;
    let replication = session.kind == SessionKind::Replication;
    match address {
        Address::Socket(dir, port) => {
            let path = dir.join(format!(".s.PGSQL.{port}"));
            let socket = UnixStream::connect(&path)
                .await
                .map_err(|err| unreachable(&err))?;
            hand_over(
                config
                    .connect_raw(Startup::new(socket, replication), NoTls)
                    .await,
            )
        }
        Address::Tcp(host, port) => {
            let socket = TcpStream::connect((host.as_str(), *port))
                .await
                .map_err(|err| unreachable(&err))?;
            tune(&socket);
            let stream = Startup::new(socket, replication);
            if mode == TlsMode::Disable {
                return hand_over(config.connect_raw(stream, NoTls).await);
            }
            let tls = session.tls(mode).await?;
            let mut maker = MakeRustlsConnect::new(tls);
            let connector =
                <MakeRustlsConnect as MakeTlsConnect<Startup<TcpStream>>>::make_tls_connect(
                    &mut maker, host,
                )
                .map_err(|err| ConnectError::Other(err.to_string()))?;
            hand_over(
                config
                    .connect_raw(
                        stream,
                        Inside {
                            connector,
                            replication,
                        },
                    )
                    .await,
            )
        }
    }
}

/// The connection's task lives as long as the client that is handed out, and ends by itself after it.
fn hand_over<S, T>(
    opened: Result<(Client, tokio_postgres::Connection<S, T>), tokio_postgres::Error>,
) -> Result<Client, ConnectError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (client, connection) = opened.map_err(|err| classify(&err))?;
    tokio::spawn(async move {
        if let Err(err) = connection.await {
            tracing::debug!(error = %err, "a session with PostgreSQL ended");
        }
    });
    Ok(client)
}

fn unreachable(err: &io::Error) -> ConnectError {
    match err.kind() {
        // A socket that is not there is how a server that does not run looks from its own machine.
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound => {
            ConnectError::Refused(err.to_string())
        }
        // A Unix socket with a full backlog.
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ConnectError::Silent(err.to_string())
        }
        _ => ConnectError::Other(err.to_string()),
    }
}

/// The verdict behind an error of a session (PostgreSQL documentation, "PostgreSQL Error Codes").
pub(super) fn classify(err: &tokio_postgres::Error) -> ConnectError {
    let Some(db) = err.as_db_error() else {
        let source = std::error::Error::source(err).map(ToString::to_string);
        let text = source.map_or_else(|| err.to_string(), |source| format!("{err}: {source}"));
        // The server hung up: it crashed, or it is out of memory. It is there all the same.
        let io_error = std::error::Error::source(err).is_some_and(|e| e.is::<io::Error>());
        let hung_up = err.is_closed() || (io_error && !text.contains("TLS"));
        return if hung_up {
            ConnectError::Silent(text)
        } else {
            ConnectError::Other(text)
        };
    };
    let text = format!("{} ({})", db.message(), db.code().code());
    let code = db.code();
    if *code == SqlState::CANNOT_CONNECT_NOW {
        ConnectError::Rejecting(text)
    } else if *code == SqlState::TOO_MANY_CONNECTIONS
        || *code == SqlState::QUERY_CANCELED
        || *code == SqlState::ADMIN_SHUTDOWN
        || *code == SqlState::CRASH_SHUTDOWN
    {
        ConnectError::Silent(text)
    } else {
        ConnectError::Other(text)
    }
}

/// Notices a dead peer within seconds. A socket without these options still works.
fn tune(socket: &TcpStream) {
    let (idle, interval, count) = KEEPALIVE;
    let set = || {
        socket.set_nodelay(true).ok()?;
        setsockopt(socket, sockopt::KeepAlive, &true).ok()?;
        setsockopt(socket, sockopt::TcpKeepIdle, &idle).ok()?;
        setsockopt(socket, sockopt::TcpKeepInterval, &interval).ok()?;
        setsockopt(socket, sockopt::TcpKeepCount, &count).ok()?;
        setsockopt(socket, sockopt::TcpUserTimeout, &TCP_USER_TIMEOUT_MS).ok()
    };
    if set().is_none() {
        tracing::debug!("TCP keepalive could not be set");
    }
}

/// `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum TlsMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl TlsMode {
    /// libpq's default is `prefer`; `allow` differs from it only in which of two ways is tried first.
    fn of(credentials: &Credentials) -> Self {
        match credentials.options.get("sslmode").map(String::as_str) {
            Some("disable") => Self::Disable,
            Some("require") => Self::Require,
            Some("verify-ca") => Self::VerifyCa,
            Some("verify-full") => Self::VerifyFull,
            Some(_) | None => Self::Prefer,
        }
    }
}

impl Session<'_> {
    fn option(&self, key: &str) -> Option<&str> {
        self.credentials
            .options
            .get(key)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// The startup packet and what comes before it.
    fn startup(&self, mode: TlsMode) -> Result<Config, ConnectError> {
        let mut config = Config::new();
        config.user(user_of(self.credentials)).dbname(self.database);
        config.application_name(self.application_name);
        if let Some(password) = &self.credentials.password {
            config.password(password.reveal());
        }
        match self.kind {
            // A name that no loaded library defines is kept as a placeholder, so this one is no error
            // where pg_stat_statements is absent; only superusers may set it where it is present.
            SessionKind::Superuser => config.options(format!(
                "-c statement_timeout={STATEMENT_TIMEOUT_MS} -c pg_stat_statements.track=none"
            )),
            SessionKind::Plain => {
                config.options(format!("-c statement_timeout={STATEMENT_TIMEOUT_MS}"))
            }
            SessionKind::Replication => &mut config,
        };
        config.ssl_mode(match mode {
            TlsMode::Disable => SslMode::Disable,
            TlsMode::Prefer => SslMode::Prefer,
            TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull => SslMode::Require,
        });
        if self.option("sslnegotiation") == Some("direct") && mode != TlsMode::Prefer {
            config.ssl_negotiation(SslNegotiation::Direct);
        }
        config.channel_binding(match self.option("channel_binding") {
            Some("require") if mode == TlsMode::Disable => {
                return Err(ConnectError::Other(String::from(
                    "channel binding needs TLS",
                )));
            }
            Some("require") => ChannelBinding::Require,
            Some("disable") => ChannelBinding::Disable,
            Some(_) | None => ChannelBinding::Prefer,
        });
        Ok(config)
    }

    /// A root certificate, once given, is used whatever the mode, as libpq does.
    async fn tls(&self, mode: TlsMode) -> Result<rustls::ClientConfig, ConnectError> {
        let verified = matches!(mode, TlsMode::VerifyCa | TlsMode::VerifyFull);
        let home = || std::env::var_os("HOME").map(PathBuf::from);
        let default_root = || home().map(|home| home.join(".postgresql/root.crt"));
        let trust = match self.option("sslrootcert") {
            Some("system") => Trust::System,
            Some(path) => Trust::Ca(PathBuf::from(path)),
            None if verified => default_root().map_or(Trust::System, Trust::Ca),
            None => Trust::Anybody,
        };
        let certificate = self.option("sslcert").map(|cert| {
            (
                PathBuf::from(cert),
                self.option("sslkey").map(PathBuf::from),
            )
        });
        let tls = ClientTls {
            trust,
            any_host_name: mode != TlsMode::VerifyFull,
            certificate,
            key_password: self
                .option("sslpassword")
                .map(crate::config::secret::Secret::new),
        };
        let built = pgdata::on_disk(move || tls::client_config(&tls)).await;
        match built {
            Some(Ok(config)) => Ok((*config).clone()),
            Some(Err(err)) => Err(ConnectError::Other(err.to_string())),
            None => Err(ConnectError::Other(String::from(
                "reading certificates takes too long",
            ))),
        }
    }
}
