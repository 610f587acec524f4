//! `postgresql.parameters`: the settings that must be equal on all members come from the dynamic
//! document alone, and are checked (`configuration.md` 8.1).

use super::read::Section;
use crate::config::ConfRole;
use crate::config::merge;
use crate::config::value::{parse_bool, parse_int, python_text};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// What a controlled setting may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::config) enum Rule {
    /// Comes from somewhere else; never settable.
    Fixed,
    /// `hot_standby`, `replica` or `logical`.
    WalLevel,
    /// Must be on.
    On,
    /// A boolean.
    Boolean,
    /// A plain whole number, at least this.
    AtLeast(i64),
    /// Megabytes with unit, at least this many.
    Megabytes(i64),
}

/// Name, default, rule. The defaults are Patroni's (`configuration.md` 8.1), since a cluster may be half
/// Patroni's; `hot_standby` as `wal_level` is `replica` since PostgreSQL 9.6.
pub(in crate::config) const CONTROLLED: &[(&str, &str, Rule)] = &[
    ("listen_addresses", "", Rule::Fixed),
    ("port", "", Rule::Fixed),
    ("cluster_name", "", Rule::Fixed),
    ("wal_level", "replica", Rule::WalLevel),
    ("hot_standby", "on", Rule::On),
    ("max_connections", "100", Rule::AtLeast(25)),
    ("max_wal_senders", "10", Rule::AtLeast(3)),
    ("wal_keep_segments", "8", Rule::AtLeast(1)),
    ("wal_keep_size", "128MB", Rule::Megabytes(16)),
    ("max_prepared_transactions", "0", Rule::AtLeast(0)),
    ("max_locks_per_transaction", "64", Rule::AtLeast(32)),
    ("track_commit_timestamp", "off", Rule::Boolean),
    ("max_replication_slots", "10", Rule::AtLeast(4)),
    ("max_worker_processes", "8", Rule::AtLeast(2)),
    ("wal_log_hints", "on", Rule::Boolean),
];

/// The settings of recovery, which live in `recovery_conf` (`configuration.md` 8.4).
pub const RECOVERY: [&str; 18] = [
    "archive_cleanup_command",
    "pause_at_recovery_target",
    "primary_conninfo",
    "primary_slot_name",
    "promote_trigger_file",
    "recovery_end_command",
    "recovery_min_apply_delay",
    "recovery_target",
    "recovery_target_action",
    "recovery_target_inclusive",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_timeline",
    "recovery_target_xid",
    "restore_command",
    "standby_mode",
    "trigger_file",
];

/// Whether a setting is one that the agent controls.
fn is_controlled(name: &str) -> bool {
    CONTROLLED
        .iter()
        .any(|(controlled, _, _)| *controlled == name)
}

/// The effective parameters without `listen_addresses`, `port` and `cluster_name`, and the recovery
/// settings that were found among them.
pub(super) fn effective(
    postgresql: &Section<'_>,
    local: &Map<String, Value>,
    dynamic: &Map<String, Value>,
) -> (BTreeMap<String, Value>, Map<String, Value>) {
    let mut merged = BTreeMap::new();
    merge::parameters(&mut merged, dynamic);
    let controlled = controlled(&merged, postgresql);
    let mut local_only = BTreeMap::new();
    merge::parameters(&mut local_only, local);
    // Dropped silently, as Patroni does: many files carry them for the sake of bootstrap.
    local_only.retain(|name, _| !is_controlled(name));
    merged.retain(|name, _| !is_controlled(name));
    merged.extend(local_only);
    merged.extend(controlled);
    let mut recovery = Map::new();
    for name in RECOVERY {
        if let Some(value) = merged.remove(name) {
            recovery.insert(name.to_owned(), value);
        }
    }
    (merged, recovery)
}

/// The controlled settings, each checked; `wal_keep_segments` becomes `wal_keep_size`.
fn controlled(
    dynamic: &BTreeMap<String, Value>,
    postgresql: &Section<'_>,
) -> BTreeMap<String, Value> {
    let mut settings = BTreeMap::new();
    for (name, default, rule) in CONTROLLED {
        let checked = dynamic.get(*name).and_then(|value| {
            let checked = check(*rule, value);
            if checked.is_none() {
                let value = python_text(value);
                postgresql.notes.push(if *rule == Rule::Fixed {
                    format!("postgresql parameter {name}={value} is ignored: it follows from other settings")
                } else {
                    format!(
                        "postgresql parameter {name}={value} failed validation, defaulting to {default}"
                    )
                });
            }
            checked
        });
        let value = match (checked, *rule) {
            (Some(value), _) => Some(value),
            (None, Rule::Fixed) => None,
            // These two have no default among the parameters; see below.
            (None, _) if name.starts_with("wal_keep_") => None,
            (None, Rule::AtLeast(_)) => default.parse::<i64>().ok().map(Value::from),
            (None, _) => Some(Value::from(*default)),
        };
        settings.extend(value.map(|value| ((*name).to_owned(), value)));
    }
    let segments = settings
        .remove("wal_keep_segments")
        .and_then(|v| v.as_i64());
    // Segments of 16 MB (`configuration.md` 8.1).
    let size = segments.map_or_else(
        || String::from("128MB"),
        |n| format!("{}MB", n.saturating_mul(16)),
    );
    settings
        .entry(String::from("wal_keep_size"))
        .or_insert(Value::from(size));
    settings
}

fn check(rule: Rule, value: &Value) -> Option<Value> {
    match rule {
        Rule::Fixed => None,
        Rule::WalLevel => match python_text(value).to_lowercase().as_str() {
            "hot_standby" | "replica" => Some(Value::from("replica")),
            "logical" => Some(Value::from("logical")),
            _ => None,
        },
        Rule::On => (parse_bool(value) == Some(true)).then(|| value.clone()),
        Rule::Boolean => parse_bool(value).is_some().then(|| value.clone()),
        Rule::AtLeast(min) => parse_int(value, None)
            .filter(|n| *n >= min)
            .map(Value::from),
        Rule::Megabytes(min) => parse_int(value, Some("MB"))
            .filter(|n| *n >= min)
            .map(|_| value.clone()),
    }
}

/// `parameters_<role>`, without the controlled settings.
pub(super) fn by_role(postgresql: &Section<'_>) -> BTreeMap<ConfRole, BTreeMap<String, Value>> {
    let mut roles = BTreeMap::new();
    for (role, suffix) in super::postgres::ROLES {
        let key = format!("parameters_{suffix}");
        let Some(map) = postgresql.get(&key).and_then(Value::as_object) else {
            continue;
        };
        let mut parameters = BTreeMap::new();
        merge::parameters(&mut parameters, map);
        parameters.retain(|name, _| {
            let controlled = is_controlled(name);
            if controlled {
                postgresql.notes.push(format!(
                    "Role-based config attempted to override protected parameter '{name}', ignoring"
                ));
            }
            !controlled
        });
        roles.insert(role, parameters);
    }
    roles
}

/// `recovery_conf` without what the agent decides itself; recovery settings among the parameters
/// replace all of it (`configuration.md` 7.1).
pub(super) fn recovery_conf(
    postgresql: &Section<'_>,
    among_parameters: Map<String, Value>,
) -> Map<String, Value> {
    let mut settings = if among_parameters.is_empty() {
        postgresql
            .get("recovery_conf")
            .and_then(Value::as_object)
            .cloned()
            .unwrap_or_default()
    } else {
        among_parameters
    };
    let decided_here = |name: &str| {
        name.starts_with("recovery_target")
            || matches!(
                name,
                "primary_conninfo" | "primary_slot_name" | "standby_mode"
            )
    };
    settings.retain(|name, _| !decided_here(&name.to_lowercase()));
    settings
}
