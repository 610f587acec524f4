//! The released `patronictl`, unmodified, against a cluster of ours: what it prints, and what the cluster
//! does.

use anyhow::{Context, Result, ensure};
use chaos_tests::session::{self, STATEMENT_LIMIT};
use chaos_tests::steps::{self, BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::template::SCOPE;
use chaos_tests::{
    Builder, Cluster, Member, Settled, Writer, binaries, checker, http, story, wait,
};
use serde_json::Value;
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// What a configuration change or a flag in a member key may take: a few cycles of two seconds.
const NOTICED: Duration = Duration::from_secs(20);
const REST_LIMIT: Duration = Duration::from_secs(2);

/// `patronictl` and the cluster it is for.
struct Tool<'a> {
    cluster: &'a Cluster,
    program: PathBuf,
}

impl Tool<'_> {
    /// Its output; a status other than zero is an error.
    async fn run(&self, args: &[&str]) -> Result<String> {
        let from = Instant::now();
        let (status, output) = self.cluster.control(&self.program, args).await?;
        let words = args.join(" ");
        println!(
            "patronictl {words}  ({:.1} s)\n{output}",
            from.elapsed().as_secs_f64()
        );
        ensure!(
            status.success(),
            "patronictl {words} ended with {status}:\n{output}"
        );
        Ok(output)
    }

    /// The same, and the output holds this.
    async fn says(&self, args: &[&str], wanted: &str) -> Result<String> {
        let output = self.run(args).await?;
        let words = args.join(" ");
        ensure!(
            output.contains(wanted),
            "patronictl {words} says {wanted:?}, not:\n{output}"
        );
        Ok(output)
    }

    /// The cluster table as `list -f json` has it.
    async fn table(&self) -> Result<Vec<Value>> {
        let output = self.run(&["list", "-f", "json"]).await?;
        let line = output
            .lines()
            .find(|line| line.starts_with('['))
            .context("no JSON")?;
        Ok(serde_json::from_str(line)?)
    }
}

fn name(index: usize) -> String {
    format!("node{}", index + 1)
}

fn cell<'a>(row: &'a Value, column: &str) -> &'a str {
    row.get(column).and_then(Value::as_str).unwrap_or_default()
}

/// The document of a member's REST.
async fn document(member: &Member, path: &str) -> Result<Value> {
    http::get(member.rest_port, path, REST_LIMIT).await?.json()
}

/// One value that SQL gives.
async fn asked(member: &Member, sql: &str) -> Result<String> {
    let client = session::client(member.postgres_port).await?;
    let row = tokio::time::timeout(STATEMENT_LIMIT, client.query_one(sql, &[])).await;
    Ok(row.context("no answer to SQL")??.get(0))
}

/// Waits until every member's SQL gives this.
async fn everywhere(cluster: &Cluster, sql: &str, wanted: &str) -> Result<()> {
    wait::until(sql, NOTICED, || async {
        for member in cluster.members() {
            let value = asked(member, sql)
                .await
                .map_err(|error| format!("{error:#}"))?;
            if value != wanted {
                return Err(format!("{} has {value}, not {wanted}", member.name));
            }
        }
        Ok(())
    })
    .await
}

/// Waits until a document of a member fits.
async fn shown(
    member: &Member,
    path: &str,
    what: &str,
    fits: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let what = format!("{} of {}: {what}", path, member.name);
    wait::until(&what, NOTICED, || async {
        let found = document(member, path)
            .await
            .map_err(|error| format!("{error:#}"))?;
        if fits(&found) {
            Ok(found)
        } else {
            Err(found.to_string())
        }
    })
    .await
}

#[test]
fn released_patronictl_works_on_our_cluster() {
    let Some(program) = binaries::patronictl() else {
        return;
    };
    story("patronictl", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let tool = Tool {
            cluster: &cluster,
            program,
        };
        let writer = Writer::through_haproxy(&cluster).await?;
        tables(&tool, &settled).await?;
        configuration(&tool).await?;
        restarts(&tool, &settled).await?;
        reload(&tool, &settled).await?;
        maintenance(&tool, &settled).await?;
        let settled = handovers(&tool, &settled, &writer).await?;
        schedules(&tool, &settled).await?;
        copies(&tool, &settled).await?;
        let settled = cluster.settle(SETTLE_LIMIT).await?;
        let ledger = writer.stop().await;
        let verdict = checker::check(&cluster, settled.leader, &[ledger]).await?;
        ensure!(verdict.clean(), "{verdict}");
        Ok(())
    });
}

/// `list`, `topology`, `version`, `dsn`, `query`: what is shown is so.
async fn tables(tool: &Tool<'_>, settled: &Settled) -> Result<()> {
    let leader = name(settled.leader);
    let list = tool.run(&["list"]).await?;
    let is_leader = |line: &str| line.contains(&leader) && line.contains("| Leader");
    ensure!(
        list.lines().any(is_leader),
        "{leader} is the leader:\n{list}"
    );
    let patroni = document(tool.cluster.member(settled.leader)?, "/patroni").await?;
    let identifier = cell(&patroni, "database_system_identifier");
    ensure!(
        list.contains(&format!("Cluster: {SCOPE} ({identifier})")),
        "the caption:\n{list}"
    );

    let rows = tool.table().await?;
    ensure!(
        rows.len() == tool.cluster.members().len(),
        "every member has a row: {rows:?}"
    );
    for (row, (index, member)) in rows.iter().zip(tool.cluster.members().iter().enumerate()) {
        let (role, state) = match index {
            _ if index == settled.leader => ("Leader", "running"),
            _ if settled.synchronous.contains(&index) => ("Sync Standby", "streaming"),
            _ => ("Replica", "streaming"),
        };
        let host = format!("127.0.0.1:{}", member.postgres_port);
        let found = ["Member", "Host", "Role", "State"].map(|column| cell(row, column));
        ensure!(found == [member.name.as_str(), &host, role, state], "{row}");
        ensure!(
            row.get("TL").and_then(Value::as_u64) == Some(settled.timeline),
            "{row}"
        );
        let lag = row.get("Replay Lag").and_then(Value::as_u64);
        ensure!(lag == (role != "Leader").then_some(0), "{row}");
    }

    let topology = tool.run(&["topology"]).await?;
    let names: Vec<&str> = topology
        .lines()
        .filter(|line| line.starts_with("| "))
        .collect();
    let first = names.get(1).copied().unwrap_or_default();
    ensure!(
        first.starts_with(&format!("| {leader} ")),
        "the leader comes first:\n{topology}"
    );
    let below = names
        .iter()
        .filter(|line| line.starts_with("| + node"))
        .count();
    ensure!(
        below == settled.replicas.len(),
        "and the others below it:\n{topology}"
    );

    let version = tool.run(&["version", SCOPE]).await?;
    for member in tool.cluster.members() {
        let line = format!("{}: Patroni 4.", member.name);
        let fits = |text: &str| text.starts_with(&line) && text.contains(" PostgreSQL ");
        ensure!(
            version.lines().any(fits),
            "the version of {}:\n{version}",
            member.name
        );
    }
    let port = tool.cluster.member(settled.leader)?.postgres_port;
    tool.says(&["dsn"], &format!("host=127.0.0.1 port={port}"))
        .await?;
    Ok(())
}

/// `show-config` and `edit-config`: what is set there is what PostgreSQL uses.
async fn configuration(tool: &Tool<'_>) -> Result<()> {
    let shown = tool.run(&["show-config"]).await?;
    for line in [
        "ttl: 20",
        "loop_wait: 2",
        "synchronous_mode: true",
        "  use_pg_rewind: true",
    ] {
        ensure!(
            shown.lines().any(|found| found == line),
            "{line:?} is shown:\n{shown}"
        );
    }
    let words = [
        "edit-config",
        "--force",
        "-s",
        "retry_timeout=6",
        "-p",
        "work_mem=8MB",
    ];
    tool.says(&words, "Configuration changed").await?;
    let dynamic = tool.cluster.dynamic().await?;
    ensure!(
        dynamic.get("retry_timeout") == Some(&Value::from(6)),
        "{dynamic}"
    );
    everywhere(tool.cluster, "SHOW work_mem", "8MB").await?;
    tool.says(
        &["edit-config", "--force", "-s", "retry_timeout=6"],
        "Not changed",
    )
    .await?;
    tool.says(
        &["edit-config", "--force", "-p", "work_mem=null"],
        "Configuration changed",
    )
    .await?;
    everywhere(tool.cluster, "SHOW work_mem", "4MB").await
}

/// `restart` of one member, and of those that wait for one.
async fn restarts(tool: &Tool<'_>, settled: &Settled) -> Result<()> {
    let standby = *settled.replicas.first().context("a standby")?;
    let member = tool.cluster.member(standby)?;
    let before = member.postmaster();
    let words = ["restart", SCOPE, &member.name, "--force"];
    let done = format!("Success: restart on member {}", member.name);
    tool.says(&words, &done).await?;
    ensure!(
        member.postmaster().is_some() && member.postmaster() != before,
        "a new postmaster"
    );
    let same = tool.cluster.settle(SETTLE_LIMIT).await?;
    ensure!(
        same.leader == settled.leader && same.timeline == settled.timeline,
        "{same:?}"
    );

    tool.run(&["edit-config", "--force", "-p", "max_connections=60"])
        .await?;
    for member in tool.cluster.members() {
        let waits = |found: &Value| found.get("pending_restart") == Some(&Value::Bool(true));
        shown(member, "/patroni", "a restart is pending", waits).await?;
    }
    let reason = "max_connections: 50->60";
    let marked = wait::until("the table to say why", NOTICED, || async {
        let rows = tool.table().await.map_err(|error| format!("{error:#}"))?;
        let says = |row: &Value| cell(row, "Pending restart reason") == reason;
        if rows.iter().all(says) {
            Ok(())
        } else {
            Err(format!("{rows:?}"))
        }
    });
    marked.await?;
    // The standbys first: one that allows less than its primary cannot replay, and is restarted anyway.
    for index in [settled.replicas.as_slice(), &[settled.leader]].concat() {
        let member = tool.cluster.member(index)?;
        let done = format!("Success: restart on member {}", member.name);
        tool.says(
            &["restart", SCOPE, &member.name, "--pending", "--force"],
            &done,
        )
        .await?;
    }
    everywhere(tool.cluster, "SHOW max_connections", "60").await?;
    for member in tool.cluster.members() {
        let clear = |found: &Value| found.get("pending_restart").is_none();
        shown(member, "/patroni", "no restart is pending", clear).await?;
    }
    let same = tool.cluster.settle(SETTLE_LIMIT).await?;
    ensure!(
        same.leader == settled.leader,
        "restarting the leader is no failover: {same:?}"
    );
    Ok(())
}

/// `reload` makes a member read its file again.
async fn reload(tool: &Tool<'_>, settled: &Settled) -> Result<()> {
    let member = tool
        .cluster
        .member(*settled.replicas.first().context("a standby")?)?;
    let text = std::fs::read_to_string(&member.config)?;
    ensure!(text.contains("clonefrom: false"), "{text}");
    std::fs::write(
        &member.config,
        text.replace("clonefrom: false", "clonefrom: true"),
    )?;
    let accepted = format!("Reload request received for member {}", member.name);
    tool.says(&["reload", SCOPE, &member.name, "--force"], &accepted)
        .await?;
    let tagged = |found: &Value| found.pointer("/tags/clonefrom") == Some(&Value::Bool(true));
    shown(member, "/patroni", "the tag", tagged).await?;
    wait::until("the tag in the table", NOTICED, || async {
        let rows = tool.table().await.map_err(|error| format!("{error:#}"))?;
        let mut rows = rows.iter().filter(|row| cell(row, "Member") == member.name);
        if rows.any(|row| row.pointer("/Tags/clonefrom") == Some(&Value::Bool(true))) {
            Ok(())
        } else {
            Err("it is not there".to_owned())
        }
    })
    .await
}

/// `pause --wait` and `resume --wait`.
async fn maintenance(tool: &Tool<'_>, settled: &Settled) -> Result<()> {
    tool.says(
        &["pause", "--wait"],
        "Success: cluster management is paused",
    )
    .await?;
    for member in tool.cluster.members() {
        let found = document(member, "/patroni").await?;
        ensure!(
            found.get("pause") == Some(&Value::Bool(true)),
            "{} is paused",
            member.name
        );
    }
    tool.says(&["list"], "Maintenance mode: on").await?;
    let (status, output) = tool.cluster.control(&tool.program, &["pause"]).await?;
    ensure!(
        !status.success() && output.contains("Cluster is already paused"),
        "{output}"
    );
    tool.says(
        &["resume", "--wait"],
        "Success: cluster management is resumed",
    )
    .await?;
    for member in tool.cluster.members() {
        let found = document(member, "/patroni").await?;
        ensure!(
            found.get("pause").is_none(),
            "{} is not paused",
            member.name
        );
    }
    let same = tool.cluster.settle(SETTLE_LIMIT).await?;
    ensure!(
        same.leader == settled.leader && same.timeline == settled.timeline,
        "{same:?}"
    );
    Ok(())
}

/// `switchover` without and with a candidate, `failover`, and `history` after them.
async fn handovers(tool: &Tool<'_>, settled: &Settled, writer: &Writer) -> Result<Settled> {
    let mut now = settled.clone();
    let mut leaders = Vec::new();
    for words in [
        &["switchover", SCOPE, "--force"] as &[&str],
        &["switchover", SCOPE, "--force", "--candidate"],
        &["failover", SCOPE, "--force", "--candidate"],
    ] {
        let before = tool.cluster.steady(steps::REST, SETTLE_LIMIT).await?;
        let candidate = name(
            *before
                .synchronous
                .first()
                .context("a synchronous standby")?,
        );
        let mut words = words.to_vec();
        let chosen = words.contains(&"--candidate");
        if chosen {
            words.push(&candidate);
        }
        let from = Instant::now();
        let done = if words.contains(&"failover") {
            "failed over to"
        } else {
            "switched over to"
        };
        tool.says(&words, done).await?;
        let changed = |now: &Settled| now.leader != before.leader;
        let measured = steps::measure(tool.cluster, writer, from, changed).await?;
        now = measured.settled;
        println!("{}: write gap {:?}", words.join(" "), measured.gap);
        ensure!(
            now.timeline == before.timeline + 1,
            "one promotion: {before:?} {now:?}"
        );
        ensure!(
            !chosen || name(now.leader) == candidate,
            "{candidate} leads: {now:?}"
        );
        ensure!(
            now.replicas.contains(&before.leader),
            "the old leader follows: {now:?}"
        );
        leaders.push((before.timeline, name(now.leader)));
    }
    wait::until("the history", NOTICED, || async {
        let error = |error: anyhow::Error| format!("{error:#}");
        let output = tool.run(&["history", "-f", "json"]).await.map_err(error)?;
        let rows: Vec<Value> = serde_json::from_str(output.trim()).map_err(|e| e.to_string())?;
        let rows = rows.iter().map(|row| {
            let ended = row.get("TL").and_then(Value::as_u64).unwrap_or_default();
            (ended, cell(row, "New Leader").to_owned())
        });
        let known: Vec<_> = rows.collect();
        if known.ends_with(&leaders) {
            Ok(())
        } else {
            Err(format!("{known:?}, not {leaders:?}"))
        }
    })
    .await?;
    Ok(now)
}

/// Scheduled switchovers and restarts are shown, and `flush` forgets them.
async fn schedules(tool: &Tool<'_>, settled: &Settled) -> Result<()> {
    let far = "2037-01-01T00:00:00+00:00";
    let leader = name(settled.leader);
    tool.says(
        &["switchover", SCOPE, "--force", "--scheduled", far],
        "Switchover scheduled",
    )
    .await?;
    tool.says(&["list"], &format!("Switchover scheduled at: {far}"))
        .await?;
    tool.says(
        &["flush", SCOPE, "switchover"],
        "Success: scheduled switchover deleted",
    )
    .await?;
    tool.says(
        &["flush", SCOPE, "switchover"],
        "No pending scheduled switchover",
    )
    .await?;

    let words = ["restart", SCOPE, &leader, "--force", "--scheduled", far];
    tool.says(
        &words,
        &format!("Success: restart scheduled on member {leader}"),
    )
    .await?;
    let member = tool.cluster.member(settled.leader)?;
    let planned = |found: &Value| found.pointer("/scheduled_restart/schedule").is_some();
    shown(member, "/patroni", "the schedule", planned).await?;
    wait::until("the schedule in the table", NOTICED, || async {
        let rows = tool.table().await.map_err(|error| format!("{error:#}"))?;
        let row = rows.iter().find(|row| cell(row, "Member") == leader);
        let row = row.ok_or("no row")?;
        if cell(row, "Scheduled restart") == far {
            Ok(())
        } else {
            Err(row.to_string())
        }
    })
    .await?;
    let flushed = format!("Success: flush scheduled restart for member {leader}");
    tool.says(&["flush", SCOPE, &leader, "restart", "--force"], &flushed)
        .await?;
    shown(member, "/patroni", "no schedule", |found| !planned(found)).await?;
    let same = tool.cluster.look().await.map_err(anyhow::Error::msg)?;
    ensure!(
        same.leader == settled.leader && same.timeline == settled.timeline,
        "{same:?}"
    );
    Ok(())
}

/// `reinit --wait` makes a new copy; the leader is not among those it takes.
async fn copies(tool: &Tool<'_>, settled: &Settled) -> Result<()> {
    let member = tool
        .cluster
        .member(*settled.replicas.first().context("a standby")?)?;
    let mark = member.data_dir().join("of_the_old_copy");
    std::fs::write(&mark, "")?;
    let words = ["reinit", SCOPE, &member.name, "--force", "--wait"];
    let started = format!("Success: reinitialize for member {}", member.name);
    let output = tool.says(&words, &started).await?;
    let waited = format!("Reinitialize is completed on: {}", member.name);
    ensure!(output.contains(&waited), "it waits:\n{output}");
    ensure!(!mark.exists(), "the copy of {} is a new one", member.name);
    let after = tool.cluster.settle(SETTLE_LIMIT).await?;
    ensure!(
        after.leader == settled.leader && after.timeline == settled.timeline,
        "{after:?}"
    );
    let leader = name(settled.leader);
    let words = ["reinit", SCOPE, &leader, "--force"];
    let (status, output) = tool.cluster.control(&tool.program, &words).await?;
    ensure!(
        !status.success() && output.contains("No replica among provided members"),
        "{output}"
    );
    Ok(())
}
