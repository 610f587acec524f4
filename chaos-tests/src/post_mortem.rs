//! What is left on disk when a cluster has been stopped, and whether it fits together.

mod wal;

use crate::checker;
use crate::cluster::Cluster;
use crate::member::Member;
use crate::process;
use crate::session;
use crate::steps::SETTLE_LIMIT;
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// An agent that is asked to end has stopped its PostgreSQL and itself within this time.
const STOP_LIMIT: Duration = Duration::from_secs(90);

/// What was looked at, and what was wrong.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// One sentence per look.
    pub looked_at: Vec<String>,
    /// One sentence per fault.
    pub wrong: Vec<String>,
}

impl Findings {
    fn judge(&mut self, what: &str, outcome: Result<String>) {
        match outcome {
            Ok(text) => self.looked_at.push(format!("{what}: {text}")),
            Err(error) => self.wrong.push(format!("{what}: {error:#}")),
        }
    }
}

/// Looks at the running cluster, which must come to rest, stops every agent, and looks at what is left.
///
/// # Errors
/// When the cluster does not come to rest.
pub async fn examine(cluster: &Cluster) -> Result<Findings> {
    let mut findings = Findings::default();
    let settled = cluster.settle(SETTLE_LIMIT).await?;
    let leader = cluster.member(settled.leader)?;
    let tables = checker::same_everywhere(cluster, settled.leader).await;
    findings.judge("tables are the same on all nodes", tables);
    findings.judge("heaps and indexes (amcheck)", amcheck(leader).await);
    findings.judge("slots", slots(cluster, settled.leader).await);
    // The leader last, so that no failover begins.
    let order = settled.replicas.iter().chain([&settled.leader]);
    for index in order {
        let member = cluster.member(*index)?;
        findings.judge(&format!("{} stops", member.name), stop(member));
    }
    let members = cluster.members();
    let bin = &cluster.binaries().postgres;
    findings.judge("control data", control_data(bin, members));
    findings.judge("history files", histories(members));
    findings.judge("one line of WAL", wal::one_branch(bin, members));
    for member in members {
        findings.judge(
            &format!("checksums of {}", member.name),
            checksums(bin, member),
        );
        findings.judge(&format!("files of {}", member.name), leftovers(member));
    }
    Ok(findings)
}

/// Every heap and every index of the leader.
async fn amcheck(leader: &Member) -> Result<String> {
    let client = session::client(leader.postgres_port).await?;
    let there = "SELECT 1 FROM pg_available_extensions WHERE name = 'amcheck'";
    if client.query(there, &[]).await?.is_empty() {
        return Ok("not available, left out".to_owned());
    }
    client
        .batch_execute("CREATE EXTENSION IF NOT EXISTS amcheck")
        .await?;
    let heaps = "SELECT c.relname, v.msg FROM pg_class c, \
                 LATERAL verify_heapam(c.oid) v WHERE c.relkind IN ('r', 't')";
    let bad = client.query(heaps, &[]).await.context("verify_heapam")?;
    if let Some(row) = bad.first() {
        let (name, text): (&str, &str) = (row.get(0), row.get(1));
        anyhow::bail!("{name}: {text}");
    }
    let indexes = "SELECT count(bt_index_check(i.indexrelid, true)::text) FROM pg_index i \
                   JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_am a ON a.oid = c.relam \
                   WHERE a.amname = 'btree' AND c.relpersistence = 'p' AND i.indisvalid";
    let checked: i64 = client
        .query_one(indexes, &[])
        .await
        .context("bt_index_check")?
        .get(0);
    Ok(format!("{checked} indexes and all heaps are sound"))
}

/// One slot per standby, in use; none of anybody else.
async fn slots(cluster: &Cluster, leader: usize) -> Result<String> {
    let client = session::client(cluster.member(leader)?.postgres_port).await?;
    let query = "SELECT slot_name::text, active FROM pg_replication_slots";
    let rows = client.query(query, &[]).await.context("read the slots")?;
    let found: BTreeMap<String, bool> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    let others = cluster.members().iter().enumerate();
    let others = others.filter(|(index, _)| *index != leader);
    let expected: BTreeSet<String> = others.map(|(_, member)| member.name.clone()).collect();
    let names: BTreeSet<String> = found.keys().cloned().collect();
    ensure!(
        names == expected,
        "there are {names:?} instead of {expected:?}"
    );
    let idle: Vec<&String> = found
        .iter()
        .filter(|(_, used)| !**used)
        .map(|(n, _)| n)
        .collect();
    ensure!(idle.is_empty(), "nobody uses {idle:?}");
    Ok(format!("{} in use", expected.len()))
}

/// The agent ends, its PostgreSQL with it, and leaves nobody behind.
fn stop(member: &Member) -> Result<String> {
    member.signal_agent(Signal::SIGTERM)?;
    ensure!(
        member.wait_agent(STOP_LIMIT),
        "the agent did not end within {STOP_LIMIT:?}"
    );
    let until = Instant::now() + Duration::from_secs(10);
    let mut left = process::below(&member.dir);
    while !left.is_empty() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
        left = process::below(&member.dir);
    }
    let names: Vec<String> = left
        .iter()
        .map(|pid| process::arguments(*pid).join(" "))
        .collect();
    ensure!(left.is_empty(), "processes are left: {names:?}");
    Ok("no process is left".to_owned())
}

fn run(bin: &Path, program: &str, args: &[&std::ffi::OsStr]) -> Result<String> {
    let mut command = Command::new(bin.join(program));
    command.args(args).env("LC_ALL", "C");
    if let Some(libraries) = bin.parent().map(|prefix| prefix.join("lib")) {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    let output = process::tool(command, "")?;
    Ok(String::from_utf8_lossy(&output).into_owned())
}

/// Control data of one member: names and values.
fn control(bin: &Path, member: &Member) -> Result<BTreeMap<String, String>> {
    let data = member.data_dir();
    let text = run(bin, "pg_controldata", &["-D".as_ref(), data.as_ref()])?;
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    Ok(lines
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect())
}

/// One identifier, one timeline, everybody shut down as one should.
fn control_data(bin: &Path, members: &[Member]) -> Result<String> {
    let mut systems = BTreeSet::new();
    let mut timelines = BTreeSet::new();
    for member in members {
        let control = control(bin, member)?;
        let value = |name: &str| {
            let value = control.get(name).cloned();
            value.with_context(|| format!("{}: no \"{name}\"", member.name))
        };
        systems.insert(value("Database system identifier")?);
        timelines.insert(value("Latest checkpoint's TimeLineID")?);
        let state = value("Database cluster state")?;
        let clean = state == "shut down" || state == "shut down in recovery";
        ensure!(clean, "{} is \"{state}\"", member.name);
    }
    ensure!(systems.len() == 1, "several systems: {systems:?}");
    ensure!(timelines.len() == 1, "several timelines: {timelines:?}");
    Ok(format!("all are shut down on timeline {timelines:?}"))
}

/// The same timeline has the same history everywhere, and begins with its parent's.
fn histories(members: &[Member]) -> Result<String> {
    let mut known: BTreeMap<String, (String, String)> = BTreeMap::new();
    for member in members {
        let wal = member.data_dir().join("pg_wal");
        for entry in std::fs::read_dir(&wal).context("read pg_wal")?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.ends_with(".history") {
                continue;
            }
            let text = std::fs::read_to_string(entry.path()).context("read a history file")?;
            if only_takes_the_number(&text) {
                continue;
            }
            let (first, by) = known
                .entry(name.clone())
                .or_insert((text.clone(), member.name.clone()));
            ensure!(
                *first == text,
                "{name} differs between {by} and {}",
                member.name
            );
        }
    }
    one_line(known.iter().map(|(name, (text, _))| (name.as_str(), text)))
}

/// Before a promotion a member makes the numbers up to the one that it claims look taken, also those of ancestors whose
/// files it never had; PostgreSQL reads no history in a comment.
fn only_takes_the_number(text: &str) -> bool {
    text.lines()
        .all(|line| line.trim().is_empty() || line.starts_with('#'))
}

/// Every timeline that the last one descends from has the beginning of its history. Others are what is left of
/// a promotion that was ended before anybody followed it; whether it acknowledged something, the ledgers know.
fn one_line<'a>(files: impl Iterator<Item = (&'a str, &'a String)>) -> Result<String> {
    let lines = |text: &'a str| {
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        lines.collect::<Vec<&str>>()
    };
    let files: BTreeMap<u32, (&str, Vec<&str>)> = files
        .filter_map(|(name, text)| {
            let timeline = u32::from_str_radix(name.strip_suffix(".history")?, 16).ok()?;
            Some((timeline, (name, lines(text))))
        })
        .collect();
    let Some((last, (_, line))) = files.last_key_value() else {
        return Ok("1 timeline".to_owned());
    };
    let parent = |line: &&str| line.split_whitespace().next()?.parse().ok();
    let ancestors: BTreeSet<u32> = line.iter().filter_map(parent).collect();
    for (timeline, (name, history)) in &files {
        let descends = ancestors.contains(timeline) || timeline == last;
        ensure!(
            !descends || line.starts_with(history),
            "{name} is not the beginning of the last timeline's history"
        );
    }
    let led_nowhere = files
        .keys()
        .filter(|t| !ancestors.contains(*t) && *t != last);
    Ok(format!(
        "{} timelines, one line, {} led nowhere",
        files.len() + 1,
        led_nowhere.count()
    ))
}

fn checksums(bin: &Path, member: &Member) -> Result<String> {
    let data = member.data_dir();
    let text = run(
        bin,
        "pg_checksums",
        &["--check".as_ref(), "-D".as_ref(), data.as_ref()],
    )?;
    let line = text.lines().find(|line| line.starts_with("Bad checksums"));
    Ok(line.unwrap_or("checked").to_owned())
}

/// Nothing half done is left in or beside the data directory.
fn leftovers(member: &Member) -> Result<String> {
    let data = member.data_dir();
    for name in [
        "postmaster.pid",
        "promote",
        "recovery.signal",
        "backup_label",
    ] {
        ensure!(!data.join(name).exists(), "{name} is left");
    }
    let parent = data.parent().context("the data directory has no parent")?;
    let beside = std::fs::read_dir(parent)
        .context("read the directory")?
        .flatten();
    let names: Vec<String> = beside
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    let half = names
        .iter()
        .filter(|name| name.starts_with("data") && *name != "data" && !name.ends_with(".img"));
    let half: Vec<&String> = half.collect();
    ensure!(
        half.len() <= 1,
        "several copies of the data directory: {half:?}"
    );
    Ok(format!("{} entries beside the data directory", names.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_that_is_not_the_beginning_of_the_last_one_is_found() {
        let judge = |files: &[(&str, &str)]| {
            let files: Vec<(&str, String)> = files
                .iter()
                .map(|(n, text)| (*n, (*text).to_owned()))
                .collect();
            one_line(files.iter().map(|(name, text)| (*name, text)))
        };
        let second = "1\t0/300\tno recovery target specified\n";
        let third = format!("{second}\n2\t0/500\tno recovery target specified\n");
        let line = [("00000002.history", second), ("00000003.history", &third)];
        assert_eq!(
            judge(&line).ok().as_deref(),
            Some("3 timelines, one line, 0 led nowhere")
        );
        // Its promotion was ended; the next one began at the same parent.
        let fourth = format!("{second}\n2\t0/700\tno recovery target specified\n");
        let [second_file, third_file] = line;
        let ended = [second_file, third_file, ("00000004.history", &fourth)];
        assert_eq!(
            judge(&ended).ok().as_deref(),
            Some("4 timelines, one line, 1 led nowhere")
        );
        assert!(only_takes_the_number("# This number is taken.\n"));
        assert!(!only_takes_the_number(second));
        let other = "1\t0/400\tno recovery target specified\n";
        assert!(judge(&[("00000002.history", other), ("00000003.history", &third)]).is_err());
    }
}
