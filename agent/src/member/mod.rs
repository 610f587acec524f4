//! The member loop: the one task that owns the state.
//!
//! ```text
//!  etcd, guardian, postgres, peers, REST, signals, timer
//!        │ events (facts)                                 ▲ orders
//!        ▼                                                │
//!   observe.rs ─▶ Observation ─▶ proto::core::decide ─▶ dispatch.rs
//!                                      └─▶ published snapshot, journal, log
//! ```
//!
//! It never waits for anything but its inputs: whatever takes time is a task that reports back, so the
//! loop goes round in well under a millisecond (L9), and the keeper of leases may take its progress
//! as a sign of life.

mod dispatch;
mod observe;
mod settings;
mod start;
mod wishes;

pub use start::run;

use crate::clock;
use crate::config::{AgentConfig, Loader, LocalConfig};
use crate::etcd::{Etcd, EtcdEvent};
use crate::guardian::client::{GuardianClient, GuardianEvent};
use crate::journal::Journal;
use crate::peers::Peers;
use crate::postgres::{PgEvent, Postgres};
use crate::rest::{ReplyTo, RestHandle, RestRequest};
use crate::telemetry::TelemetryGuard;
use proto::config::{ClusterConfig, Settings};
use proto::core::decision::LogLevel;
use proto::core::observation::{HeldRecord, PeerAnswer, Task, TaskResult};
use proto::core::{Decision, Memory, Observation, Reason};
use proto::dcs::LeaseRecord;
use proto::ids::{JobId, MemberName};
use proto::rest::Published;
use proto::time::{MonoTime, WallTime};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};

/// Short tasks that may report at once. They are one of a kind, so this is never full.
const DONE_MAX: usize = 64;

/// A sign of life of the watch older than this makes the view history (I4).
const CONFIRM_LIMIT: Duration = Duration::from_secs(3);

/// How long requests that are being answered may hold up the end.
const REST_STOP_LIMIT: Duration = Duration::from_secs(2);

/// What the guardian keeps for the agent after this one, so that an agent crash is not a failover.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    epoch: u64,
    length_ms: u64,
}

/// What a task reports when it ends.
struct Done {
    task: Task,
    result: TaskResult,
    /// Answers of peers, when they were asked.
    peers: Option<BTreeMap<MemberName, PeerAnswer>>,
    /// A record that this transaction wrote, and when it was sent.
    record: Option<(LeaseRecord, MonoTime)>,
}

impl Done {
    fn plain(task: Task, result: TaskResult) -> Self {
        Self {
            task,
            result,
            peers: None,
            record: None,
        }
    }
}

/// Where events come from.
struct Inputs {
    etcd: mpsc::Receiver<EtcdEvent>,
    guardian: mpsc::Receiver<GuardianEvent>,
    postgres: mpsc::Receiver<PgEvent>,
    rest: mpsc::Receiver<RestRequest>,
    done: mpsc::Receiver<Done>,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

/// One input.
enum Event {
    Etcd(EtcdEvent),
    Guardian(GuardianEvent),
    Postgres(PgEvent),
    Rest(RestRequest),
    Done(Done),
    Terminate,
    Reload,
    Tick,
}

impl Inputs {
    /// The next input, or [`Event::Tick`] when `wait` has passed. All branches are cancel-safe:
    /// channels and signals keep what was not taken. `None` when a driver is gone.
    async fn next(&mut self, wait: Duration) -> Option<Event> {
        tokio::select! {
            biased;
            event = self.guardian.recv() => event.map(Event::Guardian),
            event = self.etcd.recv() => event.map(Event::Etcd),
            _ = self.terminate.recv() => Some(Event::Terminate),
            _ = self.interrupt.recv() => Some(Event::Terminate),
            _ = self.hangup.recv() => Some(Event::Reload),
            event = self.done.recv() => event.map(Event::Done),
            event = self.postgres.recv() => event.map(Event::Postgres),
            event = self.rest.recv() => event.map(Event::Rest),
            () = tokio::time::sleep(wait) => Some(Event::Tick),
        }
    }
}

/// The member.
struct Member {
    observation: Observation,
    memory: Memory,
    settings: Arc<Settings>,

    loader: Loader,
    local: LocalConfig,
    config: watch::Sender<Arc<AgentConfig>>,
    cluster: watch::Sender<Arc<ClusterConfig>>,
    telemetry: Arc<TelemetryGuard>,

    etcd: Etcd,
    guardian: GuardianClient,
    /// The tenure that renewals are told to the guardian under.
    tenure_epoch: Arc<AtomicU64>,
    postgres: Postgres,
    peers: Peers,
    watchdog: crate::watchdog::Watchdog,
    rest: Option<RestHandle>,
    journal: Journal,
    published: watch::Sender<Arc<Published>>,
    done: mpsc::Sender<Done>,

    /// Last sign of life of the watch.
    alive_at: Option<MonoTime>,
    /// The next snapshot is the first after a gap, which confirms the view like a sign of life.
    gap: bool,
    last_seen: WallTime,
    next_job: u64,
    next_wish: u64,
    /// A transaction that would give us a record is under way, or its outcome is unknown.
    claimed: Option<(LeaseRecord, MonoTime)>,
    /// What the guardian told of the tenure of the agent before us.
    inherited: Option<HeldRecord>,
    /// When the revision of the record that stands was first seen.
    record_first_seen: proto::fence::Moment,
    restart_replies: BTreeMap<u64, ReplyTo>,
    /// A dynamic document that cannot be applied, complained about once.
    refused_dynamic: Option<Map<String, Value>>,
    /// Sentences about the configuration that were logged.
    noted: BTreeSet<String>,
    /// The last sentence that was logged: repeats are not.
    logged: String,
    exit: Option<(u8, String)>,
}

impl Member {
    async fn run(mut self, mut inputs: Inputs) -> u8 {
        let mut wake_at = clock::now();
        loop {
            let wait = clock::now().until(wake_at);
            let Some(event) = inputs.next(wait).await else {
                tracing::error!("a part of the agent ended unexpectedly");
                return 1;
            };
            let began = clock::now();
            self.take(event);
            let decision = self.decide(began);
            wake_at = decision.wake_at;
            self.act(decision);
            if let Some((code, why)) = self.exit.take() {
                return self.finish(code, &why).await;
            }
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Etcd(event) => self.etcd_event(event),
            Event::Guardian(event) => self.guardian_event(event),
            Event::Postgres(event) => self.postgres_event(event),
            Event::Rest(request) => self.rest_request(request),
            Event::Done(done) => self.task_done(done),
            Event::Terminate => {
                if !self.observation.wishes.shutdown {
                    tracing::info!("received a signal to terminate, shutting down");
                    crate::systemd::stopping();
                }
                self.observation.wishes.shutdown = true;
            }
            Event::Reload => self.reload(),
            Event::Tick => {}
        }
    }

    fn decide(&mut self, began: MonoTime) -> Decision {
        self.look(began);
        let (decision, memory) =
            proto::core::decide(&self.observation, &self.memory, &self.settings);
        self.record(&decision);
        self.memory = memory;
        self.etcd.keeper().progress();
        self.publish(&decision, began);
        decision
    }

    /// Every change of rule goes to the journal and the log, repeats do not.
    fn record(&mut self, decision: &Decision) {
        if decision.reason.rule() != self.memory.last_rule {
            self.journal
                .record(&self.observation, &self.memory, &self.settings, decision);
        }
        // A running job logs its own phases.
        let sentence = decision.reason.to_string();
        if sentence != self.logged && !matches!(decision.reason, Reason::JobRunning { .. }) {
            tracing::info!("{sentence}");
            self.logged = sentence;
        }
    }

    fn log(&self, level: LogLevel, text: &str) {
        match level {
            LogLevel::Debug => tracing::debug!("{text}"),
            LogLevel::Info => tracing::info!("{text}"),
            LogLevel::Warning => tracing::warn!("{text}"),
            LogLevel::Error => tracing::error!("{text}"),
            LogLevel::Critical => tracing::error!(critical = true, "{text}"),
        }
    }

    async fn finish(&mut self, code: u8, why: &str) -> u8 {
        if code == 0 {
            tracing::info!("{why}");
        } else {
            tracing::error!(critical = true, "{why}");
        }
        if let Some(rest) = self.rest.take() {
            rest.shutdown(REST_STOP_LIMIT).await;
        }
        self.watchdog.disable();
        if let Err(err) = self.guardian.leave() {
            tracing::debug!("the guardian was not told that we end: {err}");
        }
        self.journal.flush();
        code
    }
}

fn signals() -> std::io::Result<(Signal, Signal, Signal)> {
    Ok((
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::hangup())?,
    ))
}

fn job_id(counter: &mut u64) -> JobId {
    *counter = counter.wrapping_add(1);
    JobId(*counter)
}
