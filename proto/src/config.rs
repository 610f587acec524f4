//! The settings that the rules read: the dynamic configuration kept in etcd, the member's tags, and
//! the few local facts that a decision depends on.
//!
//! Nothing here can be half valid. A wrong value of a dynamic key means its default (`configuration.md`
//! 12.1), and timeouts that contradict each other are adjusted on parse, so that a [`Timing`] that
//! exists fits together.

use crate::dcs::records::parse_bool;
use crate::ids::MemberName;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::time::Duration;

/// Longest time that is taken from anybody: etcd's own limit for a lease. Above it a moment that far ahead
/// of now, or ten times the time, may be beyond what a clock can say.
pub const SECONDS_MAX: u64 = 9_000_000_000;

/// `ttl`, `loop_wait` and `retry_timeout` after the clamping of `configuration.md` 12.3:
/// `loop_wait + 2 * retry_timeout <= ttl`, and none below its minimum.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timing {
    ttl: u64,
    loop_wait: u64,
    retry_timeout: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            ttl: 30,
            loop_wait: 10,
            retry_timeout: 10,
        }
    }
}

impl Timing {
    /// Seconds as somebody wrote them; also returns a sentence for each adjustment.
    pub fn new(ttl: i64, loop_wait: i64, retry_timeout: i64) -> (Self, Vec<String>) {
        let mut notes = Vec::new();
        let mut at_least = |name: &str, value: i64, min: i64| {
            if value < min {
                notes.push(format!(
                    "{name}={value} can't be smaller than {min}, adjusting..."
                ));
            }
            u64::try_from(value.max(min)).unwrap_or(0).min(SECONDS_MAX)
        };
        let mut loop_wait = at_least("loop_wait", loop_wait, 1);
        let mut retry_timeout = at_least("retry_timeout", retry_timeout, 3);
        let ttl = at_least("ttl", ttl, 20);
        if 1 + 2 * retry_timeout > ttl {
            loop_wait = 1;
            retry_timeout = (ttl - 1) / 2;
            notes.push(format!(
                "Violated the rule \"loop_wait + 2*retry_timeout <= ttl\", where ttl={ttl}. \
                 Adjusting loop_wait from the configured value to 1 and retry_timeout to {retry_timeout}"
            ));
        } else if loop_wait + 2 * retry_timeout > ttl {
            loop_wait = ttl - 2 * retry_timeout;
            notes.push(format!(
                "Violated the rule \"loop_wait + 2*retry_timeout <= ttl\", where ttl={ttl} and \
                 retry_timeout={retry_timeout}. Adjusting loop_wait to {loop_wait}"
            ));
        }
        (
            Self {
                ttl,
                loop_wait,
                retry_timeout,
            },
            notes,
        )
    }

    /// Length of the leader lease.
    pub fn ttl(&self) -> Duration {
        Duration::from_secs(self.ttl)
    }

    /// Time between two cycles in which nothing happens.
    pub fn loop_wait(&self) -> Duration {
        Duration::from_secs(self.loop_wait)
    }

    /// Budget for retrying etcd and PostgreSQL.
    pub fn retry_timeout(&self) -> Duration {
        Duration::from_secs(self.retry_timeout)
    }
}

/// `synchronous_mode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncMode {
    /// Asynchronous.
    #[default]
    Off,
    /// Named standbys acknowledge; only they may be promoted.
    On,
    /// Any `n` of the voters acknowledge.
    Quorum,
}

/// `standby_cluster`, when it is active.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyCluster {
    /// Remote primary; may list several hosts.
    pub host: Option<String>,
    /// Its port.
    pub port: Option<String>,
    /// Slot on the remote side.
    pub primary_slot_name: Option<String>,
    /// Overrides the member's own.
    pub restore_command: Option<String>,
    /// Overrides the member's own.
    pub archive_cleanup_command: Option<String>,
    /// Standby leader only.
    pub recovery_min_apply_delay: Option<String>,
    /// Methods by which the standby leader is created.
    pub create_replica_methods: Option<Vec<String>>,
}

/// A permanent slot of `slots`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PermanentSlot {
    /// Reserves WAL.
    Physical {
        /// `primary` or `standby`, when the slot belongs to one kind of cluster.
        cluster_type: Option<String>,
    },
    /// Decodes a database.
    Logical {
        /// Which database.
        database: String,
        /// Output plugin.
        plugin: String,
    },
}

/// One matcher of `ignore_slots`: every field that is given must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SlotMatcher {
    /// Slot name.
    pub name: Option<String>,
    /// `physical` or `logical`.
    pub kind: Option<String>,
    /// Database of a logical slot.
    pub database: Option<String>,
    /// Plugin of a logical slot.
    pub plugin: Option<String>,
}

/// The dynamic configuration, as far as rules read it (`configuration.md` 12).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterConfig {
    /// Lease and loop.
    pub timing: Timing,
    /// Bytes; candidates further behind are excluded.
    pub maximum_lag_on_failover: u64,
    /// Bytes; a synchronous standby further behind is replaced. `None` when off.
    pub maximum_lag_on_syncnode: Option<u64>,
    /// Lines kept in `/history`; zero keeps all.
    pub max_timelines_history: usize,
    /// How long a crashed primary may take to come back. Zero: fail over at once if possible.
    pub primary_start_timeout: Duration,
    /// Somebody has chosen that time. Nobody has: in a native cluster with synchronous commits a crash
    /// is answered by the standby that has everything, which is faster than any recovery.
    pub primary_start_timeout_chosen: bool,
    /// How long a stop may take in synchronous mode. Zero: no limit.
    pub primary_stop_timeout: Duration,
    /// Delay of the race while WAL from the old primary still arrives.
    pub primary_race_backoff: Duration,
    /// Off in a standby cluster, whatever is written.
    pub synchronous_mode: SyncMode,
    /// Rather block than acknowledge alone.
    pub synchronous_mode_strict: bool,
    /// Wanted number of synchronous standbys.
    pub synchronous_node_count: u32,
    /// Go on while etcd is away and every member answers.
    pub failsafe_mode: bool,
    /// Candidates must be on the newest known timeline.
    pub check_timeline: bool,
    /// Maintenance.
    pub pause: bool,
    /// How long the slot of a vanished member is kept. Zero: dropped with its key.
    pub member_slots_ttl: Duration,
    /// Permanent slots by name.
    pub slots: Vec<(String, PermanentSlot)>,
    /// Slots to leave alone.
    pub ignore_slots: Vec<SlotMatcher>,
    /// `postgresql.use_slots`.
    pub use_slots: bool,
    /// The section, when it makes this a standby cluster.
    pub standby_cluster: Option<StandbyCluster>,
    /// Our own section: how leadership is held when all members are ours.
    pub native: NativeConfig,
    /// Sentences about values that were adjusted or refused, for the log.
    pub notes: Vec<String>,
}

/// Our own section `garden` of the dynamic configuration. Patroni keeps unknown sections and ignores
/// them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NativeConfig {
    /// Use the record lease when all members speak it (default on).
    pub record_lease: bool,
    /// `L` in milliseconds: how long the holder may act after its last renewal was sent.
    pub lease_ms: u64,
    /// `F` in milliseconds: how long after the deadline the last process may still run.
    pub fence_ms: u64,
    /// `W` in milliseconds: how long a candidate must see the record stand still.
    pub wait_ms: u64,
    /// Milliseconds between renewals.
    pub renew_ms: u64,
    /// Quorum-fenced failover (default on; it applies only where commits are synchronous).
    pub quorum_failover: bool,
    /// Milliseconds without a renewal after which a standby suspects the primary.
    pub suspect_ms: u64,
}

impl Default for NativeConfig {
    fn default() -> Self {
        // The `safe` profile of `safety.md` 2: W > (L + F) * (1 + rho) / (1 - rho) with rho = 1000 ppm.
        Self {
            record_lease: true,
            lease_ms: 8_000,
            fence_ms: 500,
            wait_ms: 8_600,
            renew_ms: 500,
            quorum_failover: true,
            suspect_ms: 1_500,
        }
    }
}

impl NativeConfig {
    /// Reads the section; values that break the arithmetic fall back to the `safe` profile with a
    /// note, since a wrong `W` would be two primaries.
    fn parse(section: Option<&Value>, ttl: Duration, notes: &mut Vec<String>) -> Self {
        let safe = Self::default();
        let Some(map) = section.and_then(Value::as_object) else {
            return safe;
        };
        let profile = match map.get("profile").and_then(Value::as_str) {
            None | Some("safe") => safe.clone(),
            Some("fast") => Self {
                lease_ms: 5_000,
                wait_ms: 5_600,
                renew_ms: 500,
                ..safe.clone()
            },
            Some("tuned") => Self {
                lease_ms: 2_500,
                fence_ms: 300,
                wait_ms: 2_900,
                renew_ms: 400,
                ..safe.clone()
            },
            // As patient as Patroni: an etcd outage of nearly `ttl` changes nothing, and without
            // synchronous commits the loss of a node costs `ttl`.
            Some("ttl") => {
                let wait_ms = u64::try_from(ttl.as_millis()).unwrap_or(safe.wait_ms);
                let lease_ms = wait_ms * 998 / 1000 - safe.fence_ms - 10;
                Self {
                    lease_ms,
                    wait_ms,
                    ..safe.clone()
                }
            }
            Some(other) => {
                notes.push(format!(
                    "garden.profile={other}: expected safe, fast, tuned or ttl; using safe"
                ));
                safe.clone()
            }
        };
        let flag = |key: &str, default| map.get(key).and_then(parse_bool).unwrap_or(default);
        let millis = |key: &str, default| map.get(key).and_then(Value::as_u64).unwrap_or(default);
        let read = Self {
            record_lease: flag("record_lease", profile.record_lease),
            lease_ms: millis("lease_ms", profile.lease_ms),
            fence_ms: millis("fence_ms", profile.fence_ms),
            wait_ms: millis("wait_ms", profile.wait_ms),
            renew_ms: millis("renew_ms", profile.renew_ms),
            quorum_failover: flag("quorum_failover", profile.quorum_failover),
            suspect_ms: millis("suspect_ms", profile.suspect_ms),
        };
        match read.problem() {
            None => read,
            Some(problem) => {
                notes.push(format!("garden: {problem}; using the safe profile"));
                Self {
                    record_lease: read.record_lease,
                    quorum_failover: read.quorum_failover,
                    ..safe
                }
            }
        }
    }

    /// Why these lengths do not fit together (`safety.md` 2, "Safety condition").
    fn problem(&self) -> Option<String> {
        let bound = self
            .lease_ms
            .saturating_add(self.fence_ms)
            .saturating_mul(1001);
        if self.wait_ms.saturating_mul(999) <= bound {
            return Some(format!(
                "wait_ms={} must exceed (lease_ms + fence_ms) * 1.001 / 0.999",
                self.wait_ms
            ));
        }
        if self.renew_ms == 0 || self.renew_ms.saturating_mul(3) > self.lease_ms {
            return Some(format!(
                "renew_ms={} must be above 0 and at most lease_ms / 3",
                self.renew_ms
            ));
        }
        if self.suspect_ms < self.renew_ms.saturating_mul(3) {
            return Some(format!(
                "suspect_ms={} must be at least 3 * renew_ms",
                self.suspect_ms
            ));
        }
        if !(1_000..=600_000).contains(&self.lease_ms) || self.fence_ms < 100 {
            return Some(String::from(
                "lease_ms must be 1000..600000 and fence_ms at least 100",
            ));
        }
        None
    }
}

/// A whole number, possibly with a unit of time, in seconds (`configuration.md` 3.3), at most
/// [`SECONDS_MAX`].
fn seconds(value: &Value) -> Option<u64> {
    let seconds = match value {
        Value::Number(n) => n
            .as_u64()
            .or_else(|| n.as_f64().filter(|f| *f >= 0.0).map(|f| f as u64)),
        Value::String(text) => {
            let text = text.trim();
            let split = text
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(text.len());
            let number: u64 = text.get(..split)?.parse().ok()?;
            match text.get(split..)?.trim() {
                "" | "s" => Some(number),
                "ms" => Some(number / 1000),
                "min" => number.checked_mul(60),
                "h" => number.checked_mul(3600),
                "d" => number.checked_mul(86_400),
                _ => None,
            }
        }
        _ => None,
    };
    seconds.map(|seconds| seconds.min(SECONDS_MAX))
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Number(n) => n.as_i64().or_else(|| n.as_f64().map(|f| f as i64)),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

impl Default for ClusterConfig {
    fn default() -> Self {
        Self::parse(&Map::new())
    }
}

impl ClusterConfig {
    /// Reads a dynamic document. Never fails: see the module.
    pub fn parse(doc: &Map<String, Value>) -> Self {
        let mut notes = Vec::new();
        let int = |key: &str, default: i64, min: i64| {
            doc.get(key)
                .and_then(integer)
                .filter(|n| *n >= min)
                .unwrap_or(default)
        };
        let flag = |key: &str| doc.get(key).and_then(parse_bool).unwrap_or(false);
        let renamed = |new: &str, old: &str, default: u64| {
            let value = doc.get(new).or_else(|| doc.get(old));
            Duration::from_secs(value.and_then(seconds).unwrap_or(default))
        };
        let raw = |key: &str, default: i64| doc.get(key).and_then(integer).unwrap_or(default);
        let (timing, adjusted) = Timing::new(
            raw("ttl", 30),
            raw("loop_wait", 10),
            raw("retry_timeout", 10),
        );
        notes.extend(adjusted);
        let standby_cluster = doc.get("standby_cluster").and_then(StandbyCluster::parse);
        let mut synchronous_mode = match doc.get("synchronous_mode") {
            Some(Value::String(s)) if s.eq_ignore_ascii_case("quorum") => SyncMode::Quorum,
            Some(other) if parse_bool(other) == Some(true) => SyncMode::On,
            _ => SyncMode::Off,
        };
        if standby_cluster.is_some() {
            synchronous_mode = SyncMode::Off;
        }
        let strict = flag("synchronous_mode_strict");
        let count = int("synchronous_node_count", 1, 0);
        let postgresql = doc.get("postgresql").and_then(Value::as_object);
        Self {
            timing,
            maximum_lag_on_failover: int("maximum_lag_on_failover", 1_048_576, 0).unsigned_abs(),
            maximum_lag_on_syncnode: Some(int("maximum_lag_on_syncnode", -1, -1))
                .filter(|n| *n > 0)
                .map(i64::unsigned_abs),
            max_timelines_history: usize::try_from(int("max_timelines_history", 0, 0)).unwrap_or(0),
            primary_start_timeout: renamed("primary_start_timeout", "master_start_timeout", 300),
            primary_start_timeout_chosen: ["primary_start_timeout", "master_start_timeout"]
                .iter()
                .any(|key| doc.get(*key).is_some_and(|value| !value.is_null())),
            primary_stop_timeout: renamed("primary_stop_timeout", "master_stop_timeout", 0),
            primary_race_backoff: Duration::from_secs(
                int("primary_race_backoff", 0, 0)
                    .unsigned_abs()
                    .min(SECONDS_MAX),
            ),
            synchronous_mode,
            synchronous_mode_strict: strict,
            synchronous_node_count: u32::try_from(count.max(i64::from(strict))).unwrap_or(1),
            failsafe_mode: flag("failsafe_mode"),
            check_timeline: flag("check_timeline"),
            pause: flag("pause"),
            member_slots_ttl: Duration::from_secs(
                doc.get("member_slots_ttl")
                    .and_then(seconds)
                    .unwrap_or(1800),
            ),
            slots: parse_slots(doc, &mut notes),
            ignore_slots: parse_ignore_slots(doc),
            use_slots: postgresql
                .and_then(|p| p.get("use_slots"))
                .and_then(parse_bool)
                .unwrap_or(true),
            standby_cluster,
            native: NativeConfig::parse(doc.get("garden"), timing.ttl(), &mut notes),
            notes,
        }
    }

    /// Whether synchronous replication is asked for, in either form.
    pub fn is_synchronous(&self) -> bool {
        self.synchronous_mode != SyncMode::Off
    }
}

impl StandbyCluster {
    fn parse(value: &Value) -> Option<Self> {
        let map = value.as_object()?;
        let text = |key: &str| match map.get(key)? {
            Value::String(s) if !s.is_empty() => Some(s.clone()),
            Value::Number(n) if n.as_i64() != Some(0) => Some(n.to_string()),
            _ => None,
        };
        let methods = map
            .get("create_replica_methods")
            .and_then(Value::as_array)
            .map(|list| {
                list.iter()
                    .filter_map(|m| m.as_str().map(str::to_owned))
                    .collect()
            });
        let read = Self {
            host: text("host"),
            port: text("port"),
            primary_slot_name: text("primary_slot_name"),
            restore_command: text("restore_command"),
            archive_cleanup_command: text("archive_cleanup_command"),
            recovery_min_apply_delay: text("recovery_min_apply_delay"),
            create_replica_methods: methods,
        };
        let active = read.host.is_some() || read.port.is_some() || read.restore_command.is_some();
        active.then_some(read)
    }
}

fn parse_slots(doc: &Map<String, Value>, notes: &mut Vec<String>) -> Vec<(String, PermanentSlot)> {
    // The older names win when they are not empty (`configuration.md` 12.1).
    let section = ["permanent_replication_slots", "permanent_slots", "slots"]
        .iter()
        .filter_map(|key| doc.get(*key)?.as_object())
        .find(|map| !map.is_empty());
    let Some(section) = section else {
        return Vec::new();
    };
    let mut slots = Vec::new();
    for (name, value) in section {
        let valid_name = (1..=63).contains(&name.len())
            && name
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_');
        if !valid_name {
            notes.push(format!("Invalid permanent replication slot name '{name}'"));
            continue;
        }
        match PermanentSlot::parse(value) {
            Some(slot) => slots.push((name.clone(), slot)),
            None => notes.push(format!(
                "Bad value for slot '{name}' in permanent_slots: {value}"
            )),
        }
    }
    slots
}

impl PermanentSlot {
    fn parse(value: &Value) -> Option<Self> {
        let map = match value {
            Value::Null => return Some(Self::Physical { cluster_type: None }),
            Value::Object(map) => map,
            Value::Bool(false) | Value::String(_) | Value::Array(_) => {
                let empty = matches!(value, Value::String(s) if s.is_empty())
                    || matches!(value, Value::Array(a) if a.is_empty())
                    || *value == Value::Bool(false);
                return empty.then_some(Self::Physical { cluster_type: None });
            }
            Value::Bool(true) | Value::Number(_) => return None,
        };
        let text = |key: &str| map.get(key).and_then(Value::as_str).map(str::to_owned);
        let (database, plugin) = (text("database"), text("plugin"));
        match (text("type").as_deref(), database, plugin) {
            (Some("logical") | None, Some(database), Some(plugin)) => {
                Some(Self::Logical { database, plugin })
            }
            (Some("physical") | None, _, _) => Some(Self::Physical {
                cluster_type: text("cluster_type"),
            }),
            _ => None,
        }
    }
}

fn parse_ignore_slots(doc: &Map<String, Value>) -> Vec<SlotMatcher> {
    let Some(list) = doc.get("ignore_slots").and_then(Value::as_array) else {
        return Vec::new();
    };
    list.iter()
        .filter_map(Value::as_object)
        .map(|map| {
            let text = |key: &str| {
                map.get(key)
                    .and_then(Value::as_str)
                    .filter(|s| !s.is_empty())
                    .map(str::to_owned)
            };
            SlotMatcher {
                name: text("name"),
                kind: text("type"),
                database: text("database"),
                plugin: text("plugin"),
            }
        })
        .collect()
}

/// A member's tags, ours or another's, and what they mean (`ha-behaviour.md` 20).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Tags(pub Map<String, Value>);

impl Tags {
    fn truthy(&self, name: &str) -> bool {
        match self.0.get(name) {
            None | Some(Value::Null) => false,
            Some(Value::Bool(b)) => *b,
            Some(Value::Number(n)) => n.as_f64() != Some(0.0),
            // Plain truthiness, as Patroni's: the text "false" is true (`configuration.md` 3.2).
            Some(Value::String(s)) => !s.is_empty(),
            Some(Value::Array(a)) => !a.is_empty(),
            Some(Value::Object(o)) => !o.is_empty(),
        }
    }

    fn priority(&self, flag: &str, number: &str) -> i64 {
        let set = self.0.get(flag).is_some_and(|v| !v.is_null());
        match (set, self.truthy(flag)) {
            (_, true) => 0,
            (explicit, false) => {
                let priority = self.0.get(number).and_then(integer).unwrap_or(1);
                // An explicit `false` outranks a priority of zero.
                if explicit && priority <= 0 {
                    1
                } else {
                    priority
                }
            }
        }
    }

    /// Zero or less: never promoted.
    pub fn failover_priority(&self) -> i64 {
        self.priority("nofailover", "failover_priority")
    }

    /// Zero or less: never synchronous.
    pub fn sync_priority(&self) -> i64 {
        self.priority("nosync", "sync_priority")
    }

    /// Never promoted, never a candidate.
    pub fn nofailover(&self) -> bool {
        self.failover_priority() <= 0
    }

    /// Never synchronous.
    pub fn nosync(&self) -> bool {
        self.sync_priority() <= 0
    }

    /// Replica health checks answer 503.
    pub fn noloadbalance(&self) -> bool {
        self.truthy("noloadbalance")
    }

    /// Preferred as the source of base backups.
    pub fn clonefrom(&self) -> bool {
        self.truthy("clonefrom")
    }

    /// Archive recovery only.
    pub fn nostream(&self) -> bool {
        self.0.get("nostream").and_then(parse_bool).unwrap_or(false)
    }

    /// Cascading source.
    pub fn replicatefrom(&self) -> Option<MemberName> {
        self.0
            .get("replicatefrom")?
            .as_str()
            .filter(|s| !s.is_empty())
            .map(MemberName::from)
    }

    /// The tags as they are published: the boolean ones only when they say something
    /// (`dcs-layout.md` 3.2, `tags`).
    pub fn published(&self) -> Map<String, Value> {
        let keep = |name: &str| match name {
            "nofailover" => self.truthy(name) || self.0.contains_key("failover_priority"),
            "nosync" => self.truthy(name) || self.0.contains_key("sync_priority"),
            "clonefrom" | "noloadbalance" => self.truthy(name),
            "nostream" => self.nostream(),
            _ => true,
        };
        self.0
            .iter()
            .filter(|(k, _)| keep(k))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    }
}

/// Everything a decision reads that is neither observed nor remembered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// Who we are.
    pub me: MemberName,
    /// The cluster's name.
    pub scope: String,
    /// Version of the agent, dotted integers, at least 4.0.0 (`dcs-layout.md` 13).
    pub version: String,
    /// Our `conn_url`.
    pub conn_url: String,
    /// Our `api_url`.
    pub api_url: String,
    /// Our `proxy_url`.
    pub proxy_url: Option<String>,
    /// Our tags.
    pub tags: Tags,
    /// The dynamic configuration in force.
    pub cluster: ClusterConfig,
    /// The document behind it, written to `/config` when the key is missing.
    pub dynamic: Map<String, Value>,
    /// A `bootstrap` section exists, so we may initialise a cluster.
    pub can_bootstrap: bool,
    /// Some replica method works without a source.
    pub can_clone_without_leader: bool,
    /// `postgresql.use_pg_rewind`, and the program works.
    pub use_pg_rewind: bool,
    /// `postgresql.remove_data_directory_on_rewind_failure`.
    pub wipe_on_rewind_failure: bool,
    /// `postgresql.remove_data_directory_on_diverged_timelines`.
    pub wipe_on_divergence: bool,
    /// A `pre_promote` script is configured.
    pub has_pre_promote: bool,
    /// `watchdog.mode: required`.
    pub watchdog_required: bool,
    /// Grows whenever something that the PostgreSQL configuration is made of has changed.
    pub conf_generation: u64,
}

#[cfg(test)]
mod native_tests {
    use super::*;
    use serde_json::json;

    fn parse(document: Value) -> ClusterConfig {
        ClusterConfig::parse(document.as_object().expect("an object"))
    }

    #[test]
    fn every_profile_keeps_the_safety_condition() {
        for profile in ["safe", "fast", "tuned", "ttl"] {
            for ttl in [20, 30, 31, 300] {
                let read = parse(json!({"ttl": ttl, "garden": {"profile": profile}}));
                assert_eq!(read.native.problem(), None, "{profile}, ttl {ttl}");
                assert!(
                    read.notes.iter().all(|n| !n.contains("garden")),
                    "{:?}",
                    read.notes
                );
            }
        }
        let patient = parse(json!({"garden": {"profile": "ttl"}})).native;
        assert_eq!((patient.wait_ms, patient.lease_ms), (30_000, 29_430));
    }

    #[test]
    fn lengths_that_would_be_two_primaries_are_not_used() {
        let read = parse(json!({"garden": {"wait_ms": 8_500}}));
        assert_eq!(read.native, NativeConfig::default());
        assert!(
            read.notes.iter().any(|note| note.contains("wait_ms=8500")),
            "{:?}",
            read.notes
        );
    }
}
