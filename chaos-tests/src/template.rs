//! The node files: ordinary Patroni YAML, as somebody would write it for three machines.

use crate::ports::{Ports, address};
use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Name of the cluster.
pub const SCOPE: &str = "garden";
/// Superuser, its password, and the replication user; a cluster on loopback that lives for minutes.
pub const SUPERUSER: &str = "postgres";
/// Password of [`SUPERUSER`].
pub const SUPERUSER_PASSWORD: &str = "superuser-secret";

/// What varies between clusters; the rest is the same for all.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `bootstrap.dcs.ttl` in seconds.
    pub ttl: u64,
    /// `bootstrap.dcs.loop_wait` in seconds.
    pub loop_wait: u64,
    /// `bootstrap.dcs.retry_timeout` in seconds.
    pub retry_timeout: u64,
    /// `bootstrap.dcs.synchronous_mode`: `true`, `false` or `"quorum"`.
    pub synchronous_mode: Value,
    /// Laid over `bootstrap.dcs`, key by key.
    pub dynamic: Value,
    /// Laid over each node's file.
    pub local: Value,
    /// Laid over the file of one node, by its index; over everything else.
    pub nodes: BTreeMap<u16, Value>,
}

impl Default for Settings {
    /// Patroni's defaults, and synchronous so that no acknowledged row can be lost.
    fn default() -> Self {
        Self {
            ttl: 30,
            loop_wait: 10,
            retry_timeout: 10,
            synchronous_mode: Value::Bool(true),
            dynamic: Value::Null,
            local: Value::Null,
            nodes: BTreeMap::new(),
        }
    }
}

/// Text of the file of one node.
///
/// # Errors
/// Only when the overlays hold something that YAML cannot.
pub fn node_yaml(
    settings: &Settings,
    ports: &Ports,
    (index, etcds): (u16, u16),
    dir: &Path,
    bin_dir: &Path,
) -> Result<String> {
    let name = format!("node{}", index + 1);
    let rest = address(ports.rest + index);
    let hosts = (0..etcds).map(|etcd| Value::from(address(ports.etcd + etcd)));
    let mut node = json!({
        "scope": SCOPE,
        "namespace": "/service",
        "name": name,
        "restapi": { "listen": rest, "connect_address": rest },
        "etcd3": { "hosts": hosts.collect::<Vec<_>>() },
        "bootstrap": {
            "dcs": dynamic(settings),
            "initdb": [{ "encoding": "UTF8" }, { "locale": "C.UTF-8" }, "data-checksums"],
        },
        "postgresql": postgresql(ports.postgres + index, dir, bin_dir),
        "tags": { "nofailover": false, "noloadbalance": false, "clonefrom": false },
    });
    overlay(&mut node, &settings.local);
    overlay(
        &mut node,
        settings.nodes.get(&index).unwrap_or(&Value::Null),
    );
    serde_norway::to_string(&node).context("write the YAML of a node")
}

fn dynamic(settings: &Settings) -> Value {
    let mut dcs = json!({
        "ttl": settings.ttl,
        "loop_wait": settings.loop_wait,
        "retry_timeout": settings.retry_timeout,
        "maximum_lag_on_failover": 1_048_576,
        "synchronous_mode": settings.synchronous_mode,
        "postgresql": {
            "use_pg_rewind": true,
            "use_slots": true,
            "parameters": { "max_connections": 50, "wal_keep_size": "128MB", "hot_standby": "on" },
        },
    });
    overlay(&mut dcs, &settings.dynamic);
    dcs
}

fn postgresql(port: u16, dir: &Path, bin_dir: &Path) -> Value {
    let address = address(port);
    json!({
        "listen": address,
        "connect_address": address,
        "data_dir": dir.join("data"),
        "bin_dir": bin_dir,
        "pgpass": dir.join("pgpass"),
        "authentication": {
            "superuser": { "username": SUPERUSER, "password": SUPERUSER_PASSWORD },
            "replication": { "username": "replicator", "password": "replicator-secret" },
            "rewind": { "username": "rewind_user", "password": "rewind-secret" },
        },
        "parameters": { "unix_socket_directories": dir, "shared_buffers": "64MB" },
        "pg_hba": [
            "local all all trust",
            "host replication replicator 127.0.0.1/32 scram-sha-256",
            "host all all 127.0.0.1/32 scram-sha-256",
        ],
    })
}

/// Mappings are merged, everything else is replaced, null changes nothing.
pub(crate) fn overlay(onto: &mut Value, from: &Value) {
    match (onto, from) {
        (_, Value::Null) => {}
        (Value::Object(onto), Value::Object(from)) => {
            for (key, value) in from {
                overlay(
                    onto.entry(key.clone()).or_insert(Value::Object(Map::new())),
                    value,
                );
            }
        }
        (onto, from) => *onto = from.clone(),
    }
}
