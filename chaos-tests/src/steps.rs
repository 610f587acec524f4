//! The things that are done to a cluster and measured: shared by the demo, the benchmark and the
//! stories, so that all of them mean the same by a gap.

use crate::cluster::{Cluster, Settled};
use crate::fault::Fault;
use crate::wait;
use crate::workload::Writer;
use anyhow::{Context, Result, bail};
use std::time::{Duration, Instant};

/// A cluster that has just been created is settled within this time.
pub const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(180);
/// After a fault the cluster is settled again within this time: a lease of 30 s, an election, a
/// rewind or a new clone, on a busy machine.
pub const SETTLE_LIMIT: Duration = Duration::from_secs(180);

/// A cluster that has not changed for this long can bear the next event: right after a crash recovery,
/// say, no standby is synchronous yet, and losing the primary then would leave nobody who may lead.
pub const REST: Duration = Duration::from_secs(2);

/// What one event cost, as the writer saw it.
#[derive(Clone, Debug)]
pub struct Measured {
    /// When it was done.
    pub from: Instant,
    /// Longest time without an acknowledgement.
    pub gap: Duration,
    /// The cluster afterwards.
    pub settled: Settled,
}

/// Hands leadership over as planned, to `candidate` or to whom the agents choose.
///
/// # Errors
/// When the control tool refuses, or the cluster does not settle under another leader.
pub async fn switchover(
    cluster: &Cluster,
    writer: &Writer,
    before: &Settled,
    candidate: Option<usize>,
) -> Result<Measured> {
    let leader = cluster.member(before.leader)?.name.clone();
    let candidate = candidate.map(|index| cluster.member(index).map(|m| m.name.clone()));
    let candidate = candidate.transpose()?;
    let mut args = vec![
        "switchover",
        crate::template::SCOPE,
        "--leader",
        &leader,
        "--force",
    ];
    if let Some(candidate) = &candidate {
        args.extend(["--candidate", candidate]);
    }
    let from = Instant::now();
    cluster.ctl_ok(&args).await?;
    let changed = |now: &Settled| now.leader != before.leader;
    let measured = measure(cluster, writer, from, changed).await?;
    if let Some(candidate) = candidate
        && cluster.member(measured.settled.leader)?.name != candidate
    {
        bail!(
            "node{} leads instead of the candidate {candidate}",
            measured.settled.leader + 1
        );
    }
    Ok(measured)
}

/// Kills the leader's postmaster; the cluster may fail over or recover in place.
///
/// # Errors
/// When it does neither.
pub async fn kill_postmaster(
    cluster: &Cluster,
    writer: &Writer,
    before: &Settled,
) -> Result<Measured> {
    let member = cluster.member(before.leader)?;
    let old = member
        .postmaster()
        .context("the leader has no postmaster")?;
    let from = Instant::now();
    Fault::KillPostmaster(before.leader).inject(cluster)?;
    let again = |now: &Settled| {
        let restarted = member.postmaster().is_some_and(|pid| pid != old);
        now.leader != before.leader || restarted
    };
    measure(cluster, writer, from, again).await
}

/// Kills everything of the leader's node; another one must lead.
///
/// # Errors
/// When none does.
pub async fn lose_leader(cluster: &Cluster, writer: &Writer, before: &Settled) -> Result<Measured> {
    let from = Instant::now();
    Fault::LoseNode(before.leader).inject(cluster)?;
    measure(cluster, writer, from, |now: &Settled| {
        now.leader != before.leader
    })
    .await
}

/// Freezes the walsenders of the leader and writes WAL that therefore stays there: its node, once lost,
/// has certainly diverged. A table of its own, [`DOOMED`]: the rows are not meant to survive, and the
/// ledgers must not know them.
///
/// # Errors
/// When the leader does not answer.
pub async fn diverge(cluster: &Cluster, leader: usize) -> Result<()> {
    let member = cluster.member(leader)?;
    let client = crate::session::client(member.postgres_port).await?;
    let table = format!("CREATE TABLE IF NOT EXISTS {DOOMED} (n int)");
    client.batch_execute(&table).await?;
    let rows = client
        .query("SELECT pid FROM pg_stat_replication", &[])
        .await?;
    for row in rows {
        let pid = nix::unistd::Pid::from_raw(row.get(0));
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGSTOP)?;
    }
    let rows = format!(
        "SET synchronous_commit = local; INSERT INTO {DOOMED} SELECT generate_series(1, 9999)"
    );
    client
        .batch_execute(&rows)
        .await
        .context("write WAL that nobody else gets")
}

/// The table whose rows a diverged leader alone has.
pub const DOOMED: &str = "doomed";

/// How a node that was lost came back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejoin {
    /// Its WAL had diverged and was rewound.
    Rewound,
    /// It was copied anew.
    Cloned,
    /// It had not diverged and just follows.
    Followed,
}

impl Rejoin {
    /// From what the agent logged, ours or Patroni's. A clone may follow a rewind that failed.
    fn read(log: &str) -> Self {
        let said = |phrase: &str| log.contains(phrase);
        if said("pg_basebackup done") || said("replica has been created using") {
            Self::Cloned
        } else if said("running pg_rewind") {
            Self::Rewound
        } else {
            Self::Followed
        }
    }

    /// For people.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Rewound => "streams again, by pg_rewind since its WAL had diverged",
            Self::Cloned => "streams again, from a new base backup",
            Self::Followed => "streams again, without pg_rewind since its WAL had not diverged",
        }
    }
}

/// Starts a lost node again and waits until all members stream.
///
/// # Errors
/// When it does not come to stream.
pub async fn return_node(
    cluster: &Cluster,
    writer: &Writer,
    node: usize,
) -> Result<(Measured, Rejoin)> {
    let member = cluster.member(node)?;
    let logged = member.log_bytes();
    let from = Instant::now();
    Fault::ReturnNode(node).inject(cluster)?;
    let back = |now: &Settled| now.replicas.contains(&node);
    let measured = measure(cluster, writer, from, back).await?;
    let log = member.log_since(logged);
    Ok((measured, Rejoin::read(&log)))
}

/// Waits until the cluster is settled so that `done` holds, and a row sent after that is acknowledged.
///
/// # Errors
/// When that does not happen.
pub async fn measure(
    cluster: &Cluster,
    writer: &Writer,
    from: Instant,
    done: impl Fn(&Settled) -> bool,
) -> Result<Measured> {
    let settled = wait::until("the cluster to settle", SETTLE_LIMIT, || async {
        let settled = cluster.look().await?;
        if done(&settled) {
            Ok(settled)
        } else {
            Err("it is as it was before".to_owned())
        }
    });
    let settled = settled.await?;
    let ack = writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
    Ok(Measured {
        from,
        gap: writer.ledger().gap(from, ack.at),
        settled,
    })
}
