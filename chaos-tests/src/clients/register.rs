//! Registers that are read, written and swapped, for [`crate::history::register`]. Some sessions go
//! through HAProxy, some straight to every member, whichever holds itself to be the primary.

use super::{CONNECT_LIMIT, Crowd, Notes, RETRY, STATEMENT_LIMIT, not_done};
use crate::exclusivity::boot_time;
use crate::history::register::{Answer, Call, Operation, check};
use crate::session;
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_postgres::{Client, Statement};

/// Table of the registers.
pub const TABLE: &str = "chaos_register";
pub(super) const DDL: &str = "CREATE TABLE IF NOT EXISTS chaos_register \
    (key bigint PRIMARY KEY, value bigint NOT NULL)";
/// Pause between two calls of a session through HAProxy, and of a direct one.
const PACE: (Duration, Duration) = (Duration::from_millis(60), Duration::from_millis(120));
/// Sessions through HAProxy.
const SESSIONS: usize = 2;
/// Registers in use at a time, and calls until another takes the place of one.
const REGISTERS: i64 = 3;
const CALLS: u32 = 120;
/// Calls without an answer after which another register is taken: each doubles the search.
const OPEN: u32 = 8;

/// Running sessions.
pub struct Registers(Crowd<(i64, Operation)>);

impl Registers {
    /// Starts them. Registers are numbered from `first` on.
    pub fn start(writes: u16, members: &[u16], first: i64) -> Self {
        let mut crowd = Crowd::new();
        let active = Arc::new(Active::new(first));
        let routed = std::iter::repeat_n((writes, false, PACE.0), SESSIONS);
        let direct = members.iter().map(|port| (*port, true, PACE.1));
        for (port, reads_only, pace) in routed.chain(direct) {
            let active = active.clone();
            crowd.add(|notes| async move {
                let session = Session {
                    port,
                    reads_only,
                    pace,
                    active,
                    notes,
                };
                session.run().await;
            });
        }
        Self(crowd)
    }

    /// Stops them.
    pub async fn stop(self) -> Histories {
        let mut all: BTreeMap<i64, Vec<Operation>> = BTreeMap::new();
        for (key, operation) in self.0.stop().await {
            all.entry(key).or_default().push(operation);
        }
        Histories(all)
    }
}

/// What the sessions saw, by register.
pub struct Histories(BTreeMap<i64, Vec<Operation>>);

/// What they show.
#[derive(Clone, Debug, Default)]
pub struct Judgement {
    /// Calls that were answered.
    pub answered: usize,
    /// Registers with answers that nothing explains.
    pub impossible: Vec<i64>,
    /// Registers whose search was too large.
    pub given_up: usize,
    /// Reads of an old primary after its successor had begun, that only this explains.
    pub stale: usize,
}

impl Histories {
    /// Checks every register. Where nothing explains the answers, those of an old primary are left
    /// out: `deposed` says of a timeline from when until when reads of it may be stale.
    pub fn judge(&self, deposed: impl Fn(u32) -> Option<(Duration, Duration)>) -> Judgement {
        let mut judgement = Judgement::default();
        for (key, operations) in &self.0 {
            judgement.answered += operations.iter().filter(|op| op.ended.is_some()).count();
            match check(operations) {
                Answer::Linearizable => continue,
                Answer::GaveUp => judgement.given_up += 1,
                Answer::Impossible { .. } => {
                    let old = |op: &Operation| {
                        let window = deposed(op.timeline);
                        let in_window = |end: Duration| {
                            window.is_some_and(|(from, to)| end > from && end <= to)
                        };
                        matches!(op.call, Call::Read(_)) && op.ended.is_some_and(in_window)
                    };
                    let (old, rest): (Vec<_>, Vec<_>) = operations.iter().copied().partition(old);
                    match check(&rest) {
                        Answer::Linearizable => judgement.stale += old.len(),
                        Answer::GaveUp => judgement.given_up += 1,
                        Answer::Impossible { .. } => judgement.impossible.push(*key),
                    }
                }
            }
        }
        judgement
    }

    /// The calls of one register, for people.
    pub fn of(&self, key: i64) -> &[Operation] {
        self.0.get(&key).map(Vec::as_slice).unwrap_or_default()
    }
}

struct Slot {
    key: i64,
    calls: u32,
    open: u32,
    seen: Option<i64>,
}

struct Active {
    slots: Mutex<Vec<Slot>>,
    next_key: AtomicI64,
    next_value: AtomicI64,
}

impl Active {
    fn new(first: i64) -> Self {
        let slots = (first..first + REGISTERS).map(Slot::new);
        Self {
            slots: Mutex::new(slots.collect()),
            next_key: AtomicI64::new(first + REGISTERS),
            next_value: AtomicI64::new(1),
        }
    }

    fn plan(&self, reads_only: bool) -> (i64, Call) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let place = fastrand::usize(..slots.len());
        let Some(slot) = slots.get_mut(place) else {
            return (0, Call::Read(None));
        };
        slot.calls += 1;
        if slot.calls > CALLS || slot.open > OPEN {
            *slot = Slot::new(self.next_key.fetch_add(1, Ordering::Relaxed));
        }
        let to = || self.next_value.fetch_add(1, Ordering::Relaxed);
        let call = match (fastrand::u8(..10), slot.seen) {
            (0..=4, _) => Call::Read(None),
            _ if reads_only => Call::Read(None),
            (5..=7, Some(from)) => Call::Cas {
                from,
                to: to(),
                swapped: false,
            },
            _ => Call::Write(to()),
        };
        (slot.key, call)
    }

    fn learn(&self, key: i64, call: Call, answered: bool) {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) = slots.iter_mut().find(|slot| slot.key == key) else {
            return;
        };
        if !answered {
            slot.open += 1;
            return;
        }
        match call {
            Call::Read(Some(value)) | Call::Write(value) => slot.seen = Some(value),
            Call::Cas { to, swapped, .. } if swapped => slot.seen = Some(to),
            _ => {}
        }
    }
}

impl Slot {
    fn new(key: i64) -> Self {
        Self {
            key,
            calls: 0,
            open: 0,
            seen: None,
        }
    }
}

struct Session {
    port: u16,
    reads_only: bool,
    pace: Duration,
    active: Arc<Active>,
    notes: Arc<Notes<(i64, Operation)>>,
}

struct Open {
    client: Client,
    warned: Arc<AtomicBool>,
    read: Statement,
    write: Statement,
    swap: Statement,
}

impl Session {
    async fn run(self) {
        while self.notes.go_on() {
            if self.connected().await.is_err() {
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    async fn connected(&self) -> Result<()> {
        let (client, warned) = session::connect(self.port, CONNECT_LIMIT).await?;
        // A standby writes on no timeline: this ends here.
        let quiet = client.batch_execute("SET log_min_messages = 'fatal'");
        let quiet = tokio::time::timeout(STATEMENT_LIMIT, quiet).await;
        quiet.context("SET: no answer")?.context("SET")?;
        let timeline = session::timeline(&client).await?;
        let open = Open::prepare(client, warned).await?;
        while self.notes.go_on() {
            let (key, planned) = self.active.plan(self.reads_only);
            let began = boot_time();
            let (call, outcome) = open.ask(key, planned).await;
            let ended = (outcome == Known::Yes).then(boot_time);
            if outcome != Known::Nothing {
                self.active.learn(key, call, ended.is_some());
                let operation = Operation {
                    call,
                    began,
                    ended,
                    timeline,
                };
                self.notes.enter((key, operation));
            }
            if outcome != Known::Yes {
                bail!("the session broke");
            }
            tokio::time::sleep(self.pace).await;
        }
        Ok(())
    }
}

/// Whether a call took effect.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Known {
    /// As it says.
    Yes,
    /// It may have.
    Perhaps,
    /// It did not.
    Nothing,
}

impl Open {
    async fn prepare(client: Client, warned: Arc<AtomicBool>) -> Result<Self> {
        let read = format!("SELECT value FROM {TABLE} WHERE key = $1");
        let write = format!(
            "INSERT INTO {TABLE} VALUES ($1, $2) ON CONFLICT (key) DO UPDATE SET value = EXCLUDED.value"
        );
        let swap = format!("UPDATE {TABLE} SET value = $3 WHERE key = $1 AND value = $2");
        let prepared = async {
            let read = client.prepare(&read).await?;
            let write = client.prepare(&write).await?;
            anyhow::Ok((read, write, client.prepare(&swap).await?))
        };
        let prepared = tokio::time::timeout(STATEMENT_LIMIT, prepared).await;
        let (read, write, swap) = prepared.context("prepare: no answer")??;
        Ok(Self {
            client,
            warned,
            read,
            write,
            swap,
        })
    }

    /// The call with its answer.
    async fn ask(&self, key: i64, call: Call) -> (Call, Known) {
        let client = &self.client;
        let answer = async {
            Ok(match call {
                Call::Read(_) => {
                    let row = client.query_opt(&self.read, &[&key]).await?;
                    Call::Read(row.map(|row| row.get(0)))
                }
                Call::Write(to) => {
                    client.execute(&self.write, &[&key, &to]).await?;
                    call
                }
                Call::Cas { from, to, .. } => {
                    let rows = client.execute(&self.swap, &[&key, &from, &to]).await?;
                    let swapped = rows == 1;
                    Call::Cas { from, to, swapped }
                }
            })
        };
        let is_read = matches!(call, Call::Read(_));
        match tokio::time::timeout(STATEMENT_LIMIT, answer).await {
            Ok(Ok(answered)) if is_read || !self.warned.load(Ordering::SeqCst) => {
                (answered, Known::Yes)
            }
            Ok(Err(error)) if not_done(&error) => (call, Known::Nothing),
            _ if is_read => (call, Known::Nothing),
            _ => (call, Known::Perhaps),
        }
    }
}
