//! Who acknowledged when, asked of every member directly.
//!
//! HAProxy shows what well-behaved clients see. The question here is another one: does a server of the
//! past still acknowledge after its successor has begun? So sessions go straight to every member, care
//! about no role, and insert a row every few milliseconds; a standby refuses, a primary acknowledges, and
//! the timeline in the answer says of which tenure it was. All moments are of `CLOCK_BOOTTIME` of the one
//! machine on which all of this runs.

use crate::cluster::Cluster;
use crate::session::connect;
use crate::workload::{Ack, Ledger, TABLE};
use anyhow::{Context, Result, bail};
use nix::time::{ClockId, clock_gettime};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Sessions per member; they take turns.
const SESSIONS: u16 = 2;
/// A member is asked this often, by one of its sessions or another.
pub const EVERY: Duration = Duration::from_millis(20);
/// A session is ready within this time or is given up.
const CONNECT_LIMIT: Duration = Duration::from_millis(400);
/// Long: an acknowledgement that comes late is the very thing to see.
const STATEMENT_LIMIT: Duration = Duration::from_secs(40);

/// Now on the clock that no step and no suspend disturbs.
pub fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME);
    // Linux has this clock since 2.6.39.
    now.map(Duration::from).unwrap_or_default()
}

/// One acknowledgement by a member that was asked directly.
#[derive(Clone, Copy, Debug)]
pub struct DirectAck {
    /// Which member.
    pub member: usize,
    /// Timeline on which the row was written: a new primary begins a new one.
    pub timeline: u32,
    /// When the statement was sent.
    pub sent: Duration,
    /// When the acknowledgement arrived.
    pub at: Duration,
}

/// The running sessions.
#[derive(Debug)]
pub struct Probes {
    sessions: Vec<(Arc<Mutex<Shared>>, JoinHandle<()>)>,
    stop: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Shared {
    acks: Vec<DirectAck>,
    ledger: Ledger,
}

impl Probes {
    /// Starts the sessions; their rows are of the writers from `first` on.
    pub fn start(cluster: &Cluster, first: i32) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut sessions = Vec::new();
        let mut number = first;
        for (member, of) in cluster.members().iter().enumerate() {
            for turn in 0..SESSIONS {
                let shared = Arc::new(Mutex::new(Shared::default()));
                lock(&shared).ledger.writer = number;
                let session = Session {
                    member,
                    number,
                    port: of.postgres_port,
                    shared: shared.clone(),
                    stop: stop.clone(),
                };
                sessions.push((shared, tokio::spawn(session.run(EVERY * u32::from(turn)))));
                number += 1;
            }
        }
        Self { sessions, stop }
    }

    /// Acknowledgements so far.
    pub fn acks(&self) -> Vec<DirectAck> {
        let all = self.sessions.iter();
        all.flat_map(|(shared, _)| lock(shared).acks.clone())
            .collect()
    }

    /// How many acknowledgements this member gave since then.
    pub fn acked_since(&self, member: usize, since: Duration) -> usize {
        let count = |(shared, _): &(Arc<Mutex<Shared>>, JoinHandle<()>)| {
            let shared = lock(shared);
            let recent = shared.acks.iter().rev().take_while(|ack| ack.at > since);
            recent.filter(|ack| ack.member == member).count()
        };
        self.sessions.iter().map(count).sum()
    }

    /// Ends the sessions: all acknowledgements, and a ledger per session. A statement that is still
    /// waiting is of unknown outcome.
    pub async fn stop(mut self) -> (Vec<DirectAck>, Vec<Ledger>) {
        self.stop.store(true, Ordering::Relaxed);
        // Statements that can be answered are, and then the tasks have ended.
        tokio::time::sleep(2 * EVERY * u32::from(SESSIONS)).await;
        let (mut acks, mut ledgers) = (Vec::new(), Vec::new());
        for (shared, task) in &mut self.sessions {
            task.abort();
            // Aborted or ended, either way it writes no more.
            let _ = task.await;
            let mut shared = lock(shared);
            acks.append(&mut shared.acks);
            ledgers.push(std::mem::take(&mut shared.ledger));
        }
        acks.sort_by_key(|ack| ack.at);
        (acks, ledgers)
    }
}

impl Drop for Probes {
    fn drop(&mut self) {
        for (_, task) in &self.sessions {
            task.abort();
        }
    }
}

fn lock(shared: &Mutex<Shared>) -> std::sync::MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Session {
    member: usize,
    number: i32,
    port: u16,
    shared: Arc<Mutex<Shared>>,
    stop: Arc<AtomicBool>,
}

impl Session {
    async fn run(self, offset: Duration) {
        tokio::time::sleep(offset).await;
        let mut next = 1;
        while !self.stop.load(Ordering::Relaxed) {
            if let Err(error) = self.insert_while_connected(&mut next).await {
                let mut shared = lock(&self.shared);
                shared.ledger.not_sent += 1;
                shared.ledger.last_error = format!("{error:#}");
            }
            tokio::time::sleep(EVERY).await;
        }
    }

    async fn insert_while_connected(&self, next: &mut i64) -> Result<()> {
        let (client, warned) = connect(self.port, CONNECT_LIMIT).await?;
        // A standby refuses fifty times a second; its log is for other things.
        let quiet = client.batch_execute("SET log_min_messages = 'fatal'");
        let quiet = tokio::time::timeout(CONNECT_LIMIT, quiet).await;
        quiet.context("SET: no answer")?.context("SET")?;
        let statement = format!(
            "INSERT INTO {TABLE} (writer, seq) VALUES ($1, $2) \
             RETURNING substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)"
        );
        let prepared = tokio::time::timeout(CONNECT_LIMIT, client.prepare(&statement)).await;
        let prepared = prepared.context("prepare: no answer")?.context("prepare")?;
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let seq = *next;
            *next += 1;
            // Entered before it is sent: this task may be ended while it waits.
            lock(&self.shared).ledger.unknown.insert(seq);
            let (sent, sent_boot) = (Instant::now(), boot_time());
            let params: [&(dyn tokio_postgres::types::ToSql + Sync); 2] = [&self.number, &seq];
            let answer = client.query_one(&prepared, &params);
            let answer = tokio::time::timeout(STATEMENT_LIMIT, answer).await;
            let (at, at_boot) = (Instant::now(), boot_time());
            match answer.context("insert: no answer")? {
                Ok(row) if !warned.load(Ordering::SeqCst) => {
                    let timeline: &str = row.try_get(0).context("read the timeline")?;
                    let timeline =
                        u32::from_str_radix(timeline, 16).context("read the timeline")?;
                    let mut shared = lock(&self.shared);
                    shared.ledger.unknown.remove(&seq);
                    shared.ledger.acks.push(Ack {
                        seq,
                        sent,
                        at,
                        server: self.port,
                    });
                    shared.acks.push(DirectAck {
                        member: self.member,
                        timeline,
                        sent: sent_boot,
                        at: at_boot,
                    });
                }
                Ok(_) => bail!("the server warned that it did not wait for a standby"),
                Err(error) if refused(&error) => {
                    lock(&self.shared).ledger.unknown.remove(&seq);
                }
                Err(error) => return Err(error).context("insert"),
            }
            let turn = EVERY * u32::from(SESSIONS);
            tokio::time::sleep(turn.saturating_sub(begun.elapsed())).await;
        }
        Ok(())
    }
}

/// A standby's answer: nothing was written.
fn refused(error: &tokio_postgres::Error) -> bool {
    error.code() == Some(&tokio_postgres::error::SqlState::READ_ONLY_SQL_TRANSACTION)
}

/// How acknowledgements are counted that may have been under way when the network was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// No packet is held up: whatever arrives was acknowledged just before.
    Prompt,
    /// The kernel of a server that has died still sends what it had acknowledged, once the network is
    /// whole again. Only what was asked for after the new primary had begun is held against the old one.
    Late,
}

/// How long, at most, acknowledgements of an older timeline came after the first one of a newer one.
/// Zero is what is promised.
pub fn overlap(acks: &[DirectAck], delivery: Delivery) -> Duration {
    let mut first: BTreeMap<u32, Duration> = BTreeMap::new();
    for ack in acks {
        let begin = first.entry(ack.timeline).or_insert(ack.at);
        *begin = (*begin).min(ack.at);
    }
    let over = acks.iter().flat_map(|ack| {
        let newer = first.range(ack.timeline.saturating_add(1)..);
        let newer =
            newer.filter(move |(_, begin)| delivery == Delivery::Prompt || ack.sent > **begin);
        newer.map(move |(_, begin)| ack.at.saturating_sub(*begin))
    });
    over.max().unwrap_or_default()
}

/// Members that acknowledged on the same timeline: never more than one, or two members were promoted to
/// the same one.
pub fn shared_timelines(acks: &[DirectAck]) -> Vec<u32> {
    let mut by: BTreeMap<u32, usize> = BTreeMap::new();
    let mut shared = Vec::new();
    for ack in acks {
        if *by.entry(ack.timeline).or_insert(ack.member) != ack.member {
            shared.push(ack.timeline);
        }
    }
    shared.dedup();
    shared
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(member: usize, timeline: u32, at_ms: u64) -> DirectAck {
        let at = Duration::from_millis(at_ms);
        DirectAck {
            member,
            timeline,
            sent: at,
            at,
        }
    }

    #[test]
    fn overlap_is_from_the_first_of_the_new_to_the_last_of_the_old() {
        let clean = [ack(0, 1, 10), ack(0, 1, 20), ack(1, 2, 30)];
        let prompt = |acks: &[DirectAck]| overlap(acks, Delivery::Prompt);
        assert_eq!(prompt(&clean), Duration::ZERO);
        let mut split = [ack(0, 1, 10), ack(1, 2, 30), ack(0, 1, 45), ack(2, 3, 60)];
        assert_eq!(prompt(&split), Duration::from_millis(15));
        assert_eq!(overlap(&split, Delivery::Late), Duration::from_millis(15));
        split[2].sent = Duration::from_millis(29);
        assert_eq!(prompt(&split), Duration::from_millis(15));
        assert_eq!(overlap(&split, Delivery::Late), Duration::ZERO);
        assert_eq!(prompt(&[]), Duration::ZERO);
    }

    #[test]
    fn two_members_on_one_timeline_are_seen() {
        assert_eq!(
            shared_timelines(&[ack(0, 1, 1), ack(1, 2, 2)]),
            Vec::<u32>::new()
        );
        assert_eq!(shared_timelines(&[ack(0, 2, 1), ack(1, 2, 2)]), vec![2]);
    }
}
