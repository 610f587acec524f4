//! `doctor`: looks for what is wrong, and for what would go wrong. Fails, with exit code 1, only on what
//! somebody must look at now.
//!
//! ```text
//! configuration, records in etcd, answers of the agents ─▶ Finding* ─▶ a table
//! ```

mod checks;
mod moving;

use super::args::OneCluster;
use super::error::{CtlError, CtlResult};
use super::sayn;
use super::session::{Cluster, QUESTION_LIMIT, Session};
use super::sheet::{Column, Sheet};
use hyper::Method;
use proto::dcs::RecordState;
use proto::ids::MemberName;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// A record that is held is renewed more often than this (`safety.md` 2: at most a third of the lease).
const RENEWAL_LIMIT: Duration = Duration::from_secs(3);

/// How serious a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing.
    Warn,
    /// Must be looked at.
    Fail,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "OK",
            Self::Warn => "WARN",
            Self::Fail => "FAIL",
        }
    }
}

/// One line of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub level: Level,
    /// A sentence.
    pub text: String,
}

/// What a member's agent answered.
#[derive(Clone, Debug, PartialEq)]
pub enum Agent {
    /// Its status document, and how far its clock is ahead of ours in seconds, as far as it says.
    Answers {
        /// The document.
        status: Value,
        /// Seconds; negative when it is behind.
        clock_ahead: Option<i64>,
    },
    /// Nothing usable, and what instead.
    Silent(String),
}

/// Everything that the checks look at.
pub struct Patient<'c> {
    /// The cluster as etcd tells it.
    pub cluster: &'c Cluster,
    /// The members' agents.
    pub agents: BTreeMap<MemberName, Agent>,
    /// Whether the lease record was renewed while we watched; `None` when nobody holds one.
    pub record_renewed: Option<bool>,
    /// Sentences about the local configuration.
    pub notes: Vec<String>,
}

/// `doctor`.
pub async fn doctor(session: &Session, args: OneCluster) -> CtlResult<()> {
    let cluster = session
        .cluster_or(args.cluster_name.as_deref(), args.group)
        .await?;
    let patient = Patient {
        cluster: &cluster,
        agents: ask_agents(session, &cluster).await,
        record_renewed: watch_record(&cluster).await?,
        notes: session.notes().to_vec(),
    };
    let findings = checks::all(&patient);
    let columns = vec![
        Column::left("Result"),
        Column::left("Check"),
        Column::left("Finding"),
    ];
    let row = |finding: &Finding| {
        vec![
            json!(finding.level.name()),
            json!(finding.check),
            json!(finding.text),
        ]
    };
    let rows = findings.iter().map(row).collect();
    sayn!(
        "{}",
        Sheet { columns, rows }.table(Some(&format!("Cluster: {}", cluster.scope)))
    );
    match findings.iter().any(|finding| finding.level == Level::Fail) {
        true => Err(CtlError::Failed),
        false => Ok(()),
    }
}

async fn ask_agents(session: &Session, cluster: &Cluster) -> BTreeMap<MemberName, Agent> {
    let mut agents = BTreeMap::new();
    for (name, record) in cluster.members() {
        let answer = session
            .request(record, Method::GET, None, None, QUESTION_LIMIT)
            .await;
        let agent = match answer {
            Err(err) => Agent::Silent(super::error::chain(&err)),
            Ok(answer) => {
                let date = answer
                    .headers
                    .get("date")
                    .and_then(|date| date.to_str().ok());
                match answer.json() {
                    Ok(status) => Agent::Answers {
                        status,
                        clock_ahead: date.and_then(ahead),
                    },
                    Err(_) => Agent::Silent(format!(
                        "status {} and no status document",
                        answer.status.as_u16()
                    )),
                }
            }
        };
        agents.insert(name.clone(), agent);
    }
    agents
}

/// How far the moment of an HTTP date is ahead of ours.
fn ahead(date: &str) -> Option<i64> {
    let theirs = jiff::fmt::rfc2822::parse(date).ok()?.timestamp();
    Some(theirs.as_second() - jiff::Timestamp::now().as_second())
}

/// Watches a held record until it is renewed.
async fn watch_record(cluster: &Cluster) -> CtlResult<Option<bool>> {
    let held = cluster
        .view
        .record
        .as_ref()
        .filter(|r| r.record.state == RecordState::Held);
    let Some(before) = held else {
        return Ok(None);
    };
    let until = tokio::time::Instant::now() + RENEWAL_LIMIT;
    while tokio::time::Instant::now() < until {
        tokio::time::sleep(RENEWAL_LIMIT / 10).await;
        let now = cluster.read_again().await?;
        if now
            .view
            .record
            .as_ref()
            .is_none_or(|record| record.modified != before.modified)
        {
            return Ok(Some(true));
        }
    }
    Ok(Some(false))
}
