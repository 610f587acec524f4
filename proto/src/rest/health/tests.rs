use super::*;
use crate::core::observation::{LocalPostgres, Sql};
use crate::rest::fixture::{NOW, edit_sample, leader, replica, standby};
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
fn a_snapshot_that_is_not_renewed_loses_all_but_the_lock() {
    let at = |published: Published, seconds| {
        Arc::new(published).as_of(NOW + Duration::from_secs(seconds))
    };
    assert_eq!(check(&at(replica(), 29), "/async"), 200);
    let aged = at(replica(), 30);
    assert_eq!(
        (
            check(&aged, "/async"),
            check(&aged, "/replica"),
            check(&aged, "/health")
        ),
        (503, 503, 503)
    );
    assert_eq!(shown_state(&aged), "unknown");
    let held = Published {
        leader_until: Some(NOW + Duration::from_secs(60)),
        ..leader()
    };
    assert_eq!(check(&at(held, 30), "/primary"), 200);
}

#[test]
fn of_repeated_parameters_the_first_counts() {
    let query = Query::parse("a=1&a=2&b=&c&d=%41%zz%4&e+f=g");
    assert_eq!(query.get("a"), Some("1"));
    assert_eq!((query.get("b"), query.get("c")), (None, None));
    assert_eq!(query.get("d"), Some("A%zz%4"));
    assert_eq!(query.get("e f"), Some("g"));
}
