//! The watch: one linearizable read, then everything that happens from the next revision on.
//!
//! ```text
//!   list ──▶ watch ──▶ Snapshot, Snapshot, …          Gap ◀── broken, cancelled, compacted,
//!    ▲                 Alive (each CHECK_EVERY)        │       starved, endpoint dead
//!    └─────────────────────────────────────────────────┘
//! ```
//!
//! A watch that is silent may be quiet or dead, and etcd's own progress messages may run ahead of
//! events that are still to come (etcd 15220, fixed in 3.4.25 and 3.5.8). So a check asks the same
//! server, by a linearizable read of one key's header, how far the watch should be; only when it is
//! there the view counts as confirmed ([`EtcdEvent::Alive`]).

use super::EtcdEvent;
use super::endpoints::{ATTEMPT_LIMIT, Endpoints};
use super::error::{Fault, classify};
use super::outbox::Outbox;
use super::store::{self, Milestone};
use super::view::{Change, View};
use crate::clock;
use etcd_client::{Client, ResponseHeader, WatchOptions, WatchResponse, WatchStream};
use proto::dcs::{Keyspace, Snapshot};
use proto::ids::Revision;
use proto::time::MonoTime;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

/// Time between two checks of a quiet watch. With [`ATTEMPT_LIMIT`] it bounds the age of a confirmed
/// view to about 1.7 s.
const CHECK_EVERY: Duration = Duration::from_millis(700);

/// The watch was not yet where it should be: look again soon.
const CHECK_AGAIN: Duration = Duration::from_millis(100);

/// A watch that stays behind for so long is starved and replaced.
const STARVED_AFTER: Duration = Duration::from_secs(3);

/// Budget of the first read and of opening the watch, before we tell that etcd is unreachable.
const LIST_LIMIT: Duration = Duration::from_secs(3);

/// Pause between two rounds of trying to read.
const LIST_PAUSE: Duration = Duration::from_millis(200);

/// Pause after the list of etcd members could not be read.
const DISCOVER_AGAIN: Duration = Duration::from_secs(5);

/// Answers older than what the watch has seen: one is a stale read (etcd 20418), so many in a row mean
/// that the store went back (S23).
const BACKWARD_READS_MAX: u32 = 3;

/// All that the task needs.
pub(crate) struct Watcher {
    pub(crate) endpoints: Arc<Endpoints>,
    pub(crate) keyspace: Keyspace,
    pub(crate) view: Arc<View>,
    pub(crate) outbox: Outbox,
    /// How often the list of etcd members is refreshed (`dcs-layout.md` 9: ten times the TTL).
    pub(crate) refresh_every: Duration,
}

/// Why one life of the watch ended.
struct Lost(String);

/// What a check found.
enum Checked {
    /// A linearizable read says so.
    Reached(Milestone, Revision),
    /// Our endpoint does not answer while another does.
    EndpointDead(String),
    /// Nobody answers: an election, or a partition. The stream may well survive it.
    NobodyAnswers(String),
}

impl Watcher {
    /// Watches until cancelled.
    pub(crate) async fn run(self, cancel: CancellationToken) {
        let watching = async {
            let mut backward = 0;
            loop {
                let Lost(why) = self.one_life(&mut backward).await;
                self.view.gap();
                self.outbox.flush();
                tracing::debug!(why, "the watch ended");
            }
        };
        tokio::select! {
            () = cancel.cancelled() => {}
            () = watching => {}
            () = self.discover() => {}
        }
    }

    /// Asks for etcd's members now and then. Without an answer the list stays as it is.
    async fn discover(&self) {
        if self.endpoints.directory.use_proxies {
            return std::future::pending().await;
        }
        loop {
            let ask = |mut client: Client| async move { client.member_list().await };
            let pause = match self.endpoints.repeat(LIST_LIMIT, ATTEMPT_LIMIT, ask).await {
                Ok((response, _)) => {
                    let members = response.members().iter();
                    let urls = members.flat_map(|m| m.client_urls().to_vec()).collect();
                    self.endpoints.directory.discovered(urls);
                    self.refresh_every
                }
                Err(_) => DISCOVER_AGAIN,
            };
            tokio::time::sleep(pause).await;
        }
    }

    async fn one_life(&self, backward: &mut u32) -> Lost {
        let (snapshot, url) = match self.list().await {
            Ok(found) => found,
            Err(why) => {
                tokio::time::sleep(LIST_PAUSE).await;
                return Lost(why);
            }
        };
        let mut same_world = true;
        if snapshot.revision < self.view.watched() {
            *backward += 1;
            if *backward < BACKWARD_READS_MAX {
                tokio::time::sleep(LIST_PAUSE).await;
                return Lost(format!("{url} answers with revision {}", snapshot.revision));
            }
            let id = snapshot.cluster_id;
            self.outbox
                .send(EtcdEvent::OtherCluster { was: id, is: id });
            same_world = false;
        }
        *backward = 0;
        let from = snapshot.revision;
        let stream = match self.open(&url, from).await {
            Ok(stream) => stream,
            Err(fault) => return Lost(fault.text()),
        };
        self.view.list(snapshot, same_world);
        self.outbox.send(EtcdEvent::Alive);
        self.follow(stream, &url).await
    }

    /// The first read. Tells when nobody answers, and when everybody answers for another cluster.
    async fn list(&self) -> Result<(Snapshot, Arc<str>), String> {
        let keyspace = self.keyspace.clone();
        let ask = |client: Client| store::range(client, keyspace.clone());
        match self.endpoints.repeat(LIST_LIMIT, ATTEMPT_LIMIT, ask).await {
            Ok((response, url)) => Ok((store::snapshot(&response, &self.keyspace), url)),
            Err(Fault::Other { is }) => {
                self.other_cluster(is).await;
                Err(format!("etcd cluster {is:x} answers"))
            }
            Err(fault) => {
                let text = fault.text();
                self.outbox.send(EtcdEvent::Unreachable(text.clone()));
                Err(text)
            }
        }
    }

    /// One address may have been given to a stranger. Only when more than half of the endpoints
    /// answer for the same other cluster, ours was replaced.
    async fn other_cluster(&self, is: u64) {
        let was = self.endpoints.directory.cluster_id();
        let found = self.endpoints.survey().await;
        let votes = found.iter().filter(|id| **id == Some(is)).count();
        if votes * 2 > found.len() {
            self.endpoints.directory.adopt_cluster(is);
            self.view.forget();
            self.outbox.send(EtcdEvent::OtherCluster { was, is });
        } else {
            let text = format!("an endpoint answers for etcd cluster {is:x} instead of {was:x}");
            self.outbox.send(EtcdEvent::Unreachable(text));
        }
    }

    async fn open(&self, url: &Arc<str>, from: Revision) -> Result<WatchStream, Fault> {
        let prefix = self.keyspace.prefix().to_owned();
        let request = |mut client: Client| {
            let options = WatchOptions::new()
                .with_prefix()
                .with_start_revision(from.0 + 1)
                .with_progress_notify();
            let prefix = prefix.clone();
            async move { client.watch(prefix, Some(options)).await }
        };
        self.endpoints.attempt(url, ATTEMPT_LIMIT, &request).await
    }

    async fn follow(&self, mut stream: WatchStream, url: &Arc<str>) -> Lost {
        let mut checks: JoinSet<Checked> = JoinSet::new();
        let mut behind_since: Option<MonoTime> = None;
        let mut next_check = tokio::time::Instant::now() + CHECK_EVERY;
        loop {
            // Both are cancel-safe: a message stays in the stream, a finished check in its set.
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(response)) => {
                        if let Err(lost) = self.apply(&response) {
                            return lost;
                        }
                    }
                    Ok(None) => return Lost(format!("{url} ended the watch")),
                    Err(err) => {
                        let fault = classify(&err);
                        self.endpoints.leave(url);
                        return Lost(fault.text());
                    }
                },
                Some(checked) = checks.join_next() => {
                    let pause = match self.judge(checked, &mut behind_since) {
                        Ok(pause) => pause,
                        Err(lost) => {
                            self.endpoints.leave(url);
                            return lost;
                        }
                    };
                    next_check = tokio::time::Instant::now() + pause;
                }
                () = tokio::time::sleep_until(next_check), if checks.is_empty() => {
                    self.outbox.flush();
                    let (endpoints, keyspace) = (self.endpoints.clone(), self.keyspace.clone());
                    checks.spawn(check(endpoints, keyspace, url.clone()));
                }
            }
        }
    }

    /// Applies a message of the stream.
    fn apply(&self, response: &WatchResponse) -> Result<(), Lost> {
        if response.canceled() || response.compact_revision() != 0 {
            let reason = response.cancel_reason();
            let compacted = response.compact_revision();
            return Err(Lost(format!(
                "cancelled: {reason} (compacted at {compacted})"
            )));
        }
        let id = response.header().map_or(0, ResponseHeader::cluster_id);
        if id != 0 && id != self.endpoints.directory.cluster_id() {
            return Err(Lost(format!("the watch belongs to etcd cluster {id:x}")));
        }
        let mut changes = Vec::new();
        for kv in response.events().iter().filter_map(etcd_client::Event::kv) {
            if let Some((suffix, entry)) = store::entry(kv, &self.keyspace) {
                // A deletion carries the key and its revision only.
                changes.push(if kv.create_revision() == 0 {
                    Change::Delete(suffix, entry.modified)
                } else {
                    Change::Put(suffix, entry)
                });
            }
        }
        if !changes.is_empty() {
            self.view.changes(changes);
        }
        Ok(())
    }

    /// What follows from a check: when to look again, or that the watch is lost.
    fn judge(
        &self,
        checked: Result<Checked, tokio::task::JoinError>,
        behind_since: &mut Option<MonoTime>,
    ) -> Result<Duration, Lost> {
        let now = clock::now();
        match checked {
            Ok(Checked::Reached(milestone, at)) if self.view.reached(milestone, at) => {
                *behind_since = None;
                self.outbox.send(EtcdEvent::Alive);
                Ok(CHECK_EVERY)
            }
            Ok(Checked::Reached(_, revision)) => {
                let since = *behind_since.get_or_insert(now);
                if now.since(since) < STARVED_AFTER {
                    return Ok(CHECK_AGAIN);
                }
                let watched = self.view.watched();
                Err(Lost(format!(
                    "the watch stays at revision {watched}, etcd is at {revision}"
                )))
            }
            Ok(Checked::EndpointDead(text)) => Err(Lost(text)),
            Ok(Checked::NobodyAnswers(text)) => {
                self.outbox.send(EtcdEvent::Unreachable(text));
                Ok(CHECK_AGAIN)
            }
            Err(err) => Err(Lost(format!("the check ended: {err}"))),
        }
    }
}

/// Asks the endpoint of the watch, and when it is silent, whether another one answers.
async fn check(endpoints: Arc<Endpoints>, keyspace: Keyspace, url: Arc<str>) -> Checked {
    let ask = |client: Client| store::milestone(client, keyspace.clone());
    let silent = match endpoints.attempt(&url, ATTEMPT_LIMIT, &ask).await {
        Ok(response) => {
            let revision = response.header().map_or(0, ResponseHeader::revision);
            return Checked::Reached(store::read_milestone(&response), Revision(revision));
        }
        Err(fault) => fault.text(),
    };
    for other in endpoints.urls().into_iter().filter(|other| *other != url) {
        if endpoints.attempt(&other, ATTEMPT_LIMIT, &ask).await.is_ok() {
            return Checked::EndpointDead(silent);
        }
    }
    Checked::NobodyAnswers(silent)
}
