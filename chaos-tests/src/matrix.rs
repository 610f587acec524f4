//! The fault matrix: one fault at a time, many times over, on one real cluster under load.
//!
//! A run is: the cluster is at rest; two writers through HAProxy and direct sessions to every member
//! write; the fault; its end; the cluster is at rest again; every acknowledged row is looked for.
//! A run proves something only if there was load and the fault bit; otherwise it is inconclusive,
//! which counts as a failure of the whole.

mod rows;
mod table;
mod trouble;
mod watch;

pub use rows::{Expect, Hold, Mode, Row, all};
pub use table::{Report, RowReport};
pub use trouble::Trouble;

use crate::cluster::{Cluster, Settled};
use crate::exclusivity::{self, Delivery, Probes, boot_time};
use crate::netns::{Network, SUBNET};
use crate::ports::Ports;
use crate::steps::{BOOTSTRAP_LIMIT, SETTLE_LIMIT};
use crate::workload::{Ledger, TABLE, Writer};
use crate::{Binaries, Builder, checker, session, wait};
use anyhow::{Context, Result, ensure};
use serde_json::json;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use watch::{DeathWatch, LeaseWatch};

/// Start of the names of the directories.
const PREFIX: &str = "garden-matrix-";
/// Members and etcds.
const SIZE: u16 = 3;
/// A cluster that has not changed for this long can bear the next fault.
const REST: Duration = Duration::from_secs(2);
/// There is load for this long before the fault.
const LOAD: Duration = Duration::from_secs(1);
/// Rows that must be acknowledged in that time: through HAProxy, and by the primary directly.
const LOAD_MIN: (usize, usize) = (40, 15);
/// Another server acknowledges within this time, or there was no failover.
const MOVE_LIMIT: Duration = Duration::from_secs(45);
/// Writers through HAProxy.
const WRITERS: i32 = 2;
/// Numbers of writers per run: those through HAProxy and the direct ones.
const NUMBERS: i32 = 20;
/// A restarted agent answers within this time.
const BACK_LIMIT: Duration = Duration::from_secs(20);

/// What one run showed.
#[derive(Clone, Debug, Default)]
pub struct Run {
    /// Longest time without an acknowledgement through HAProxy.
    pub gap: Duration,
    /// Rows acknowledged, through HAProxy and directly.
    pub acked: usize,
    /// Acknowledged and missing.
    pub lost: usize,
    /// There more than once.
    pub doubled: usize,
    /// See [`exclusivity::overlap`].
    pub overlap: Duration,
    /// When the old primary's last process ended, in ms after its deadline.
    pub fencing_ms: Option<f64>,
    /// From the start of a restarted agent to its first answer.
    pub back: Option<Duration>,
    /// What was wrong; empty when nothing was.
    pub wrong: Vec<String>,
    /// Why it proves nothing.
    pub inconclusive: Option<String>,
}

/// What to run on.
#[derive(Clone, Debug)]
pub struct Options {
    /// What the cluster is made of.
    pub binaries: Binaries,
    /// Replication.
    pub mode: Mode,
    /// First port.
    pub ports: u16,
    /// Agents' logs of runs that went wrong are copied here.
    pub logs: Option<PathBuf>,
}

/// The cluster and what watches it.
#[derive(Debug)]
pub struct Matrix {
    options: Options,
    cluster: Cluster,
    network: Option<Network>,
    lease: LeaseWatch,
    number: i32,
}

impl Matrix {
    /// Starts the cluster, in the network if there is one.
    ///
    /// # Errors
    /// When it does not start.
    pub async fn start(options: Options, network: Option<Network>) -> Result<Self> {
        let cluster = build(&options, network.as_ref()).await?;
        let etcds = cluster
            .etcds()
            .iter()
            .map(|etcd| etcd.client_port)
            .collect();
        let key = format!("/service/{}/record", crate::template::SCOPE);
        let lease = LeaseWatch::start(etcds, key);
        Ok(Self {
            options,
            cluster,
            network,
            lease,
            number: 1,
        })
    }

    /// Ports of the cluster that these options make.
    pub fn ports(options: &Options) -> Ports {
        Ports::block(options.ports)
    }

    /// Runs one row.
    ///
    /// # Errors
    /// When the cluster is beyond use even after a new one was made.
    pub async fn row(&mut self, row: &Row, runs: usize) -> Result<RowReport> {
        let mut report = RowReport::new(row, self.options.mode);
        self.clear().await?;
        let mut ledgers = Vec::new();
        for number in 1..=runs {
            let run = match self.once(row, &mut ledgers).await {
                Ok(run) => run,
                Err(error) => {
                    let run = Run {
                        wrong: vec![format!("{error:#}")],
                        ..Run::default()
                    };
                    self.keep_logs(row, number);
                    self.rebuild().await?;
                    ledgers.clear();
                    run
                }
            };
            println!("  {} {number}/{runs}: {}", row.name, table::describe(&run));
            if !run.wrong.is_empty() || run.inconclusive.is_some() || report.is_slow(&run) {
                self.keep_logs(row, number);
            }
            report.runs.push(run);
        }
        Ok(report)
    }

    /// A new cluster in the place of one that did not come to rest.
    async fn rebuild(&mut self) -> Result<()> {
        let _ = trouble::heal(&self.cluster, self.network.as_ref());
        // The ports must be free before the next one, and the directory is swept when it is dropped.
        crate::process::sweep(self.cluster.dir());
        self.cluster = build(&self.options, self.network.as_ref()).await?;
        self.clear().await
    }

    /// An empty table.
    async fn clear(&self) -> Result<()> {
        let writer = Writer::through_haproxy(&self.cluster).await?;
        writer.stop().await;
        let settled = self.cluster.settle(SETTLE_LIMIT).await?;
        let client = session::client(self.cluster.member(settled.leader)?.postgres_port).await?;
        let truncated = client.batch_execute(&format!("TRUNCATE {TABLE}")).await;
        truncated.context("empty the table")
    }

    async fn once(&mut self, row: &Row, ledgers: &mut Vec<Ledger>) -> Result<Run> {
        let before = self.cluster.steady(REST, SETTLE_LIMIT).await?;
        self.cluster.routed(&before).await?;
        let load = Load::start(&self.cluster, self.number);
        self.number += NUMBERS;
        let mut run = Run::default();
        load.warm_up(&before, &mut run).await?;

        let primary = self.cluster.member(before.leader)?;
        let old_postmaster = primary.postmaster();
        let death = DeathWatch::start(primary.data_dir());
        let epoch = self.lease.epoch();
        let from = Instant::now();
        let network = self.network.as_ref();
        row.trouble.inject(&self.cluster, network, &before).await?;
        if row.trouble == Trouble::AgentRestarted {
            run.back = Some(answers(&self.cluster, before.leader).await?);
        }
        load.hold(row.hold, from, primary.postgres_port).await;
        if row.fenced {
            let deadline = epoch.and_then(|epoch| self.lease.deadline(epoch));
            run.fencing_ms = fencing_delay(&death, deadline).await;
        }
        let died = death.died();
        drop(death);
        trouble::heal(&self.cluster, network)?;
        let after = self.cluster.settle(SETTLE_LIMIT).await?;
        let last = load.writes_again().await?;
        run.gap = load.gap(from, last);

        judge(row, &before, &after, &mut run);
        if row.trouble == Trouble::AgentRestarted && primary.postmaster() != old_postmaster {
            run.wrong.push("PostgreSQL was restarted".to_owned());
        }
        // Backends that are stopped by a signal cannot write, and are ended when they are continued; only
        // the guardian's PID namespace ends them before.
        let ended = died.is_some() || row.trouble == Trouble::NodeFrozen;
        if row.fenced && row.expect == Expect::Failover && !ended {
            run.wrong.push("the old primary was never dead".to_owned());
        }
        let delivery = if row.trouble.needs_network() {
            Delivery::Late
        } else {
            Delivery::Prompt
        };
        load.stop(&mut run, ledgers, delivery).await;
        self.count(&after, ledgers, &mut run).await?;
        Ok(run)
    }

    /// Looks for every row of this row's runs.
    async fn count(&self, after: &Settled, ledgers: &[Ledger], run: &mut Run) -> Result<()> {
        let verdict = checker::check(&self.cluster, after.leader, ledgers).await?;
        run.lost = verdict.lost.len();
        run.doubled = verdict.doubled.len();
        let broken = !verdict.doubled.is_empty() || !verdict.differing.is_empty();
        if broken || (!verdict.clean() && self.options.mode != Mode::Async) {
            run.wrong.push(format!("{verdict}"));
        }
        Ok(())
    }

    fn keep_logs(&self, row: &Row, number: usize) {
        let Some(into) = &self.options.logs else {
            return;
        };
        let into = into.join(format!("{}-{number}", row.name));
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
        .ports(Matrix::ports(options))
        .networks(network.map(Network::namespaces).unwrap_or_default())
        .prefix(PREFIX)
        .configure(|settings| {
            settings.synchronous_mode = options.mode.setting();
            settings.local = json!({ "postgresql": { "pg_hba": hba(subnet) } });
        });
    let cluster = builder.start().await?;
    cluster.settle(BOOTSTRAP_LIMIT).await?;
    Ok(cluster)
}

/// How long the agent takes to answer.
async fn answers(cluster: &Cluster, member: usize) -> Result<Duration> {
    let from = Instant::now();
    let member = cluster.member(member)?;
    wait::until("the restarted agent to answer", BACK_LIMIT, || async {
        let status = member.status().await;
        status.map(|_| ()).ok_or("it does not".to_owned())
    })
    .await?;
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

/// Whether the leadership became what it should.
fn judge(row: &Row, before: &Settled, after: &Settled, run: &mut Run) {
    let promotions = after.timeline.saturating_sub(before.timeline);
    let moved = after.leader != before.leader;
    match row.expect {
        Expect::Failover if !moved => {
            run.inconclusive = Some("no failover, where one was due".to_owned());
        }
        Expect::Nothing if moved || promotions > 0 => {
            run.wrong.push("a needless failover".to_owned());
        }
        _ => {}
    }
    if promotions > 1 {
        run.wrong
            .push(format!("{promotions} promotions for one fault"));
    }
}

/// All who write during a run.
struct Load {
    writers: Vec<Writer>,
    probes: Probes,
}

impl Load {
    fn start(cluster: &Cluster, first: i32) -> Self {
        let writes = cluster.ports().writes;
        let writers = (0..WRITERS).map(|each| Writer::start(first + each, writes));
        Self {
            writers: writers.collect(),
            probes: Probes::start(cluster, first + WRITERS),
        }
    }

    /// Rows are written for a while; without enough of them the run proves nothing.
    async fn warm_up(&self, before: &Settled, run: &mut Run) -> Result<()> {
        for writer in &self.writers {
            writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
        }
        tokio::time::sleep(Duration::from_millis(300)).await;
        let direct = |acks: Vec<exclusivity::DirectAck>| {
            let by = acks.iter().filter(|ack| ack.member == before.leader);
            by.count()
        };
        let (routed, asked) = (self.routed(), direct(self.probes.acks()));
        tokio::time::sleep(LOAD).await;
        let routed = self.routed().saturating_sub(routed);
        let asked = direct(self.probes.acks()).saturating_sub(asked);
        if routed < LOAD_MIN.0 || asked < LOAD_MIN.1 {
            let seen = format!("{routed} rows through HAProxy and {asked} directly in {LOAD:?}");
            run.inconclusive = Some(format!("too little load: {seen}"));
        }
        Ok(())
    }

    fn routed(&self) -> usize {
        self.writers.iter().map(Writer::acked).sum()
    }

    /// Lets the fault last.
    async fn hold(&self, hold: Hold, from: Instant, old: u16) {
        let (least, limit) = match hold {
            Hold::For(time) => (time, Duration::ZERO),
            Hold::UntilMoved(least) => (least, MOVE_LIMIT),
            Hold::UntilWrites => (Duration::from_millis(500), MOVE_LIMIT),
        };
        let mut changed = from.elapsed() >= limit;
        while from.elapsed() < least || (!changed && from.elapsed() < limit) {
            tokio::time::sleep(Duration::from_millis(20)).await;
            changed = changed
                || self.writers.iter().any(|writer| match hold {
                    Hold::UntilMoved(_) => writer.acked_by_other(old, from),
                    _ => writer.last_sent().is_some_and(|sent| sent > from + least),
                });
        }
    }

    /// Every writer has a row acknowledged that it sent from now on. When the last of them had.
    async fn writes_again(&self) -> Result<Instant> {
        let mut last = Instant::now();
        for writer in &self.writers {
            let ack = writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
            last = last.max(ack.at);
        }
        Ok(last)
    }

    /// The longest time in which no writer had a row acknowledged.
    fn gap(&self, from: Instant, to: Instant) -> Duration {
        let mut all = Ledger::default();
        for writer in &self.writers {
            all.acks.append(&mut writer.ledger().acks);
        }
        all.acks.sort_by_key(|ack| ack.at);
        all.gap(from, to)
    }

    async fn stop(self, run: &mut Run, ledgers: &mut Vec<Ledger>, delivery: Delivery) {
        let mut own = Vec::new();
        for writer in self.writers {
            own.push(writer.stop().await);
        }
        let (acks, direct) = self.probes.stop().await;
        own.extend(direct);
        run.acked = own.iter().map(|ledger| ledger.acks.len()).sum();
        run.overlap = exclusivity::overlap(&acks, delivery);
        if !run.overlap.is_zero() {
            run.wrong
                .push(format!("two primaries for {:?}", run.overlap));
        }
        for timeline in exclusivity::shared_timelines(&acks) {
            run.wrong
                .push(format!("two members wrote on timeline {timeline}"));
        }
        ledgers.append(&mut own);
    }
}

/// A seeded schedule of random rows, of random length, now and then two at once.
///
/// # Errors
/// When the cluster is beyond use.
pub async fn random(matrix: &mut Matrix, time: Duration, seed: u64) -> Result<RowReport> {
    let mut dice = fastrand::Rng::with_seed(seed);
    let rows: Vec<Row> = all()
        .into_iter()
        .filter(|row| matrix.network.is_some() || !row.trouble.needs_network())
        .collect();
    ensure!(!rows.is_empty(), "there are no rows");
    let name = Row {
        name: "random",
        what: "random faults of random length",
        expect: Expect::Either,
        fenced: false,
        limit: [None; 2],
        ..*rows.first().context("there are no rows")?
    };
    let mut report = RowReport::new(&name, matrix.options.mode);
    let end = Instant::now() + time;
    while Instant::now() < end {
        let chosen = dice.choice(&rows).context("there are no rows")?;
        let row = Row {
            name: chosen.name,
            trouble: chosen.trouble,
            hold: Hold::For(Duration::from_millis(dice.u64(0..20_000))),
            ..name
        };
        let done = matrix.row(&row, dice.usize(1..=2)).await?;
        report.runs.extend(done.runs);
    }
    Ok(report)
}
