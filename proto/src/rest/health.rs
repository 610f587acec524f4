//! Health checks: what HAProxy, Kubernetes and people's monitoring ask (`rest-api.md` 4 and 6). The
//! answer decides where writers go, so it is part of the rules: see [`verdict`].

use super::Published;
use super::size;
use super::status::{replication_state, sample, shown_role, shown_state, sync_duty};
use crate::core::observation::Process;
use crate::dcs::{PgRole, PgState};
use crate::time::MonoTime;
use crate::wal::Lsn;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// The parameters of a request. Empty values count as absent, and of repeated names the first
/// counts (`rest-api.md` 2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(BTreeMap<String, String>);

impl Query {
    /// Reads the part after `?`; `+` is a blank, `%xx` a byte.
    pub fn parse(text: &str) -> Self {
        let mut pairs = BTreeMap::new();
        for part in text.split('&') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            if !value.is_empty() {
                pairs
                    .entry(unescape(name))
                    .or_insert_with(|| unescape(value));
            }
        }
        Self(pairs)
    }

    /// The value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |b: &u8| (*b as char).to_digit(16).and_then(|d| u8::try_from(d).ok());
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(high).is_some() && hex(low).is_some() => {
                bytes.push(hex(high).unwrap_or(0) << 4 | hex(low).unwrap_or(0));
                rest = after;
            }
            (b'+', _) => {
                bytes.push(b' ');
                rest = tail;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// What the lock allows us to say, before the path is looked at (`rest-api.md` 4.2).
struct Base {
    leader: bool,
    primary: bool,
    standby_leader: bool,
    replica: bool,
}

impl Base {
    fn of(published: &Published, query: &Query, now: MonoTime) -> Self {
        let role = shown_role(published);
        let mut replica = replica_ok(published, role, query);
        let (leader, primary, standby_leader) = if published.view.is_none() && published.paused {
            let (primary, standby) = (role == PgRole::Primary, role == PgRole::StandbyLeader);
            (primary || standby, primary, standby)
        } else if !published.holds_lock(now) {
            (false, false, false)
        } else if published.settings.cluster.standby_cluster.is_some() {
            replica = false;
            (
                true,
                false,
                matches!(role, PgRole::Replica | PgRole::StandbyLeader),
            )
        } else {
            (true, true, false)
        };
        // Nobody may write here before what was recovered is on a quorum, however long we hold the
        // lock (S9); and a reader must not see commits that may still vanish.
        let open = published.hold_back.is_none();
        Self {
            leader: leader && open,
            primary: primary && open,
            standby_leader: standby_leader && open,
            replica,
        }
    }

    fn leads(&self) -> bool {
        self.primary || self.standby_leader
    }
}

fn replica_ok(published: &Published, role: PgRole, query: &Query) -> bool {
    let running = shown_state(published) == PgState::Running.as_str();
    let Some(sample) = sample(published).filter(|_| running && role == PgRole::Replica) else {
        return false;
    };
    let wanted = query.get("replication_state");
    let in_state = wanted.is_none() || wanted == replication_state(sample);
    let limit = query.get("lag").and_then(size::bytes);
    let behind = |limit| lag_from(published, sample.replay_lsn) > i128::from(limit);
    !published.settings.tags.noloadbalance() && in_state && !limit.is_some_and(behind)
}

/// Bytes from `position` to the leader's end of WAL as far as we know it. A leader position of zero
/// is unknown, and nobody lags behind it (`rest-api.md` 4.7).
fn lag_from(published: &Published, position: Lsn) -> i128 {
    match leader_position(published) {
        Some(leader) => i128::from(leader.0) - i128::from(position.0),
        None => i128::MIN,
    }
}

fn leader_position(published: &Published) -> Option<Lsn> {
    let told = published
        .view
        .as_deref()
        .and_then(|view| view.status.optime);
    told.max(latest_end(published))
}

fn latest_end(published: &Published) -> Option<Lsn> {
    let receiver = sample(published)?.receiver.as_ref()?;
    receiver.latest_end_lsn.some()
}

/// Whether a health check of this path is answered with 200; 503 otherwise. Rules are tried from top
/// to bottom, the first six by substring, as the table of `rest-api.md` 4.3 has them. `/primary` must
/// not depend on PostgreSQL: the lock alone decides.
pub fn verdict(published: &Published, path: &str, query: &Query, now: MonoTime) -> bool {
    let path = if path == "/" { "/primary" } else { path };
    let base = Base::of(published, query, now);
    let has = |part: &str| path.contains(part);
    if has("standby_leader") || has("standby-leader") {
        return base.standby_leader;
    }
    if has("leader") {
        return base.leader;
    }
    if has("master") || has("primary") || has("read-write") {
        return base.primary;
    }
    let passed = if has("replica") {
        base.replica
    } else if has("read-only") && !has("sync") && !has("quorum") {
        base.leads() || base.replica
    } else if has("health") {
        shown_state(published) == PgState::Running.as_str()
    } else {
        published.view.is_some() && sync_verdict(published, path, &base)
    };
    passed && tags_match(published, query)
}

/// The rules that need a view of the cluster, by the whole path.
fn sync_verdict(published: &Published, path: &str, base: &Base) -> bool {
    let duty = sync_duty(published);
    let sync = base.replica && duty == Some("sync_standby");
    let quorum = base.replica && duty == Some("quorum_standby");
    match path {
        "/sync" | "/synchronous" => sync,
        "/quorum" => quorum,
        "/async" | "/asynchronous" => base.replica && duty.is_none(),
        "/read-only-quorum" => base.leads() || quorum,
        "/read-only-sync" | "/read-only-synchronous" => base.leads() || sync,
        _ => false,
    }
}

/// Every `tag_<name>=<value>` must match a configured tag: text exactly, other types as lower-case
/// text (`rest-api.md` 4.5).
fn tags_match(published: &Published, query: &Query) -> bool {
    let wanted = query
        .0
        .iter()
        .filter_map(|(k, v)| Some((k.strip_prefix("tag_")?, v)));
    let tags: Map<String, Value> = published.settings.tags.published();
    wanted
        .into_iter()
        .all(|(name, value)| match tags.get(name) {
            Some(Value::String(text)) => text == value,
            Some(Value::Null) => value == "none",
            Some(other) => other.to_string().to_lowercase() == *value,
            None => false,
        })
}

/// `GET /liveness`: the loop still cycles, or nobody wants it to (`rest-api.md` 6.1).
pub fn alive(published: &Published, now: MonoTime) -> bool {
    let ttl = published.settings.cluster.timing.ttl();
    let runs = matches!(published.postgres.process, Process::Alive { .. });
    let patience = if published.role == PgRole::Primary && runs {
        ttl
    } else {
        ttl * 2
    };
    published.paused || published.next_run + patience > now
}

/// `GET /readiness` (`rest-api.md` 6.2). A leader that is held back is not ready: the same clients
/// would come through it.
pub fn ready(published: &Published, query: &Query, now: MonoTime) -> bool {
    if published.holds_lock(now) {
        return published.hold_back.is_none();
    }
    let Some(sample) = sample(published).filter(|_| published.state == PgState::Running) else {
        return false;
    };
    if replication_state(sample) != Some("streaming") {
        return false;
    }
    if published.view.is_none() && latest_end(published).is_none() {
        return published.failsafe_active;
    }
    let default = published.settings.cluster.maximum_lag_on_failover;
    let limit = query
        .get("lag")
        .and_then(size::bytes)
        .map_or(i128::from(default), i128::from);
    let received = sample.receive_lsn.some().unwrap_or(sample.replay_lsn);
    let write = query.get("mode") == Some("write");
    let position = if write { received } else { sample.replay_lsn };
    lag_from(published, position) <= limit
}

#[cfg(test)]
mod tests;
