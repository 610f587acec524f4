//! Commands and their options: option lists of PostgreSQL's programs, custom bootstrap and replica
//! methods (`configuration.md` 3.6, 6.1, 7.3).

use super::read::Section;
use crate::config::error::ConfigError;
use crate::config::keys;
use crate::config::value::{python_text, shell_words, truthy};
use crate::config::{CustomMethod, ReplicaMethod};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// Options that the agent decides itself.
pub(super) const INITDB: [&str; 5] = ["pgdata", "nosync", "pwfile", "sync-only", "version"];
pub(super) const BASEBACKUP: [&str; 11] = [
    "pgdata",
    "format",
    "wal-method",
    "xlog-method",
    "gzip",
    "version",
    "dbname",
    "host",
    "port",
    "username",
    "password",
];
pub(super) const REWIND: [&str; 10] = [
    "target-pgdata",
    "source-pgdata",
    "source-server",
    "write-recovery-conf",
    "dry-run",
    "restore-target-wal",
    "config-file",
    "no-ensure-shutdown",
    "version",
    "help",
];

/// Arguments from an option list, and what is wrong with those that were left out.
pub(super) fn options(
    tool: &str,
    value: Option<&Value>,
    forbidden: &[&str],
) -> (Vec<String>, Vec<String>) {
    let mut arguments = Vec::new();
    let mut problems = Vec::new();
    let mut add = |name: &str, value: Option<&str>| -> Result<(), String> {
        if forbidden.contains(&name) {
            return Err(format!("{name} option for {tool} is not allowed"));
        }
        if tool == "pg_basebackup"
            && name == "compress"
            && value.is_some_and(|v| !v.starts_with("server"))
        {
            return Err(String::from(
                "compress option for pg_basebackup must start with server",
            ));
        }
        arguments.push(match value {
            Some(value) => format!("--{name}={}", unquote(value)),
            None => format!("--{name}"),
        });
        Ok(())
    };
    match value {
        None | Some(Value::Null) => {}
        Some(Value::Array(items)) => {
            for item in items {
                let added = match item {
                    Value::String(name) => add(name, None),
                    Value::Object(map) if map.len() == 1 => match map.iter().next() {
                        Some((name, Value::String(value))) => add(name, Some(value)),
                        _ => Err(item_problem(tool)),
                    },
                    _ => Err(item_problem(tool)),
                };
                problems.extend(added.err());
            }
        }
        Some(Value::Object(map)) => {
            for (name, value) in map.iter().filter(|(k, v)| !k.is_empty() && truthy(v)) {
                problems.extend(add(name, Some(&python_text(value))).err());
            }
        }
        Some(_) => problems.push(format!("{tool} options must be list or dict")),
    }
    (arguments, problems)
}

fn item_problem(tool: &str) -> String {
    format!(
        "{tool} options: each item should be a name or a mapping of one name to a text (numbers \
         and booleans need quotes)"
    )
}

/// Shell quotes around a value are removed, blanks are kept.
fn unquote(value: &str) -> String {
    if !value.contains(['\'', '"', '\\']) {
        return value.to_owned();
    }
    shell_words(value).map_or_else(|| value.to_owned(), |words| words.join(" "))
}

/// The custom bootstrap method, unless it is `initdb`, or has no section or no command.
pub(super) fn bootstrap_method(
    bootstrap: &Section<'_>,
    problems: &mut Vec<String>,
) -> Result<Option<CustomMethod>, ConfigError> {
    let Some(name) = bootstrap.text("method")?.filter(|name| name != "initdb") else {
        return Ok(None);
    };
    let section = bootstrap.sub(&name)?;
    let Some(command) = section.text("command")? else {
        bootstrap.unusable(
            "method",
            "a section of that name with a command",
            "using initdb",
        );
        return Ok(None);
    };
    let words = shell_words(&command).filter(|words| !words.is_empty());
    if words.is_none() {
        problems.push(format!("bootstrap.{name}.command: expected a command"));
    }
    let own = [
        "command",
        "no_params",
        "keep_existing_recovery_conf",
        "recovery_conf",
    ];
    let extra = extra(&section.map, |key| {
        own.contains(&key) || matches!(key, "scope" | "datadir")
    });
    Ok(Some(CustomMethod {
        no_params: section.flag("no_params"),
        keep_existing_recovery_conf: section.flag("keep_existing_recovery_conf"),
        recovery_conf: section
            .get("recovery_conf")
            .and_then(Value::as_object)
            .cloned(),
        command: words.unwrap_or_default(),
        name,
        extra,
        ..CustomMethod::default()
    }))
}

/// The sections of `postgresql` that are replica methods: every mapping whose name means nothing else.
pub(super) fn replica_methods(postgresql: &Section<'_>) -> BTreeMap<String, CustomMethod> {
    let mut methods = BTreeMap::new();
    let settings = keys::of("postgresql");
    for (name, value) in &postgresql.map {
        let Some(map) = value.as_object() else {
            continue;
        };
        if settings.contains(&name.as_str()) {
            continue;
        }
        match replica_method(name, map) {
            Some(method) => {
                methods.insert(name.clone(), method);
            }
            None => postgresql.unusable(name, "a command whose quotes are closed", "ignoring it"),
        }
    }
    methods
}

fn replica_method(name: &str, map: &Map<String, Value>) -> Option<CustomMethod> {
    let flag = |key: &str| map.get(key).is_some_and(truthy);
    let no_params = flag("no_params");
    let command = map.get("command").filter(|c| truthy(c)).map(python_text);
    let command = shell_words(&command.unwrap_or_else(|| name.to_owned()))?;
    // The two flags reach the script as well, unless it asked for nothing but its own keys
    // (`configuration.md` 7.3, NOTE).
    let extra = extra(map, |key| {
        matches!(key, "command" | "no_params")
            || (no_params && matches!(key, "no_leader" | "keep_data"))
    });
    Some(CustomMethod {
        name: name.to_owned(),
        command,
        no_params,
        no_leader: flag("no_leader"),
        keep_data: flag("keep_data"),
        extra,
        ..CustomMethod::default()
    })
}

fn extra(map: &Map<String, Value>, own: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    map.iter()
        .filter(|(key, _)| !own(key))
        .map(|(key, value)| (key.clone(), python_text(value)))
        .collect()
}

/// The order in which methods are tried; a name without a section is a command.
pub(super) fn order(
    postgresql: &Section<'_>,
    methods: &BTreeMap<String, CustomMethod>,
) -> Vec<ReplicaMethod> {
    let key = match postgresql.get("create_replica_methods") {
        Some(_) => "create_replica_methods",
        None => "create_replica_method",
    };
    let names = match postgresql.get(key) {
        Some(Value::Array(items)) => items.iter().map(python_text).collect(),
        Some(Value::String(name)) if !name.is_empty() => vec![name.clone()],
        Some(value) if truthy(value) => {
            postgresql.unusable(key, "a list of names", "using basebackup");
            Vec::new()
        }
        _ => Vec::new(),
    };
    let method = |name: &String| match name.as_str() {
        "basebackup" => Some(ReplicaMethod::Basebackup),
        _ => match methods.get(name) {
            Some(method) => Some(ReplicaMethod::Custom(method.clone())),
            None => replica_method(name, &Map::new()).map(ReplicaMethod::Custom),
        },
    };
    let order: Vec<ReplicaMethod> = names.iter().filter_map(method).collect();
    if order.is_empty() {
        vec![ReplicaMethod::Basebackup]
    } else {
        order
    }
}
