//! What a member publishes: REST, metrics and the member key are all rendered from [`Published`], and
//! from nothing else, so that no answer ever waits for PostgreSQL, etcd or a lock (`rest-api.md`).
//!
//! The rules of the interface live here, as plain functions over [`Published`]: which health check
//! answers 200 ([`health`]), what the documents hold ([`status`], [`cluster`], [`metrics`]), and what
//! may be asked for ([`requests`], [`handover`]). The server in the agent only moves bytes.

pub mod cluster;
#[cfg(test)]
mod fixture;
pub mod handover;
pub mod health;
pub mod json;
pub mod metrics;
pub mod requests;
pub mod size;
pub mod stamp;
pub mod status;

pub use cluster::cluster_document;
pub use handover::{HandoverKind, HandoverRequest};
pub use health::Query;
pub use requests::{Reply, RestartBody};
pub use status::{shown_role, shown_state, status_document};

use crate::config::Settings;
use crate::core::decision::LeaseGoal;
use crate::core::observation::{LocalPostgres, Sql, Wishes};
use crate::dcs::view::ClusterView;
use crate::dcs::{PgRole, PgState};
use crate::ids::{Epoch, SystemId};
use crate::time::{MonoTime, WallTime};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One published moment. The agent's loop replaces it whole; readers hold on to one as long as they
/// like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Published {
    /// When it was taken. Must be renewed at least every `ttl`: see [`Published::as_of`].
    pub at: MonoTime,
    /// The settings in force.
    pub settings: Arc<Settings>,
    /// The records of the cluster, when they are confirmed or were so less than `ttl` ago.
    pub view: Option<Arc<ClusterView>>,
    /// Wall-clock time of the last confirmation of the view; zero before the first.
    pub dcs_last_seen: WallTime,
    /// The local PostgreSQL.
    pub postgres: Arc<LocalPostgres>,
    /// `state` as members and clients are told.
    pub state: PgState,
    /// `role` as members and clients are told.
    pub role: PgRole,
    /// We hold the lock until this moment. Compared with the clock when an answer is written (S16).
    pub leader_until: Option<MonoTime>,
    /// Primary endpoints answer 503 although we hold the lock: what was recovered is not on a quorum
    /// yet (S9), or we can neither renew nor commit.
    pub hold_back: Option<String>,
    /// Maintenance mode.
    pub paused: bool,
    /// Failsafe mode keeps us, or the member that asked us, going.
    pub failsafe_active: bool,
    /// A watchdog is required and unusable.
    pub watchdog_failed: bool,
    /// The highest epoch that we know of.
    pub epoch: Epoch,
    /// What operators asked for.
    pub wishes: Wishes,
    /// The job under way, as REST names it.
    pub job: Option<String>,
    /// The cluster's identifier.
    pub system_id: Option<SystemId>,
    /// When the next cycle is due, for `/liveness`.
    pub next_run: MonoTime,
    /// The rule of the last decision.
    pub rule: String,
    /// Its sentence.
    pub reason: String,
    /// How leadership is held.
    pub goal: Option<LeaseGoal>,
    /// Duration of the last cycle in microseconds.
    pub cycle_micros: u64,
}

impl Published {
    /// Before the first decision: nothing is known, nobody leads here.
    pub fn starting(settings: Arc<Settings>, at: MonoTime) -> Self {
        Self {
            at,
            settings,
            view: None,
            dcs_last_seen: WallTime::default(),
            postgres: Arc::default(),
            state: PgState::Stopped,
            role: PgRole::Uninitialized,
            leader_until: None,
            hold_back: None,
            paused: false,
            failsafe_active: false,
            watchdog_failed: false,
            epoch: Epoch::default(),
            wishes: Wishes::default(),
            job: None,
            system_id: None,
            next_run: at,
            rule: String::new(),
            reason: String::new(),
            goal: None,
            cycle_micros: 0,
        }
    }

    /// Whether we hold the lock at `now`. Time alone decides, so that a loop that stands still cannot
    /// keep `/primary` at 200 beyond the lease (S16).
    pub fn holds_lock(&self, now: MonoTime) -> bool {
        self.leader_until.is_some_and(|until| now < until)
    }

    /// What of this is still worth saying at `now`. The loop publishes with every cycle, so a snapshot
    /// older than `ttl` means that it stands still: then neither the view nor the last answer of
    /// PostgreSQL is news, and a member that cannot decide must not look fit. The lock has its own
    /// deadline and stays as it is.
    pub fn as_of(self: &Arc<Self>, now: MonoTime) -> Arc<Self> {
        if now.since(self.at) < self.settings.cluster.timing.ttl() {
            return self.clone();
        }
        let mut aged = Self::clone(self);
        aged.view = None;
        Arc::make_mut(&mut aged.postgres).sql = Sql::None;
        Arc::new(aged)
    }
}
