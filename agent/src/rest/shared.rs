//! What all requests share: the agent's state as the server sees it, and who is calling.

use super::access::Allowlist;
use super::{RestRequest, RestState};
use crate::clock;
use crate::config::AgentConfig;
use proto::dcs::FailsafeRecord;
use proto::rest::Published;
use std::net::IpAddr;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

/// Who sent a request, as far as the connection tells. An extension of every request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    /// Source address; an IPv4 address that came in through an IPv6 socket is one again.
    pub(super) address: IpAddr,
    /// Through TLS.
    pub(super) secure: bool,
    /// With a certificate that passed verification.
    pub(super) certificate: bool,
}

/// What all connections share; axum's state of the handlers.
pub(super) struct Shared {
    /// From the agent.
    pub(super) state: RestState,
    allowlist: RwLock<Arc<Allowlist>>,
    failsafe: RwLock<Option<FailsafeRecord>>,
}

impl Shared {
    pub(super) fn new(state: RestState, allowlist: Allowlist) -> Self {
        let failsafe = state
            .published
            .borrow()
            .view
            .as_ref()
            .and_then(|v| v.failsafe.clone());
        Self {
            state,
            allowlist: RwLock::new(Arc::new(allowlist)),
            failsafe: RwLock::new(failsafe),
        }
    }

    /// The snapshot of this moment.
    pub(super) fn published(&self) -> Arc<Published> {
        self.state.published.borrow().as_of(clock::now())
    }

    /// The configuration of this moment.
    pub(super) fn config(&self) -> Arc<AgentConfig> {
        self.state.config.borrow().clone()
    }

    /// How long one exchange with etcd may take.
    pub(super) fn etcd_limit(&self) -> Duration {
        self.state
            .published
            .borrow()
            .settings
            .cluster
            .timing
            .retry_timeout()
    }

    /// Makes the member loop look at once. When its queue is full it is about to look anyway.
    pub(super) fn wake(&self) {
        let _ = self.state.requests.try_send(RestRequest::Wake);
    }

    /// The last `/failsafe` that was seen.
    pub(super) fn failsafe(&self) -> Option<FailsafeRecord> {
        self.failsafe
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Keeps `/failsafe` of a view, for the time when there is none.
    pub(super) fn remember(&self, published: &Published) {
        if let Some(view) = &published.view {
            let mut kept = self
                .failsafe
                .write()
                .unwrap_or_else(PoisonError::into_inner);
            if *kept != view.failsafe {
                kept.clone_from(&view.failsafe);
            }
        }
    }

    /// Takes over a new allowlist.
    pub(super) fn allow(&self, allowlist: Allowlist) {
        *self
            .allowlist
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(allowlist);
    }

    /// Who may send requests that change something.
    pub(super) fn allowlist(&self) -> Arc<Allowlist> {
        self.allowlist
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}
