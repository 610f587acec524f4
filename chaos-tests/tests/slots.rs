//! Replication slots outlive their primary: a consumer of a logical slot goes on where it was.

use anyhow::{Context, Result, ensure};
use chaos_tests::clients::decoder::Decoder;
use chaos_tests::steps::{self, BOOTSTRAP_LIMIT, Rejoin, SETTLE_LIMIT};
use chaos_tests::{Builder, Cluster, Member, Settled, Writer, checker, story, wait};
use serde_json::json;
use std::time::Duration;

/// The permanent logical slot.
const CHANGES: &str = "changes";
/// The permanent physical one.
const ARCHIVE: &str = "archive";
/// A slot that somebody made and `ignore_slots` names.
const BY_HAND: &str = "by_hand";

/// Every standby is restarted for a copy, one after the other.
const COPIED: Duration = Duration::from_secs(120);
/// The consumer has everything that was written until now within this time.
const DECODED: Duration = Duration::from_secs(60);

/// Where a slot stands on a member; empty when it is not there.
async fn place(member: &Member, slot: &str) -> Result<String> {
    let sql = format!(
        "SELECT coalesce(confirmed_flush_lsn, restart_lsn)::text FROM pg_replication_slots \
         WHERE slot_name = '{slot}'"
    );
    member.sql(&sql).await
}

async fn is_everywhere(cluster: &Cluster, slot: &str) -> Result<()> {
    let what = format!("slot {slot} on every member");
    let look = || async {
        for member in cluster.members() {
            let found = place(member, slot).await;
            let found = found.map_err(|error| format!("{error:#}"))?;
            if found.is_empty() {
                return Err(format!("not on {}", member.name));
            }
        }
        Ok(())
    };
    wait::until(&what, COPIED, look).await
}

/// The primary keeps what the copies on both standbys need.
async fn are_proved(cluster: &Cluster) -> Result<()> {
    let said = "the copy of a logical slot can be decoded from";
    wait::until("the copies to be proved", COPIED, || async {
        let logs = cluster.members().iter().map(|member| member.log_since(0));
        match logs.filter(|log| log.contains(said)).count() {
            2 => Ok(()),
            proved => Err(format!("{proved} of them are")),
        }
    })
    .await
}

/// Waits until the slot on this member is not behind `goal`.
async fn reaches(member: &Member, slot: &str, goal: &str) -> Result<()> {
    let sql = format!(
        "SELECT coalesce(confirmed_flush_lsn, restart_lsn) >= '{goal}' \
         FROM pg_replication_slots WHERE slot_name = '{slot}'"
    );
    member.sql_until(&sql, "t").await
}

/// The standbys' copies of both slots follow the leader's.
async fn move_along(cluster: &Cluster, settled: &Settled) -> Result<()> {
    let leader = cluster.member(settled.leader)?;
    leader
        .sql(&format!(
            "SELECT pg_replication_slot_advance('{ARCHIVE}', pg_current_wal_lsn())"
        ))
        .await?;
    for slot in [CHANGES, ARCHIVE] {
        let goal = place(leader, slot).await?;
        for index in &settled.replicas {
            reaches(cluster.member(*index)?, slot, &goal).await?;
        }
    }
    Ok(())
}

async fn consumer_goes_on(decoder: &Decoder, writer: &Writer, event: &str) -> Result<()> {
    let ledger = writer.ledger();
    decoder
        .has_all(&ledger, DECODED)
        .await
        .context(event.to_owned())?;
    let seen = decoder.seen();
    println!(
        "{event}: {} acknowledged rows are decoded, {} of them again, in {} sessions",
        ledger.acks.len(),
        seen.again,
        seen.sessions
    );
    Ok(())
}

#[test]
fn a_logical_consumer_goes_on_after_switchover_and_failover() {
    story("slots", async {
        let cluster = Builder::from_environment()?
            .quick()
            .configure(|settings| {
                settings.dynamic = json!({
                    "slots": {
                        CHANGES: {
                            "type": "logical", "database": "postgres", "plugin": "test_decoding",
                        },
                        ARCHIVE: { "type": "physical" },
                    },
                    "ignore_slots": [{ "name": BY_HAND }],
                    "postgresql": { "parameters": { "wal_level": "logical" } },
                });
            })
            .start()
            .await?;
        cluster.settle(BOOTSTRAP_LIMIT).await?;
        is_everywhere(&cluster, CHANGES).await?;
        is_everywhere(&cluster, ARCHIVE).await?;
        are_proved(&cluster).await?;
        let first = cluster.steady(steps::REST, SETTLE_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        let decoder = Decoder::start(cluster.ports().writes, CHANGES);
        consumer_goes_on(&decoder, &writer, "at rest").await?;
        move_along(&cluster, &first).await?;

        let handed = steps::switchover(&cluster, &writer, &first, None).await?;
        consumer_goes_on(&decoder, &writer, "after a switchover").await?;
        is_everywhere(&cluster, CHANGES).await?;
        let second = cluster.steady(steps::REST, SETTLE_LIMIT).await?;
        ensure!(second.leader == handed.settled.leader, "{second:?}");
        move_along(&cluster, &second).await?;

        // The consumer reads rows here that nobody else will ever have, and confirms a position that the
        // next leader has yet to reach.
        let lost = second.leader;
        steps::diverge(&cluster, lost).await?;
        let third = steps::lose_leader(&cluster, &writer, &second).await?;
        consumer_goes_on(&decoder, &writer, "after the loss of a node").await?;
        retained(&cluster, lost, &third.settled).await?;
        let (_, rejoin) = steps::return_node(&cluster, &writer, lost).await?;
        ensure!(
            rejoin == Rejoin::Rewound,
            "it had diverged, and was {rejoin:?}"
        );
        is_everywhere(&cluster, CHANGES).await?;
        let last = cluster.steady(steps::REST, SETTLE_LIMIT).await?;
        move_along(&cluster, &last).await?;
        only_foreign_ones_go(cluster.member(last.leader)?).await?;

        let ledger = writer.stop().await;
        decoder.has_all(&ledger, DECODED).await?;
        let seen = decoder.stop().await;
        println!(
            "{} rows decoded, {} of them again",
            seen.rows.len(),
            seen.again
        );
        let verdict = checker::check(&cluster, last.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}

/// The slot of a lost member stays when its key is gone, and goes with `member_slots_ttl`.
async fn retained(cluster: &Cluster, lost: usize, settled: &Settled) -> Result<()> {
    let name = cluster.member(lost)?.name.clone();
    let leader = cluster.member(settled.leader)?;
    cluster
        .key_until(
            &format!("members/{name}"),
            "gone",
            serde_json::Value::is_null,
        )
        .await?;
    // Longer than a cycle: it would be dropped by now.
    tokio::time::sleep(Duration::from_secs(4)).await;
    ensure!(
        !place(leader, &name).await?.is_empty(),
        "{name} is retained"
    );
    cluster.patch(json!({ "member_slots_ttl": "1s" })).await?;
    let count = format!("SELECT count(*) FROM pg_replication_slots WHERE slot_name = '{name}'");
    leader.sql_until(&count, "0").await?;
    cluster.patch(json!({ "member_slots_ttl": null })).await
}

/// What `ignore_slots` names stays, what nobody asked for goes.
async fn only_foreign_ones_go(leader: &Member) -> Result<()> {
    let create = |name: &str| format!("SELECT pg_create_physical_replication_slot('{name}', true)");
    leader.sql(&create(BY_HAND)).await?;
    leader.sql(&create("foreign_one")).await?;
    let count = "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'foreign_one'";
    leader.sql_until(count, "0").await?;
    ensure!(
        !place(leader, BY_HAND).await?.is_empty(),
        "{BY_HAND} is ignored"
    );
    Ok(())
}

/// Made by the operator, with `failover`: PostgreSQL 17 and later keep it up on the standbys themselves.
const NATIVE: &str = "native";

/// PostgreSQL's own worker on every standby has the slot; it looks twice a minute when it is idle.
async fn is_synchronised(cluster: &Cluster, settled: &Settled) -> Result<()> {
    let sql = format!(
        "SELECT count(*) FROM pg_replication_slots \
         WHERE slot_name = '{NATIVE}' AND synced AND NOT temporary AND invalidation_reason IS NULL"
    );
    for index in &settled.replicas {
        let member = cluster.member(*index)?;
        let what = format!("{NATIVE} synchronised on {}", member.name);
        wait::until(&what, COPIED, || async {
            match member.sql(&sql).await {
                Ok(count) if count == "1" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await?;
    }
    Ok(())
}

#[test]
fn failover_slots_are_left_to_postgresql() {
    story("failover_slots", async {
        let cluster = Builder::from_environment()?
            .quick()
            .configure(|settings| {
                settings.dynamic = json!({
                    "postgresql": { "parameters": {
                        "wal_level": "logical",
                        "hot_standby_feedback": "on",
                        "sync_replication_slots": "on",
                    } },
                });
            })
            .start()
            .await?;
        let first = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let leader = cluster.member(first.leader)?;
        let version: u32 = leader.sql("SHOW server_version_num").await?.parse()?;
        if version < 170_000 {
            println!("PostgreSQL {version} has no failover slots: nothing to see");
            return Ok(());
        }
        let create = format!(
            "SELECT pg_create_logical_replication_slot('{NATIVE}', 'test_decoding', false, false, true)"
        );
        leader.sql(&create).await?;
        let pids = || {
            cluster
                .members()
                .iter()
                .map(Member::postmaster)
                .collect::<Vec<_>>()
        };
        let before = pids();
        is_synchronised(&cluster, &first).await?;
        ensure!(pids() == before, "no standby was restarted for it");
        let writer = Writer::through_haproxy(&cluster).await?;
        let decoder = Decoder::start(cluster.ports().writes, NATIVE);
        consumer_goes_on(&decoder, &writer, "at rest").await?;

        let second = steps::switchover(&cluster, &writer, &first, None)
            .await?
            .settled;
        consumer_goes_on(&decoder, &writer, "after a switchover").await?;
        // The former primary's own slot makes room.
        is_synchronised(&cluster, &second).await?;
        let second = cluster.steady(steps::REST, SETTLE_LIMIT).await?;
        let third = steps::lose_leader(&cluster, &writer, &second)
            .await?
            .settled;
        consumer_goes_on(&decoder, &writer, "after the loss of a node").await?;
        let ledger = writer.stop().await;
        decoder.has_all(&ledger, DECODED).await?;
        let verdict = checker::check(&cluster, third.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}
