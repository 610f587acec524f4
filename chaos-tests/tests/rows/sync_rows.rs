//! Synchronous replication: who is synchronous, who may take over, and every change between the modes.

use super::{name, refused, two_standbys};
use anyhow::{Result, ensure};
use chaos_tests::steps::{self, BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::{Builder, Cluster, Fault, Settled, Writer, checker, story};
use serde_json::{Value, json};

const NAMES: &str = "SHOW synchronous_standby_names";

/// Names in `/sync`, sorted.
fn listed(sync: &Value) -> Vec<&str> {
    let names = sync.pointer("/sync_standby").and_then(Value::as_str);
    let mut names: Vec<&str> = names
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .collect();
    names.sort_unstable();
    names
}

/// `/sync` names these, with this quorum, and PostgreSQL waits for them as written.
async fn waits_for(
    cluster: &Cluster,
    leader: usize,
    standbys: &[usize],
    (quorum, written): (u64, &str),
) -> Result<()> {
    let names: Vec<String> = standbys.iter().copied().map(name).collect();
    let what = format!("{names:?} with quorum {quorum}");
    let fits = |sync: &Value| {
        let q = sync.pointer("/quorum").and_then(Value::as_u64).unwrap_or(0);
        let ours = sync.pointer("/leader").and_then(Value::as_str) == Some(&name(leader));
        ours && q == quorum && listed(sync) == names
    };
    cluster.key_until("sync", &what, fits).await?;
    cluster.member(leader)?.sql_until(NAMES, written).await
}

#[test]
fn synchronous_mode_follows_tags_counts_and_lag() {
    story("synchronous_mode_rows", async {
        let builder = Builder::from_environment()?.quick().etcds(1);
        let cluster = builder.start().await?;
        let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        let settled = only_a_synchronous_standby_takes_over(&cluster, &writer, settled).await?;
        tags_choose_the_synchronous_standby(&cluster, &settled).await?;
        several_may_be_synchronous(&cluster, &settled).await?;
        a_standby_that_lags_is_not_waited_for(&cluster, &settled).await?;
        let settled = quorum_commit(&cluster, &writer, settled).await?;
        switched_off(&cluster, &settled).await?;
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, settled.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        println!("{verdict}");
        Ok(())
    });
}

/// A switchover to an asynchronous standby is refused; a failover by hand may name one.
async fn only_a_synchronous_standby_takes_over(
    cluster: &Cluster,
    writer: &Writer,
    settled: Settled,
) -> Result<Settled> {
    let (a, b) = two_standbys(&settled)?;
    let synchronous = *settled.synchronous.first().unwrap_or(&a);
    let other = if synchronous == a { b } else { a };
    waits_for(
        cluster,
        settled.leader,
        &[synchronous],
        (0, &name(synchronous)),
    )
    .await?;
    let words = ["switchover", "garden", "--candidate"];
    refused(cluster, &[&words[..], &[&name(other), "--force"]].concat()).await?;
    let moved = steps::switchover(cluster, writer, &settled, Some(synchronous)).await?;
    let settled = moved.settled;
    let asynchronous = settled
        .replicas
        .iter()
        .copied()
        .find(|r| !settled.synchronous.contains(r));
    let Some(asynchronous) = asynchronous else {
        anyhow::bail!("one standby is asynchronous: {settled:?}");
    };
    // Nothing is lost in it: the old leader hands over when the candidate has everything.
    let candidate = name(asynchronous);
    cluster
        .ctl_ok(&["failover", "garden", "--candidate", &candidate, "--force"])
        .await?;
    cluster.led_by(asynchronous).await
}

async fn tags_choose_the_synchronous_standby(cluster: &Cluster, settled: &Settled) -> Result<()> {
    let (a, b) = two_standbys(settled)?;
    let leader = settled.leader;
    let (first, second) = (cluster.member(a)?, cluster.member(b)?);
    first
        .reconfigure(&json!({"tags": {"nosync": true}}))
        .await?;
    waits_for(cluster, leader, &[b], (0, &name(b))).await?;
    first
        .reconfigure(&json!({"tags": {"nosync": false}}))
        .await?;
    second
        .reconfigure(&json!({"tags": {"nosync": true}}))
        .await?;
    waits_for(cluster, leader, &[a], (0, &name(a))).await?;
    second
        .reconfigure(&json!({"tags": {"nosync": false, "sync_priority": 3}}))
        .await?;
    waits_for(cluster, leader, &[b], (0, &name(b))).await?;
    second
        .reconfigure(&json!({"tags": {"sync_priority": 1}}))
        .await
}

async fn several_may_be_synchronous(cluster: &Cluster, settled: &Settled) -> Result<()> {
    let (a, b) = two_standbys(settled)?;
    cluster.patch(json!({"synchronous_node_count": 2})).await?;
    let both = format!("2 ({},{})", name(a), name(b));
    waits_for(cluster, settled.leader, &[a, b], (0, &both)).await
}

/// With `remote_apply` the position that counts is the replayed one, and replay waits for a session that
/// holds a lock on the standby.
async fn a_standby_that_lags_is_not_waited_for(cluster: &Cluster, settled: &Settled) -> Result<()> {
    let (a, b) = two_standbys(settled)?;
    let (leader, lagging) = (cluster.member(settled.leader)?, cluster.member(a)?);
    cluster
        .patch(json!({
            "maximum_lag_on_syncnode": 1_000_000,
            "postgresql": {"parameters": {
                "synchronous_commit": "remote_apply",
                "max_standby_streaming_delay": "-1",
            }},
        }))
        .await?;
    leader
        .sql_until("SHOW synchronous_commit", "remote_apply")
        .await?;
    lagging
        .sql_until("SHOW max_standby_streaming_delay", "-1")
        .await?;
    leader.sql("CREATE TABLE held (n int)").await?;
    lagging.sql_until("SELECT count(*) FROM held", "0").await?;
    let reader = chaos_tests::session::client(lagging.postgres_port).await?;
    reader
        .batch_execute("BEGIN; SELECT count(*) FROM held")
        .await?;
    let write = "SET synchronous_commit = local; TRUNCATE held; \
                 INSERT INTO held SELECT generate_series(1, 60000)";
    leader.sql(write).await?;
    waits_for(cluster, settled.leader, &[b], (0, &name(b))).await?;
    reader.batch_execute("COMMIT").await?;
    let both = format!("2 ({},{})", name(a), name(b));
    waits_for(cluster, settled.leader, &[a, b], (0, &both)).await?;
    cluster
        .patch(json!({
            "maximum_lag_on_syncnode": -1,
            "postgresql": {"parameters": {
                "synchronous_commit": null,
                "max_standby_streaming_delay": null,
            }},
        }))
        .await
}

async fn quorum_commit(cluster: &Cluster, writer: &Writer, settled: Settled) -> Result<Settled> {
    let (a, b) = two_standbys(&settled)?;
    let leader = settled.leader;
    let any = |count: u64| format!("ANY {count} ({},{})", name(a), name(b));
    cluster.patch(json!({"synchronous_mode": "quorum"})).await?;
    waits_for(cluster, leader, &[a, b], (0, &any(2))).await?;
    cluster.patch(json!({"synchronous_node_count": 1})).await?;
    waits_for(cluster, leader, &[a, b], (1, &any(1))).await?;
    Fault::LoseNode(a).inject(cluster)?;
    waits_for(cluster, leader, &[b], (0, &format!("ANY 1 ({})", name(b)))).await?;
    Fault::ReturnNode(a).inject(cluster)?;
    waits_for(cluster, leader, &[a, b], (1, &any(1))).await?;
    let settled = cluster.settle(SETTLE_LIMIT).await?;
    let moved = steps::switchover(cluster, writer, &settled, Some(b)).await?;
    // Without a candidate a quorum must be able to take over: all voters have to be back.
    let others = moved.settled.replicas.clone();
    let names: Vec<String> = others.iter().copied().map(name).collect();
    let written = format!("ANY 1 ({})", names.join(","));
    waits_for(cluster, b, &others, (1, &written)).await?;
    let settled = cluster.steady(steps::REST, SETTLE_LIMIT).await?;
    let moved = steps::switchover(cluster, writer, &settled, None).await?;
    // A leader that is lost before it has proved its standbys can only be replaced by all of them.
    let others = moved.settled.replicas.clone();
    let names: Vec<String> = others.iter().copied().map(name).collect();
    let written = format!("ANY 1 ({})", names.join(","));
    waits_for(cluster, moved.settled.leader, &others, (1, &written)).await?;
    let settled = cluster.steady(steps::REST, SETTLE_LIMIT).await?;
    ensure!(settled.leader == moved.settled.leader, "{settled:?}");
    let failover = steps::lose_leader(cluster, writer, &settled).await?;
    println!("quorum, leader lost: write gap {:?}", failover.gap);
    let (back, _) = steps::return_node(cluster, writer, settled.leader).await?;
    Ok(back.settled)
}

/// The key goes, and the operator's own names come back.
async fn switched_off(cluster: &Cluster, settled: &Settled) -> Result<()> {
    let leader = cluster.member(settled.leader)?;
    let own = json!({"parameters": {"synchronous_standby_names": "FIRST 1 (*)"}});
    cluster
        .patch(json!({"synchronous_mode": false, "postgresql": own}))
        .await?;
    cluster
        .key_until("sync", "it is gone", |sync| {
            sync.is_null() || sync.pointer("/leader").is_none_or(Value::is_null)
        })
        .await?;
    leader.sql_until(NAMES, "FIRST 1 (*)").await
}
