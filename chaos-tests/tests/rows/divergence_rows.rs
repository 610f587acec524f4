//! A former leader whose WAL has diverged, where `pg_rewind` fails or may not be used.

use super::name;
use anyhow::{Result, ensure};
use chaos_tests::steps::{self, BOOTSTRAP_LIMIT, Rejoin};
use chaos_tests::{Builder, Cluster, Settled, Writer, checker, story};
use serde_json::json;
use std::os::unix::fs::PermissionsExt;

#[test]
fn a_diverged_member_is_copied_anew_where_that_is_allowed() {
    story("divergence_rows", async {
        let builder = Builder::from_environment()?.quick().etcds(1);
        let cluster = builder.start().await?;
        let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        let settled = rewind_fails(&cluster, &writer, settled).await?;
        let settled = rewind_is_not_used(&cluster, &writer, settled).await?;
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, settled.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}

/// `pg_rewind` that answers `--help` and fails otherwise.
async fn rewind_fails(cluster: &Cluster, writer: &Writer, settled: Settled) -> Result<Settled> {
    let script = cluster.dir().join("pg_rewind_fails");
    let text = "#!/bin/sh\n[ \"$1\" = --help ] && exit 0\n\
                echo 'pg_rewind: error: made to fail' >&2\nexit 1\n";
    std::fs::write(&script, text)?;
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755))?;
    let lost = cluster.member(settled.leader)?;
    lost.edit(&json!({"postgresql": {
        "bin_name": {"pg_rewind": script},
        "remove_data_directory_on_rewind_failure": true,
    }}))?;
    let (back, rejoin, log) = diverge_lose_return(cluster, writer, &settled).await?;
    ensure!(rejoin == Rejoin::Cloned, "it was {rejoin:?}:\n{log}");
    ensure!(
        log.contains("running pg_rewind"),
        "it was tried first:\n{log}"
    );
    Ok(back)
}

async fn rewind_is_not_used(
    cluster: &Cluster,
    writer: &Writer,
    settled: Settled,
) -> Result<Settled> {
    let lost = cluster.member(settled.leader)?;
    lost.edit(&json!({"postgresql": {
        "use_pg_rewind": false,
        "remove_data_directory_on_diverged_timelines": true,
    }}))?;
    let (back, rejoin, log) = diverge_lose_return(cluster, writer, &settled).await?;
    ensure!(rejoin == Rejoin::Cloned, "it was {rejoin:?}:\n{log}");
    ensure!(!log.contains("running pg_rewind"), "no rewind:\n{log}");
    Ok(back)
}

async fn diverge_lose_return(
    cluster: &Cluster,
    writer: &Writer,
    settled: &Settled,
) -> Result<(Settled, Rejoin, String)> {
    let member = cluster.member(settled.leader)?;
    steps::diverge(cluster, settled.leader).await?;
    let logged = member.log_bytes();
    let failover = steps::lose_leader(cluster, writer, settled).await?;
    println!(
        "{} lost: write gap {:?}",
        name(settled.leader),
        failover.gap
    );
    let (back, rejoin) = steps::return_node(cluster, writer, settled.leader).await?;
    let count = format!("SELECT count(*) FROM {}", steps::DOOMED);
    let found = member.sql(&count).await?;
    ensure!(found == "0", "{found} rows that it had alone are left");
    Ok((back.settled, rejoin, member.log_since(logged)))
}
