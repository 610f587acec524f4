//! The demo: a cluster, a writer, four events, one table.

use crate::builder::Builder;
use crate::checker;
use crate::cluster::{Cluster, Settled};
use crate::report::{Line, Report};
use crate::steps::{self, BOOTSTRAP_LIMIT, Measured};
use crate::template::{SUPERUSER, SUPERUSER_PASSWORD};
use crate::workload::Writer;
use anyhow::Result;
use std::fmt::Write;
use std::future::Future;
use std::time::{Duration, Instant};

/// Start of the names of the demo's directories.
pub const PREFIX: &str = "garden-demo-";
/// While something takes long, a line says so this often.
const STILL: Duration = Duration::from_secs(5);
/// Lines of `gardenctl timeline` that are shown for an event.
const PHASE_LINES_MAX: usize = 12;

/// Prints what happens, with the time since the beginning.
#[derive(Clone, Copy, Debug)]
pub struct Progress(Instant);

impl Default for Progress {
    fn default() -> Self {
        Self(Instant::now())
    }
}

impl Progress {
    /// One line.
    pub fn say(self, text: &str) {
        println!("[{:6.1} s] {text}", self.0.elapsed().as_secs_f64());
    }

    /// Waits for something, and says every few seconds what the cluster is still missing.
    pub async fn during<T>(self, cluster: &Cluster, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep(STILL) => {
                    let missing = cluster.look().await.err().unwrap_or("nearly there".to_owned());
                    self.say(&format!("  ... {missing}"));
                }
            }
        }
    }
}

/// The running demo.
#[derive(Debug)]
pub struct Demo {
    cluster: Cluster,
    writer: Writer,
    settled: Settled,
    progress: Progress,
    report: Report,
}

/// What came out.
#[derive(Debug)]
pub struct Outcome {
    /// The cluster, still running.
    pub cluster: Cluster,
    /// Whether no acknowledged row is missing.
    pub clean: bool,
}

/// Runs the whole demo on the cluster that the builder describes.
///
/// # Errors
/// When the cluster does not start, or does not come to rest after an event.
pub async fn run(builder: Builder) -> Result<Outcome> {
    let mut demo = Demo::start(builder).await?;
    demo.switchover().await?;
    demo.kill_postmaster().await?;
    let lost = demo.lose_leader().await?;
    demo.return_node(lost).await?;
    demo.finish().await
}

impl Demo {
    async fn start(builder: Builder) -> Result<Self> {
        let progress = Progress::default();
        let cluster = builder.prepare()?;
        progress.say(&format!("a cluster in {}", cluster.dir().display()));
        progress.say("starting three etcd, HAProxy and three nodes");
        cluster.start_etcd().await?;
        for member in cluster.members() {
            member.start()?;
        }
        let settled = progress
            .during(&cluster, cluster.settle(BOOTSTRAP_LIMIT))
            .await?;
        progress.say(&format!(
            "node{} leads, the others stream from it",
            settled.leader + 1
        ));
        let writer = Writer::through_haproxy(&cluster).await?;
        progress.say("a writer inserts rows through HAProxy");
        let report = Report::default();
        let demo = Self {
            cluster,
            writer,
            settled,
            progress,
            report,
        };
        demo.routed().await?;
        Ok(demo)
    }

    async fn switchover(&mut self) -> Result<()> {
        self.breathe().await?;
        let candidate = self
            .settled
            .synchronous
            .first()
            .or(self.settled.replicas.first())
            .copied();
        let to = candidate.map_or("anybody".to_owned(), |index| format!("node{}", index + 1));
        let what = format!(
            "planned switchover, node{} to {to}",
            self.settled.leader + 1
        );
        self.progress.say(&what);
        let work = steps::switchover(&self.cluster, &self.writer, &self.settled, candidate);
        let measured = self.progress.during(&self.cluster, work).await?;
        self.done(what, measured, Vec::new()).await
    }

    async fn kill_postmaster(&mut self) -> Result<()> {
        self.breathe().await?;
        let what = format!("SIGKILL of node{}'s postmaster", self.settled.leader + 1);
        self.progress.say(&what);
        let work = steps::kill_postmaster(&self.cluster, &self.writer, &self.settled);
        let measured = self.progress.during(&self.cluster, work).await?;
        let leader = measured.settled.leader;
        let how = if leader == self.settled.leader {
            "recovered in place"
        } else {
            "failed over"
        };
        self.done(what, measured, vec![how.to_owned()]).await
    }

    async fn lose_leader(&mut self) -> Result<usize> {
        self.breathe().await?;
        let lost = self.settled.leader;
        let what = format!("SIGKILL of node{}'s agent and PostgreSQL", lost + 1);
        self.progress.say(&what);
        let work = steps::lose_leader(&self.cluster, &self.writer, &self.settled);
        let measured = self.progress.during(&self.cluster, work).await?;
        self.done(what, measured, Vec::new()).await?;
        Ok(lost)
    }

    async fn return_node(&mut self, lost: usize) -> Result<()> {
        self.breathe().await?;
        let what = format!("return of node{}", lost + 1);
        self.progress.say(&what);
        let work = steps::return_node(&self.cluster, &self.writer, lost);
        let (measured, rejoin) = self.progress.during(&self.cluster, work).await?;
        self.done(what, measured, vec![rejoin.describe().to_owned()])
            .await
    }

    /// Lets rows be written, and waits until the cluster can bear the next event.
    async fn breathe(&mut self) -> Result<()> {
        let steady = self.cluster.steady(steps::REST, steps::SETTLE_LIMIT);
        self.settled = self.progress.during(&self.cluster, steady).await?;
        Ok(())
    }

    /// After an event: who leads, HAProxy's view, the rows, the phases.
    async fn done(&mut self, what: String, done: Measured, mut notes: Vec<String>) -> Result<()> {
        let changed = done.settled.leader != self.settled.leader;
        self.settled = done.settled;
        let gap = done.gap.as_millis();
        self.progress.say(&format!(
            "  node{} leads, gap {gap} ms",
            self.settled.leader + 1
        ));
        for note in &notes {
            self.progress.say(&format!("  {note}"));
        }
        self.routed().await?;
        let ledger = self.writer.ledger();
        let acked = ledger.acked_between(done.from, Instant::now());
        let port = self.cluster.member(self.settled.leader)?.postgres_port;
        let lost = checker::missing(port, &[ledger]).await?;
        if changed {
            notes.extend(self.phases().await);
        }
        self.report.lines.push(Line {
            what,
            gap: done.gap,
            acked,
            lost,
            notes,
        });
        Ok(())
    }

    async fn routed(&self) -> Result<()> {
        let view = self.cluster.routed(&self.settled).await?;
        self.progress.say(&format!("  HAProxy {view}"));
        Ok(())
    }

    /// What `gardenctl timeline` says about the last change of leadership. Patroni has no such
    /// command, and the demo needs no phases to be right: no answer, no lines.
    async fn phases(&self) -> Vec<String> {
        if self.cluster.binaries().is_patroni() {
            return Vec::new();
        }
        match self.cluster.ctl(&["timeline"]).await {
            Ok((status, output)) if status.success() => {
                let lines = output
                    .lines()
                    .map(str::trim_end)
                    .filter(|line| !line.is_empty());
                lines.take(PHASE_LINES_MAX).map(str::to_owned).collect()
            }
            _ => Vec::new(),
        }
    }

    async fn finish(self) -> Result<Outcome> {
        let Self {
            cluster,
            writer,
            settled,
            progress,
            report,
        } = self;
        let ledger = writer.stop().await;
        progress
            .say("the writer has stopped; comparing all three nodes with what was acknowledged");
        let verdict = checker::check(&cluster, settled.leader, &[ledger]).await?;
        println!("\n{report}\n{verdict}\n");
        let (_, list) = cluster.ctl(&["list"]).await?;
        println!("{list}");
        let lost: usize = report.lines.iter().map(|line| line.lost).sum();
        Ok(Outcome {
            clean: verdict.clean() && lost == 0,
            cluster,
        })
    }
}

/// How to connect to, look at, break and stop a cluster that was left running.
pub fn instructions(cluster: &Cluster) -> String {
    let (dir, ports) = (cluster.dir().display(), cluster.ports());
    let binaries = cluster.binaries();
    let (ctl, agent) = (binaries.ctl.display(), binaries.agent.display());
    let become_user = if nix::unistd::geteuid().is_root() {
        "runuser -u postgres -- "
    } else {
        ""
    };
    let psql = format!("PGPASSWORD={SUPERUSER_PASSWORD} psql -h 127.0.0.1 -U {SUPERUSER}");
    let mut text = String::new();
    let mut line = |what: &str, how: String| {
        // Writing into a string cannot fail.
        let _ = writeln!(text, "  {what:<24}{how}");
    };
    line("connect, writes", format!("{psql} -p {}", ports.writes));
    line("connect, reads", format!("{psql} -p {}", ports.reads));
    line(
        "look",
        format!("{become_user}{ctl} -c {dir}/node1/patroni.yml list"),
    );
    line(
        "HAProxy's statistics",
        format!("http://127.0.0.1:{}/", ports.statistics),
    );
    line(
        "one node's status",
        format!("curl -s http://127.0.0.1:{}/patroni", ports.rest),
    );
    line(
        "logs",
        format!("{dir}/node1/agent.log, {dir}/node1/data/log"),
    );
    line(
        "break: a postmaster",
        format!("kill -9 $(head -1 {dir}/node1/data/postmaster.pid)"),
    );
    line("break: a whole node", format!("pkill -9 -f {dir}/node1/"));
    let start =
        format!("{become_user}{agent} {dir}/node1/patroni.yml >>{dir}/node1/agent.log 2>&1 &");
    line("bring that node back", start);
    line("stop everything", "./deploy/demo --stop".to_owned());
    text
}
