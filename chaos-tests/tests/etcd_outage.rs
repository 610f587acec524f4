//! What happens when etcd does not answer.

use anyhow::{Context, Result, ensure};
use chaos_tests::steps::{BOOTSTRAP_LIMIT, REST, SETTLE_LIMIT};
use chaos_tests::{Builder, Cluster, Fault, Settled, Writer, checker, store, story};
use serde_json::{Value, json};
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

/// All etcd at once, without a majority to say goodbye to.
fn stop_etcd(cluster: &Cluster) -> Result<()> {
    cluster.etcds().iter().try_for_each(|etcd| etcd.stop())
}

/// Longer than a lease (8 s), and than the time that one promise gives (`ttl` 20 s).
const FAILSAFE_OUTAGE: Duration = Duration::from_secs(45);

/// Longer than the lease: the promises count.
const IN_FAILSAFE: Duration = Duration::from_secs(12);

#[test]
fn in_failsafe_mode_the_primary_goes_on_while_every_member_answers() {
    story("failsafe", async {
        let cluster = Builder::from_environment()?
            .quick()
            .configure(|settings| settings.dynamic = json!({ "failsafe_mode": true }))
            .start()
            .await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let all = |found: &Value| found.as_object().is_some_and(|all| all.len() == 3);
        cluster.key_until("failsafe", "every member", all).await?;
        let pids = postmasters(&cluster)?;
        let writer = Writer::through_haproxy(&cluster).await?;
        let from = Instant::now();
        stop_etcd(&cluster)?;
        tokio::time::sleep(IN_FAILSAFE).await;
        let place = idle_slot(&cluster, &before).await?;
        tokio::time::sleep(FAILSAFE_OUTAGE - IN_FAILSAFE).await;
        let moved = idle_slot(&cluster, &before).await?;
        ensure!(moved > place, "idle slots move along: {place} to {moved}");
        let gap = writer.ledger().gap(from, Instant::now());
        println!("etcd gone for {FAILSAFE_OUTAGE:?} in failsafe mode: write gap {gap:?}");
        ensure!(gap < Duration::from_secs(5), "writes went on: {gap:?}");
        cluster.start_etcd().await?;
        let after = cluster.steady(REST, SETTLE_LIMIT).await?;
        ensure!(after == before, "{after:?} instead of {before:?}");
        ensure!(
            postmasters(&cluster)? == pids,
            "no PostgreSQL was restarted"
        );

        let second = released_after_an_outage(&cluster, &writer, &after).await?;
        one_member_lost(&cluster, &writer, &second).await?;
        let last = cluster.settle(SETTLE_LIMIT).await?;
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, last.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}

/// Where a standby's slot for the other standby is.
async fn idle_slot(cluster: &Cluster, settled: &Settled) -> Result<u64> {
    let (Some(first), Some(second)) = (settled.replicas.first(), settled.replicas.last()) else {
        anyhow::bail!("two standbys, not {settled:?}");
    };
    let sql = format!(
        "SELECT (restart_lsn - '0/0')::bigint FROM pg_replication_slots WHERE slot_name = '{}'",
        cluster.member(*second)?.name
    );
    let found = cluster.member(*first)?.sql(&sql).await?;
    found.parse().with_context(|| format!("{sql}: {found}"))
}

/// A leader that lets go in order after an outage is succeeded at once: the promises were given to it,
/// and it is gone.
async fn released_after_an_outage(
    cluster: &Cluster,
    writer: &Writer,
    before: &Settled,
) -> Result<Settled> {
    stop_etcd(cluster)?;
    tokio::time::sleep(IN_FAILSAFE).await;
    cluster.start_etcd().await?;
    let settled = cluster.steady(REST, SETTLE_LIMIT).await?;
    ensure!(settled == *before, "{settled:?} instead of {before:?}");
    let old = cluster.member(before.leader)?;
    let from = Instant::now();
    old.stop_agent()?;
    let ack = writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
    let gap = writer.ledger().gap(from, ack.at);
    println!("leader stopped in order after an outage in failsafe mode: write gap {gap:?}");
    // Of the promises, at least twelve seconds would be left.
    ensure!(gap < Duration::from_secs(9), "nobody waits: {gap:?}");
    old.start()?;
    cluster.steady(REST, SETTLE_LIMIT).await
}

/// One member less, and nobody knows whether it leads: the primary stops until etcd is back.
async fn one_member_lost(cluster: &Cluster, writer: &Writer, before: &Settled) -> Result<()> {
    stop_etcd(cluster)?;
    tokio::time::sleep(IN_FAILSAFE).await;
    ensure!(primaries(cluster).await == 1, "failsafe mode is active");
    let lost = *before.replicas.first().context("a standby")?;
    let from = Instant::now();
    Fault::LoseNode(lost).inject(cluster)?;
    let nobody = || async {
        match primaries(cluster).await {
            0 => Ok(()),
            count => Err(format!("{count} primaries")),
        }
    };
    chaos_tests::wait::until("the primary to stop", Duration::from_secs(30), nobody).await?;
    println!(
        "a member lost in failsafe mode: no primary after {:?}",
        from.elapsed()
    );
    let quiet = Instant::now();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let late = writer.ledger().acked_between(quiet, Instant::now());
    ensure!(late == 0, "{late} rows were acknowledged without a leader");
    cluster.start_etcd().await?;
    Fault::ReturnNode(lost).inject(cluster)?;
    cluster.settle(SETTLE_LIMIT).await?;
    writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
    Ok(())
}

#[test]
fn etcd_wiped_under_a_running_cluster_is_written_anew() {
    story("etcd_wiped", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let known = json!({ "maximum_lag_on_failover": 7_654_321 });
        cluster.patch(known.clone()).await?;
        let system = cluster.key("initialize").await?.context("initialised")?;
        let writer = Writer::through_haproxy(&cluster).await?;
        // The members have read the change: it is theirs to write back.
        cluster.steady(Duration::from_secs(5), SETTLE_LIMIT).await?;
        let from = Instant::now();
        let keys = store::wipe(&cluster).await?;
        let ack = writer.wait_ack_after(from + REST, SETTLE_LIMIT).await?;
        let after = cluster
            .steady(Duration::from_secs(10), SETTLE_LIMIT)
            .await?;
        println!(
            "{keys} keys wiped: write gap {:?}, timeline {} after {}",
            writer.ledger().gap(from, ack.at),
            after.timeline,
            before.timeline
        );
        ensure!(
            after.leader == before.leader,
            "{after:?} instead of {before:?}"
        );
        // A number, too large for some readers, and shown as one.
        let again = |found: &Value| match found {
            Value::Number(number) => number.to_string() == system,
            other => other.as_str() == Some(&system),
        };
        cluster.key_until("initialize", "as it was", again).await?;
        let kept = |found: &Value| {
            found.get("maximum_lag_on_failover") == known.get("maximum_lag_on_failover")
        };
        cluster
            .key_until("config", "as it was changed last", kept)
            .await?;
        cluster
            .key_until("status", "written", |found| found.get("optime").is_some())
            .await?;
        let synchronous = |found: &Value| !found.get("sync_standby").is_none_or(Value::is_null);
        cluster.key_until("sync", "standbys", synchronous).await?;
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, after.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}
