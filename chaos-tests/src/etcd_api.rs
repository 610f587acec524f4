//! What a story does to etcd itself, through its JSON gateway: as a person with `etcdctl` would.

use crate::http;
use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use std::time::Duration;

/// An etcd answers within this time, or the next one is asked.
const LIMIT: Duration = Duration::from_secs(3);

/// One key.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: Vec<u8>,
    /// The lease on which it is, `0` when on none.
    pub lease: String,
}

/// Sends one request to the first etcd that takes it.
///
/// # Errors
/// When none does.
pub async fn call(ports: &[u16], path: &str, body: &Value) -> Result<Value> {
    let body = body.to_string();
    let mut last = None;
    for port in ports {
        match http::request(*port, "POST", path, Some(&body), LIMIT).await {
            Ok(answer) if answer.status == 200 => return answer.json(),
            Ok(answer) => last = Some(anyhow::anyhow!("{path}: {}", answer.body)),
            Err(error) => last = Some(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("there is no etcd")))
}

/// Reads a key.
///
/// # Errors
/// When no etcd answers, or the key is not there.
pub async fn get(ports: &[u16], key: &str) -> Result<Entry> {
    let found = call(ports, "/v3/kv/range", &json!({ "key": BASE64.encode(key) })).await?;
    let entry = found.pointer("/kvs/0");
    let entry = entry.with_context(|| format!("there is no key {key}"))?;
    let text = |name: &str| entry.get(name).and_then(Value::as_str);
    let value = BASE64.decode(text("value").unwrap_or_default());
    Ok(Entry {
        key: key.to_owned(),
        value: value.with_context(|| format!("read the value of {key}"))?,
        lease: text("lease").unwrap_or("0").to_owned(),
    })
}

/// Writes a key, whatever was there.
///
/// # Errors
/// When no etcd takes it.
pub async fn put(ports: &[u16], key: &str, value: &[u8]) -> Result<()> {
    let body = json!({ "key": BASE64.encode(key), "value": BASE64.encode(value) });
    call(ports, "/v3/kv/put", &body).await.map(|_| ())
}

/// Deletes a key that must be there.
///
/// # Errors
/// When no etcd takes it, or nothing was there.
pub async fn delete(ports: &[u16], key: &str) -> Result<()> {
    let body = json!({ "key": BASE64.encode(key) });
    let answer = call(ports, "/v3/kv/deleterange", &body).await?;
    ensure!(answer.get("deleted").is_some(), "there was no key {key}");
    Ok(())
}

/// Revokes the lease of a key.
///
/// # Errors
/// When the key has none, or no etcd takes it.
pub async fn revoke_lease_of(ports: &[u16], key: &str) -> Result<()> {
    let entry = get(ports, key).await?;
    ensure!(entry.lease != "0", "{key} is on no lease");
    let body = json!({ "ID": entry.lease });
    call(ports, "/v3/lease/revoke", &body).await.map(|_| ())
}

/// Forgets every revision but the newest.
///
/// # Errors
/// When no etcd takes it.
pub async fn compact(ports: &[u16]) -> Result<()> {
    let status = call(ports, "/v3/kv/range", &json!({ "key": BASE64.encode("/") })).await?;
    let revision = status.pointer("/header/revision");
    let revision = revision.context("etcd names no revision")?;
    let body = json!({ "revision": revision, "physical": true });
    call(ports, "/v3/kv/compaction", &body).await.map(|_| ())
}

/// Position of the etcd that leads.
///
/// # Errors
/// When none says so.
pub async fn leader(ports: &[u16]) -> Result<usize> {
    for (index, port) in ports.iter().enumerate() {
        let status = call(&[*port], "/v3/maintenance/status", &json!({})).await;
        let Ok(status) = status else {
            continue;
        };
        let leader = status.get("leader");
        if leader.is_some() && leader == status.pointer("/header/member_id") {
            return Ok(index);
        }
    }
    bail!("no etcd leads")
}

/// Takes a member out of the cluster and enters one with the same peer address in its place.
///
/// # Errors
/// When the others do not agree.
pub async fn replace_member(others: &[u16], name: &str) -> Result<()> {
    let list = call(others, "/v3/cluster/member/list", &json!({})).await?;
    let members = list.get("members").and_then(Value::as_array);
    let mut members = members.into_iter().flatten();
    let member = members
        .find(|member| member.get("name").and_then(Value::as_str) == Some(name))
        .with_context(|| format!("{name} is no member"))?;
    let (id, peers) = (member.get("ID"), member.get("peerURLs"));
    call(others, "/v3/cluster/member/remove", &json!({ "ID": id })).await?;
    let add = json!({ "peerURLs": peers });
    call(others, "/v3/cluster/member/add", &add)
        .await
        .map(|_| ())
}
