//! What all connections of this process share: the list of endpoints, the etcd cluster that they belong
//! to, and how to connect to them.

use super::error::{EtcdError, Fault};
use super::tls;
use crate::config::EtcdConfig;
use etcd_client::{ConnectOptions, ResponseHeader, TlsOptions};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// HTTP/2 pings while a stream is open: they end connections to a frozen or vanished server that
/// nobody is waiting for. etcd calls pings more often than every 5 s abuse and hangs up
/// (`--grpc-keepalive-min-time`); our own checks are what finds a dead server quickly.
const PING_EVERY: Duration = Duration::from_secs(6);
const PING_LIMIT: Duration = Duration::from_secs(2);

/// How long TCP may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(1);

/// What all connections of this process know together: the list of endpoints, and which etcd cluster
/// they belong to.
pub(crate) struct Directory {
    /// Zero until the first answer.
    cluster_id: AtomicU64,
    list: Mutex<List>,
    configured: Vec<Arc<str>>,
    /// Never ask etcd for its members.
    pub(crate) use_proxies: bool,
    /// Name and password.
    pub(crate) user: Option<(String, String)>,
    tls: Option<TlsOptions>,
    /// A key that we may read: what probes ask for.
    pub(crate) probe_key: String,
}

struct List {
    urls: Vec<Arc<str>>,
    /// Counts changes.
    generation: u64,
}

impl Directory {
    /// Checks the configuration. No connection is made.
    pub(crate) fn new(config: &EtcdConfig, probe_key: String) -> Result<Self, EtcdError> {
        let configured: Vec<Arc<str>> = config
            .endpoints
            .iter()
            .map(|url| Arc::from(url.trim_end_matches('/')))
            .collect();
        match (&config.srv, configured.is_empty()) {
            (Some(domain), true) => {
                return Err(EtcdError::Srv {
                    domain: domain.clone(),
                });
            }
            (None, true) => return Err(EtcdError::NoEndpoints),
            (Some(domain), false) => tracing::warn!(
                "etcd3.srv ({domain}) is not looked up; the other endpoints of section etcd3 are used"
            ),
            (None, false) => {}
        }
        let secure = configured.iter().any(|url| url.starts_with("https://"));
        let tls = if secure {
            Some(tls::options(config)?)
        } else {
            None
        };
        let password = config
            .password
            .as_ref()
            .map(|p| p.reveal().to_owned())
            .unwrap_or_default();
        let user = config.username.clone().map(|name| (name, password));
        Ok(Self {
            cluster_id: AtomicU64::new(0),
            list: Mutex::new(List {
                urls: configured.clone(),
                generation: 1,
            }),
            configured,
            use_proxies: config.use_proxies,
            user,
            tls,
            probe_key,
        })
    }

    /// Takes over what etcd says of its members, in random order so that the members of a PostgreSQL
    /// cluster do not all lean on the same server. The configured endpoints stay behind them as a
    /// fallback (D15), and where TLS was configured, advertised plain URLs are left out.
    pub(crate) fn discovered(&self, mut advertised: Vec<String>) {
        advertised.retain(|url| self.tls.is_none() || url.starts_with("https://"));
        advertised.retain(|url| self.tls.is_some() || url.starts_with("http://"));
        fastrand::shuffle(&mut advertised);
        let mut list: Vec<Arc<str>> = Vec::new();
        let configured = self.configured.iter().cloned();
        let all = advertised
            .iter()
            .map(|url| Arc::from(url.trim_end_matches('/')))
            .chain(configured);
        for url in all {
            if !list.contains(&url) {
                list.push(url);
            }
        }
        let mut known = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let same = known.urls.len() == list.len() && known.urls.iter().all(|u| list.contains(u));
        if !same {
            known.urls = list;
            known.generation += 1;
        }
    }

    /// The number of the current list, and the list itself unless it is `known` already.
    pub(crate) fn urls(&self, known: u64) -> (u64, Option<Vec<Arc<str>>>) {
        let list = self.list.lock().unwrap_or_else(PoisonError::into_inner);
        let news = (list.generation != known).then(|| list.urls.clone());
        (list.generation, news)
    }

    /// The etcd cluster that we belong to; zero when nobody has answered yet.
    pub(crate) fn cluster_id(&self) -> u64 {
        self.cluster_id.load(Ordering::Acquire)
    }

    /// Belongs to another etcd cluster from now on.
    pub(crate) fn adopt_cluster(&self, id: u64) {
        self.cluster_id.store(id, Ordering::Release);
    }

    /// Whether an answer comes from our cluster. The first answer says which one that is.
    pub(crate) fn check(&self, header: Option<&ResponseHeader>) -> Result<(), Fault> {
        let Some(is) = header.map(ResponseHeader::cluster_id).filter(|id| *id != 0) else {
            return Ok(());
        };
        let first = self
            .cluster_id
            .compare_exchange(0, is, Ordering::AcqRel, Ordering::Acquire);
        match first {
            Err(was) if was != is => Err(Fault::Other { is }),
            _ => Ok(()),
        }
    }

    /// How to connect to an endpoint.
    pub(crate) fn options(&self, url: &str) -> ConnectOptions {
        let options = ConnectOptions::new()
            .with_connect_timeout(CONNECT_LIMIT)
            .with_keep_alive(PING_EVERY, PING_LIMIT)
            .with_keep_alive_while_idle(false)
            .with_require_leader(true);
        match &self.tls {
            Some(tls) if url.starts_with("https://") => options.with_tls(tls.clone()),
            _ => options,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn srv_alone_is_an_error_that_names_the_setting() {
        let config = EtcdConfig {
            srv: Some("example.com".into()),
            ..EtcdConfig::default()
        };
        let error = Directory::new(&config, String::new())
            .err()
            .map(|err| err.to_string());
        assert!(error.is_some_and(|text| text.contains("etcd3.srv")));
        let nothing = Directory::new(&EtcdConfig::default(), String::new()).err();
        assert!(matches!(nothing, Some(EtcdError::NoEndpoints)));
    }

    #[test]
    fn advertised_plain_urls_do_not_replace_tls() {
        let endpoints = vec![String::from("http://a:1")];
        let plain = Directory::new(
            &EtcdConfig {
                endpoints,
                ..EtcdConfig::default()
            },
            String::new(),
        );
        let plain = plain.expect("fine");
        plain.discovered(vec!["https://b:1".into(), "http://c:1".into()]);
        let (_, urls) = plain.urls(0);
        assert_eq!(
            urls,
            Some(vec![Arc::from("http://c:1"), Arc::from("http://a:1")])
        );
    }
}
