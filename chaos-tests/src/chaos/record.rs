//! What is kept of a session: plain data that is written as JSON, so that the results of several
//! sessions can be made into one table.

use serde::{Deserialize, Serialize};

/// One fault, or several at a time, and what came of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Run {
    /// Row, or rows joined by ` + `.
    pub row: String,
    /// For people.
    pub what: String,
    /// Faults at a time.
    pub faults: usize,
    /// Whether it was part of a random schedule.
    pub random: bool,
    /// Seconds from the begin of the session: the fault, its end, the cluster at rest.
    pub at: f64,
    /// See [`Run::at`].
    pub healed: f64,
    /// See [`Run::at`].
    pub settled: f64,
    /// Longest time without an acknowledgement through HAProxy, in ms.
    pub gap_ms: f64,
    /// The same of sessions straight to every member: without HAProxy's share.
    pub direct_gap_ms: Option<f64>,
    /// Rows acknowledged, from this fault to the next.
    pub acked: usize,
    /// Acknowledged and missing.
    pub lost: usize,
    /// There more than once.
    pub doubled: usize,
    /// How long the acknowledgements of two primaries overlapped, in ms.
    pub overlap_ms: f64,
    /// When the old primary's last process ended, in ms after its deadline.
    pub fencing_ms: Option<f64>,
    /// From the start of a restarted agent to its first answer, in ms.
    pub back_ms: Option<f64>,
    /// Promotions.
    pub promotions: u64,
    /// Median of the gap that is promised, in ms.
    pub limit_ms: Option<u32>,
    /// What broke a promise; empty when nothing did.
    pub wrong: Vec<String>,
    /// Why it proves nothing.
    pub inconclusive: Option<String>,
}

/// Runs under one unbroken load, and what all of it showed.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Chapter {
    /// Begin of the load in seconds from the begin of the session.
    pub at: f64,
    /// How long it lasted.
    pub seconds: f64,
    /// Rows acknowledged through HAProxy in each half second.
    pub rates: Vec<u32>,
    /// Rows acknowledged, through HAProxy and directly.
    pub acked: usize,
    /// Rows of unknown outcome, cancelled ones among them.
    pub unknown: usize,
    /// Committed list transactions that were checked.
    pub transactions: usize,
    /// Answered calls on registers that were checked.
    pub calls: usize,
    /// Registers whose search was too large.
    pub given_up: usize,
    /// Reads of an old primary after its successor began, before its deadline.
    pub stale: usize,
    /// What broke a promise and belongs to no single run.
    pub wrong: Vec<String>,
}

/// One session of the chaos.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Session {
    /// `garden-agent` or `patroni`.
    pub agent: String,
    /// Version of PostgreSQL.
    pub postgres: String,
    /// Version of etcd.
    pub etcd: String,
    /// `quorum`, `on` or `async`.
    pub mode: String,
    /// Seed of the schedule.
    pub seed: u64,
    /// How long it lasted.
    pub seconds: f64,
    /// In order.
    pub runs: Vec<Run>,
    /// In order.
    pub chapters: Vec<Chapter>,
    /// What was looked at when everything was stopped, and what was wrong with it.
    pub post_mortem: Vec<String>,
    /// See [`Session::post_mortem`].
    pub post_mortem_wrong: Vec<String>,
}

impl Session {
    /// Nothing broke a promise.
    pub fn clean(&self) -> bool {
        let runs = self.runs.iter().all(|run| run.wrong.is_empty());
        runs && self.chapters.iter().all(|c| c.wrong.is_empty())
            && self.post_mortem_wrong.is_empty()
    }
}
