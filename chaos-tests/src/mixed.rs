//! Clusters in which some members run the released Patroni: building them, exchanging a member's agent
//! on its data directory, and counting how often each PostgreSQL was started meanwhile.

use crate::binaries::{self, Binaries};
use crate::builder::Builder;
use crate::cluster::{Cluster, Settled};
use crate::member::Member;
use crate::steps::{REST, SETTLE_LIMIT};
use crate::store::{self, Way};
use crate::template::SCOPE;
use crate::wait;
use crate::workload::Writer;
use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// An agent that is told to end has ended within this time.
const END_LIMIT: Duration = Duration::from_secs(60);
/// A postmaster is looked for this often; one that lives shorter is not counted.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// The released programs.
#[derive(Clone, Debug)]
pub struct Released {
    /// `patroni`.
    pub patroni: PathBuf,
    /// `patronictl`.
    pub patronictl: PathBuf,
}

/// Whose control tool a story uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// `gardenctl`.
    Gardenctl,
    /// `patronictl`.
    Patronictl,
}

impl Released {
    /// Both, or none with a note that says how to get them.
    pub fn find() -> Option<Self> {
        let (patroni, patronictl) = (binaries::patroni()?, binaries::patronictl()?);
        Some(Self {
            patroni,
            patronictl,
        })
    }

    /// Three members of which these run Patroni, with the shortest lease that its rules allow.
    ///
    /// # Errors
    /// When a program of ours is not there.
    pub fn beside_ours(&self, patroni: &[u16]) -> Result<Builder> {
        let binaries = Binaries::find()?.with_patroni(self.patroni.clone());
        Ok(Builder::new(binaries).quick().patroni(patroni))
    }

    /// Runs a control tool; failure is an error with its output.
    ///
    /// # Errors
    /// When it cannot be run or ends with a status other than zero.
    pub async fn ctl(&self, cluster: &Cluster, tool: Tool, args: &[&str]) -> Result<String> {
        let program = match tool {
            Tool::Gardenctl => cluster.binaries().ctl.clone(),
            Tool::Patronictl => self.patronictl.clone(),
        };
        let (status, output) = cluster.control(&program, args).await?;
        let words = args.join(" ");
        ensure!(
            status.success(),
            "{tool:?} {words} ended with {status}:\n{output}"
        );
        Ok(output)
    }

    /// Hands leadership to `candidate` with this tool, and waits until all follow it and it acknowledges.
    ///
    /// # Errors
    /// When that does not happen.
    pub async fn switchover(
        &self,
        cluster: &Cluster,
        writer: &Writer,
        tool: Tool,
        candidate: usize,
    ) -> Result<Settled> {
        let before = wait::until("a candidate that may lead", SETTLE_LIMIT, || async {
            // A standby that is about to be restarted, for a copy of a slot say, is synchronous no longer
            // when the request arrives.
            let rested = cluster.steady(REST, SETTLE_LIMIT).await;
            let now = rested.map_err(|error| format!("{error:#}"))?;
            match now.synchronous.is_empty() || now.synchronous.contains(&candidate) {
                true => Ok(now),
                false => Err(format!("node{} is not synchronous: {now:?}", candidate + 1)),
            }
        })
        .await?;
        let (old, new) = (cluster.member(before.leader)?, cluster.member(candidate)?);
        let (from, to) = (old.name.as_str(), new.name.as_str());
        let args = [
            "switchover",
            SCOPE,
            "--leader",
            from,
            "--candidate",
            to,
            "--force",
        ];
        let begin = Instant::now();
        let output = self.ctl(cluster, tool, &args).await?;
        // patronictl ends with 0 also when the leader has refused.
        ensure!(!output.contains("Switchover failed"), "{tool:?}: {output}");
        let measured =
            crate::steps::measure(cluster, writer, begin, |now| now.leader == candidate).await?;
        println!(
            "switchover {from} ({:?}) -> {to} ({:?}) by {tool:?}: write gap {:.2} s",
            old.software(),
            new.software(),
            measured.gap.as_secs_f64()
        );
        Ok(measured.settled)
    }
}

/// Waits until the lock is held in this way.
///
/// # Errors
/// When it is not within `limit`.
pub async fn held(cluster: &Cluster, way: Way, limit: Duration) -> Result<()> {
    wait::until("the way of holding the lock", limit, || async {
        match store::way(cluster).await {
            Ok(Some(now)) if now == way => Ok(()),
            Ok(now) => Err(format!("it is {now:?}, not {way:?}")),
            Err(error) => Err(format!("{error:#}")),
        }
    })
    .await
}

/// Tells the agent to end and waits for it. In pause PostgreSQL stays; else it is stopped with it.
///
/// # Errors
/// When it does not end.
pub async fn end_agent(member: &Member) -> Result<()> {
    member.signal_agent(Signal::SIGTERM)?;
    wait::until("the end of an agent", END_LIMIT, || async {
        match member.agent() {
            None => Ok(()),
            Some(pid) => Err(format!("{} still runs as {pid}", member.name)),
        }
    })
    .await
}

/// One life of a postmaster: its pid, and the time of its start as `postmaster.pid` has it.
type Life = (i32, i64);

/// Counts the lives of each member's PostgreSQL.
#[derive(Debug)]
pub struct Lives {
    seen: Arc<Mutex<BTreeMap<String, BTreeSet<Life>>>>,
    task: JoinHandle<()>,
}

impl Lives {
    /// Begins to count.
    pub fn count(cluster: &Cluster) -> Self {
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let files: Vec<(String, PathBuf)> = cluster
            .members()
            .iter()
            .map(|member| {
                (
                    member.name.clone(),
                    member.data_dir().join("postmaster.pid"),
                )
            })
            .collect();
        let shared = seen.clone();
        let task = tokio::spawn(async move {
            loop {
                for (name, file) in &files {
                    if let Some(life) = std::fs::read_to_string(file).ok().and_then(|t| life(&t)) {
                        let mut seen = shared.lock().unwrap_or_else(PoisonError::into_inner);
                        let lives: &mut BTreeSet<Life> = seen.entry(name.clone()).or_default();
                        lives.insert(life);
                    }
                }
                tokio::time::sleep(LOOK_EVERY).await;
            }
        });
        Self { seen, task }
    }

    /// How often this member's PostgreSQL was started again since counting began.
    pub fn restarts(&self, member: &str) -> usize {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.get(member)
            .map_or(0, |lives| lives.len().saturating_sub(1))
    }

    /// All of them, for people.
    pub fn describe(&self) -> String {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let count =
            |(name, lives): (&String, &BTreeSet<Life>)| format!("{name} {}", lives.len() - 1);
        seen.iter().map(count).collect::<Vec<_>>().join(", ")
    }
}

impl Drop for Lives {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Lines of `postmaster.pid`: pid, data directory, start time, …
fn life(text: &str) -> Option<Life> {
    let mut lines = text.lines();
    let pid = lines.next()?.trim().parse().ok()?;
    Some((pid, lines.nth(1)?.trim().parse().ok()?))
}
