//! Chaos: the faults of the matrix, alone, in pairs and in seeded random schedules, on one real cluster
//! under load.
//!
//! ```text
//!   session ── chapter ── load starts ── episode ── at rest, fault(s), end, at rest ── episode … ── load
//!              stops, every acknowledged row is looked for, histories are checked ── chapter … ── all is
//!              stopped, and what is on disk is looked at
//! ```
//!
//! A run proves something only if there was load and the fault bit; otherwise it is inconclusive, which
//! is not green. Reading order: [`rows`](all), [`trouble`](Trouble), `episode`, `load`, `chapter`, then
//! [`report`].

mod chapter;
mod episode;
mod load;
mod plan;
mod plot;
mod record;
pub mod report;
mod rows;
mod trouble;
mod watch;

pub use plot::html;
pub use record::{Chapter, Run, Session};
pub use rows::{Expect, Hold, Mode, Row, all};
pub use trouble::Trouble;

use crate::cluster::Cluster;
use crate::exclusivity::Delivery;
use crate::netns::{Network, SUBNET};
use crate::ports::Ports;
use crate::steps::{BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use crate::{Binaries, Builder, clients, post_mortem, workload};
use anyhow::{Context, Result};
use chapter::Closing;
use episode::{Episode, Stage};
use load::Load;
use plan::Plan;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use trouble::Held;
use watch::LeaseWatch;

/// Start of the names of the directories.
const PREFIX: &str = "garden-row-";
/// Members and etcds.
const SIZE: u16 = 3;
/// A chapter of a random session: long enough for several faults to meet, short enough for its lists
/// and rows to be read at once.
const CHAPTER: Duration = Duration::from_secs(300);
/// Lease of our agents with the default profile, and of Patroni's (`ttl`).
const LEASE: (Duration, Duration) = (Duration::from_secs(8), Duration::from_secs(30));

/// What to run on.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the cluster is made of.
    pub binaries: Binaries,
    /// Replication.
    pub mode: Mode,
    /// First port.
    pub ports: u16,
    /// Data directories on disks of their own.
    pub disks: bool,
    /// Agents' logs of runs that went wrong are copied here.
    pub logs: Option<PathBuf>,
}

impl Options {
    /// Longest lease of the agents.
    pub fn lease(&self) -> Duration {
        if self.binaries.is_patroni() {
            LEASE.1
        } else {
            LEASE.0
        }
    }

    /// The rows that make sense with these.
    pub fn rows(&self, network: bool) -> Vec<Row> {
        let all = all(self.lease()).into_iter();
        let fits = |row: &Row| {
            let trouble = row.trouble;
            (network || !trouble.needs_network())
                && (self.disks || !trouble.needs_disks())
                && !(self.binaries.is_patroni() && trouble.only_ours())
        };
        all.filter(fits).collect()
    }
}

/// A session under way.
pub struct Chaos {
    options: Options,
    cluster: Cluster,
    network: Option<Network>,
    lease: LeaseWatch,
    number: i32,
    /// Nothing has been written to this cluster: there is nothing to compare.
    untouched: bool,
    begun: Instant,
    session: Session,
    save: Option<PathBuf>,
}

impl Chaos {
    /// Starts the cluster, in the network if there is one. The results so far are written to `save`
    /// after every chapter.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(
        options: Options,
        network: Option<Network>,
        seed: u64,
        save: Option<PathBuf>,
    ) -> Result<Self> {
        let cluster = build(&options, network.as_ref()).await?;
        let etcds = cluster.etcds().iter().map(|etcd| etcd.client_port);
        let key = format!("/service/{}/record", crate::template::SCOPE);
        let lease = LeaseWatch::start(etcds.collect(), key);
        let agent = if options.binaries.is_patroni() {
            "patroni"
        } else {
            "garden-agent"
        };
        let session = Session {
            agent: agent.to_owned(),
            postgres: version(&options.binaries.postgres.join("postgres"))?,
            etcd: version(&options.binaries.etcd)?,
            mode: options.mode.name().to_owned(),
            seed,
            ..Session::default()
        };
        Ok(Self {
            options,
            cluster,
            network,
            lease,
            number: 1,
            untouched: true,
            begun: Instant::now(),
            session,
            save,
        })
    }

    /// Ports of the cluster that these options make.
    pub fn ports(options: &Options) -> Ports {
        Ports::block(options.ports)
    }

    /// Runs one row several times, as one chapter.
    ///
    /// # Errors
    /// When the cluster is beyond use even after a new one was made.
    pub async fn row(&mut self, row: &Row, runs: usize) -> Result<()> {
        let episode = Episode {
            rows: vec![(Duration::ZERO, *row)],
            hold: row.hold,
            random: false,
        };
        let mut left = runs;
        while left > 0 {
            let mut next = || {
                left = left.checked_sub(1)?;
                Some(episode.clone())
            };
            self.chapter(&mut next).await?;
        }
        Ok(())
    }

    /// A seeded schedule of random faults for so long.
    ///
    /// # Errors
    /// When the cluster is beyond use even after a new one was made.
    pub async fn random(&mut self, rows: &[Row], time: Duration) -> Result<()> {
        let mut plan = Plan::new(self.session.seed, rows);
        let end = Instant::now() + time;
        while Instant::now() < end {
            let chapter_end = end.min(Instant::now() + CHAPTER);
            let mut next = || (Instant::now() < chapter_end).then(|| plan.next())?;
            self.chapter(&mut next).await?;
        }
        Ok(())
    }

    /// Stops everything and looks at what is left of it.
    ///
    /// # Errors
    /// When the results cannot be written.
    pub async fn finish(mut self) -> Result<Session> {
        if !self.untouched {
            match post_mortem::examine(&self.cluster).await {
                Ok(findings) => {
                    self.session.post_mortem = findings.looked_at;
                    self.session.post_mortem_wrong = findings.wrong;
                }
                Err(error) => self.session.post_mortem_wrong.push(format!("{error:#}")),
            }
        }
        self.save()?;
        Ok(self.session)
    }

    /// One load, and episodes under it until there are no more or the cluster does not come to rest.
    async fn chapter(&mut self, next: &mut dyn FnMut() -> Option<Episode>) -> Result<()> {
        self.clear().await?;
        let load = Load::start(&self.cluster, self.number);
        self.untouched = false;
        self.number += load::NUMBERS;
        let mut held = Held::default();
        let mut runs = Vec::new();
        let mut done = load.warm_up().await;
        let (mut late, mut by_hand) = (false, false);
        while done.is_ok()
            && let Some(episode) = next()
        {
            late |= episode
                .rows
                .iter()
                .any(|(_, row)| row.trouble.needs_network());
            by_hand |= episode.rows.iter().any(|(_, row)| row.by_hand);
            done = self.episode(&episode, &load, &mut held, &mut runs).await;
        }
        let begun = load.begun;
        let seen = load.stop().await;
        let closed = match done {
            Ok(()) => {
                let after = self.cluster.settle(SETTLE_LIMIT).await?;
                let delivery = if late {
                    Delivery::Late
                } else {
                    Delivery::Prompt
                };
                let closing = Closing {
                    cluster: &self.cluster,
                    after: &after,
                    seen,
                    begun,
                    session: self.begun,
                    is_async: self.options.mode == Mode::Async,
                    by_hand,
                    delivery,
                    lease: self.options.lease(),
                };
                closing.judge(&mut runs).await
            }
            Err(error) => Err(error),
        };
        self.close(closed, runs, held).await
    }

    /// Enters a chapter; after one that went wrong there is a new cluster.
    async fn close(
        &mut self,
        closed: Result<Chapter>,
        runs: Vec<Run>,
        mut held: Held,
    ) -> Result<()> {
        let beyond_use = closed.is_err();
        let chapter = closed.unwrap_or_else(|error| Chapter {
            wrong: vec![format!("{error:#}")],
            ..Chapter::default()
        });
        for wrong in &chapter.wrong {
            println!("  WRONG: {wrong}");
        }
        let marks = runs.iter().any(|run| !run.wrong.is_empty());
        if marks || !chapter.wrong.is_empty() {
            self.keep_logs();
        }
        println!(
            "  chapter {}: {} rows, {} transactions, {} calls, {} stale, {} wrong",
            self.session.chapters.len() + 1,
            chapter.acked,
            chapter.transactions,
            chapter.calls,
            chapter.stale,
            chapter.wrong.len()
        );
        self.session.runs.extend(runs);
        self.session.chapters.push(chapter);
        self.save()?;
        if beyond_use {
            // Whatever cannot be healed is ended with the cluster.
            let _ = trouble::heal(&self.cluster, self.network.as_ref(), &mut held).await;
            crate::process::sweep(self.cluster.dir());
            self.cluster = build(&self.options, self.network.as_ref()).await?;
            self.untouched = true;
        }
        Ok(())
    }

    async fn episode(
        &self,
        episode: &Episode,
        load: &Load,
        held: &mut Held,
        runs: &mut Vec<Run>,
    ) -> Result<()> {
        let stage = Stage {
            cluster: &self.cluster,
            network: self.network.as_ref(),
            lease: &self.lease,
            lease_length: self.options.lease(),
            load,
            begun: self.begun,
            is_async: self.options.mode == Mode::Async,
        };
        let run = episode.run(&stage, held).await;
        let run = run.with_context(|| episode.name())?;
        println!("  {}: {}", run.row, report::describe(&run));
        let leader = self.cluster.look().await.ok().map(|now| now.leader);
        if let Some(leader) = leader {
            let port = self.cluster.member(leader)?.postgres_port;
            let missing = load.missing(port).await.unwrap_or(0);
            if missing > 0 {
                println!("    {missing} acknowledged rows are missing");
            }
        }
        runs.push(run);
        Ok(())
    }

    /// Empty tables.
    async fn clear(&self) -> Result<()> {
        workload::create_table(self.cluster.ports().writes).await?;
        let settled = self.cluster.settle(SETTLE_LIMIT).await?;
        let port = self.cluster.member(settled.leader)?.postgres_port;
        clients::create_tables(port).await?;
        clients::empty_tables(port).await
    }

    fn save(&mut self) -> Result<()> {
        self.session.seconds = self.begun.elapsed().as_secs_f64();
        let Some(file) = &self.save else {
            return Ok(());
        };
        let text = serde_json::to_string(&self.session).context("write the results")?;
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
    }

    fn keep_logs(&self) {
        let Some(into) = &self.options.logs else {
            return;
        };
        let into = into.join(format!("chapter-{}", self.session.chapters.len() + 1));
        let copied = std::fs::create_dir_all(&into).and_then(|()| {
            for member in self.cluster.members() {
                std::fs::copy(member.log(), into.join(format!("{}.log", member.name)))?;
            }
            Ok(())
        });
        if let Err(error) = copied {
            eprintln!("keep the logs in {}: {error}", into.display());
        }
    }
}

/// What a program says of its version.
fn version(program: &Path) -> Result<String> {
    let mut command = std::process::Command::new(program);
    command.arg("--version");
    let output = crate::process::tool(command, "")?;
    let text = String::from_utf8_lossy(&output);
    let numbers = text.split_whitespace();
    let number = numbers.filter(|word| word.starts_with(|c: char| c.is_ascii_digit()));
    Ok(number.take(1).collect())
}

async fn build(options: &Options, network: Option<&Network>) -> Result<Cluster> {
    let hba = |subnet: &str| {
        json!([
            "local all all trust",
            format!("host replication replicator {subnet} scram-sha-256"),
            format!("host all all {subnet} scram-sha-256"),
        ])
    };
    let subnet = network.map_or("127.0.0.1/32", |_| SUBNET);
    let builder = Builder::new(options.binaries.clone())
        .members(SIZE)
        .etcds(SIZE)
        .ports(Chaos::ports(options))
        .networks(network.map(Network::namespaces).unwrap_or_default())
        .disks(options.disks)
        .prefix(PREFIX)
        .configure(|settings| {
            settings.synchronous_mode = options.mode.setting();
            // Looks beside the member's directory, where the harness says whether it hangs.
            let hang = trouble::HANG;
            let script = format!("sh -c 'while [ -e ../{hang} ]; do sleep 1; done' callback");
            let callbacks = json!({ "on_role_change": script });
            settings.local = json!({
                "postgresql": { "pg_hba": hba(subnet), "callbacks": callbacks },
            });
        });
    let cluster = builder.start().await?;
    cluster.settle(BOOTSTRAP_LIMIT).await?;
    Ok(cluster)
}
