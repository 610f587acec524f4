//! The REST server: Patroni's interface, answered from the published snapshot (`rest-api.md`).
//!
//! ```text
//!  socket ─▶ listen ─▶ routes ─▶ access ─▶ read | config | jobs | handover ─▶ Answer ─▶ answer
//!            limits,   axum's    may the   what to say (rules: proto::rest)           headers,
//!            TLS       router    caller?                                              bytes
//! ```
//!
//! What it must not do: ask PostgreSQL, or judge. Health checks read [`Published`] and the clock and
//! wait for nothing, so neither a hung server nor a lost etcd can delay them. Only requests of
//! operators wait: for etcd, for peers, or for the member loop, each within a limit.
//!
//! axum routes, hyper serves the connections: `axum::serve` has no limits on slow and idle clients, and
//! cannot close a connection without an answer.

pub(crate) mod access;
mod answer;
mod config;
mod connections;
mod extract;
mod handover;
mod jobs;
mod listen;
mod openapi;
mod read;
mod routes;
mod shared;
mod store;

pub use listen::{RestError, RestHandle, serve};
pub use store::{Store, StoreFuture};

use crate::config::AgentConfig;
use crate::peers::Peers;
use crate::postgres::Copied;
use proto::core::observation::FailsafeCaller;
use proto::rest::{Published, RestartBody};
use std::sync::Arc;
use tokio::sync::{mpsc, oneshot, watch};

/// What the server needs from the agent.
#[derive(Clone)]
pub struct RestState {
    /// What all answers are made of.
    pub published: watch::Receiver<Arc<Published>>,
    /// To the member loop. Bounded: a request that finds it full is refused.
    pub requests: mpsc::Sender<RestRequest>,
    /// For `/config`, `/failover`, and reads that an operator waits for.
    pub etcd: Arc<dyn Store>,
    /// For the question whether a switchover is possible.
    pub peers: Peers,
    /// A new value, also an equal one, makes the server read its certificates again.
    pub config: watch::Receiver<Arc<AgentConfig>>,
    /// For `/garden/journal`.
    pub journal: crate::journal::JournalReader,
    /// For `/garden`.
    pub copied: Copied,
}

/// Where the member loop sends the status code and the text of its answer.
pub type ReplyTo = oneshot::Sender<(u16, String)>;

/// What only the member loop can do or decide. What can be refused from the published snapshot alone
/// has been refused before; the loop still checks what may have changed since.
#[derive(Debug)]
pub enum RestRequest {
    /// Read the configuration again.
    Reload,
    /// Restart PostgreSQL: now when the body has no schedule, and then the reply comes at the end.
    Restart {
        /// What was asked.
        body: RestartBody,
        /// Answered when it is done (200), scheduled (202), or refused.
        reply: ReplyTo,
    },
    /// Forget the scheduled restart.
    CancelScheduledRestart {
        /// 200, or 404 when there is none.
        reply: ReplyTo,
    },
    /// Throw the data directory away and clone.
    Reinitialize {
        /// Cancel what runs.
        force: bool,
        /// Copy from the leader.
        from_leader: bool,
        /// 200 as soon as it is under way.
        reply: ReplyTo,
    },
    /// A primary that lost etcd asks whether it may go on.
    Failsafe {
        /// Who asks.
        caller: FailsafeCaller,
        /// 200 with `Accepted`, or why not.
        reply: ReplyTo,
    },
    /// Something in etcd was changed here: look at once.
    Wake,
}
