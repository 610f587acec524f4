//! The driver task: takes orders, runs jobs and short tasks, reports.

use super::callbacks::Callbacks;
use super::context::PgContext;
use super::probe::{self, ProbeState};
use super::shared::{JobCx, JobError, ProcessSet, Shared, chain};
use super::stop::{self, Stop};
use super::{bootstrap, clone, connect, follow, lineage, pgdata, promise, promote, receiver};
use super::{rewind, slots, start, wipe};
use crate::clock;
use crate::guardian::{GuardianClient, GuardianEvent};
use proto::core::decision::{SlotPlan, WantedConf};
use proto::core::job::{Failure, Finished, Job, JobEnd, Upstream};
use proto::core::observation::{AppliedConf, Led, Lineage, LocalPostgres, Task, TaskResult};
use proto::ids::{Epoch, JobId, MemberName};
use serde_json::{Map, Value};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

/// Orders that may wait. The driver only starts work for each, so more mean that it has died.
const ORDERS_MAX: usize = 1024;

/// Events that may wait for the member loop; senders wait beyond it.
const EVENTS_MAX: usize = 256;

/// Time between two samples, unless the loop asks for another.
const SAMPLE_INTERVAL: Duration = Duration::from_secs(1);

/// The same while a job runs: its progress shows in the samples, and the loop acts on them.
const SAMPLE_INTERVAL_JOB: Duration = Duration::from_millis(50);

/// How long the end of a job or a task waits for a look at its effect; a server that does not answer
/// must not hold it back.
const FRESH_LIMIT: Duration = Duration::from_secs(1);

/// A checkpoint ordered for a rewind from here; it writes all that is dirty, throttled by nothing.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(600);

/// What the driver reports.
#[derive(Clone, Debug)]
pub enum PgEvent {
    /// A look at the local PostgreSQL. Every look is reported: that nothing has changed is news, too.
    Sample(Arc<LocalPostgres>),
    /// How far a job is, in its own words.
    JobPhase {
        /// Which job.
        id: JobId,
        /// For REST and people.
        phase: String,
    },
    /// A job ended.
    JobEnded(Finished),
    /// A short task ended.
    TaskEnded(Task, TaskResult),
    /// A leader told its lineage; `TaskEnded(Task::Lineage, …)` follows.
    Lineage(Lineage),
}

enum Order {
    Run { id: JobId, job: Job, bounded: bool },
    Cancel(JobId),
    Configure(WantedConf),
    Checkpoint,
    Slots(SlotPlan),
    Lineage(MemberName, Upstream),
    Promise(Epoch),
    Withdraw(Epoch),
    NoteWalEpoch(Epoch),
    NoteLed(Led),
    ClearMark,
    ResumeReplay,
    EndReceiver(Duration),
    Callback(String, String),
    SaveDynamic(Map<String, Value>),
}

/// The member loop's handle to the driver; all methods return at once. When the last clone is dropped,
/// the driver cancels its job and ends; PostgreSQL goes on.
#[derive(Clone)]
pub struct Postgres {
    orders: mpsc::Sender<Order>,
    shared: Arc<Shared>,
    pace: Arc<Pace>,
}

impl Postgres {
    /// Starts the driver. `guardian` must be attached; its events are to be handed to
    /// [`Self::guardian_event`].
    pub fn spawn(ctx: PgContext, guardian: GuardianClient) -> (Self, mpsc::Receiver<PgEvent>) {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (orders, inbox) = mpsc::channel(ORDERS_MAX);
        let known = guardian
            .postmaster()
            .map_or(ProcessSet::Unknown, ProcessSet::Alive);
        let shared = Arc::new(Shared {
            ctx,
            guardian,
            processes: watch::Sender::new(known),
            applied: watch::Sender::new(AppliedConf::default()),
            wanted: watch::Sender::new(None),
            lineage: watch::Sender::new(None),
            unproved: watch::Sender::default(),
            events,
            files: Mutex::new(()),
        });
        let pace = Arc::new(Pace::new());
        let stop = CancellationToken::new();
        tokio::spawn(sampler(shared.clone(), pace.clone(), stop.clone()));
        let driver = Driver {
            callbacks: Callbacks::spawn(&shared.ctx),
            shared: shared.clone(),
            pace: pace.clone(),
            running: None,
            advancing: None,
        };
        tokio::spawn(driver.run(inbox, stop));
        (
            Self {
                orders,
                shared,
                pace,
            },
            receiver,
        )
    }

    /// Runs a job; its end is [`PgEvent::JobEnded`]. While another one runs it fails at once. `bounded`: it was
    /// decided on while a deadline stood, and starts no primary without one.
    pub fn run(&self, id: JobId, job: Job, bounded: bool) {
        self.order(Order::Run { id, job, bounded });
    }

    /// Cancels the job with this id, if it still runs. It ends by itself soon after; a job that cannot be
    /// stopped where it is says how it ended.
    pub fn cancel(&self, id: JobId) {
        self.order(Order::Cancel(id));
    }

    /// Writes the configuration and reloads; [`Task::Configure`].
    pub fn configure(&self, wanted: WantedConf) {
        self.order(Order::Configure(wanted));
    }

    /// `CHECKPOINT`; [`Task::Checkpoint`].
    pub fn checkpoint(&self) {
        self.order(Order::Checkpoint);
    }

    /// Creates, advances and drops slots; [`Task::Slots`]. Copies of logical slots go on being advanced
    /// after its end, until the next job begins.
    pub fn slots(&self, plan: SlotPlan) {
        self.order(Order::Slots(plan));
    }

    /// Asks a leader for its lineage; [`PgEvent::Lineage`] and [`Task::Lineage`].
    pub fn lineage(&self, leader: MemberName, upstream: Upstream) {
        self.order(Order::Lineage(leader, upstream));
    }

    /// Stores a promise, cuts the stream and reads the frozen position; [`Task::Fence`] with
    /// [`TaskResult::Promised`].
    pub fn promise(&self, epoch: Epoch) {
        self.order(Order::Promise(epoch));
    }

    /// Forgets the promise on disk, after its key is deleted; [`Task::Fence`].
    pub fn withdraw(&self, epoch: Epoch) {
        self.order(Order::Withdraw(epoch));
    }

    /// Keeps the epoch of the received WAL on disk. It shows in the samples.
    pub fn note_wal_epoch(&self, epoch: Epoch) {
        self.order(Order::NoteWalEpoch(epoch));
    }

    /// Keeps on disk in which tenure this server leads. It shows in the samples.
    pub fn note_led(&self, led: Led) {
        self.order(Order::NoteLed(led));
    }

    /// Takes the mark away that a bootstrap leaves; [`Task::ClearMark`].
    pub fn clear_mark(&self) {
        self.order(Order::ClearMark);
    }

    /// Resumes replay that is paused. The effect shows in the samples.
    pub fn resume_replay(&self) {
        self.order(Order::ResumeReplay);
    }

    /// Ends a WAL receiver that has been connecting for as long as this.
    pub fn end_receiver(&self, limit: Duration) {
        self.order(Order::EndReceiver(limit));
    }

    /// Runs a callback script. None is run during a bootstrap. `on_reload` need not be ordered: the
    /// driver calls it after each reload of its own.
    pub fn callback(&self, event: impl Into<String>, role: impl Into<String>) {
        self.order(Order::Callback(event.into(), role.into()));
    }

    /// Stores the dynamic configuration in `patroni.dynamic.json`.
    pub fn save_dynamic(&self, dynamic: Map<String, Value>) {
        self.order(Order::SaveDynamic(dynamic));
    }

    /// Takes a sample now.
    pub fn probe_now(&self) {
        self.pace.ask();
    }

    /// Sets the time between two samples while no job runs.
    pub fn probe_every(&self, interval: Duration) {
        self.pace
            .wanted
            .send_if_modified(|now| std::mem::replace(now, interval) != interval);
    }

    /// Takes note of what the guardian says about processes, and wakes whoever waits for it.
    pub fn guardian_event(&self, event: &GuardianEvent) {
        let next = match event {
            // Until the guardian has seen nobody, somebody may be left.
            GuardianEvent::PostmasterExited { .. }
            | GuardianEvent::Orphans(_)
            | GuardianEvent::Lost => ProcessSet::Orphans,
            GuardianEvent::Empty | GuardianEvent::Fenced { .. } => ProcessSet::Empty,
            GuardianEvent::PostmasterFound(pid) => ProcessSet::Alive(*pid),
            GuardianEvent::Attached(hello) => hello
                .postmaster
                .map_or(ProcessSet::Unknown, ProcessSet::Alive),
            GuardianEvent::Armed(_)
            | GuardianEvent::Disarmed
            | GuardianEvent::Refused(_)
            | GuardianEvent::Silent
            | GuardianEvent::Back
            | GuardianEvent::Replaced => return,
        };
        let changed = self
            .shared
            .processes
            .send_if_modified(|set| std::mem::replace(set, next) != next);
        if changed {
            self.probe_now();
        }
    }

    fn order(&self, order: Order) {
        if self.orders.try_send(order).is_err() {
            tracing::error!("the PostgreSQL driver takes no orders");
        }
    }
}

/// When the sampler looks.
struct Pace {
    /// Between two looks, as the loop wants it.
    wanted: watch::Sender<Duration>,
    /// A job runs whose progress shows in the samples.
    job: watch::Sender<bool>,
    /// Counts the looks that were asked for.
    asked: watch::Sender<u64>,
    /// How many of these had been asked for when the last finished look began.
    served: watch::Sender<u64>,
}

impl Pace {
    fn new() -> Self {
        Self {
            wanted: watch::Sender::new(SAMPLE_INTERVAL),
            job: watch::Sender::new(false),
            asked: watch::Sender::new(0),
            served: watch::Sender::new(0),
        }
    }

    fn interval(&self) -> Duration {
        let wanted = *self.wanted.borrow();
        if *self.job.borrow() {
            wanted.min(SAMPLE_INTERVAL_JOB)
        } else {
            wanted
        }
    }

    /// Asks for a look now; returns its number.
    fn ask(&self) -> u64 {
        self.asked.send_modify(|n| *n = n.wrapping_add(1));
        *self.asked.borrow()
    }

    /// Waits until a look that began after this call has been reported. Ends of jobs and tasks are
    /// reported behind one, so that the loop never takes a decision from the end of a job and a
    /// picture from before it.
    async fn fresh(&self) {
        let number = self.ask();
        let mut served = self.served.subscribe();
        let seen = served.wait_for(|n| *n >= number);
        let _ = tokio::time::timeout(FRESH_LIMIT, seen).await;
    }
}

/// Looks, reports, waits. Ends with the driver.
async fn sampler(shared: Arc<Shared>, pace: Arc<Pace>, stop: CancellationToken) {
    let mut state = ProbeState::default();
    let (mut wanted, mut job) = (pace.wanted.subscribe(), pace.job.subscribe());
    let mut asked = pace.asked.subscribe();
    while !stop.is_cancelled() {
        let number = *asked.borrow_and_update();
        (state.postmaster, state.orphans) = match *shared.processes.borrow() {
            ProcessSet::Alive(pid) => (Some(pid), false),
            ProcessSet::Orphans => (None, true),
            ProcessSet::Empty | ProcessSet::Unknown => (None, false),
        };
        state.conf = shared.applied.borrow().clone();
        let sample = probe::sample(&shared.ctx, &mut state).await;
        if shared
            .events
            .send(PgEvent::Sample(Arc::new(sample)))
            .await
            .is_err()
        {
            return;
        }
        pace.served.send_replace(number);
        // All branches are cancel safe.
        tokio::select! {
            () = tokio::time::sleep(pace.interval()) => {}
            _ = asked.changed() => {}
            _ = wanted.changed() => {}
            _ = job.changed() => {}
            () = stop.cancelled() => {}
        }
    }
}

/// Whether a job waits for PostgreSQL to change its state, which the loop then wants to see soon. A
/// copy may take hours, and says nothing in the samples.
fn shows_in_samples(job: &Job) -> bool {
    match job {
        Job::StartPrimary { .. }
        | Job::StartStandby { .. }
        | Job::Stop { .. }
        | Job::Promote { .. }
        | Job::Restart { .. }
        | Job::CopySlots { .. }
        | Job::Follow { .. } => true,
        Job::Bootstrap
        | Job::Clone { .. }
        | Job::Reinitialize { .. }
        | Job::Rewind { .. }
        | Job::CrashRecovery
        | Job::RemoveData
        | Job::SetAside { .. } => false,
    }
}

struct Running {
    id: JobId,
    bootstrap: bool,
    cancel: CancellationToken,
}

/// Copies of logical slots that are being advanced.
struct Advancing {
    stop: CancellationToken,
    ended: tokio::task::JoinHandle<()>,
}

struct Driver {
    advancing: Option<Advancing>,
    shared: Arc<Shared>,
    pace: Arc<Pace>,
    callbacks: Callbacks,
    running: Option<Running>,
}

impl Driver {
    async fn run(mut self, mut orders: mpsc::Receiver<Order>, stop: CancellationToken) {
        let (ended_tx, mut ended) = mpsc::channel::<Finished>(1);
        loop {
            // Both branches are cancel safe.
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Run { id, job, bounded }) => self.start(id, job, bounded, &ended_tx).await,
                    Some(order) => self.carry_out(order),
                    None => break,
                },
                Some(finished) = ended.recv() => {
                    self.running = None;
                    self.pace.job.send_replace(false);
                    self.report(PgEvent::JobEnded(finished)).await;
                }
            }
        }
        if let Some(running) = &self.running {
            running.cancel.cancel();
        }
        stop.cancel();
    }

    async fn report(&self, event: PgEvent) {
        // The receiver is gone only when the agent ends.
        let _ = self.shared.events.send(event).await;
    }

    async fn start(&mut self, id: JobId, job: Job, bounded: bool, ended: &mpsc::Sender<Finished>) {
        if let Some(running) = &self.running {
            let why = format!("job {} still runs", running.id);
            let end = JobEnd::Failed(Failure::Other(why));
            self.report(PgEvent::JobEnded(Finished {
                id,
                job,
                at: clock::now(),
                end,
            }))
            .await;
            return;
        }
        if let Some(advancing) = self.advancing.take() {
            // A consumer that comes to a new primary must not find its slot in use.
            advancing.stop.cancel();
        }
        let cancel = CancellationToken::new();
        let bootstrap = matches!(job, Job::Bootstrap);
        self.running = Some(Running {
            id,
            bootstrap,
            cancel: cancel.clone(),
        });
        self.pace.job.send_replace(shows_in_samples(&job));
        tracing::info!(job = id.0, what = job.label(), "job started");
        let cx = JobCx {
            shared: self.shared.clone(),
            id,
            bounded,
            cancel,
        };
        let (ended, pace) = (ended.clone(), self.pace.clone());
        tokio::spawn(async move {
            let work = job.clone();
            // A task of its own, so that a panic is a failed job and not a lost one.
            let end = match tokio::spawn(async move { carry_out_job(&cx, &work).await }).await {
                Ok(Ok(end)) => end,
                Ok(Err(err)) => err.into(),
                Err(panic) => JobEnd::Failed(Failure::Other(chain(&panic))),
            };
            tracing::info!(job = id.0, what = job.label(), ?end, "job ended");
            let at = clock::now();
            pace.fresh().await;
            let _ = ended.send(Finished { id, job, at, end }).await;
        });
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            // Taken by the caller, which has the channel for its end.
            Order::Run { .. } => {}
            Order::Cancel(id) => {
                if let Some(running) = self.running.as_ref().filter(|running| running.id == id) {
                    running.cancel.cancel();
                }
            }
            Order::Configure(wanted) => {
                let callbacks = self.callbacks.clone();
                self.task(Task::Configure, move |shared| async move {
                    configure(&shared, wanted, &callbacks).await
                });
            }
            Order::Checkpoint => self.task(Task::Checkpoint, |shared| async move {
                done(stop::checkpoint(&shared, CHECKPOINT_LIMIT).await)
            }),
            Order::Slots(plan) => {
                self.advance_copies(&plan);
                self.task(Task::Slots, move |shared| async move {
                    let problems = slots::carry_out(&shared.ctx, &plan).await;
                    done(if problems.is_empty() {
                        Ok(())
                    } else {
                        Err(problems.join("; "))
                    })
                });
            }
            Order::Lineage(leader, upstream) => self.task(Task::Lineage, |shared| async move {
                done(ask_lineage(&shared, leader, &upstream).await)
            }),
            Order::Promise(epoch) => self.task(Task::Fence, move |shared| async move {
                match promise::give(&shared, epoch).await {
                    Ok(promise) => TaskResult::Promised(promise),
                    Err(why) => TaskResult::Failed(why),
                }
            }),
            Order::Withdraw(epoch) => self.task(Task::Fence, move |shared| async move {
                done(promise::withdraw(&shared, epoch).await)
            }),
            Order::NoteWalEpoch(epoch) => self
                .aside("note the WAL epoch", move |shared| async move {
                    promise::note_wal_epoch(&shared, epoch).await
                }),
            Order::NoteLed(led) => self.aside("note what it leads", move |shared| async move {
                promise::note_led(&shared, led).await
            }),
            Order::ClearMark => self.task(Task::ClearMark, |shared| async move {
                done(bootstrap::clear_mark(&shared.ctx).await)
            }),
            Order::ResumeReplay => self.aside("resume replay", |shared| async move {
                let client = connect::superuser(&shared.ctx)
                    .await
                    .map_err(|err| chain(&err))?;
                let sql = "SELECT pg_catalog.pg_wal_replay_resume()";
                client
                    .query_one(sql, &[])
                    .await
                    .map(drop)
                    .map_err(|err| chain(&err))
            }),
            Order::EndReceiver(limit) => self
                .aside("end a WAL receiver", move |shared| async move {
                    receiver::end_if_hanging(&shared.ctx, limit).await
                }),
            Order::Callback(event, role) => {
                if self
                    .running
                    .as_ref()
                    .is_some_and(|running| running.bootstrap)
                {
                    tracing::debug!(event, "no callback during a bootstrap");
                } else {
                    self.callbacks.call(&event, &role);
                }
            }
            Order::SaveDynamic(dynamic) => self.aside("save configuration", |shared| async move {
                let dir = shared.ctx.data_dir();
                let saved = pgdata::on_disk(move || pgdata::save_dynamic(&dir, &dynamic)).await;
                saved
                    .ok_or("the disk does not answer")?
                    .map_err(|err| chain(&err))
            }),
        }
    }

    /// Advancing decodes, which may take long after an outage: what is under way is left to end, and the
    /// next plan says what is left to do. No job waits for it.
    fn advance_copies(&mut self, plan: &SlotPlan) {
        let busy = self
            .advancing
            .as_ref()
            .is_some_and(|a| !a.ended.is_finished());
        if plan.advance_logical.is_empty() || busy || self.running.is_some() {
            return;
        }
        let (stop, shared) = (CancellationToken::new(), self.shared.clone());
        let (token, targets) = (stop.clone(), plan.advance_logical.clone());
        let ended =
            tokio::spawn(async move { slots::advance_copies(&shared.ctx, &targets, &token).await });
        self.advancing = Some(Advancing { stop, ended });
    }

    /// Runs a short task, has the sampler look at what it did, and reports its end.
    fn task<F>(&self, task: Task, work: impl FnOnce(Arc<Shared>) -> F + Send + 'static)
    where
        F: Future<Output = TaskResult> + Send + 'static,
    {
        let (shared, pace) = (self.shared.clone(), self.pace.clone());
        tokio::spawn(async move {
            let events = shared.events.clone();
            let result = match tokio::spawn(work(shared)).await {
                Ok(result) => result,
                Err(panic) => TaskResult::Failed(chain(&panic)),
            };
            if let TaskResult::Failed(error) = &result {
                tracing::warn!(?task, error, "task failed");
            }
            pace.fresh().await;
            let _ = events.send(PgEvent::TaskEnded(task, result)).await;
        });
    }

    /// The same for work that the loop does not wait for: its effect shows in the samples.
    fn aside<F>(&self, what: &'static str, work: impl FnOnce(Arc<Shared>) -> F + Send + 'static)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        let (work, pace) = (work(self.shared.clone()), self.pace.clone());
        tokio::spawn(async move {
            if let Err(error) = work.await {
                tracing::warn!(error, "failed to {what}");
            }
            pace.ask();
        });
    }
}

fn done(result: Result<(), String>) -> TaskResult {
    result.map_or_else(TaskResult::Failed, |()| TaskResult::Done)
}

async fn carry_out_job(cx: &JobCx, job: &Job) -> Result<JobEnd, JobError> {
    match job {
        Job::Bootstrap => bootstrap::run(cx).await,
        Job::Clone {
            source,
            follow,
            basebackup_only,
        } => clone::run(cx, source.as_ref(), follow, *basebackup_only).await,
        Job::Reinitialize {
            source,
            follow,
            basebackup_only,
            wish: _,
        } => clone::again(cx, source, follow, *basebackup_only).await,
        Job::StartPrimary { timeout } => start::primary(cx, *timeout).await,
        Job::StartStandby { follow, timeout } => start::standby(cx, follow, *timeout).await,
        Job::Stop {
            mode,
            checkpoint_first,
            timeout,
            why: _,
        } => {
            let stop = Stop {
                mode: *mode,
                checkpoint_first: *checkpoint_first,
                timeout: *timeout,
            };
            stop::run(cx, &stop).await
        }
        Job::Promote { epoch: _, above } => promote::run(cx, *above).await,
        Job::Restart {
            timeout,
            wish: _,
            follow,
        } => follow::again(cx, follow, *timeout).await,
        Job::Follow { follow } => follow::run(cx, follow).await,
        Job::CopySlots {
            slots,
            leader,
            follow,
            timeout,
        } => slots::copy(cx, slots, leader, follow, *timeout).await,
        Job::Rewind { source } => rewind::run(cx, source).await,
        Job::CrashRecovery => rewind::crash_recovery(cx).await.map(|()| JobEnd::Done),
        Job::RemoveData => wipe::data_dir(cx, &Upstream::None)
            .await
            .map(|()| JobEnd::Done),
        Job::SetAside { system } => bootstrap::abandon(cx, *system).await,
    }
}

async fn ask_lineage(shared: &Shared, leader: MemberName, from: &Upstream) -> Result<(), String> {
    let lineage = lineage::ask(&shared.ctx, leader, from)
        .await
        .map_err(|err| chain(&err))?;
    shared.lineage.send_replace(Some(lineage.clone()));
    let _ = shared.events.send(PgEvent::Lineage(lineage)).await;
    Ok(())
}

/// Brings the files to the wanted state and PostgreSQL to load them. Whether this is a standby is
/// decided by the signal file, not by the order: names may be set for a primary-to-be while it still
/// follows, and its stream must not break.
async fn configure(shared: &Shared, wanted: WantedConf, callbacks: &Callbacks) -> TaskResult {
    shared.wanted.send_replace(Some(wanted.clone()));
    let standby = pgdata::has_signal_file(&shared.ctx.data_dir());
    let upstream = shared.applied.borrow().upstream.clone();
    let state = shared.conf_ordered(wanted.clone(), standby, &upstream);
    let written = shared.write_conf(&state).await;
    if let Err(err) = written {
        return TaskResult::Failed(chain(&err));
    }
    if matches!(shared.process_set(), ProcessSet::Alive(_)) {
        if let Err(err) = start::reload(shared).await {
            return TaskResult::Failed(chain(&err));
        }
        let role = if wanted.as_primary {
            "primary"
        } else {
            "replica"
        };
        callbacks.call("on_reload", role);
    }
    shared.loaded(&state);
    TaskResult::Done
}
