//! Planned changes of leadership.

use anyhow::{Result, ensure};
use chaos_tests::steps::{self, BOOTSTRAP_LIMIT};
use chaos_tests::{Builder, Writer, checker, story};

#[test]
fn planned_switchover_with_and_without_candidate() {
    story("planned_switchover", async {
        let cluster = Builder::from_environment()?.start().await?;
        let mut settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        for named in [true, false] {
            let candidate = settled.synchronous.first().copied().filter(|_| named);
            let old = settled.leader;
            let measured = steps::switchover(&cluster, &writer, &settled, candidate).await?;
            println!(
                "switchover, candidate {candidate:?}: write gap {:?}",
                measured.gap
            );
            ensure!(
                measured.settled.timeline > settled.timeline,
                "the new leader was promoted"
            );
            ensure!(
                measured.settled.replicas.contains(&old),
                "the old leader follows it"
            );
            ensure!(
                !rewound(&cluster.member(old)?.log_since(0)),
                "a clean hand-over diverges nobody"
            );
            cluster.routed(&measured.settled).await?;
            settled = measured.settled;
        }
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, settled.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}

fn rewound(log: &str) -> bool {
    log.contains("running pg_rewind")
}

#[test]
fn switchover_to_a_member_that_is_not_there_is_refused_and_changes_nothing() {
    story("switchover_refused", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let args = ["switchover", "garden", "--candidate", "nobody", "--force"];
        let (status, output) = cluster.ctl(&args).await?;
        ensure!(!status.success(), "it is refused, not: {output}");
        let after = cluster.look().await.map_err(anyhow::Error::msg)?;
        ensure!(
            after.leader == before.leader && after.timeline == before.timeline,
            "{after:?}"
        );
        same_postmasters_answer(&cluster).await
    });
}

async fn same_postmasters_answer(cluster: &chaos_tests::Cluster) -> Result<()> {
    for member in cluster.members() {
        ensure!(
            member.postmaster().is_some(),
            "PostgreSQL of {} runs",
            member.name
        );
        ensure!(
            member.check("/health").await == Some(200),
            "{} is healthy",
            member.name
        );
    }
    Ok(())
}
