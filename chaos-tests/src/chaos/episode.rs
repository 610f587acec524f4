//! One fault, or several at a time, from a cluster at rest to a cluster at rest.

use super::load::Load;
use super::record::Run;
use super::rows::{Expect, Hold, Row};
use super::trouble::{self, Held, ProcessFault, Scene, Trouble, Who};
use super::watch::{DeathWatch, LeaseWatch};
use crate::cluster::{Cluster, Settled};
use crate::exclusivity::boot_time;
use crate::netns::Network;
use crate::steps::SETTLE_LIMIT;
use crate::wait;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};

/// A cluster that has not changed for this long can bear the next fault.
const REST: Duration = Duration::from_secs(2);
/// A restarted agent answers within this time.
const BACK_LIMIT: Duration = Duration::from_secs(20);

/// What is to be done.
#[derive(Clone, Debug)]
pub(super) struct Episode {
    /// Each with the pause before it.
    pub(super) rows: Vec<(Duration, Row)>,
    /// For how long, once all of it was done.
    pub(super) hold: Hold,
    pub(super) random: bool,
}

/// Where it is done.
pub(super) struct Stage<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) network: Option<&'a Network>,
    pub(super) lease: &'a LeaseWatch,
    /// Longest lease of the agents.
    pub(super) lease_length: Duration,
    pub(super) load: &'a Load,
    pub(super) begun: Instant,
    pub(super) is_async: bool,
}

impl Episode {
    pub(super) fn name(&self) -> String {
        let names: Vec<&str> = self.rows.iter().map(|(_, row)| row.name).collect();
        names.join(" + ")
    }

    /// Runs it; the load goes on all the time.
    ///
    /// # Errors
    /// When the cluster does not come to rest, before or after.
    pub(super) async fn run(&self, stage: &Stage<'_>, held: &mut Held) -> Result<Run> {
        let cluster = stage.cluster;
        let before = cluster.steady(REST, SETTLE_LIMIT).await?;
        cluster.routed(&before).await?;
        stage.load.writes_again().await?;
        let mut run = self.blank(stage);
        run.inconclusive = self.settle_load(stage, &before).await;

        let primary = cluster.member(before.leader)?;
        let old_postmaster = primary.postmaster();
        let death = DeathWatch::start(primary.data_dir());
        let epoch = stage.lease.epoch();
        let from = Instant::now();
        run.at = (from - stage.begun).as_secs_f64();
        self.inject(stage, held, &before, &mut run).await;
        if self.only() == Some(Trouble::Process(ProcessFault::AgentRestarted(Who::Primary))) {
            let back = answers(cluster, before.leader).await?;
            run.back_ms = Some(back.as_secs_f64() * 1e3);
            if primary.postmaster() != old_postmaster {
                run.wrong.push("PostgreSQL was restarted".to_owned());
            }
        }
        let limit = stage.lease_length + Duration::from_secs(37);
        let load = stage.load;
        load.hold(self.hold, from, primary.postgres_port, limit)
            .await;
        let fenced = self.fenced();
        if fenced {
            let deadline = epoch.and_then(|epoch| stage.lease.deadline(epoch));
            run.fencing_ms = fencing_delay(&death, deadline).await;
        }
        let died = death.died();
        drop(death);
        trouble::heal(cluster, stage.network, held).await?;
        run.healed = stage.begun.elapsed().as_secs_f64();
        let after = cluster.settle(SETTLE_LIMIT).await?;
        let last = load.writes_again().await?;
        run.settled = stage.begun.elapsed().as_secs_f64();
        run.gap_ms = load.gap(from, last).as_secs_f64() * 1e3;
        self.judge(&before, &after, &mut run);
        let moved = after.leader != before.leader;
        if fenced && moved && died.is_none() && !self.stops_backends() {
            run.wrong.push("the old primary was never dead".to_owned());
        }
        Ok(run)
    }

    fn blank(&self, stage: &Stage<'_>) -> Run {
        let what: Vec<&str> = self.rows.iter().map(|(_, row)| row.what).collect();
        let limit = self.rows.first().and_then(|(_, row)| {
            let [synchronous, asynchronous] = row.limit;
            if stage.is_async {
                asynchronous
            } else {
                synchronous
            }
        });
        Run {
            row: self.name(),
            what: what.join("; "),
            faults: self.rows.len(),
            random: self.random,
            limit_ms: if self.random { None } else { limit },
            ..Run::default()
        }
    }

    /// The load needs a moment after the last fault; without it the run proves nothing.
    async fn settle_load(&self, stage: &Stage<'_>, before: &Settled) -> Option<String> {
        let mut found = stage.load.too_little(before);
        for _ in 0..5 {
            found.as_ref()?;
            tokio::time::sleep(Duration::from_secs(1)).await;
            found = stage.load.too_little(before);
        }
        found
    }

    /// Later faults hit whoever has the role by then, or nothing, when the first one took it away.
    async fn inject(&self, stage: &Stage<'_>, held: &mut Held, before: &Settled, run: &mut Run) {
        for (number, (pause, row)) in self.rows.iter().enumerate() {
            tokio::time::sleep(*pause).await;
            let now = if number == 0 {
                before.clone()
            } else {
                stage
                    .cluster
                    .look()
                    .await
                    .unwrap_or_else(|_| before.clone())
            };
            let mut scene = Scene {
                cluster: stage.cluster,
                network: stage.network,
                now: &now,
                held,
            };
            if let Err(error) = row.trouble.inject(&mut scene).await {
                let text = format!("{} did not bite: {error:#}", row.name);
                println!("    {}", text.lines().next().unwrap_or_default());
                if number == 0 {
                    run.inconclusive.get_or_insert(text);
                }
            }
        }
    }

    /// The fault, when it is alone.
    fn only(&self) -> Option<Trouble> {
        match self.rows.as_slice() {
            [(_, row)] => Some(row.trouble),
            _ => None,
        }
    }

    fn fenced(&self) -> bool {
        !self.random && matches!(self.rows.as_slice(), [(_, row)] if row.fenced)
    }

    /// Backends that are stopped by a signal cannot write, and are ended when they are continued; only
    /// the guardian's PID namespace ends them before.
    fn stops_backends(&self) -> bool {
        self.only() == Some(Trouble::Process(ProcessFault::NodeFrozen(Who::Primary)))
    }

    /// Whether the leadership became what it should.
    fn judge(&self, before: &Settled, after: &Settled, run: &mut Run) {
        run.promotions = after.timeline.saturating_sub(before.timeline);
        let moved = after.leader != before.leader;
        let ([(_, row)], false) = (self.rows.as_slice(), self.random) else {
            return;
        };
        match row.expect {
            Expect::Failover if !moved => {
                run.inconclusive = Some("no failover, where one was due".to_owned());
            }
            Expect::Nothing if moved || run.promotions > 0 => {
                run.wrong.push("a needless failover".to_owned());
            }
            _ => {}
        }
        // Two crashes within a row of this kind are two faults.
        if run.promotions > 1 && row.expect != Expect::Either {
            run.wrong
                .push(format!("{} promotions for one fault", run.promotions));
        }
    }
}

/// How long the agent takes to answer.
async fn answers(cluster: &Cluster, member: usize) -> Result<Duration> {
    let from = Instant::now();
    let member = cluster.member(member)?;
    wait::until("the restarted agent to answer", BACK_LIMIT, || async {
        let status = member.status().await;
        status.map(|_| ()).ok_or("it does not".to_owned())
    })
    .await
    .context("agent-kill")?;
    Ok(from.elapsed())
}

/// The end of the last process against the deadline, in ms; it is waited for until some seconds after.
async fn fencing_delay(death: &DeathWatch, deadline: Option<Duration>) -> Option<f64> {
    let deadline = deadline?;
    let grace = Duration::from_secs(3);
    while death.died().is_none() && boot_time() < deadline + grace {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    Some((death.died()?.as_secs_f64() - deadline.as_secs_f64()) * 1e3)
}
