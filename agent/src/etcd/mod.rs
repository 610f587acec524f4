//! The etcd driver: everything that the agent and gardenctl say to etcd, and nothing that judges.
//!
//! ```text
//!                    ┌──────────── Etcd (cheap clone) ───────────┐
//!   member loop ───▶ │ commit(Txn)   read()   delete_all()       │
//!        ▲           └──────┬────────────────────────┬───────────┘
//!        │                  │ own commits            │ keeper(): goals, progress
//!   EtcdEvent               ▼                        ▼
//!        ├─────────────── view ◀── watch          keeper thread: session, /leader, record
//!        └─────────────────────────────────────────┘
//! ```
//!
//! In reading order: [`error`] says which few answers are definite; `directory` and
//! `endpoints` choose the server;
//! `store` translates reads and transactions; `view` holds the watched snapshot and `watch` moves it on;
//! [`keeper`] with `session` and `record` keeps the leases; `outbox` carries the events.
//!
//! Must not: decide anything, resend a transaction whose outcome is unknown, or make the keeper wait.

mod directory;
mod endpoints;
pub mod error;
pub mod keeper;
mod outbox;
mod record;
mod session;
mod store;
mod tls;
mod view;
mod watch;

pub use error::EtcdError;
pub use keeper::Keeper;

use crate::config::EtcdConfig;
use crate::rest::Store;
use directory::Directory;
use endpoints::{ATTEMPT_LIMIT, Endpoints};
use outbox::Outbox;
use proto::config::Timing;
use proto::core::observation::{HeldRecord, Session};
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{Key, Keyspace, Snapshot, Txn};
use proto::ids::{Epoch, LeaseId};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};
use view::View;
use watch::Watcher;

/// Budget of [`Etcd::delete_all`].
const DELETE_LIMIT: Duration = Duration::from_secs(10);

/// The list of etcd members is read anew after this many TTLs (`dcs-layout.md` 9).
const REFRESH_TTLS: u32 = 10;

/// What the watch and the keeper report.
#[derive(Clone, Debug)]
pub enum EtcdEvent {
    /// The complete state, after a read, an event, or a commit of our own. The first one after a gap
    /// comes from a linearizable read. Later ones may be old news when this process was stopped for a
    /// while: only [`Self::Alive`] confirms.
    Snapshot(Arc<Snapshot>),
    /// The watch is lost: what was seen is history until the next [`Self::Snapshot`].
    Gap,
    /// A linearizable read, sent after the last of these, has shown that the snapshot is complete.
    /// About every 0.7 s.
    Alive,
    /// Nobody answers, and why. Repeated while it lasts.
    Unreachable(String),
    /// The endpoints belong to another etcd cluster, or (with equal numbers) its store went back (S23).
    /// The next snapshot shows the new world.
    OtherCluster {
        /// The cluster that was known.
        was: u64,
        /// The cluster that answers.
        is: u64,
    },
    /// From the keeper.
    Lease(LeaseEvent),
}

/// What the keeper reports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseEvent {
    /// The session was granted or kept alive.
    Session(Session),
    /// etcd does not know this session any more. Another one is being asked for.
    SessionLost(LeaseId),
    /// The record was renewed.
    Record(HeldRecord),
    /// Somebody else stands in the record, or nobody: we are deposed.
    RecordLost {
        /// The tenure that is over.
        epoch: Epoch,
        /// What stands there instead.
        why: String,
    },
    /// `/leader` does not hang on our session, though the goal says so. Repeated while it lasts.
    Refused(String),
}

/// A connection to etcd. Clones share it; when the last one is dropped, watch and keeper end.
#[derive(Clone)]
pub struct Etcd {
    inner: Arc<Inner>,
}

struct Inner {
    endpoints: Arc<Endpoints>,
    keyspace: Keyspace,
    view: Arc<View>,
    keeper: Keeper,
    _cancel: DropGuard,
}

impl Etcd {
    /// Starts the watch, on the runtime of the caller, and the keeper, on a thread of its own, with a
    /// session of length `timing.ttl()` as its first goal. Returns at once; whether etcd answers is
    /// told by events.
    ///
    /// # Errors
    /// Settings that can never work: no endpoint, files that cannot be read.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn connect(
        config: &EtcdConfig,
        keyspace: Keyspace,
        timing: Timing,
    ) -> Result<(Self, mpsc::Receiver<EtcdEvent>), EtcdError> {
        let (outbox, events) = Outbox::channel();
        let cancel = CancellationToken::new();
        let directory = Arc::new(Directory::new(config, keyspace.path(&Key::Leader))?);
        let view = Arc::new(View::new(outbox.clone()));
        let endpoints = Arc::new(Endpoints::new(directory.clone()));
        let keeper = Keeper::start(
            directory,
            keyspace.clone(),
            timing.ttl(),
            view.clone(),
            outbox.clone(),
            cancel.clone(),
        )?;
        let watcher = Watcher {
            endpoints: endpoints.clone(),
            keyspace: keyspace.clone(),
            view: view.clone(),
            outbox,
            refresh_every: timing.ttl() * REFRESH_TTLS,
        };
        tokio::spawn(watcher.run(cancel.clone()));
        let _cancel = cancel.drop_guard();
        Ok((
            Self {
                inner: Arc::new(Inner {
                    endpoints,
                    keyspace,
                    view,
                    keeper,
                    _cancel,
                }),
            },
            events,
        ))
    }

    /// A connection without watch and keeper, for gardenctl: reads and commits work, session leases do
    /// not.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn open(config: &EtcdConfig, keyspace: Keyspace) -> Result<Self, EtcdError> {
        let directory = Arc::new(Directory::new(config, keyspace.path(&Key::Leader))?);
        let inner = Inner {
            endpoints: Arc::new(Endpoints::new(directory)),
            keyspace,
            view: Arc::new(View::new(Outbox::nowhere())),
            keeper: Keeper::idle(),
            _cancel: CancellationToken::new().drop_guard(),
        };
        Ok(Self {
            inner: Arc::new(inner),
        })
    }

    /// Commits a transaction, within `limit`. It is sent once. A commit is folded into the watched
    /// snapshot before this returns.
    ///
    /// [`TxnOutcome::Unknown`] means what it says, unless its text begins with "not sent".
    pub async fn commit(&self, txn: &Txn, limit: Duration) -> TxnOutcome {
        let Inner {
            endpoints,
            keyspace,
            view,
            keeper,
            ..
        } = &*self.inner;
        let session = keeper.session_id();
        let outcome = store::commit(endpoints, keyspace, txn, session, limit).await;
        match &outcome {
            TxnOutcome::Committed(revision) => view.own(txn, session, *revision),
            TxnOutcome::LeaseGone => keeper.nudge(),
            TxnOutcome::Refused | TxnOutcome::Unknown(_) => {}
        }
        outcome
    }

    /// Reads everything, linearizably, on whichever endpoint answers within `limit`.
    ///
    /// # Errors
    /// None did, or it refused our credentials.
    pub async fn read(&self, limit: Duration) -> Result<Snapshot, EtcdError> {
        let Inner {
            endpoints,
            keyspace,
            ..
        } = &*self.inner;
        let ask = |client| store::range(client, keyspace.clone());
        match endpoints.repeat(limit, ATTEMPT_LIMIT.min(limit), ask).await {
            Ok((response, _)) => Ok(store::snapshot(&response, keyspace)),
            Err(fault) => Err(endpoints.error(limit, fault)),
        }
    }

    /// The watched snapshot with our own commits in it, while the watch stands.
    pub fn watched(&self) -> Option<Arc<Snapshot>> {
        self.inner.view.current()
    }

    /// Removes every key of the cluster (`patronictl remove`).
    ///
    /// # Errors
    /// No endpoint confirmed it in time; it may have happened.
    pub async fn delete_all(&self) -> Result<(), EtcdError> {
        let Inner {
            endpoints,
            keyspace,
            ..
        } = &*self.inner;
        let done = store::delete_all(endpoints, keyspace, DELETE_LIMIT).await;
        done.map_err(|fault| endpoints.error(DELETE_LIMIT, fault))
    }

    /// The keeper of leases. Without [`Self::connect`] it keeps nothing.
    pub fn keeper(&self) -> &Keeper {
        &self.inner.keeper
    }

    /// The endpoint in use.
    pub fn endpoint(&self) -> String {
        self.inner.endpoints.current().to_string()
    }
}

type Sending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// What requests of operators need. The driver implements it, so that REST does not know etcd.
impl Store for Etcd {
    fn commit<'a>(&'a self, txn: &'a Txn, limit: Duration) -> Sending<'a, TxnOutcome> {
        Box::pin(Self::commit(self, txn, limit))
    }

    fn read(&self, limit: Duration) -> Sending<'_, Option<Snapshot>> {
        Box::pin(async move { Self::read(self, limit).await.ok() })
    }
}
