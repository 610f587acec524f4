//! Maintenance mode.

use anyhow::ensure;
use chaos_tests::steps::{self, BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::{Builder, Fault, Writer, checker, story, wait};
use serde_json::Value;
use std::time::{Duration, Instant};

#[test]
fn pause_forbids_failover_and_resume_allows_it_again() {
    story("pause_and_resume", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        cluster.ctl_ok(&["pause", "--wait"]).await?;
        ensure!(cluster.dynamic().await?.get("pause") == Some(&Value::Bool(true)));
        Fault::LoseNode(before.leader).inject(&cluster)?;
        // The lease is 20 s; whoever wanted to lead would do so soon after.
        let until = Instant::now() + Duration::from_secs(30);
        while Instant::now() < until {
            for index in &before.replicas {
                let code = cluster.member(*index)?.check("/primary").await;
                ensure!(
                    code != Some(200),
                    "node{} promoted itself in pause",
                    index + 1
                );
            }
            tokio::time::sleep(wait::POLL).await;
        }
        cluster.ctl_ok(&["resume"]).await?;
        let after = cluster.settle(SETTLE_LIMIT).await?;
        ensure!(
            after.leader != before.leader,
            "somebody else leads after resume"
        );
        writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
        let (back, rejoin) = steps::return_node(&cluster, &writer, before.leader).await?;
        println!("node{}: {}", before.leader + 1, rejoin.describe());
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, back.settled.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}
