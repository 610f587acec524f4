//! The `PATRONI_*` environment: captured once, never changed (`configuration.md` 4).
//!
//! Patroni deletes the variables that it has read, so that callbacks and PostgreSQL do not see
//! passwords. Changing the environment of a running process is unsound with threads, so here every
//! child gets an environment of its own instead, without them.

use super::value::{parse_bool, parse_int};
use super::yaml;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::ffi::OsString;

/// The captured variables: all of `PATRONI_*`.
pub type Captured = BTreeMap<String, String>;

/// Reads the variables. Values that are no UTF-8 are left out: no setting can hold one.
pub fn capture() -> Captured {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(name, _)| name.starts_with("PATRONI_"))
        .collect()
}

/// The environment for scripts and tools: ours without the variables that the configuration consumed
/// and without the notification socket, which is ours alone.
pub fn child_env() -> Vec<(OsString, OsString)> {
    std::env::vars_os()
        .filter(|(name, _)| {
            name.to_str()
                .is_none_or(|n| n != "NOTIFY_SOCKET" && !is_setting(n))
        })
        .collect()
}

/// The environment for the postmaster: also without any other `PATRONI_*` and `KUBERNETES_*` variable;
/// `PG_MALLOC_ARENA_MAX` becomes `MALLOC_ARENA_MAX`.
pub fn postmaster_env() -> Vec<(OsString, OsString)> {
    let hidden = |name: &str| name.starts_with("PATRONI_") || name.starts_with("KUBERNETES_");
    let mut env: Vec<(OsString, OsString)> = child_env()
        .into_iter()
        .filter(|(name, _)| name.to_str().is_none_or(|n| !hidden(n)))
        .collect();
    if let Some(limit) = std::env::var_os("PG_MALLOC_ARENA_MAX") {
        env.retain(|(name, _)| name != "MALLOC_ARENA_MAX");
        env.push((OsString::from("MALLOC_ARENA_MAX"), limit));
    }
    env
}

/// How a variable's text becomes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Text,
    Integer,
    Boolean,
    List,
    Mapping,
    /// `log.format`: text when it has a `%(word)`, else a list.
    Format,
}

/// A variable that we know: where its value goes.
#[derive(Debug, PartialEq)]
struct Target {
    path: Vec<String>,
    kind: Kind,
}

impl Target {
    fn new(path: &[&str], kind: Kind) -> Self {
        Self {
            path: path.iter().map(|part| (*part).to_owned()).collect(),
            kind,
        }
    }
}

/// The layer that the variables form, and sentences about those that could not be used.
pub(super) fn layer(captured: &Captured) -> (Map<String, Value>, Vec<String>) {
    let mut doc = Map::new();
    let mut notes = Vec::new();
    let mut names: Vec<(&str, &str)> = captured
        .iter()
        .map(|(n, v)| (n.as_str(), v.as_str()))
        .collect();
    // Legacy names first, so that the new ones win.
    names.sort_by_key(|(name, _)| (!is_legacy(name), *name));
    for (name, text) in names {
        let Some(target) = target(name) else { continue };
        if text.is_empty() {
            continue;
        }
        if is_credential_alone(name, captured) {
            notes.push(format!(
                "{name} is not used: no other {} variable is set, and etcd credentials from the \
                 environment count only together with one",
                name.rsplit_once('_')
                    .map_or(name, |(prefix, _)| prefix)
                    .to_owned()
                    + "_*"
            ));
            continue;
        }
        match value(target.kind, text) {
            Ok(value) => insert(&mut doc, &target.path, value),
            Err(expected) => notes.push(format!("{name} is not used: expected {expected}")),
        }
    }
    (doc, notes)
}

/// The variable that set a key, for messages.
pub(super) fn variable_of(names: &[String], path: &[&str]) -> Option<String> {
    let matches = |name: &String| target(name).is_some_and(|t| t.path == path);
    names.iter().find(|name| matches(name)).cloned()
}

fn insert(doc: &mut Map<String, Value>, path: &[String], value: Value) {
    let Some((key, rest)) = path.split_first() else {
        return;
    };
    if rest.is_empty() {
        doc.insert(key.clone(), value);
        return;
    }
    let child = doc
        .entry(key.clone())
        .or_insert_with(|| Value::Object(Map::new()));
    if let Value::Object(child) = child {
        insert(child, rest, value);
    }
}

fn value(kind: Kind, text: &str) -> Result<Value, &'static str> {
    let wrapped = Value::String(text.to_owned());
    match kind {
        Kind::Text => Ok(wrapped),
        Kind::Integer => parse_int(&wrapped, None)
            .map(Value::from)
            .ok_or("a whole number"),
        Kind::Boolean => parse_bool(&wrapped).map(Value::from).ok_or("on or off"),
        Kind::List => list(text).ok_or("a YAML list"),
        Kind::Mapping => mapping(text).ok_or("a YAML mapping"),
        Kind::Format if has_percent_name(text) => Ok(wrapped),
        Kind::Format => list(text).ok_or("a text with %(name)s or a YAML list"),
    }
}

fn has_percent_name(text: &str) -> bool {
    text.split("%(").skip(1).any(|rest| {
        rest.split_once(')').is_some_and(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || c == '_')
        })
    })
}

/// A list may come without its brackets (`configuration.md` 4.4).
fn list(text: &str) -> Option<Value> {
    let bare = !text.trim_start().starts_with('-') && !text.contains('[');
    let text = if bare {
        format!("[{text}]")
    } else {
        text.to_owned()
    };
    yaml::from_str(&text).ok().filter(Value::is_array)
}

fn mapping(text: &str) -> Option<Value> {
    let bare = !text.trim_start().starts_with('{');
    let text = if bare {
        format!("{{{text}}}")
    } else {
        text.to_owned()
    };
    yaml::from_str(&text).ok().filter(Value::is_object)
}

fn is_legacy(name: &str) -> bool {
    matches!(
        name,
        "PATRONI_LOGLEVEL" | "PATRONI_LOGFORMAT" | "PATRONI_LOG_DATEFMT"
    )
}

/// Whether the configuration consumes the variable, so that children must not see it.
fn is_setting(name: &str) -> bool {
    name == "PATRONI_CONFIGURATION" || target(name).is_some()
}

/// etcd credentials count only beside another variable of their section (`configuration.md` 4.2).
fn is_credential_alone(name: &str, captured: &Captured) -> bool {
    let section = ["PATRONI_ETCD3_", "PATRONI_ETCD_"]
        .into_iter()
        .find(|p| name.starts_with(p));
    let Some(section) = section else { return false };
    let is_credential = |n: &str| matches!(n.strip_prefix(section), Some("USERNAME" | "PASSWORD"));
    let is_other = |(n, v): (&String, &String)| {
        n.starts_with(section) && !is_credential(n) && !v.is_empty() && target(n).is_some()
    };
    is_credential(name) && !captured.iter().any(is_other)
}

const ROLES: [&str; 3] = ["replication", "superuser", "rewind"];
const PROGRAMS: [&str; 7] = [
    "pg_ctl",
    "initdb",
    "pg_controldata",
    "pg_basebackup",
    "postgres",
    "pg_isready",
    "pg_rewind",
];

/// The 12 keys of `postgresql.authentication.<role>` (`configuration.md` 7.2).
pub(super) const CREDENTIAL_KEYS: [&str; 12] = [
    "username",
    "password",
    "sslmode",
    "sslcert",
    "sslkey",
    "sslpassword",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "gssencmode",
    "channel_binding",
    "sslnegotiation",
];

/// Where a variable's value goes; `None` for variables that mean nothing to us.
fn target(name: &str) -> Option<Target> {
    let rest = name.strip_prefix("PATRONI_")?;
    if rest != rest.to_uppercase() {
        return None;
    }
    let key = rest.to_lowercase();
    match key.as_str() {
        "loglevel" => return Some(Target::new(&["log", "level"], Kind::Text)),
        "logformat" => return Some(Target::new(&["log", "format"], Kind::Format)),
        "log_datefmt" => return Some(Target::new(&["log", "dateformat"], Kind::Text)),
        "name" | "namespace" | "scope" | "thread_pool_size" | "thread_stack_size" => {
            return Some(Target::new(&[&key], Kind::Text));
        }
        _ => {}
    }
    let (section, key) = key.split_once('_')?;
    match section {
        "log" => log(key).map(|kind| Target::new(&["log", key], kind)),
        "restapi" => authentication("restapi", key)
            .or_else(|| restapi(key).map(|kind| Target::new(&["restapi", key], kind))),
        "ctl" => authentication("ctl", key)
            .or_else(|| ctl(key).map(|kind| Target::new(&["ctl", key], kind))),
        "postgresql" => postgresql(key),
        role if ROLES.contains(&role) && CREDENTIAL_KEYS.contains(&key) => Some(Target::new(
            &["postgresql", "authentication", role, key],
            Kind::Text,
        )),
        "etcd" | "etcd3" if matches!(key, "username" | "password") => {
            Some(Target::new(&[section, key], Kind::Text))
        }
        "citus" if key == "group" => Some(Target::new(&["citus", "group"], Kind::Integer)),
        _ => None,
    }
    .or_else(|| generic(key).map(|kind| Target::new(&[section, key], kind)))
}

fn authentication(section: &str, key: &str) -> Option<Target> {
    matches!(key, "username" | "password")
        .then(|| Target::new(&[section, "authentication", key], Kind::Text))
}

fn log(key: &str) -> Option<Kind> {
    match key {
        "type" | "level" | "traceback_level" | "dateformat" | "dir" => Some(Kind::Text),
        "format" => Some(Kind::Format),
        "static_fields" | "loggers" => Some(Kind::Mapping),
        "max_queue_size" | "file_size" | "file_num" | "mode" => Some(Kind::Integer),
        "deduplicate_heartbeat_logs" => Some(Kind::Boolean),
        _ => None,
    }
}

fn restapi(key: &str) -> Option<Kind> {
    match key {
        "listen" | "connect_address" | "certfile" | "keyfile" | "keyfile_password" | "cafile"
        | "ciphers" | "verify_client" | "server_tokens" => Some(Kind::Text),
        "http_extra_headers" | "https_extra_headers" => Some(Kind::Mapping),
        "allowlist" => Some(Kind::List),
        "allowlist_include_members" => Some(Kind::Boolean),
        "request_queue_size" => Some(Kind::Integer),
        _ => None,
    }
}

fn ctl(key: &str) -> Option<Kind> {
    match key {
        "insecure" => Some(Kind::Boolean),
        "cacert" | "certfile" | "keyfile" | "keyfile_password" => Some(Kind::Text),
        _ => None,
    }
}

fn postgresql(key: &str) -> Option<Target> {
    match key {
        "listen" | "connect_address" | "proxy_address" | "config_dir" | "data_dir" | "pgpass"
        | "bin_dir" => Some(Target::new(&["postgresql", key], Kind::Text)),
        _ => {
            let program = key.strip_prefix("bin_").filter(|p| PROGRAMS.contains(p))?;
            Some(Target::new(
                &["postgresql", "bin_name", program],
                Kind::Text,
            ))
        }
    }
}

/// The suffixes that set a key in a section of any name (`configuration.md` 4.3).
fn generic(key: &str) -> Option<Kind> {
    match key {
        "host"
        | "protocol"
        | "srv"
        | "srv_suffix"
        | "url"
        | "proxy"
        | "cacert"
        | "cert"
        | "key"
        | "token"
        | "dc"
        | "consistency"
        | "service_check_interval"
        | "service_check_tls_server_name"
        | "namespace"
        | "context"
        | "scope_label"
        | "role_label"
        | "pod_ip"
        | "key_password"
        | "use_ssl"
        | "group"
        | "database"
        | "leader_label_value"
        | "follower_label_value"
        | "standby_leader_label_value"
        | "tmp_role_label" => Some(Kind::Text),
        "port" => Some(Kind::Integer),
        "hosts" | "ports" | "checks" | "service_tags" | "retriable_http_codes" => Some(Kind::List),
        "labels" | "set_acls" | "auth_data" | "bootstrap_labels" => Some(Kind::Mapping),
        "use_proxies" | "register_service" | "use_endpoints" | "bypass_api_service" | "verify" => {
            Some(Kind::Boolean)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
