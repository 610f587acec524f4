//! The keeper of leases: a thread with its own runtime and its own connections, so that nothing the
//! rest of the agent waits for can cost a lease.
//!
//! It is told *what* to hold ([`LeaseGoal`], level-triggered) and does the rest on its own cadence. But
//! it renews leadership only while the member loop makes progress: a loop that hangs for good must lose
//! its lease although this thread is well (`DESIGN.md`, "Isolated renewal, bound by progress").
//!
//! The session (the etcd lease of this process) and the record are kept by two independent loops: a
//! session that etcd has lost must not delay the record, which is what counts in a native cluster.

use super::LeaseEvent;
use super::directory::Directory;
use super::endpoints::Endpoints;
use super::error::{EtcdError, Fault};
use super::outbox::Outbox;
use super::record::{Renewal, Resolved, Terms};
use super::session::SessionLoop;
use super::store;
use super::view::View;
use super::{EtcdEvent, endpoints};
use crate::clock;
use etcd_client::{Client, TxnResponse};
use proto::core::decision::LeaseGoal;
use proto::core::observation::HeldRecord;
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{Key, Keyspace, LeaseRecord, Txn};
use proto::ids::{Epoch, LeaseId};
use proto::time::MonoTime;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Leadership is not renewed when the member loop has made no progress for a third of the lease, but at
/// least for this long: the loop is woken by the watch about once a second even when nothing happens.
pub const PROGRESS_LIMIT_MIN: Duration = Duration::from_secs(2);

/// Under a compatible lease the guardian must be done before etcd lets another take `/leader`: it
/// fences this long before the etcd lease can end. Half a second for the fencing itself (`safety.md` 2,
/// F) and half a second for clocks that run apart.
pub const COMPATIBLE_MARGIN: Duration = Duration::from_secs(1);

/// Pause after no endpoint answered, and between looks at a member loop without progress.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Called right after a successful renewal: the tenure (zero under a compatible lease) and the deadline
/// that it earned.
pub type OnRenewed = dyn Fn(Epoch, MonoTime) + Send + Sync;

/// The handle of the keeper. Its methods never block and may be called from any thread.
pub struct Keeper {
    shared: Arc<Shared>,
}

/// What the handle and the thread share.
pub(crate) struct Shared {
    orders: Mutex<Orders>,
    /// Counts changes of the orders, and nudges.
    changes: watch::Sender<u64>,
    /// The last progress of the member loop, in the numbers of [`MonoTime`].
    progress: AtomicU64,
    /// The id of the session; zero for none.
    session: AtomicI64,
}

struct Orders {
    goal: LeaseGoal,
    adopted: Option<(LeaseRecord, HeldRecord)>,
    on_renewed: Option<Arc<OnRenewed>>,
}

impl Keeper {
    /// A keeper that keeps nothing, for connections that only read and commit.
    pub(crate) fn idle() -> Self {
        Self {
            shared: Arc::new(Shared::new(Duration::ZERO)),
        }
    }

    /// Starts the thread. Its first goal is a session of length `ttl`. It ends with `cancel`.
    pub(crate) fn start(
        directory: Arc<Directory>,
        keyspace: Keyspace,
        ttl: Duration,
        view: Arc<View>,
        outbox: Outbox,
        cancel: CancellationToken,
    ) -> Result<Self, EtcdError> {
        let shared = Arc::new(Shared::new(ttl));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(EtcdError::Keeper)?;
        let tools = Tools {
            endpoints: Arc::new(Endpoints::new(directory)),
            shared: shared.clone(),
            keyspace,
            view,
            outbox,
        };
        let work = move || {
            runtime.block_on(async {
                tokio::select! {
                    () = cancel.cancelled() => {}
                    () = SessionLoop::new(tools.clone()).run() => {}
                    () = RecordLoop::new(tools.clone()).run() => {}
                }
            });
        };
        std::thread::Builder::new()
            .name(String::from("lease-keeper"))
            .spawn(work)
            .map_err(EtcdError::Keeper)?;
        Ok(Self { shared })
    }

    /// What to hold from now on. Takes effect at once: an attempt under way for another goal is
    /// abandoned, and earns no deadline any more.
    pub fn set(&self, goal: LeaseGoal) {
        let mut orders = self.shared.orders();
        if orders.goal != goal {
            orders.goal = goal;
            drop(orders);
            self.nudge();
        }
    }

    /// The member loop is alive. To be called at least every second; see [`PROGRESS_LIMIT_MIN`].
    pub fn progress(&self) {
        self.shared
            .progress
            .store(clock::now().0, Ordering::Release);
    }

    /// Whom to tell of each renewal, on the keeper's thread: it must not block.
    pub fn on_renewed(&self, hook: Box<OnRenewed>) {
        self.shared.orders().on_renewed = Some(Arc::from(hook));
    }

    /// Renews this record from here, once a goal asks for its epoch: it was won by a transaction of the
    /// member loop, or held by the agent that ran before this one.
    pub fn adopt_record(&self, record: LeaseRecord, held: HeldRecord) {
        self.shared.orders().adopted = Some((record, held));
        self.nudge();
    }

    /// The session's id; zero when there is none.
    pub fn session_id(&self) -> LeaseId {
        LeaseId(self.shared.session.load(Ordering::Acquire))
    }

    /// Has the session checked at once.
    pub(crate) fn nudge(&self) {
        self.shared.nudge();
    }
}

impl Shared {
    fn new(ttl: Duration) -> Self {
        let goal = LeaseGoal::Session { ttl };
        Self {
            orders: Mutex::new(Orders {
                goal,
                adopted: None,
                on_renewed: None,
            }),
            changes: watch::Sender::new(0),
            progress: AtomicU64::new(clock::now().0),
            session: AtomicI64::new(0),
        }
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn nudge(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    pub(crate) fn goal(&self) -> LeaseGoal {
        self.orders().goal.clone()
    }

    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    pub(crate) fn set_session(&self, id: LeaseId) {
        self.session.store(id.0, Ordering::Release);
    }

    /// Whether the member loop has made progress lately enough to renew a lease of this length.
    pub(crate) fn progressing(&self, length: Duration) -> bool {
        let at = MonoTime(self.progress.load(Ordering::Acquire));
        clock::now().since(at) <= (length / 3).max(PROGRESS_LIMIT_MIN)
    }

    /// Hands a deadline to the guardian, when `goal` still wants it and it lies ahead.
    pub(crate) fn renewed(
        &self,
        epoch: Epoch,
        deadline: MonoTime,
        goal: impl Fn(&LeaseGoal) -> bool,
    ) {
        let orders = self.orders();
        let hook = orders.on_renewed.clone().filter(|_| goal(&orders.goal));
        drop(orders);
        if let Some(hook) = hook.filter(|_| deadline > clock::now()) {
            hook(epoch, deadline);
        }
    }
}

/// How long one endpoint may take for one renewal, so that a frozen one does not eat the lease.
pub(crate) fn attempt_limit(length: Duration) -> Duration {
    (length / 6).min(endpoints::ATTEMPT_LIMIT)
}

/// What both loops work with.
#[derive(Clone)]
pub(crate) struct Tools {
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) keyspace: Keyspace,
    pub(crate) view: Arc<View>,
    pub(crate) outbox: Outbox,
}

impl Tools {
    /// Tells the member loop.
    pub(crate) fn tell(&self, event: LeaseEvent) {
        self.outbox.send(EtcdEvent::Lease(event));
    }

    /// One attempt of a transaction on one endpoint.
    pub(crate) async fn attempt(
        &self,
        url: &Arc<str>,
        limit: Duration,
        txn: &etcd_client::Txn,
    ) -> Result<TxnResponse, Fault> {
        let send = |mut client: Client| {
            let request = txn.clone();
            async move { client.txn(request).await }
        };
        self.endpoints.attempt(url, limit, &send).await
    }
}

/// Waits for new orders, or for `pause`.
pub(crate) async fn rest(changes: &mut watch::Receiver<u64>, pause: Duration) {
    // The sender lives in `Shared`, which we hold; and a timeout is as good as a change.
    let _ = tokio::time::timeout(pause, changes.changed()).await;
}

/// Renews the record. See [`super::record`] for the rules.
struct RecordLoop {
    tools: Tools,
    changes: watch::Receiver<u64>,
    renewal: Option<Renewal>,
    /// A session that etcd did not know: `/leader` waits for the next one.
    dead_session: LeaseId,
    /// The last attempt was refused although the record is ours: the next one leaves `/leader` alone.
    leader_moved: bool,
    /// Attempts without an answer since the last one.
    silent: usize,
}

impl RecordLoop {
    fn new(tools: Tools) -> Self {
        let changes = tools.shared.changes();
        Self {
            tools,
            changes,
            renewal: None,
            dead_session: LeaseId(0),
            leader_moved: false,
            silent: 0,
        }
    }

    async fn run(mut self) {
        loop {
            let pause = self.step().await;
            if !pause.is_zero() {
                rest(&mut self.changes, pause).await;
            }
        }
    }

    /// The terms of the goal, when they are for the record that we have.
    fn terms(&mut self) -> Option<Terms> {
        self.changes.mark_unchanged();
        let mut orders = self.tools.shared.orders();
        let terms = Terms::of(&orders.goal);
        if let Some((record, held)) = orders.adopted.take() {
            self.renewal = Some(Renewal::adopt(record, held));
        }
        let renewal = self.renewal.as_ref()?;
        terms.filter(|terms| terms.epoch == renewal.epoch())
    }

    /// One attempt, when one is due. Returns how long to rest.
    async fn step(&mut self) -> Duration {
        /// Orders wake us; this only bounds the sleep.
        const IDLE: Duration = Duration::from_secs(60);
        let Some(terms) = self.terms() else {
            return IDLE;
        };
        let Some(renewal) = self.renewal.as_mut() else {
            return IDLE;
        };
        if !self.tools.shared.progressing(terms.length) {
            return RETRY_PAUSE;
        }
        let now = clock::now();
        let early = now.until(renewal.due(terms.every));
        if !early.is_zero() {
            return early;
        }
        let session = LeaseId(self.tools.shared.session.load(Ordering::Acquire));
        let with_leader = session.0 != 0
            && session != self.dead_session
            && !std::mem::take(&mut self.leader_moved);
        let leader = with_leader.then(|| self.tools.view.leader_beside(renewal.owner()));
        let (written, txn) = renewal.attempt(&terms, now, leader.flatten());
        let request = store::to_etcd(&txn, &self.tools.keyspace, session);
        let limit = attempt_limit(terms.length);
        let url = self.tools.endpoints.current();
        let mut changes = self.tools.shared.changes();
        let sent = tokio::select! {
            sent = self.tools.attempt(&url, limit, &request) => sent,
            // The outcome stays unknown, as after a timeout; the next attempt finds out.
            () = goal_left(&self.tools.shared, &mut changes, terms.epoch) => return IDLE,
        };
        match sent {
            Ok(response) => {
                self.answered(&terms, written, &txn, session, &response, limit)
                    .await
            }
            Err(Fault::LeaseGone) => {
                self.dead_session = session;
                self.tools.shared.nudge();
                Duration::ZERO
            }
            Err(fault) => self.unanswered(&fault),
        }
    }

    async fn answered(
        &mut self,
        terms: &Terms,
        written: LeaseRecord,
        txn: &Txn,
        session: LeaseId,
        response: &TxnResponse,
        limit: Duration,
    ) -> Duration {
        self.silent = 0;
        let Some(renewal) = self.renewal.as_mut() else {
            return Duration::ZERO;
        };
        match store::outcome(response) {
            TxnOutcome::Committed(revision) => {
                let held = renewal.committed(written, revision);
                self.earned(terms.epoch, held);
                self.tools.view.own(txn, session, revision);
                Duration::ZERO
            }
            TxnOutcome::Refused => {
                let Tools {
                    endpoints,
                    keyspace,
                    ..
                } = &self.tools;
                match store::read_key(endpoints, keyspace, &Key::Record, limit).await {
                    Ok(found) => self.refused(terms, found.as_ref()),
                    Err(fault) => self.unanswered(&fault),
                }
            }
            TxnOutcome::LeaseGone | TxnOutcome::Unknown(_) => RETRY_PAUSE,
        }
    }

    fn refused(&mut self, terms: &Terms, found: Option<&proto::dcs::Entry>) -> Duration {
        let Some(renewal) = self.renewal.as_mut() else {
            return Duration::ZERO;
        };
        match renewal.resolve(found) {
            Resolved::Renewed(held) => {
                self.earned(terms.epoch, held);
                Duration::ZERO
            }
            Resolved::Again => {
                self.leader_moved = true;
                RETRY_PAUSE
            }
            Resolved::Lost(why) => {
                self.renewal = None;
                self.tools.tell(LeaseEvent::RecordLost {
                    epoch: terms.epoch,
                    why,
                });
                Duration::ZERO
            }
        }
    }

    /// Committed: first the guardian, then the member loop.
    fn earned(&self, epoch: Epoch, held: HeldRecord) {
        let wanted =
            |goal: &LeaseGoal| matches!(goal, LeaseGoal::Record { epoch: e, .. } if *e == epoch);
        self.tools
            .shared
            .renewed(epoch, held.sent_at + held.length, wanted);
        self.tools.tell(LeaseEvent::Record(held));
    }

    /// Unknown: the same again on the next endpoint, at once; a breath after each round.
    fn unanswered(&mut self, fault: &Fault) -> Duration {
        self.silent += 1;
        tracing::debug!(
            error = fault.text(),
            "the renewal of the record was not answered"
        );
        let round = self.tools.endpoints.urls().len().max(1);
        if self.silent.is_multiple_of(round) {
            RETRY_PAUSE
        } else {
            Duration::ZERO
        }
    }
}

/// Returns when no record of this epoch is wanted any more.
async fn goal_left(shared: &Shared, changes: &mut watch::Receiver<u64>, epoch: Epoch) {
    loop {
        let wanted = Terms::of(&shared.goal()).is_some_and(|terms| terms.epoch == epoch);
        if !wanted || changes.changed().await.is_err() {
            return;
        }
    }
}
