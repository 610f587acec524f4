use crate::config::{ConfRole, Loader, LocalConfig, ReplicaMethod, WatchdogMode};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

const FILE: &str = "
scope: batman
name: postgres-0
restapi:
  listen: 127.0.0.1:8008
  connect_address: 127.0.0.1:8008
etcd3:
  hosts: 127.0.0.1:2379,b
postgresql:
  listen: 127.0.0.1:5433
  connect_address: 127.0.0.1:5433
  data_dir: /data/postgres-0
  pgpass: /tmp/pgpass_postgres-0
  authentication:
    replication: {username: replicator, password: rep-pass}
    superuser: {username: postgres, password: zalando, sslmode: verify-ca, options: -c x=1}
";

/// The file above with a text added (later keys win), and environment variables.
fn local(more: &str, env: &[(&str, &str)]) -> LocalConfig {
    let mut doc = crate::config::yaml::from_str(FILE).expect("valid");
    let extra = crate::config::yaml::from_str(more).expect("valid");
    if let (Value::Object(doc), Value::Object(extra)) = (&mut doc, &extra) {
        crate::config::merge::patch(doc, extra);
    }
    let dir = std::env::temp_dir().join(format!(
        "garden-config-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    std::fs::create_dir_all(&dir).expect("directory");
    let path = dir.join("agent.yml");
    std::fs::write(&path, doc.to_string()).expect("file");
    let env: BTreeMap<String, String> = env
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    let local = Loader::new(Some(&path), env)
        .and_then(|l| l.load())
        .expect("loads");
    std::fs::remove_dir_all(&dir).expect("removed");
    local
}

fn map(value: Value) -> Map<String, Value> {
    value.as_object().cloned().unwrap_or_default()
}

fn warnings(local: &LocalConfig, dynamic: Value) -> Vec<String> {
    local.effective(&map(dynamic)).expect("effective").1
}

#[test]
fn a_plain_file_has_all_defaults() {
    let (config, warnings) = local("", &[]).effective(&Map::new()).expect("effective");
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!(config.name, "postgres-0");
    assert_eq!(config.namespace, "service");
    assert_eq!(
        config.etcd.endpoints,
        ["http://127.0.0.1:2379", "http://b:2379"]
    );
    assert_eq!(config.watchdog.mode, WatchdogMode::Automatic);
    assert!(config.bootstrap.is_none());
    let pg = config.postgresql;
    assert_eq!(pg.config_dir, pg.data_dir);
    assert_eq!(pg.create_replica_methods, [ReplicaMethod::Basebackup]);
    assert_eq!(
        pg.superuser.options.get("sslmode").map(String::as_str),
        Some("verify-ca")
    );
    assert!(!pg.superuser.options.contains_key("options"));
    assert_eq!(pg.pg_ctl_timeout.as_secs(), 60);
    let shown: Vec<String> = pg
        .parameters
        .iter()
        .map(|(k, v)| format!("{k}={v}"))
        .collect();
    expect_test::expect![[r#"
        cluster_name="batman"
        hot_standby="on"
        listen_addresses="127.0.0.1"
        max_connections=100
        max_locks_per_transaction=64
        max_prepared_transactions=0
        max_replication_slots=10
        max_wal_senders=10
        max_worker_processes=8
        port=5433
        track_commit_timestamp="off"
        wal_keep_size="128MB"
        wal_level="replica"
        wal_log_hints="on""#]]
    .assert_eq(&shown.join("\n"));
}

/// Vectors 5, 6, 17, 18 and 20 of `configuration.md` 18.
#[test]
fn controlled_parameters_come_from_the_dynamic_document_alone() {
    let parameter = |more: &str, dynamic: Value, name: &str| {
        let dynamic = map(json!({"postgresql": {"parameters": dynamic}}));
        let (config, warnings) = local(more, &[]).effective(&dynamic).expect("effective");
        (config.postgresql.parameters.get(name).cloned(), warnings)
    };
    let (value, warnings) = parameter("{}", json!({"max_connections": 5}), "max_connections");
    assert_eq!(value, Some(json!(100)));
    assert_eq!(
        warnings,
        ["postgresql parameter max_connections=5 failed validation, defaulting to 100"]
    );
    let file = "postgresql: {parameters: {max_connections: 50, WORK_MEM: 8MB}}";
    let dynamic = json!({"MAX_connections": "300", "work_mem": "4MB"});
    assert_eq!(
        parameter(file, dynamic.clone(), "max_connections").0,
        Some(json!(300))
    );
    assert_eq!(parameter(file, dynamic, "work_mem").0, Some(json!("8MB")));
    let wal_level = json!({"wal_level": "HOT_STANDBY"});
    assert_eq!(
        parameter("{}", wal_level, "wal_level").0,
        Some(json!("replica"))
    );
    let segments = json!({"wal_keep_segments": 64});
    assert_eq!(
        parameter("{}", segments.clone(), "wal_keep_size").0,
        Some(json!("1024MB"))
    );
    assert_eq!(parameter("{}", segments, "wal_keep_segments").0, None);
    let unit = json!({"max_connections": "100kB"});
    assert_eq!(parameter("{}", unit, "max_connections").0, Some(json!(100)));
}

/// Vectors 1 and 4: what cannot be applied is refused as a whole.
#[test]
fn dynamic_timeouts_must_be_numbers() {
    let local = local("ttl: 55", &[]);
    for good in [json!({"ttl": "20"}), json!({"loop_wait": 10.9}), json!({})] {
        assert!(local.effective(&map(good.clone())).is_ok(), "{good}");
    }
    for bad in [
        json!({"ttl": "30s"}),
        json!({"ttl": null}),
        json!({"ttl": [1]}),
        json!({"postgresql": {"parameters": "x"}}),
    ] {
        assert!(local.effective(&map(bad.clone())).is_err(), "{bad}");
    }
    let notes = warnings(&local, json!({}));
    assert!(
        notes.iter().any(|n| n.contains("ttl is ignored here")),
        "{notes:?}"
    );
}

/// Vectors 9 and 10.
#[test]
fn etcd_credentials_alone_in_the_environment_are_left_unread() {
    let user = ("PATRONI_ETCD3_USERNAME", "root");
    let (config, notes) = local("", &[user])
        .effective(&Map::new())
        .expect("effective");
    assert_eq!(config.etcd.username, None);
    assert_eq!(notes.len(), 1, "{notes:?}");
    let more = [user, ("PATRONI_ETCD3_PROTOCOL", "https")];
    let (config, _) = local("", &more).effective(&Map::new()).expect("effective");
    assert_eq!(config.etcd.username.as_deref(), Some("root"));
    assert_eq!(
        config.etcd.endpoints,
        ["https://127.0.0.1:2379", "https://b:2379"]
    );
}

/// Vectors 11, 12.
#[test]
fn lists_and_octal_modes_from_the_environment() {
    let env = [
        ("PATRONI_RESTAPI_ALLOWLIST", "10.0.0.0/8, host1"),
        ("PATRONI_LOG_MODE", "0644"),
    ];
    let (config, _) = local("", &env).effective(&Map::new()).expect("effective");
    assert_eq!(config.restapi.allowlist, ["10.0.0.0/8", "host1"]);
    assert_eq!(config.log.mode, Some(420));
    let (config, _) = local("log: {mode: 0644}", &[])
        .effective(&Map::new())
        .expect("effective");
    assert_eq!(config.log.mode, Some(420));
}

/// Vector 14, and the other sentences that operators look for.
#[test]
fn contradictory_tags_are_told_in_python_spelling() {
    for (tags, expected) in [
        (
            "{nofailover: true, failover_priority: 1}",
            Some(
                "Conflicting configuration between nofailover: True and failover_priority: 1. Defaulting to nofailover: True",
            ),
        ),
        (
            "{nofailover: false, failover_priority: 0}",
            Some(
                "Conflicting configuration between nofailover: False and failover_priority: 0. Defaulting to nofailover: False",
            ),
        ),
        (
            "{nosync: true, sync_priority: 2}",
            Some(
                "Conflicting configuration between nosync: True and sync_priority: 2. Defaulting to nosync: True",
            ),
        ),
        (
            "{nosync: false, sync_priority: 0}",
            Some(
                "Conflicting configuration between nosync: False and sync_priority: 0. Defaulting to nosync: False",
            ),
        ),
        ("{nofailover: true, failover_priority: 0}", None),
        (
            "{nofailover: false, failover_priority: 2, nosync: true}",
            None,
        ),
    ] {
        let notes = warnings(&local(&format!("tags: {tags}"), &[]), json!({}));
        assert_eq!(notes.first().map(String::as_str), expected, "{tags}");
    }
}

#[test]
fn tags_keep_the_order_of_the_file() {
    let (config, _) = local("tags: {z: 1, a: 2, nofailover: false}", &[])
        .effective(&Map::new())
        .expect("ok");
    assert_eq!(
        config.tags.0.keys().collect::<Vec<_>>(),
        ["z", "a", "nofailover"]
    );
}

#[test]
fn half_of_a_login_is_an_error_without_the_secret() {
    let error = local("restapi: {authentication: {password: hush}}", &[])
        .effective(&Map::new())
        .expect_err("half a login");
    let text = format!("{error} {error:?}");
    assert!(text.contains("restapi.authentication.username"), "{text}");
    assert!(text.contains("both username and password"), "{text}");
    assert!(!text.contains("hush"), "{text}");
}

#[test]
fn other_stores_are_refused_by_name() {
    for (more, word) in [
        ("etcd: {host: a}", "v2"),
        ("consul: {host: a}", "consul"),
        ("{etcd3: null, kubernetes: {}}", "kubernetes"),
        ("{etcd3: null, raft: {}}", "raft"),
    ] {
        let error = local(more, &[])
            .effective(&Map::new())
            .expect_err(more)
            .to_string();
        assert!(error.contains(word), "{more}: {error}");
    }
    // Patroni would take etcd3 as well.
    let notes = warnings(&local("kubernetes: {labels: {}}", &[]), json!({}));
    assert!(
        notes.iter().any(|n| n.contains("kubernetes is ignored")),
        "{notes:?}"
    );
}

#[test]
fn errors_name_file_key_and_expectation() {
    let error = local("restapi: {listen: nowhere}", &[])
        .effective(&Map::new())
        .expect_err("no port");
    let text = error.to_string();
    assert!(text.contains("agent.yml"), "{text}");
    assert!(
        text.contains("restapi.listen: expected host:port"),
        "{text}"
    );
    let env = [("PATRONI_RESTAPI_LISTEN", "nowhere")];
    let text = local("", &env)
        .effective(&Map::new())
        .expect_err("no port")
        .to_string();
    assert!(text.starts_with("PATRONI_RESTAPI_LISTEN: "), "{text}");
}

#[test]
fn a_local_key_replaces_the_dynamic_one_but_never_the_reverse() {
    let dynamic = map(json!({"postgresql": {
        "pg_hba": ["dynamic"], "data_dir": "/elsewhere", "listen": "x:1", "use_unix_socket": true,
        "authentication": {"superuser": {"username": "evil"}}, "callbacks": {"on_start": "cb"},
    }}));
    let (config, _) = local("postgresql: {pg_hba: [a, b]}", &[])
        .effective(&dynamic)
        .expect("effective");
    let pg = config.postgresql;
    assert_eq!(pg.pg_hba, Some(vec![String::from("a"), String::from("b")]));
    assert_eq!(pg.data_dir.to_str(), Some("/data/postgres-0"));
    assert_eq!(pg.superuser.username.as_deref(), Some("postgres"));
    assert!(pg.use_unix_socket);
    assert_eq!(pg.callbacks.get("on_start").map(String::as_str), Some("cb"));
}

#[test]
fn methods_keep_their_keys_in_order() {
    let more = "
postgresql:
  create_replica_methods: [barman, no_leader_bootstrap, basebackup]
  barman: {command: 'python a.py --x \"b c\"', z: 1, a: true, no_leader: true}
  no_leader_bootstrap: {command: c, no_params: true, keep_data: 1, q: 2}
  basebackup: [{checkpoint: fast}, verbose, {gzip: '1'}, {max-rate: 5}]
bootstrap:
  method: custom
  custom: {command: /bin/clone --flag, scope: x, up: 1, keep_existing_recovery_conf: true}
  initdb: [{encoding: UTF8}, data-checksums, {wal-segsize: 64}]
  dcs: {ttl: 20}
";
    let (config, notes) = local(more, &[]).effective(&Map::new()).expect("effective");
    let [
        ReplicaMethod::Custom(barman),
        ReplicaMethod::Custom(other),
        ReplicaMethod::Basebackup,
    ] = config.postgresql.create_replica_methods.as_slice()
    else {
        panic!(
            "three methods: {:?}",
            config.postgresql.create_replica_methods
        )
    };
    assert_eq!(barman.command, ["python", "a.py", "--x", "b c"]);
    let pairs = |m: &[(String, String)]| {
        m.iter()
            .map(|(k, v)| format!("{k}={v}"))
            .collect::<Vec<_>>()
            .join(" ")
    };
    assert_eq!(pairs(&barman.extra), "z=1 a=True no_leader=True");
    assert_eq!(pairs(&other.extra), "q=2");
    assert!(barman.no_leader && other.keep_data && other.no_params);
    assert_eq!(
        config.postgresql.basebackup_options,
        ["--checkpoint=fast", "--verbose"]
    );
    assert_eq!(notes.len(), 2, "{notes:?}");
    let bootstrap = config.bootstrap.expect("a bootstrap section");
    assert_eq!(bootstrap.initdb, ["--encoding=UTF8", "--data-checksums"]);
    assert_eq!(bootstrap.problems.len(), 1);
    let method = bootstrap.method.expect("a custom method");
    assert_eq!(method.command, ["/bin/clone", "--flag"]);
    assert_eq!(pairs(&method.extra), "up=1");
    // Vector 2: clamped before it is written.
    assert_eq!(
        Value::Object(bootstrap.dcs),
        json!({"ttl": 20, "loop_wait": 1, "retry_timeout": 9})
    );
}

#[test]
fn recovery_settings_among_the_parameters_become_recovery_conf() {
    let dynamic = map(json!({"postgresql": {
        "parameters": {"restore_command": "cp x", "recovery_target_time": "now"},
        "recovery_conf": {"archive_cleanup_command": "rm"},
    }}));
    let (config, _) = local("", &[]).effective(&dynamic).expect("effective");
    assert_eq!(
        Value::Object(config.postgresql.recovery_conf),
        json!({"restore_command": "cp x"})
    );
    assert!(!config.postgresql.parameters.contains_key("restore_command"));
}

#[test]
fn settings_by_role_cannot_touch_controlled_ones() {
    let more =
        "postgresql: {parameters_replica: {max_connections: 5, Work_Mem: 1MB}, pg_hba_primary: []}";
    let (config, notes) = local(more, &[]).effective(&Map::new()).expect("effective");
    let replica = config.postgresql.parameters_by_role.get(&ConfRole::Replica);
    assert_eq!(
        replica.map(|p| p.keys().map(String::as_str).collect()),
        Some(vec!["work_mem"])
    );
    assert_eq!(
        config.postgresql.pg_hba_by_role.get(&ConfRole::Primary),
        Some(&Vec::new())
    );
    assert_eq!(
        notes,
        ["Role-based config attempted to override protected parameter 'max_connections', ignoring"]
    );
}

#[test]
fn old_forms_still_work() {
    let more = "
name: null
postgresql:
  name: old
  authentication: null
  replication: {username: r}
  superuser: {username: s}
  pg_rewind: {username: w}
  create_replica_method: [wal_e]
";
    let (config, _) = local(more, &[]).effective(&Map::new()).expect("effective");
    assert_eq!(config.name, "old");
    assert_eq!(config.postgresql.replication.username.as_deref(), Some("r"));
    assert!(config.postgresql.use_pg_rewind);
    assert_eq!(config.postgresql.create_replica_methods.len(), 1);
}

#[test]
fn secrets_stay_out_of_debug() {
    let local = local(
        "restapi: {authentication: {username: u, password: hush}}",
        &[],
    );
    let (config, _) = local.effective(&Map::new()).expect("effective");
    let shown = format!("{local:?} {config:?}");
    assert!(
        !shown.contains("zalando")
            && !shown.contains("hush")
            && !shown.contains("from-env")
            && !shown.contains("rep-pass")
    );
}

#[test]
fn a_reload_tells_what_waits_for_a_restart() {
    let effective = |more: &str| {
        local(more, &[])
            .effective(&Map::new())
            .expect("effective")
            .0
    };
    let running = effective("");
    let new = effective(
        "{name: other, etcd3: {username: u}, postgresql: {data_dir: /x, config_dir: /data/postgres-0}}",
    );
    assert_eq!(
        crate::config::reload::waiting_for_restart(&running, &new),
        ["name", "postgresql.data_dir"]
    );
}

#[test]
fn without_a_store_the_message_is_patronis() {
    let error = local("etcd3: null", &[])
        .effective(&Map::new())
        .expect_err("no store")
        .to_string();
    assert!(
        error.starts_with(
            "Can not find suitable configuration of distributed configuration store\n"
        ),
        "{error}"
    );
}

/// Every key that a section knows, as a dotted path.
fn known_paths() -> Vec<String> {
    let sample = "
name scope namespace log restapi ctl etcd3 watchdog tags bootstrap postgresql citus
log.level log.format log.loggers log.mode log.max_queue_size log.static_fields log.file_size
restapi.listen restapi.connect_address restapi.authentication restapi.verify_client
restapi.allowlist restapi.request_queue_size restapi.server_tokens restapi.http_extra_headers
etcd3.host etcd3.hosts etcd3.port etcd3.url etcd3.proxy etcd3.protocol etcd3.srv
watchdog.mode watchdog.safety_margin tags.nofailover tags.failover_priority
bootstrap.dcs bootstrap.dcs.ttl bootstrap.method bootstrap.initdb bootstrap.post_bootstrap
postgresql.listen postgresql.connect_address postgresql.authentication postgresql.parameters
postgresql.authentication.replication postgresql.pg_hba postgresql.pg_hba_replica
postgresql.parameters_primary postgresql.create_replica_methods postgresql.barman
postgresql.basebackup postgresql.rewind postgresql.callbacks postgresql.pg_ctl_timeout
postgresql.recovery_conf postgresql.bin_name postgresql.use_slots
ttl loop_wait postgresql.parameters.max_connections postgresql.parameters.wal_keep_size";
    sample.split_whitespace().map(str::to_owned).collect()
}

fn any_value() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::prelude::*;
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z:/0-9,*@%'\"\\[\\]. -]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::vec(("[a-z_]{0,8}", inner), 0..3)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

proptest::proptest! {
    #[test]
    fn no_value_of_any_key_is_fatal(
        path in proptest::sample::select(known_paths()),
        value in any_value(),
        dynamic in proptest::prelude::any::<bool>(),
    ) {
        let mut doc = Map::new();
        let parts: Vec<&str> = path.split('.').collect();
        crate::config::merge::set(&mut doc, &parts, value);
        let (text, dynamic) = if dynamic {
            (String::new(), doc)
        } else {
            (Value::Object(doc).to_string(), Map::new())
        };
        let file = crate::config::yaml::from_str(FILE).ok();
        let mut file = file.and_then(|f| f.as_object().cloned()).unwrap_or_default();
        if let Ok(Value::Object(more)) = crate::config::yaml::from_str(&text) {
            crate::config::merge::patch(&mut file, &more);
        }
        let env = BTreeMap::from([(String::from("PATRONI_CONFIGURATION"), Value::Object(file).to_string())]);
        if let Ok(local) = Loader::new(None, env).and_then(|l| l.load()) {
            // Either answer will do; what matters is that there is one.
            let _ = local.effective(&dynamic);
            let _ = local.bootstrap_dcs();
            let _ = local.control();
        }
    }
}
