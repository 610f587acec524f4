//! Synchronous mode.

use anyhow::{Context, ensure};
use chaos_tests::steps::{BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::{Builder, Fault, Writer, checker, story};
use std::time::{Duration, Instant};

#[test]
fn synchronous_standby_lost_is_replaced_and_the_last_one_is_waived() {
    story("sync_mode_standby_lost", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        let first = *before
            .synchronous
            .first()
            .context("a synchronous standby")?;
        let from = Instant::now();
        Fault::LoseNode(first).inject(&cluster)?;
        writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
        let second = cluster.steady(Duration::from_secs(2), SETTLE_LIMIT).await?;
        let gap = writer.ledger().gap(from, Instant::now());
        println!("synchronous standby lost: write gap {gap:?}");
        ensure!(
            second.leader == before.leader,
            "the loss of a standby is no failover"
        );
        let other = *second
            .synchronous
            .first()
            .context("another synchronous standby")?;
        ensure!(other != first, "it is the other one");
        let from = Instant::now();
        Fault::LoseNode(other).inject(&cluster)?;
        // Not strict: with nobody left to wait for, the primary goes on alone.
        writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
        let gap = writer.ledger().gap(from, Instant::now());
        println!("last standby lost: write gap {gap:?}");
        Fault::ReturnNode(first).inject(&cluster)?;
        Fault::ReturnNode(other).inject(&cluster)?;
        let after = cluster.settle(SETTLE_LIMIT).await?;
        ensure!(
            after.leader == before.leader && after.timeline == before.timeline,
            "{after:?}"
        );
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, after.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}

#[test]
fn strict_mode_stops_writes_rather_than_acknowledge_alone() {
    story("strict_mode", async {
        let builder = Builder::from_environment()?.quick().configure(|settings| {
            settings.dynamic = serde_json::json!({ "synchronous_mode_strict": true });
        });
        let cluster = builder.start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        for index in &before.replicas {
            Fault::LoseNode(*index).inject(&cluster)?;
        }
        let alone = Instant::now();
        tokio::time::sleep(Duration::from_secs(10)).await;
        // What was under way when the standbys died may have been acknowledged by them before.
        let ledger = writer.ledger();
        let late = ledger.acks.iter().filter(|ack| ack.sent > alone).count();
        ensure!(late == 0, "{late} rows acknowledged that no standby has");
        for index in &before.replicas {
            Fault::ReturnNode(*index).inject(&cluster)?;
        }
        let after = cluster.settle(SETTLE_LIMIT).await?;
        writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, after.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}
