//! What etcd holds, read and broken from outside through its JSON gateway.

use crate::cluster::Cluster;
use crate::http;
use crate::template::SCOPE;
use anyhow::{Context, Result, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use std::time::Duration;

/// One request is answered within this time.
const LIMIT: Duration = Duration::from_secs(3);

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its value.
    pub value: String,
    /// The lease that it hangs on; empty when on none.
    pub lease: String,
}

/// How the cluster holds its lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// `/leader` on an etcd lease, as Patroni holds it.
    Compatible,
    /// `/record`, renewed by compare-and-set.
    Native,
}

fn path(key: &str) -> String {
    format!("/service/{SCOPE}/{key}")
}

async fn post(cluster: &Cluster, what: &str, body: &Value) -> Result<Value> {
    let body = body.to_string();
    for etcd in cluster.etcds().iter().filter(|etcd| etcd.running()) {
        let path = format!("/v3/kv/{what}");
        let answer = http::request(etcd.client_port, "POST", &path, Some(&body), LIMIT);
        match answer.await {
            Ok(answer) if answer.status == 200 => return answer.json(),
            Ok(answer) => bail!("{what}: {}", answer.body),
            Err(_) => {}
        }
    }
    bail!("{what}: no etcd answers")
}

/// One key of the cluster; none when it is not there.
///
/// # Errors
/// When no etcd answers.
pub async fn get(cluster: &Cluster, key: &str) -> Result<Option<Entry>> {
    let answer = post(
        cluster,
        "range",
        &json!({ "key": BASE64.encode(path(key)) }),
    )
    .await?;
    let Some(found) = answer.pointer("/kvs/0") else {
        return Ok(None);
    };
    let text = |name: &str| found.get(name).and_then(Value::as_str).unwrap_or_default();
    let value = BASE64.decode(text("value")).context("a value of etcd")?;
    Ok(Some(Entry {
        value: String::from_utf8_lossy(&value).into_owned(),
        lease: text("lease").to_owned(),
    }))
}

/// The same, as JSON; null when it is not there or not JSON.
///
/// # Errors
/// When no etcd answers.
pub async fn document(cluster: &Cluster, key: &str) -> Result<Value> {
    let found = get(cluster, key).await?;
    Ok(found.map_or(Value::Null, |entry| {
        serde_json::from_str(&entry.value).unwrap_or_default()
    }))
}

/// Deletes every key of the cluster; how many there were.
///
/// # Errors
/// When no etcd answers.
pub async fn wipe(cluster: &Cluster) -> Result<u64> {
    let (from, to) = (
        path(""),
        path("").replace(&format!("{SCOPE}/"), &format!("{SCOPE}0")),
    );
    let body = json!({ "key": BASE64.encode(from), "range_end": BASE64.encode(to) });
    let answer = post(cluster, "deleterange", &body).await?;
    let deleted = answer.get("deleted").and_then(Value::as_str);
    deleted
        .context("nothing was deleted")?
        .parse()
        .context("a number of keys")
}

/// How the lock is held right now; none while nobody holds it.
///
/// # Errors
/// When no etcd answers.
pub async fn way(cluster: &Cluster) -> Result<Option<Way>> {
    let record = document(cluster, "record").await?;
    if record.get("state") == Some(&json!("held")) {
        return Ok(Some(Way::Native));
    }
    let leader = get(cluster, "leader").await?;
    Ok(leader
        .filter(|entry| !entry.lease.is_empty())
        .map(|_| Way::Compatible))
}
