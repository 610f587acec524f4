//! Writers that lose patience: a commit that is cancelled while it waits for a standby reports success
//! with a warning, so its outcome is unknown. A cluster must survive them; nothing may be held against it.

use super::{CONNECT_LIMIT, Crowd, Notes, RETRY, STATEMENT_LIMIT};
use crate::session;
use crate::workload::{Ack, Ledger, TABLE};
use anyhow::{Context, Result, bail};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use tokio_postgres::NoTls;

/// Pause between two rows.
const PACE: Duration = Duration::from_millis(200);
/// Patience is random, up to this.
const PATIENCE: Duration = Duration::from_millis(8);

enum Entry {
    Acked(Ack),
    Unknown(i64),
}

/// The running session.
pub struct Canceller {
    crowd: Crowd<Entry>,
    number: i32,
}

impl Canceller {
    /// Starts it on HAProxy's port for writes; its rows are those of writer `number`.
    pub fn start(number: i32, port: u16) -> Self {
        let mut crowd = Crowd::new();
        crowd.add(|notes| async move {
            let next = AtomicI64::new(1);
            while notes.go_on() {
                if write(number, port, &next, &notes).await.is_err() {
                    tokio::time::sleep(RETRY).await;
                }
            }
        });
        Self { crowd, number }
    }

    /// Stops it: its rows, and how many of them are of unknown outcome.
    pub async fn stop(self) -> Ledger {
        let mut ledger = Ledger {
            writer: self.number,
            ..Ledger::default()
        };
        for entry in self.crowd.stop().await {
            match entry {
                Entry::Acked(ack) => ledger.acks.push(ack),
                Entry::Unknown(seq) => {
                    ledger.unknown.insert(seq);
                }
            }
        }
        ledger
    }
}

async fn write(number: i32, port: u16, next: &AtomicI64, notes: &Arc<Notes<Entry>>) -> Result<()> {
    let (client, warned) = session::connect(port, CONNECT_LIMIT).await?;
    session::timeline(&client).await?;
    let insert = format!("INSERT INTO {TABLE} (writer, seq) VALUES ($1, $2)");
    let insert = tokio::time::timeout(STATEMENT_LIMIT, client.prepare(&insert)).await;
    let insert = insert.context("prepare: no answer")?.context("prepare")?;
    while notes.go_on() {
        let seq = next.fetch_add(1, Ordering::Relaxed);
        warned.store(false, Ordering::SeqCst);
        let sent = Instant::now();
        let token = client.cancel_token();
        let patience = PATIENCE.mul_f64(fastrand::f64());
        let cancel = async {
            tokio::time::sleep(patience).await;
            // A server that does not take it leaves the statement to its own end.
            let _ = tokio::time::timeout(STATEMENT_LIMIT, token.cancel_query(NoTls)).await;
        };
        let params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&number, &seq];
        let answer = tokio::time::timeout(STATEMENT_LIMIT, client.execute(&insert, &params));
        let (answer, ()) = tokio::join!(answer, cancel);
        let acked = matches!(answer, Ok(Ok(_))) && !warned.load(Ordering::SeqCst);
        notes.enter(if acked {
            let at = Instant::now();
            Entry::Acked(Ack {
                seq,
                sent,
                at,
                server: port,
            })
        } else {
            Entry::Unknown(seq)
        });
        match answer {
            Ok(Ok(_)) => {}
            Ok(Err(error)) if error.as_db_error().is_some() && !client.is_closed() => {}
            _ => bail!("the session broke"),
        }
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}
