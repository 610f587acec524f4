//! Whom to connect to, and as whom: addresses, users and the libpq text of them. No connection is made
//! here.

use super::connect::{ConnectError, ConninfoKind, KEEPALIVE, Role, TCP_USER_TIMEOUT_MS};
use super::context::PgContext;
use super::pgdata;
use crate::config::{AgentConfig, Credentials, PostgresConfig};
use proto::core::job::Upstream;
use std::path::{Path, PathBuf};
use tokio_postgres::config::Host;

/// Where PostgreSQL listens when nobody says otherwise.
const DEFAULT_PORT: u16 = 5432;

/// Directories that builds of PostgreSQL have for their socket when none is configured: Debian's and
/// Red Hat's, then upstream's.
const DEFAULT_SOCKET_DIRS: [&str; 2] = ["/var/run/postgresql", "/tmp"];

/// One place to connect to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Address {
    /// A directory with a socket in it.
    Socket(PathBuf, u16),
    /// A host name or address.
    Tcp(String, u16),
}

/// The user that an entry names, else the one that this process runs as, as libpq has it.
pub fn user_of(credentials: &Credentials) -> String {
    let os_user = || {
        nix::unistd::User::from_uid(nix::unistd::geteuid())
            .ok()
            .flatten()
            .map_or_else(|| String::from("postgres"), |user| user.name)
    };
    credentials.username.clone().unwrap_or_else(os_user)
}

/// The entry of a role.
pub(super) fn credentials(pg: &PostgresConfig, role: Role) -> &Credentials {
    match role {
        Role::Superuser => &pg.superuser,
        Role::Replication => &pg.replication,
        Role::Rewind => pg.rewind.as_ref().unwrap_or(&pg.superuser),
    }
}

/// Where the local server is reached (`configuration.md` 3.5 and 7.1, "Socket choice").
pub(super) async fn local(ctx: &PgContext, socket: bool) -> Vec<Address> {
    let config = ctx.config();
    let pg = &config.postgresql;
    let dir = pg.data_dir.clone();
    // A changed port or directory takes effect with a restart only; until then the running server's
    // own file knows better.
    let file = pgdata::on_disk(move || pgdata::read_postmaster_pid(&dir).ok().flatten()).await;
    let file = file.flatten();
    let port = file.as_ref().and_then(|file| file.port).unwrap_or(pg.port);
    if socket {
        let sockets = match configured_socket_dirs(pg) {
            Some(dirs) => dirs
                .into_iter()
                .find(|dir| dir.is_absolute())
                .into_iter()
                .collect(),
            None => default_socket_dirs(file.and_then(|file| file.socket_dir)),
        };
        if !sockets.is_empty() {
            return sockets
                .into_iter()
                .map(|dir| Address::Socket(dir, port))
                .collect();
        }
    }
    vec![Address::Tcp(local_host(&pg.listen_hosts), port)]
}

fn configured_socket_dirs(pg: &PostgresConfig) -> Option<Vec<PathBuf>> {
    let list = pg.parameters.get("unix_socket_directories")?.as_str()?;
    Some(
        list.split(',')
            .map(|dir| PathBuf::from(dir.trim().trim_matches('"')))
            .collect(),
    )
}

pub(super) fn default_socket_dirs(running: Option<String>) -> Vec<PathBuf> {
    let running = running.map(PathBuf::from).filter(|dir| dir.is_absolute());
    let mut dirs: Vec<PathBuf> = running.into_iter().collect();
    dirs.extend(
        DEFAULT_SOCKET_DIRS
            .iter()
            .map(PathBuf::from)
            .filter(|dir| dir.is_dir()),
    );
    dirs
}

fn local_host(listen: &[String]) -> String {
    let everywhere = |host: &String| {
        matches!(
            host.as_str(),
            "" | "*" | "localhost" | "0.0.0.0" | "127.0.0.1"
        )
    };
    match listen.first() {
        Some(first) if !listen.iter().any(everywhere) => first.clone(),
        Some(_) | None => String::from("localhost"),
    }
}

/// Where another server is reached.
pub(super) fn remote(upstream: &Upstream) -> Result<Vec<(String, u16)>, ConnectError> {
    match upstream {
        Upstream::None => Err(ConnectError::NoAddress(String::from("nobody to follow"))),
        Upstream::Member { name, conn_url } => parse_url(conn_url)
            .ok_or_else(|| ConnectError::NoAddress(format!("conn_url of {name}: {conn_url:?}"))),
        Upstream::Remote { host, port, .. } => {
            let hosts = host.as_deref().unwrap_or_default();
            let found = host_list(hosts, port.as_deref().unwrap_or_default());
            found.ok_or_else(|| ConnectError::NoAddress(String::from("standby_cluster.host")))
        }
    }
}

/// The hosts of a `conn_url`, which may list several.
pub(crate) fn parse_url(url: &str) -> Option<Vec<(String, u16)>> {
    let config: tokio_postgres::Config = url.parse().ok()?;
    let ports = config.get_ports();
    let port = |index: usize| {
        ports
            .get(index)
            .or_else(|| ports.first())
            .copied()
            .unwrap_or(DEFAULT_PORT)
    };
    let hosts: Vec<(String, u16)> = config
        .get_hosts()
        .iter()
        .enumerate()
        .map(|(index, host)| match host {
            Host::Tcp(name) => (name.clone(), port(index)),
            Host::Unix(path) => (path.to_string_lossy().into_owned(), port(index)),
        })
        .collect();
    (!hosts.is_empty()).then_some(hosts)
}

/// `h1,h2` with one port for all or one for each.
pub(crate) fn host_list(hosts: &str, ports: &str) -> Option<Vec<(String, u16)>> {
    let ports: Vec<u16> = ports
        .split(',')
        .filter_map(|port| port.trim().parse().ok())
        .collect();
    let port = |index: usize| {
        ports
            .get(index)
            .or_else(|| ports.first())
            .copied()
            .unwrap_or(DEFAULT_PORT)
    };
    let hosts = hosts
        .split(',')
        .map(str::trim)
        .filter(|host| !host.is_empty());
    let bare = |host: &str| {
        host.trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned()
    };
    let found: Vec<_> = hosts
        .enumerate()
        .map(|(i, host)| (bare(host), port(i)))
        .collect();
    (!found.is_empty()).then_some(found)
}

/// The libpq text for a purpose, without any password: see [`passfile`].
pub(crate) fn conninfo(
    config: &AgentConfig,
    upstream: &Upstream,
    kind: ConninfoKind,
    version: u32,
    with_passfile: bool,
) -> Result<String, ConnectError> {
    let pg = &config.postgresql;
    let hosts = remote(upstream)?;
    let role = role_of(kind);
    let credentials = credentials(pg, role);
    let join = |items: Vec<String>| items.join(",");
    let mut pairs: Vec<(&str, String)> = vec![
        ("dbname", pg.database.clone()),
        ("user", user_of(credentials)),
        (
            "host",
            join(hosts.iter().map(|(host, _)| host.clone()).collect()),
        ),
        (
            "port",
            join(hosts.iter().map(|(_, port)| port.to_string()).collect()),
        ),
    ];
    if with_passfile {
        pairs.push(("passfile", pg.pgpass.to_string_lossy().into_owned()));
    }
    let known = |key: &str| version >= 17 || key != "sslnegotiation";
    let mut options: Vec<(&str, String)> = credentials
        .options
        .iter()
        .filter(|(key, value)| known(key) && !value.is_empty())
        .map(|(key, value)| (key.as_str(), value.clone()))
        .collect();
    if kind == ConninfoKind::PrimaryConninfo {
        pairs.push(("application_name", config.name.clone()));
        // `sslnegotiation=postgres` is libpq's default, and a server of 17 may run with an older libpq,
        // which would refuse the whole text.
        let defaults = [
            ("sslmode", "prefer"),
            ("gssencmode", "prefer"),
            ("channel_binding", "prefer"),
        ];
        for (key, value) in defaults {
            if !options.iter().any(|(present, _)| *present == key) {
                options.push((key, value.to_owned()));
            }
        }
        options.extend(
            pg.krbsrvname
                .iter()
                .map(|name| ("krbsrvname", name.clone())),
        );
    }
    let slot_at_several =
        hosts.len() > 1 && matches!(upstream, Upstream::Remote { slot: Some(_), .. });
    if slot_at_several {
        options.push(("target_session_attrs", String::from("read-write")));
    }
    if kind != ConninfoKind::PrimaryConninfo {
        options.extend(impatience());
    }
    pairs.extend(options);
    let texts: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{key}={}", quote(value)))
        .collect();
    Ok(texts.join(" "))
}

/// A peer that is gone without a word is noticed within seconds, as it is by our own sessions (PostgreSQL
/// documentation, "Parameter Key Words"). Not in `primary_conninfo`: there it would differ from Patroni's, and each
/// server that changes hands would have to connect anew.
fn impatience() -> [(&'static str, String); 4] {
    let (idle, interval, count) = KEEPALIVE;
    [
        ("keepalives_idle", idle.to_string()),
        ("keepalives_interval", interval.to_string()),
        ("keepalives_count", count.to_string()),
        ("tcp_user_timeout", TCP_USER_TIMEOUT_MS.to_string()),
    ]
}

/// The user behind a connection string.
pub(super) fn role_of(kind: ConninfoKind) -> Role {
    match kind {
        ConninfoKind::PrimaryConninfo | ConninfoKind::Basebackup => Role::Replication,
        ConninfoKind::Rewind => Role::Rewind,
    }
}

/// A value of a libpq connection string (PostgreSQL documentation, "Keyword/Value Connection
/// Strings").
fn quote(value: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "_-./:,@+*[]%".contains(c);
    if !value.is_empty() && value.chars().all(plain) {
        return value.to_owned();
    }
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// The content of the passfile for these hosts: a line for the replication user and one for whoever
/// rewinds, so that one file serves `primary_conninfo`, `pg_basebackup` and `pg_rewind`. `None` when no
/// password is configured.
pub(super) fn passfile(pg: &PostgresConfig, hosts: &[(String, u16)]) -> Option<String> {
    let mut lines: Vec<String> = Vec::new();
    for role in [Role::Replication, Role::Rewind, Role::Superuser] {
        let credentials = credentials(pg, role);
        let Some(password) = &credentials.password else {
            continue;
        };
        let user = user_of(credentials);
        for (host, port) in hosts {
            // libpq looks up the default socket as "localhost", and others by their directory.
            let socket = Path::new(host).is_absolute().then_some("localhost");
            for name in [Some(host.as_str()), socket].into_iter().flatten() {
                let line = format!(
                    "{}:{port}:*:{}:{}\n",
                    escape(name),
                    escape(&user),
                    escape(password.reveal())
                );
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
        }
    }
    (!lines.is_empty()).then(|| lines.concat())
}

fn escape(field: &str) -> String {
    field.replace('\\', "\\\\").replace(':', "\\:")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_local_address_of_all_means_localhost() {
        let host =
            |list: &[&str]| local_host(&list.iter().map(|h| (*h).to_owned()).collect::<Vec<_>>());
        assert_eq!(host(&["*"]), "localhost");
        assert_eq!(host(&["10.0.0.1", "127.0.0.1"]), "localhost");
        assert_eq!(host(&["10.0.0.1", "10.0.0.2"]), "10.0.0.1");
        assert_eq!(host(&[]), "localhost");
    }

    #[test]
    fn member_urls_name_hosts_and_ports() {
        let one = |host: &str, port| Some(vec![(host.to_owned(), port)]);
        assert_eq!(
            parse_url("postgres://10.0.0.1:5433/postgres"),
            one("10.0.0.1", 5433)
        );
        assert_eq!(
            parse_url("postgres://[fd00::1]:5433/postgres"),
            one("fd00::1", 5433)
        );
        assert_eq!(parse_url("postgres://db/postgres"), one("db", 5432));
        assert_eq!(parse_url("nonsense"), None);
    }

    #[test]
    fn remote_hosts_share_a_port_or_have_their_own() {
        let pairs = |hosts, ports| host_list(hosts, ports).unwrap_or_default();
        assert_eq!(pairs("a, b", "7"), [("a".into(), 7), ("b".into(), 7)]);
        assert_eq!(pairs("a,b", "7,8"), [("a".into(), 7), ("b".into(), 8)]);
        assert_eq!(pairs("[::1]", ""), [("::1".into(), 5432)]);
        assert_eq!(host_list(" , ", "7"), None);
    }

    #[test]
    fn connection_strings_quote_what_libpq_would_misread() {
        assert_eq!(quote("plain-1.example"), "plain-1.example");
        assert_eq!(quote(""), "''");
        assert_eq!(quote("it's a \\"), "'it\\'s a \\\\'");
    }

    #[test]
    fn passfile_fields_are_escaped() {
        assert_eq!(escape("a:b\\c"), "a\\:b\\\\c");
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC*", ports in "\\PC*") {
            let _ = parse_url(&text);
            let _ = host_list(&text, &ports);
        }
    }
}
