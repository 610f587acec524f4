//! Which etcd server to talk to: one client for each endpoint, and a way of moving between them.
//!
//! The client library can balance over several endpoints, but then a dead one fails a share of all
//! requests (etcdv3/etcd-client issues 12 and 39). So each endpoint has a client of its own, one that
//! works is kept, and silence or an error moves on to the next. Requests that may be repeated are, on
//! the next endpoint and within a limit; a transaction is sent once, and only to an endpoint that
//! answered a moment ago, so that a dead one costs a probe and not an unknown outcome.

use super::directory::Directory;
use super::error::{EtcdError, Fault, classify};
use crate::clock;
use etcd_client::{Client, Error, GetResponse, ResponseHeader};
use proto::time::MonoTime;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::time::timeout;

/// How long one endpoint may think about one request that can be repeated elsewhere.
pub(crate) const ATTEMPT_LIMIT: Duration = Duration::from_secs(1);

/// An endpoint that answered so recently is taken to be alive when a transaction is sent to it.
const PROVEN_FOR: Duration = Duration::from_secs(2);

/// Pause after every endpoint has failed once, so that "connection refused" does not become a storm.
const ROUND_PAUSE: Duration = Duration::from_millis(100);

/// Anything that etcd answers; its header says which cluster answered.
pub(crate) trait Answer {
    /// The header, when there is one.
    fn head(&self) -> Option<&ResponseHeader>;
}

macro_rules! answers {
    ($($response:ident),+) => {$(
        impl Answer for etcd_client::$response {
            fn head(&self) -> Option<&ResponseHeader> { self.header() }
        }
    )+};
}
answers!(
    GetResponse,
    TxnResponse,
    DeleteResponse,
    LeaseGrantResponse,
    MemberListResponse,
    LeaseKeepAliveResponse
);

/// Streams say who they are with their first message.
impl Answer for etcd_client::WatchStream {
    fn head(&self) -> Option<&ResponseHeader> {
        None
    }
}
impl Answer for (etcd_client::LeaseKeeper, etcd_client::LeaseKeepAliveStream) {
    fn head(&self) -> Option<&ResponseHeader> {
        None
    }
}

struct Slot {
    url: Arc<str>,
    client: Option<Client>,
    logged_in: bool,
    proven_at: Option<MonoTime>,
}

#[derive(Default)]
struct Slots {
    list: Vec<Slot>,
    current: usize,
    generation: u64,
}

/// The connections of one thread. Clients are bound to the runtime that made them, so the keeper and
/// the rest of the agent each have their own.
pub(crate) struct Endpoints {
    /// Shared with the other connections of this process.
    pub(crate) directory: Arc<Directory>,
    slots: Mutex<Slots>,
}

impl Endpoints {
    /// No connection is made before the first request.
    pub(crate) fn new(directory: Arc<Directory>) -> Self {
        Self {
            directory,
            slots: Mutex::default(),
        }
    }

    /// Brings the list up to date with the directory. A working endpoint stays the current one, also
    /// when it is not what etcd advertises.
    fn slots(&self) -> MutexGuard<'_, Slots> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let (generation, urls) = self.directory.urls(slots.generation);
        let Some(urls) = urls else { return slots };
        let current = slots.list.get(slots.current).map(|slot| slot.url.clone());
        let mut old = std::mem::take(&mut slots.list);
        slots.list = urls
            .into_iter()
            .map(|url| match old.iter().position(|slot| slot.url == url) {
                Some(at) => old.swap_remove(at),
                None => Slot {
                    url,
                    client: None,
                    logged_in: false,
                    proven_at: None,
                },
            })
            .collect();
        slots.current = current
            .and_then(|url| slots.list.iter().position(|s| s.url == url))
            .unwrap_or(0);
        slots.generation = generation;
        slots
    }

    /// The endpoint that is in use.
    pub(crate) fn current(&self) -> Arc<str> {
        let slots = self.slots();
        slots
            .list
            .get(slots.current)
            .map_or_else(|| Arc::from(""), |slot| slot.url.clone())
    }

    /// All endpoints, the current one first.
    pub(crate) fn urls(&self) -> Vec<Arc<str>> {
        let slots = self.slots();
        let (before, after) = slots.list.split_at(slots.current.min(slots.list.len()));
        after
            .iter()
            .chain(before)
            .map(|slot| slot.url.clone())
            .collect()
    }

    fn with_slot<T>(&self, url: &str, f: impl FnOnce(&mut Slot) -> T) -> Option<T> {
        self.slots()
            .list
            .iter_mut()
            .find(|slot| &*slot.url == url)
            .map(f)
    }

    /// Leaves an endpoint: its connection is dropped, since the streams of a server that was frozen
    /// stay dead after it thaws, and the next endpoint becomes the current one.
    pub(crate) fn leave(&self, url: &str) {
        let mut slots = self.slots();
        let count = slots.list.len();
        if let Some(at) = slots.list.iter().position(|slot| &*slot.url == url) {
            if let Some(slot) = slots.list.get_mut(at) {
                (slot.client, slot.logged_in, slot.proven_at) = (None, false, None);
            }
            if slots.current == at && count > 0 {
                slots.current = (at + 1) % count;
            }
        }
    }

    async fn client(&self, url: &Arc<str>) -> Result<Client, Fault> {
        let user = &self.directory.user;
        let (known, logged_in) = self
            .with_slot(url, |slot| (slot.client.clone(), slot.logged_in))
            .unwrap_or_default();
        let mut client = match known {
            Some(client) if logged_in || user.is_none() => return Ok(client),
            Some(client) => client,
            None => Client::connect([url.as_ref()], Some(self.directory.options(url)))
                .await
                .map_err(|err| classify(&err))?,
        };
        if user.is_some() {
            match client
                .update_user(user.clone())
                .await
                .map_err(|err| classify(&err))
            {
                // As Patroni: a cluster where nobody has switched authentication on needs no token.
                Ok(()) | Err(Fault::AuthOff) => {}
                Err(fault) => return Err(fault),
            }
        }
        self.with_slot(url, |slot| {
            (slot.client, slot.logged_in) = (Some(client.clone()), true)
        });
        Ok(client)
    }

    /// One request to one endpoint. A refused token is renewed and the request repeated, which is safe
    /// for all requests: etcd refuses before it does anything.
    pub(crate) async fn attempt<T, F, Fut>(
        &self,
        url: &Arc<str>,
        limit: Duration,
        request: &F,
    ) -> Result<T, Fault>
    where
        T: Answer,
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let silent = || Fault::Away(format!("{url} did not answer within {limit:?}"));
        let one = async || {
            request(self.client(url).await?)
                .await
                .map_err(|err| classify(&err))
        };
        let both = async {
            match one().await {
                Err(Fault::Login(_)) => {
                    self.with_slot(url, |slot| slot.logged_in = false);
                    one().await
                }
                result => result,
            }
        };
        let answer = timeout(limit, both).await.unwrap_or_else(|_| Err(silent()));
        let answer = answer.and_then(|answer| {
            self.directory.check(answer.head())?;
            Ok(answer)
        });
        match &answer {
            Ok(_) | Err(Fault::LeaseGone) => {
                self.with_slot(url, |slot| slot.proven_at = Some(clock::now()));
            }
            Err(_) => self.leave(url),
        }
        answer.map_err(|fault| match fault {
            Fault::Away(text) if !text.contains(url.as_ref()) => {
                Fault::Away(format!("{url}: {text}"))
            }
            fault => fault,
        })
    }

    /// A request that may be repeated: on one endpoint after the other until one answers or `limit`
    /// has passed. Also says who answered.
    pub(crate) async fn repeat<T, F, Fut>(
        &self,
        limit: Duration,
        attempt_limit: Duration,
        request: F,
    ) -> Result<(T, Arc<str>), Fault>
    where
        T: Answer,
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let deadline = clock::now() + limit;
        let mut last: Option<Fault> = None;
        loop {
            for url in self.urls() {
                let left = clock::now().until(deadline);
                if left.is_zero() {
                    return Err(last.unwrap_or_else(|| Fault::Away(String::from("no time left"))));
                }
                match self.attempt(&url, left.min(attempt_limit), &request).await {
                    Ok(answer) => return Ok((answer, url)),
                    Err(Fault::LeaseGone) => return Err(Fault::LeaseGone),
                    Err(fault) => last = Some(worse(last, fault)),
                }
            }
            tokio::time::sleep(ROUND_PAUSE.min(clock::now().until(deadline))).await;
        }
    }

    /// A request that must not be repeated blindly. An endpoint that answered lately is looked for
    /// first, by probes, which may be repeated; then the request is sent once and may take the rest of
    /// `limit`. `Err((true, _))` when it was sent and so may have been done.
    pub(crate) async fn once<T, F, Fut>(
        &self,
        limit: Duration,
        request: F,
    ) -> Result<T, (bool, Fault)>
    where
        T: Answer,
        F: Fn(Client) -> Fut,
        Fut: Future<Output = Result<T, Error>>,
    {
        let deadline = clock::now() + limit;
        let mut url = self.current();
        if !self.is_proven(&url) {
            let probe = probe(&self.directory.probe_key);
            url = self
                .repeat(limit, ATTEMPT_LIMIT, probe)
                .await
                .map_err(|fault| (false, fault))?
                .1;
        }
        let left = clock::now().until(deadline);
        self.attempt(&url, left, &request)
            .await
            .map_err(|fault| (true, fault))
    }

    /// Makes sure that an endpoint answered lately, for our cluster.
    pub(crate) async fn prove(&self, url: &Arc<str>, limit: Duration) -> Result<(), Fault> {
        if self.is_proven(url) {
            return Ok(());
        }
        self.attempt(url, limit, &probe(&self.directory.probe_key))
            .await
            .map(|_| ())
    }

    fn is_proven(&self, url: &str) -> bool {
        let proven = self.with_slot(url, |slot| slot.proven_at).flatten();
        proven.is_some_and(|at| clock::now().since(at) <= PROVEN_FOR)
    }

    /// Which etcd cluster each endpoint belongs to, as far as they answer within [`ATTEMPT_LIMIT`]
    /// each. For the question whether a whole cluster was replaced.
    pub(crate) async fn survey(&self) -> Vec<Option<u64>> {
        let mut found = Vec::new();
        let probe = probe(&self.directory.probe_key);
        for url in self.urls() {
            found.push(match self.attempt(&url, ATTEMPT_LIMIT, &probe).await {
                Ok(_) => Some(self.directory.cluster_id()),
                Err(Fault::Other { is }) => Some(is),
                Err(_) => None,
            });
        }
        found
    }

    /// A failed [`Self::repeat`] as an error for the outside.
    pub(crate) fn error(&self, limit: Duration, fault: Fault) -> EtcdError {
        match fault {
            Fault::Credentials(text) => EtcdError::Credentials(text),
            Fault::Other { is } => EtcdError::OtherCluster {
                was: self.directory.cluster_id(),
                is,
            },
            fault => EtcdError::Unreachable {
                limit,
                last: fault.text(),
            },
        }
    }
}

/// A linearizable read of one key: whoever answers is alive, knows a leader, and says its cluster.
fn probe(key: &str) -> impl Fn(Client) -> BoxedGet + use<> {
    let key = key.to_owned();
    move |mut client: Client| {
        let key = key.clone();
        Box::pin(async move { client.get(key, None).await })
    }
}

type BoxedGet = Pin<Box<dyn Future<Output = Result<GetResponse, Error>> + Send>>;

/// Of several faults the one to report: a refused password and a foreign cluster need a person, and
/// mere silence of the next endpoint must not hide them.
fn worse(last: Option<Fault>, fault: Fault) -> Fault {
    match last {
        Some(kept @ (Fault::Credentials(_) | Fault::Other { .. })) => kept,
        _ => fault,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::EtcdConfig;

    #[test]
    fn discovery_keeps_the_current_and_the_configured_endpoints() {
        let endpoints = vec![String::from("http://a:1"), String::from("http://b:1")];
        let config = EtcdConfig {
            endpoints,
            ..EtcdConfig::default()
        };
        let directory = Directory::new(&config, String::from("/k")).expect("fine");
        let pool = Endpoints::new(Arc::new(directory));
        pool.leave("http://a:1");
        assert_eq!(&*pool.current(), "http://b:1");
        pool.directory
            .discovered(vec!["http://c:1/".into(), "https://d:1".into()]);
        assert_eq!(&*pool.current(), "http://b:1");
        let mut all = pool.urls();
        all.sort();
        assert_eq!(
            all,
            ["http://a:1", "http://b:1", "http://c:1"].map(Arc::from)
        );
    }
}
