use super::*;
use serde_json::json;

fn layer_of(variables: &[(&str, &str)]) -> (Value, Vec<String>) {
    let captured = variables
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let (doc, notes) = layer(&captured);
    (Value::Object(doc), notes)
}

/// `configuration.md` 4.2 to 4.4.
#[test]
fn variables_set_their_keys() {
    for (name, text, expected) in [
        ("PATRONI_NAME", "a", json!({"name": "a"})),
        (
            "PATRONI_THREAD_POOL_SIZE",
            "6",
            json!({"thread_pool_size": "6"}),
        ),
        (
            "PATRONI_LOG_FORMAT",
            "%(message)s",
            json!({"log": {"format": "%(message)s"}}),
        ),
        (
            "PATRONI_LOG_FORMAT",
            "message, levelname",
            json!({"log": {"format": ["message", "levelname"]}}),
        ),
        (
            "PATRONI_LOGLEVEL",
            "DEBUG",
            json!({"log": {"level": "DEBUG"}}),
        ),
        (
            "PATRONI_LOG_DATEFMT",
            "%H",
            json!({"log": {"dateformat": "%H"}}),
        ),
        (
            "PATRONI_LOG_LOGGERS",
            "a: DEBUG, b.c: INFO",
            json!({"log": {"loggers": {"a": "DEBUG", "b.c": "INFO"}}}),
        ),
        (
            "PATRONI_LOG_DEDUPLICATE_HEARTBEAT_LOGS",
            "on",
            json!({"log": {"deduplicate_heartbeat_logs": true}}),
        ),
        (
            "PATRONI_RESTAPI_USERNAME",
            "u",
            json!({"restapi": {"authentication": {"username": "u"}}}),
        ),
        (
            "PATRONI_CTL_INSECURE",
            "on",
            json!({"ctl": {"insecure": true}}),
        ),
        (
            "PATRONI_CTL_CACERT",
            "/ca",
            json!({"ctl": {"cacert": "/ca"}}),
        ),
        (
            "PATRONI_POSTGRESQL_DATA_DIR",
            "/d",
            json!({"postgresql": {"data_dir": "/d"}}),
        ),
        (
            "PATRONI_POSTGRESQL_BIN_PG_ISREADY",
            "x",
            json!({"postgresql": {"bin_name": {"pg_isready": "x"}}}),
        ),
        ("PATRONI_POSTGRESQL_BIN_IS_READY", "x", json!({})),
        (
            "PATRONI_POSTGRESQL_DATABASE",
            "d",
            json!({"postgresql": {"database": "d"}}),
        ),
        (
            "PATRONI_SUPERUSER_SSLMODE",
            "require",
            json!({"postgresql": {"authentication": {"superuser": {"sslmode": "require"}}}}),
        ),
        (
            "PATRONI_REWIND_CHANNEL_BINDING",
            "x",
            json!({"postgresql": {"authentication": {"rewind": {"channel_binding": "x"}}}}),
        ),
        (
            "PATRONI_ETCD3_HOSTS",
            "'a:1','b:2'",
            json!({"etcd3": {"hosts": ["a:1", "b:2"]}}),
        ),
        (
            "PATRONI_ETCD3_HOSTS",
            "a:1,b:1",
            json!({"etcd3": {"hosts": ["a:1", "b:1"]}}),
        ),
        (
            "PATRONI_ETCD3_HOSTS",
            "10:20",
            json!({"etcd3": {"hosts": [620]}}),
        ),
        (
            "PATRONI_ETCD3_PORT",
            "2379",
            json!({"etcd3": {"port": 2379}}),
        ),
        (
            "PATRONI_ETCD3_USE_PROXIES",
            "yes",
            json!({"etcd3": {"use_proxies": true}}),
        ),
        ("PATRONI_CONSUL_HOST", "h", json!({"consul": {"host": "h"}})),
        (
            "PATRONI_KUBERNETES_LABELS",
            "{a: b}",
            json!({"kubernetes": {"labels": {"a": "b"}}}),
        ),
        ("PATRONI_CITUS_GROUP", "1", json!({"citus": {"group": 1}})),
        ("PATRONI_RESTAPI_THREAD_POOL_SIZE", "9", json!({})),
        ("PATRONI_admin_PASSWORD", "x", json!({})),
        ("PATRONI_TAGS_NOFAILOVER", "on", json!({})),
        ("PATRONI_NAME", "", json!({})),
        ("patroni_name", "x", json!({})),
    ] {
        assert_eq!(
            layer_of(&[(name, text)]),
            (expected, Vec::new()),
            "{name}={text}"
        );
    }
}

#[test]
fn new_names_win_over_old_ones() {
    let (doc, _) = layer_of(&[("PATRONI_LOG_LEVEL", "INFO"), ("PATRONI_LOGLEVEL", "DEBUG")]);
    assert_eq!(doc, json!({"log": {"level": "INFO"}}));
}

#[test]
fn a_value_that_does_not_parse_is_left_out_and_told_without_the_text() {
    let (doc, notes) = layer_of(&[
        ("PATRONI_ETCD3_PORT", "hush"),
        ("PATRONI_CTL_INSECURE", "hush"),
        ("PATRONI_LOG_LOGGERS", "[hush"),
    ]);
    assert_eq!(doc, json!({}));
    assert_eq!(notes.len(), 3, "{notes:?}");
    assert!(!notes.concat().contains("hush"));
}

#[test]
fn what_the_configuration_reads_is_hidden_from_children() {
    for (name, hidden) in [
        ("PATRONI_CONFIGURATION", true),
        ("PATRONI_SUPERUSER_PASSWORD", true),
        ("PATRONI_ETCD3_PASSWORD", true),
        ("PATRONI_RESTAPI_PASSWORD", true),
        ("PATRONI_SCRIPT_SETTING", false),
        ("PATH", false),
        ("PGPASSWORD", false),
    ] {
        assert_eq!(is_setting(name), hidden, "{name}");
    }
    assert!(child_env().iter().any(|(name, _)| name == "PATH"));
}
