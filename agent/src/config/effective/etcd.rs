//! Which store, and where (`configuration.md` 6.2, 6.3).

use super::read::Section;
use crate::config::EtcdConfig;
use crate::config::error::ConfigError;
use crate::config::secret::Secret;
use crate::config::value::{HostPort, python_text, split_host_port, truthy};
use serde_json::Value;

const PORT: u16 = 2379;

/// Reads the etcd section; sections of other stores are refused when Patroni would use them.
pub(super) fn build(top: &Section<'_>) -> Result<EtcdConfig, ConfigError> {
    refuse_others(top)?;
    let section = match top.map.get("etcd3") {
        Some(_) => top.sub("etcd3")?,
        None => return Err(ConfigError::NoStore(top.origin("etcd3"))),
    };
    let endpoints = Endpoints::read(&section)?;
    let srv = first_text(&section, &["srv", "discovery_srv", "srv_domain"])?;
    if endpoints.list.is_empty() && srv.is_none() {
        return Err(section.missing("hosts", "one of srv, hosts, host, url or proxy"));
    }
    // A URL's user counts, even when it has none (`configuration.md` 6.3, NOTE).
    let (username, password) = match endpoints.credentials {
        Some(credentials) => credentials,
        None => (section.text("username")?, section.secret("password")?),
    };
    Ok(EtcdConfig {
        endpoints: endpoints.list,
        srv: if endpoints.is_proxy { None } else { srv },
        srv_suffix: section.text("srv_suffix")?,
        use_proxies: endpoints.is_proxy || section.flag("use_proxies"),
        username,
        password,
        cacert: section.path("cacert")?,
        cert: section.path("cert")?,
        key: section.path("key")?,
    })
}

/// Patroni takes the alphabetically first kind. One before etcd3 means that the cluster may live
/// there, so going on would be a second cluster; a later one is left alone by Patroni too.
fn refuse_others(top: &Section<'_>) -> Result<(), ConfigError> {
    let has_etcd3 = top.map.contains_key("etcd3");
    let refuse = |key: &str, why: &str| ConfigError::Unsupported {
        origin: top.origin(key),
        key: key.to_owned(),
        why: why.to_owned(),
    };
    for kind in [
        "consul",
        "etcd",
        "exhibitor",
        "kubernetes",
        "raft",
        "zookeeper",
    ] {
        if !top.map.contains_key(kind) {
            continue;
        }
        match (kind, has_etcd3) {
            ("etcd", true) => {
                return Err(refuse(
                    kind,
                    "Patroni would use etcd's v2 API here and not the etcd3 section; the cluster \
                     may live there. Keep only etcd3 once it does not",
                ));
            }
            ("etcd", false) => {
                return Err(refuse(
                    kind,
                    "this is etcd's v2 API; only v3 is supported: expected a section etcd3 with \
                     the same keys",
                ));
            }
            ("consul", true) => {
                return Err(refuse(
                    kind,
                    "Patroni would use it instead of etcd3; remove it",
                ));
            }
            (_, false) => {
                return Err(refuse(
                    kind,
                    "only etcd3 is supported as the cluster's store",
                ));
            }
            (_, true) => top.notes.push(format!(
                "{}: section {kind} is ignored: etcd3 is used",
                top.origin(kind)
            )),
        }
    }
    Ok(())
}

fn first_text(section: &Section<'_>, keys: &[&str]) -> Result<Option<String>, ConfigError> {
    for key in keys {
        if let Some(text) = section.text(key)? {
            return Ok(Some(text));
        }
    }
    Ok(None)
}

#[derive(Default)]
struct Endpoints {
    list: Vec<String>,
    is_proxy: bool,
    /// Those of a URL, which replace the section's.
    credentials: Option<(Option<String>, Option<Secret>)>,
}

impl Endpoints {
    /// `proxy`, else `url`, else `hosts`, else `host`.
    fn read(section: &Section<'_>) -> Result<Self, ConfigError> {
        for (key, is_proxy) in [("proxy", true), ("url", false)] {
            if let Some(url) = section.text(key)? {
                let (endpoint, username, password) = parse_url(&url)
                    .ok_or_else(|| section.wrong(key, "a URL: scheme://host:port"))?;
                let credentials = Some((username, password));
                return Ok(Self {
                    list: vec![endpoint],
                    is_proxy,
                    credentials,
                });
            }
        }
        let scheme = scheme(section)?;
        let port = match section.int("port")? {
            None => None,
            Some(port) => {
                Some(u16::try_from(port).map_err(|_| section.wrong("port", "a port number"))?)
            }
        };
        let list = match (hosts(section)?, section.text("host")?) {
            (Some(hosts), _) => hosts
                .iter()
                .map(|host| endpoint(host, &scheme, port.unwrap_or(PORT), None))
                .collect::<Option<Vec<_>>>()
                .ok_or_else(|| section.wrong("hosts", "a list of host:port"))?,
            // An explicit port wins over the one in `host`.
            (None, Some(host)) => vec![
                endpoint(&host, &scheme, PORT, port)
                    .ok_or_else(|| section.wrong("host", "host or host:port"))?,
            ],
            (None, None) => Vec::new(),
        };
        Ok(Self {
            list,
            ..Self::default()
        })
    }
}

fn scheme(section: &Section<'_>) -> Result<String, ConfigError> {
    match section
        .text("protocol")?
        .map(|p| p.to_lowercase())
        .as_deref()
    {
        None | Some("http") => Ok(String::from("http")),
        Some("https") => Ok(String::from("https")),
        Some(_) => Err(section.wrong("protocol", "http or https")),
    }
}

/// A list, or a text with commas.
fn hosts(section: &Section<'_>) -> Result<Option<Vec<String>>, ConfigError> {
    let list: Vec<String> = match section.get("hosts") {
        Some(value) if !truthy(value) => return Ok(None),
        None => return Ok(None),
        Some(Value::Array(items)) => items.iter().map(python_text).collect(),
        Some(Value::String(text)) => text.split(',').map(str::to_owned).collect(),
        Some(_) => return Err(section.wrong("hosts", "a list of host:port")),
    };
    let trimmed = list
        .iter()
        .map(|h| h.trim().to_owned())
        .filter(|h| !h.is_empty());
    Ok(Some(trimmed.collect()))
}

fn endpoint(text: &str, scheme: &str, default: u16, explicit: Option<u16>) -> Option<String> {
    if text.contains("://") {
        return parse_url(text).map(|(endpoint, _, _)| endpoint);
    }
    let HostPort { host, port } = split_host_port(text, Some(default))?;
    let address = HostPort {
        host,
        port: explicit.unwrap_or(port),
    };
    (!address.host.is_empty()).then(|| format!("{scheme}://{}", address.text()))
}

/// `scheme://[user[:password]@]host[:port][/…]`.
fn parse_url(url: &str) -> Option<(String, Option<String>, Option<Secret>)> {
    let (scheme, rest) = url.split_once("://")?;
    if !matches!(scheme, "http" | "https") {
        return None;
    }
    let authority = rest.split(['/', '?', '#']).next()?;
    let (user, address) = match authority.rsplit_once('@') {
        Some((user, address)) => (Some(user), address),
        None => (None, authority),
    };
    let address = split_host_port(address, Some(PORT)).filter(|a| !a.host.is_empty())?;
    let (username, password) = match user.map(|u| u.split_once(':').unwrap_or((u, ""))) {
        Some((username, password)) => (
            Some(percent_decode(username)),
            Some(percent_decode(password)),
        ),
        None => (None, None),
    };
    let password = password.filter(|p| !p.is_empty()).map(Secret::new);
    Some((
        format!("{scheme}://{}", address.text()),
        username.filter(|u| !u.is_empty()),
        password,
    ))
}

/// `%41` is `A`; anything that is no escape stays as it is.
pub(crate) fn percent_decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        // Digits are looked at one by one: `from_str_radix` alone would take a sign for one of them.
        let escape = (*first == b'%')
            .then(|| {
                tail.get(..2)
                    .filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))
            })
            .flatten()
            .and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        match escape {
            Some(byte) => {
                bytes.push(byte);
                rest = tail.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
