//! Questions to the other members' agents (`dcs-layout.md` 12): who is where, and may we go on
//! without etcd. All are asked at once, so that the silence of one changes no answer of another.

use crate::clock;
use crate::config::CtlConfig;
use crate::http::{HttpClient, HttpError, HttpOptions, HttpResponse, sibling_url};
use crate::tls::TlsError;
use hyper::Method;
use proto::core::observation::{PeerAnswer, PeerStatus};
use proto::ids::{Epoch, MemberName};
use proto::rest::json::to_text;
use proto::time::MonoTime;
use proto::wal::{Lsn, Timeline};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::sync::{Arc, RwLock};
use std::time::Duration;
use tokio::task::JoinSet;

/// Limit of one `POST /failsafe`, as Patroni has it.
pub const FAILSAFE_LIMIT: Duration = Duration::from_secs(2);

/// Limit of the question whether a member of our name is already running.
pub const LIVENESS_LIMIT: Duration = Duration::from_secs(3);

/// Asks the peers. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    client: Arc<RwLock<HttpClient>>,
}

/// What a primary that lost etcd says of itself to the others (`rest-api.md` 15.2).
#[derive(Clone, Debug, PartialEq)]
pub struct FailsafeMessage {
    /// Who asks.
    pub name: MemberName,
    /// Its `conn_url`.
    pub conn_url: String,
    /// Its `api_url`.
    pub api_url: String,
    /// Its slots and their positions.
    pub slots: BTreeMap<String, u64>,
}

/// What they said.
#[derive(Clone, Debug, PartialEq)]
pub struct FailsafeVerdict {
    /// Every one of them accepted. True when there was nobody to ask.
    pub accepted: bool,
    /// When the first request was sent.
    pub sent_at: MonoTime,
    /// The WAL positions of those who accepted.
    pub positions: BTreeMap<MemberName, Lsn>,
    /// Why the others did not, for people.
    pub refusals: BTreeMap<MemberName, String>,
}

impl Peers {
    /// A client with the credentials for calls between agents.
    pub fn new(ctl: &CtlConfig) -> Result<Self, TlsError> {
        let client = HttpClient::new(&HttpOptions::between_agents(ctl))?;
        Ok(Self {
            client: Arc::new(RwLock::new(client)),
        })
    }

    /// Takes over a changed configuration, and certificates that changed on disk. The old ones stay
    /// in use when the new ones cannot be read.
    pub fn reload(&self, ctl: &CtlConfig) -> Result<(), TlsError> {
        let client = HttpClient::new(&HttpOptions::between_agents(ctl))?;
        *self
            .client
            .write()
            .unwrap_or_else(std::sync::PoisonError::into_inner) = client;
        Ok(())
    }

    fn client(&self) -> HttpClient {
        self.client
            .read()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
            .clone()
    }

    /// `GET <api_url>` of all in parallel. Every peer has an entry in the result, and the result comes
    /// after `limit` at the latest.
    pub async fn ask(
        &self,
        peers: &BTreeMap<MemberName, String>,
        limit: Duration,
    ) -> BTreeMap<MemberName, PeerAnswer> {
        let asked_at = clock::now();
        let silent = PeerAnswer {
            asked_at,
            status: None,
        };
        let mut answers: BTreeMap<_, _> = peers
            .keys()
            .map(|name| (name.clone(), silent.clone()))
            .collect();
        let mut questions = JoinSet::new();
        for (name, url) in peers {
            let (client, name, url) = (self.client(), name.clone(), url.clone());
            questions.spawn(async move {
                let answer = client.request(Method::GET, &url, None, limit).await;
                (name, answer)
            });
        }
        while let Some(joined) = questions.join_next().await {
            let Ok((name, answer)) = joined else { continue };
            match answer {
                Ok(response) => {
                    let status = Some(parse_status(&response));
                    answers.insert(name, PeerAnswer { asked_at, status });
                }
                Err(err) => tracing::debug!("{name} did not answer: {}", chain(&err)),
            }
        }
        answers
    }

    /// `POST /failsafe` to all in parallel, with one more attempt where no connection came about.
    pub async fn failsafe(
        &self,
        peers: &BTreeMap<MemberName, String>,
        message: &FailsafeMessage,
    ) -> FailsafeVerdict {
        let body = to_text(&json!({
            "name": message.name,
            "conn_url": message.conn_url,
            "api_url": message.api_url,
            "slots": message.slots,
        }));
        let sent_at = clock::now();
        let mut questions = JoinSet::new();
        for (name, url) in peers {
            let (client, name, url, body) =
                (self.client(), name.clone(), url.clone(), body.clone());
            questions.spawn(async move { (name, ask_failsafe(&client, &url, body).await) });
        }
        let mut verdict = FailsafeVerdict {
            accepted: true,
            sent_at,
            positions: BTreeMap::new(),
            refusals: BTreeMap::new(),
        };
        while let Some(joined) = questions.join_next().await {
            match joined {
                Ok((name, Ok(position))) => {
                    verdict
                        .positions
                        .extend(position.map(|position| (name, position)));
                }
                Ok((name, Err(why))) => {
                    verdict.accepted = false;
                    verdict.refusals.insert(name, why);
                }
                Err(_) => verdict.accepted = false,
            }
        }
        verdict
    }

    /// Whether anything answers at this `api_url`: then a member of this name is already running
    /// (`rest-api.md` 19, "agent start").
    pub async fn answers(&self, api_url: &str) -> bool {
        let Ok(url) = sibling_url(api_url, "liveness") else {
            return false;
        };
        self.client()
            .request(Method::GET, &url, None, LIVENESS_LIMIT)
            .await
            .is_ok()
    }
}

/// The header of `GET /patroni` that says which is the highest epoch that a member knows of.
pub const EPOCH: &str = "garden-epoch";

/// The header of `GET /patroni` that says how old the positions in it are, in milliseconds.
pub const POSITION_AGE: &str = "garden-position-age-ms";

async fn ask_failsafe(
    client: &HttpClient,
    api_url: &str,
    body: String,
) -> Result<Option<Lsn>, String> {
    let url = sibling_url(api_url, "failsafe").map_err(|err| err.to_string())?;
    let attempt = || client.request(Method::POST, &url, Some(body.clone()), FAILSAFE_LIMIT);
    let answer = match attempt().await {
        Err(HttpError::Connect { .. }) => attempt().await,
        other => other,
    };
    let response = answer.map_err(|err| chain(&err))?;
    if response.status != hyper::StatusCode::OK || response.body.as_ref() != b"Accepted" {
        return Err(format!("{}: {}", response.status.as_u16(), response.text()));
    }
    let lsn = response
        .headers
        .get("lsn")
        .and_then(|value| value.to_str().ok());
    Ok(lsn.and_then(|text| text.parse().ok()).map(Lsn))
}

fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

pub(crate) fn parse_status(response: &HttpResponse) -> PeerStatus {
    let Ok(Value::Object(doc)) = response.json() else {
        return PeerStatus {
            agent_only: true,
            ..PeerStatus::default()
        };
    };
    let number = |name| {
        let value = response.headers.get(name)?;
        value.to_str().ok()?.parse().ok()
    };
    PeerStatus {
        age: number(POSITION_AGE)
            .map(Duration::from_millis)
            .unwrap_or_default(),
        epoch: number(EPOCH).map(Epoch).unwrap_or_default(),
        ..peer_status(&doc)
    }
}

/// Reads a status document as a candidate does. Without `xlog` only the agent answered.
pub fn peer_status(doc: &Map<String, Value>) -> PeerStatus {
    let tags = doc
        .get("tags")
        .and_then(Value::as_object)
        .cloned()
        .unwrap_or_default();
    let watchdog_failed = doc
        .get("watchdog_failed")
        .is_some_and(|v| *v == Value::Bool(true));
    let xlog = doc
        .get("xlog")
        .or_else(|| doc.get("wal"))
        .and_then(Value::as_object);
    let Some(xlog) = xlog else {
        return PeerStatus {
            tags,
            watchdog_failed,
            agent_only: true,
            ..PeerStatus::default()
        };
    };
    let position = |key: &str| xlog.get(key).and_then(Value::as_u64).unwrap_or(0);
    let role = doc.get("role").and_then(Value::as_str);
    let is_primary = position("location") != 0 || matches!(role, Some("primary" | "master"));
    let standby = position("received_location").max(position("replayed_location"));
    let timeline = doc
        .get("timeline")
        .and_then(Value::as_u64)
        .and_then(|n| u32::try_from(n).ok());
    PeerStatus {
        is_primary,
        position: Lsn(if is_primary {
            position("location").max(standby)
        } else {
            standby
        }),
        timeline: timeline.filter(|n| *n != 0).map(Timeline),
        tags,
        watchdog_failed,
        streaming: doc.get("replication_state").and_then(Value::as_str) == Some("streaming"),
        agent_only: false,
        age: Duration::ZERO,
        epoch: Epoch::default(),
    }
}
