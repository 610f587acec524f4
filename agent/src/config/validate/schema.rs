//! What Patroni's `--validate-config` accepts, as tables (`configuration.md` 13.4). The order of the
//! tables is the order of the messages.

use super::checks;
use super::world::World;
use serde_json::{Map, Value};

/// A check of one value beyond its type; the text follows `didn't pass validation: `.
pub(super) type Check = fn(&Value, &World<'_>) -> Result<(), String>;

/// What a value must be.
pub(super) enum Shape {
    /// Text.
    Text,
    /// `true` or `false`, not a text that means it.
    Boolean,
    /// A mapping of anything.
    Mapping,
    /// A mapping of known keys, and others.
    Section(&'static [Field]),
    /// A list of texts that is not empty.
    Texts,
    /// A list of texts or mappings that is not empty.
    Options,
    /// A whole number, not a text.
    Integer { min: i64, max: i64 },
    /// A whole number, or a text with an optional unit.
    Amount {
        min: i64,
        max: i64,
        unit: Option<&'static str>,
    },
    /// One of some words.
    OneOf(&'static [&'static str]),
    /// One of some words, in any case.
    OneOfAnyCase(&'static [&'static str]),
    /// A text with a check of its own.
    TextChecked(Check),
    /// Any value with a check of its own.
    Checked(Check),
    /// A text, or a list of texts, each with a check.
    TextOrList(Check),
}

/// A key and what it must be.
pub(super) struct Field {
    pub(super) key: &'static str,
    pub(super) required: bool,
    pub(super) shape: Shape,
}

/// An optional key.
const fn may(key: &'static str, shape: Shape) -> Field {
    Field {
        key,
        required: false,
        shape,
    }
}

/// A required key.
const fn must(key: &'static str, shape: Shape) -> Field {
    Field {
        key,
        required: true,
        shape,
    }
}

const ANY: Shape = Shape::Integer {
    min: i64::MIN,
    max: i64::MAX,
};

const fn at_least(min: i64) -> Shape {
    Shape::Integer { min, max: i64::MAX }
}

const fn amount(min: i64) -> Shape {
    Shape::Amount {
        min,
        max: i64::MAX,
        unit: None,
    }
}

const fn setting(min: i64, max: i64) -> Shape {
    Shape::Amount {
        min,
        max,
        unit: None,
    }
}

/// Keys before the sections that depend on each other.
pub(super) const BEFORE: &[Field] = &[
    must("name", Shape::Text),
    must("scope", Shape::Text),
    may("thread_pool_size", at_least(5)),
    // Patroni tests divisibility by 65535 here and so refuses every sane value; ours is the check
    // that was meant.
    may("thread_stack_size", at_least(65_536)),
    may("log", Shape::Section(LOG)),
    may("ctl", Shape::Section(CTL)),
    must("restapi", Shape::Section(RESTAPI)),
    may("bootstrap", Shape::Section(BOOTSTRAP)),
];

const LOG: &[Field] = &[
    may("type", Shape::OneOf(&["plain", "json"])),
    may(
        "level",
        Shape::OneOf(&[
            "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL",
        ]),
    ),
    may("traceback_level", Shape::OneOfAnyCase(&["debug", "error"])),
    may("format", Shape::Checked(checks::log_format)),
    may("dateformat", Shape::Text),
    may("static_fields", Shape::Mapping),
    may("max_queue_size", ANY),
    may("dir", Shape::Text),
    may("file_num", ANY),
    may("file_size", ANY),
    may("mode", Shape::Integer { min: 0, max: 511 }),
    may("loggers", Shape::Mapping),
    may("deduplicate_heartbeat_logs", Shape::Boolean),
];

const CTL: &[Field] = &[
    may("insecure", Shape::Boolean),
    may("cacert", Shape::Text),
    may("certfile", Shape::Text),
    may("keyfile", Shape::Text),
    may("keyfile_password", Shape::Text),
];

const RESTAPI: &[Field] = &[
    may("thread_pool_size", at_least(5)),
    must("listen", Shape::TextChecked(checks::listen)),
    must(
        "connect_address",
        Shape::TextChecked(checks::connect_address),
    ),
    may("authentication", Shape::Section(BASIC)),
    may("certfile", Shape::Text),
    may("keyfile", Shape::Text),
    may("keyfile_password", Shape::Text),
    may("cafile", Shape::Text),
    may("ciphers", Shape::Text),
    may(
        "verify_client",
        Shape::OneOf(&["none", "optional", "required"]),
    ),
    may("allowlist", Shape::Texts),
    may("allowlist_include_members", Shape::Boolean),
    may("http_extra_headers", Shape::Mapping),
    may("https_extra_headers", Shape::Mapping),
    may("request_queue_size", Shape::Integer { min: 0, max: 4096 }),
    may(
        "server_tokens",
        Shape::OneOfAnyCase(&["minimal", "productonly", "original"]),
    ),
];

const BASIC: &[Field] = &[must("username", Shape::Text), must("password", Shape::Text)];

const BOOTSTRAP: &[Field] = &[
    must("dcs", Shape::Section(DCS)),
    may("initdb", Shape::Options),
    may("method", Shape::Text),
];

const DCS: &[Field] = &[
    may("ttl", amount(20)),
    may("loop_wait", amount(1)),
    may("retry_timeout", amount(3)),
    may("maximum_lag_on_failover", amount(0)),
    may("maximum_lag_on_syncnode", amount(-1)),
    may(
        "member_slots_ttl",
        Shape::Amount {
            min: 0,
            max: i64::MAX,
            unit: Some("s"),
        },
    ),
    may("postgresql", Shape::Section(DCS_POSTGRESQL)),
    may("primary_start_timeout", amount(0)),
    may("primary_stop_timeout", amount(0)),
    may("standby_cluster", Shape::Section(STANDBY)),
    may("synchronous_mode", Shape::Checked(checks::synchronous_mode)),
    may("synchronous_mode_strict", Shape::Boolean),
    may("synchronous_node_count", amount(1)),
];

const DCS_POSTGRESQL: &[Field] = &[
    may("parameters", Shape::Section(PARAMETERS)),
    may("use_pg_rewind", Shape::Boolean),
    may("pg_hba", Shape::Texts),
    may("pg_ident", Shape::Texts),
    may("pg_ctl_timeout", amount(0)),
    may("use_slots", Shape::Boolean),
];

/// PostgreSQL's own ranges, looser than those that are enforced at run time.
const PARAMETERS: &[Field] = &[
    may("max_connections", setting(1, 262_143)),
    may("max_locks_per_transaction", setting(10, 2_147_483_647)),
    may("max_prepared_transactions", setting(0, 262_143)),
    may("max_replication_slots", setting(0, 262_143)),
    may("max_wal_senders", setting(0, 262_143)),
    may("max_worker_processes", setting(0, 262_143)),
];

/// Beside the rule that one of the first three must be there, which is checked on its own.
const STANDBY: &[Field] = &[
    may("host", Shape::Text),
    may(
        "port",
        Shape::Integer {
            min: i64::MIN,
            max: 65_535,
        },
    ),
    may("restore_command", Shape::Text),
    may("primary_slot_name", Shape::Text),
    may("create_replica_methods", Shape::Texts),
    may("archive_cleanup_command", Shape::Text),
    may("recovery_min_apply_delay", Shape::Text),
];

/// `etcd3`.
pub(super) const ETCD3: &[Field] = &[
    may("host", Shape::TextChecked(checks::reachable)),
    may("hosts", Shape::TextOrList(checks::reachable)),
    may("srv", Shape::Text),
    may("srv_suffix", Shape::Text),
    may("url", Shape::Text),
    may("proxy", Shape::Text),
    may("username", Shape::Text),
    may("password", Shape::Text),
    may("protocol", Shape::Text),
    may("cacert", Shape::Text),
    may("cert", Shape::Text),
    may("key", Shape::Text),
];

/// `postgresql`, without the look for the programs.
pub(super) const POSTGRESQL: &[Field] = &[
    must("listen", Shape::TextChecked(checks::postgres_listen)),
    must(
        "connect_address",
        Shape::TextChecked(checks::connect_address),
    ),
    may("proxy_address", Shape::TextChecked(checks::connect_address)),
    must("authentication", Shape::Section(AUTHENTICATION)),
    must("data_dir", Shape::TextChecked(checks::data_dir)),
    may("bin_name", Shape::Section(BIN_NAME)),
];

const AUTHENTICATION: &[Field] = &[
    must("replication", Shape::Section(USER)),
    must("superuser", Shape::Section(USER)),
    may("rewind", Shape::Section(USER)),
];

const USER: &[Field] = &[must("username", Shape::Text), may("password", Shape::Text)];

const BIN_NAME: &[Field] = &[
    may("pg_ctl", Shape::TextChecked(checks::program)),
    may("initdb", Shape::TextChecked(checks::program)),
    may("pg_controldata", Shape::TextChecked(checks::program)),
    may("pg_basebackup", Shape::TextChecked(checks::program)),
    may("postgres", Shape::TextChecked(checks::program)),
    may("pg_isready", Shape::TextChecked(checks::program)),
    may("pg_rewind", Shape::TextChecked(checks::program)),
];

/// `postgresql`, after the look for the programs.
pub(super) const POSTGRESQL_AFTER: &[Field] = &[
    may("parameters", Shape::Section(LOCAL_PARAMETERS)),
    may("pg_hba", Shape::Texts),
    may("pg_ident", Shape::Texts),
    may("pg_ctl_timeout", amount(0)),
    may("use_pg_rewind", Shape::Boolean),
];

const LOCAL_PARAMETERS: &[Field] = &[may("unix_socket_directories", Shape::Text)];

/// `watchdog`.
pub(super) const WATCHDOG: &[Field] = &[
    may("mode", Shape::Checked(checks::watchdog_mode)),
    may("device", Shape::Text),
    may("safety_margin", at_least(-1)),
];

/// `tags`: keys, and pairs of a boolean tag and its priority tag, which exclude each other.
pub(super) const TAGS: &[&[Field]] = &[
    &[
        may("nofailover", Shape::Boolean),
        may("failover_priority", at_least(0)),
    ],
    &[may("clonefrom", Shape::Boolean)],
    &[may("noloadbalance", Shape::Boolean)],
    &[may("replicatefrom", Shape::Text)],
    &[
        may("nosync", Shape::Boolean),
        may("sync_priority", at_least(0)),
    ],
    &[may("nostream", Shape::Boolean)],
];

/// The kinds of stores that Patroni knows.
pub(crate) const STORES: [&str; 7] = [
    "consul",
    "etcd",
    "etcd3",
    "exhibitor",
    "kubernetes",
    "raft",
    "zookeeper",
];

/// The keys of a mapping of which at least one must be there.
pub(super) fn none_of(map: &Map<String, Value>, keys: &[&str]) -> bool {
    !keys.iter().any(|key| map.contains_key(*key))
}
