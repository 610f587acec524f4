//! Patroni's checks of single values beyond their type.

use super::world::World;
use crate::config::value::{HostPort, parse_bool, python_text, split_host_port};
use serde_json::Value;

const ETCD_PORT: u16 = 2379;
const POSTGRES_PORT: u16 = 5432;
/// What a `restapi` address without a port is looked at with; the port is asked for elsewhere.
const REST_PORT: u16 = 8008;

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn wrong<T>() -> Result<T, String> {
    Err(String::from("contains a wrong value"))
}

/// Host names of a list with one port at its end.
fn hosts(address: &HostPort) -> impl Iterator<Item = &str> {
    address.host.split(',').map(str::trim)
}

/// `restapi.listen`: one host, so a list is a name that does not exist.
pub(super) fn listen(value: &Value, world: &World<'_>) -> Result<(), String> {
    let Some(address) = split_host_port(text(value), Some(REST_PORT)) else {
        return wrong();
    };
    listens(&[address.host.as_str()], address.port, world)
}

/// `postgresql.listen`: several hosts.
pub(super) fn postgres_listen(value: &Value, world: &World<'_>) -> Result<(), String> {
    let Some(address) = split_host_port(text(value), Some(POSTGRES_PORT)) else {
        return wrong();
    };
    let all: Vec<&str> = hosts(&address).collect();
    if all.contains(&"*") && all != ["*"] {
        return Err(String::from("expecting '*' alone"));
    }
    listens(&all, address.port, world)
}

fn listens(hosts: &[&str], port: u16, world: &World<'_>) -> Result<(), String> {
    for host in hosts {
        if world.connects(host, port)? && !world.options.ignore_listen_port {
            return Err(format!("Port {port} is already in use."));
        }
    }
    Ok(())
}

/// An address that others use to reach this member.
pub(super) fn connect_address(value: &Value, _world: &World<'_>) -> Result<(), String> {
    let Some(address) = split_host_port(text(value), Some(POSTGRES_PORT)) else {
        return wrong();
    };
    let local = ["127.0.0.1", "0.0.0.0", "*", "::1", "localhost"];
    if local.contains(&address.host.as_str()) {
        return Err(String::from(
            "must not contain \"127.0.0.1\", \"0.0.0.0\", \"*\", \"::1\", \"localhost\"",
        ));
    }
    Ok(())
}

/// An etcd endpoint, which is really connected to.
pub(super) fn reachable(value: &Value, world: &World<'_>) -> Result<(), String> {
    // A list in one text: the first that cannot be reached is named.
    for host in text(value).split(',').map(str::trim) {
        let Some(address) = split_host_port(host, Some(ETCD_PORT)) else {
            return wrong();
        };
        if !world.connects(&address.host, address.port)? {
            return Err(format!("{host} is not reachable"));
        }
    }
    Ok(())
}

/// `log.format`.
pub(super) fn log_format(value: &Value, _world: &World<'_>) -> Result<(), String> {
    let is_item = |item: &Value| match item {
        Value::String(_) => true,
        Value::Object(map) => map.len() == 1 && map.values().all(Value::is_string),
        _ => false,
    };
    match value {
        Value::String(_) => Ok(()),
        Value::Array(items) if items.is_empty() => {
            Err(String::from("should contain at least one item"))
        }
        Value::Array(items) if items.iter().all(is_item) => Ok(()),
        Value::Array(_) => Err(String::from(
            "each item should be a string or a dictionary with string values",
        )),
        _ => Err(String::from("Should be a string or a list")),
    }
}

/// A boolean, or `quorum`.
pub(super) fn synchronous_mode(value: &Value, _world: &World<'_>) -> Result<(), String> {
    let quorum = python_text(value).eq_ignore_ascii_case("quorum");
    if quorum || parse_bool(value).is_some() {
        Ok(())
    } else {
        Err(String::from("invalid value for synchronous_mode"))
    }
}

/// `watchdog.mode`.
pub(super) fn watchdog_mode(value: &Value, _world: &World<'_>) -> Result<(), String> {
    match value {
        Value::Bool(false) => Ok(()),
        Value::String(mode) if matches!(mode.as_str(), "off" | "automatic" | "required") => Ok(()),
        _ => Err(String::from("Wrong value")),
    }
}

/// `postgresql.data_dir`: absent, empty, or a data directory of the version that is installed.
pub(super) fn data_dir(value: &Value, world: &World<'_>) -> Result<(), String> {
    let path = text(value);
    if path.is_empty() {
        return Err(String::from("is an empty string"));
    }
    let path = std::path::Path::new(path);
    if !path.exists() {
        return Ok(());
    }
    let Ok(mut entries) = path.read_dir() else {
        return Err(String::from("is not a directory"));
    };
    if entries.next().is_none() {
        return Ok(());
    }
    let Ok(version) = std::fs::read_to_string(path.join("PG_VERSION")) else {
        return Err(String::from("doesn't look like a valid data directory"));
    };
    let version = version.trim();
    if !path.join("pg_wal").is_dir() {
        return Err(String::from(
            "data dir for the cluster is not empty, but doesn't contain \"pg_wal\" directory",
        ));
    }
    match world.postgres_version() {
        Some(installed) if installed != version => Err(format!(
            "data_dir directory postgresql version ({version}) doesn't match with 'postgres \
             --version' output ({installed})"
        )),
        _ => Ok(()),
    }
}

/// A replacement name of a program.
pub(super) fn program(value: &Value, world: &World<'_>) -> Result<(), String> {
    match text(value) {
        "" => Err(String::from("is an empty string")),
        name => match world.missing_program(name) {
            Some(message) => Err(message),
            None => Ok(()),
        },
    }
}
