//! Transactions that read and append to lists, for [`crate::history::append`].

use super::{CONNECT_LIMIT, Crowd, Notes, RETRY, STATEMENT_LIMIT, not_done};
use crate::exclusivity::boot_time;
use crate::history::append::{Findings, Isolation, Op, Outcome, Txn, check};
use crate::session;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_postgres::{Client, Statement};

/// Table of the lists.
pub const TABLE: &str = "chaos_list";
pub(super) const DDL: &str = "CREATE TABLE IF NOT EXISTS chaos_list \
    (key bigint PRIMARY KEY, list bigint[] NOT NULL)";
/// Pause between two transactions of a session.
const PACE: Duration = Duration::from_millis(80);
/// Sessions per isolation level.
const SESSIONS: u64 = 2;
/// Lists in use at a time, and how long they grow: longer ones cost more to read than they tell.
const LISTS: i64 = 4;
const LENGTH: u32 = 40;
/// Steps of a transaction.
const STEPS: usize = 4;
/// Lists of the second isolation level begin here; its rules hold only among its own transactions.
const SERIALIZABLE: i64 = 1_000_000_000;

/// Running sessions, of both isolation levels.
pub struct Appenders {
    crowds: Vec<(Isolation, Crowd<Txn>)>,
}

impl Appenders {
    /// Starts them on HAProxy's port for writes. Lists are numbered from `first` on, so that no two
    /// histories share one.
    pub fn start(port: u16, first: i64) -> Self {
        let levels = [
            (Isolation::RepeatableRead, 0),
            (Isolation::Serializable, SERIALIZABLE),
        ];
        let crowds = levels.into_iter().map(|(isolation, base)| {
            let mut crowd = Crowd::new();
            let lists = Arc::new(Lists::new(base + first));
            for _ in 0..SESSIONS {
                let lists = lists.clone();
                crowd.add(|notes| session(port, isolation, lists, notes));
            }
            (isolation, crowd)
        });
        Self {
            crowds: crowds.collect(),
        }
    }

    /// Stops them.
    pub async fn stop(self) -> Histories {
        let mut all = Vec::new();
        for (isolation, crowd) in self.crowds {
            all.push((isolation, crowd.stop().await));
        }
        Histories(all)
    }
}

/// What the sessions saw.
pub struct Histories(Vec<(Isolation, Vec<Txn>)>);

impl Histories {
    /// Checks them against the lists as they are now on this server.
    ///
    /// # Errors
    /// When the lists cannot be read.
    pub async fn judge(&self, port: u16) -> Result<Vec<Findings>> {
        let client = session::client(port).await?;
        let query = format!("SELECT key, list FROM {TABLE}");
        let rows = client.query(&query, &[]).await.context("read the lists")?;
        let lists: BTreeMap<i64, Vec<i64>> =
            rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let (first, second): (BTreeMap<_, _>, BTreeMap<_, _>) =
            lists.into_iter().partition(|(key, _)| *key < SERIALIZABLE);
        let each = self.0.iter().map(|(isolation, txns)| {
            let lists = match isolation {
                Isolation::RepeatableRead => &first,
                Isolation::Serializable => &second,
            };
            check(txns, lists, *isolation)
        });
        Ok(each.collect())
    }
}

/// The lists in use, and the next value.
struct Lists {
    active: Mutex<Vec<(i64, u32)>>,
    next_list: AtomicI64,
    next_value: AtomicI64,
}

impl Lists {
    fn new(first: i64) -> Self {
        let active = (first..first + LISTS).map(|key| (key, 0));
        Self {
            active: Mutex::new(active.collect()),
            next_list: AtomicI64::new(first + LISTS),
            next_value: AtomicI64::new(1),
        }
    }

    /// A transaction; its reads are still empty.
    fn plan(&self) -> Vec<Op> {
        let mut active = self.active.lock().unwrap_or_else(PoisonError::into_inner);
        let mut ops = Vec::new();
        for _ in 0..fastrand::usize(1..=STEPS) {
            let place = fastrand::usize(..active.len());
            let Some((key, appended)) = active.get_mut(place) else {
                continue;
            };
            if fastrand::bool() {
                let (key, list) = (*key, Vec::new());
                ops.push(Op::Read { key, list });
                continue;
            }
            let value = self.next_value.fetch_add(1, Ordering::Relaxed);
            ops.push(Op::Append { key: *key, value });
            *appended += 1;
            if *appended >= LENGTH {
                *key = self.next_list.fetch_add(1, Ordering::Relaxed);
                *appended = 0;
            }
        }
        ops
    }
}

async fn session(port: u16, isolation: Isolation, lists: Arc<Lists>, notes: Arc<Notes<Txn>>) {
    while notes.go_on() {
        if connected(port, isolation, &lists, &notes).await.is_err() {
            tokio::time::sleep(RETRY).await;
        }
    }
}

struct Open {
    client: Client,
    warned: Arc<AtomicBool>,
    read: Statement,
    append: Statement,
    begin: &'static str,
}

async fn connected(
    port: u16,
    isolation: Isolation,
    lists: &Lists,
    notes: &Notes<Txn>,
) -> Result<()> {
    let (client, warned) = session::connect(port, CONNECT_LIMIT).await?;
    let timeline = session::timeline(&client).await?;
    let read = format!("SELECT list FROM {TABLE} WHERE key = $1");
    let append = format!(
        "INSERT INTO {TABLE} VALUES ($1, ARRAY[$2::bigint]) \
         ON CONFLICT (key) DO UPDATE SET list = {TABLE}.list || EXCLUDED.list"
    );
    let open = Open {
        read: within(client.prepare(&read)).await??,
        append: within(client.prepare(&append)).await??,
        begin: match isolation {
            Isolation::RepeatableRead => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Isolation::Serializable => "BEGIN ISOLATION LEVEL SERIALIZABLE",
        },
        client,
        warned,
    };
    while notes.go_on() {
        let mut ops = lists.plan();
        let began = boot_time();
        let (outcome, usable) = open.run(&mut ops).await;
        notes.enter(Txn {
            outcome,
            ops,
            began,
            ended: boot_time(),
            timeline,
        });
        if !usable {
            bail!("the session broke");
        }
        tokio::time::sleep(PACE).await;
    }
    Ok(())
}

impl Open {
    /// Runs a transaction and fills its reads in: how it ended, and whether the session can go on.
    async fn run(&self, ops: &mut [Op]) -> (Outcome, bool) {
        match self.until_commit(ops).await {
            Ok(Ok(())) => {}
            // Refused: nothing was asked to be committed.
            Ok(Err(error)) => {
                let rolled_back = within(self.client.batch_execute("ROLLBACK")).await;
                let usable = error.as_db_error().is_some() && matches!(rolled_back, Ok(Ok(())));
                return (Outcome::Failed, usable);
            }
            Err(_) => return (Outcome::Failed, false),
        }
        match within(self.client.batch_execute("COMMIT")).await {
            Ok(Ok(())) if !self.warned.load(Ordering::SeqCst) => (Outcome::Committed, true),
            Ok(Err(error)) if not_done(&error) => (Outcome::Failed, true),
            _ => (Outcome::Unknown, false),
        }
    }

    async fn until_commit(&self, ops: &mut [Op]) -> Result<Result<(), tokio_postgres::Error>> {
        if let Err(error) = within(self.client.batch_execute(self.begin)).await? {
            return Ok(Err(error));
        }
        for op in ops {
            let done = match op {
                Op::Append { key, value } => {
                    within(self.client.execute(&self.append, &[key, value]))
                        .await?
                        .map(|_| ())
                }
                Op::Read { key, list } => {
                    let row = within(self.client.query_opt(&self.read, &[key])).await?;
                    row.map(|row| *list = row.map(|row| row.get(0)).unwrap_or_default())
                }
            };
            if done.is_err() {
                return Ok(done);
            }
        }
        Ok(Ok(()))
    }
}

async fn within<T>(answer: impl Future<Output = T>) -> Result<T> {
    let answer = tokio::time::timeout(STATEMENT_LIMIT, answer).await;
    answer.context("no answer")
}
