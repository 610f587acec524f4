//! Measures one cluster for the benchmark.

use crate::builder::Builder;
use crate::cluster::Cluster;
use crate::demo::Progress;
use crate::member::Member;
use crate::process;
use crate::steps::{self, BOOTSTRAP_LIMIT, REST, SETTLE_LIMIT};
use crate::workload::Writer;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// The agents are left alone for this long before they are looked at, and then for as long again
/// while their CPU time is counted.
const IDLE: Duration = Duration::from_secs(20);

/// One line of the table.
#[derive(Clone, Debug)]
pub struct Row {
    /// What was measured, with its unit.
    pub name: String,
    /// One per round, or per member.
    pub values: Vec<f64>,
    /// What we promise.
    pub limit: f64,
    decimals: usize,
}

impl Row {
    /// A value with as many decimals as it deserves.
    pub fn format(&self, value: f64) -> String {
        format!("{value:.*}", self.decimals)
    }
}

/// Everything that was measured.
#[derive(Clone, Debug, Default)]
pub struct Figures {
    switchover: Vec<f64>,
    postmaster: Vec<f64>,
    node: Vec<f64>,
    agent_mib: Vec<f64>,
    guardian_mib: Vec<f64>,
    idle_percent: Vec<f64>,
    ttl: f64,
}

impl Figures {
    /// In the order of the table.
    pub fn rows(&self) -> Vec<Row> {
        let row = |name: &str, values: &[f64], limit: f64, decimals: usize| {
            let (name, values) = (name.to_owned(), values.to_vec());
            Row {
                name,
                values,
                limit,
                decimals,
            }
        };
        vec![
            row(
                "planned switchover, write gap ms",
                &self.switchover,
                1000.0,
                0,
            ),
            row(
                "SIGKILL of the postmaster, write gap ms",
                &self.postmaster,
                2000.0,
                0,
            ),
            row(
                "agent and PostgreSQL lost, write gap ms",
                &self.node,
                self.ttl * 1e3 + 1500.0,
                0,
            ),
            row("agent, resident MiB", &self.agent_mib, 15.0, 1),
            row("guardian, resident MiB", &self.guardian_mib, 15.0, 1),
            row(
                "agent and guardian idle, % of a core",
                &self.idle_percent,
                0.5,
                2,
            ),
        ]
    }
}

/// Starts the cluster, lets it idle, and goes through the rounds.
///
/// # Errors
/// When the cluster does not start or does not come to rest after an event.
pub async fn run(builder: Builder, rounds: usize) -> Result<Figures> {
    let progress = Progress::default();
    let cluster = builder.start().await?;
    let name = cluster.binaries().agent.display().to_string();
    progress.say(&format!("a cluster of {name}"));
    let settled = progress
        .during(&cluster, cluster.settle(BOOTSTRAP_LIMIT))
        .await?;
    let ttl = cluster
        .dynamic()
        .await?
        .get("ttl")
        .and_then(serde_json::Value::as_f64);
    let mut figures = Figures {
        ttl: ttl.context("the configuration has a ttl")?,
        ..<_>::default()
    };
    idle(&cluster, &mut figures, progress).await?;
    let writer = Writer::through_haproxy(&cluster).await?;
    let mut settled = cluster.steady(REST, SETTLE_LIMIT).await.unwrap_or(settled);
    for round in 1..=rounds {
        let done = steps::switchover(&cluster, &writer, &settled, None).await?;
        note(
            progress,
            round,
            "switchover",
            &mut figures.switchover,
            done.gap,
        );
        settled = cluster.steady(REST, SETTLE_LIMIT).await?;

        let done = steps::kill_postmaster(&cluster, &writer, &settled).await?;
        note(
            progress,
            round,
            "postmaster",
            &mut figures.postmaster,
            done.gap,
        );
        settled = cluster.steady(REST, SETTLE_LIMIT).await?;

        let lost = settled.leader;
        let done = steps::lose_leader(&cluster, &writer, &settled).await?;
        note(progress, round, "node lost", &mut figures.node, done.gap);
        steps::return_node(&cluster, &writer, lost).await?;
        settled = cluster.steady(REST, SETTLE_LIMIT).await?;
    }
    writer.stop().await;
    Ok(figures)
}

fn note(progress: Progress, round: usize, what: &str, into: &mut Vec<f64>, gap: Duration) {
    let gap = gap.as_secs_f64() * 1e3;
    progress.say(&format!("round {round}: {what}, write gap {gap:.0} ms"));
    into.push(gap);
}

async fn idle(cluster: &Cluster, figures: &mut Figures, progress: Progress) -> Result<()> {
    progress.say(&format!("idling for {} s", 2 * IDLE.as_secs()));
    tokio::time::sleep(IDLE).await;
    let before: Vec<_> = cluster.members().iter().map(cpu_time).collect();
    let from = Instant::now();
    tokio::time::sleep(IDLE).await;
    let wall = from.elapsed().as_secs_f64();
    for (member, before) in cluster.members().iter().zip(before) {
        let used = cpu_time(member).saturating_sub(before).as_secs_f64();
        figures.idle_percent.push(100.0 * used / wall);
        let agent = member.agent().context("an agent died while idle")?;
        figures.agent_mib.extend(process::resident_mib(agent));
        figures
            .guardian_mib
            .extend(member.guardian().and_then(process::resident_mib));
    }
    Ok(())
}

/// CPU time of agent and guardian so far; PostgreSQL's is not ours.
fn cpu_time(member: &Member) -> Duration {
    let pids = [member.agent(), member.guardian()];
    pids.into_iter()
        .flatten()
        .filter_map(process::cpu_time)
        .sum()
}
