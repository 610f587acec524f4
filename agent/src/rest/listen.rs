//! Sockets: binding, accepting, TLS, time limits for slow clients, and taking over a changed
//! configuration without losing a connection.

use super::RestState;
use super::access::Allowlist;
use super::answer::Unanswered;
use super::connections::{Connections, Place, Slot};
use super::routes::router;
use super::shared::{Caller, Shared};
use crate::config::{AgentConfig, RestApiConfig, ServerTls};
use crate::tls::{TlsError, server_config};
use axum::Router;
use axum::body::Body;
use axum::http::uri::PathAndQuery;
use axum::http::{Method, Request, Response, Uri, header};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::ServerConfig;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a client may take for the head of a request, idle time between two requests included.
const HEAD_LIMIT: Duration = Duration::from_secs(10);

/// Up to so much longer, by lot: thousands of clients that came at the same moment are not sent away, and
/// do not come back, at the same moment.
const HEAD_LIMIT_SPREAD: Duration = Duration::from_secs(5);

/// How long a TLS handshake may take.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);

/// Largest head of a request.
const HEAD_BYTES_MAX: usize = 128 << 10;

/// The configured backlog is a handful by default. Where it is full the kernel drops who comes, who tries
/// again after a second: thousands of clients that come back at the same moment must not cost a health
/// check that. Linux's own limit by default.
const BACKLOG_MIN: u32 = 4096;

/// After accepting failed, for want of files mostly: give connections time to end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// How long an address may stay taken after its former user has gone.
const REBIND_ATTEMPTS: u32 = 20;
const REBIND_PAUSE: Duration = Duration::from_millis(100);

/// How often the certificate's files are looked at: a renewed one is used without a reload.
const CERTIFICATE_POLL: Duration = Duration::from_secs(5);

/// How long name resolution of the listen address may take.
const RESOLVE_LIMIT: Duration = Duration::from_secs(5);

/// Why the server could not start.
#[derive(Debug, thiserror::Error)]
pub enum RestError {
    /// The address cannot be had.
    #[error("listen on {host}:{port} for the REST API")]
    Bind {
        /// `restapi.listen`.
        host: String,
        /// `restapi.listen`.
        port: u16,
        /// Why.
        source: io::Error,
    },
    /// The certificates cannot be used.
    #[error("set up TLS of the REST API")]
    Tls(#[from] TlsError),
}

/// The running server. Ends when this is dropped.
#[derive(Debug)]
#[must_use = "the server stops when its handle is dropped"]
pub struct RestHandle {
    addresses: Vec<SocketAddr>,
    stop: CancellationToken,
    kill: CancellationToken,
    tasks: TaskTracker,
}

impl RestHandle {
    /// Where it listened when it started.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Stops listening at once, lets requests in progress end, and cuts what is left after `limit`.
    pub async fn shutdown(self, limit: Duration) {
        self.stop.cancel();
        self.tasks.close();
        let all_gone = tokio::time::timeout(limit, self.tasks.wait()).await.is_ok();
        tracing::debug!("REST server stopped, all connections ended by themselves: {all_gone}");
    }
}

impl Drop for RestHandle {
    fn drop(&mut self) {
        self.stop.cancel();
        self.kill.cancel();
    }
}

/// Binds and starts serving. Returns once the sockets listen.
pub async fn serve(state: RestState) -> Result<RestHandle, RestError> {
    let config = state.config.borrow().clone();
    let (files, loaded) = load_tls(&config.restapi).await;
    let (tls, current_tls) = watch::channel(loaded?);
    let listeners = bind(&config.restapi).await?;
    let addresses = listeners
        .iter()
        .filter_map(|l| l.local_addr().ok())
        .collect();
    let shared = Arc::new(Shared::new(
        state,
        Allowlist::resolve(&config.restapi).await,
    ));
    let (stop, kill, tasks) = (
        CancellationToken::new(),
        CancellationToken::new(),
        TaskTracker::new(),
    );
    let door = Door {
        shared: shared.clone(),
        router: router(shared.clone()),
        connections: Arc::new(Connections::new()),
        tls: current_tls,
        stop: stop.clone(),
        kill: kill.clone(),
        tasks: tasks.clone(),
    };
    tasks.spawn(remember_failsafe(shared, stop.clone()));
    tasks.spawn(supervise(door, listeners, tls, config, files));
    Ok(RestHandle {
        addresses,
        stop,
        kill,
        tasks,
    })
}

/// The address to bind; `None` for all addresses.
fn wanted_host(config: &RestApiConfig) -> Option<&str> {
    match config.listen_host.as_str() {
        "" | "*" => None,
        host => Some(host.trim_start_matches('[').trim_end_matches(']')),
    }
}

async fn bind(config: &RestApiConfig) -> Result<Vec<TcpListener>, RestError> {
    let port = config.listen_port;
    let failed = |source| RestError::Bind {
        host: config.listen_host.clone(),
        port,
        source,
    };
    let backlog = config.request_queue_size.max(BACKLOG_MIN);
    let Some(host) = wanted_host(config) else {
        // One socket for both protocols; a kernel without IPv6 gets one for IPv4.
        let both = listen(
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
            backlog,
        );
        let listener = both.or_else(|_| {
            listen(
                SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
                backlog,
            )
        });
        return Ok(vec![listener.map_err(failed)?]);
    };
    let lookup = tokio::time::timeout(RESOLVE_LIMIT, tokio::net::lookup_host((host, port))).await;
    let mut found: Vec<SocketAddr> = match lookup {
        Ok(found) => found.map_err(failed)?.collect(),
        Err(_) => return Err(failed(io::ErrorKind::TimedOut.into())),
    };
    found.sort_unstable();
    found.dedup();
    let mut listeners = Vec::new();
    let mut problem = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in found {
        match listen(address, backlog) {
            Ok(listener) => listeners.push(listener),
            // A name may stand for addresses that this host does not have; one that is taken by
            // somebody else is another matter.
            Err(err) if err.kind() == io::ErrorKind::AddrInUse => return Err(failed(err)),
            Err(err) => problem = err,
        }
    }
    if listeners.is_empty() {
        Err(failed(problem))
    } else {
        Ok(listeners)
    }
}

fn listen(address: SocketAddr, backlog: u32) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(backlog)
}

/// What TLS is made of, and the versions of the files. Those are looked at before the files are read: what
/// changes meanwhile counts as a change, and is read again.
async fn load_tls(config: &RestApiConfig) -> (Vec<Version>, Loaded) {
    let files = certificate_files(config).await;
    let Some(tls) = config.tls.clone() else {
        return (files, Ok(None));
    };
    warn_about(&tls);
    // Reading files and running openssl for an encrypted key may block.
    let loaded = tokio::task::spawn_blocking(move || server_config(&tls)).await;
    let loaded = loaded
        .unwrap_or_else(|_| Err(rustls::Error::General("loading was cancelled".into()).into()));
    (files, loaded.map(Some))
}

/// `None` without TLS.
type Loaded = Result<Option<Arc<ServerConfig>>, TlsError>;

fn warn_about(tls: &ServerTls) {
    if tls.ciphers.is_some() {
        tracing::warn!(
            "restapi.ciphers is an OpenSSL cipher list and is ignored: only modern suites are offered"
        );
    }
}

/// `/failsafe` must be known when etcd is away, so the last one is kept as long as we live.
async fn remember_failsafe(shared: Arc<Shared>, stop: CancellationToken) {
    let mut published = shared.state.published.clone();
    loop {
        let snapshot = published.borrow_and_update().clone();
        shared.remember(&snapshot);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = published.changed() => if changed.is_err() { return },
        }
    }
}

/// What a task that accepts needs.
#[derive(Clone)]
struct Door {
    shared: Arc<Shared>,
    router: Router,
    connections: Arc<Connections>,
    tls: watch::Receiver<Option<Arc<ServerConfig>>>,
    stop: CancellationToken,
    kill: CancellationToken,
    tasks: TaskTracker,
}

/// Keeps the accepting tasks, and takes over each new configuration.
async fn supervise(
    door: Door,
    listeners: Vec<TcpListener>,
    tls: watch::Sender<Option<Arc<ServerConfig>>>,
    first: Arc<AgentConfig>,
    mut files: Vec<Version>,
) {
    let mut changes = door.shared.state.config.clone();
    let mut current = first.restapi.clone();
    let mut accepting = open(&door, listeners);
    loop {
        tokio::select! {
            () = door.stop.cancelled() => break,
            changed = changes.changed() => if changed.is_err() { break },
            () = certificate_change(&current, &files) => {
                tracing::info!("the certificates of the REST API have changed");
            }
        }
        let wanted = changes.borrow_and_update().restapi.clone();
        let loaded;
        (files, loaded) = load_tls(&wanted).await;
        match loaded {
            Ok(loaded) => drop(tls.send_replace(loaded)),
            Err(err) => tracing::error!("keep the old certificates of the REST API: {err}"),
        }
        door.shared.allow(Allowlist::resolve(&wanted).await);
        let place = |c: &RestApiConfig| (c.listen_host.clone(), c.listen_port);
        if place(&wanted) != place(&current) {
            accepting.shutdown().await;
            accepting = open(&door, rebind(&wanted, &current).await);
        }
        current = wanted;
    }
    door.stop.cancelled().await;
    accepting.shutdown().await;
}

/// Which version of a file: moment of the last change, and length. `None` when it cannot be seen.
type Version = Option<(SystemTime, u64)>;

/// The versions of the files that TLS is made of.
async fn certificate_files(config: &RestApiConfig) -> Vec<Version> {
    let mut found = Vec::new();
    if let Some(tls) = &config.tls {
        let files = [
            Some(&tls.certfile),
            tls.keyfile.as_ref(),
            tls.cafile.as_ref(),
        ];
        for file in files.into_iter().flatten() {
            let meta = tokio::fs::metadata(file).await.ok();
            found.push(meta.and_then(|meta| Some((meta.modified().ok()?, meta.len()))));
        }
    }
    found
}

/// Returns when the files are others than they were.
async fn certificate_change(config: &RestApiConfig, before: &[Version]) {
    loop {
        tokio::time::sleep(CERTIFICATE_POLL).await;
        if certificate_files(config).await != before {
            return;
        }
    }
}

/// Listens on the new address, or on the old one when the new one cannot be had.
async fn rebind(wanted: &RestApiConfig, before: &RestApiConfig) -> Vec<TcpListener> {
    for attempt in 1..=REBIND_ATTEMPTS {
        for config in [wanted, before] {
            match bind(config).await {
                Ok(listeners) => return listeners,
                Err(err) => tracing::error!("attempt {attempt}: {err}"),
            }
        }
        tokio::time::sleep(REBIND_PAUSE).await;
    }
    Vec::new()
}

fn open(door: &Door, listeners: Vec<TcpListener>) -> JoinSet<()> {
    let mut accepting = JoinSet::new();
    for listener in listeners {
        accepting.spawn(accept(door.clone(), listener));
    }
    accepting
}

async fn accept(door: Door, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, address)) => match door.connections.enter() {
                Some(place) => {
                    drop(
                        door.tasks
                            .spawn(connection(door.clone(), stream, address, place)),
                    )
                }
                None => tracing::warn!("REST: too many requests at once, refused {address}"),
            },
            Err(err) => {
                tracing::warn!("REST: accept a connection: {err}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("closed without an answer, on purpose")]
struct NoAnswer;

/// Hands one request to the router.
async fn answer(
    router: &TowerToHyperService<Router>,
    slot: &Slot,
    caller: Caller,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, NoAnswer> {
    slot.busy.store(true, Ordering::Relaxed);
    let head = request.method() == Method::HEAD;
    *request.uri_mut() = with_one_slash(request.uri());
    request.extensions_mut().insert(caller);
    let mut response = match router.call(request).await {
        Ok(response) => response,
        Err(never) => match never {},
    };
    slot.busy.store(false, Ordering::Relaxed);
    if response.extensions().get::<Unanswered>().is_some() {
        return Err(NoAnswer);
    }
    if head {
        // Of the body that GET would have; axum can only say how long this one is.
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    Ok(response)
}

/// `//primary` is `/primary` (`rest-api.md` 2), which has to be so before the router looks.
fn with_one_slash(uri: &Uri) -> Uri {
    let path = uri.path();
    if !path.starts_with("//") {
        return uri.clone();
    }
    let query = uri.query().map(|query| format!("?{query}"));
    let path = format!(
        "/{}{}",
        path.trim_start_matches('/'),
        query.unwrap_or_default()
    );
    let mut parts = uri.clone().into_parts();
    parts.path_and_query = PathAndQuery::try_from(path).ok();
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

/// A peer that is gone is noticed within seconds (`rest-api.md` 1.1). Nothing depends on it: a socket
/// that refuses these options is served like any other.
fn guard_socket(stream: &TcpStream) {
    let _ = stream.set_nodelay(true);
    let _ = setsockopt(stream, sockopt::KeepAlive, &true);
    let _ = setsockopt(stream, sockopt::TcpKeepIdle, &3);
    let _ = setsockopt(stream, sockopt::TcpKeepInterval, &2);
    let _ = setsockopt(stream, sockopt::TcpKeepCount, &3);
    let _ = setsockopt(stream, sockopt::TcpUserTimeout, &10_000);
}

async fn connection(door: Door, stream: TcpStream, address: SocketAddr, place: Place) {
    guard_socket(&stream);
    let address = address.ip().to_canonical();
    let tls = door.tls.borrow().clone();
    let Some(config) = tls else {
        let caller = Caller {
            address,
            secure: false,
            certificate: false,
        };
        return converse(door, stream, caller, place).await;
    };
    let handshake = TlsAcceptor::from(config).accept(stream);
    let stream = tokio::select! {
        () = place.slot.close.cancelled() => return,
        () = door.stop.cancelled() => return,
        done = tokio::time::timeout(HANDSHAKE_LIMIT, handshake) => match done {
            Ok(Ok(stream)) => stream,
            Ok(Err(err)) => return tracing::debug!("REST: TLS handshake with {address}: {err}"),
            Err(_) => return tracing::debug!("REST: no TLS handshake from {address} in time"),
        },
    };
    let certificate = stream.get_ref().1.peer_certificates().is_some();
    converse(
        door,
        stream,
        Caller {
            address,
            secure: true,
            certificate,
        },
        place,
    )
    .await;
}

/// Serves one connection until the client has had enough, takes too long, or has to make room.
async fn converse<S>(door: Door, stream: S, caller: Caller, place: Place)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let slot = &place.slot;
    let router = TowerToHyperService::new(door.router.clone());
    let service = service_fn(|request| answer(&router, slot, caller, request));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT + HEAD_LIMIT_SPREAD.mul_f32(fastrand::f32()))
        .max_buf_size(HEAD_BYTES_MAX)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(err) = ended {
                    tracing::debug!("REST: connection of {}: {err}", caller.address);
                }
                return;
            }
            () = slot.close.cancelled() => return,
            () = door.kill.cancelled() => return,
            () = door.stop.cancelled(), if !stopping => {
                stopping = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
