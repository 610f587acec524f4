//! Members that run the released Patroni beside ours in one scope: who leads changes between the two in
//! every way, both control tools work, and a writer loses no acknowledged row.

use anyhow::{Context, Result, ensure};
use chaos_tests::mixed::{Lives, Released, Tool, end_agent, held};
use chaos_tests::session::{self, STATEMENT_LIMIT};
use chaos_tests::steps::{self, BOOTSTRAP_LIMIT, REST, SETTLE_LIMIT};
use chaos_tests::store::{self, Way};
use chaos_tests::template::SCOPE;
use chaos_tests::{Cluster, Settled, Software, Writer, checker, story, wait};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

/// A change of the configuration, a slot or a flag is there after a few cycles of two seconds.
const NOTICED: Duration = Duration::from_secs(60);
/// The key of a member that has ended stays for a lease of 20 s; the leader switches after it.
const SWITCHED: Duration = Duration::from_secs(60);

async fn asked(cluster: &Cluster, member: usize, sql: &str) -> Result<String> {
    let client = session::client(cluster.member(member)?.postgres_port).await?;
    let row = tokio::time::timeout(STATEMENT_LIMIT, client.query_one(sql, &[])).await;
    Ok(row.context("no answer to SQL")??.get(0))
}

async fn everywhere(cluster: &Cluster, sql: &str, wanted: &str) -> Result<()> {
    wait::until(sql, NOTICED, || async {
        for index in 0..cluster.members().len() {
            let value = asked(cluster, index, sql)
                .await
                .map_err(|e| format!("{e:#}"))?;
            if value != wanted {
                return Err(format!("node{} has {value}, not {wanted}", index + 1));
            }
        }
        Ok(())
    })
    .await
}

/// No row is missing, doubled or different, and how many there were.
async fn nothing_lost(cluster: &Cluster, writer: Writer, leader: usize, what: &str) -> Result<()> {
    let ledger = writer.stop().await;
    let verdict = checker::check(cluster, leader, &[ledger]).await?;
    println!("{what}: {verdict}");
    ensure!(verdict.clean(), "{what}: {verdict}");
    Ok(())
}

/// Everything of the leader's node is killed; the member that leads next, once the node is back.
async fn lose_and_return(cluster: &Cluster, writer: &Writer) -> Result<Settled> {
    let before = cluster.steady(REST, SETTLE_LIMIT).await?;
    let lost = cluster.member(before.leader)?;
    let measured = steps::lose_leader(cluster, writer, &before).await?;
    let new = cluster.member(measured.settled.leader)?;
    println!(
        "loss of {} ({:?}) -> {} ({:?}): write gap {:.2} s",
        lost.name,
        lost.software(),
        new.name,
        new.software(),
        measured.gap.as_secs_f64()
    );
    let (back, how) = steps::return_node(cluster, writer, before.leader).await?;
    println!("{}: {}", lost.name, how.describe());
    Ok(back.settled)
}

/// Names and roles as a tool's table has them.
async fn roles(released: &Released, cluster: &Cluster, tool: Tool) -> Result<BTreeSet<String>> {
    let output = released.ctl(cluster, tool, &["list", "-f", "json"]).await?;
    let line = output.lines().find(|line| line.starts_with('['));
    let rows: Vec<Value> = serde_json::from_str(line.context("no JSON")?)?;
    let cell = |row: &Value, name: &str| row.get(name).and_then(Value::as_str).map(str::to_owned);
    let rows = rows.iter().map(|row| {
        let cells = ["Member", "Role", "State"].map(|name| cell(row, name).unwrap_or_default());
        cells.join(" ")
    });
    Ok(rows.collect())
}

async fn both_tools(released: &Released, cluster: &Cluster) -> Result<()> {
    wait::until("one table from both tools", NOTICED, || async {
        let both = async {
            let theirs = roles(released, cluster, Tool::Patronictl).await?;
            anyhow::Ok((theirs, roles(released, cluster, Tool::Gardenctl).await?))
        };
        match both.await {
            Ok((theirs, ours)) if theirs == ours && ours.len() == cluster.members().len() => Ok(()),
            Ok((theirs, ours)) => Err(format!("{theirs:?} and {ours:?}")),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await?;
    let set = |what: &'static str| ["edit-config", SCOPE, "--force", "-s", what];
    let (a, b) = (
        "postgresql.parameters.work_mem=7MB",
        "postgresql.parameters.work_mem=9MB",
    );
    released.ctl(cluster, Tool::Gardenctl, &set(a)).await?;
    everywhere(cluster, "SHOW work_mem", "7MB").await?;
    released.ctl(cluster, Tool::Patronictl, &set(b)).await?;
    everywhere(cluster, "SHOW work_mem", "9MB").await?;
    // With --wait each tool sees the flag of every member, of either kind.
    for (pauses, resumes) in [
        (Tool::Gardenctl, Tool::Patronictl),
        (Tool::Patronictl, Tool::Gardenctl),
    ] {
        released
            .ctl(cluster, pauses, &["pause", SCOPE, "--wait"])
            .await?;
        ensure!(store::document(cluster, "config").await?.get("pause") == Some(&json!(true)));
        released
            .ctl(cluster, resumes, &["resume", SCOPE, "--wait"])
            .await?;
    }
    Ok(())
}

/// The permanent slots, and a slot for each other member, are on every member, whichever kind leads; a copy
/// of the logical one restarts a standby of either kind, one after the other.
async fn slots(cluster: &Cluster) -> Result<()> {
    let sql = "SELECT coalesce(string_agg(slot_name::text, ',' ORDER BY slot_name), '') \
        FROM pg_replication_slots WHERE slot_type = 'physical'";
    wait::until("slots on every member", SETTLE_LIMIT, || async {
        for (index, member) in cluster.members().iter().enumerate() {
            let found = asked(cluster, index, sql).await.map_err(|e| format!("{e:#}"))?;
            let others = cluster.members().iter().filter(|m| m.name != member.name);
            let mut wanted: Vec<&str> = others.map(|m| m.name.as_str()).collect();
            wanted.insert(0, "archive");
            if found != wanted.join(",") {
                return Err(format!("{} has {found}, not {wanted:?}", member.name));
            }
        }
        let sql = "SELECT count(*)::text FROM pg_replication_slots WHERE slot_name = 'changes' AND plugin = 'test_decoding'";
        for (index, member) in cluster.members().iter().enumerate() {
            match asked(cluster, index, sql).await {
                Ok(one) if one == "1" => {}
                other => return Err(format!("logical slot of {}: {other:?}", member.name)),
            }
        }
        Ok(())
    })
    .await
}

/// For a cluster that will have [`permanent_slots`].
fn room_for_slots() -> Value {
    json!({
        // Either standby may be a candidate then.
        "synchronous_node_count": 2,
        "postgresql": { "parameters": { "wal_level": "logical" } },
    })
}

/// Not from the first moment: a standby that was copied after the slot was made has not the WAL that it begins
/// with, and nobody reads here who would move it on.
fn permanent_slots() -> Value {
    json!({
        "slots": {
            "archive": { "type": "physical" },
            "changes": { "type": "logical", "database": "postgres", "plugin": "test_decoding" },
        },
    })
}

#[test]
fn one_patroni_member_beside_two_of_ours() {
    let Some(released) = Released::find() else {
        return;
    };
    story("mixed_one_patroni", async {
        const PATRONI: usize = 2;
        let builder = released.beside_ours(&[2])?;
        let cluster = builder
            .configure(|settings| settings.dynamic = room_for_slots())
            .start()
            .await?;
        let first = cluster.settle(BOOTSTRAP_LIMIT).await?;
        cluster.patch(permanent_slots()).await?;
        // The copies restart the standbys: until then none of them may be a candidate.
        slots(&cluster).await?;
        held(&cluster, Way::Compatible, SWITCHED).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        if first.leader == PATRONI {
            released
                .switchover(&cluster, &writer, Tool::Gardenctl, 0)
                .await?;
        }
        released
            .switchover(&cluster, &writer, Tool::Patronictl, PATRONI)
            .await?;
        slots(&cluster).await?;
        both_tools(&released, &cluster).await?;
        released
            .switchover(&cluster, &writer, Tool::Gardenctl, 1)
            .await?;
        slots(&cluster).await?;
        both_tools(&released, &cluster).await?;
        held(&cluster, Way::Compatible, SWITCHED).await?;
        released
            .switchover(&cluster, &writer, Tool::Patronictl, PATRONI)
            .await?;
        let after = lose_and_return(&cluster, &writer).await?;
        ensure!(after.leader != PATRONI, "one of ours leads");
        native_and_back(&cluster, &writer, PATRONI).await?;
        let last = cluster.settle(SETTLE_LIMIT).await?;
        nothing_lost(
            &cluster,
            writer,
            last.leader,
            "one Patroni member, synchronous",
        )
        .await
    });
}

/// The last Patroni member goes and the lock becomes a record; it comes back and the lock becomes a key
/// on a lease, without a change of leader.
async fn native_and_back(cluster: &Cluster, writer: &Writer, patroni: usize) -> Result<()> {
    let before = cluster.settle(SETTLE_LIMIT).await?;
    let member = cluster.member(patroni)?;
    for (software, way) in [
        (Software::Own, Way::Native),
        (Software::Patroni, Way::Compatible),
    ] {
        let from = Instant::now();
        end_agent(member).await?;
        member.exchange(software)?;
        member.start()?;
        held(cluster, way, SWITCHED).await?;
        println!(
            "{way:?} {:.1} s after the exchange began",
            from.elapsed().as_secs_f64()
        );
        let now = cluster.settle(SETTLE_LIMIT).await?;
        ensure!(
            now.leader == before.leader && now.timeline == before.timeline,
            "the leader stays: {now:?}"
        );
        writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
    }
    Ok(())
}

#[test]
fn two_patroni_members_beside_one_of_ours_with_quorum_commit() {
    let Some(released) = Released::find() else {
        return;
    };
    story("mixed_two_patroni", async {
        const OURS: usize = 0;
        let builder = released.beside_ours(&[1, 2])?;
        let cluster = builder
            .configure(|settings| settings.synchronous_mode = json!("quorum"))
            .start()
            .await?;
        let first = cluster.settle(BOOTSTRAP_LIMIT).await?;
        held(&cluster, Way::Compatible, SWITCHED).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        if first.leader != OURS {
            released
                .switchover(&cluster, &writer, Tool::Patronictl, OURS)
                .await?;
        }
        released
            .switchover(&cluster, &writer, Tool::Gardenctl, 1)
            .await?;
        released
            .switchover(&cluster, &writer, Tool::Patronictl, OURS)
            .await?;
        let after = lose_and_return(&cluster, &writer).await?;
        ensure!(after.leader != OURS, "a Patroni member leads");
        let again = lose_and_return(&cluster, &writer).await?;
        println!("node{} leads at the end", again.leader + 1);
        nothing_lost(
            &cluster,
            writer,
            again.leader,
            "two Patroni members, quorum",
        )
        .await
    });
}

#[test]
fn planned_changes_between_the_two_lose_nothing_without_synchronous_mode() {
    let Some(released) = Released::find() else {
        return;
    };
    story("mixed_asynchronous", async {
        let builder = released.beside_ours(&[2])?;
        let cluster = builder
            .configure(|settings| settings.synchronous_mode = json!(false))
            .start()
            .await?;
        let first = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let lives = Lives::count(&cluster);
        let writer = Writer::through_haproxy(&cluster).await?;
        if first.leader == 2 {
            released
                .switchover(&cluster, &writer, Tool::Patronictl, 0)
                .await?;
        }
        released
            .switchover(&cluster, &writer, Tool::Gardenctl, 2)
            .await?;
        let last = released
            .switchover(&cluster, &writer, Tool::Patronictl, 1)
            .await?;
        println!("PostgreSQL restarts: {}", lives.describe());
        nothing_lost(
            &cluster,
            writer,
            last.leader,
            "one Patroni member, asynchronous",
        )
        .await
    });
}
