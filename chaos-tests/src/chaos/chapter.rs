//! What an unbroken load showed, once it was stopped.

use super::load::Seen;
use super::record::{Chapter, Run};
use crate::checker::{self, Verdict};
use crate::cluster::{Cluster, Settled};
use crate::exclusivity::{self, Delivery, DirectAck};
use crate::history::append::Stale;
use crate::workload::{Ack, Ledger};
use anyhow::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

/// Width of a step in the plot.
const STEP: Duration = Duration::from_millis(500);
/// F of the safety reference: from the deadline to the last instruction of an old primary.
const FENCE_BOUND: Duration = Duration::from_millis(500);
/// Anomalies that are written down in full.
const SHOWN: usize = 10;

/// What is judged.
pub(super) struct Closing<'a> {
    pub(super) cluster: &'a Cluster,
    pub(super) after: &'a Settled,
    pub(super) seen: Seen,
    /// Begin of the load, on both clocks, and of the session.
    pub(super) begun: (Instant, Duration),
    pub(super) session: Instant,
    /// Commits wait for nobody: a failover may lose some, and what follows from that is no anomaly.
    pub(super) is_async: bool,
    /// Somebody took the guarantees away by hand.
    pub(super) by_hand: bool,
    /// Packets were held up in the kernel: answers may be late.
    pub(super) delivery: Delivery,
    pub(super) lease: Duration,
}

impl Closing<'_> {
    /// Judges everything; what belongs to one run is entered there.
    ///
    /// # Errors
    /// When the leader cannot be read.
    pub(super) async fn judge(&self, runs: &mut [Run]) -> Result<Chapter> {
        let seen = &self.seen;
        let mut chapter = Chapter {
            at: (self.begun.0 - self.session).as_secs_f64(),
            seconds: self.begun.0.elapsed().as_secs_f64(),
            rates: self.rates(),
            ..Chapter::default()
        };
        let mut ledgers: Vec<Ledger> = seen.routed.iter().chain(&seen.direct).cloned().collect();
        ledgers.push(seen.cancelled.clone());
        let mut verdict = checker::check(self.cluster, self.after.leader, &ledgers).await?;
        // A packet of the load before, held up by a cut that has ended, may still write its row.
        let own: BTreeSet<i32> = ledgers.iter().map(|ledger| ledger.writer).collect();
        verdict.invented.retain(|(writer, _)| own.contains(writer));
        chapter.acked = verdict.acked;
        chapter.unknown = verdict.unknown;
        self.rows(&verdict, &ledgers, runs, &mut chapter);
        self.exclusive(runs, &mut chapter);
        self.lists(&mut chapter).await?;
        self.registers(&mut chapter);
        let promotions: u64 = runs.iter().map(|run| run.promotions).sum();
        if self.is_async && promotions > 0 || self.by_hand {
            for text in std::mem::take(&mut chapter.wrong) {
                println!("  (not held against anybody: {text})");
            }
        }
        if !verdict.doubled.is_empty() || !verdict.differing.is_empty() {
            chapter.wrong.push(format!("{verdict}"));
        }
        Ok(chapter)
    }

    fn rates(&self) -> Vec<u32> {
        let mut rates = Vec::new();
        let begun = self.begun.0;
        for ack in self.seen.routed.iter().flat_map(|ledger| &ledger.acks) {
            let step = (ack.at - begun).as_millis() / STEP.as_millis();
            let step = usize::try_from(step).unwrap_or(0);
            if rates.len() <= step {
                rates.resize(step + 1, 0);
            }
            if let Some(rate) = rates.get_mut(step) {
                *rate += 1;
            }
        }
        rates
    }

    /// Rows: to each run those that were acknowledged from its fault to the next.
    fn rows(&self, verdict: &Verdict, ledgers: &[Ledger], runs: &mut [Run], chapter: &mut Chapter) {
        let times = BTreeMap::from_iter(ledgers.iter().flat_map(|ledger| {
            let of = |ack: &Ack| ((ledger.writer, ack.seq), ack.at);
            ledger.acks.iter().map(of)
        }));
        let run_of = |at: Instant, runs: &[Run]| {
            let at = (at - self.session).as_secs_f64();
            let before = runs.partition_point(|run| run.at <= at);
            before.saturating_sub(1)
        };
        for at in times.values() {
            let index = run_of(*at, runs);
            if let Some(run) = runs.get_mut(index) {
                run.acked += 1;
            }
        }
        for row in &verdict.lost {
            // A row that was acknowledged just before the fault is lost by it.
            let at = times.get(row).copied().unwrap_or(self.begun.0);
            let at = at + Duration::from_secs(1);
            let index = run_of(at, runs);
            if let Some(run) = runs.get_mut(index) {
                run.lost += 1;
            }
        }
        for (row, run) in verdict.doubled.iter().zip(runs.iter_mut()) {
            println!("  {row:?} is there more than once");
            run.doubled += 1;
        }
        if !verdict.lost.is_empty() || !verdict.invented.is_empty() {
            chapter.wrong.push(format!("{verdict}"));
        }
    }

    fn exclusive(&self, runs: &mut [Run], chapter: &mut Chapter) {
        let acks = &self.seen.acks;
        for run in runs.iter_mut() {
            let since = self.session_to_boot(run.at);
            let until = self.session_to_boot(run.settled);
            let during: Vec<DirectAck> = acks
                .iter()
                .filter(|ack| ack.at >= since - Duration::from_secs(2) && ack.at <= until)
                .copied()
                .collect();
            run.overlap_ms = exclusivity::overlap(&during, self.delivery).as_secs_f64() * 1e3;
            run.direct_gap_ms = longest_gap(&during, since).map(|gap| gap.as_secs_f64() * 1e3);
        }
        let overlap = exclusivity::overlap(acks, self.delivery);
        if !overlap.is_zero() {
            chapter.wrong.push(format!("two primaries for {overlap:?}"));
        }
        for timeline in exclusivity::shared_timelines(acks) {
            let text = format!("two members wrote on timeline {timeline}");
            chapter.wrong.push(text);
        }
    }

    fn session_to_boot(&self, seconds: f64) -> Duration {
        let since = seconds - (self.begun.0 - self.session).as_secs_f64();
        self.begun.1 + Duration::from_secs_f64(since.max(0.0))
    }

    async fn lists(&self, chapter: &mut Chapter) -> Result<()> {
        let port = self.cluster.member(self.after.leader)?.postgres_port;
        for findings in self.seen.lists.judge(port).await? {
            chapter.transactions += findings.committed;
            for anomaly in findings.anomalies.iter().take(SHOWN) {
                chapter.wrong.push(format!("lists: {anomaly}"));
            }
            for stale in &findings.stale {
                chapter.stale += 1;
                if !self.may_be_stale(stale) {
                    let at = stale.at;
                    let text = format!(
                        "lists: a stale read on timeline {} at {at:?}",
                        stale.timeline
                    );
                    chapter.wrong.push(text);
                }
            }
        }
        Ok(())
    }

    fn may_be_stale(&self, stale: &Stale) -> bool {
        let window = self.deposed(stale.timeline);
        window.is_some_and(|(from, to)| stale.at > from && stale.at <= to)
    }

    /// From when until when an old primary may serve stale reads: a successor that was made by promises
    /// begins before the old one's deadline.
    fn deposed(&self, timeline: u32) -> Option<(Duration, Duration)> {
        let newer = self.seen.acks.iter().filter(|ack| ack.timeline > timeline);
        let from = newer.map(|ack| ack.sent).min()?;
        // The promotion itself comes before the first row that a probe has acknowledged.
        let early = from.saturating_sub(Duration::from_secs(2));
        Some((early, from + self.lease + FENCE_BOUND))
    }

    fn registers(&self, chapter: &mut Chapter) {
        let judgement = self.seen.registers.judge(|timeline| self.deposed(timeline));
        chapter.calls = judgement.answered;
        chapter.given_up = judgement.given_up;
        chapter.stale += judgement.stale;
        for key in judgement.impossible.iter().take(SHOWN) {
            let calls = self.seen.registers.of(*key).len();
            let text = format!("register {key}: no order explains its {calls} calls");
            chapter.wrong.push(text);
            for operation in self.seen.registers.of(*key) {
                println!("    {operation:?}");
            }
        }
    }
}

/// The longest time without an acknowledgement by anybody, around the fault.
fn longest_gap(acks: &[DirectAck], since: Duration) -> Option<Duration> {
    let after: Vec<Duration> = acks.iter().map(|ack| ack.at).collect();
    let pairs = after.windows(2).filter_map(|pair| match pair {
        [one, next] if *next >= since => Some(next.saturating_sub(*one)),
        _ => None,
    });
    pairs.max()
}
