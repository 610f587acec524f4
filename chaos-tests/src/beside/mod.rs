//! The released Patroni and ours, driven through the same states side by side, and every answer of both
//! compared.
//!
//! ```text
//!             ┌─▶ cluster of Patroni ──▶ Reply ─┐
//! the same ───┤                                 ├─▶ normal form ─▶ fields ─▶ differences, explained or not
//! steps       └─▶ cluster of ours ─────▶ Reply ─┘
//! ```
//!
//! What must differ between two clusters (ports, system identifiers, positions, moments) has one name in
//! both after [`normal`]; everything else is compared as it is, the order of keys included. [`explained`]
//! has the differences that are meant, each with its reason: one that is not there fails the story.

pub mod explained;
pub mod normal;
pub mod probe;
pub mod requests;
pub mod table;

use crate::cluster::Cluster;
use crate::http;
use crate::ports::Ports;
use crate::{Binaries, Builder, Member, wait};
use anyhow::{Context, Result};
use probe::{Probe, Reply};
use serde_json::{Value, json};
use std::path::Path;
use std::time::{Duration, Instant};
use table::{Seen, Table};

/// Answers of both that differ may be of different moments; only what stays so for this long counts.
const AGREE_LIMIT: Duration = Duration::from_secs(25);
/// How often both control tools are run when they say different things.
const TOOL_TRIES: u32 = 3;
/// Between two looks.
const AGREE_PAUSE: Duration = Duration::from_secs(1);
/// A first member leads a new cluster within this time.
const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(180);
/// A new state is reached within this time; leases of 20 s have to run out for some.
pub const STATE_LIMIT: Duration = Duration::from_secs(90);
/// One document.
const DOCUMENT_LIMIT: Duration = Duration::from_secs(15);

/// Credentials of the REST API of both.
pub const REST_USER: &str = "operator";
/// Its password.
pub const REST_PASSWORD: &str = "rest-secret";

/// A cluster of each program, with the same members.
#[derive(Debug)]
pub struct Pair {
    /// The released Patroni.
    pub theirs: Cluster,
    /// Ours.
    pub ours: Cluster,
}

impl Pair {
    /// Starts both, `node1` first, so that it leads in both.
    ///
    /// # Errors
    /// When one does not come up.
    pub async fn start(patroni: &Path) -> Result<Self> {
        let ours = Binaries::find()?;
        let mut theirs = ours.clone();
        theirs.agent = patroni.to_owned();
        theirs.ctl = patroni.with_file_name("patronictl");
        // Chosen together, since neither is in use before its cluster is.
        let [one, other] = Ports::free_blocks()?;
        let theirs = prepare(theirs, one).context("Patroni")?;
        let ours = prepare(ours, other).context("ours")?;
        let pair = Self { theirs, ours };
        tokio::try_join!(begin(&pair.theirs), begin(&pair.ours))?;
        Ok(pair)
    }

    /// Does the same to both at the same time.
    ///
    /// # Errors
    /// When one fails.
    pub async fn each<'a, T, F>(&'a self, act: impl Fn(&'a Cluster) -> F) -> Result<(T, T)>
    where
        F: Future<Output = Result<T>>,
    {
        tokio::try_join!(
            async { act(&self.theirs).await.context("Patroni") },
            async { act(&self.ours).await.context("ours") }
        )
    }

    /// Waits until a document of a member fits, in both.
    ///
    /// # Errors
    /// When it does not in time.
    pub async fn until(
        &self,
        (index, path): (usize, &str),
        what: &str,
        fits: impl Fn(&Value) -> bool,
    ) -> Result<()> {
        let (what, fits) = (format!("node{} {path}: {what}", index + 1), &fits);
        let what = &what;
        let wait = |cluster: &'_ Cluster| {
            let port = cluster.member(index).map(|member| member.rest_port);
            async move {
                let port = port?;
                wait::until(what, STATE_LIMIT, || async {
                    let answer = http::get(port, path, DOCUMENT_LIMIT).await;
                    let found = answer.and_then(|answer| answer.json());
                    match found {
                        Ok(found) if fits(&found) => Ok(()),
                        Ok(found) => Err(found.to_string()),
                        Err(error) => Err(format!("{error:#}")),
                    }
                })
                .await
            }
        };
        tokio::try_join!(
            async { wait(&self.theirs).await.context("Patroni") },
            async { wait(&self.ours).await.context("ours") }
        )?;
        Ok(())
    }

    /// Asks the same of a member of both, and demands the same status of both.
    ///
    /// # Errors
    /// When one answers otherwise.
    pub async fn order(&self, index: usize, probe: &Probe, status: u16) -> Result<()> {
        for cluster in [&self.theirs, &self.ours] {
            let reply = probe.send(cluster, index).await;
            anyhow::ensure!(reply.status() == status, "{probe}: {reply:?}");
        }
        Ok(())
    }

    /// Compares what both answer in this state, until they agree or have had time enough to.
    /// Differences go into the table.
    pub async fn compare(
        &self,
        state: &str,
        members: &[usize],
        probes: &[Probe],
        table: &mut Table,
    ) {
        self.ask_both(state, (members, probes), AGREE_LIMIT, table)
            .await;
    }

    /// The same with requests that must not be sent twice.
    pub async fn compare_once(&self, state: &str, member: usize, probe: Probe, table: &mut Table) {
        self.ask_both(state, (&[member], &[probe]), Duration::ZERO, table)
            .await;
    }

    async fn ask_both(
        &self,
        state: &str,
        (members, probes): (&[usize], &[Probe]),
        patience: Duration,
        table: &mut Table,
    ) {
        let until = Instant::now() + patience;
        loop {
            let (theirs, ours) = tokio::join!(
                ask(&self.theirs, members, probes),
                ask(&self.ours, members, probes)
            );
            let seen = Seen::of(state, members, probes, &theirs, &ours);
            let open = seen.unexplained();
            if open == 0 || Instant::now() > until {
                println!("{state}: {} answers, {open} open differences", theirs.len());
                table.add(seen);
                return;
            }
            tokio::time::sleep(AGREE_PAUSE).await;
        }
    }

    /// Both control tools on both clusters: the same output, to the byte, and the same status.
    ///
    /// # Errors
    /// When a tool cannot be run.
    pub async fn tools(&self, state: &str, lines: &[&str], table: &mut Table) -> Result<()> {
        let released = &self.theirs.binaries().ctl;
        // Under the other name ours gives the other's version.
        let ctl = &self.ours.dir().join("bin").join("patronictl");
        if !ctl.exists() {
            std::os::unix::fs::symlink(&self.ours.binaries().ctl, ctl).context("link gardenctl")?;
        }
        for (whose, cluster) in [("Patroni's", &self.theirs), ("our", &self.ours)] {
            for line in lines {
                let words: Vec<&str> = line.split(' ').collect();
                // Positions move between the two.
                for attempt in 1..=TOOL_TRIES {
                    let theirs = cluster.control(released, &words).await?;
                    let ours = cluster.control(ctl, &words).await?;
                    let same = theirs.0.code() == ours.0.code() && theirs.1 == ours.1;
                    if same || attempt == TOOL_TRIES {
                        let what = format!("{state}: {line}, on {whose} cluster");
                        let theirs = (theirs.0.code(), theirs.1.as_str());
                        table.tool(&what, theirs, (ours.0.code(), &ours.1));
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

/// All replies, member after member, probe after probe.
async fn ask(cluster: &Cluster, members: &[usize], probes: &[Probe]) -> Vec<Reply> {
    let mut replies = Vec::new();
    for member in members {
        for probe in probes {
            replies.push(probe.send(cluster, *member).await.normal(cluster));
        }
    }
    replies
}

fn prepare(binaries: Binaries, ports: Ports) -> Result<Cluster> {
    let builder = Builder::new(binaries)
        .quick()
        .etcds(1)
        .ports(ports)
        .prefix("garden-beside-");
    let builder = builder.configure(|settings| {
        settings.synchronous_mode = Value::Bool(false);
        settings.local = json!({
            "restapi": {
                "authentication": {"username": REST_USER, "password": REST_PASSWORD},
                "http_extra_headers": {"X-Extra": "given"},
                "server_tokens": "productonly",
            },
            "postgresql": {
                // Longer than any state is looked at.
                "pg_ctl_timeout": 300,
                "recovery_conf": {"restore_command": HANG},
            },
        });
    });
    let cluster = builder.prepare()?;
    edit(cluster.member(1)?, |node| {
        overlay(node, "/tags/clonefrom", json!(true))
    })?;
    edit(cluster.member(2)?, |node| {
        let tags = json!({
            "nofailover": true, "noloadbalance": true, "nosync": true,
            "replicatefrom": "node2", "zone": "east", "weight": 1.5,
        });
        overlay(node, "/tags", tags);
    })?;
    Ok(cluster)
}

/// The restore command of all members: it finds nothing, and hangs as long as the file [`hang_file`] is
/// there, which keeps a server that is being started from accepting connections.
const HANG: &str = "while [ -e ../hang ]; do sleep 0.2; done; exit 1";

/// The file that makes a member's server hang at its start. The command's directory is PGDATA.
pub fn hang_file(member: &Member) -> std::path::PathBuf {
    member.dir.join("hang")
}

/// Changes a member's file.
///
/// # Errors
/// When it cannot be read or written.
pub fn edit(member: &Member, change: impl FnOnce(&mut Value)) -> Result<()> {
    let text = std::fs::read_to_string(&member.config).context("read a node's file")?;
    let mut node: Value = serde_norway::from_str(&text).context("a node's file")?;
    change(&mut node);
    std::fs::write(&member.config, serde_norway::to_string(&node)?).context("write a node's file")
}

fn overlay(node: &mut Value, pointer: &str, value: Value) {
    if let Some(place) = node.pointer_mut(pointer) {
        *place = value;
    }
}

async fn begin(cluster: &Cluster) -> Result<()> {
    cluster.start_etcd().await?;
    for (index, member) in cluster.members().iter().enumerate() {
        member.start()?;
        let wanted = if index == 0 { "/primary" } else { "/health" };
        let what = format!("{} to answer {wanted}", member.name);
        let up = wait::until(&what, BOOTSTRAP_LIMIT, || async {
            match member.check(wanted).await {
                Some(200) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        up.await?;
    }
    cluster.settle(BOOTSTRAP_LIMIT).await.map(|_| ())
}
