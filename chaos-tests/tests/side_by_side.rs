//! The released Patroni and ours in the same states, and every answer of both compared: codes, headers,
//! documents field by field, `/metrics`, and the tables of both control tools on both clusters to the
//! byte. Prints all differences; one that nothing explains fails.

use anyhow::{Context, Result, ensure};
use chaos_tests::beside::probe::{Probe, looks};
use chaos_tests::beside::requests::{
    LATER, handovers, refused_by_leader, refused_by_replica, refused_in_pause,
};
use chaos_tests::beside::table::Table;
use chaos_tests::beside::{Pair, STATE_LIMIT, hang_file};
use chaos_tests::process;
use chaos_tests::session::{self, STATEMENT_LIMIT};
use chaos_tests::{Cluster, Fault, binaries, story, wait};
use serde_json::{Value, json};

const LEADER: usize = 0;
const REPLICA: usize = 1;
/// Has tags, and follows the other replica.
const TAGGED: usize = 2;
const ALL: &[usize] = &[LEADER, REPLICA, TAGGED];

const TABLES: &[&str] = &["list", "list -e -f json", "topology"];
const ALL_FORMATS: &[&str] = &[
    "list -e",
    "list -f json",
    "list -f tsv",
    "list -e -f tsv",
    "list -f yaml",
    "list -e -f yml",
    "list garden other",
    "topology",
    "show-config",
    "history",
    "history -f json",
    "history -f tsv",
    "history -f yaml",
    "dsn",
    "dsn -r any",
    "dsn -r standby",
    "dsn -m node3",
    "dsn -m nobody",
    "version garden",
    "version garden node2",
    "flush garden switchover",
    "query -c SELECT --format json",
    "switchover --candidate node3 --force",
    "failover --force",
];

#[test]
fn every_answer_is_patronis_or_the_difference_is_explained() {
    let Some(patroni) = binaries::patroni() else {
        return;
    };
    story("side by side", async {
        let pair = Pair::start(&patroni).await?;
        let mut table = Table::default();
        let outcome = states(&pair, &mut table).await;
        let open = table.print();
        outcome?;
        ensure!(open == 0, "{open} differences that nothing explains");
        Ok(())
    });
}

async fn states(pair: &Pair, table: &mut Table) -> Result<()> {
    running(pair, table).await?;
    synchronous(pair, table).await?;
    pending(pair, table).await?;
    starting(pair, table).await?;
    paused(pair, table).await?;
    standby_cluster(pair, table).await?;
    without_etcd(pair, table).await?;
    without_leader(pair, table).await
}

/// A leader, a replica, and a tagged replica of that replica; every request that changes nothing.
async fn running(pair: &Pair, table: &mut Table) -> Result<()> {
    pair.until((LEADER, "/cluster"), "everybody streams", |found| {
        let members = found.get("members").and_then(Value::as_array);
        members.is_some_and(|all| {
            all.iter()
                .filter(|m| m.get("state") == Some(&json!("streaming")))
                .count()
                == 2
        })
    })
    .await?;
    pair.compare("running", ALL, &looks(), table).await;
    pair.compare(
        "running, requests to the leader",
        &[LEADER],
        &refused_by_leader(),
        table,
    )
    .await;
    pair.compare(
        "running, requests to a replica",
        &[REPLICA],
        &refused_by_replica(),
        table,
    )
    .await;
    pair.tools("running", ALL_FORMATS, table).await
}

/// Classic, then quorum.
async fn synchronous(pair: &Pair, table: &mut Table) -> Result<()> {
    for (mode, flag) in [
        (json!(true), "sync_standby"),
        (json!("quorum"), "quorum_standby"),
    ] {
        patch(pair, json!({"synchronous_mode": mode})).await?;
        pair.until((REPLICA, "/patroni"), flag, |found| {
            found.get(flag) == Some(&json!(true))
        })
        .await?;
        let state = format!("synchronous_mode {mode}");
        pair.compare(&state, ALL, &looks(), table).await;
        pair.compare(&state, &[LEADER], &handovers(), table).await;
        pair.tools(&state, TABLES, table).await?;
    }
    patch(pair, json!({"synchronous_mode": false})).await?;
    pair.until((REPLICA, "/patroni"), "asynchronous again", |found| {
        found.get("quorum_standby").is_none()
    })
    .await
}

/// A parameter waits for a restart; a restart and a switchover are scheduled.
async fn pending(pair: &Pair, table: &mut Table) -> Result<()> {
    patch(
        pair,
        json!({"postgresql": {"parameters": {"max_connections": 60}}}),
    )
    .await?;
    for member in ALL {
        pair.until((*member, "/patroni"), "a pending restart", |found| {
            found.get("pending_restart").is_some()
        })
        .await?;
    }
    pair.compare("pending restart", ALL, &looks(), table).await;
    let body = json!({"schedule": LATER, "restart_pending": true, "timeout": "5min"}).to_string();
    pair.order(REPLICA, &Probe::with("POST", "/restart", &body), 202)
        .await?;
    let body = json!({"leader": "node1", "candidate": "node2", "scheduled_at": LATER}).to_string();
    pair.order(LEADER, &Probe::with("POST", "/switchover", &body), 202)
        .await?;
    pair.until((LEADER, "/cluster"), "both schedules", |found| {
        let restart = found.pointer("/members/1/scheduled_restart");
        found.get("scheduled_switchover").is_some() && restart.is_some()
    })
    .await?;
    pair.compare("scheduled", ALL, &looks(), table).await;
    let again = Probe::with("POST", "/restart", &json!({"schedule": LATER}).to_string());
    pair.compare_once("scheduled, once more", REPLICA, again, table)
        .await;
    pair.tools("scheduled", ALL_FORMATS.get(..8).unwrap_or_default(), table)
        .await?;
    pair.order(REPLICA, &Probe::get("DELETE", "/restart"), 200)
        .await?;
    pair.order(LEADER, &Probe::get("DELETE", "/switchover"), 200)
        .await?;
    let once = Probe::with("POST", "/restart", "{}");
    pair.compare_once("restart of a replica", REPLICA, once, table)
        .await;
    pair.until((REPLICA, "/patroni"), "streams again", streams)
        .await
}

/// Replay is paused while megabytes are written; outside of a pause of the cluster both would resume it.
async fn lagging(pair: &Pair, table: &mut Table) -> Result<()> {
    pair.each(|cluster| sql(cluster, REPLICA, "SELECT pg_wal_replay_pause()"))
        .await?;
    let much = "CREATE TABLE much AS SELECT repeat('x', 1000) AS t FROM generate_series(1, 20000)";
    pair.each(|cluster| sql(cluster, LEADER, much)).await?;
    pair.until((LEADER, "/cluster"), "a lag", |found| {
        found
            .pointer("/members/1/replay_lag")
            .and_then(Value::as_u64)
            > Some(1 << 20)
    })
    .await?;
    pair.compare("replay is paused", ALL, &looks(), table).await;
    pair.tools("replay is paused", &["list"], table).await?;
    pair.each(|cluster| sql(cluster, REPLICA, "SELECT pg_wal_replay_resume()"))
        .await?;
    pair.until((LEADER, "/cluster"), "no lag", |found| {
        found
            .pointer("/members/1/replay_lag")
            .and_then(Value::as_u64)
            .is_some_and(|lag| lag < 1 << 20)
    })
    .await
}

/// A replica's server does not accept connections yet.
async fn starting(pair: &Pair, table: &mut Table) -> Result<()> {
    for cluster in [&pair.theirs, &pair.ours] {
        std::fs::write(hang_file(cluster.member(REPLICA)?), "").context("make it hang")?;
    }
    let impatient = Probe::with("POST", "/restart", &json!({"timeout": 3}).to_string());
    pair.compare_once("a restart that takes too long", REPLICA, impatient, table)
        .await;
    pair.until((REPLICA, "/patroni"), "starting", |found| {
        found.get("state") == Some(&json!("starting"))
    })
    .await?;
    pair.compare("starting", &[LEADER, REPLICA], &looks(), table)
        .await;
    pair.tools("starting", TABLES, table).await?;
    for cluster in [&pair.theirs, &pair.ours] {
        std::fs::remove_file(hang_file(cluster.member(REPLICA)?)).context("let it go on")?;
    }
    pair.until((REPLICA, "/patroni"), "streams again", streams)
        .await
}

/// Maintenance mode, and servers that were stopped or have crashed in it.
async fn paused(pair: &Pair, table: &mut Table) -> Result<()> {
    patch(pair, json!({"pause": true})).await?;
    for member in ALL {
        pair.until((*member, "/patroni"), "paused", |found| {
            found.get("pause").is_some()
        })
        .await?;
    }
    pair.compare("paused", ALL, &looks(), table).await;
    pair.compare("paused, requests", &[LEADER], &refused_in_pause(), table)
        .await;
    pair.tools("paused", TABLES, table).await?;
    lagging(pair, table).await?;
    pair.each(|cluster| stop(cluster, TAGGED)).await?;
    pair.until((TAGGED, "/patroni"), "not running", down)
        .await?;
    pair.compare("stopped in pause", &[LEADER, TAGGED], &looks(), table)
        .await;
    pair.tools("stopped in pause", &["list", "list -f json"], table)
        .await?;
    pair.each(|cluster| async move { Fault::KillPostmaster(REPLICA).inject(cluster) })
        .await?;
    pair.until((REPLICA, "/patroni"), "not running", down)
        .await?;
    pair.compare("crashed in pause", &[LEADER, REPLICA], &looks(), table)
        .await;
    patch(pair, json!({"pause": null})).await?;
    for member in [REPLICA, TAGGED] {
        pair.until((member, "/patroni"), "streams again", streams)
            .await?;
    }
    Ok(())
}

/// The cluster follows another one, of which it finds no WAL; then it is its own again.
async fn standby_cluster(pair: &Pair, table: &mut Table) -> Result<()> {
    patch(
        pair,
        json!({"standby_cluster": {"restore_command": "/bin/false"}}),
    )
    .await?;
    pair.until((LEADER, "/patroni"), "a standby leader", |found| {
        found.get("role") == Some(&json!("standby_leader"))
    })
    .await?;
    pair.until((REPLICA, "/patroni"), "streams from it", streams)
        .await?;
    pair.compare("standby cluster", ALL, &looks(), table).await;
    pair.tools("standby cluster", TABLES, table).await?;
    patch(pair, json!({"standby_cluster": null})).await?;
    pair.until((LEADER, "/patroni"), "a primary again", |found| {
        found.get("role") == Some(&json!("primary"))
    })
    .await?;
    for member in [REPLICA, TAGGED] {
        pair.until((member, "/patroni"), "on the new timeline", |found| {
            streams(found) && found.get("timeline") == Some(&json!(2))
        })
        .await?;
    }
    pair.until((LEADER, "/history"), "a line", |found| {
        found.as_array().is_some_and(|lines| !lines.is_empty())
    })
    .await?;
    pair.compare("after a promotion", ALL, &looks(), table)
        .await;
    pair.tools(
        "after a promotion",
        ALL_FORMATS.get(..18).unwrap_or_default(),
        table,
    )
    .await
}

/// etcd is away: first in failsafe mode, where the primary goes on.
async fn without_etcd(pair: &Pair, table: &mut Table) -> Result<()> {
    patch(pair, json!({"failsafe_mode": true})).await?;
    pair.until((LEADER, "/failsafe"), "the list of members", |found| {
        found.as_object().is_some_and(|members| members.len() == 3)
    })
    .await?;
    pair.compare("failsafe mode", ALL, &looks(), table).await;
    let own = r#"{"name": "node1", "conn_url": "postgres://127.0.0.1/x", "api_url": "http://127.0.0.1/"}"#;
    pair.compare(
        "failsafe mode",
        &[LEADER, REPLICA],
        &[Probe::with("POST", "/failsafe", own)],
        table,
    )
    .await;
    pair.each(|cluster| async move { Fault::FreezeEtcd.inject(cluster) })
        .await?;
    pair.until((REPLICA, "/patroni"), "failsafe mode is active", |found| {
        found.get("failsafe_mode_is_active").is_some()
    })
    .await?;
    // Until the last view is too old, a lease after etcd was last seen, on the primary, too.
    for member in ALL {
        pair.until((*member, "/patroni"), "etcd is away", |found| {
            found.get("cluster_unlocked").is_some()
        })
        .await?;
    }
    pair.compare("failsafe mode is active", ALL, &looks(), table)
        .await;
    pair.each(|cluster| async move { Fault::ThawEtcd.inject(cluster) })
        .await?;
    pair.until((REPLICA, "/patroni"), "etcd is back", |found| {
        found.get("failsafe_mode_is_active").is_none() && found.get("cluster_unlocked").is_none()
    })
    .await?;
    pair.until((LEADER, "/patroni"), "etcd is back", |found| {
        found.get("failsafe_mode_is_active").is_none() && found.get("cluster_unlocked").is_none()
    })
    .await
}

/// The leader is lost in pause: nobody leads.
async fn without_leader(pair: &Pair, table: &mut Table) -> Result<()> {
    patch(pair, json!({"pause": true})).await?;
    for member in ALL {
        pair.until((*member, "/patroni"), "paused", |found| {
            found.get("pause").is_some()
        })
        .await?;
    }
    pair.each(|cluster| async move { Fault::LoseNode(LEADER).inject(cluster) })
        .await?;
    pair.until((REPLICA, "/cluster"), "the key to run out", |found| {
        let members = found.get("members").and_then(Value::as_array);
        members.is_some_and(|all| all.len() == 2)
    })
    .await?;
    pair.until((REPLICA, "/patroni"), "nobody leads", |found| {
        found.get("cluster_unlocked").is_some()
    })
    .await?;
    pair.compare("no leader", &[REPLICA, TAGGED], &looks(), table)
        .await;
    let hopeless = [
        Probe::with(
            "POST",
            "/switchover",
            &json!({"leader": "node1"}).to_string(),
        ),
        Probe::with(
            "POST",
            "/switchover",
            &json!({"leader": "node1", "candidate": "node2"}).to_string(),
        ),
        Probe::with(
            "POST",
            "/failover",
            &json!({"candidate": "node3"}).to_string(),
        ),
    ];
    pair.compare("no leader", &[REPLICA], &hopeless, table)
        .await;
    pair.tools(
        "no leader",
        &[
            "list",
            "list -f json",
            "topology",
            "dsn",
            "switchover --force",
        ],
        table,
    )
    .await
}

fn streams(found: &Value) -> bool {
    found.get("replication_state") == Some(&json!("streaming"))
}

fn down(found: &Value) -> bool {
    found
        .get("state")
        .and_then(Value::as_str)
        .is_some_and(|state| state != "running" && state != "unknown")
}

/// Changes the dynamic configuration of both.
async fn patch(pair: &Pair, change: Value) -> Result<()> {
    pair.order(
        LEADER,
        &Probe::with("PATCH", "/config", &change.to_string()),
        200,
    )
    .await
}

async fn sql(cluster: &Cluster, member: usize, text: &str) -> Result<()> {
    let client = session::client(cluster.member(member)?.postgres_port).await?;
    tokio::time::timeout(STATEMENT_LIMIT, client.batch_execute(text))
        .await
        .context("no answer to SQL")??;
    Ok(())
}

/// Stops a member's server behind its agent's back.
async fn stop(cluster: &Cluster, member: usize) -> Result<()> {
    let member = cluster.member(member)?;
    let pid = member.postmaster().context("no postmaster runs")?;
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(pid),
        nix::sys::signal::Signal::SIGINT,
    )?;
    wait::until("the server to end", STATE_LIMIT, || async {
        if process::alive(pid) {
            Err("it runs".to_owned())
        } else {
            Ok(())
        }
    })
    .await
}
