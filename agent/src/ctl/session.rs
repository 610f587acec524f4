//! What a command works with: the configuration, etcd, and the members' agents.

use super::args::{Global, Group, Role};
use super::error::{CtlError, CtlResult, says};
use crate::config::{ControlConfig, Loader, env};
use crate::etcd::Etcd;
use crate::http::{HttpClient, HttpError, HttpOptions, HttpResponse, sibling_url};
use hyper::Method;
use proto::config::ClusterConfig;
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{ClusterView, Keyspace, MemberRecord, Snapshot, Txn};
use proto::ids::MemberName;
use std::time::Duration;

/// Budget of one read or write in etcd.
const ETCD_LIMIT: Duration = Duration::from_secs(10);

/// A restart blocks for as long as PostgreSQL needs to write its checkpoint and come back.
pub const RESTART_LIMIT: Duration = Duration::from_secs(3600);

/// Any other request; a switchover polls for up to two `loop_wait` at least 20 s.
pub const REQUEST_LIMIT: Duration = Duration::from_secs(300);

/// Questions that an agent answers from what it has at hand.
pub const QUESTION_LIMIT: Duration = Duration::from_secs(5);

/// Further attempts when no connection came about, or it broke.
const RETRIES: u32 = 3;

/// Configuration and clients of one run.
pub struct Session {
    config: ControlConfig,
    http: HttpClient,
    notes: Vec<String>,
}

/// One cluster as etcd tells it.
pub struct Cluster {
    /// Its name.
    pub scope: String,
    /// Citus group, when one was asked for.
    pub group: Option<i64>,
    /// The raw entries.
    pub snapshot: Snapshot,
    /// Their meaning.
    pub view: ClusterView,
    /// The dynamic configuration's meaning.
    pub config: ClusterConfig,
    etcd: Etcd,
}

impl Session {
    /// Reads the configuration (`cli.md` 2).
    pub fn open(global: &Global) -> CtlResult<Self> {
        let named = global.config_file.as_deref();
        // An empty variable counts as one that is not set.
        let named = named.filter(|path| !path.as_os_str().is_empty());
        let mut local = Loader::for_control(named, env::capture())?.load_any()?;
        if let Some(url) = global.dcs_url.as_deref().filter(|url| !url.is_empty()) {
            local.use_store(url)?;
        }
        let (mut config, warnings) = local.control()?;
        for warning in warnings {
            tracing::warn!("{warning}");
        }
        config.ctl.insecure |= global.insecure;
        let http = HttpClient::new(&HttpOptions::for_operator(&config.ctl))?;
        let notes = local.notes().to_vec();
        Ok(Self {
            config,
            http,
            notes,
        })
    }

    /// Sentences about the text of the configuration. Only `doctor` shows them.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The configured cluster.
    pub fn scope(&self) -> Option<&str> {
        self.config.scope.as_deref()
    }

    /// The cluster that was named, else the configured one.
    pub fn scope_or<'a>(&'a self, named: Option<&'a str>) -> CtlResult<&'a str> {
        match named.or(self.scope()) {
            Some(scope) => Ok(scope),
            None => says(
                "no cluster is named, neither as an argument nor as scope in the configuration",
            ),
        }
    }

    /// Reads a cluster; one that etcd does not know is an empty one.
    pub async fn cluster(&self, scope: &str, group: Group) -> CtlResult<Cluster> {
        if self.config.etcd.endpoints.is_empty() && self.config.etcd.srv.is_none() {
            return says(
                "Can not find suitable configuration of distributed configuration store\n\
                 Available implementations: etcd3",
            );
        }
        // The keys of a Citus group lie below the cluster's.
        let path = match group.group {
            Some(group) => format!("{scope}/{group}"),
            None => scope.to_owned(),
        };
        let keyspace = Keyspace::new(&self.config.namespace, &path);
        let etcd = Etcd::open(&self.config.etcd, keyspace)?;
        let snapshot = etcd.read(ETCD_LIMIT).await?;
        Ok(Cluster::of(scope, group.group, snapshot, etcd))
    }

    /// The cluster that was named, else the configured one.
    pub async fn cluster_or(&self, named: Option<&str>, group: Group) -> CtlResult<Cluster> {
        let scope = self.scope_or(named)?.to_owned();
        self.cluster(&scope, group).await
    }

    /// Sends a request to a member's agent. `endpoint` replaces the path of its `api_url`; without one
    /// the `api_url` itself is meant.
    pub async fn request(
        &self,
        record: &MemberRecord,
        method: Method,
        endpoint: Option<&str>,
        body: Option<String>,
        limit: Duration,
    ) -> Result<HttpResponse, HttpError> {
        let api_url = record.api_url.as_deref().unwrap_or_default();
        let url = match endpoint {
            Some(endpoint) => sibling_url(api_url, endpoint)?,
            None => api_url.to_owned(),
        };
        // A request whose answer was lost may have been carried out; only these may be sent again.
        let repeatable = matches!(method, Method::GET | Method::DELETE);
        let mut retries = 0;
        loop {
            let attempt = self
                .http
                .request(method.clone(), &url, body.clone(), limit)
                .await;
            let again = match &attempt {
                Err(HttpError::Connect { .. }) => true,
                Err(HttpError::Broken(_)) => repeatable,
                Ok(_) | Err(HttpError::Timeout(_) | HttpError::Url(_)) => false,
            };
            if !again || retries == RETRIES {
                return attempt;
            }
            retries += 1;
        }
    }

    /// A request without which the command cannot go on.
    pub async fn demand(
        &self,
        name: &MemberName,
        record: &MemberRecord,
        method: Method,
        endpoint: &str,
        body: Option<String>,
    ) -> CtlResult<HttpResponse> {
        let limit = if endpoint == "restart" {
            RESTART_LIMIT
        } else {
            REQUEST_LIMIT
        };
        let answer = self
            .request(record, method, Some(endpoint), body, limit)
            .await;
        answer.map_err(|source| CtlError::Member {
            member: name.to_string(),
            source,
        })
    }
}

impl Cluster {
    fn of(scope: &str, group: Option<i64>, snapshot: Snapshot, etcd: Etcd) -> Self {
        let view = ClusterView::read(&snapshot);
        let config = view
            .config
            .document()
            .map(ClusterConfig::parse)
            .unwrap_or_default();
        Self {
            scope: scope.to_owned(),
            group,
            snapshot,
            view,
            config,
            etcd,
        }
    }

    /// Reads it again.
    pub async fn read_again(&self) -> CtlResult<Self> {
        let snapshot = self.etcd.read(ETCD_LIMIT).await?;
        Ok(Self::of(
            &self.scope,
            self.group,
            snapshot,
            self.etcd.clone(),
        ))
    }

    /// Commits; `false` when somebody else was faster.
    pub async fn commit(&self, txn: &Txn) -> CtlResult<bool> {
        match self.etcd.commit(txn, ETCD_LIMIT).await {
            TxnOutcome::Committed(_) => Ok(true),
            TxnOutcome::Refused | TxnOutcome::LeaseGone => Ok(false),
            TxnOutcome::Unknown(why) => Err(CtlError::Ambiguous(why)),
        }
    }

    /// Deletes all keys of the cluster.
    pub async fn delete_all(&self) -> CtlResult<()> {
        Ok(self.etcd.delete_all().await?)
    }

    /// The name in the leader key.
    pub fn leader(&self) -> Option<&MemberName> {
        self.view.leader_name()
    }

    /// The leader, when it has a member key.
    pub fn leader_member(&self) -> Option<(&MemberName, &MemberRecord)> {
        self.member(self.leader()?.as_str())
    }

    /// A member by name.
    pub fn member(&self, name: &str) -> Option<(&MemberName, &MemberRecord)> {
        let (name, entry) = self.view.members.get_key_value(&MemberName::from(name))?;
        Some((name, &entry.record))
    }

    /// All members by name.
    pub fn members(&self) -> impl Iterator<Item = (&MemberName, &MemberRecord)> {
        self.view
            .members
            .iter()
            .map(|(name, entry)| (name, &entry.record))
    }

    /// The leader, then the others by name.
    pub fn leader_first(&self) -> Vec<(&MemberName, &MemberRecord)> {
        let mut members: Vec<_> = self.members().collect();
        members.sort_by_key(|(name, _)| Some(*name) != self.leader());
        members
    }

    /// The members with a role (`cli.md` 7.2).
    pub fn with_role(&self, role: Role) -> Vec<(&MemberName, &MemberRecord)> {
        let leads_but_is_not = |roles: &[&str]| {
            let published = |record: &MemberRecord| record.role.clone().unwrap_or_default();
            let mut found: Vec<_> = self.leader_member().into_iter().collect();
            found.retain(|(_, record)| !roles.contains(&published(record).as_str()));
            found
        };
        match role {
            Role::Leader => leads_but_is_not(&[]),
            Role::Primary => leads_but_is_not(&["standby_leader"]),
            Role::StandbyLeader => leads_but_is_not(&["primary", "master"]),
            Role::Replica | Role::Standby => self
                .members()
                .filter(|(name, _)| Some(*name) != self.leader())
                .collect(),
            Role::Any => self.members().collect(),
        }
    }
}
