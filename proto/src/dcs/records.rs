//! What the values in etcd mean (`dcs-layout.md` 3).
//!
//! Readers forgive: other members may be another version, another program, or an operator with an
//! editor. A value that cannot be read gives an error text, never a panic; the caller decides whether
//! it counts as absent or as a stop sign. Writers write exactly Patroni's form: no blanks, the same
//! order of fields.

use crate::ids::{Epoch, LeaseId, MemberName, Revision, SystemId};
use crate::time::WallTime;
use crate::wal::{Lsn, Timeline};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

fn object(text: &str) -> Result<Map<String, Value>, String> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(String::from("expected a JSON object")),
        Err(err) => Err(problem("expected a JSON object", err)),
    }
}

/// What was expected, and the beginning of what was found: the parser quotes texts whole, and a value may
/// have a megabyte.
fn problem(expected: &str, found: impl fmt::Display) -> String {
    const SHOWN_MAX: usize = 80;
    let found: String = found.to_string().chars().take(SHOWN_MAX).collect();
    format!("{expected}: {found}")
}

fn text(map: &Map<String, Value>, key: &str) -> Option<String> {
    map.get(key)?.as_str().map(str::to_owned)
}

fn number(map: &Map<String, Value>, key: &str) -> Option<u64> {
    match map.get(key)? {
        Value::Number(n) => n.as_u64(),
        Value::String(s) => s.trim().parse().ok(),
        _ => None,
    }
}

fn lsn(map: &Map<String, Value>, key: &str) -> Option<Lsn> {
    number(map, key).map(Lsn).and_then(Lsn::some)
}

/// Reads a boolean as Patroni does (`configuration.md` 3.2); `None` for what is none.
pub fn parse_bool(value: &Value) -> Option<bool> {
    let shown = match value {
        Value::Bool(b) => return Some(*b),
        Value::Number(n) => n.to_string(),
        Value::String(s) => s.to_lowercase(),
        _ => return None,
    };
    match shown.as_str() {
        "on" | "true" | "yes" | "1" => Some(true),
        "off" | "false" | "no" | "0" => Some(false),
        _ => None,
    }
}

macro_rules! wire_words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            /// The text on the wire.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text,)+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }

        impl FromStr for $name {
            type Err = ();
            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($text => Ok(Self::$variant),)+ _ => Err(()) }
            }
        }
    };
}

wire_words! {
    /// `state` in the member key and in REST. The order is the Prometheus number.
    PgState {
        /// `initdb` is running.
        Initdb = "initializing new cluster",
        /// `initdb` failed.
        InitdbFailed = "initdb failed",
        /// A custom bootstrap command is running.
        CustomBootstrap = "running custom bootstrap script",
        /// It failed.
        CustomBootstrapFailed = "custom bootstrap failed",
        /// A base backup or another replica method is running.
        CreatingReplica = "creating replica",
        /// Accepts connections.
        Running = "running",
        /// The postmaster lives but does not accept connections yet.
        Starting = "starting",
        /// The same, for the first time after a custom bootstrap.
        BootstrapStarting = "starting after custom bootstrap",
        /// The postmaster did not come up.
        StartFailed = "start failed",
        /// A restart is under way.
        Restarting = "restarting",
        /// A restart failed.
        RestartFailed = "restart failed",
        /// A stop is under way.
        Stopping = "stopping",
        /// Stopped on purpose.
        Stopped = "stopped",
        /// A stop did not end.
        StopFailed = "stop failed",
        /// Was running, found dead.
        Crashed = "crashed",
    }
}

wire_words! {
    /// `role` in the member key and in REST. `master` of older members is read as `primary`.
    PgRole {
        /// Out of recovery, or about to be kept there.
        Primary = "primary",
        /// In recovery.
        Replica = "replica",
        /// Leads a standby cluster.
        StandbyLeader = "standby_leader",
        /// Was a primary and was stopped.
        Demoted = "demoted",
        /// No data directory.
        Uninitialized = "uninitialized",
        /// Told to promote, not yet out of recovery.
        Promoted = "promoted",
    }
}

/// `/leader`: who leads, and on which etcd lease the key hangs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaderRecord {
    /// The member.
    pub name: MemberName,
    /// The lease of the key.
    pub lease: LeaseId,
    /// When the key was created.
    pub created: Revision,
    /// When it was last written.
    pub modified: Revision,
}

/// `/members/<name>` with its place in etcd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberEntry {
    /// What the member says of itself.
    pub record: MemberRecord,
    /// The lease of the key: the member's session.
    pub lease: LeaseId,
    /// When it was last written.
    pub modified: Revision,
}

/// What a member of ours can do beyond Patroni. Absent for a Patroni member.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    /// Version of our protocol between members; members of another one lead compatibly.
    pub protocol: u32,
    /// Holds and honours the record lease.
    pub record: bool,
    /// Takes part in quorum-fenced failover.
    pub fence: bool,
}

/// The value of `/members/<name>` (`dcs-layout.md` 3.2).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// `postgres://host:port/database`.
    pub conn_url: Option<String>,
    /// `http(s)://host:port/patroni`.
    pub api_url: Option<String>,
    /// State of its PostgreSQL, as text: other versions may know more states.
    pub state: Option<String>,
    /// Role of its PostgreSQL, as text.
    pub role: Option<String>,
    /// Dotted version of the agent.
    pub version: Option<String>,
    /// Address of a pooler beside PostgreSQL.
    pub proxy_url: Option<String>,
    /// `false` while no checkpoint on the current timeline is known.
    pub checkpoint_after_promote: Option<bool>,
    /// Tags in the order of the configuration.
    pub tags: Map<String, Value>,
    /// A restart is pending.
    pub pending_restart: bool,
    /// Parameter, and its old and new value.
    pub pending_restart_reason: Option<Value>,
    /// Primary: flushed; standby: received or replayed, whichever is larger.
    pub xlog_location: Option<Lsn>,
    /// Standbys only.
    pub replay_lsn: Option<Lsn>,
    /// Standbys only.
    pub receive_lsn: Option<Lsn>,
    /// `streaming` or `in archive recovery`.
    pub replication_state: Option<String>,
    /// Its timeline.
    pub timeline: Option<Timeline>,
    /// A restart that somebody scheduled.
    pub scheduled_restart: Option<Value>,
    /// The agent sees the cluster paused.
    pub pause: bool,
    /// Ours only.
    pub capabilities: Option<Capabilities>,
}

impl MemberRecord {
    /// Reads a value. The legacy form `postgres://…?application_name=URL` is understood.
    pub fn parse(value: &str) -> Result<Self, String> {
        if value.starts_with("postgres") {
            return Ok(Self::parse_legacy(value));
        }
        let map = object(value)?;
        let flag = |key: &str| map.get(key).and_then(parse_bool).unwrap_or(false);
        Ok(Self {
            conn_url: text(&map, "conn_url").or_else(|| conn_url_of_kwargs(&map)),
            api_url: text(&map, "api_url"),
            state: text(&map, "state"),
            role: text(&map, "role").map(|r| if r == "master" { "primary".into() } else { r }),
            version: text(&map, "version"),
            proxy_url: text(&map, "proxy_url"),
            checkpoint_after_promote: map.get("checkpoint_after_promote").and_then(parse_bool),
            tags: map
                .get("tags")
                .and_then(Value::as_object)
                .cloned()
                .unwrap_or_default(),
            pending_restart: flag("pending_restart"),
            pending_restart_reason: map.get("pending_restart_reason").cloned(),
            xlog_location: lsn(&map, "xlog_location"),
            replay_lsn: lsn(&map, "replay_lsn"),
            receive_lsn: lsn(&map, "receive_lsn"),
            replication_state: text(&map, "replication_state"),
            timeline: number(&map, "timeline")
                .and_then(|n| u32::try_from(n).ok())
                .filter(|n| *n != 0)
                .map(Timeline),
            scheduled_restart: map
                .get("scheduled_restart")
                .filter(|v| v.is_object())
                .cloned(),
            pause: flag("pause"),
            capabilities: map
                .get("garden")
                .and_then(|v| Capabilities::deserialize(v).ok()),
        })
    }

    fn parse_legacy(value: &str) -> Self {
        let (url, query) = value.split_once('?').unwrap_or((value, ""));
        let api = query
            .split('&')
            .find_map(|p| p.strip_prefix("application_name="));
        Self {
            conn_url: Some(url.to_owned()),
            api_url: api.map(str::to_owned),
            ..Self::default()
        }
    }

    /// The value to write, fields in Patroni's order and absent ones left out.
    pub fn to_value(&self) -> String {
        let mut map = Map::new();
        let mut put = |key: &str, value: Option<Value>| {
            if let Some(value) = value {
                map.insert(key.to_owned(), value);
            }
        };
        let text = |t: &Option<String>| t.clone().map(Value::String);
        let position = |l: Option<Lsn>| l.and_then(Lsn::some).map(|l| json!(l.0));
        put("conn_url", text(&self.conn_url));
        put("api_url", text(&self.api_url));
        put("state", text(&self.state));
        put("role", text(&self.role));
        put("version", text(&self.version));
        put("proxy_url", text(&self.proxy_url));
        put(
            "checkpoint_after_promote",
            self.checkpoint_after_promote.map(Value::Bool),
        );
        put(
            "tags",
            (!self.tags.is_empty()).then(|| Value::Object(self.tags.clone())),
        );
        put(
            "pending_restart",
            self.pending_restart.then_some(Value::Bool(true)),
        );
        put(
            "pending_restart_reason",
            self.pending_restart_reason.clone(),
        );
        put("xlog_location", position(self.xlog_location));
        put("replay_lsn", position(self.replay_lsn));
        put("receive_lsn", position(self.receive_lsn));
        put("replication_state", text(&self.replication_state));
        put("timeline", self.timeline.map(|t| json!(t.0)));
        put("scheduled_restart", self.scheduled_restart.clone());
        put("pause", self.pause.then_some(Value::Bool(true)));
        put("garden", self.capabilities.map(|c| json!(c)));
        Value::Object(map).to_string()
    }

    /// The position with which it would stand for election.
    pub fn position(&self) -> Option<Lsn> {
        self.xlog_location
            .max(self.receive_lsn)
            .max(self.replay_lsn)
    }

    /// A tag, when it is set to something that is not null.
    pub fn tag(&self, name: &str) -> Option<&Value> {
        self.tags.get(name).filter(|v| !v.is_null())
    }

    /// Whether the member says that its PostgreSQL accepts connections.
    pub fn is_running(&self) -> bool {
        self.state.as_deref() == Some(PgState::Running.as_str())
    }
}

fn conn_url_of_kwargs(map: &Map<String, Value>) -> Option<String> {
    let kwargs = map.get("conn_kwargs")?.as_object()?;
    let host = text(kwargs, "host")?;
    let port = number(kwargs, "port").unwrap_or(5432);
    Some(format!("postgres://{host}:{port}"))
}

/// The value of `/initialize`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Initialize {
    /// Empty: somebody is bootstrapping, or died while doing so. The lease that the key hangs on, whose owner
    /// that is.
    Bootstrapping(LeaseId),
    /// The cluster's identifier.
    System(SystemId),
    /// Anything else.
    Invalid(String),
}

impl Initialize {
    /// Reads a value.
    pub fn parse(value: &str, lease: LeaseId) -> Self {
        match SystemId::parse(value) {
            Some(id) => Self::System(id),
            None if value.is_empty() => Self::Bootstrapping(lease),
            None => Self::Invalid(value.chars().take(40).collect()),
        }
    }

    /// The identifier, when it is one.
    pub fn system(&self) -> Option<SystemId> {
        match self {
            Self::System(id) => Some(*id),
            Self::Bootstrapping(_) | Self::Invalid(_) => None,
        }
    }
}

/// `/config`, the dynamic configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub enum ConfigRecord {
    /// No such key.
    #[default]
    Absent,
    /// A document, and the revision at which it was written.
    Document {
        /// The JSON object as it is stored.
        document: Map<String, Value>,
        /// For compare-and-set.
        modified: Revision,
    },
    /// Not an object: the last good document stays in force (S12).
    Garbled {
        /// What was expected.
        problem: String,
        /// When it was written.
        modified: Revision,
    },
}

impl ConfigRecord {
    /// Reads a value.
    pub fn parse(value: &str, modified: Revision) -> Self {
        match object(value) {
            Ok(document) => Self::Document { document, modified },
            Err(problem) => Self::Garbled { problem, modified },
        }
    }

    /// The document, when there is a usable one with content.
    pub fn document(&self) -> Option<&Map<String, Value>> {
        match self {
            Self::Document { document, .. } if !document.is_empty() => Some(document),
            Self::Document { .. } | Self::Absent | Self::Garbled { .. } => None,
        }
    }

    /// The revision of the key, when it exists.
    pub fn modified(&self) -> Option<Revision> {
        match self {
            Self::Absent => None,
            Self::Document { modified, .. } | Self::Garbled { modified, .. } => Some(*modified),
        }
    }
}

/// `/status` (`dcs-layout.md` 3.5).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusRecord {
    /// Whether the key exists.
    pub present: bool,
    /// Last position of the lock's owner.
    pub optime: Option<Lsn>,
    /// Slot and its position on the leader.
    pub slots: BTreeMap<String, u64>,
    /// Member slots that must survive their member.
    pub retain_slots: Vec<String>,
}

impl StatusRecord {
    /// Reads a value; a bare number is the legacy form, and `slots` may be text with JSON in it.
    pub fn parse(value: &str) -> Result<Self, String> {
        if let Ok(bare) = value.trim().parse::<u64>() {
            return Ok(Self {
                present: true,
                optime: Lsn(bare).some(),
                ..Self::default()
            });
        }
        let map = object(value)?;
        let nested = |key: &str| match map.get(key) {
            Some(Value::String(inner)) => serde_json::from_str(inner).ok(),
            other => other.cloned(),
        };
        let slots = match nested("slots") {
            Some(Value::Object(slots)) => slots
                .iter()
                .filter_map(|(k, v)| Some((k.clone(), v.as_u64()?)))
                .collect(),
            _ => BTreeMap::new(),
        };
        let retain_slots = match nested("retain_slots") {
            Some(Value::Array(names)) => names
                .iter()
                .filter_map(|n| n.as_str().map(str::to_owned))
                .collect(),
            _ => Vec::new(),
        };
        Ok(Self {
            present: true,
            optime: lsn(&map, "optime"),
            slots,
            retain_slots,
        })
    }

    /// The value to write.
    pub fn to_value(&self) -> String {
        let mut map = Map::new();
        map.insert("optime".into(), json!(self.optime.unwrap_or_default().0));
        if !self.slots.is_empty() {
            map.insert("slots".into(), json!(self.slots));
        }
        if !self.retain_slots.is_empty() {
            let mut names = self.retain_slots.clone();
            names.sort();
            map.insert("retain_slots".into(), json!(names));
        }
        Value::Object(map).to_string()
    }
}

/// One line of `/history`: at least timeline, position and reason; time and new leader may lack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HistoryLine {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// Where it ended.
    pub lsn: Lsn,
    /// The text of PostgreSQL's history file.
    pub reason: String,
    /// ISO 8601.
    pub timestamp: Option<String>,
    /// Who created the next timeline.
    pub new_leader: Option<String>,
}

/// `/history` (`dcs-layout.md` 3.7).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HistoryRecord {
    /// Whether the key exists.
    pub present: bool,
    /// Oldest first.
    pub lines: Vec<HistoryLine>,
    /// For compare-and-set; `None` when the key does not exist.
    #[serde(default)]
    pub modified: Option<Revision>,
}

impl HistoryRecord {
    /// Reads a value. Its revision is the caller's to fill in.
    pub fn parse(value: &str) -> Result<Self, String> {
        let rows: Vec<Vec<Value>> = serde_json::from_str(value)
            .map_err(|err| problem("expected a JSON array of arrays", err))?;
        let line = |row: &Vec<Value>| -> Option<HistoryLine> {
            let at = |i: usize| row.get(i).and_then(Value::as_str).map(str::to_owned);
            Some(HistoryLine {
                timeline: Timeline(u32::try_from(row.first()?.as_u64()?).ok()?),
                lsn: Lsn(row.get(1)?.as_u64()?),
                reason: at(2).unwrap_or_default(),
                timestamp: at(3),
                new_leader: at(4),
            })
        };
        let lines = rows
            .iter()
            .map(|row| {
                line(row).ok_or_else(|| problem("not a history line", Value::from(row.clone())))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self {
            present: true,
            lines,
            modified: None,
        })
    }

    /// The value to write.
    pub fn to_value(&self) -> String {
        let rows: Vec<Value> = self
            .lines
            .iter()
            .map(|l| {
                let mut row = vec![json!(l.timeline.0), json!(l.lsn.0), json!(l.reason)];
                // By its place in the line a leader needs a moment before it, be it null.
                if l.timestamp.is_some() || l.new_leader.is_some() {
                    row.push(json!(l.timestamp));
                    row.extend(l.new_leader.as_ref().map(|n| json!(n)));
                }
                Value::Array(row)
            })
            .collect();
        Value::Array(rows).to_string()
    }

    /// The timeline that the cluster is on as far as the history tells: the last line's plus one;
    /// `[]` gives 1; no key gives `None`.
    pub fn cluster_timeline(&self) -> Option<Timeline> {
        match self.lines.last() {
            Some(last) => Some(last.timeline.next()),
            None => self.present.then_some(Timeline::FIRST),
        }
    }
}

/// `/failover`: a switchover when it names a leader, else a failover (`dcs-layout.md` 3.8).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailoverRecord {
    /// Who shall step down.
    pub leader: Option<MemberName>,
    /// Who shall take over. Stored as `member`, called `candidate` in REST.
    pub candidate: Option<MemberName>,
    /// When; switchovers only.
    pub scheduled_at: Option<Schedule>,
    /// For compare-and-set.
    pub modified: Revision,
}

/// A moment that somebody wrote down.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    /// As it was written, shown to people unchanged.
    pub text: String,
    /// What it means; `None` when it is no moment, which clears the request.
    pub at: Option<WallTime>,
}

impl FailoverRecord {
    /// Reads a value; `None` when it asks for nothing. `leader:candidate` is the legacy form.
    pub fn parse(value: &str, modified: Revision) -> Result<Option<Self>, String> {
        let name = |n: Option<String>| n.filter(|n| !n.is_empty()).map(MemberName::new);
        let (leader, candidate, scheduled) = match object(value) {
            Ok(map) => (
                text(&map, "leader"),
                text(&map, "member"),
                text(&map, "scheduled_at"),
            ),
            Err(_) if !value.trim_start().starts_with(['{', '[', '"']) && value.contains(':') => {
                let (leader, candidate) = value.split_once(':').unwrap_or_default();
                (
                    Some(leader.trim().to_owned()),
                    Some(candidate.trim().to_owned()),
                    None,
                )
            }
            Err(problem) => return Err(problem),
        };
        let (leader, candidate) = (name(leader), name(candidate));
        if leader.is_none() && candidate.is_none() {
            return Ok(None);
        }
        let scheduled_at = scheduled.filter(|t| !t.is_empty()).map(|text| Schedule {
            at: WallTime::parse(&text),
            text,
        });
        Ok(Some(Self {
            leader,
            candidate,
            scheduled_at,
            modified,
        }))
    }

    /// The value to write for a request.
    pub fn value(
        leader: Option<&MemberName>,
        candidate: Option<&MemberName>,
        scheduled_at: Option<&str>,
    ) -> String {
        let mut map = Map::new();
        if let Some(leader) = leader {
            map.insert("leader".into(), json!(leader));
        }
        if let Some(candidate) = candidate {
            map.insert("member".into(), json!(candidate));
        }
        if let Some(at) = scheduled_at {
            map.insert("scheduled_at".into(), json!(at));
        }
        Value::Object(map).to_string()
    }

    /// Whether it names the leader that shall step down.
    pub fn is_switchover(&self) -> bool {
        self.leader.is_some()
    }
}

/// `/sync` (`dcs-layout.md` 3.9).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SyncRecord {
    /// The primary that keeps the key; `None` means that synchronous mode is not active.
    pub leader: Option<MemberName>,
    /// Who may be promoted, sorted. In quorum mode: the voters.
    pub standbys: Vec<String>,
    /// In quorum mode: how many other votes a voter needs.
    pub quorum: u32,
    /// For compare-and-set; `None` when the key does not exist.
    pub modified: Option<Revision>,
}

impl SyncRecord {
    /// Reads a value.
    pub fn parse(value: &str, modified: Revision) -> Result<Self, String> {
        let map = object(value)?;
        let leader = text(&map, "leader")
            .filter(|l| !l.is_empty())
            .map(MemberName::new);
        let mut standbys: Vec<String> = text(&map, "sync_standby")
            .map(|list| list.split(',').map(|n| n.trim().to_owned()).collect())
            .unwrap_or_default();
        standbys.retain(|name| !name.is_empty());
        standbys.sort();
        let quorum = number(&map, "quorum")
            .and_then(|q| u32::try_from(q).ok())
            .unwrap_or(0);
        let active = leader.is_some();
        Ok(Self {
            leader,
            standbys: if active { standbys } else { Vec::new() },
            quorum: if active { quorum } else { 0 },
            modified: Some(modified),
        })
    }

    /// The value to write: names sorted, no blanks, `null` when there is none.
    pub fn value(leader: &MemberName, standbys: &[String], quorum: u32) -> String {
        let mut names: Vec<&str> = standbys.iter().map(String::as_str).collect();
        names.sort_unstable();
        let list = (!names.is_empty()).then(|| names.join(","));
        json!({"leader": leader, "quorum": quorum, "sync_standby": list}).to_string()
    }

    /// Whether synchronous mode is in force in this key.
    pub fn is_active(&self) -> bool {
        self.leader.is_some()
    }

    /// Whether `name` is listed as a standby.
    pub fn lists(&self, name: &MemberName) -> bool {
        self.standbys.iter().any(|s| name.same_standby(s))
    }

    /// Whether `name` is listed as a standby or keeps the key.
    pub fn involves(&self, name: &MemberName) -> bool {
        self.lists(name)
            || self
                .leader
                .as_ref()
                .is_some_and(|l| l.same_standby(name.as_str()))
    }
}

/// `/failsafe`: member and its REST URL.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FailsafeRecord {
    /// In the order in which they were written.
    pub members: BTreeMap<MemberName, String>,
}

impl FailsafeRecord {
    /// Reads a value.
    pub fn parse(value: &str) -> Result<Self, String> {
        let members = object(value)?
            .into_iter()
            .filter_map(|(name, url)| Some((MemberName::new(name), url.as_str()?.to_owned())))
            .collect();
        Ok(Self { members })
    }

    /// The value to write.
    pub fn to_value(&self) -> String {
        json!(self.members).to_string()
    }
}

/// Whether the epoch in a record is still led.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordState {
    /// Somebody leads in this epoch.
    Held,
    /// Nobody does any more, and no process of the owner's PostgreSQL could write (S10).
    Released,
    /// The cluster leads by `/leader`, since a member is Patroni. The record only keeps the epoch, so
    /// that epochs go on increasing when the cluster is native again (S4).
    Compatible,
}

/// `/record`: the lease of a native cluster. It hangs on no etcd lease; its owner renews it by
/// compare-and-set, and another may take it only after having watched it stand still (`safety.md` 2).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// Version of the form.
    pub v: u32,
    /// The tenure. Grows with every change of owner, never otherwise.
    pub epoch: Epoch,
    /// Who leads.
    pub owner: MemberName,
    /// Which life of the owner's guardian: a restarted machine is somebody else.
    pub session: String,
    /// Counts renewals, so that each one changes the key.
    pub seq: u64,
    /// Held or released.
    pub state: RecordState,
    /// The owner's lease length in milliseconds.
    pub l_ms: u64,
    /// How long a candidate must see it stand still, in milliseconds.
    pub w_ms: u64,
    /// Who may take over: all members that speak this protocol.
    pub members: Vec<MemberName>,
    /// Timeline and end of WAL of the epoch that is over, when it was left in order.
    #[serde(rename = "final", default, skip_serializing_if = "Option::is_none")]
    pub final_position: Option<(Timeline, Lsn)>,
}

/// [`LeaseRecord`] with its place in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordEntry {
    /// The value.
    pub record: LeaseRecord,
    /// Its revision: what a candidate watches standing still.
    pub modified: Revision,
}

/// The form of [`LeaseRecord`] and [`FencePromise`] that this version writes and understands.
pub const RECORD_VERSION: u32 = 1;

impl RecordEntry {
    /// Reads a value. A newer form is refused: a stop sign, not an absence.
    pub fn parse(value: &str, modified: Revision) -> Result<Self, String> {
        let record: LeaseRecord =
            serde_json::from_str(value).map_err(|err| problem("expected a lease record", err))?;
        if record.v != RECORD_VERSION {
            return Err(format!(
                "form {} of the lease record is not known here",
                record.v
            ));
        }
        Ok(Self { record, modified })
    }
}

impl LeaseRecord {
    /// The value to write.
    pub fn to_value(&self) -> String {
        serde_json::to_string(self).expect("plain fields with names as keys")
    }
}

/// `/fence/<member>`: the member has stored on disk that it follows no epoch below `epoch` any more,
/// has cut its stream, and its flushed WAL ends here for good (`DESIGN.md` 3).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FencePromise {
    /// Version of the form.
    pub v: u32,
    /// The epoch that the promise cuts off: its primary gets no acknowledgement from here any more.
    pub epoch: Epoch,
    /// The newest epoch whose WAL this member holds. Positions order by it first.
    pub wal_epoch: Epoch,
    /// Timeline of the frozen position.
    pub timeline: Timeline,
    /// The frozen position.
    pub lsn: Lsn,
}

/// [`FencePromise`] with its place in etcd.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceEntry {
    /// The value.
    pub promise: FencePromise,
    /// Its revision, which the takeover compares.
    pub modified: Revision,
}

impl FenceEntry {
    /// Reads a value.
    pub fn parse(value: &str, modified: Revision) -> Result<Self, String> {
        let promise: FencePromise =
            serde_json::from_str(value).map_err(|err| problem("expected a fence promise", err))?;
        if promise.v != RECORD_VERSION {
            return Err(format!(
                "form {} of the fence promise is not known here",
                promise.v
            ));
        }
        Ok(Self { promise, modified })
    }
}

impl FencePromise {
    /// The value to write.
    pub fn to_value(&self) -> String {
        json!(self).to_string()
    }
}
