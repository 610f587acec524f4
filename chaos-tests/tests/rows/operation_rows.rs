//! Restarts, parameters that need an order, scheduled changes, copies, timelines, callbacks.

use super::{in_seconds, name, post, two_standbys};
use anyhow::{Context, Result, ensure};
use chaos_tests::operate::NOTICED;
use chaos_tests::steps::{BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use chaos_tests::{Builder, Cluster, Member, Settled, story, wait};
use serde_json::{Value, json};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::Duration;

/// A directory that the servers may write to, gone at the end.
struct Notes(PathBuf);

impl Notes {
    fn new() -> Result<Self> {
        let random: String = std::iter::repeat_with(fastrand::alphanumeric)
            .take(8)
            .collect();
        let dir = std::env::temp_dir().join(format!("garden-notes-{random}"));
        std::fs::create_dir(&dir)?;
        std::fs::set_permissions(&dir, PermissionsExt::from_mode(0o777))?;
        Ok(Self(dir))
    }

    /// A script that appends its arguments to a file, then runs `more`.
    fn script(&self, file: &str, more: &str) -> Result<String> {
        let path = self.0.join(format!("{file}.sh"));
        let log = self.0.join(file);
        let text = format!("#!/bin/sh\necho \"$@\" >>{}\n{more}\n", log.display());
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755))?;
        Ok(path.display().to_string())
    }

    fn lines(&self, file: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.0.join(file)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Waits until a file has a line.
    async fn says(&self, file: &str, line: &str) -> Result<()> {
        wait::until(&format!("{line:?} in {file}"), NOTICED, || async {
            let lines = self.lines(file);
            if lines.iter().any(|found| found == line) {
                Ok(())
            } else {
                Err(lines.join("; "))
            }
        })
        .await
    }

    fn forget(&self, file: &str) {
        let _ = std::fs::remove_file(self.0.join(file));
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const EVENTS: [&str; 5] = [
    "on_start",
    "on_stop",
    "on_restart",
    "on_reload",
    "on_role_change",
];

/// Every event of every member goes to a file of the member's name.
fn callbacks(notes: &Notes, member: &str) -> Result<Value> {
    let script = notes.script(member, "")?;
    let all = EVENTS.map(|event| (event.to_owned(), Value::String(script.clone())));
    Ok(Value::Object(all.into_iter().collect()))
}

#[test]
fn operations_are_carried_out_as_they_were_asked_for() {
    story("operation_rows", async {
        let notes = Notes::new()?;
        let mut builder = Builder::from_environment()?.quick().etcds(1);
        for index in 0..3 {
            let member = name(usize::from(index));
            let own = json!({
                "callbacks": callbacks(&notes, &member)?,
                "pre_promote": notes.script(&format!("{member}.pre_promote"), "")?,
                "before_stop": notes.script(&format!("{member}.before_stop"), "")?,
            });
            builder = builder.node(index, json!({"postgresql": own}));
        }
        let builder = builder.configure(|settings| {
            settings.synchronous_mode = json!(false);
            settings.dynamic = json!({"max_timelines_history": 2});
            settings.local = json!({"bootstrap": {
                "post_bootstrap": notes.script("post_bootstrap", "psql \"$1\" -c 'CREATE DATABASE made'")
                    .unwrap_or_default(),
            }});
        });
        let cluster = builder.start().await?;
        let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
        beginnings(&cluster, &settled, &notes).await?;
        callbacks_of_a_restart(&cluster, &settled, &notes).await?;
        scheduled_restarts(&cluster, &settled).await?;
        parameters_in_order(&cluster, &settled).await?;
        copied_from_the_leader(&cluster, &settled).await?;
        let settled = scheduled_switchover(&cluster, &settled, &notes).await?;
        let settled = pre_promote_may_refuse(&cluster, &settled, &notes).await?;
        timelines_are_forgotten(&cluster, settled).await
    });
}

async fn beginnings(cluster: &Cluster, settled: &Settled, notes: &Notes) -> Result<()> {
    let leader = name(settled.leader);
    ensure!(
        notes.lines("post_bootstrap").len() == 1,
        "post_bootstrap ran once: {:?}",
        notes.lines("post_bootstrap")
    );
    let made = "SELECT count(*) FROM pg_database WHERE datname = 'made'";
    for member in cluster.members() {
        member.sql_until(made, "1").await?;
    }
    notes.says(&leader, "on_start primary garden").await?;
    for standby in &settled.replicas {
        notes
            .says(&name(*standby), "on_start replica garden")
            .await?;
    }
    Ok(())
}

async fn callbacks_of_a_restart(cluster: &Cluster, settled: &Settled, notes: &Notes) -> Result<()> {
    let member = cluster.member(settled.leader)?;
    notes.forget(&member.name);
    post(member, "/restart", json!({"timeout": 60}), 200).await?;
    notes
        .says(&member.name, "on_restart primary garden")
        .await?;
    let lines = notes.lines(&member.name);
    ensure!(
        !lines.iter().any(|line| line.starts_with("on_stop")),
        "a restart is no stop: {lines:?}"
    );
    ensure!(
        !notes
            .lines(&format!("{}.before_stop", member.name))
            .is_empty(),
        "before_stop ran"
    );
    notes.forget(&member.name);
    cluster
        .patch(json!({"postgresql": {"parameters": {"work_mem": "5MB"}}}))
        .await?;
    notes.says(&member.name, "on_reload primary garden").await?;
    cluster.settle(SETTLE_LIMIT).await?;
    Ok(())
}

/// Conditions are looked at when the time has come, and the request is gone afterwards.
async fn scheduled_restarts(cluster: &Cluster, settled: &Settled) -> Result<()> {
    let (a, _) = two_standbys(settled)?;
    let (leader, standby) = (cluster.member(settled.leader)?, cluster.member(a)?);
    let before = [leader.postmaster(), standby.postmaster()];
    let replicas = json!({"schedule": in_seconds(4)?, "role": "replica"});
    post(leader, "/restart", replicas.clone(), 202).await?;
    post(standby, "/restart", replicas.clone(), 202).await?;
    post(standby, "/restart", replicas, 409).await?;
    let waits = |found: &Value| found.get("scheduled_restart").is_some();
    standby.shows("/patroni", "a restart waits", waits).await?;
    let done = |found: &Value| found.get("scheduled_restart").is_none();
    leader.shows("/patroni", "no restart waits", done).await?;
    standby.shows("/patroni", "no restart waits", done).await?;
    wait::until("the standby's restart", NOTICED, || async {
        match standby.postmaster() {
            pid if pid.is_some() && pid != before[1] => Ok(()),
            pid => Err(format!("{pid:?}")),
        }
    })
    .await?;
    ensure!(
        leader.postmaster() == before[0],
        "the leader is no replica, and was restarted"
    );
    // Only if one is pending: none is.
    let pending = json!({"restart_pending": true});
    post(leader, "/restart", pending, 503).await?;
    let answer = leader.ask("DELETE", "/restart", None).await?;
    ensure!(answer.status == 404, "{answer:?}");
    cluster.settle(SETTLE_LIMIT).await?;
    Ok(())
}

/// A standby must not allow less than its primary did: raising begins at the primary and takes the
/// standbys along, lowering reaches the standbys only after the primary.
async fn parameters_in_order(cluster: &Cluster, settled: &Settled) -> Result<()> {
    const SHOW: &str = "SHOW max_connections";
    let leader = cluster.member(settled.leader)?;
    let (a, b) = two_standbys(settled)?;
    let standbys = [cluster.member(a)?, cluster.member(b)?];
    let set = |value: u32| json!({"postgresql": {"parameters": {"max_connections": value}}});
    let pending = |found: &Value| found.get("pending_restart") == Some(&Value::Bool(true));
    let settled_value = |found: &Value| found.get("pending_restart").is_none();
    cluster.patch(set(70)).await?;
    for member in cluster.members() {
        let found = member.shows("/patroni", "a restart is pending", pending);
        let found = found.await?;
        let new = found.pointer("/pending_restart_reason/max_connections/new_value");
        ensure!(new.is_some(), "it says why: {found}");
    }
    post(leader, "/restart", json!({"restart_pending": true}), 200).await?;
    leader.sql_until(SHOW, "70").await?;
    for standby in standbys {
        // Replay stops at the larger value; the agent restarts the standby with it.
        standby.sql_until(SHOW, "70").await?;
    }
    cluster.settle(SETTLE_LIMIT).await?;
    cluster.patch(set(45)).await?;
    for member in cluster.members() {
        member
            .shows("/patroni", "a restart is pending", pending)
            .await?;
    }
    let [first, _] = standbys;
    post(first, "/restart", json!({}), 200).await?;
    first.sql_until(SHOW, "70").await?;
    first.shows("/patroni", "it still waits", pending).await?;
    post(leader, "/restart", json!({}), 200).await?;
    leader.sql_until(SHOW, "45").await?;
    cluster.settle(SETTLE_LIMIT).await?;
    // A standby that is restarted before it has replayed the primary's new value has to keep the old one.
    let written = leader.sql("SELECT pg_current_wal_lsn()").await?;
    let replayed = format!("SELECT pg_last_wal_replay_lsn() >= '{written}'");
    for standby in standbys {
        standby.sql_until(&replayed, "t").await?;
        post(standby, "/restart", json!({}), 200).await?;
        standby.sql_until(SHOW, "45").await?;
        standby
            .shows("/patroni", "nothing is pending", settled_value)
            .await?;
    }
    cluster.settle(SETTLE_LIMIT).await?;
    Ok(())
}

async fn copied_from_the_leader(cluster: &Cluster, settled: &Settled) -> Result<()> {
    let (a, b) = two_standbys(settled)?;
    // The other standby offers itself, and is passed over.
    let offers = cluster.member(b)?;
    offers
        .reconfigure(&json!({"tags": {"clonefrom": true}}))
        .await?;
    let shown = |found: &Value| found.pointer("/tags/clonefrom") == Some(&Value::Bool(true));
    offers.shows("/patroni", "it offers itself", shown).await?;
    let member = cluster.member(a)?;
    let leader = cluster.member(settled.leader)?;
    post(leader, "/reinitialize", json!({}), 503).await?;
    let logged = member.log_bytes();
    post(member, "/reinitialize", json!({"from-leader": true}), 200).await?;
    copied(member, logged).await?;
    cluster.settle(SETTLE_LIMIT).await?;
    offers
        .reconfigure(&json!({"tags": {"clonefrom": false}}))
        .await
}

async fn copied(member: &Member, logged: usize) -> Result<()> {
    wait::until("a new copy", NOTICED, || async {
        if member.log_since(logged).contains("pg_basebackup done") {
            Ok(())
        } else {
            Err("no base backup was taken".to_owned())
        }
    })
    .await
}

async fn scheduled_switchover(
    cluster: &Cluster,
    settled: &Settled,
    notes: &Notes,
) -> Result<Settled> {
    let (a, _) = two_standbys(settled)?;
    let (old, new) = (name(settled.leader), name(a));
    notes.forget(&old);
    notes.forget(&new);
    let member = cluster.member(settled.leader)?;
    let at = in_seconds(5)?;
    let body = json!({"leader": old, "candidate": new, "scheduled_at": at});
    post(member, "/switchover", body, 202).await?;
    let shown = member
        .shows("/cluster", "it is scheduled", |found| {
            found.pointer("/scheduled_switchover/to").is_some()
        })
        .await?;
    ensure!(
        shown.pointer("/scheduled_switchover/to") == Some(&json!(new)),
        "{shown}"
    );
    let settled = cluster.led_by(a).await?;
    notes.says(&new, "on_role_change primary garden").await?;
    notes.says(&old, "on_role_change replica garden").await?;
    notes
        .says(&old, "on_stop demoted garden")
        .await
        .or_else(|_| {
            // A slow one is killed by the change of role that follows; it has begun at least.
            let lines = notes.lines(&old);
            ensure!(
                lines.iter().any(|line| line.starts_with("on_stop")),
                "{lines:?}"
            );
            Ok(())
        })?;
    ensure!(
        !notes.lines(&format!("{new}.pre_promote")).is_empty(),
        "pre_promote ran"
    );
    Ok(settled)
}

/// The member whose script says no gives the lock back, and does not try again for a `ttl`.
async fn pre_promote_may_refuse(
    cluster: &Cluster,
    settled: &Settled,
    notes: &Notes,
) -> Result<Settled> {
    let (a, b) = two_standbys(settled)?;
    notes.script(&format!("{}.pre_promote", name(a)), "exit 1")?;
    let member = cluster.member(settled.leader)?;
    // The request itself may time out, since its candidate never leads.
    let body = json!({"leader": name(settled.leader), "candidate": name(a)});
    let _ = member.ask("POST", "/switchover", Some(&body)).await;
    let after = wait::until("somebody else to lead", SETTLE_LIMIT, || async {
        let now = cluster.look().await?;
        if now.leader == a {
            return Err("the one that refused leads".into());
        }
        if now.timeline == settled.timeline {
            return Err("nobody was promoted yet".into());
        }
        Ok(now)
    })
    .await?;
    ensure!(
        after.leader == b || after.leader == settled.leader,
        "{after:?}"
    );
    notes.script(&format!("{}.pre_promote", name(a)), "")?;
    Ok(after)
}

/// `max_timelines_history` bounds the key.
async fn timelines_are_forgotten(cluster: &Cluster, settled: Settled) -> Result<()> {
    ensure!(settled.timeline >= 3, "{settled:?}");
    let fits = |history: &Value| {
        let lines = history.as_array().map_or(0, Vec::len);
        lines == 2
            && history
                .pointer("/1/0")
                .and_then(Value::as_u64)
                .is_some_and(|line| line + 1 == settled.timeline)
    };
    cluster
        .key_until("history", "the two newest lines", fits)
        .await?;
    Ok(())
}

#[test]
fn a_leader_that_crashes_or_lags_is_replaced_as_configured() {
    story("crash_rows", async {
        let builder = Builder::from_environment()?.quick().etcds(1);
        let builder = builder.configure(|settings| {
            settings.synchronous_mode = json!(false);
            settings.dynamic = json!({
                "primary_start_timeout": 0,
                "maximum_lag_on_failover": 1_000_000,
            });
        });
        let cluster = builder.start().await?;
        let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let settled = crash_with_no_time_to_start(&cluster, &settled).await?;
        let settled = crash_with_time_to_start(&cluster, settled).await?;
        too_far_behind_to_lead(&cluster, &settled).await
    });
}

fn kill_postmaster(member: &Member) -> Result<()> {
    let pid = member.postmaster().context("a postmaster")?;
    let pid = nix::unistd::Pid::from_raw(pid);
    Ok(nix::sys::signal::kill(
        pid,
        nix::sys::signal::Signal::SIGKILL,
    )?)
}

async fn crash_with_no_time_to_start(cluster: &Cluster, settled: &Settled) -> Result<Settled> {
    kill_postmaster(cluster.member(settled.leader)?)?;
    let after = wait::until("another leader", SETTLE_LIMIT, || async {
        let now = cluster.look().await?;
        if now.leader == settled.leader {
            return Err("the same member leads".into());
        }
        Ok(now)
    });
    after.await
}

async fn crash_with_time_to_start(cluster: &Cluster, settled: Settled) -> Result<Settled> {
    cluster.patch(json!({"primary_start_timeout": 300})).await?;
    let leader = cluster.member(settled.leader)?;
    let before = leader.postmaster();
    let noticed = cluster.steady(Duration::from_secs(3), SETTLE_LIMIT).await?;
    ensure!(noticed == settled, "{noticed:?}");
    kill_postmaster(leader)?;
    wait::until("the same leader to come back", SETTLE_LIMIT, || async {
        let now = cluster.look().await?;
        let again = leader.postmaster().is_some_and(|pid| Some(pid) != before);
        if again && now == settled {
            Ok(now)
        } else {
            Err(format!("{now:?}"))
        }
    })
    .await
}

/// The WAL receiver of the only other member is held while the leader writes; then the leader is lost.
async fn too_far_behind_to_lead(cluster: &Cluster, settled: &Settled) -> Result<()> {
    use nix::sys::signal::Signal;
    let (a, b) = two_standbys(settled)?;
    let (leader, behind) = (cluster.member(settled.leader)?, cluster.member(a)?);
    cluster.member(b)?.lose()?;
    cluster
        .patch(json!({"postgresql": {"parameters": {
            "wal_receiver_timeout": "0", "wal_sender_timeout": "0",
        }}}))
        .await?;
    behind.sql_until("SHOW wal_receiver_timeout", "0").await?;
    leader.sql_until("SHOW wal_sender_timeout", "0").await?;
    let receiver = behind.sql("SELECT pid FROM pg_stat_wal_receiver").await?;
    let receiver = nix::unistd::Pid::from_raw(receiver.parse().context("a walreceiver")?);
    nix::sys::signal::kill(receiver, Signal::SIGSTOP)?;
    leader
        .sql("CREATE TABLE far AS SELECT generate_series(1, 100000) AS n")
        .await?;
    let position = leader.sql("SELECT pg_current_wal_flush_lsn()").await?;
    let written: u64 = position
        .parse::<proto::wal::Lsn>()
        .map_err(|_| anyhow::anyhow!("{position} is no position"))?
        .0;
    cluster
        .key_until("status", "the position is published", |status| {
            status
                .pointer("/optime")
                .and_then(Value::as_u64)
                .is_some_and(|optime| optime >= written)
        })
        .await?;
    leader.lose()?;
    super::stays("nobody leads", Duration::from_secs(15), || async {
        match behind.check("/primary").await {
            Some(200) => Err("the one that lags leads".into()),
            _ => Ok(()),
        }
    })
    .await?;
    let _ = nix::sys::signal::kill(receiver, Signal::SIGCONT);
    leader.start()?;
    behind.streams_from(leader.postgres_port).await
}
