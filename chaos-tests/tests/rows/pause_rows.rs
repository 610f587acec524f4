//! Maintenance mode: what the agents leave to the operator, and what they do when asked.

use super::{name, post, refused, stays, two_standbys};
use anyhow::{Context, Result, ensure};
use chaos_tests::operate::NOTICED;
use chaos_tests::steps::{BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::{Builder, Cluster, Member, story, wait};
use serde_json::{Value, json};
use std::time::Duration;

/// Several cycles of the agents, and more than the lease of an all-ours cluster.
const LEFT_ALONE: Duration = Duration::from_secs(10);

#[test]
fn a_paused_cluster_is_left_to_its_operator() {
    story("pause_rows", async {
        let builder = Builder::from_environment()?.quick().etcds(1);
        let builder = builder.configure(|settings| settings.synchronous_mode = json!(false));
        let cluster = builder.start().await?;
        let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
        cluster.ctl_ok(&["pause", "--wait"]).await?;
        for member in cluster.members() {
            let paused = |found: &Value| found.get("pause") == Some(&Value::Bool(true));
            member.shows("/patroni", "it is paused", paused).await?;
        }
        let (a, b) = two_standbys(&settled)?;
        a_stopped_standby_stays_down_until_asked(&cluster, a).await?;
        requests_that_pause_forbids(&cluster, settled.leader, a).await?;
        let leader = named_candidate_takes_over(&cluster, settled.leader, a).await?;
        an_agent_leaves_postgres_running(&cluster, leader).await?;
        a_stopped_primary_lets_the_key_go_and_takes_it_back(&cluster, leader).await?;
        promotion_by_hand_is_undone_when_the_pause_ends(&cluster, leader, b).await
    });
}

async fn gone(member: &Member) -> Result<()> {
    wait::until("PostgreSQL to be gone", NOTICED, || async {
        match member.postmaster() {
            None => Ok(()),
            Some(pid) => Err(format!("{pid} runs")),
        }
    })
    .await
}

async fn a_stopped_standby_stays_down_until_asked(cluster: &Cluster, standby: usize) -> Result<()> {
    let member = cluster.member(standby)?;
    cluster.pg_ctl(member, &["stop", "-m", "fast"])?;
    stays("a stopped standby", LEFT_ALONE, || async {
        match member.postmaster() {
            None => Ok(()),
            Some(pid) => Err(format!("it was started: {pid}")),
        }
    })
    .await?;
    cluster
        .ctl_ok(&["restart", "garden", &member.name, "--force"])
        .await?;
    cluster.settle(SETTLE_LIMIT).await?;
    // The same when it is down and is to be copied anew.
    cluster.pg_ctl(member, &["stop", "-m", "fast"])?;
    gone(member).await?;
    let logged = member.log_bytes();
    let words = ["reinit", "garden", &member.name, "--force", "--wait"];
    cluster.ctl_ok(&words).await?;
    cluster.settle(SETTLE_LIMIT).await?;
    let log = member.log_since(logged);
    ensure!(log.contains("pg_basebackup done"), "it was copied:\n{log}");
    Ok(())
}

/// Only a named candidate can take over, and only now.
async fn requests_that_pause_forbids(
    cluster: &Cluster,
    leader: usize,
    standby: usize,
) -> Result<()> {
    let (old, new) = (name(leader), name(standby));
    let member = cluster.member(leader)?;
    post(member, "/switchover", json!({"leader": old}), 400).await?;
    let at = super::in_seconds(60)?;
    let scheduled = json!({"leader": old, "candidate": new, "scheduled_at": at});
    post(member, "/switchover", scheduled, 400).await?;
    post(member, "/restart", json!({"schedule": at}), 500).await?;
    refused(cluster, &["switchover", "garden", "--force"]).await?;
    Ok(())
}

async fn named_candidate_takes_over(
    cluster: &Cluster,
    leader: usize,
    candidate: usize,
) -> Result<usize> {
    let member = cluster.member(leader)?;
    let body = json!({"leader": name(leader), "candidate": name(candidate)});
    post(member, "/switchover", body, 200).await?;
    let settled = cluster.led_by(candidate).await?;
    ensure!(
        settled.replicas.contains(&leader),
        "the old leader follows, in pause too: {settled:?}"
    );
    Ok(candidate)
}

/// Its key stays, and the agent that comes back goes on where the other ended.
async fn an_agent_leaves_postgres_running(cluster: &Cluster, leader: usize) -> Result<()> {
    let member = cluster.member(leader)?;
    let postmaster = member.postmaster().context("a postmaster")?;
    member.stop_agent()?;
    ensure!(member.postmaster() == Some(postmaster), "PostgreSQL stays");
    member.sql("CREATE TABLE while_away (n int)").await?;
    member.start()?;
    let settled = cluster.led_by(leader).await?;
    ensure!(
        member.postmaster() == Some(postmaster),
        "PostgreSQL was restarted: {settled:?}"
    );
    Ok(())
}

async fn a_stopped_primary_lets_the_key_go_and_takes_it_back(
    cluster: &Cluster,
    leader: usize,
) -> Result<()> {
    let member = cluster.member(leader)?;
    let timeline = cluster.settle(SETTLE_LIMIT).await?.timeline;
    cluster.pg_ctl(member, &["stop", "-m", "fast"])?;
    cluster
        .key_until("leader", "it is gone", Value::is_null)
        .await?;
    stays("no leader in pause", LEFT_ALONE, || async {
        let found = cluster.key("leader").await;
        match found.map_err(|error| format!("{error:#}"))? {
            None => Ok(()),
            Some(name) => Err(format!("{name} leads")),
        }
    })
    .await?;
    ensure!(member.postmaster().is_none(), "it was started");
    post(member, "/restart", json!({}), 200).await?;
    let settled = cluster.led_by(leader).await?;
    ensure!(settled.timeline == timeline, "nobody was promoted");
    Ok(())
}

async fn promotion_by_hand_is_undone_when_the_pause_ends(
    cluster: &Cluster,
    leader: usize,
    standby: usize,
) -> Result<()> {
    let member = cluster.member(standby)?;
    cluster.pg_ctl(member, &["promote"])?;
    member
        .sql_until("SELECT pg_is_in_recovery()::text", "false")
        .await?;
    member.sql("CREATE TABLE by_hand (n int)").await?;
    stays("a second primary", LEFT_ALONE, || async {
        let found = cluster.key("leader").await;
        let found = found.map_err(|error| format!("{error:#}"))?;
        if found.as_deref() != Some(name(leader).as_str()) {
            return Err(format!("{found:?} leads"));
        }
        match member.sql("SELECT pg_is_in_recovery()::text").await {
            Ok(answer) if answer == "false" => Ok(()),
            other => Err(format!("it was touched: {other:?}")),
        }
    })
    .await?;
    ensure!(
        member.check("/primary").await == Some(503),
        "it does not count as the primary"
    );
    cluster.ctl_ok(&["resume", "--wait"]).await?;
    let settled = cluster.led_by(leader).await?;
    ensure!(settled.replicas.contains(&standby), "{settled:?}");
    let found = member.sql("SELECT to_regclass('by_hand')::text").await?;
    ensure!(found.is_empty(), "what it had alone is gone: {found}");
    Ok(())
}
