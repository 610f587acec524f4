//! Which settings PostgreSQL should have: pure, from the configuration and the role
//! (`configuration.md` 7.5, 8; `ha-behaviour.md` 10.2, 23.2).

use super::conf::ConfState;
use super::guc::{is_recovery_setting, parse_int};
use crate::config::{AgentConfig, ConfRole, PostgresConfig};
use proto::config::{ClusterConfig, PermanentSlot};
use proto::core::job::Upstream;
use proto::ids::MemberName;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Settings by name, as text.
pub type Settings = BTreeMap<String, String>;

/// What only the dynamic configuration may set, with defaults; also given on the postmaster's command
/// line, so that `ALTER SYSTEM` cannot change it (`configuration.md` 8.1).
const CONTROLLED: [(&str, &str); 10] = [
    ("wal_level", "replica"),
    ("hot_standby", "on"),
    ("max_connections", "100"),
    ("max_wal_senders", "10"),
    ("max_prepared_transactions", "0"),
    ("max_locks_per_transaction", "64"),
    ("track_commit_timestamp", "off"),
    ("max_replication_slots", "10"),
    ("max_worker_processes", "8"),
    ("wal_log_hints", "on"),
];

/// `wal_keep_size` without any configuration.
const WAL_KEEP_DEFAULT: &str = "128MB";

/// The role that the role-specific sections are chosen by.
pub fn conf_role(state: &ConfState) -> ConfRole {
    match (state.as_primary, &state.upstream) {
        (true, _) => ConfRole::Primary,
        (false, Upstream::Remote { .. }) => ConfRole::StandbyLeader,
        (false, Upstream::None | Upstream::Member { .. }) => ConfRole::Replica,
    }
}

/// The text of a configured value; `None` for null, which means "not written".
pub fn text_of(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::Bool(true) => Some(String::from("on")),
        Value::Bool(false) => Some(String::from("off")),
        Value::Number(number) => Some(number.to_string()),
        Value::String(text) => Some(text.clone()),
        // PostgreSQL's own form of a list, as in `shared_preload_libraries`.
        Value::Array(list) => Some(
            list.iter()
                .filter_map(text_of)
                .collect::<Vec<_>>()
                .join(","),
        ),
        Value::Object(_) => Some(value.to_string()),
    }
}

/// How long servers wait for each other, where the operator has no wish of their own. PostgreSQL's
/// defaults are a minute: so long a lost standby would block commits, a standby would take a frozen
/// primary for alive, and five seconds would pass before it looked for one that had restarted
/// (`safety.md` 4.5).
const PATIENCE: [(&str, &str); 3] = [
    ("wal_sender_timeout", "5s"),
    ("wal_receiver_timeout", "5s"),
    ("wal_retrieve_retry_interval", "250ms"),
];

fn is_protected(name: &str) -> bool {
    CONTROLLED.iter().any(|(controlled, _)| *controlled == name)
        || matches!(
            name,
            "listen_addresses" | "port" | "cluster_name" | "wal_keep_size" | "wal_keep_segments"
        )
}

/// The settings for `postgresql.conf`, without those of recovery. Not judged yet: see
/// [`super::guc::check`].
pub fn server_settings(
    config: &AgentConfig,
    cluster: &ClusterConfig,
    state: &ConfState,
) -> Settings {
    let pg = &config.postgresql;
    let mut settings: Settings = CONTROLLED
        .iter()
        .map(|(name, default)| ((*name).to_owned(), (*default).to_owned()))
        .collect();
    let mut put = |name: &str, value: &Value| match text_of(value) {
        Some(text) => settings.insert(name.to_owned(), text),
        None => settings.remove(name),
    };
    for (name, value) in &pg.parameters {
        put(name, value);
    }
    for (name, value) in pg
        .parameters_by_role
        .get(&conf_role(state))
        .into_iter()
        .flatten()
    {
        if !is_protected(name) {
            put(name, value);
        }
    }
    settings.retain(|name, _| !is_recovery_setting(name));
    for (name, value) in PATIENCE {
        settings.entry(name.into()).or_insert_with(|| value.into());
    }
    wal_keep(&mut settings);
    if settings
        .get("wal_level")
        .is_some_and(|level| level.eq_ignore_ascii_case("hot_standby"))
    {
        settings.insert("wal_level".into(), "replica".into());
    }
    settings.insert("listen_addresses".into(), pg.listen_hosts.join(","));
    settings.insert("port".into(), pg.port.to_string());
    settings.insert("cluster_name".into(), config.scope.clone());
    if let Some(names) = &state.sync_names {
        // Written even when empty: an included file may say otherwise.
        settings.insert("synchronous_standby_names".into(), names.clone());
    }
    if decodes_on_standbys(config, cluster) {
        settings.insert("hot_standby_feedback".into(), "on".into());
    }
    if recovers_by_itself(state) {
        settings.insert("hot_standby".into(), "off".into());
    }
    settings.insert("hba_file".into(), text_path(&hba_file(pg)));
    settings.insert("ident_file".into(), text_path(&ident_file(pg)));
    settings
}

fn text_path(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// `wal_keep_segments` became `wal_keep_size` in PostgreSQL 13: segments of 16 MB.
fn wal_keep(settings: &mut Settings) {
    let segments = settings
        .remove("wal_keep_segments")
        .and_then(|text| parse_int(&text, None));
    // The default beside an explicit count of segments is nobody's wish.
    let explicit = settings
        .get("wal_keep_size")
        .is_some_and(|size| size != WAL_KEEP_DEFAULT);
    match segments {
        Some(segments) if !explicit => {
            let megabytes = segments.max(1).saturating_mul(16);
            settings.insert("wal_keep_size".into(), format!("{megabytes}MB"));
        }
        Some(_) | None => {
            settings
                .entry("wal_keep_size".into())
                .or_insert_with(|| WAL_KEEP_DEFAULT.into());
        }
    }
}

/// Permanent logical slots need their catalog rows kept on the primary (`ha-behaviour.md` 15.3).
fn decodes_on_standbys(config: &AgentConfig, cluster: &ClusterConfig) -> bool {
    let logical = |slot: &PermanentSlot| matches!(slot, PermanentSlot::Logical { .. });
    cluster.standby_cluster.is_none()
        && !config.tags.nostream()
        && cluster.slots.iter().any(|(_, slot)| logical(slot))
}

/// A custom bootstrap that promotes by itself must not stop at larger settings in the WAL, as hot
/// standby would (`ha-behaviour.md` 12.3).
fn recovers_by_itself(state: &ConfState) -> bool {
    let promotes = |recovery: &serde_json::Map<String, Value>| {
        recovery
            .get("recovery_target_action")
            .and_then(Value::as_str)
            == Some("promote")
    };
    state.keep_existing_recovery || state.custom_recovery.as_ref().is_some_and(promotes)
}

/// Where `pg_hba.conf` is.
pub fn hba_file(pg: &PostgresConfig) -> PathBuf {
    configured_file(pg, "hba_file").unwrap_or_else(|| pg.config_dir.join("pg_hba.conf"))
}

/// Where `pg_ident.conf` is.
pub fn ident_file(pg: &PostgresConfig) -> PathBuf {
    configured_file(pg, "ident_file").unwrap_or_else(|| pg.config_dir.join("pg_ident.conf"))
}

/// A file that the operator put elsewhere; relative names start at `config_dir`.
fn configured_file(pg: &PostgresConfig, name: &str) -> Option<PathBuf> {
    let value = pg
        .parameters
        .get(name)?
        .as_str()
        .filter(|path| !path.is_empty())?;
    Some(pg.config_dir.join(value))
}

/// The settings that the operator wants for recovery: those among `parameters` replace the section
/// (`configuration.md` 7.1, `recovery_conf`).
fn operators_recovery(pg: &PostgresConfig) -> Settings {
    let found: Settings = pg
        .parameters
        .iter()
        .filter(|(name, _)| is_recovery_setting(name))
        .filter_map(|(name, value)| Some((name.clone(), text_of(value)?)))
        .collect();
    if !found.is_empty() {
        return found;
    }
    let lower = pg
        .recovery_conf
        .iter()
        .map(|(name, value)| (name.to_ascii_lowercase(), value));
    lower
        .filter_map(|(name, value)| Some((name, text_of(value)?)))
        .collect()
}

/// The recovery block of `postgresql.conf`. `primary_conninfo` is handed in, since building it writes
/// the passfile.
pub fn recovery_settings(
    config: &AgentConfig,
    cluster: &ClusterConfig,
    state: &ConfState,
    primary_conninfo: Option<String>,
    version: u32,
) -> Settings {
    if let Some(custom) = &state.custom_recovery {
        return custom_recovery(custom, version);
    }
    let mut recovery = operators_recovery(&config.postgresql);
    rename_trigger_file(&mut recovery, version);
    recovery.retain(|name, _| {
        !name.starts_with("recovery_target")
            && !matches!(
                name.as_str(),
                "primary_conninfo"
                    | "primary_slot_name"
                    | "standby_mode"
                    | "pause_at_recovery_target"
            )
    });
    if let Some(standby_cluster) = &cluster.standby_cluster {
        let remote = matches!(state.upstream, Upstream::Remote { .. });
        let delay = standby_cluster
            .recovery_min_apply_delay
            .as_ref()
            .filter(|_| remote);
        for (name, value) in [
            ("restore_command", standby_cluster.restore_command.as_ref()),
            (
                "archive_cleanup_command",
                standby_cluster.archive_cleanup_command.as_ref(),
            ),
            ("recovery_min_apply_delay", delay),
        ] {
            recovery.extend(value.map(|value| (name.to_owned(), value.clone())));
        }
    }
    if !state.standby {
        // Only for `pg_rewind`, which reads it from here; a primary ignores it.
        recovery.retain(|name, _| name == "restore_command");
    }
    // On a primary too: lines that vanish with a promotion would count as changes that need a restart.
    for name in ["", "_name", "_time", "_xid", "_lsn"] {
        recovery.insert(format!("recovery_target{name}"), String::new());
    }
    recovery.insert("recovery_target_timeline".into(), "latest".into());
    if !state.standby {
        return recovery;
    }
    // Explicitly empty, since a promise not to stream must hold whatever an included file says (S19).
    let slot = primary_slot_name(config, cluster, &state.upstream).filter(|_| !state.cut_off);
    let conninfo = primary_conninfo.filter(|_| !state.cut_off);
    recovery.insert("primary_conninfo".into(), conninfo.unwrap_or_default());
    recovery.insert("primary_slot_name".into(), slot.unwrap_or_default());
    if state.cut_off {
        recovery.insert("restore_command".into(), String::new());
    }
    recovery
}

fn primary_slot_name(
    config: &AgentConfig,
    cluster: &ClusterConfig,
    upstream: &Upstream,
) -> Option<String> {
    match upstream {
        Upstream::None => None,
        Upstream::Member { .. } => cluster
            .use_slots
            .then(|| MemberName::new(config.name.as_str()).slot_name()),
        Upstream::Remote { slot, .. } => slot.clone().filter(|_| cluster.use_slots),
    }
}

/// A targeted recovery, as a custom bootstrap asks for it.
fn custom_recovery(custom: &serde_json::Map<String, Value>, version: u32) -> Settings {
    let mut recovery: Settings = custom
        .iter()
        .filter_map(|(name, value)| Some((name.to_ascii_lowercase(), text_of(value)?)))
        .collect();
    rename_trigger_file(&mut recovery, version);
    recovery.remove("standby_mode");
    if let Some(pause) = recovery.remove("pause_at_recovery_target") {
        let action = if super::guc::parse_bool(&pause) == Some(true) {
            "pause"
        } else {
            "promote"
        };
        recovery
            .entry("recovery_target_action".into())
            .or_insert_with(|| action.into());
    }
    recovery
}

/// `trigger_file` became `promote_trigger_file` in 12, which is gone in 16.
fn rename_trigger_file(recovery: &mut Settings, version: u32) {
    let old = recovery.remove("trigger_file");
    let current = recovery.remove("promote_trigger_file").or(old);
    if version < 16 {
        recovery.extend(current.map(|file| ("promote_trigger_file".to_owned(), file)));
    }
}

/// Whether a custom recovery asks for standby mode, which decides on the signal file.
pub fn wants_standby_mode(custom: &serde_json::Map<String, Value>) -> bool {
    custom
        .get("standby_mode")
        .and_then(text_of)
        .and_then(|text| super::guc::parse_bool(&text))
        .unwrap_or(false)
}

/// The part of the settings that goes on the postmaster's command line, in order.
pub fn enforced(settings: &Settings) -> Vec<(&str, &str)> {
    let first = ["listen_addresses", "port", "cluster_name"];
    first
        .into_iter()
        .chain(CONTROLLED.iter().map(|(name, _)| *name))
        .filter_map(|name| settings.get_key_value(name))
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect()
}

/// Raises what a standby must not have lower than its primary had when the WAL was written
/// (`ha-behaviour.md` 23.4). Returns what was raised: configured and raised value.
pub fn raise(
    settings: &mut Settings,
    control: &BTreeMap<&'static str, i64>,
) -> BTreeMap<String, (String, String)> {
    let mut raised = BTreeMap::new();
    for (name, needed) in control {
        let Some(value) = settings.get_mut(*name) else {
            continue;
        };
        if parse_int(value, None).is_some_and(|configured| configured >= *needed) {
            continue;
        }
        let configured = std::mem::replace(value, needed.to_string());
        raised.insert((*name).to_owned(), (configured, needed.to_string()));
    }
    raised
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn settings(pairs: &[(&str, &str)]) -> Settings {
        pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn segments_become_a_size_unless_a_size_is_wished_for() {
        for (given, size) in [
            (settings(&[]), "128MB"),
            (settings(&[("wal_keep_segments", "100")]), "1600MB"),
            (
                settings(&[("wal_keep_segments", "8"), ("wal_keep_size", "128MB")]),
                "128MB",
            ),
            (
                settings(&[("wal_keep_segments", "100"), ("wal_keep_size", "1GB")]),
                "1GB",
            ),
        ] {
            let mut result = given.clone();
            wal_keep(&mut result);
            assert_eq!(result, settings(&[("wal_keep_size", size)]), "{given:?}");
        }
    }

    #[test]
    fn a_standby_gets_the_larger_value() {
        let mut server = settings(&[("max_connections", "50"), ("max_wal_senders", "10")]);
        let control = BTreeMap::from([("max_connections", 100), ("max_wal_senders", 5)]);
        let raised = raise(&mut server, &control);
        assert_eq!(
            server,
            settings(&[("max_connections", "100"), ("max_wal_senders", "10")])
        );
        let both = ("50".to_owned(), "100".to_owned());
        assert_eq!(
            raised,
            BTreeMap::from([("max_connections".to_owned(), both)])
        );
    }

    #[test]
    fn a_targeted_recovery_is_written_as_asked() {
        let custom = json!({
            "recovery_target_time": "2026-01-01", "pause_at_recovery_target": false,
            "standby_mode": "off", "trigger_file": "/t", "Restore_Command": "cp %f %p",
        });
        let custom = custom.as_object().expect("object");
        assert!(!wants_standby_mode(custom));
        let expected = |trigger: bool| {
            let mut all = settings(&[
                ("recovery_target_action", "promote"),
                ("recovery_target_time", "2026-01-01"),
                ("restore_command", "cp %f %p"),
            ]);
            all.extend(trigger.then(|| ("promote_trigger_file".to_owned(), "/t".to_owned())));
            all
        };
        assert_eq!(custom_recovery(custom, 15), expected(true));
        assert_eq!(custom_recovery(custom, 16), expected(false));
    }

    #[test]
    fn values_are_written_as_postgres_writes_them() {
        for (value, text) in [
            (json!(true), Some("on")),
            (json!(1.5), Some("1.5")),
            (json!(["a", "b"]), Some("a,b")),
            (json!(null), None),
        ] {
            assert_eq!(text_of(&value).as_deref(), text, "{value}");
        }
    }

    #[test]
    fn the_command_line_starts_with_the_addresses() {
        let server = settings(&[("port", "1"), ("work_mem", "1MB"), ("wal_level", "replica")]);
        assert_eq!(enforced(&server), [("port", "1"), ("wal_level", "replica")]);
    }
}
