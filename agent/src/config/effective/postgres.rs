//! The `postgresql` section: the local one over the dynamic one (`configuration.md` 7).

use super::methods;
use super::parameters;
use super::read::Section;
use crate::config::error::ConfigError;
use crate::config::value::{HostPort, parse_real, split_host_port, truthy};
use crate::config::{ConfRole, Credentials, PostgresConfig, env};
use proto::config::SECONDS_MAX;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// PostgreSQL's own port.
const PORT: u16 = 5432;

/// Default of `pg_ctl_timeout`, in seconds.
const PG_CTL_TIMEOUT: f64 = 60.0;

/// The roles and the suffixes of their keys.
pub(super) const ROLES: [(ConfRole, &str); 3] = [
    (ConfRole::Primary, "primary"),
    (ConfRole::Replica, "replica"),
    (ConfRole::StandbyLeader, "standby_leader"),
];

/// Dynamic keys that would differ between members and are dropped (`configuration.md` 2.3).
const LOCAL_ONLY: [&str; 7] = [
    "connect_address",
    "proxy_address",
    "listen",
    "config_dir",
    "data_dir",
    "pgpass",
    "authentication",
];

/// Builds the section.
pub(super) fn build(
    local: &Section<'_>,
    dynamic: &Map<String, Value>,
    scope: &str,
) -> Result<PostgresConfig, ConfigError> {
    let none = Map::new();
    let dynamic = dynamic
        .get("postgresql")
        .and_then(Value::as_object)
        .unwrap_or(&none);
    let merged = merge(local, dynamic)?;
    let section = &merged;
    let listen = listen(section)?;
    let listen_hosts: Vec<String> = listen
        .host
        .split(',')
        .map(|h| h.trim().to_owned())
        .filter(|h| !h.is_empty())
        .collect();
    let data_dir = section
        .path("data_dir")?
        .ok_or_else(|| section.missing("data_dir", "PGDATA's path"))?;
    let (parameters, recovery) = parameters(local, section, dynamic, scope, &listen);
    let authentication = Authentication::read(section)?;
    let methods = methods::replica_methods(section);
    Ok(PostgresConfig {
        connect_address: connect_address(section, &listen_hosts, listen.port)?,
        proxy_address: address(section, "proxy_address", PORT)?,
        config_dir: section
            .path("config_dir")?
            .unwrap_or_else(|| data_dir.clone()),
        bin_dir: section.path("bin_dir")?,
        bin_name: section.texts("bin_name"),
        pgpass: pgpass(section)?,
        superuser: authentication.superuser,
        replication: authentication.replication,
        rewind: authentication.rewind,
        database: text_or(section, "database", "postgres")?,
        config_base_name: text_or(section, "config_base_name", "postgresql")?,
        parameters_by_role: parameters::by_role(section),
        parameters,
        pg_hba: section.lines("pg_hba").filter(|lines| !lines.is_empty()),
        pg_hba_by_role: lines_by_role(section, "pg_hba"),
        pg_ident: section.lines("pg_ident").filter(|lines| !lines.is_empty()),
        pg_ident_by_role: lines_by_role(section, "pg_ident"),
        recovery_conf: parameters::recovery_conf(section, recovery),
        custom_conf: section.path("custom_conf")?,
        use_pg_rewind: authentication
            .legacy_rewind
            .unwrap_or_else(|| section.flag("use_pg_rewind")),
        rewind_options: options(section, "rewind", "pg_rewind", &methods::REWIND),
        wipe_on_rewind_failure: section.flag("remove_data_directory_on_rewind_failure"),
        wipe_on_divergence: section.flag("remove_data_directory_on_diverged_timelines"),
        create_replica_methods: methods::order(section, &methods),
        methods,
        basebackup_options: options(section, "basebackup", "pg_basebackup", &methods::BASEBACKUP),
        callbacks: section.texts("callbacks"),
        pre_promote: section.text("pre_promote")?,
        before_stop: section.text("before_stop")?,
        pg_ctl_timeout: pg_ctl_timeout(section),
        use_unix_socket: section.flag("use_unix_socket"),
        use_unix_socket_repl: section.flag("use_unix_socket_repl"),
        krbsrvname: section.text("krbsrvname")?,
        port: listen.port,
        listen_hosts,
        data_dir,
    })
}

fn text_or(section: &Section<'_>, key: &str, default: &str) -> Result<String, ConfigError> {
    Ok(section.text(key)?.unwrap_or_else(|| default.to_owned()))
}

fn listen(section: &Section<'_>) -> Result<HostPort, ConfigError> {
    let expected = "hosts:port, for example *:5432";
    let text = section
        .text("listen")?
        .ok_or_else(|| section.missing("listen", expected))?;
    split_host_port(&text, Some(PORT)).ok_or_else(|| section.wrong("listen", expected))
}

/// A local key replaces the dynamic one as a whole.
fn merge<'a>(
    local: &'a Section<'a>,
    dynamic: &Map<String, Value>,
) -> Result<Section<'a>, ConfigError> {
    if local
        .get("parameters")
        .is_some_and(|p| !p.is_object() && truthy(p))
    {
        let expected = "a mapping (postgresql.parameters is not a dictionary)";
        return Err(local.wrong("parameters", expected));
    }
    let mut map: Map<String, Value> = dynamic
        .iter()
        .filter(|(key, _)| !LOCAL_ONLY.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    for (key, value) in local.map.iter().filter(|(key, _)| *key != "use_slots") {
        map.insert(key.clone(), value.clone());
    }
    Ok(Section {
        map,
        path: local.path.clone(),
        origins: local.origins,
        notes: local.notes,
        local: Some(&local.map),
    })
}

/// The effective parameters with those that follow from other settings, and the recovery settings.
fn parameters(
    local: &Section<'_>,
    section: &Section<'_>,
    dynamic: &Map<String, Value>,
    scope: &str,
    listen: &HostPort,
) -> (BTreeMap<String, Value>, Map<String, Value>) {
    let none = Map::new();
    let map = |map: &Map<String, Value>| {
        map.get("parameters")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_else(|| none.clone())
    };
    let (mut parameters, recovery) =
        parameters::effective(section, &map(&local.map), &map(dynamic));
    let addresses = if listen.host.is_empty() {
        "*"
    } else {
        &listen.host
    };
    parameters.insert(String::from("listen_addresses"), Value::from(addresses));
    parameters.insert(String::from("port"), Value::from(listen.port));
    parameters.insert(String::from("cluster_name"), Value::from(scope));
    (parameters, recovery)
}

/// `connect_address`, or the first local address.
fn connect_address(
    section: &Section<'_>,
    listen_hosts: &[String],
    port: u16,
) -> Result<String, ConfigError> {
    if let Some(address) = address(section, "connect_address", port)? {
        return Ok(address);
    }
    let is_local =
        |host: &String| matches!(host.as_str(), "*" | "localhost" | "0.0.0.0" | "127.0.0.1");
    let host = match listen_hosts.first() {
        Some(first) if !listen_hosts.iter().any(is_local) => first.clone(),
        _ => String::from("localhost"),
    };
    Ok(HostPort { host, port }.text())
}

fn address(section: &Section<'_>, key: &str, port: u16) -> Result<Option<String>, ConfigError> {
    let Some(text) = section.text(key)? else {
        return Ok(None);
    };
    let address = split_host_port(&text, Some(port)).filter(|a| !a.host.is_empty());
    address
        .map(|a| Some(a.text()))
        .ok_or_else(|| section.wrong(key, "host:port"))
}

/// `~/pgpass`, without a dot, so that it is not the user's own file.
fn pgpass(section: &Section<'_>) -> Result<PathBuf, ConfigError> {
    let path = match section.path("pgpass")? {
        Some(path) => path,
        None => std::env::home_dir()
            .unwrap_or_else(|| PathBuf::from("."))
            .join("pgpass"),
    };
    if path.exists() && !path.is_file() {
        let path = path.display();
        return Err(section.wrong(
            "pgpass",
            format!("a file to write passwords to: '{path}' exists and it's not a file"),
        ));
    }
    Ok(path)
}

fn lines_by_role(section: &Section<'_>, key: &str) -> BTreeMap<ConfRole, Vec<String>> {
    let lines = |suffix: &str| section.lines(&format!("{key}_{suffix}"));
    // An empty list means "do not write": it stays in the map to say so.
    ROLES
        .iter()
        .filter_map(|(role, suffix)| Some((*role, lines(suffix)?)))
        .collect()
}

fn options(section: &Section<'_>, key: &str, tool: &str, forbidden: &[&str]) -> Vec<String> {
    let (arguments, problems) = methods::options(tool, section.get(key), forbidden);
    for problem in problems {
        section.notes.push(problem);
    }
    arguments
}

/// Unparsable: 60; null or zero: no wait; longer than any time: the longest.
fn pg_ctl_timeout(section: &Section<'_>) -> Duration {
    let seconds = match section.map.get("pg_ctl_timeout") {
        None => PG_CTL_TIMEOUT,
        Some(Value::Null) => 0.0,
        Some(value) => parse_real(value, Some("s")).unwrap_or(PG_CTL_TIMEOUT),
    };
    // Neither a clock nor `Duration` goes as far as a number.
    Duration::try_from_secs_f64(seconds.min(SECONDS_MAX as f64)).unwrap_or(Duration::ZERO)
}

struct Authentication {
    superuser: Credentials,
    replication: Credentials,
    rewind: Option<Credentials>,
    /// The old form decides `use_pg_rewind` by whether it has a rewind user.
    legacy_rewind: Option<bool>,
}

impl Authentication {
    fn read(section: &Section<'_>) -> Result<Self, ConfigError> {
        let mut authentication = section.sub("authentication")?;
        let legacy = section.get("authentication").is_none()
            && (section.get("replication").is_some() || section.get("superuser").is_some());
        if legacy {
            for key in ["replication", "superuser"] {
                if let Some(value) = section.get(key) {
                    authentication.map.insert(key.to_owned(), value.clone());
                }
            }
        }
        let has_pg_rewind = section.map.contains_key("pg_rewind");
        if authentication.get("superuser").is_none()
            && let Some(credentials) = section.get("pg_rewind")
        {
            authentication
                .map
                .insert(String::from("superuser"), credentials.clone());
        }
        let replication = credentials(&authentication.sub("replication")?)?;
        if replication.username.is_none() {
            let missing = authentication.sub("replication")?;
            return Err(missing.missing("username", "the name of the replication user"));
        }
        let rewind = match authentication.get("rewind") {
            Some(value) if truthy(value) => Some(credentials(&authentication.sub("rewind")?)?),
            _ => None,
        };
        Ok(Self {
            superuser: credentials(&authentication.sub("superuser")?)?,
            replication,
            rewind,
            legacy_rewind: legacy.then_some(has_pg_rewind),
        })
    }
}

/// The superuser for the control tool, which may have none.
pub(super) fn superuser_of(section: &Section<'_>) -> Result<Credentials, ConfigError> {
    credentials(&section.sub("authentication")?.sub("superuser")?)
}

/// One role, reduced to the 12 keys (`configuration.md` 7.2).
fn credentials(section: &Section<'_>) -> Result<Credentials, ConfigError> {
    let mut options = BTreeMap::new();
    for key in env::CREDENTIAL_KEYS.into_iter().skip(2) {
        if let Some(text) = section.text(key)? {
            options.insert(key.to_owned(), text);
        }
    }
    let (username, password) = (section.text("username")?, section.secret("password")?);
    Ok(Credentials {
        username,
        password,
        options,
    })
}
