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
        let view = published.view_at(now);
        let mut replica = replica_ok(published, role, query, now);
        let (leader, primary, standby_leader) = if view.is_none() && published.paused {
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

fn replica_ok(published: &Published, role: PgRole, query: &Query, now: MonoTime) -> bool {
    let running = shown_state(published) == PgState::Running.as_str();
    let Some(sample) = sample(published).filter(|_| running && role == PgRole::Replica) else {
        return false;
    };
    let wanted = query.get("replication_state");
    let in_state = wanted.is_none() || wanted == replication_state(sample);
    let limit = query.get("lag").and_then(size::bytes);
    let behind = |limit| lag_from(published, sample.replay_lsn, now) > i128::from(limit);
    !published.settings.tags.noloadbalance() && in_state && !limit.is_some_and(behind)
}

/// Bytes from `position` to the leader's end of WAL as far as we know it. A leader position of zero
/// is unknown, and nobody lags behind it (`rest-api.md` 4.7).
fn lag_from(published: &Published, position: Lsn, now: MonoTime) -> i128 {
    match leader_position(published, now) {
        Some(leader) => i128::from(leader.0) - i128::from(position.0),
        None => i128::MIN,
    }
}

fn leader_position(published: &Published, now: MonoTime) -> Option<Lsn> {
    let told = published.view_at(now).and_then(|view| view.status.optime);
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
        published.view_at(now).is_some() && sync_verdict(published, path, &base)
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
    if published.view_at(now).is_none() && latest_end(published).is_none() {
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
    lag_from(published, position, now) <= limit
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{NOW, edit_sample, leader, replica, standby};
    use super::*;
    use crate::core::observation::{LocalPostgres, Sql};
    use serde_json::json;
    use std::sync::Arc;
    use std::time::Duration;

    const LISTED: &str = r#"{"leader":"gd-b","sync_standby":"gd-a","quorum":1}"#;

    fn check(published: &Published, target: &str) -> u16 {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if verdict(published, path, &Query::parse(query), NOW) {
            200
        } else {
            503
        }
    }

    fn promoting() -> Published {
        let mut published = replica();
        published.leader_until = Some(NOW + Duration::from_secs(20));
        published
    }

    fn standby_leader() -> Published {
        let config = json!({"standby_cluster": {"host": "remote"}});
        let mut published = standby(config, json!(null), "{}");
        published.role = PgRole::StandbyLeader;
        published.leader_until = Some(NOW + Duration::from_secs(20));
        published
    }

    fn without_lock() -> Published {
        Published {
            leader_until: Some(NOW),
            ..leader()
        }
    }

    fn down(mut published: Published, state: PgState, sql: Sql) -> Published {
        published.state = state;
        published.postgres = Arc::new(LocalPostgres {
            sql,
            ..LocalPostgres::default()
        });
        published
    }

    /// The table of `rest-api.md` 4.4, with the aliases of 4.3: rows are paths, columns are members.
    #[test]
    fn every_member_answers_every_path_as_published() {
        let none = json!(null);
        let members = [
            leader(),
            promoting(),
            standby_leader(),
            replica(),
            standby(json!({"synchronous_mode": true}), none.clone(), LISTED),
            standby(json!({"synchronous_mode": "quorum"}), none.clone(), LISTED),
            standby(none, json!({"noloadbalance": true}), "{}"),
            without_lock(),
        ];
        let rows: [(&[&str], [bool; 8]); 12] = {
            const Y: bool = true;
            const N: bool = false;
            [
                (
                    &["/", "/primary", "/master", "/read-write", "/foo/primary"],
                    [Y, Y, N, N, N, N, N, N],
                ),
                (&["/leader", "/x-leader-y"], [Y, Y, Y, N, N, N, N, N]),
                (
                    &["/standby-leader", "/standby_leader"],
                    [N, N, Y, N, N, N, N, N],
                ),
                (&["/replica", "/replica/"], [N, Y, N, Y, Y, Y, N, N]),
                (&["/read-only"], [Y, Y, Y, Y, Y, Y, N, N]),
                (&["/sync", "/synchronous"], [N, N, N, N, Y, N, N, N]),
                (&["/async", "/asynchronous"], [N, Y, N, Y, N, N, N, N]),
                (&["/quorum"], [N, N, N, N, N, Y, N, N]),
                (
                    &["/read-only-sync", "/read-only-synchronous"],
                    [Y, Y, Y, N, Y, N, N, N],
                ),
                (&["/read-only-quorum"], [Y, Y, Y, N, N, Y, N, N]),
                (&["/health", "/healthz"], [Y, Y, Y, Y, Y, Y, Y, Y]),
                (
                    &[
                        "/sync/",
                        "/quorum/",
                        "/REPLICA",
                        "/liveness",
                        "/patroni",
                        "*",
                        "/x",
                    ],
                    [N; 8],
                ),
            ]
        };
        for (paths, expected) in rows {
            for path in paths {
                for (column, (member, expected)) in members.iter().zip(expected).enumerate() {
                    let code = if expected { 200 } else { 503 };
                    assert_eq!(check(member, path), code, "{path}, column {column}");
                }
            }
        }
        let ready_row = [true, true, true, true, true, true, true, false];
        for (column, (member, expected)) in members.iter().zip(ready_row).enumerate() {
            assert_eq!(
                ready(member, &Query::default(), NOW),
                expected,
                "column {column}"
            );
            assert!(alive(member, NOW), "column {column}");
        }
    }

    #[test]
    fn the_lock_ends_by_time_alone() {
        let published = leader();
        let path = |now| verdict(&published, "/primary", &Query::default(), now);
        assert!(path(NOW + Duration::from_millis(19_999)));
        assert!(!path(NOW + Duration::from_secs(20)));
    }

    #[test]
    fn primary_does_not_look_at_postgres() {
        for state in [
            PgState::Starting,
            PgState::Crashed,
            PgState::Stopping,
            PgState::Running,
        ] {
            for sql in [Sql::None, Sql::Refused, Sql::Silent] {
                let published = down(leader(), state, sql);
                assert_eq!(check(&published, "/primary"), 200, "{state}");
                assert_eq!(check(&published, "/health"), 503, "{state}");
            }
        }
    }

    #[test]
    fn a_leader_that_is_held_back_takes_no_clients() {
        let published = Published {
            hold_back: Some("no quorum".into()),
            ..leader()
        };
        for path in [
            "/",
            "/primary",
            "/leader",
            "/read-write",
            "/read-only",
            "/read-only-sync",
        ] {
            assert_eq!(check(&published, path), 503, "{path}");
        }
        assert!(!ready(&published, &Query::default(), NOW));
        assert_eq!(check(&published, "/health"), 200);
    }

    #[test]
    fn without_a_view_only_the_paths_that_need_none_work() {
        let sync = standby(json!({"synchronous_mode": true}), json!(null), LISTED);
        let blind = Published { view: None, ..sync };
        for path in ["/replica", "/read-only", "/health"] {
            assert_eq!(check(&blind, path), 200, "{path}");
        }
        for path in [
            "/sync",
            "/async",
            "/quorum",
            "/read-only-sync",
            "/read-only-quorum",
        ] {
            assert_eq!(check(&blind, path), 503, "{path}");
            let leads = Published {
                view: None,
                ..leader()
            };
            assert_eq!(check(&leads, path), 503, "{path}");
        }
        let late = NOW + Duration::from_secs(30);
        assert!(
            !verdict(&replica(), "/async", &Query::default(), late),
            "the view is too old"
        );
    }

    #[test]
    fn in_pause_without_a_view_the_role_decides() {
        let paused = Published {
            view: None,
            paused: true,
            leader_until: None,
            ..leader()
        };
        assert_eq!(
            (check(&paused, "/primary"), check(&paused, "/leader")),
            (200, 200)
        );
        let with_view = Published {
            paused: true,
            leader_until: None,
            ..leader()
        };
        assert_eq!(check(&with_view, "/primary"), 503);
        let other = Published {
            view: None,
            paused: true,
            ..replica()
        };
        assert_eq!(
            (check(&other, "/primary"), check(&other, "/replica")),
            (503, 200)
        );
    }

    #[test]
    fn lag_is_measured_from_the_replayed_position() {
        // The leader is 96 bytes ahead.
        for (query, code) in [
            ("lag=96", 200),
            ("lag=95", 503),
            ("lag=1MB", 200),
            ("lag=-1", 503),
            ("lag=0&lag=1GB", 503),
            ("lag=&lag=0", 503),
            ("lag=", 200),
            ("lag=1mb", 200),
            ("lag=1%20MB", 200),
            ("lag=0+B", 503),
        ] {
            assert_eq!(
                check(&replica(), &format!("/replica?{query}")),
                code,
                "{query}"
            );
            assert_eq!(
                check(&replica(), &format!("/read-only?{query}")),
                code,
                "{query}"
            );
            assert_eq!(
                check(&replica(), &format!("/async?{query}")),
                code,
                "{query}"
            );
        }
        let mut unknown = Published {
            view: None,
            ..replica()
        };
        edit_sample(&mut unknown, |s| s.receiver = None);
        assert_eq!(
            check(&unknown, "/replica?lag=0"),
            200,
            "an unknown position lags behind nobody"
        );
        assert_eq!(
            check(&leader(), "/read-only?lag=0"),
            200,
            "a leader does not lag"
        );
    }

    #[test]
    fn the_state_of_replication_can_be_asked_for() {
        let mut archive = replica();
        edit_sample(&mut archive, |s| {
            s.receiver = None;
            s.has_restore_command = true;
        });
        for (query, streaming, archived) in [
            ("replication_state=streaming", 200, 503),
            ("replication_state=in+archive+recovery", 503, 200),
            ("replication_state=in%20archive%20recovery", 503, 200),
            ("replication_state=", 200, 200),
        ] {
            assert_eq!(
                check(&replica(), &format!("/replica?{query}")),
                streaming,
                "{query}"
            );
            assert_eq!(
                check(&archive, &format!("/replica?{query}")),
                archived,
                "{query}"
            );
        }
    }

    #[test]
    fn tags_must_match_where_they_count() {
        let tags = json!({"dc": "East", "a": true, "n": 1, "f": 1.0, "noloadbalance": false});
        let tagged = standby(json!(null), tags, "{}");
        for (query, code) in [
            ("tag_dc=East", 200),
            ("tag_dc=east", 503),
            ("tag_a=true", 200),
            ("tag_a=True", 503),
            ("tag_n=1&tag_f=1.0", 200),
            ("tag_dc=East&tag_n=2", 503),
            ("tag_missing=1", 503),
            ("tag_noloadbalance=false", 503),
            ("other=1", 200),
        ] {
            assert_eq!(
                check(&tagged, &format!("/replica?{query}")),
                code,
                "{query}"
            );
            assert_eq!(check(&tagged, &format!("/health?{query}")), code, "{query}");
        }
        assert_eq!(check(&leader(), "/primary?tag_dc=x"), 200);
        assert_eq!(check(&leader(), "/read-only?tag_dc=x"), 503);
    }

    #[test]
    fn liveness_follows_the_loop() {
        // The next cycle is due in 5 s, ttl is 30 s.
        let after =
            |published: &Published, seconds| alive(published, NOW + Duration::from_secs(seconds));
        assert!(after(&leader(), 34));
        assert!(!after(&leader(), 35));
        assert!(after(&replica(), 64));
        assert!(!after(&replica(), 65));
        let crashed = down(leader(), PgState::Crashed, Sql::None);
        assert!(
            after(&crashed, 64),
            "without a postmaster there is more time"
        );
        let paused = Published {
            paused: true,
            ..leader()
        };
        assert!(after(&paused, 1_000_000));
    }

    #[test]
    fn readiness_needs_a_stream_and_little_lag() {
        let is_ready = |p: &Published, q: &str| ready(p, &Query::parse(q), NOW);
        assert!(is_ready(&replica(), ""));
        assert!(!is_ready(&replica(), "lag=95"));
        assert!(
            is_ready(&replica(), "lag=95&mode=write"),
            "received is further than replayed"
        );
        assert!(is_ready(&replica(), "lag=bad"), "the default limit");
        let mut archive = replica();
        edit_sample(&mut archive, |s| s.receiver = None);
        assert!(!is_ready(&archive, ""));
        let starting = Published {
            state: PgState::Starting,
            ..replica()
        };
        assert!(!is_ready(&starting, ""));
        let mut blind = Published {
            view: None,
            ..replica()
        };
        edit_sample(&mut blind, |s| {
            s.receiver
                .iter_mut()
                .for_each(|r| r.latest_end_lsn = Lsn::NONE);
        });
        assert!(!is_ready(&blind, ""));
        assert!(is_ready(
            &Published {
                failsafe_active: true,
                ..blind
            },
            ""
        ));
    }

    #[test]
    fn of_repeated_parameters_the_first_counts() {
        let query = Query::parse("a=1&a=2&b=&c&d=%41%zz%4&e+f=g");
        assert_eq!(query.get("a"), Some("1"));
        assert_eq!((query.get("b"), query.get("c")), (None, None));
        assert_eq!(query.get("d"), Some("A%zz%4"));
        assert_eq!(query.get("e f"), Some("g"));
    }
}
