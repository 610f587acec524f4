//! Clients beside the writers of rows: they write down what they saw, and [`crate::history`] judges it.

pub mod append;
pub mod cancel;
pub mod decoder;
pub mod register;

use crate::session;
use anyhow::{Context, Result};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;

/// A session is ready within this time or is given up.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_millis(800);
/// A statement is answered within this time or its outcome is unknown.
pub(crate) const STATEMENT_LIMIT: Duration = Duration::from_millis(1500);
/// Pause after a failure.
pub(crate) const RETRY: Duration = Duration::from_millis(100);

/// What the sessions of one kind share.
pub(crate) struct Notes<T> {
    entries: Mutex<Vec<T>>,
    stop: AtomicBool,
}

impl<T> Notes<T> {
    pub(crate) fn enter(&self, entry: T) {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        entries.push(entry);
    }

    pub(crate) fn go_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// Sessions that write down what they saw until they are stopped.
pub(crate) struct Crowd<T> {
    notes: Arc<Notes<T>>,
    tasks: Vec<JoinHandle<()>>,
}

impl<T: Send + 'static> Crowd<T> {
    pub(crate) fn new() -> Self {
        let notes = Notes {
            entries: Mutex::new(Vec::new()),
            stop: AtomicBool::new(false),
        };
        Self {
            notes: Arc::new(notes),
            tasks: Vec::new(),
        }
    }

    pub(crate) fn add<F>(&mut self, session: impl FnOnce(Arc<Notes<T>>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.push(tokio::spawn(session(self.notes.clone())));
    }

    /// What all of them saw. Each ends by itself after its statement, so that nothing is under way.
    pub(crate) async fn stop(mut self) -> Vec<T> {
        self.notes.stop.store(true, Ordering::Relaxed);
        for task in std::mem::take(&mut self.tasks) {
            if let Err(error) = task.await
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
        let mut entries = self.notes.entries.lock();
        let entries = entries.as_deref_mut();
        entries.map(std::mem::take).unwrap_or_default()
    }
}

impl<T> Drop for Crowd<T> {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Whether the server said that it did nothing: it rolled back, or may not write.
pub(crate) fn not_done(error: &tokio_postgres::Error) -> bool {
    let code = error.code();
    code.is_some_and(|code| {
        code.code().starts_with("40") || *code == SqlState::READ_ONLY_SQL_TRANSACTION
    })
}

/// Makes the tables of all clients.
///
/// # Errors
/// When the server refuses.
pub async fn create_tables(port: u16) -> Result<()> {
    let client = session::client(port).await?;
    let ddl = format!("{}; {}", append::DDL, register::DDL);
    client.batch_execute(&ddl).await.context("create tables")
}

/// Empties them.
///
/// # Errors
/// When the server refuses.
pub async fn empty_tables(port: u16) -> Result<()> {
    let client = session::client(port).await?;
    let tables = [crate::workload::TABLE, append::TABLE, register::TABLE].join(", ");
    let truncate = format!("TRUNCATE {tables}");
    client
        .batch_execute(&truncate)
        .await
        .context("empty tables")
}
