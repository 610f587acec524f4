//! What is asked, and what comes back.

use super::normal;
use super::{REST_PASSWORD, REST_USER};
use crate::cluster::Cluster;
use crate::http;
use std::fmt;
use std::time::Duration;

/// A request of a switchover or restart may take this long.
const LIMIT: Duration = Duration::from_secs(60);

/// Who asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    /// With the right name and password.
    Known,
    /// With neither.
    Anonymous,
    /// With a wrong password.
    Wrong,
}

/// One request.
#[derive(Clone, Debug)]
pub struct Probe {
    method: &'static str,
    path: String,
    body: Option<String>,
    caller: Caller,
}

impl Probe {
    /// A request without a body.
    pub fn get(method: &'static str, path: &str) -> Self {
        let path = path.to_owned();
        Self {
            method,
            path,
            body: None,
            caller: Caller::Known,
        }
    }

    /// A request with a body.
    pub fn with(method: &'static str, path: &str, body: &str) -> Self {
        let body = Some(body.to_owned());
        Self {
            body,
            ..Self::get(method, path)
        }
    }

    /// The same from somebody else.
    pub fn from(self, caller: Caller) -> Self {
        Self { caller, ..self }
    }

    /// Sends it to a member. No answer is a reply, too.
    pub async fn send(&self, cluster: &Cluster, member: usize) -> Reply {
        let Ok(member) = cluster.member(member) else {
            return Reply::Nothing;
        };
        // base64 of `operator:rest-secret` and of `operator:wrong`.
        debug_assert_eq!((REST_USER, REST_PASSWORD), ("operator", "rest-secret"));
        let authorization = match self.caller {
            Caller::Known => "Authorization: Basic b3BlcmF0b3I6cmVzdC1zZWNyZXQ=\r\n",
            Caller::Wrong => "Authorization: Basic b3BlcmF0b3I6d3Jvbmc=\r\n",
            Caller::Anonymous => "",
        };
        let length = self
            .body
            .as_ref()
            .map(|body| format!("Content-Length: {}\r\n", body.len()));
        let text = format!(
            "{} {} HTTP/1.0\r\nHost: x\r\n{authorization}{}\r\n{}",
            self.method,
            self.path,
            length.unwrap_or_default(),
            self.body.as_deref().unwrap_or_default()
        );
        match http::exchange(member.rest_port, &text, LIMIT).await {
            Ok(answer) => Reply::Answer(answer),
            Err(_) => Reply::Nothing,
        }
    }
}

impl fmt::Display for Probe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.path)?;
        if let Some(body) = &self.body {
            write!(f, " {body:?}")?;
        }
        match self.caller {
            Caller::Known => Ok(()),
            Caller::Anonymous => f.write_str(" (anonymous)"),
            Caller::Wrong => f.write_str(" (wrong password)"),
        }
    }
}

/// What came back.
#[derive(Clone, Debug)]
pub enum Reply {
    /// HTTP.
    Answer(http::Answer),
    /// The connection was refused, or closed without a word.
    Nothing,
}

impl Reply {
    /// Status; 0 when there was no answer.
    pub fn status(&self) -> u16 {
        match self {
            Self::Answer(answer) => answer.status,
            Self::Nothing => 0,
        }
    }

    /// Without what is one cluster's own.
    pub fn normal(self, cluster: &Cluster) -> Self {
        match self {
            Self::Answer(answer) => Self::Answer(http::Answer {
                body: normal::ports(&answer.body, cluster.ports()),
                ..answer
            }),
            Self::Nothing => Self::Nothing,
        }
    }
}

/// Paths of health checks.
const CHECKS: &[&str] = &[
    "/",
    "/primary",
    "/master",
    "/read-write",
    "/leader",
    "/standby-leader",
    "/standby_leader",
    "/replica",
    "/read-only",
    "/sync",
    "/synchronous",
    "/async",
    "/asynchronous",
    "/quorum",
    "/read-only-sync",
    "/read-only-synchronous",
    "/read-only-quorum",
    "/health",
    "/unknown",
];

/// More of them, each with a rule of its own.
const CHECKED_ONCE: &[&str] = &[
    "/sync/",
    "/replica/x",
    "/REPLICA",
    "//primary",
    "/foo/primary",
    "/healthz",
    "/replica?lag=1MB",
    "/replica?lag=1gb",
    "/replica?lag=-5",
    "/replica?lag=0x10",
    "/read-only?lag=16kB",
    "/async?lag=1MB",
    "/health?lag=0",
    "/replica?replication_state=streaming",
    "/replica?replication_state=in+archive+recovery",
    "/replica?tag_clonefrom=true",
    "/replica?tag_clonefrom=True",
    "/replica?tag_zone=east",
    "/read-only?tag_zone=east",
    "/health?tag_zone=east",
    "/health?tag_weight=1.5",
    "/primary?tag_zone=west",
    "/health?tag_nofailover=true",
    "/health?tag_noloadbalance=false",
    "/readiness?lag=1MB",
    "/readiness?mode=write",
    "/readiness?lag=1MB&mode=write",
];

const DOCUMENTS: &[&str] = &[
    "/patroni",
    "/patroni/x",
    "/cluster",
    "/history",
    "/config",
    "/config/ttl",
    "/metrics",
    "/failsafe",
    "/liveness",
    "/readiness",
];

/// Everything that only looks.
pub fn looks() -> Vec<Probe> {
    let mut all = Vec::new();
    for path in CHECKS {
        all.push(Probe::get("GET", path));
        all.push(Probe::get("OPTIONS", path));
    }
    all.extend(CHECKED_ONCE.iter().map(|path| Probe::get("GET", path)));
    all.extend(DOCUMENTS.iter().map(|path| Probe::get("GET", path)));
    for path in ["/primary", "/replica", "/liveness", "/patroni", "/metrics"] {
        all.push(Probe::get("HEAD", path));
    }
    all.push(Probe::get("OPTIONS", "/readiness"));
    all
}
