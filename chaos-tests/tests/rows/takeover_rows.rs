//! Data directories and servers that were there before the agents.

use super::text;
use anyhow::{Context, Result, ensure};
use chaos_tests::operate::NOTICED;
use chaos_tests::steps::BOOTSTRAP_LIMIT;
use chaos_tests::template::{SUPERUSER, SUPERUSER_PASSWORD};
use chaos_tests::{Builder, Cluster, Member, story, wait};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

#[test]
fn servers_and_data_directories_of_before_are_taken_over() {
    story("takeover_rows", async {
        let builder = Builder::from_environment()?.quick().etcds(1);
        let builder = builder.configure(|settings| settings.synchronous_mode = json!(false));
        let cluster = builder.prepare()?;
        cluster.start_etcd().await?;
        a_running_primary(&cluster).await?;
        a_copy_that_was_made_by_hand(&cluster).await?;
        somebody_elses_data(&cluster).await?;
        systemd_is_told(cluster.member(1)?)
    });
}

/// `Type=notify-reload`: the standby's agent, started again, says when it serves, reads its configuration
/// again, and ends.
fn systemd_is_told(member: &Member) -> Result<()> {
    member.stop_agent()?;
    let path = member.dir.join("notify");
    let socket = UnixDatagram::bind(&path)?;
    socket.set_read_timeout(Some(NOTICED))?;
    std::fs::set_permissions(&path, Permissions::from_mode(0o777))?;
    let path = path.display().to_string();
    member.start_with(BTreeMap::from([("NOTIFY_SOCKET".to_owned(), path)]))?;
    told(&socket, "READY=1")?;
    member.signal_agent(Signal::SIGHUP)?;
    let reloading = told(&socket, "RELOADING=1")?;
    ensure!(reloading.contains("MONOTONIC_USEC="), "{reloading}");
    told(&socket, "READY=1")?;
    member.stop_agent()?;
    told(&socket, "STOPPING=1").map(drop)
}

/// The next message, which begins with this.
fn told(socket: &UnixDatagram, wanted: &str) -> Result<String> {
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).context(wanted.to_owned())?;
    let message = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned();
    ensure!(message.starts_with(wanted), "{wanted}, not {message}");
    Ok(message)
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(Into::into).collect()
}

/// `initdb` and a start, as an operator would do it without any agent.
fn make(cluster: &Cluster, member: &Member) -> Result<()> {
    let data = member.data_dir();
    let data = data.to_string_lossy();
    let args = words(&["-D", &data, "-U", SUPERUSER, "-k", "-A", "trust"]);
    let (status, text) = cluster.postgres_program("initdb", &args)?;
    ensure!(status.success(), "initdb: {text}");
    Ok(())
}

fn start(cluster: &Cluster, member: &Member) -> Result<()> {
    let log = member.dir.join("by-hand.log");
    let options = format!(
        "-p {} -k {} -c listen_addresses=127.0.0.1",
        member.postgres_port,
        member.dir.display()
    );
    let log = log.to_string_lossy();
    cluster.pg_ctl(member, &["start", "-w", "-l", &log, "-o", &options])
}

/// It keeps running while the agent makes it the leader of a new cluster.
async fn a_running_primary(cluster: &Cluster) -> Result<()> {
    let member = cluster.member(0)?;
    make(cluster, member)?;
    start(cluster, member)?;
    let roles = format!(
        "ALTER ROLE {SUPERUSER} PASSWORD '{SUPERUSER_PASSWORD}'; \
         CREATE ROLE replicator REPLICATION LOGIN PASSWORD 'replicator-secret'; \
         CREATE ROLE rewind_user LOGIN PASSWORD 'rewind-secret'; \
         CREATE TABLE before AS SELECT 42 AS n"
    );
    member.sql(&roles).await?;
    let postmaster = member.postmaster().context("it runs")?;
    member.start()?;
    let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
    ensure!(settled.leader == 0 && settled.timeline == 1, "{settled:?}");
    ensure!(
        member.postmaster() == Some(postmaster),
        "PostgreSQL was restarted"
    );
    let (status, control) =
        cluster.postgres_program("pg_controldata", &[member.data_dir().into_os_string()])?;
    ensure!(status.success(), "{control}");
    let initialize = cluster.key("initialize").await?.context("/initialize")?;
    ensure!(
        control.contains(&initialize),
        "its identifier: {initialize}"
    );
    // Settings that need a restart wait for one, and the rest is in force.
    member.sql_until("SHOW wal_keep_size", "128MB").await?;
    let pending = |found: &Value| found.get("pending_restart") == Some(&Value::Bool(true));
    member
        .shows("/patroni", "max_connections waits", pending)
        .await?;
    Ok(())
}

/// A base backup that never was a member: it is started as a standby, not copied again.
async fn a_copy_that_was_made_by_hand(cluster: &Cluster) -> Result<()> {
    let (leader, member) = (cluster.member(0)?, cluster.member(1)?);
    let source = format!(
        "host=127.0.0.1 port={} user=replicator password=replicator-secret",
        leader.postgres_port
    );
    let data = member.data_dir();
    let data = data.to_string_lossy();
    let args = words(&["-D", &data, "-d", &source, "-c", "fast", "-X", "stream"]);
    let (status, text) = cluster.postgres_program("pg_basebackup", &args)?;
    ensure!(status.success(), "pg_basebackup: {text}");
    member.start()?;
    let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
    ensure!(settled.replicas == [1], "{settled:?}");
    let log = member.log_since(0);
    ensure!(!log.contains("pg_basebackup done"), "it was copied:\n{log}");
    member.sql_until("SELECT n FROM before", "42").await
}

/// Another system identifier: the agent ends, and touches nothing.
async fn somebody_elses_data(cluster: &Cluster) -> Result<()> {
    let member = cluster.member(2)?;
    make(cluster, member)?;
    member.start()?;
    wait::until("the agent to end", NOTICED, || async {
        match member.agent() {
            None => Ok(()),
            Some(pid) => Err(format!("{pid} runs")),
        }
    })
    .await?;
    let log = member.log_since(0);
    ensure!(log.contains("system ID mismatch"), "it says why:\n{log}");
    ensure!(
        member.data_dir().join("global/pg_control").is_file(),
        "the data is still there"
    );
    tokio::time::sleep(Duration::from_millis(500)).await;
    let listed = cluster.key("members/node3").await?;
    let joined = listed.is_some_and(|key| {
        let key: Value = serde_json::from_str(&key).unwrap_or_default();
        text(&key, "/state") == "running"
    });
    ensure!(!joined, "it never joined");
    Ok(())
}
