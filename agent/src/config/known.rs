//! The keys that mean something, to tell people about those that do not. Patroni ignores unknown keys
//! silently; a typo then looks like a setting that does not work.

use super::source::Origins;
use serde_json::{Map, Value};

const TOP: &[&str] = &[
    "name",
    "scope",
    "namespace",
    "thread_pool_size",
    "thread_stack_size",
    "log",
    "restapi",
    "ctl",
    "bootstrap",
    "postgresql",
    "watchdog",
    "tags",
    "citus",
    "etcd3",
    "etcd",
    "consul",
    "zookeeper",
    "exhibitor",
    "kubernetes",
    "raft",
    "garden",
    // Dynamic ones, ignored here; a sentence of their own says so.
    "ttl",
    "loop_wait",
    "retry_timeout",
    "standby_cluster",
    // The control tool's old section.
    "dcs_api",
];

/// Our own section of the local file.
const GARDEN: &[&str] = &["pid_namespace"];

/// Dynamic keys that Patroni ignores in a file (`configuration.md` 2.1).
const DYNAMIC_ONLY: &[&str] = &[
    "ttl",
    "loop_wait",
    "retry_timeout",
    "standby_cluster",
    "maximum_lag_on_failover",
    "maximum_lag_on_syncnode",
    "synchronous_mode",
    "synchronous_mode_strict",
    "synchronous_node_count",
    "failsafe_mode",
    "primary_start_timeout",
    "master_start_timeout",
    "primary_stop_timeout",
    "master_stop_timeout",
    "primary_race_backoff",
    "check_timeline",
    "max_timelines_history",
    "pause",
    "member_slots_ttl",
    "slots",
    "permanent_slots",
    "permanent_replication_slots",
    "ignore_slots",
];

const LOG: &[&str] = &[
    "type",
    "level",
    "traceback_level",
    "format",
    "dateformat",
    "static_fields",
    "max_queue_size",
    "dir",
    "mode",
    "file_size",
    "file_num",
    "loggers",
    "deduplicate_heartbeat_logs",
];

const RESTAPI: &[&str] = &[
    "listen",
    "connect_address",
    "authentication",
    "certfile",
    "keyfile",
    "keyfile_password",
    "cafile",
    "ciphers",
    "verify_client",
    "allowlist",
    "allowlist_include_members",
    "http_extra_headers",
    "https_extra_headers",
    "request_queue_size",
    "server_tokens",
    "thread_pool_size",
];

const CTL: &[&str] = &[
    "authentication",
    "insecure",
    "cacert",
    "certfile",
    "keyfile",
    "keyfile_password",
];

const ETCD: &[&str] = &[
    "host",
    "hosts",
    "port",
    "url",
    "proxy",
    "use_proxies",
    "srv",
    "discovery_srv",
    "srv_domain",
    "srv_suffix",
    "protocol",
    "username",
    "password",
    "cacert",
    "cert",
    "key",
];

const WATCHDOG: &[&str] = &["mode", "device", "safety_margin", "driver"];

/// Keys of `postgresql`; any other key that holds a mapping may be a replica method.
pub(super) const POSTGRESQL: &[&str] = &[
    "listen",
    "connect_address",
    "proxy_address",
    "data_dir",
    "config_dir",
    "bin_dir",
    "bin_name",
    "pgpass",
    "authentication",
    "parameters",
    "parameters_primary",
    "parameters_replica",
    "parameters_standby_leader",
    "pg_hba",
    "pg_hba_primary",
    "pg_hba_replica",
    "pg_hba_standby_leader",
    "pg_ident",
    "pg_ident_primary",
    "pg_ident_replica",
    "pg_ident_standby_leader",
    "recovery_conf",
    "custom_conf",
    "use_pg_rewind",
    "rewind",
    "remove_data_directory_on_rewind_failure",
    "remove_data_directory_on_diverged_timelines",
    "create_replica_methods",
    "create_replica_method",
    "basebackup",
    "callbacks",
    "pre_promote",
    "before_stop",
    "pg_ctl_timeout",
    "use_slots",
    "use_unix_socket",
    "use_unix_socket_repl",
    "database",
    "config_base_name",
    "krbsrvname",
    // Old forms.
    "name",
    "replication",
    "superuser",
    "pg_rewind",
];

/// A sentence for each key that means nothing.
pub(super) fn unknown_keys(doc: &Map<String, Value>, origins: &Origins) -> Vec<String> {
    let mut notes = Vec::new();
    for key in doc.keys() {
        if DYNAMIC_ONLY.contains(&key.as_str()) {
            notes.push(format!(
                "{}: {key} is ignored here: it belongs to the dynamic configuration (gardenctl \
                 edit-config), which bootstrap.dcs starts",
                origins.of(key)
            ));
        } else if !TOP.contains(&key.as_str()) {
            notes.push(unknown(key, key, TOP, origins));
        }
    }
    for (section, known) in [
        ("log", LOG),
        ("restapi", RESTAPI),
        ("ctl", CTL),
        ("etcd3", ETCD),
        ("watchdog", WATCHDOG),
        ("garden", GARDEN),
    ] {
        let Some(map) = doc.get(section).and_then(Value::as_object) else {
            continue;
        };
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            notes.push(unknown(&format!("{section}.{key}"), key, known, origins));
        }
    }
    if let Some(map) = doc.get("postgresql").and_then(Value::as_object) {
        for (key, value) in map {
            if !POSTGRESQL.contains(&key.as_str()) && !value.is_object() {
                notes.push(unknown(
                    &format!("postgresql.{key}"),
                    key,
                    POSTGRESQL,
                    origins,
                ));
            }
        }
        if map.contains_key("use_slots") {
            notes.push(format!(
                "{}: postgresql.use_slots is ignored here: it belongs to the dynamic configuration",
                origins.of("postgresql.use_slots")
            ));
        }
    }
    notes
}

fn unknown(path: &str, key: &str, known: &[&str], origins: &Origins) -> String {
    let hint = nearest(key, known)
        .map(|k| format!("; did you mean {k}?"))
        .unwrap_or_default();
    format!("{}: unknown key {path} is ignored{hint}", origins.of(path))
}

/// The known key that one could have meant: at most two letters away, and at most a third of them.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let limit = (key.chars().count() / 3).min(2);
    known
        .iter()
        .map(|candidate| (distance(key, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((j, r), pair) in right.iter().enumerate().zip(row.windows(2)) {
            let (diagonal, above) = (pair.first().copied(), pair.last().copied());
            let replace = diagonal.unwrap_or(0) + usize::from(l != *r);
            let insert = next.get(j).copied().unwrap_or(0) + 1;
            next.push(replace.min(insert).min(above.unwrap_or(0) + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_has_a_suggestion_and_a_stranger_has_none() {
        assert_eq!(nearest("postgresq", TOP), Some("postgresql"));
        assert_eq!(nearest("safety_magrin", WATCHDOG), Some("safety_margin"));
        assert_eq!(nearest("monitoring", TOP), None);
        assert_eq!(nearest("x", TOP), None);
    }

    #[test]
    fn distance_counts_edits() {
        for (left, right, expected) in [
            ("", "", 0),
            ("a", "", 1),
            ("kitten", "sitting", 3),
            ("scope", "scpoe", 2),
        ] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
        }
    }
}
