//! The rows of `docs/compatibility/ha-behaviour.md` that only a real cluster can show. One cluster serves
//! many rows, since each takes ten seconds to come up.

#[path = "rows/divergence_rows.rs"]
mod divergence_rows;
#[path = "rows/operation_rows.rs"]
mod operation_rows;
#[path = "rows/pause_rows.rs"]
mod pause_rows;
#[path = "rows/standby_cluster_rows.rs"]
mod standby_cluster_rows;
#[path = "rows/sync_rows.rs"]
mod sync_rows;
#[path = "rows/tag_rows.rs"]
mod tag_rows;
#[path = "rows/takeover_rows.rs"]
mod takeover_rows;

use anyhow::{Context, Result, ensure};
use chaos_tests::{Cluster, Member, Settled, wait};
use serde_json::Value;
use std::time::{Duration, Instant};

/// Name of a member by its index.
fn name(index: usize) -> String {
    format!("node{}", index + 1)
}

/// A text inside a document; empty when it is not there.
fn text<'a>(document: &'a Value, pointer: &str) -> &'a str {
    document
        .pointer(pointer)
        .and_then(Value::as_str)
        .unwrap_or_default()
}

/// The standbys of a settled cluster, of which there must be two.
fn two_standbys(settled: &Settled) -> Result<(usize, usize)> {
    match settled.replicas.as_slice() {
        [first, second] => Ok((*first, *second)),
        other => anyhow::bail!("two standbys, not {other:?}"),
    }
}

/// Looks all the time for this long, and fails as soon as something else is seen.
async fn stays<F, R>(what: &str, rest: Duration, mut look: F) -> Result<()>
where
    F: FnMut() -> R,
    R: Future<Output = Result<(), String>>,
{
    let end = Instant::now() + rest;
    while Instant::now() < end {
        let seen = look().await.map_err(anyhow::Error::msg);
        seen.with_context(|| format!("{what}, for {rest:?}"))?;
        tokio::time::sleep(wait::POLL * 4).await;
    }
    Ok(())
}

/// Asks for a change of leader and expects a refusal that changes nothing.
async fn refused(cluster: &Cluster, words: &[&str]) -> Result<String> {
    let before = cluster.key("leader").await?;
    let (status, output) = cluster.ctl(words).await?;
    // What the member refuses is told with status zero, as patronictl does it.
    let said = output.contains("failed, details: ");
    ensure!(said || !status.success(), "{words:?} is refused: {output}");
    ensure!(
        cluster.key("leader").await? == before,
        "{words:?} changed the leader"
    );
    Ok(output)
}

/// `POST` to a member's REST with the status that is expected.
async fn post(member: &Member, path: &str, body: Value, status: u16) -> Result<String> {
    let answer = member.ask("POST", path, Some(&body)).await?;
    ensure!(
        answer.status == status,
        "POST {path} to {} with {body}: {answer:?}, not {status}",
        member.name
    );
    Ok(answer.body)
}

/// A moment in some seconds, as requests want it.
fn in_seconds(seconds: i64) -> Result<String> {
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let at = i64::try_from(at.as_millis())? + seconds * 1000;
    Ok(proto::time::WallTime(at).to_iso())
}
