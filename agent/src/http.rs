//! A small HTTP/1.1 client for the REST interface of members. One connection per request: calls are
//! rare, and a connection that was kept would only hide that a peer is gone.

use crate::config::CtlConfig;
use crate::config::secret::Secret;
use crate::tls::{ClientTls, TlsError, client_config};
use base64::Engine as _;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, HeaderMap, HeaderValue, USER_AGENT};
use hyper::{Method, Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// No document of this interface comes near; a larger answer is not one of ours.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// How requests are sent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HttpOptions {
    /// Basic authentication.
    pub authentication: Option<(String, Secret)>,
    /// TLS for `https` URLs.
    pub tls: ClientTls,
}

impl HttpOptions {
    /// For calls between agents.
    pub fn between_agents(ctl: &CtlConfig) -> Self {
        let tls = ClientTls::between_agents(ctl);
        Self {
            authentication: ctl.authentication.clone(),
            tls,
        }
    }

    /// For an operator's tool.
    pub fn for_operator(ctl: &CtlConfig) -> Self {
        let tls = ClientTls::for_operator(ctl);
        Self {
            authentication: ctl.authentication.clone(),
            tls,
        }
    }
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum HttpError {
    /// The URL is not `http(s)://host[:port]/path`.
    #[error("not a URL of a member: {0:?}")]
    Url(String),
    /// No connection came about, so nothing was asked. Safe to repeat.
    #[error("connect to {address}")]
    Connect {
        /// Host and port.
        address: String,
        /// Why.
        source: std::io::Error,
    },
    /// The connection broke before the answer was complete; the request may have been carried out.
    #[error("no complete answer")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Nothing complete within the limit.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
}

/// An answer, whatever its status.
#[derive(Clone, Debug)]
pub struct HttpResponse {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body.
    pub body: Bytes,
}

impl HttpResponse {
    /// The body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<serde_json::Value, serde_json::Error> {
        serde_json::from_slice(&self.body)
    }
}

/// The client. Cheap to clone.
#[derive(Clone)]
pub struct HttpClient {
    tls: Arc<ClientConfig>,
    authorization: Option<HeaderValue>,
}

impl HttpClient {
    /// Reads the certificates that the options name.
    pub fn new(options: &HttpOptions) -> Result<Self, TlsError> {
        let authorization = options
            .authentication
            .as_ref()
            .and_then(|(user, password)| {
                let pair = format!("{user}:{}", password.reveal());
                let text = format!(
                    "Basic {}",
                    base64::engine::general_purpose::STANDARD.encode(pair)
                );
                let mut value = HeaderValue::from_str(&text).ok()?;
                value.set_sensitive(true);
                Some(value)
            });
        Ok(Self {
            tls: client_config(&options.tls)?,
            authorization,
        })
    }

    /// Sends one request and reads the answer; everything within `limit`.
    pub async fn request(
        &self,
        method: Method,
        url: &str,
        body: Option<String>,
        limit: Duration,
    ) -> Result<HttpResponse, HttpError> {
        match tokio::time::timeout(limit, self.exchange(method, url, body)).await {
            Ok(result) => result,
            Err(_) => Err(HttpError::Timeout(limit)),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        url: &str,
        body: Option<String>,
    ) -> Result<HttpResponse, HttpError> {
        let target = Target::parse(url)?;
        let request = self.build(method, &target, body)?;
        let connect_error = |source| HttpError::Connect {
            address: target.address(),
            source,
        };
        let stream = TcpStream::connect((target.host.as_str(), target.port))
            .await
            .map_err(connect_error)?;
        // Without it a small request may wait for the acknowledgement of the one before; harmless if
        // it cannot be set.
        let _ = stream.set_nodelay(true);
        if !target.secure {
            return converse(stream, request).await;
        }
        let name = ServerName::try_from(target.host.clone())
            .map_err(|_| HttpError::Url(url.to_owned()))?;
        let stream = TlsConnector::from(self.tls.clone())
            .connect(name, stream)
            .await
            .map_err(connect_error)?;
        converse(stream, request).await
    }

    fn build(
        &self,
        method: Method,
        target: &Target,
        body: Option<String>,
    ) -> Result<Request<Full<Bytes>>, HttpError> {
        let mut request = Request::builder()
            .method(method)
            .uri(&target.path)
            .header(HOST, &target.authority)
            .header(
                USER_AGENT,
                concat!("garden-agent/", env!("CARGO_PKG_VERSION")),
            )
            .header(CONNECTION, "close");
        if let Some(value) = &self.authorization {
            request = request.header(AUTHORIZATION, value);
        }
        request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|_| HttpError::Url(target.path.clone()))
    }
}

/// A URL taken apart.
struct Target {
    secure: bool,
    host: String,
    port: u16,
    authority: String,
    path: String,
}

impl Target {
    fn parse(url: &str) -> Result<Self, HttpError> {
        let bad = || HttpError::Url(url.chars().take(200).collect());
        let uri: Uri = url.parse().map_err(|_| bad())?;
        let secure = match uri.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(bad()),
        };
        let authority = uri.authority().ok_or_else(bad)?;
        let host = authority
            .host()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        Ok(Self {
            secure,
            host,
            port: authority
                .port_u16()
                .unwrap_or(if secure { 443 } else { 80 }),
            authority: authority.to_string(),
            path: uri
                .path_and_query()
                .map_or_else(|| "/".into(), ToString::to_string),
        })
    }

    fn address(&self) -> String {
        format!("{}:{}", self.host, self.port)
    }
}

async fn converse<S>(stream: S, request: Request<Full<Bytes>>) -> Result<HttpResponse, HttpError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let broken = |err: hyper::Error| HttpError::Broken(err.into());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(broken)?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(broken)?;
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER_BYTES_MAX)
            .collect()
            .await
            .map_err(HttpError::Broken)?;
        Ok(HttpResponse {
            status: head.status,
            headers: head.headers,
            body: body.to_bytes(),
        })
    };
    // The connection is driven beside the exchange and dropped with it: no task outlives a request.
    let drive = async {
        if let Err(err) = connection.await {
            tracing::debug!("connection to a member ended: {err}");
        }
        std::future::pending::<()>().await
    };
    tokio::select! {
        result = exchange => result,
        () = drive => Err(HttpError::Broken("the connection ended".into())),
    }
}

/// The URL of another endpoint of the member that has this `api_url`: its path replaced
/// (`rest-api.md` 19).
pub fn sibling_url(api_url: &str, path: &str) -> Result<String, HttpError> {
    let target = Target::parse(api_url)?;
    let scheme = if target.secure { "https" } else { "http" };
    Ok(format!(
        "{scheme}://{}/{}",
        target.authority,
        path.trim_start_matches('/')
    ))
}
