//! Rounds of random faults: what nobody thought of.

use anyhow::{Result, ensure};
use chaos_tests::cluster::Settled;
use chaos_tests::steps::{self, BOOTSTRAP_LIMIT, REST, SETTLE_LIMIT};
use chaos_tests::{Builder, Cluster, Fault, Writer, checker, story};
use std::time::{Duration, Instant};

/// Rounds of an ordinary run, and with `GARDEN_LONG`.
const ROUNDS: (usize, usize) = (4, 40);
/// Variable that repeats the schedule of an earlier run.
const SEED_VARIABLE: &str = "GARDEN_SEED";

#[test]
fn rounds_of_random_faults_lose_no_acknowledged_row() {
    let seed = std::env::var(SEED_VARIABLE)
        .ok()
        .and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    let long = std::env::var_os("GARDEN_LONG").is_some();
    let rounds = if long { ROUNDS.1 } else { ROUNDS.0 };
    println!("{rounds} rounds of random faults, {SEED_VARIABLE}={seed}");
    story("random_faults", async {
        let mut dice = fastrand::Rng::with_seed(seed);
        let cluster = Builder::from_environment()?.quick().start().await?;
        cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        for round in 1..=rounds {
            let settled = cluster.steady(REST, SETTLE_LIMIT).await?;
            let from = Instant::now();
            let what = one_round(&cluster, &writer, &settled, &mut dice).await?;
            let gap = writer.ledger().gap(from, Instant::now());
            println!("round {round}: {what}, write gap {gap:?}");
        }
        let settled = cluster.settle(SETTLE_LIMIT).await?;
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, settled.leader, &[ledger]).await?;
        println!("{verdict}");
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}

/// One fault and its healing; afterwards everything runs again.
async fn one_round(
    cluster: &Cluster,
    writer: &Writer,
    settled: &Settled,
    dice: &mut fastrand::Rng,
) -> Result<String> {
    let leader = settled.leader;
    let anybody = dice.usize(..cluster.members().len());
    let pause = Duration::from_millis(dice.u64(0..6000));
    let what = match dice.u8(..6) {
        0 => {
            steps::switchover(cluster, writer, settled, None).await?;
            return Ok("switchover".to_owned());
        }
        1 => {
            steps::kill_postmaster(cluster, writer, settled).await?;
            return Ok(Fault::KillPostmaster(leader).to_string());
        }
        2 => {
            heal(
                cluster,
                Fault::LoseNode(leader),
                Fault::ReturnNode(leader),
                pause,
            )
            .await?
        }
        3 => {
            heal(
                cluster,
                Fault::LoseNode(anybody),
                Fault::ReturnNode(anybody),
                pause,
            )
            .await?
        }
        4 => {
            heal(
                cluster,
                Fault::StopAgent(anybody),
                Fault::ContinueAgent(anybody),
                pause,
            )
            .await?
        }
        _ => heal(cluster, Fault::FreezeEtcd, Fault::ThawEtcd, pause).await?,
    };
    cluster.settle(SETTLE_LIMIT).await?;
    writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
    Ok(what)
}

async fn heal(cluster: &Cluster, fault: Fault, healing: Fault, pause: Duration) -> Result<String> {
    fault.inject(cluster)?;
    tokio::time::sleep(pause).await;
    healing.inject(cluster)?;
    Ok(format!("{fault} for {pause:?}"))
}
