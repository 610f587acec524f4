//! A writer that remembers what was acknowledged.
//!
//! It inserts rows `(writer, seq)`, each sequence number once, whatever the outcome. Three outcomes
//! are told apart: **acknowledged** (the server said so, without a warning that it did not wait for a
//! standby), **unknown** (sent, no clear answer: it may or may not be there) and **not sent** (no
//! connection). Only the first kind may be held against a cluster.

use crate::cluster::Cluster;
use crate::session::{TimedOut, connect};
use crate::wait;
use anyhow::{Context, Result, bail};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;
use tokio::time::error::Elapsed;
use tokio_postgres::Client;

/// Table of the writers; without a unique index, so that a row that arrived twice is seen.
pub const TABLE: &str = "chaos_ledger";
/// A connection is ready for statements within this time or is given up.
const CONNECT_LIMIT: Duration = Duration::from_millis(300);
/// On a machine so busy that this is never enough, the limit doubles up to this one.
const CONNECT_LIMIT_MAX: Duration = Duration::from_millis(2400);
/// Failures in a row that were timeouts, after which the limit doubles.
const TIMEOUTS_BEFORE_PATIENCE: u32 = 8;
/// A statement is answered within this time or its outcome is unknown.
const STATEMENT_LIMIT: Duration = Duration::from_millis(1500);
/// Pause after a failure.
const RETRY: Duration = Duration::from_millis(10);
/// Pause after an acknowledgement: some hundred rows a second, without taking the machine.
const PACE: Duration = Duration::from_millis(2);

/// One acknowledged row.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// Its number.
    pub seq: i64,
    /// When the statement was sent.
    pub sent: Instant,
    /// When the acknowledgement arrived.
    pub at: Instant,
    /// Port of the PostgreSQL that gave it.
    pub server: u16,
}

/// What one writer knows.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Number of the writer.
    pub writer: i32,
    /// In order of arrival.
    pub acks: Vec<Ack>,
    /// Rows whose outcome is unknown.
    pub unknown: BTreeSet<i64>,
    /// Tries that found no connection.
    pub not_sent: u64,
    /// The last failure, for people.
    pub last_error: String,
}

impl Ledger {
    /// The longest time without an acknowledgement that touches the window: from the last one before
    /// it, over those in it, to the first one after it, or to its end when none came.
    pub fn gap(&self, from: Instant, to: Instant) -> Duration {
        let before = self.acks.iter().take_while(|ack| ack.at <= from).last();
        let mut last = before.map_or(from, |ack| ack.at);
        let mut longest = Duration::ZERO;
        for ack in self.acks.iter().filter(|ack| ack.at > from) {
            longest = longest.max(ack.at - last);
            last = ack.at;
            if ack.at >= to {
                return longest;
            }
        }
        longest.max(to.saturating_duration_since(last))
    }

    /// Rows acknowledged within the window.
    pub fn acked_between(&self, from: Instant, to: Instant) -> usize {
        self.acks
            .iter()
            .filter(|ack| ack.at > from && ack.at <= to)
            .count()
    }

    /// The last acknowledgement by this server.
    pub fn last_by(&self, server: u16) -> Option<Ack> {
        self.acks
            .iter()
            .rev()
            .find(|ack| ack.server == server)
            .copied()
    }

    /// The first acknowledgement by this server after `from`.
    pub fn first_by(&self, server: u16, from: Instant) -> Option<Ack> {
        self.acks
            .iter()
            .find(|ack| ack.server == server && ack.at > from)
            .copied()
    }
}

/// A running writer; it stops when dropped.
#[derive(Debug)]
pub struct Writer {
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Writer {
    /// Creates the table where needed and starts writer 1 through HAProxy's port for writes.
    ///
    /// # Errors
    /// When nothing takes writes within 30 s.
    pub async fn through_haproxy(cluster: &Cluster) -> Result<Self> {
        create_table(cluster.ports().writes).await?;
        let writer = Self::start(1, cluster.ports().writes);
        writer
            .wait_ack_after(Instant::now(), Duration::from_secs(30))
            .await?;
        Ok(writer)
    }

    /// Starts a writer on a port of this machine; the table must be there.
    pub fn start(number: i32, port: u16) -> Self {
        Self::start_paced(number, port, PACE)
    }

    /// The same with a pause of this length after each acknowledgement.
    pub fn start_paced(number: i32, port: u16, pace: Duration) -> Self {
        let ledger = Arc::new(Mutex::new(Ledger {
            writer: number,
            ..Ledger::default()
        }));
        let stop = Arc::new(AtomicBool::new(false));
        let session = Session {
            number,
            port,
            pace,
            ledger: ledger.clone(),
            stop: stop.clone(),
            connect_limit: CONNECT_LIMIT,
            timeouts: 0,
        };
        Self {
            ledger,
            stop,
            task: tokio::spawn(session.run()),
        }
    }

    /// What it knows now.
    pub fn ledger(&self) -> Ledger {
        lock(&self.ledger).clone()
    }

    /// Rows acknowledged so far.
    pub fn acked(&self) -> usize {
        lock(&self.ledger).acks.len()
    }

    /// Rows acknowledged since then.
    pub fn acked_since(&self, since: Instant) -> usize {
        let ledger = lock(&self.ledger);
        let acks = ledger.acks.iter().rev();
        acks.take_while(|ack| ack.at > since).count()
    }

    /// The acknowledgements from the last one before `from` on.
    pub fn acks_around(&self, from: Instant) -> Vec<Ack> {
        let ledger = lock(&self.ledger);
        let before = ledger.acks.partition_point(|ack| ack.at <= from);
        let around = ledger.acks.get(before.saturating_sub(1)..);
        around.unwrap_or_default().to_vec()
    }

    /// When the last acknowledged row was sent.
    pub fn last_sent(&self) -> Option<Instant> {
        lock(&self.ledger).acks.last().map(|ack| ack.sent)
    }

    /// Whether the last row was acknowledged after `from`, by another server than this one.
    pub fn acked_by_other(&self, server: u16, from: Instant) -> bool {
        let ledger = lock(&self.ledger);
        let last = ledger.acks.last();
        last.is_some_and(|ack| ack.at > from && ack.server != server)
    }

    /// Waits until a row that was *sent* after `moment` is acknowledged: writes work (again).
    ///
    /// # Errors
    /// When none was within `limit`.
    pub async fn wait_ack_after(&self, moment: Instant, limit: Duration) -> Result<Ack> {
        wait::until("an acknowledged row", limit, || async {
            let ledger = lock(&self.ledger);
            let last = ledger.acks.last().copied().filter(|ack| ack.sent > moment);
            last.ok_or_else(|| format!("the writer's last failure: {}", ledger.last_error))
        })
        .await
    }

    /// Waits until this server acknowledges a row sent after `moment`.
    ///
    /// # Errors
    /// When it did not within `limit`.
    pub async fn wait_ack_by(&self, server: u16, moment: Instant, limit: Duration) -> Result<Ack> {
        wait::until("an acknowledged row of one server", limit, || async {
            let ledger = lock(&self.ledger);
            let last = ledger.last_by(server).filter(|ack| ack.sent > moment);
            last.ok_or_else(|| format!("the writer's last failure: {}", ledger.last_error))
        })
        .await
    }

    /// Stops it and returns what it knows.
    pub async fn stop(mut self) -> Ledger {
        self.stop.store(true, Ordering::Relaxed);
        // It ends within the limit of one statement; a panic of it would be our own bug.
        if let Err(error) = (&mut self.task).await {
            std::panic::resume_unwind(error.into_panic());
        }
        self.ledger()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(ledger: &Mutex<Ledger>) -> MutexGuard<'_, Ledger> {
    ledger.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) async fn create_table(port: u16) -> Result<()> {
    let ddl = format!(
        "CREATE TABLE IF NOT EXISTS {TABLE} (writer int NOT NULL, seq bigint NOT NULL, \
         at timestamptz NOT NULL DEFAULT clock_timestamp())"
    );
    wait::until("a table to write to", Duration::from_secs(30), || async {
        let created = async {
            let (client, _) = connect(port, CONNECT_LIMIT_MAX).await?;
            let done = tokio::time::timeout(STATEMENT_LIMIT * 4, client.batch_execute(&ddl)).await;
            done.context("no answer")?.context("create the table")
        };
        created
            .await
            .map_err(|error: anyhow::Error| format!("{error:#}"))
    })
    .await
}

struct Session {
    number: i32,
    port: u16,
    pace: Duration,
    ledger: Arc<Mutex<Ledger>>,
    stop: Arc<AtomicBool>,
    connect_limit: Duration,
    timeouts: u32,
}

impl Session {
    async fn run(mut self) {
        let mut next = 1;
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.write_while_connected(&mut next).await {
                let mut ledger = lock(&self.ledger);
                ledger.last_error = format!("{error:#}");
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    async fn write_while_connected(&mut self, next: &mut i64) -> Result<()> {
        let (client, warned, server) = match self.open().await {
            Ok(open) => open,
            Err(error) => {
                lock(&self.ledger).not_sent += 1;
                return Err(error);
            }
        };
        let insert = format!("INSERT INTO {TABLE} (writer, seq) VALUES ($1, $2)");
        let insert = tokio::time::timeout(STATEMENT_LIMIT, client.prepare(&insert)).await;
        let insert = insert.context("prepare: no answer")?.context("prepare")?;
        while !self.stop.load(Ordering::Relaxed) {
            let seq = *next;
            *next += 1;
            let sent = Instant::now();
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&self.number, &seq];
            let answer = tokio::time::timeout(STATEMENT_LIMIT, client.execute(&insert, &params));
            let answer = answer
                .await
                .map(|answer| answer.map(|_| warned.load(Ordering::SeqCst)));
            self.record(seq, sent, server, answer)?;
            tokio::time::sleep(self.pace).await;
        }
        Ok(())
    }

    /// Enters the outcome of one statement into the ledger. `answer` holds whether the server warned
    /// before it acknowledged. An error ends the session.
    fn record(
        &self,
        seq: i64,
        sent: Instant,
        server: u16,
        answer: Result<Result<bool, tokio_postgres::Error>, Elapsed>,
    ) -> Result<()> {
        let at = Instant::now();
        let mut ledger = lock(&self.ledger);
        if let Ok(Ok(false)) = answer {
            ledger.acks.push(Ack {
                seq,
                sent,
                at,
                server,
            });
            return Ok(());
        }
        ledger.unknown.insert(seq);
        match answer {
            Ok(Ok(_)) => bail!("the server warned that it did not wait for a standby"),
            // Refused with a reason means not committed, except where the reason is that the session
            // was ended while it waited for a standby. Both count as unknown.
            Ok(Err(error)) => Err(error).context("insert"),
            Err(_) => bail!("insert: no answer within {STATEMENT_LIMIT:?}"),
        }
    }

    /// A session that may write, and the port of its server.
    async fn open(&mut self) -> Result<(Client, Arc<AtomicBool>, u16)> {
        let connected = connect(self.port, self.connect_limit).await;
        match &connected {
            Err(error) if error.is::<TimedOut>() => self.timeouts += 1,
            _ => self.timeouts = 0,
        }
        if self.timeouts >= TIMEOUTS_BEFORE_PATIENCE {
            self.timeouts = 0;
            self.connect_limit = (self.connect_limit * 2).min(CONNECT_LIMIT_MAX);
        }
        let (client, warned) = connected?;
        let query = client.query_one("SELECT inet_server_port(), pg_is_in_recovery()", &[]);
        let row = tokio::time::timeout(STATEMENT_LIMIT, query).await;
        let row = row
            .context("ask for the server: no answer")?
            .context("ask for the server")?;
        if row.get::<_, bool>(1) {
            bail!("reached a standby");
        }
        let server = u16::try_from(row.get::<_, i32>(0)).context("port of the server")?;
        Ok((client, warned, server))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(base: Instant, at_ms: &[u64]) -> Ledger {
        let ack = |(seq, ms): (usize, &u64)| {
            let at = base + Duration::from_millis(*ms);
            Ack {
                seq: i64::try_from(seq).expect("small"),
                sent: at,
                at,
                server: 1,
            }
        };
        Ledger {
            acks: at_ms.iter().enumerate().map(ack).collect(),
            ..Ledger::default()
        }
    }

    #[test]
    fn gap_reaches_over_both_edges_of_the_window() {
        let base = Instant::now();
        let at = |ms| base + Duration::from_millis(ms);
        let ledger = ledger(base, &[10, 20, 900, 910, 5000]);
        assert_eq!(ledger.gap(at(50), at(1000)), Duration::from_millis(4090));
        assert_eq!(ledger.gap(at(50), at(905)), Duration::from_millis(880));
    }

    #[test]
    fn gap_lasts_to_the_end_of_the_window_when_writes_did_not_return() {
        let base = Instant::now();
        let at = |ms| base + Duration::from_millis(ms);
        assert_eq!(
            ledger(base, &[10, 20]).gap(at(30), at(1020)),
            Duration::from_millis(1000)
        );
        assert_eq!(
            ledger(base, &[]).gap(at(30), at(130)),
            Duration::from_millis(100)
        );
    }
}
