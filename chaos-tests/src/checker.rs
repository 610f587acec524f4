//! What is there, held against what was acknowledged.

use crate::cluster::Cluster;
use crate::session::connect;
use crate::wait;
use crate::workload::{Ledger, TABLE};
use anyhow::{Context, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

/// Reading the table ends within this time.
const READ_LIMIT: Duration = Duration::from_secs(60);
/// A standby has all that the leader had within this time.
const CATCH_UP_LIMIT: Duration = Duration::from_secs(60);

/// The result of a check.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// Rows acknowledged.
    pub acked: usize,
    /// Acknowledged, and not there: `(writer, seq)`.
    pub lost: BTreeSet<(i32, i64)>,
    /// There more than once.
    pub doubled: BTreeSet<(i32, i64)>,
    /// There, and never sent.
    pub invented: BTreeSet<(i32, i64)>,
    /// Of unknown outcome.
    pub unknown: usize,
    /// Of unknown outcome, and there.
    pub unknown_present: usize,
    /// Members whose table differs from the leader's.
    pub differing: Vec<String>,
}

impl Verdict {
    /// Nothing is missing, doubled, invented or different.
    pub fn clean(&self) -> bool {
        let rows = self.lost.len() + self.doubled.len() + self.invented.len();
        rows == 0 && self.differing.is_empty()
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows acknowledged, {} lost, {} doubled, {} invented; {} of {} of unknown outcome are there",
            self.acked,
            self.lost.len(),
            self.doubled.len(),
            self.invented.len(),
            self.unknown_present,
            self.unknown
        )?;
        if !self.lost.is_empty() {
            write!(
                f,
                "; lost: {:?}",
                self.lost.iter().take(10).collect::<Vec<_>>()
            )?;
        }
        if !self.differing.is_empty() {
            write!(f, "; the table differs on {}", self.differing.join(", "))?;
        }
        Ok(())
    }
}

/// Compares the leader's table with the ledgers, and every reachable standby's with the leader's.
/// The writers must have stopped.
///
/// # Errors
/// When the leader cannot be read.
pub async fn check(cluster: &Cluster, leader: usize, ledgers: &[Ledger]) -> Result<Verdict> {
    let port = cluster.member(leader)?.postgres_port;
    let (rows, digest) = read(port).await.context("read the leader's table")?;
    let mut verdict = compare(&rows, ledgers);
    for (index, member) in cluster.members().iter().enumerate() {
        let expected = index != leader && member.agent().is_some();
        if expected && !same(member.postgres_port, &digest).await {
            verdict.differing.push(member.name.clone());
        }
    }
    Ok(verdict)
}

/// Compares every table of the harness on every standby with the leader's.
///
/// # Errors
/// When one differs, or cannot be read.
pub async fn same_everywhere(cluster: &Cluster, leader: usize) -> Result<String> {
    let tables = [
        TABLE,
        crate::clients::append::TABLE,
        crate::clients::register::TABLE,
    ];
    let hashes = tables.map(|table| {
        format!(
            "(SELECT coalesce(md5(string_agg(t::text, '' ORDER BY t::text)), '') FROM {table} t)"
        )
    });
    let query = format!("SELECT {}", hashes.join(" || "));
    let (client, _) = connect(
        cluster.member(leader)?.postgres_port,
        Duration::from_secs(5),
    )
    .await?;
    let expected: String = client.query_one(&query, &[]).await?.get(0);
    for member in cluster.members() {
        wait::until(
            &format!("the leader's rows on {}", member.name),
            CATCH_UP_LIMIT,
            || async {
                let read = async {
                    let (client, _) = connect(member.postgres_port, Duration::from_secs(5)).await?;
                    anyhow::Ok(client.query_one(&query, &[]).await?.get::<_, String>(0))
                };
                match read.await {
                    Ok(found) if found == expected => Ok(()),
                    Ok(found) => Err(format!("it has {found} instead of {expected}")),
                    Err(error) => Err(format!("{error:#}")),
                }
            },
        )
        .await?;
    }
    Ok(format!("{} members", cluster.members().len()))
}

/// The acknowledged rows that are missing right now; for a count between two faults, while the
/// writers go on.
///
/// # Errors
/// When the server cannot be read.
pub async fn missing(port: u16, ledgers: &[Ledger]) -> Result<usize> {
    let (rows, _) = read(port).await?;
    Ok(compare(&rows, ledgers).lost.len())
}

type Rows = BTreeMap<(i32, i64), usize>;

fn compare(rows: &Rows, ledgers: &[Ledger]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut sent = BTreeSet::new();
    for ledger in ledgers {
        verdict.acked += ledger.acks.len();
        verdict.unknown += ledger.unknown.len();
        for ack in &ledger.acks {
            let row = (ledger.writer, ack.seq);
            sent.insert(row);
            if !rows.contains_key(&row) {
                verdict.lost.insert(row);
            }
        }
        for seq in &ledger.unknown {
            let row = (ledger.writer, *seq);
            sent.insert(row);
            verdict.unknown_present += usize::from(rows.contains_key(&row));
        }
    }
    verdict.doubled = rows
        .iter()
        .filter(|(_, count)| **count > 1)
        .map(|(row, _)| *row)
        .collect();
    verdict.invented = rows
        .keys()
        .filter(|row| !sent.contains(row))
        .copied()
        .collect();
    verdict
}

async fn read(port: u16) -> Result<(Rows, String)> {
    let reading = async {
        let (client, _) = connect(port, Duration::from_secs(5)).await?;
        let query = format!("SELECT writer, seq, count(*) FROM {TABLE} GROUP BY 1, 2");
        let mut rows = Rows::new();
        for row in client.query(&query, &[]).await.context("read the rows")? {
            let count = usize::try_from(row.get::<_, i64>(2)).unwrap_or(0);
            rows.insert((row.get(0), row.get(1)), count);
        }
        let digest = client
            .query_one(&digest_query(), &[])
            .await
            .context("read the digest")?;
        Ok((rows, digest.get(0)))
    };
    tokio::time::timeout(READ_LIMIT, reading)
        .await
        .context("read the table: no answer")?
}

fn digest_query() -> String {
    format!("SELECT count(*) || ':' || coalesce(sum(hashint8(seq) # writer), 0) FROM {TABLE}")
}

async fn same(port: u16, digest: &str) -> bool {
    let look = || async {
        let reading = async {
            let (client, _) = connect(port, Duration::from_secs(5)).await?;
            let row = client.query_one(&digest_query(), &[]).await?;
            anyhow::Ok(row.get::<_, String>(0))
        };
        match reading.await {
            Ok(found) if found == digest => Ok(()),
            Ok(found) => Err(format!("has {found}, the leader {digest}")),
            Err(error) => Err(format!("{error:#}")),
        }
    };
    wait::until("a standby to have the leader's rows", CATCH_UP_LIMIT, look)
        .await
        .is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Ack;
    use std::time::Instant;

    #[test]
    fn lost_doubled_and_invented_rows_are_told_apart_from_unknown_ones() {
        let at = Instant::now();
        let ack = |seq| Ack {
            seq,
            sent: at,
            at,
            server: 1,
        };
        let acks = vec![ack(1), ack(2), ack(3)];
        let unknown = BTreeSet::from([4, 5]);
        let ledger = Ledger {
            writer: 7,
            acks,
            unknown,
            ..Ledger::default()
        };
        let rows = Rows::from([((7, 1), 1), ((7, 3), 2), ((7, 5), 1), ((7, 9), 1)]);
        let verdict = compare(&rows, &[ledger]);
        assert_eq!(verdict.lost, BTreeSet::from([(7, 2)]));
        assert_eq!(verdict.doubled, BTreeSet::from([(7, 3)]));
        assert_eq!(verdict.invented, BTreeSet::from([(7, 9)]));
        assert_eq!(verdict.unknown_present, 1);
        assert!(!verdict.clean());
    }
}
