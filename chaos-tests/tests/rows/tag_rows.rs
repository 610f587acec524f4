//! Tags: who may lead, who is copied from, who follows whom, and who takes reads.

use super::{name, refused, text};
use anyhow::{Result, ensure};
use chaos_tests::operate::NOTICED;
use chaos_tests::steps::{BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::{Builder, Cluster, story, wait};
use serde_json::{Value, json};

#[test]
fn tags_choose_sources_cascades_and_leaders() {
    story("tag_rows", async {
        let builder = Builder::from_environment()?.quick().etcds(1).members(4);
        let builder = builder
            .configure(|settings| settings.synchronous_mode = json!(false))
            .node(1, json!({"tags": {"nofailover": true}}))
            .node(2, json!({"tags": {"clonefrom": true}}))
            .node(
                3,
                json!({"tags": {
                    "replicatefrom": "node3",
                    "noloadbalance": true,
                    "datacenter": "east",
                    "failover_priority": 2,
                }}),
            );
        let cluster = builder.prepare()?;
        cluster.start_etcd().await?;
        in_turn(&cluster).await?;
        copied_and_cascading(&cluster).await?;
        no_reads_and_own_tags(&cluster).await?;
        never_a_leader(&cluster).await?;
        without_a_stream(&cluster).await?;
        priority_decides_between_equals(&cluster).await
    });
}

/// node1 leads; node3 is there before node4 needs a source.
async fn in_turn(cluster: &Cluster) -> Result<()> {
    for index in [0, 2, 1, 3] {
        cluster.member(index)?.start()?;
        cluster.settle(BOOTSTRAP_LIMIT).await?;
    }
    Ok(())
}

async fn copied_and_cascading(cluster: &Cluster) -> Result<()> {
    let (source, cascading) = (cluster.member(2)?, cluster.member(3)?);
    let log = cascading.log_since(0);
    ensure!(
        log.contains("from replica 'node3'"),
        "it was copied from the member that offers itself:\n{log}"
    );
    cascading.streams_from(source.postgres_port).await?;
    let leader = cluster.member(0)?;
    let senders = leader
        .sql("SELECT string_agg(application_name, ',' ORDER BY application_name) FROM pg_stat_replication")
        .await?;
    ensure!(senders == "node2,node3", "the leader feeds {senders}");
    leader.sql("CREATE TABLE through AS SELECT 7 AS n").await?;
    cascading
        .sql_until("SELECT count(*) FROM through", "1")
        .await
}

async fn no_reads_and_own_tags(cluster: &Cluster) -> Result<()> {
    let member = cluster.member(3)?;
    member.check_until("/replica", 503).await?;
    member.check_until("/health", 200).await?;
    cluster.member(1)?.check_until("/replica", 200).await?;
    let found = member.document("/patroni").await?;
    ensure!(text(&found, "/tags/datacenter") == "east", "{found}");
    let fits = |key: &Value| key.pointer("/tags/datacenter") == Some(&json!("east"));
    cluster
        .key_until("members/node4", "its own tags", fits)
        .await?;
    // A check can ask for them.
    member.check_until("/health?tag_datacenter=east", 200).await
}

async fn never_a_leader(cluster: &Cluster) -> Result<()> {
    let words = ["failover", "garden", "--candidate", "node2", "--force"];
    refused(cluster, &words).await?;
    Ok(())
}

/// `nostream` takes the source away, and gives it back.
async fn without_a_stream(cluster: &Cluster) -> Result<()> {
    let (source, member) = (cluster.member(2)?, cluster.member(3)?);
    member
        .reconfigure(&json!({"tags": {"nostream": true}}))
        .await?;
    member
        .sql_until("SELECT count(*) FROM pg_stat_wal_receiver", "0")
        .await?;
    member.sql_until("SHOW primary_conninfo", "").await?;
    member
        .reconfigure(&json!({"tags": {"nostream": false}}))
        .await?;
    member.streams_from(source.postgres_port).await?;
    cluster.settle(SETTLE_LIMIT).await?;
    Ok(())
}

/// node3 and node4 have the same WAL; node4 is preferred. node2 is never chosen.
async fn priority_decides_between_equals(cluster: &Cluster) -> Result<()> {
    let position = cluster
        .member(0)?
        .sql("SELECT pg_current_wal_flush_lsn()")
        .await?;
    for index in [1, 2, 3] {
        let has = format!("SELECT (pg_last_wal_receive_lsn() >= '{position}')::text");
        cluster.member(index)?.sql_until(&has, "true").await?;
    }
    cluster.member(0)?.lose()?;
    let after = wait::until("another leader", SETTLE_LIMIT, || async {
        let now = cluster.look().await?;
        if now.leader == 0 {
            return Err("node1 leads".into());
        }
        Ok(now)
    });
    let after = after.await?;
    ensure!(
        after.leader == 3,
        "the higher priority wins: {}",
        name(after.leader)
    );
    // Whose source is itself a standby of it now.
    let leader = cluster.member(3)?;
    for index in [1, 2] {
        cluster
            .member(index)?
            .streams_from(leader.postgres_port)
            .await?;
    }
    // A source that is not there is replaced by the leader.
    let member = cluster.member(1)?;
    member
        .reconfigure(&json!({"tags": {"replicatefrom": "node9"}}))
        .await?;
    wait::until("the tag to be seen", NOTICED, || async {
        let found = member.document("/patroni").await;
        let found = found.map_err(|error| format!("{error:#}"))?;
        match text(&found, "/tags/replicatefrom") {
            "node9" => Ok(()),
            _ => Err(found.to_string()),
        }
    })
    .await?;
    member.streams_from(leader.postgres_port).await
}
