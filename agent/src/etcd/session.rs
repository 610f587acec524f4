//! The session: the one etcd lease of this process, with `/members/<me>` on it and, for a leader,
//! `/leader` (`dcs-layout.md` 4). Kept alive on its own cadence, replaced when etcd has lost it or its
//! length shall change.

use super::LeaseEvent;
use super::endpoints::ATTEMPT_LIMIT;
use super::error::{Fault, classify};
use super::keeper::{COMPATIBLE_MARGIN, Tools, attempt_limit, rest};
use super::store;
use crate::clock;
use etcd_client::{
    Client, LeaseKeepAliveResponse, LeaseKeepAliveStream, LeaseKeeper, ResponseHeader,
};
use proto::core::decision::LeaseGoal;
use proto::core::observation::Session;
use proto::dcs::{Compare, Key, Txn};
use proto::ids::{Epoch, LeaseId};
use proto::time::MonoTime;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// Keepalives are a tenth of the granted length apart, within these bounds.
const BEAT_EVERY_MIN: Duration = Duration::from_millis(500);
const BEAT_EVERY_MAX: Duration = Duration::from_secs(3);

/// Budget of one round of asking for a new lease.
const GRANT_LIMIT: Duration = Duration::from_secs(3);

/// Pause after a round without an answer.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// "Lease not found" is asked for twice, this far apart: an etcd server that has just become leader may
/// not have applied the grant yet, and the answer has consequences.
const GONE_AGAIN: Duration = Duration::from_millis(50);

/// The lease that we have.
#[derive(Clone, Copy)]
struct Lease {
    session: Session,
    /// The length that was asked for.
    asked: Duration,
}

/// An open keepalive stream.
struct Stream {
    url: Arc<str>,
    lease: LeaseId,
    keeper: LeaseKeeper,
    answers: LeaseKeepAliveStream,
}

/// A keepalive that was answered.
struct Beat {
    url: Arc<str>,
    sent_at: MonoTime,
    /// The raft term in which it was answered.
    term: u64,
}

/// The loop.
pub(crate) struct SessionLoop {
    tools: Tools,
    changes: watch::Receiver<u64>,
    lease: Option<Lease>,
    stream: Option<Stream>,
    /// `/leader` has hung on this lease as far as the member loop knew, and may still do so in its eyes.
    led: bool,
}

fn ttl_of(goal: &LeaseGoal) -> Duration {
    match goal {
        LeaseGoal::Session { ttl } | LeaseGoal::Leader { ttl } | LeaseGoal::Record { ttl, .. } => {
            *ttl
        }
    }
}

fn leads(goal: &LeaseGoal) -> bool {
    matches!(goal, LeaseGoal::Leader { .. })
}

impl SessionLoop {
    /// Without a lease.
    pub(crate) fn new(tools: Tools) -> Self {
        let changes = tools.shared.changes();
        Self {
            tools,
            changes,
            lease: None,
            stream: None,
            led: false,
        }
    }

    /// Keeps the session until the future is dropped.
    pub(crate) async fn run(mut self) {
        loop {
            self.changes.mark_unchanged();
            let goal = self.tools.shared.goal();
            let pause = match self.lease {
                Some(lease) if lease.asked == ttl_of(&goal) => self.keep(lease, &goal).await,
                previous => self.grant(previous, ttl_of(&goal)).await,
            };
            self.tools.outbox.flush();
            rest(&mut self.changes, pause).await;
        }
    }

    /// Asks for a lease: the first one, one in place of a lost one, or one of another length. In the
    /// last case `/leader` moves along; the old lease is left to die, since the member key may still
    /// hang on it.
    async fn grant(&mut self, previous: Option<Lease>, ttl: Duration) -> Duration {
        let sent_at = clock::now();
        let seconds = i64::try_from(ttl.as_millis().div_ceil(1000))
            .unwrap_or(i64::MAX)
            .max(1);
        let ask = |mut client: Client| async move { client.lease_grant(seconds, None).await };
        let (granted, _) = match self
            .tools
            .endpoints
            .repeat(GRANT_LIMIT, ATTEMPT_LIMIT, ask)
            .await
        {
            Ok(granted) => granted,
            Err(fault) => {
                tracing::debug!(error = fault.text(), "no session could be had");
                return RETRY_PAUSE;
            }
        };
        let id = LeaseId(granted.id());
        // Use what was granted: etcd raises a small length without a word (`DESIGN.md`).
        let ttl_granted = Duration::from_secs(u64::try_from(granted.ttl()).unwrap_or(0));
        if let Some(previous) = previous {
            let moving = store::move_leader(&self.tools.keyspace, previous.session.id, id);
            let url = self.tools.endpoints.current();
            let limit = attempt_limit(ttl_granted);
            if let Err(fault) = self.tools.attempt(&url, limit, &moving).await {
                tracing::debug!(
                    error = fault.text(),
                    "/leader may hang on the previous session"
                );
            }
        }
        let session = Session {
            id,
            ttl: ttl_granted,
            sent_at,
        };
        self.lease = Some(Lease {
            session,
            asked: ttl,
        });
        self.stream = None;
        self.led = false;
        self.tools.shared.set_session(id);
        self.tools.tell(LeaseEvent::Session(session));
        // A leader confirms its key on the new lease at once.
        Duration::ZERO
    }

    /// One keepalive, and for a leader the proof that `/leader` is still its own. Without it the member loop
    /// hears of no keepalive: what it has seen of `/leader` may be old, and a server that the guardian has
    /// ended would be started again for a lease that counts for nothing (S2).
    async fn keep(&mut self, lease: Lease, goal: &LeaseGoal) -> Duration {
        // With a record in force nothing is read from `/leader`.
        let by_record = matches!(goal, LeaseGoal::Record { .. });
        self.led = !by_record && (self.led || leads(goal));
        let length = lease.session.ttl;
        let every = (length / 10).clamp(BEAT_EVERY_MIN, BEAT_EVERY_MAX);
        if leads(goal) && !self.tools.shared.progressing(length) {
            // `/leader` hangs on this lease: keeping it alive would keep a hung leader in office.
            return RETRY_PAUSE;
        }
        let limit = attempt_limit(length);
        let beat = match self.beat_somewhere(lease.session.id, limit).await {
            Ok(beat) => beat,
            Err(Fault::LeaseGone) => {
                self.lose(lease.session.id);
                return Duration::ZERO;
            }
            Err(fault) => {
                tracing::debug!(
                    error = fault.text(),
                    "the session's keepalive was not answered"
                );
                return RETRY_PAUSE;
            }
        };
        let session = Session {
            sent_at: beat.sent_at,
            ..lease.session
        };
        self.lease = Some(Lease { session, ..lease });
        if !self.led {
            self.tools.tell(LeaseEvent::Session(session));
            return every;
        }
        match self.leader_is_ours(&beat, session.id, limit).await {
            Ok(true) => {
                let deadline = session.sent_at + length.saturating_sub(COMPATIBLE_MARGIN);
                self.tools.shared.renewed(Epoch(0), deadline, leads);
                self.tools.tell(LeaseEvent::Session(session));
                every
            }
            Ok(false) if leads(goal) => {
                let why = format!("/leader does not hang on our lease {}", session.id);
                self.tools.tell(LeaseEvent::Refused(why));
                // The member loop may be about to put it there.
                BEAT_EVERY_MIN
            }
            Ok(false) => {
                // Leadership has run out meanwhile. On another lease no old news can bring it back.
                self.lose(session.id);
                Duration::ZERO
            }
            Err(fault) => {
                tracing::debug!(
                    error = fault.text(),
                    "whether /leader is ours was not answered"
                );
                RETRY_PAUSE
            }
        }
    }

    fn lose(&mut self, id: LeaseId) {
        self.lease = None;
        self.stream = None;
        self.tools.shared.set_session(LeaseId(0));
        self.tools.tell(LeaseEvent::SessionLost(id));
    }

    /// A keepalive on one endpoint after the other, each once.
    async fn beat_somewhere(&mut self, id: LeaseId, limit: Duration) -> Result<Beat, Fault> {
        let mut last = Fault::Away(String::from("there is no endpoint"));
        for _ in 0..self.tools.endpoints.urls().len() {
            match self.beat(id, limit).await {
                Err(Fault::LeaseGone) => {
                    tokio::time::sleep(GONE_AGAIN).await;
                    match self.beat(id, limit).await {
                        Err(fault @ Fault::Away(_)) => last = fault,
                        other => return other,
                    }
                }
                Err(fault) => last = fault,
                Ok(beat) => return Ok(beat),
            }
        }
        Err(last)
    }

    async fn beat(&mut self, id: LeaseId, limit: Duration) -> Result<Beat, Fault> {
        let endpoints = self.tools.endpoints.clone();
        let url = endpoints.current();
        let mut stream = match self.stream.take() {
            Some(stream) if stream.url == url && stream.lease == id => stream,
            _ => {
                // Streams do not say which cluster answers before it is too late.
                endpoints.prove(&url, limit).await?;
                let open = |mut client: Client| async move { client.lease_keep_alive(id.0).await };
                let (keeper, answers) = endpoints.attempt(&url, limit, &open).await?;
                Stream {
                    url: url.clone(),
                    lease: id,
                    keeper,
                    answers,
                }
            }
        };
        let sent_at = clock::now();
        let exchange = async {
            stream.keeper.keep_alive().await?;
            stream.answers.message().await
        };
        let answer: Result<LeaseKeepAliveResponse, Fault> = match timeout(limit, exchange).await {
            Ok(Ok(Some(answer))) if answer.ttl() <= 0 => return Err(Fault::LeaseGone),
            Ok(Ok(Some(answer))) => Ok(answer),
            Ok(Ok(None)) => Err(Fault::Away(format!("{url} ended the stream of keepalives"))),
            Ok(Err(err)) => Err(classify(&err)),
            Err(_) => Err(Fault::Away(format!(
                "{url} did not answer within {limit:?}"
            ))),
        };
        match answer {
            Ok(answer) => {
                let term = answer.header().map_or(0, ResponseHeader::raft_term);
                self.stream = Some(stream);
                Ok(Beat { url, sent_at, term })
            }
            Err(fault) => {
                endpoints.leave(&url);
                Err(fault)
            }
        }
    }

    /// Asks by a committed transaction. An etcd leader that was deposed without knowing it answers
    /// keepalives that count for nothing (etcd 15247); so the commit must go through the same server in
    /// the same raft term as the keepalive before it.
    async fn leader_is_ours(
        &self,
        beat: &Beat,
        id: LeaseId,
        limit: Duration,
    ) -> Result<bool, Fault> {
        let txn = Txn::when(vec![Compare::OnLease(Key::Leader, id)], Vec::new());
        let request = store::to_etcd(&txn, &self.tools.keyspace, id);
        let response = self.tools.attempt(&beat.url, limit, &request).await?;
        let term = response.header().map_or(0, ResponseHeader::raft_term);
        if response.succeeded() && term != beat.term {
            return Err(Fault::Away(String::from(
                "etcd changed its leader in between",
            )));
        }
        Ok(response.succeeded())
    }
}
