//! Transactions that append to lists and read them whole (the workload of Elle, Kingsbury and Alvaro
//! 2020): every value is appended once, so a list says in which order its transactions came, and a read
//! says what it saw of that order.

use super::graph::{Cycle, CycleKind, Edge, Graph};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// One step of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// The value is new: nobody else appends it to any list.
    Append {
        /// Which list.
        key: i64,
        /// What.
        value: i64,
    },
    /// The whole list.
    Read {
        /// Which list.
        key: i64,
        /// What was in it.
        list: Vec<i64>,
    },
}

/// What the client knows of the end of its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Committed.
    Committed,
    /// Rolled back, or never asked to commit.
    Failed,
    /// The answer to COMMIT was lost, or came with a warning.
    Unknown,
}

/// One transaction, as its client saw it.
#[derive(Clone, Debug)]
pub struct Txn {
    /// How it ended.
    pub outcome: Outcome,
    /// Its steps.
    pub ops: Vec<Op>,
    /// When its first statement was sent.
    pub began: Duration,
    /// When its end was known.
    pub ended: Duration,
    /// Timeline of the server that ran it, 0 when it was not asked.
    pub timeline: u32,
}

/// What the transactions asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// PostgreSQL's snapshots: a cycle with several overtaken reads (write skew) is allowed.
    RepeatableRead,
    /// No cycle at all.
    Serializable,
}

/// Something that may not be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the fields are what the sentences say")]
pub enum Anomaly {
    /// A list holds a value twice.
    Doubled { key: i64, value: i64 },
    /// A list holds what nobody appended.
    Invented { key: i64, value: i64 },
    /// Two reads of a list where neither begins with the other: two histories of it.
    Forked { key: i64, txns: [usize; 2] },
    /// What a committed transaction appended is not in the list at the end.
    Lost { key: i64, value: i64, txn: usize },
    /// A transaction did not see its own append, or two reads within it differ.
    Internal { txn: usize },
    /// G1a: a read of what was rolled back.
    Aborted { txn: usize, writer: usize },
    /// G1b: a read between two appends of one transaction.
    Intermediate { txn: usize, writer: usize },
    /// A cycle that the isolation level forbids.
    Cycle(Cycle),
}

impl fmt::Display for Anomaly {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Doubled { key, value } => write!(f, "list {key} holds {value} twice"),
            Self::Invented { key, value } => {
                write!(f, "list {key} holds {value}, which nobody appended")
            }
            Self::Forked { key, txns: [a, b] } => {
                write!(
                    f,
                    "transactions {a} and {b} read two histories of list {key}"
                )
            }
            Self::Lost { key, value, txn } => {
                write!(f, "list {key} lost {value} of committed transaction {txn}")
            }
            Self::Internal { txn } => write!(f, "transaction {txn} contradicts itself"),
            Self::Aborted { txn, writer } => {
                write!(
                    f,
                    "G1a: transaction {txn} read what {writer} had rolled back"
                )
            }
            Self::Intermediate { txn, writer } => {
                write!(
                    f,
                    "G1b: transaction {txn} read between two appends of {writer}"
                )
            }
            Self::Cycle(cycle) => write!(f, "{}: {:?}", cycle.kind.name(), cycle.steps),
        }
    }
}

/// A read that lacked what was acknowledged before it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    /// The transaction that read.
    pub txn: usize,
    /// When it ended.
    pub at: Duration,
    /// Timeline of its server.
    pub timeline: u32,
}

/// What a history shows.
#[derive(Clone, Debug, Default)]
pub struct Findings {
    /// What may not be.
    pub anomalies: Vec<Anomaly>,
    /// What may be under conditions that are not visible here.
    pub stale: Vec<Stale>,
    /// Committed transactions.
    pub committed: usize,
}

/// Checks a history. `last` holds the lists as they were when everybody had stopped.
pub fn check(txns: &[Txn], last: &BTreeMap<i64, Vec<i64>>, isolation: Isolation) -> Findings {
    let history = History::new(txns, last);
    let mut anomalies = history.lists();
    for (number, txn) in txns.iter().enumerate() {
        if txn.outcome == Outcome::Committed {
            anomalies.extend(history.reads(number, txn));
        }
    }
    let allowed = |kind| kind == CycleKind::G2Item && isolation == Isolation::RepeatableRead;
    let cycles = history.graph().cycles().into_iter();
    let cycles = cycles.filter(|cycle| !allowed(cycle.kind));
    anomalies.extend(cycles.map(Anomaly::Cycle));
    let committed = txns.iter().filter(|t| t.outcome == Outcome::Committed);
    Findings {
        anomalies,
        stale: history.stale(),
        committed: committed.count(),
    }
}

struct History<'a> {
    txns: &'a [Txn],
    last: &'a BTreeMap<i64, Vec<i64>>,
    /// Who appended a value.
    writer: BTreeMap<(i64, i64), usize>,
    /// The longest list that anybody saw, and who did (none: it is the last one).
    order: BTreeMap<i64, (Vec<i64>, Option<usize>)>,
}

impl<'a> History<'a> {
    fn new(txns: &'a [Txn], last: &'a BTreeMap<i64, Vec<i64>>) -> Self {
        let mut writer = BTreeMap::new();
        let mut order: BTreeMap<i64, (Vec<i64>, Option<usize>)> = BTreeMap::new();
        for (key, list) in last {
            order.insert(*key, (list.clone(), None));
        }
        for (number, txn) in txns.iter().enumerate() {
            for op in &txn.ops {
                if let Op::Append { key, value } = op {
                    writer.insert((*key, *value), number);
                }
            }
            for (key, list) in outside(txn) {
                let longest = order.entry(key).or_default();
                if list.len() > longest.0.len() {
                    *longest = (list, Some(number));
                }
            }
        }
        Self {
            txns,
            last,
            writer,
            order,
        }
    }

    fn of(&self, key: i64, value: i64) -> Option<usize> {
        self.writer.get(&(key, value)).copied()
    }

    /// The lists by themselves.
    fn lists(&self) -> Vec<Anomaly> {
        let mut found = Vec::new();
        for (key, (list, _)) in &self.order {
            let mut seen = BTreeSet::new();
            for value in list {
                if !seen.insert(value) {
                    found.push(Anomaly::Doubled {
                        key: *key,
                        value: *value,
                    });
                }
                if self.of(*key, *value).is_none() {
                    found.push(Anomaly::Invented {
                        key: *key,
                        value: *value,
                    });
                }
            }
        }
        for ((key, value), txn) in &self.writer {
            let kept = self.last.get(key).is_some_and(|list| list.contains(value));
            let committed = self.txns.get(*txn).map(|t| t.outcome) == Some(Outcome::Committed);
            if committed && !kept {
                found.push(Anomaly::Lost {
                    key: *key,
                    value: *value,
                    txn: *txn,
                });
            }
        }
        found
    }

    /// The reads of one committed transaction.
    fn reads(&self, number: usize, txn: &Txn) -> Vec<Anomaly> {
        let mut found = Vec::new();
        if contradicts_itself(txn) {
            found.push(Anomaly::Internal { txn: number });
        }
        for (key, list) in outside(txn) {
            if let Some((order, seen_by)) = self.order.get(&key)
                && !order.starts_with(&list)
            {
                let txns = [number, seen_by.unwrap_or(self.txns.len())];
                found.push(Anomaly::Forked { key, txns });
            }
            for value in &list {
                let writer = self.of(key, *value);
                let failed = |w: &usize| self.txns.get(*w).map(|t| t.outcome);
                if let Some(writer) = writer.filter(|w| failed(w) == Some(Outcome::Failed)) {
                    found.push(Anomaly::Aborted {
                        txn: number,
                        writer,
                    });
                }
            }
            if let Some(writer) = list.last().and_then(|value| self.of(key, *value))
                && writer != number
                && self.last_append(writer, key) != list.last().copied()
            {
                found.push(Anomaly::Intermediate {
                    txn: number,
                    writer,
                });
            }
        }
        found
    }

    fn last_append(&self, txn: usize, key: i64) -> Option<i64> {
        let ops = self.txns.get(txn)?.ops.iter().rev();
        ops.filter_map(|op| match op {
            Op::Append { key: of, value } if *of == key => Some(*value),
            _ => None,
        })
        .next()
    }

    /// Dependencies between all that took effect.
    fn graph(&self) -> Graph {
        let mut graph = Graph::default();
        for (key, (list, _)) in &self.order {
            for pair in list.windows(2) {
                if let [before, after] = pair
                    && let (Some(from), Some(to)) = (self.of(*key, *before), self.of(*key, *after))
                {
                    graph.add(from, to, Edge::WriteWrite);
                }
            }
        }
        for (number, txn) in self.txns.iter().enumerate() {
            if txn.outcome != Outcome::Committed {
                continue;
            }
            for (key, list) in outside(txn) {
                if let Some(writer) = list.last().and_then(|value| self.of(key, *value)) {
                    graph.add(writer, number, Edge::WriteRead);
                }
                let next = self.order.get(&key).and_then(|(o, _)| o.get(list.len()));
                if let Some(writer) = next.and_then(|value| self.of(key, *value)) {
                    graph.add(number, writer, Edge::ReadWrite);
                }
            }
        }
        graph
    }

    /// Reads that lack what had been acknowledged before they were asked.
    fn stale(&self) -> Vec<Stale> {
        // For each list: the first end of a committed append at or after each place.
        let ends = self.order.iter().map(|(key, (list, _))| {
            let mut first = Duration::MAX;
            let mut ends: Vec<Duration> = Vec::new();
            for value in list.iter().rev() {
                let txn = self.of(*key, *value).and_then(|txn| self.txns.get(txn));
                if let Some(txn) = txn.filter(|txn| txn.outcome == Outcome::Committed) {
                    first = first.min(txn.ended);
                }
                ends.push(first);
            }
            ends.reverse();
            (*key, ends)
        });
        let ends: BTreeMap<i64, Vec<Duration>> = ends.collect();
        let committed = self.txns.iter().enumerate();
        let committed = committed.filter(|(_, txn)| txn.outcome == Outcome::Committed);
        let is_stale = |txn: &Txn| {
            outside(txn).into_iter().any(|(key, list)| {
                let missed = ends.get(&key).and_then(|ends| ends.get(list.len()));
                missed.is_some_and(|ended| *ended < txn.began)
            })
        };
        committed
            .filter(|(_, txn)| is_stale(txn))
            .map(|(number, txn)| Stale {
                txn: number,
                at: txn.ended,
                timeline: txn.timeline,
            })
            .collect()
    }
}

/// The first read of each list, without what the transaction had appended itself by then.
fn outside(txn: &Txn) -> Vec<(i64, Vec<i64>)> {
    let mut own: BTreeMap<i64, usize> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut found = Vec::new();
    for op in &txn.ops {
        match op {
            Op::Append { key, .. } => *own.entry(*key).or_default() += 1,
            Op::Read { key, list } if seen.insert(*key) => {
                let own = own.get(key).copied().unwrap_or(0);
                let from_others = list.len().saturating_sub(own);
                let list = list.get(..from_others).unwrap_or_default();
                found.push((*key, list.to_vec()));
            }
            Op::Read { .. } => {}
        }
    }
    found
}

/// Whether a read lacks the transaction's own appends, or differs from an earlier one by more than those.
fn contradicts_itself(txn: &Txn) -> bool {
    let mut own: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    let mut base: BTreeMap<i64, Vec<i64>> = BTreeMap::new();
    for op in &txn.ops {
        match op {
            Op::Append { key, value } => own.entry(*key).or_default().push(*value),
            Op::Read { key, list } => {
                let own = own.get(key).map(Vec::as_slice).unwrap_or_default();
                let Some(before) = list.strip_suffix(own) else {
                    return true;
                };
                if base.entry(*key).or_insert_with(|| before.to_vec()) != before {
                    return true;
                }
            }
        }
    }
    false
}

#[cfg(test)]
mod tests;
