//! All who write during a chapter.

use super::rows::Hold;
use crate::checker;
use crate::clients::append::{self, Appenders};
use crate::clients::cancel::Canceller;
use crate::clients::register::{self, Registers};
use crate::cluster::{Cluster, Settled};
use crate::exclusivity::{DirectAck, Probes, boot_time};
use crate::steps::SETTLE_LIMIT;
use crate::workload::{Ledger, Writer};
use anyhow::Result;
use std::time::{Duration, Instant};

/// Writers through HAProxy, and their pause after each row: enough to see an outage of 20 ms.
const WRITERS: i32 = 2;
const PACE: Duration = Duration::from_millis(10);
/// Numbers of writers that a chapter uses up at most.
pub(super) const NUMBERS: i32 = 20;
/// There is load for this long before the first fault.
const WARM_UP: Duration = Duration::from_secs(2);
/// Rows per second that must be acknowledged before a fault, through HAProxy and by the primary
/// directly: 80 % of 50 and of 20.
const RATE_MIN: (usize, usize) = (40, 16);

/// The running clients.
pub(super) struct Load {
    writers: Vec<Writer>,
    probes: Probes,
    appenders: Appenders,
    registers: Registers,
    canceller: Canceller,
    /// When it was started, on both clocks.
    pub(super) begun: (Instant, Duration),
}

/// What they knew when they were stopped.
pub(super) struct Seen {
    pub(super) routed: Vec<Ledger>,
    pub(super) direct: Vec<Ledger>,
    pub(super) cancelled: Ledger,
    pub(super) acks: Vec<DirectAck>,
    pub(super) lists: append::Histories,
    pub(super) registers: register::Histories,
}

impl Load {
    pub(super) fn start(cluster: &Cluster, first: i32) -> Self {
        let writes = cluster.ports().writes;
        let members: Vec<u16> = cluster.members().iter().map(|m| m.postgres_port).collect();
        let writers = (0..WRITERS).map(|each| Writer::start_paced(first + each, writes, PACE));
        let series = i64::from(first) * 10_000;
        Self {
            writers: writers.collect(),
            probes: Probes::start(cluster, first + WRITERS),
            appenders: Appenders::start(writes, series),
            registers: Registers::start(writes, &members, series),
            canceller: Canceller::start(first + NUMBERS - 1, writes),
            begun: (Instant::now(), boot_time()),
        }
    }

    /// Waits until every writer writes.
    pub(super) async fn warm_up(&self) -> Result<()> {
        self.writes_again().await?;
        tokio::time::sleep(WARM_UP).await;
        Ok(())
    }

    /// Too little load in the last second, in words.
    pub(super) fn too_little(&self, now: &Settled) -> Option<String> {
        let since = Instant::now().checked_sub(Duration::from_secs(1))?;
        let writers = self.writers.iter();
        let routed: usize = writers.map(|writer| writer.acked_since(since)).sum();
        let direct = self
            .probes
            .acked_since(now.leader, boot_time() - Duration::from_secs(1));
        let enough = routed >= RATE_MIN.0 && direct >= RATE_MIN.1;
        (!enough).then(|| {
            format!("too little load: {routed} rows through HAProxy and {direct} directly in 1 s")
        })
    }

    /// Lets a fault last.
    pub(super) async fn hold(&self, hold: Hold, from: Instant, old: u16, limit: Duration) {
        let (least, limit) = match hold {
            Hold::For(time) => (time, Duration::ZERO),
            Hold::UntilMoved(least) => (least, limit),
            Hold::UntilWrites => (Duration::from_millis(500), limit),
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
    pub(super) async fn writes_again(&self) -> Result<Instant> {
        let mut last = Instant::now();
        for writer in &self.writers {
            let ack = writer.wait_ack_after(Instant::now(), SETTLE_LIMIT).await?;
            last = last.max(ack.at);
        }
        Ok(last)
    }

    /// The longest time in which no writer had a row acknowledged.
    pub(super) fn gap(&self, from: Instant, to: Instant) -> Duration {
        let writers = self.writers.iter();
        let mut all = Ledger {
            acks: writers.flat_map(|w| w.acks_around(from)).collect(),
            ..Ledger::default()
        };
        all.acks.sort_by_key(|ack| ack.at);
        all.gap(from, to)
    }

    /// The acknowledged rows that are missing now, while the writers go on.
    pub(super) async fn missing(&self, port: u16) -> Result<usize> {
        let ledgers: Vec<Ledger> = self.writers.iter().map(Writer::ledger).collect();
        checker::missing(port, &ledgers).await
    }

    pub(super) async fn stop(self) -> Seen {
        let mut routed = Vec::new();
        for writer in self.writers {
            routed.push(writer.stop().await);
        }
        let cancelled = self.canceller.stop().await;
        let lists = self.appenders.stop().await;
        let registers = self.registers.stop().await;
        let (acks, direct) = self.probes.stop().await;
        Seen {
            routed,
            direct,
            cancelled,
            acks,
            lists,
            registers,
        }
    }
}
