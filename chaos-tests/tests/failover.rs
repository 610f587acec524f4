//! Unplanned changes of leadership, and failures that must not cause one.

use anyhow::{Context, Result, ensure};
use chaos_tests::steps::{self, BOOTSTRAP_LIMIT, Rejoin, SETTLE_LIMIT};
use chaos_tests::{Builder, Cluster, Fault, Ledger, Writer, checker, story};
use std::time::{Duration, Instant};

/// An agent is started again this long after it was killed, as systemd would.
const SUPERVISOR_DELAY: Duration = Duration::from_millis(200);

async fn no_row_lost(cluster: &Cluster, ledgers: &[Ledger]) -> Result<()> {
    let settled = cluster.settle(SETTLE_LIMIT).await?;
    let verdict = checker::check(cluster, settled.leader, ledgers).await?;
    ensure!(verdict.clean(), "{verdict}");
    println!("{verdict}");
    Ok(())
}

#[test]
fn postmaster_killed_costs_no_acknowledged_row() {
    story("postmaster_killed", async {
        let cluster = Builder::from_environment()?.start().await?;
        let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        let measured = steps::kill_postmaster(&cluster, &writer, &settled).await?;
        let same = measured.settled.leader == settled.leader;
        println!(
            "postmaster killed: write gap {:?}, leader kept: {same}",
            measured.gap
        );
        cluster.routed(&measured.settled).await?;
        no_row_lost(&cluster, &[writer.stop().await]).await
    });
}

#[test]
fn node_lost_and_returns_by_rewind() {
    // The standbys are cut off by stopping their WAL receivers for a moment before the loss, so that
    // the lost primary certainly has WAL that nobody else has: it must be rewound, not just follow.
    story("node_lost_and_returns", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let settled = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        steps::diverge(&cluster, settled.leader).await?;
        let lost = settled.leader;
        let measured = steps::lose_leader(&cluster, &writer, &settled).await?;
        println!("node lost: write gap {:?}", measured.gap);
        cluster.routed(&measured.settled).await?;
        let (back, rejoin) = steps::return_node(&cluster, &writer, lost).await?;
        println!("node{}: {}", lost + 1, rejoin.describe());
        ensure!(
            rejoin == Rejoin::Rewound,
            "it had diverged, and was {rejoin:?}"
        );
        cluster.routed(&back.settled).await?;
        no_row_lost(&cluster, &[writer.stop().await]).await
    });
}

#[test]
fn agent_killed_alone_is_not_a_failover() {
    story("agent_killed_alone", async {
        let cluster = Builder::from_environment()?.start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        let member = cluster.member(before.leader)?;
        let postmaster = member.postmaster();
        let from = Instant::now();
        Fault::KillAgent(before.leader).inject(&cluster)?;
        tokio::time::sleep(SUPERVISOR_DELAY).await;
        member.start()?;
        let rest = Duration::from_secs(12);
        let after = cluster.steady(rest, SETTLE_LIMIT).await?;
        println!(
            "agent killed: write gap {:?}",
            writer.ledger().gap(from, Instant::now())
        );
        ensure!(
            after.leader == before.leader,
            "node{} leads now",
            after.leader + 1
        );
        ensure!(
            after.timeline == before.timeline,
            "somebody was promoted: {after:?}"
        );
        ensure!(
            member.postmaster() == postmaster,
            "PostgreSQL was restarted"
        );
        no_row_lost(&cluster, &[writer.stop().await]).await
    });
}

#[test]
fn standby_lost_is_not_a_failover() {
    story("standby_lost", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let writer = Writer::through_haproxy(&cluster).await?;
        let lost = *before.replicas.first().context("a standby")?;
        Fault::LoseNode(lost).inject(&cluster)?;
        let without = cluster.steady(Duration::from_secs(3), SETTLE_LIMIT).await?;
        ensure!(without.leader == before.leader && without.timeline == before.timeline);
        cluster.routed(&without).await?;
        let (back, _) = steps::return_node(&cluster, &writer, lost).await?;
        ensure!(
            back.settled.leader == before.leader,
            "the leader never changed"
        );
        no_row_lost(&cluster, &[writer.stop().await]).await
    });
}

/// `SIGSTOP` of the leader's agent for twice the lease. One writer goes through HAProxy, a second one
/// straight to the old primary and does not care who leads: the overlap of their acknowledgements is
/// what a split brain would look like.
#[test]
fn agent_stopped_for_twice_the_lease_leaves_no_two_writable_primaries() {
    story("agent_stopped", async {
        let cluster = Builder::from_environment()?.quick().start().await?;
        let before = cluster.settle(BOOTSTRAP_LIMIT).await?;
        let old = cluster.member(before.leader)?;
        let routed = Writer::through_haproxy(&cluster).await?;
        let direct = Writer::start(2, old.postgres_port);
        direct
            .wait_ack_after(Instant::now(), Duration::from_secs(10))
            .await?;
        let from = Instant::now();
        Fault::StopAgent(before.leader).inject(&cluster)?;
        tokio::time::sleep(2 * Duration::from_secs(20)).await;
        Fault::ContinueAgent(before.leader).inject(&cluster)?;
        let after = cluster.settle(SETTLE_LIMIT).await?;
        let (routed, direct) = (routed.stop().await, direct.stop().await);
        let overlap = overlap(&direct, &routed, old.postgres_port, from);
        println!(
            "agent stopped: node{} led, node{} leads; {}; write gap {:?}",
            before.leader + 1,
            after.leader + 1,
            overlap.describe(from),
            routed.gap(from, Instant::now()),
        );
        if !cluster.binaries().is_patroni() {
            ensure!(
                after.leader != before.leader,
                "the lease ran out and somebody else leads"
            );
            ensure!(
                overlap.length().is_zero(),
                "two primaries acknowledged at the same time"
            );
        }
        no_row_lost(&cluster, &[routed, direct]).await
    });
}

/// When the old primary acknowledged for the last time, and a new one for the first time.
struct Overlap {
    last_old: Option<Instant>,
    first_new: Option<Instant>,
}

impl Overlap {
    fn length(&self) -> Duration {
        match (self.last_old, self.first_new) {
            (Some(last), Some(first)) => last.saturating_duration_since(first),
            _ => Duration::ZERO,
        }
    }

    fn describe(&self, from: Instant) -> String {
        let since = |at: Option<Instant>| at.map(|at| at.saturating_duration_since(from));
        let (last, first) = (since(self.last_old), since(self.first_new));
        format!(
            "last acknowledgement of the old primary after {last:?}, first of the new one after \
             {first:?}, overlap {:?}",
            self.length()
        )
    }
}

fn overlap(direct: &Ledger, routed: &Ledger, old: u16, from: Instant) -> Overlap {
    let first_new = routed
        .acks
        .iter()
        .find(|ack| ack.server != old && ack.at > from);
    let last_old = [direct, routed]
        .into_iter()
        .filter_map(|ledger| ledger.last_by(old));
    Overlap {
        last_old: last_old.map(|ack| ack.at).max(),
        first_new: first_new.map(|ack| ack.at),
    }
}
