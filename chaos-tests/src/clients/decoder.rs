//! A consumer of a logical slot: it decodes the rows of the writers, and confirms only what it has
//! written down, as a connector does that must not miss anything.

use super::{CONNECT_LIMIT, RETRY};
use crate::session;
use crate::wait;
use crate::workload::{Ledger, TABLE};
use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::Client;

/// Changes are asked for in portions of this size; a transaction is never cut.
const PORTION: i32 = 500;
/// Pause when there was nothing new.
const IDLE: Duration = Duration::from_millis(50);
/// Decoding a portion may read much WAL again.
const DECODE_LIMIT: Duration = Duration::from_secs(20);

/// What a consumer has seen.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// Writer and number of each row.
    pub rows: BTreeSet<(i32, i64)>,
    /// Rows that came again: positions on standbys lag, so that is no fault.
    pub again: usize,
    /// Sessions that were opened.
    pub sessions: usize,
    /// The last failure, for people.
    pub last_error: String,
}

/// A running consumer; it stops when dropped.
#[derive(Debug)]
pub struct Decoder {
    seen: Arc<Mutex<Decoded>>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Decoder {
    /// Starts it on a port for writes. The slot's plugin must be `test_decoding`.
    pub fn start(port: u16, slot: &str) -> Self {
        let (seen, stop) = (Arc::default(), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn(run(port, slot.to_owned(), Arc::clone(&seen), stop.clone()));
        Self { seen, stop, task }
    }

    /// What it has seen so far.
    pub fn seen(&self) -> Decoded {
        lock(&self.seen).clone()
    }

    /// Waits until it has seen every row that the writer was told is there.
    ///
    /// # Errors
    /// When some are missing after `limit`; says which.
    pub async fn has_all(&self, ledger: &Ledger, limit: Duration) -> Result<()> {
        let rows = ledger.acks.iter().map(|ack| (ledger.writer, ack.seq));
        let rows: BTreeSet<_> = rows.collect();
        wait::until("every acknowledged row to be decoded", limit, || async {
            let seen = lock(&self.seen);
            let missing: Vec<_> = rows.difference(&seen.rows).take(10).collect();
            if missing.is_empty() {
                return Ok(());
            }
            let error = &seen.last_error;
            Err(format!("first missing: {missing:?}; last failure: {error}"))
        })
        .await
    }

    /// Stops it and returns what it has seen.
    pub async fn stop(mut self) -> Decoded {
        self.stop.store(true, Ordering::Relaxed);
        if let Err(error) = (&mut self.task).await {
            std::panic::resume_unwind(error.into_panic());
        }
        self.seen()
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock(seen: &Mutex<Decoded>) -> MutexGuard<'_, Decoded> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn run(port: u16, slot: String, seen: Arc<Mutex<Decoded>>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        if let Err(error) = session(port, &slot, &seen, &stop).await {
            lock(&seen).last_error = format!("{error:#}");
            tokio::time::sleep(RETRY).await;
        }
    }
}

async fn session(port: u16, slot: &str, seen: &Mutex<Decoded>, stop: &AtomicBool) -> Result<()> {
    let (client, _) = session::connect(port, CONNECT_LIMIT).await?;
    lock(seen).sessions += 1;
    while !stop.load(Ordering::Relaxed) {
        let portion = tokio::time::timeout(DECODE_LIMIT, portion(&client, slot, seen));
        if portion.await.context("decode: no answer")?? == 0 {
            tokio::time::sleep(IDLE).await;
        }
    }
    Ok(())
}

/// Looks at the next changes, writes them down, then confirms them.
async fn portion(client: &Client, slot: &str, seen: &Mutex<Decoded>) -> Result<usize> {
    let peek = "SELECT lsn::text, data FROM pg_logical_slot_peek_changes($1, NULL, $2, \
        'include-xids', '0', 'skip-empty-xacts', '1')";
    let rows = client.query(peek, &[&slot, &PORTION]).await?;
    let Some(last) = rows.last() else {
        return Ok(0);
    };
    {
        let mut seen = lock(seen);
        for row in &rows {
            if let Some(row) = read(row.get(1))? {
                seen.again += usize::from(!seen.rows.insert(row));
            }
        }
    }
    let end: String = last.get(0);
    let confirm = "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)";
    client.execute(confirm, &[&slot, &end]).await?;
    Ok(rows.len())
}

/// `table public.chaos_ledger: INSERT: writer[integer]:1 seq[bigint]:5 at[…]:'…'`; nothing for what is no
/// row of the writers.
fn read(change: &str) -> Result<Option<(i32, i64)>> {
    let Some(columns) = change.strip_prefix(&format!("table public.{TABLE}: INSERT: ")) else {
        return Ok(None);
    };
    let mut values = columns.split(' ').map(|column| column.rsplit(':').next());
    let mut next = || values.next().flatten().unwrap_or_default();
    let (writer, seq) = (next(), next());
    let row = (writer.parse(), seq.parse());
    ensure!(
        row.0.is_ok() && row.1.is_ok(),
        "a row like no other: {change}"
    );
    Ok(row.0.ok().zip(row.1.ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_of_the_writers_are_read_and_nothing_else() {
        let change = "table public.chaos_ledger: INSERT: writer[integer]:1 seq[bigint]:57 \
            at[timestamp with time zone]:'2026-01-01 00:00:00+00'";
        assert_eq!(read(change).expect("a row"), Some((1, 57)));
        assert_eq!(read("COMMIT").expect("no row"), None);
        let other = "table public.doomed: INSERT: n[integer]:1";
        assert_eq!(read(other).expect("no row"), None);
        read("table public.chaos_ledger: INSERT: writer[integer]:x").expect_err("torn");
    }
}
