//! A standby cluster: its leader follows the primary of another cluster.

use super::{name, text};
use anyhow::{Result, ensure};
use chaos_tests::steps::{BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::{Builder, Cluster, Fault, Member, story, wait};
use serde_json::{Value, json};

const SLOT: &str = "standby_site";

#[test]
fn a_standby_cluster_follows_is_promoted_and_follows_again() {
    story("standby_cluster_rows", async {
        let small = |members| {
            let builder = Builder::from_environment()?.quick().etcds(1);
            let builder = builder.members(members).configure(|settings| {
                settings.synchronous_mode = json!(false);
            });
            anyhow::Ok(builder)
        };
        let main = small(1)?.configure(|settings| {
            settings.dynamic = json!({"slots": {SLOT: {"type": "physical"}}});
        });
        let main = main.start().await?;
        main.settle(BOOTSTRAP_LIMIT).await?;
        let primary = main.member(0)?;
        primary.sql("CREATE TABLE site AS SELECT 1 AS n").await?;
        let follows = json!({
            "host": "127.0.0.1",
            "port": primary.postgres_port,
            "primary_slot_name": SLOT,
            "create_replica_methods": ["basebackup"],
        });
        let section = json!({"standby_cluster": follows});
        let second = small(2)?.configure(|settings| settings.dynamic = section.clone());
        let second = second.start().await?;
        let leader = cascades(&second, primary.postgres_port).await?;
        everywhere(&second, "SELECT count(*) FROM site", "1").await?;
        let active =
            format!("SELECT active::text FROM pg_replication_slots WHERE slot_name = '{SLOT}'");
        primary.sql_until(&active, "true").await?;
        roles(&second, leader).await?;
        a_replica_comes_back(&second, leader, primary.postgres_port).await?;
        let leader = switchover(&second, leader, primary.postgres_port).await?;
        let leader = leader_lost(&second, leader, primary.postgres_port).await?;
        promoted(&second, leader).await?;
        primary.sql("INSERT INTO site VALUES (2)").await?;
        second.patch(section).await?;
        cascades(&second, primary.postgres_port).await?;
        everywhere(&second, "SELECT count(*) FROM site", "2").await?;
        everywhere(
            &second,
            "SELECT count(*) FROM pg_class WHERE relname = 'own'",
            "0",
        )
        .await
    });
}

async fn everywhere(cluster: &Cluster, sql: &str, wanted: &str) -> Result<()> {
    for member in cluster.members() {
        member.sql_until(sql, wanted).await?;
    }
    Ok(())
}

/// One standby leader, which streams from the remote primary; the other streams from it, and has told the
/// leader so, which takes only such a member for a candidate.
async fn cascades(cluster: &Cluster, remote: u16) -> Result<usize> {
    let what = "a standby leader and its standby";
    wait::until(what, SETTLE_LIMIT, || look(cluster, remote)).await
}

async fn look(cluster: &Cluster, remote: u16) -> Result<usize, String> {
    let mut leader = None;
    for (index, member) in cluster.members().iter().enumerate() {
        if member.check("/standby-leader").await == Some(200) {
            leader = Some(index);
        }
    }
    let leader = leader.ok_or("no standby leader")?;
    for (index, member) in cluster.members().iter().enumerate() {
        if member.agent().is_none() {
            continue;
        }
        let source = if index == leader {
            remote
        } else {
            let leader = cluster.member(leader);
            leader.map_err(|error| format!("{error:#}"))?.postgres_port
        };
        let sender = "SELECT sender_port FROM pg_stat_wal_receiver WHERE status = 'streaming'";
        let found = member.sql(sender).await;
        let found = found.map_err(|error| format!("{error:#}"))?;
        if found != source.to_string() {
            return Err(format!(
                "{} streams from {found:?}, not {source}",
                member.name
            ));
        }
    }
    told(
        cluster
            .member(leader)
            .map_err(|error| format!("{error:#}"))?,
    )
    .await?;
    Ok(leader)
}

/// Every member in the leader's view streams.
async fn told(leader: &Member) -> Result<(), String> {
    let view = leader.document("/cluster").await;
    let view = view.map_err(|error| format!("{error:#}"))?;
    let members = view.pointer("/members").and_then(Value::as_array);
    let streams = |member: &Value| member.pointer("/state") == Some(&json!("streaming"));
    match members {
        Some(members) if members.iter().all(streams) => Ok(()),
        _ => Err(format!("not all are known to stream: {view}")),
    }
}

async fn roles(cluster: &Cluster, leader: usize) -> Result<()> {
    let member = cluster.member(leader)?;
    let found = member.document("/patroni").await?;
    ensure!(text(&found, "/role") == "standby_leader", "{found}");
    ensure!(member.check("/primary").await == Some(503), "no primary");
    // In a standby cluster this is the check that HAProxy uses for the leader.
    ensure!(member.check("/leader").await == Some(200), "the leader");
    let list = cluster.ctl_ok(&["list"]).await?;
    ensure!(list.contains("Standby Leader"), "{list}");
    Ok(())
}

/// It is down, and the agent has to tell whether its WAL has diverged without a primary to ask here.
async fn a_replica_comes_back(cluster: &Cluster, leader: usize, remote: u16) -> Result<()> {
    let replica = cluster.member(1 - leader)?;
    replica.stop_agent()?;
    ensure!(replica.postmaster().is_none(), "it stopped");
    replica.start()?;
    let again = cascades(cluster, remote).await?;
    ensure!(again == leader, "the leader stays");
    Ok(())
}

async fn switchover(cluster: &Cluster, leader: usize, remote: u16) -> Result<usize> {
    let (old, new) = (name(leader), name(1 - leader));
    let words = [
        "switchover",
        "garden",
        "--leader",
        &old,
        "--candidate",
        &new,
        "--force",
    ];
    let said = cluster.ctl_ok(&words).await?;
    ensure!(said.contains("Successfully switched over"), "{said}");
    let after = cascades(cluster, remote).await?;
    ensure!(after != leader, "{new} leads");
    Ok(after)
}

async fn leader_lost(cluster: &Cluster, leader: usize, remote: u16) -> Result<usize> {
    Fault::LoseNode(leader).inject(cluster)?;
    let other = cluster.member(1 - leader)?;
    other.check_until("/standby-leader", 200).await?;
    Fault::ReturnNode(leader).inject(cluster)?;
    let after = cascades(cluster, remote).await?;
    ensure!(after != leader, "the other leads");
    Ok(after)
}

/// Without the section it is a cluster of its own.
async fn promoted(cluster: &Cluster, leader: usize) -> Result<()> {
    cluster.patch(json!({"standby_cluster": null})).await?;
    let member = cluster.member(leader)?;
    member.check_until("/primary", 200).await?;
    member
        .sql_until("SELECT pg_is_in_recovery()::text", "false")
        .await?;
    member.sql("CREATE TABLE own AS SELECT 1 AS n").await?;
    let replica = cluster.member(1 - leader)?;
    replica.streams_from(member.postgres_port).await?;
    replica.sql_until("SELECT count(*) FROM own", "1").await?;
    let line = |history: &Value| history.pointer("/0/0").is_some();
    cluster.key_until("history", "the promotion", line).await?;
    Ok(())
}
