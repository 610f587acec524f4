//! What happens when etcd does not answer.

use anyhow::{Context, Result, ensure};
use chaos_tests::steps::{BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::{Builder, Cluster, Fault, Writer, checker, story};
use std::time::{Duration, Instant};

/// Shorter than what is left of a lease of 8 s when etcd stops answering right before a renewal
/// (every 1.6 s) and PostgreSQL is stopped cleanly ahead of the deadline (by 1.6 s).
const SHORT_OUTAGE: Duration = Duration::from_secs(4);

fn postmasters(cluster: &Cluster) -> Result<Vec<i32>> {
    let pids = cluster.members().iter().map(|member| member.postmaster());
    pids.collect::<Option<Vec<_>>>()
        .context("every member has a postmaster")
}

#[test]
fn etcd_outage_shorter_than_the_lease_changes_nothing() {
    story("etcd_outage_short", async {
        let cluster = Builder::from_environment()?.start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let pids = postmasters(&cluster)?;
        let writer = Writer::through_haproxy(&cluster).await?;
        let from = Instant::now();
        Fault::FreezeEtcd.inject(&cluster)?;
        tokio::time::sleep(SHORT_OUTAGE).await;
        let view = cluster.haproxy().view().await?;
        Fault::ThawEtcd.inject(&cluster)?;
        let after = cluster
            .steady(Duration::from_secs(12), SETTLE_LIMIT)
            .await?;
        println!(
            "etcd frozen for {SHORT_OUTAGE:?}: write gap {:?}",
            writer.ledger().gap(from, Instant::now())
        );
        ensure!(view.writes.len() == 1, "HAProxy kept the leader: it {view}");
        ensure!(
            after.leader == before.leader && after.timeline == before.timeline,
            "{after:?}"
        );
        ensure!(
            postmasters(&cluster)? == pids,
            "no PostgreSQL was restarted"
        );
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, after.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}

#[test]
fn etcd_outage_longer_than_the_lease_stops_writes_and_ends_with_a_leader() {
    story("etcd_outage_long", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        let from = Instant::now();
        Fault::FreezeEtcd.inject(&cluster)?;
        tokio::time::sleep(Duration::from_secs(26)).await;
        let primaries = primaries(&cluster).await;
        let (before, now) = (Instant::now() - Duration::from_secs(2), Instant::now());
        let late = writer.ledger().acked_between(before, now);
        Fault::ThawEtcd.inject(&cluster)?;
        ensure!(primaries == 0, "without a lease nobody leads");
        ensure!(late == 0, "without a leader nobody acknowledges");
        let after = cluster.settle(SETTLE_LIMIT).await?;
        writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
        println!(
            "etcd frozen for 26 s: write gap {:?}",
            writer.ledger().gap(from, Instant::now())
        );
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, after.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}

async fn primaries(cluster: &Cluster) -> usize {
    let mut count = 0;
    for member in cluster.members() {
        count += usize::from(member.check("/primary").await == Some(200));
    }
    count
}

#[test]
fn one_etcd_of_three_lost_changes_nothing() {
    story("one_etcd_lost", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let pids = postmasters(&cluster)?;
        for etcd in cluster.etcds() {
            // Each in turn, so that the leader of etcd and the endpoint in use are among them.
            etcd.stop()?;
            let rest = Duration::from_secs(8);
            let without = cluster.steady(rest, SETTLE_LIMIT).await?;
            ensure!(
                without.leader == before.leader,
                "{} was not needed",
                etcd.name
            );
            etcd.start()?;
            let back = || async {
                if etcd.healthy().await {
                    Ok(())
                } else {
                    Err("not yet".into())
                }
            };
            chaos_tests::wait::until("etcd to be back", SETTLE_LIMIT, back).await?;
        }
        let after = cluster.settle(SETTLE_LIMIT).await?;
        ensure!(
            after.timeline == before.timeline,
            "nobody was promoted: {after:?}"
        );
        ensure!(
            postmasters(&cluster)? == pids,
            "no PostgreSQL was restarted"
        );
        Ok(())
    });
}
