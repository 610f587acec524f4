//! A cluster: members, etcd and HAProxy in one directory, from the first process to the last.

use crate::binaries::Binaries;
use crate::etcd::Etcd;
use crate::haproxy::{Haproxy, View};
use crate::http;
use crate::janitor::Janitor;
use crate::member::{Member, Status};
use crate::ports::Ports;
use crate::process::{self, Launch};
use crate::session;
use crate::wait;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// etcd has a leader within this time.
const ETCD_LIMIT: Duration = Duration::from_secs(30);
/// HAProxy shows what the agents say within this time: two checks, and their timeout.
const VIEW_LIMIT: Duration = Duration::from_secs(15);
/// A control command ends within this time.
const CTL_LIMIT: Duration = Duration::from_secs(120);
/// Variable that keeps the directories of failed stories.
pub const KEEP_VARIABLE: &str = "GARDEN_CHAOS_KEEP";

/// A cluster at rest: one leader, every other running member streaming from its timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// The leader.
    pub leader: usize,
    /// The standbys.
    pub replicas: Vec<usize>,
    /// Those of them that are synchronous, when the mode names any.
    pub synchronous: Vec<usize>,
    /// The timeline.
    pub timeline: u64,
}

/// A running cluster. Dropping it ends every process of it and removes its directory.
#[derive(Debug)]
pub struct Cluster {
    pub(crate) dir: PathBuf,
    pub(crate) ports: Ports,
    pub(crate) binaries: Binaries,
    pub(crate) members: Vec<Member>,
    pub(crate) etcds: Vec<Etcd>,
    pub(crate) haproxy: Haproxy,
    pub(crate) synchronous: Value,
    pub(crate) janitor: Mutex<Janitor>,
    pub(crate) commands: AtomicU32,
    pub(crate) kept: bool,
}

impl Cluster {
    /// Directory of everything.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its ports.
    pub fn ports(&self) -> &Ports {
        &self.ports
    }

    /// What it runs.
    pub fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// All members.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// One member.
    ///
    /// # Errors
    /// When there are not so many.
    pub fn member(&self, index: usize) -> Result<&Member> {
        self.members
            .get(index)
            .with_context(|| format!("there is no node{}", index + 1))
    }

    /// Its `synchronous_mode`.
    pub fn synchronous(&self) -> &Value {
        &self.synchronous
    }

    /// All etcd.
    pub fn etcds(&self) -> &[Etcd] {
        &self.etcds
    }

    /// HAProxy.
    pub fn haproxy(&self) -> &Haproxy {
        &self.haproxy
    }

    /// Starts etcd and waits until all of it is healthy.
    ///
    /// # Errors
    /// When it does not become so.
    pub async fn start_etcd(&self) -> Result<()> {
        for etcd in &self.etcds {
            etcd.start()?;
        }
        wait::until("etcd", ETCD_LIMIT, || async {
            for etcd in &self.etcds {
                if !etcd.healthy().await {
                    return Err(format!("{} is not healthy", etcd.name));
                }
            }
            Ok(())
        })
        .await
    }

    /// Waits until every member whose agent runs has its place, and a synchronous standby is
    /// named where the mode asks for one.
    ///
    /// # Errors
    /// When that does not happen within `limit`; says what is missing.
    pub async fn settle(&self, limit: Duration) -> Result<Settled> {
        wait::until("a settled cluster", limit, || self.look()).await
    }

    /// Waits until the cluster has been settled, the same way, for `rest` without a break.
    ///
    /// # Errors
    /// As [`Cluster::settle`].
    pub async fn steady(&self, rest: Duration, limit: Duration) -> Result<Settled> {
        let end = Instant::now() + limit;
        let mut settled = self.settle(limit).await?;
        let mut since = Instant::now();
        while since.elapsed() < rest {
            tokio::time::sleep(wait::POLL).await;
            if !self.look().await.is_ok_and(|now| now == settled) {
                settled = self
                    .settle(end.saturating_duration_since(Instant::now()))
                    .await?;
                since = Instant::now();
            }
        }
        Ok(settled)
    }

    /// One look at whether the cluster is settled; otherwise what is missing.
    ///
    /// # Errors
    /// What is missing, as a sentence.
    pub async fn look(&self) -> Result<Settled, String> {
        let running = self
            .members
            .iter()
            .enumerate()
            .filter(|(_, m)| m.agent().is_some());
        let running: Vec<usize> = running.map(|(index, _)| index).collect();
        let mut leaders = Vec::new();
        let mut states = BTreeMap::new();
        for index in &running {
            let Some(member) = self.members.get(*index) else {
                continue;
            };
            if member.check("/primary").await == Some(200) {
                leaders.push(*index);
            }
            let status = member.status().await;
            states.insert(
                *index,
                status.ok_or(format!("{} does not answer", member.name))?,
            );
        }
        let [leader] = leaders.as_slice() else {
            return Err(format!("{} members answer as primary", leaders.len()));
        };
        let timeline = states.get(leader).and_then(|state: &Status| state.timeline);
        let timeline = timeline.ok_or("the leader has no timeline yet")?;
        let replicas: Vec<usize> = running.iter().copied().filter(|i| i != leader).collect();
        for index in &replicas {
            let state = states.get(index).ok_or("a member vanished")?;
            let streams = state.streaming && state.timeline == Some(timeline);
            if !streams {
                let name = format!("node{}", index + 1);
                return Err(format!(
                    "{name} does not stream timeline {timeline}: {state:?}"
                ));
            }
        }
        let synchronous = self.synchronous_standbys(*leader).await?;
        let wanted = self.synchronous != Value::Bool(false) && !replicas.is_empty();
        if wanted && synchronous.is_empty() {
            return Err("no standby is synchronous".to_owned());
        }
        Ok(Settled {
            leader: *leader,
            replicas,
            synchronous,
            timeline,
        })
    }

    /// The standbys that the leader's PostgreSQL waits for *and* that the leader's agent has
    /// published as such. Standbys are not asked: what they know of `/sync` may be a cycle old.
    async fn synchronous_standbys(&self, leader: usize) -> Result<Vec<usize>, String> {
        let leader = self.members.get(leader).ok_or("the leader vanished")?;
        let replication = session::replication(leader.postgres_port).await;
        let replication = replication.map_err(|error| format!("{error:#}"))?;
        let published = http::get(leader.rest_port, "/cluster", Duration::from_secs(2)).await;
        let published = published.and_then(|answer| answer.json());
        let published = published.map_err(|error| format!("{error:#}"))?;
        let published = published.get("members").and_then(Value::as_array);
        let named = |name: &str| {
            published.into_iter().flatten().any(|member| {
                let role = member
                    .get("role")
                    .and_then(Value::as_str)
                    .unwrap_or_default();
                let standby = role == "sync_standby" || role == "quorum_standby";
                standby && member.get("name").and_then(Value::as_str) == Some(name)
            })
        };
        let waited_for = |name: &str| {
            replication
                .iter()
                .any(|(standby, streams)| standby == name && *streams)
        };
        let members = self.members.iter().enumerate();
        let both = members.filter(|(_, member)| named(&member.name) && waited_for(&member.name));
        Ok(both.map(|(index, _)| index).collect())
    }

    /// Waits until HAProxy shows exactly the leader for writes and exactly the standbys for reads.
    ///
    /// # Errors
    /// When it shows something else all the time.
    pub async fn routed(&self, settled: &Settled) -> Result<View> {
        let name = |index: &usize| format!("node{}", index + 1);
        let wanted = View {
            writes: BTreeSet::from([name(&settled.leader)]),
            reads: settled.replicas.iter().map(name).collect(),
        };
        wait::until("HAProxy's view", VIEW_LIMIT, || async {
            let view = self
                .haproxy
                .view()
                .await
                .map_err(|error| format!("{error:#}"))?;
            if view == wanted {
                Ok(view)
            } else {
                Err(format!("it {view} instead of {wanted}"))
            }
        })
        .await
    }

    /// Runs the control tool on the first member's file: its status and its output.
    ///
    /// # Errors
    /// When it cannot be run or hangs.
    pub async fn ctl(&self, args: &[&str]) -> Result<(ExitStatus, String)> {
        self.control(&self.binaries.ctl, args).await
    }

    /// Runs another control tool (`patronictl`, say) the same way.
    ///
    /// # Errors
    /// As [`Cluster::ctl`].
    pub async fn control(&self, program: &Path, args: &[&str]) -> Result<(ExitStatus, String)> {
        let number = self.commands.fetch_add(1, Ordering::Relaxed);
        let home = self.dir.join("ctl");
        let log = home.join(format!("{number}.out"));
        let config = self.member(0)?.config.clone().into_os_string();
        let mut all = vec!["-c".into(), config];
        all.extend(args.iter().map(Into::into));
        // As the harness's own user: a tool below somebody's home need not be copied for it.
        let program = program.to_owned();
        let task = tokio::task::spawn_blocking(move || {
            let env = BTreeMap::from([("HOME".to_owned(), home.display().to_string())]);
            let cwd = home.as_path();
            let launch = Launch {
                program: &program,
                args: all,
                env,
                cwd,
                log: &log,
                user: None,
                network: None,
            };
            process::run(&launch, CTL_LIMIT)
        });
        task.await.context("run the control tool")?
    }

    /// The same, and failure is an error.
    ///
    /// # Errors
    /// When it ends with a status other than zero; its output is in the message.
    pub async fn ctl_ok(&self, args: &[&str]) -> Result<String> {
        let (status, output) = self.ctl(args).await?;
        if !status.success() {
            bail!("{} ended with {status}:\n{output}", args.join(" "));
        }
        Ok(output)
    }

    /// `GET /config` of any member that answers.
    ///
    /// # Errors
    /// When none does.
    pub async fn dynamic(&self) -> Result<Value> {
        for member in &self.members {
            let answer = http::get(member.rest_port, "/config", Duration::from_secs(2)).await;
            if let Ok(answer) = answer
                && answer.status == 200
            {
                return answer.json();
            }
        }
        bail!("no member answers /config")
    }

    /// Leaves it running when this value is dropped. `note` becomes a file in its directory.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn keep(mut self, note: &str) -> Result<()> {
        std::fs::write(self.dir.join(KEPT), note).context("write the note of what runs")?;
        self.kept = true;
        Ok(())
    }

    fn tails(&self) -> String {
        let mut text = String::new();
        for member in &self.members {
            let log = member.log_since(0);
            let from = log.len().saturating_sub(LOG_TAIL);
            let from = (from..log.len())
                .find(|at| log.is_char_boundary(*at))
                .unwrap_or(log.len());
            let tail = log.get(from..).unwrap_or_default();
            text.push_str(&format!("--- {}, end of its log\n{tail}\n", member.name));
        }
        text
    }
}

/// What the agents said last in the clusters that have ended since it was asked before. A story's clusters
/// and their files are gone when its failure is told.
pub fn last_words() -> String {
    std::mem::take(
        &mut *LAST_WORDS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner),
    )
}

static LAST_WORDS: Mutex<String> = Mutex::new(String::new());

/// Bytes of each log in them.
const LOG_TAIL: usize = 8000;
/// Marks the directory of a cluster that was left running.
const KEPT: &str = "KEPT";

impl Drop for Cluster {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        LAST_WORDS
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .push_str(&self.tails());
        let mut janitor = self
            .janitor
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if !self.kept {
            let left = process::sweep(&self.dir);
            if !left.is_empty() {
                eprintln!("processes {left:?} of {} did not end", self.dir.display());
            }
            for disk in self.members.iter().filter_map(Member::disk) {
                crate::disks::remove(&disk);
            }
            let keep = failed || std::env::var_os(KEEP_VARIABLE).is_some();
            if !keep && let Err(error) = std::fs::remove_dir_all(&self.dir) {
                eprintln!("remove {}: {error}", self.dir.display());
            }
        }
        janitor.dismiss();
    }
}

/// Ends every cluster that [`Cluster::keep`] left running under this prefix.
///
/// # Errors
/// When a directory cannot be removed.
pub fn stop_kept(prefix: &str) -> Result<usize> {
    let mut stopped = 0;
    let entries =
        std::fs::read_dir(std::env::temp_dir()).context("read the temporary directory")?;
    for entry in entries.flatten() {
        let named = entry
            .file_name()
            .to_str()
            .is_some_and(|name| name.starts_with(prefix));
        let dir = entry.path();
        if named && dir.join(KEPT).is_file() {
            let left = process::sweep(&dir);
            if !left.is_empty() {
                bail!("processes {left:?} of {} did not end", dir.display());
            }
            std::fs::remove_dir_all(&dir).with_context(|| format!("remove {}", dir.display()))?;
            stopped += 1;
        }
    }
    Ok(stopped)
}
