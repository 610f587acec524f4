//! Who may send requests that change something (`rest-api.md` 3): source address, client
//! certificate and basic authentication, in this order and all of them.

use super::answer::Answer;
use super::routes::Access;
use super::shared::{Caller, Shared};
use crate::config::secret::Secret;
use crate::config::{RestApiConfig, VerifyClient};
use axum::extract::{Extension, Request, State};
use axum::http::Uri;
use axum::http::header::{AUTHORIZATION, HeaderMap};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use proto::dcs::ClusterView;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// How long the resolution of one host name may take.
const RESOLVE_LIMIT: Duration = Duration::from_secs(2);

/// `allowlist`, with its host names resolved.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Allowlist {
    networks: Vec<Network>,
    configured: bool,
    include_members: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Network {
    address: IpAddr,
    prefix: u32,
}

impl Network {
    /// An address, or a network with or without host bits: `10.0.0.1/8`, `10.0.0.0/255.0.0.0`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (address, mask) = match text.split_once('/') {
            Some((address, mask)) => (address, Some(mask)),
            None => (text, None),
        };
        let address: IpAddr = address.trim().parse().ok()?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match mask.map(str::trim) {
            None => width,
            Some(mask) => match mask.parse::<u32>() {
                Ok(prefix) if prefix <= width => prefix,
                Ok(_) => return None,
                Err(_) => {
                    let mask = u32::from(mask.parse::<std::net::Ipv4Addr>().ok()?);
                    let ones = mask.leading_ones();
                    (address.is_ipv4() && ones == mask.count_ones()).then_some(ones)?
                }
            },
        };
        Some(Self { address, prefix })
    }

    pub(crate) fn contains(self, other: IpAddr) -> bool {
        let same = |a: u128, b: u128, width: u32| {
            let dropped = width - self.prefix;
            dropped >= width || a >> dropped == b >> dropped
        };
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(u32::from(a).into(), u32::from(b).into(), 32),
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                self.prefix == 0 || same(u128::from(a), u128::from(b), 128)
            }
            _ => false,
        }
    }
}

impl Allowlist {
    /// Resolves the entries once. Entries that mean nothing are logged and skipped; when none is left
    /// nobody is let in, other than with Patroni, where the check then vanishes.
    pub(super) async fn resolve(config: &RestApiConfig) -> Self {
        let mut networks = Vec::new();
        for entry in &config.allowlist {
            match Network::parse(entry) {
                Some(network) => networks.push(network),
                None if entry.contains('/') => tracing::error!("invalid allowlist entry: {entry}"),
                None => {
                    let found = resolve(entry).await;
                    if found.is_empty() {
                        tracing::error!("cannot resolve allowlist entry: {entry}");
                    }
                    networks.extend(found.into_iter().map(|address| Network {
                        address,
                        prefix: if address.is_ipv4() { 32 } else { 128 },
                    }));
                }
            }
        }
        let configured = !config.allowlist.is_empty();
        Self {
            networks,
            configured,
            include_members: config.allowlist_include_members,
        }
    }

    async fn admits(&self, source: IpAddr, access: Access, view: Option<&ClusterView>) -> bool {
        let members = self.include_members && access != Access::CheckedWithoutMembers;
        if !self.configured && !members {
            return true;
        }
        if self.networks.iter().any(|network| network.contains(source)) {
            return true;
        }
        members && is_member(source, view).await
    }
}

async fn resolve(host: &str) -> Vec<IpAddr> {
    let lookup = tokio::net::lookup_host((host, 0));
    match tokio::time::timeout(RESOLVE_LIMIT, lookup).await {
        Ok(Ok(found)) => found.map(|address| address.ip().to_canonical()).collect(),
        Ok(Err(_)) | Err(_) => Vec::new(),
    }
}

async fn is_member(source: IpAddr, view: Option<&ClusterView>) -> bool {
    let urls = view.into_iter().flat_map(|view| view.members.values());
    let hosts = urls.filter_map(|member| {
        let url: Uri = member.record.api_url.as_ref()?.parse().ok()?;
        Some(
            url.host()?
                .trim_start_matches('[')
                .trim_end_matches(']')
                .to_owned(),
        )
    });
    let (literal, named): (Vec<_>, Vec<_>) = hosts
        .map(|host| (host.parse::<IpAddr>().ok(), host))
        .partition(|(ip, _)| ip.is_some());
    if literal.iter().any(|(ip, _)| *ip == Some(source)) {
        return true;
    }
    for (_, host) in named {
        if resolve(&host).await.contains(&source) {
            return true;
        }
    }
    false
}

/// Stands before a handler.
#[derive(Clone)]
pub(super) struct Gate {
    pub(super) shared: Arc<Shared>,
    pub(super) access: Access,
}

/// Lets a request through to its handler, or answers it. The body has not been read then.
pub(super) async fn guard(
    State(Gate { shared, access }): State<Gate>,
    Extension(caller): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let (published, config) = (shared.published(), shared.config());
    let (allowlist, view) = (shared.allowlist(), published.view.as_deref());
    let (headers, restapi) = (request.headers(), &config.restapi);
    match check(&caller, headers, access, &allowlist, restapi, view).await {
        Ok(()) => next.run(request).await,
        Err(refusal) => refusal.into_response(),
    }
}

/// Whether the caller may; else the answer.
async fn check(
    caller: &Caller,
    headers: &HeaderMap,
    access: Access,
    allowlist: &Allowlist,
    config: &RestApiConfig,
    view: Option<&ClusterView>,
) -> Result<(), Answer> {
    if !allowlist.admits(caller.address, access, view).await {
        return Err(Answer::text(403, "Access is denied"));
    }
    let verify = config
        .tls
        .as_ref()
        .map_or(VerifyClient::None, |tls| tls.verify_client);
    if caller.secure && verify != VerifyClient::None && !caller.certificate {
        return Err(Answer::text(403, "client certificate required"));
    }
    match &config.authentication {
        Some((user, password)) => authenticate(headers, user, password),
        None => Ok(()),
    }
}

fn authenticate(headers: &HeaderMap, user: &str, password: &Secret) -> Result<(), Answer> {
    let refuse =
        |text| Err(Answer::text(401, text).with("www-authenticate", "Basic realm=\"Patroni\""));
    let Some(given) = headers.get(AUTHORIZATION) else {
        return refuse("no auth header received");
    };
    let pair = format!("{user}:{}", password.reveal());
    let wanted = format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(pair)
    );
    if same_in_constant_time(given.as_bytes(), wanted.as_bytes()) {
        Ok(())
    } else {
        refuse("not authenticated")
    }
}

/// Takes as long for a wrong first byte as for a wrong last one. The length may be learnt.
fn same_in_constant_time(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let mut difference = 0u8;
    for (a, b) in left.iter().zip(right) {
        // The black box keeps the compiler from leaving the loop early.
        difference |= std::hint::black_box(a ^ b);
    }
    difference == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn networks_contain_what_they_should() {
        for (network, address, expected) in [
            ("10.0.0.1/8", "10.255.0.1", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("192.0.2.1", "192.0.2.1", true),
            ("192.0.2.1", "192.0.2.2", false),
            ("0.0.0.0/0", "8.8.8.8", true),
            ("10.0.0.0/255.0.0.0", "10.1.1.1", true),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("2001:db8::/32", "2001:db9::1", false),
            ("::/0", "::1", true),
            ("::/0", "127.0.0.1", false),
        ] {
            let network = Network::parse(network).expect(network);
            assert_eq!(
                network.contains(ip(address)),
                expected,
                "{network:?} {address}"
            );
        }
        for bad in [
            "10.0.0.0/33",
            "10.0.0.0/255.0.255.0",
            "host",
            "::/129",
            "1.2.3/8",
            "",
        ] {
            assert_eq!(Network::parse(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn a_list_of_nothing_but_errors_lets_nobody_in() {
        let list = Allowlist {
            networks: Vec::new(),
            configured: true,
            include_members: false,
        };
        assert!(!list.admits(ip("127.0.0.1"), Access::Checked, None).await);
        assert!(
            Allowlist::default()
                .admits(ip("127.0.0.1"), Access::Checked, None)
                .await
        );
    }

    #[test]
    fn comparison_needs_every_byte() {
        assert!(same_in_constant_time(b"abc", b"abc"));
        assert!(!same_in_constant_time(b"abc", b"abd"));
        assert!(!same_in_constant_time(b"abc", b"abcd"));
    }
}
