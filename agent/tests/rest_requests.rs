//! What operators, `patronictl` and other agents ask for.

mod rest_support;

use garden_agent::peers::{FailsafeMessage, Peers};
use garden_agent::rest::RestRequest;
use proto::ids::{Epoch, MemberName};
use rest_support::{Server, config, leader, replica};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

const RECORDS: &[(&str, &str)] = &[
    ("leader", "gd-a"),
    (
        "config",
        r#"{"ttl":30,"loop_wait":10,"failsafe_mode":true}"#,
    ),
];

/// A peer that answers every request with this status line and body.
async fn peer(response: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let port = listener.local_addr().expect("address").port();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                let _ = stream.read(&mut head).await;
                let _ = stream.write_all(response.as_bytes()).await;
            });
        }
    });
    format!("http://127.0.0.1:{port}/patroni")
}

const GOOD: &str = "HTTP/1.0 503 Service Unavailable\r\n\r\n\
    {\"state\": \"running\", \"role\": \"replica\", \"timeline\": 5, \"replication_state\": \"streaming\", \
      \"xlog\": {\"received_location\": 100, \"replayed_location\": 90}}";
const LIMITED: &str = "HTTP/1.0 200 OK\r\n\r\n{\"xlog\": {}, \"tags\": {\"nofailover\": true}}";

fn member(url: &str) -> String {
    format!(r#"{{"api_url":"{url}","state":"running"}}"#)
}

#[tokio::test]
async fn config_is_patched_by_compare_and_set() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    let reply = server
        .ask(
            "PATCH",
            "/config",
            Some(r#"{"ttl": 20, "loop_wait": null, "a": {"b": null}}"#),
        )
        .await;
    let document = r#"{"ttl": 20, "failsafe_mode": true, "a": {"b": null}}"#;
    assert_eq!((reply.code, reply.body.as_str()), (200, document));
    assert_eq!(
        server.etcd.get("config").as_deref(),
        Some(r#"{"ttl":20,"failsafe_mode":true,"a":{"b":null}}"#)
    );
    let before = server.etcd.view().revision;
    let same = server
        .ask("PATCH", "/config", Some(r#"{"ttl": "20"}"#))
        .await;
    assert_eq!((same.code, same.body.as_str()), (200, document));
    assert_eq!(
        server.etcd.view().revision,
        before,
        "nothing changed, nothing is written"
    );
}

#[tokio::test]
async fn bodies_follow_the_common_rules() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    for target in [
        "PATCH /config",
        "PUT /config",
        "POST /switchover",
        "POST /failover",
        "POST /mpp",
    ] {
        let (method, path) = target.split_once(' ').expect("two words");
        for (body, code) in [
            (None, 411),
            (Some(""), 400),
            (Some("{}"), 400),
            (Some("[1]"), 400),
            (Some("{"), 400),
            (Some("\"x\""), 400),
        ] {
            assert_eq!(
                server.ask(method, path, body).await.code,
                code,
                "{target} {body:?}"
            );
        }
    }
    for path in ["/restart", "/reinitialize"] {
        assert_eq!(
            server.ask("POST", path, Some("[1]")).await.code,
            400,
            "{path}"
        );
    }
    let huge = format!("{{\"a\": \"{}\"}}", "x".repeat(2 << 20));
    assert_eq!(server.ask("POST", "/mpp", Some(&huge)).await.code, 400);
    let chunked = "POST /mpp HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n\
                   7\r\n{\"a\":1}\r\n0\r\n\r\n";
    let stream = tokio::net::TcpStream::connect(server.address)
        .await
        .expect("connects");
    assert_eq!(rest_support::exchange(stream, chunked).await.code, 200);
}

#[tokio::test]
async fn put_replaces_and_works_without_a_stored_document() {
    let server = Server::start(config(|_| ()), &[], leader).await;
    assert_eq!(server.code("GET", "/config").await, 502);
    assert_eq!(
        server
            .ask("PATCH", "/config", Some(r#"{"ttl": 20}"#))
            .await
            .code,
        503
    );
    let reply = server.ask("PUT", "/config", Some(r#"{"ttl": 20}"#)).await;
    assert_eq!((reply.code, reply.body.as_str()), (200, r#"{"ttl": 20}"#));
    assert_eq!(server.etcd.get("config").as_deref(), Some(r#"{"ttl":20}"#));
}

#[tokio::test]
async fn without_etcd_switchover_gives_no_byte_and_config_an_error() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    server.etcd.set_down(true);
    let body = Some(r#"{"leader": "gd-a"}"#);
    assert_eq!(server.ask("POST", "/switchover", body).await.code, 0);
    assert_eq!(
        server
            .ask("POST", "/failover", Some(r#"{"candidate": "b"}"#))
            .await
            .code,
        0
    );
    assert_eq!(server.code("DELETE", "/switchover").await, 0);
    assert_eq!(server.ask("PATCH", "/config", body).await.code, 503);
    assert_eq!(server.ask("PUT", "/config", body).await.code, 502);
}

#[tokio::test]
async fn a_switchover_ends_when_the_leader_has_changed() {
    let (good, limited) = (member(&peer(GOOD).await), member(&peer(LIMITED).await));
    let records = [
        RECORDS,
        &[
            ("members/gd-a", "{}"),
            ("members/gd-b", good.as_str()),
            ("members/gd-c", limited.as_str()),
        ],
    ]
    .concat();
    let server = Arc::new(Server::start(config(|_| ()), &records, leader).await);
    let impossible = server
        .ask("POST", "/failover", Some(r#"{"candidate": "gd-c"}"#))
        .await;
    assert_eq!(
        (impossible.code, impossible.body.as_str()),
        (
            412,
            "failover is not possible: no good candidates have been found"
        )
    );
    let asking = {
        let server = server.clone();
        tokio::spawn(async move {
            server
                .ask(
                    "POST",
                    "/switchover",
                    Some(r#"{"leader": "gd-a", "candidate": "gd-b"}"#),
                )
                .await
        })
    };
    while server.etcd.get("failover").is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(
        server.etcd.get("failover").as_deref(),
        Some(r#"{"leader":"gd-a","member":"gd-b"}"#)
    );
    server.publish(|p| p.view = Some(server.etcd.view()));
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!asking.is_finished());
    server.etcd.put("leader", "gd-b");
    server.publish(|p| p.view = Some(server.etcd.view()));
    let reply = asking.await.expect("no panic");
    assert_eq!(
        (reply.code, reply.body.as_str()),
        (200, "Successfully switched over to \"gd-b\"")
    );
}

#[tokio::test]
async fn a_single_member_has_nobody_to_switch_to() {
    let records = [RECORDS, &[("members/gd-a", "{}")]].concat();
    let server = Server::start(config(|_| ()), &records, leader).await;
    let reply = server
        .ask("POST", "/switchover", Some(r#"{"leader": "gd-a"}"#))
        .await;
    let text = "switchover is not possible: cluster does not have members except leader";
    assert_eq!((reply.code, reply.body.as_str()), (412, text));
    let reply = server
        .ask("POST", "/failover", Some(r#"{"foo": "bar"}"#))
        .await;
    let text = "Failover could be performed only to a specific candidate";
    assert_eq!((reply.code, reply.body.as_str()), (400, text));
}

#[tokio::test]
async fn a_scheduled_switchover_is_stored_and_deleted() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    assert_eq!(
        server.ask("DELETE", "/switchover", None).await.body,
        "no switchover is scheduled"
    );
    let body = r#"{"leader": "gd-a", "scheduled_at": "2099-01-01T00:00:00Z"}"#;
    let reply = server.ask("POST", "/switchover", Some(body)).await;
    assert_eq!(
        (reply.code, reply.body.as_str()),
        (202, "Switchover scheduled")
    );
    assert_eq!(
        server.etcd.get("failover").as_deref(),
        Some(r#"{"leader":"gd-a","scheduled_at":"2099-01-01T00:00:00+00:00"}"#)
    );
    let reply = server.ask("DELETE", "/switchover", None).await;
    assert_eq!(
        (reply.code, reply.body.as_str()),
        (200, "scheduled switchover deleted")
    );
    assert_eq!(server.etcd.get("failover").as_deref(), Some("{}"));
}

/// Answers the next request of the loop that wants one.
async fn as_loop(server: &mut Server, code: u16, text: &str) -> String {
    let request = server.requests.recv().await.expect("a request");
    let shown = format!("{request:?}");
    let reply = match request {
        RestRequest::Restart { reply, .. }
        | RestRequest::CancelScheduledRestart { reply }
        | RestRequest::Reinitialize { reply, .. }
        | RestRequest::Failsafe { reply, .. } => reply,
        RestRequest::Reload | RestRequest::Wake => return shown,
    };
    reply
        .send((code, text.to_owned()))
        .expect("the server waits");
    shown
}

async fn ask_while_loop_answers(
    server: &mut Server,
    target: (&str, &str),
    body: Option<&str>,
    answer: (u16, &str),
) -> (rest_support::Reply, String) {
    let address = server.address;
    let length = body
        .map(|b| format!("Content-Length: {}\r\n", b.len()))
        .unwrap_or_default();
    let text = body.unwrap_or_default();
    let request = format!("{} {} HTTP/1.0\r\n{length}\r\n{text}", target.0, target.1);
    let asking = tokio::spawn(async move {
        let stream = tokio::net::TcpStream::connect(address)
            .await
            .expect("connects");
        rest_support::exchange(stream, &request).await
    });
    let seen = as_loop(server, answer.0, answer.1).await;
    (asking.await.expect("no panic"), seen)
}

#[tokio::test]
async fn restart_is_refused_from_the_snapshot_or_answered_by_the_loop() {
    let mut server = Server::start(config(|_| ()), RECORDS, leader).await;
    let refused = server
        .ask("POST", "/restart", Some(r#"{"role": "replica"}"#))
        .await;
    assert_eq!(
        (refused.code, refused.body.as_str()),
        (503, "restart conditions are not satisfied")
    );
    let (reply, seen) = ask_while_loop_answers(
        &mut server,
        ("POST", "/restart"),
        None,
        (200, "restarted successfully"),
    )
    .await;
    assert_eq!(
        (reply.code, reply.body.as_str()),
        (200, "restarted successfully")
    );
    assert!(seen.starts_with("Restart"), "{seen}");
    server.publish(|p| p.job = Some("promote".into()));
    let busy = server.ask("POST", "/restart", None).await;
    assert_eq!(
        (busy.code, busy.body.as_str()),
        (503, "promote already in progress")
    );
    let none = server.ask("DELETE", "/restart", None).await;
    assert_eq!(
        (none.code, none.body.as_str()),
        (404, "no restarts are scheduled")
    );
}

#[tokio::test]
async fn reinitialize_spares_the_leader() {
    let mut server = Server::start(config(|_| ()), RECORDS, leader).await;
    let refused = server
        .ask("POST", "/reinitialize", Some(r#"{"force": true}"#))
        .await;
    assert_eq!(
        (refused.code, refused.body.as_str()),
        (503, "I am the leader, can not reinitialize")
    );
    server.etcd.put("leader", "gd-b");
    server.publish(|p| p.view = Some(server.etcd.view()));
    let (reply, seen) = ask_while_loop_answers(
        &mut server,
        ("POST", "/reinitialize"),
        Some(r#"{"force": "on"}"#),
        (200, "reinitialize started"),
    )
    .await;
    assert_eq!(
        (reply.code, reply.body.as_str()),
        (200, "reinitialize started")
    );
    assert!(seen.contains("force: true"), "{seen}");
}

#[tokio::test]
async fn a_loop_that_does_not_read_its_requests_blocks_nobody() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    for _ in 0..4 {
        assert_eq!(server.code("POST", "/reload").await, 202);
    }
    assert_eq!(
        server.code("POST", "/reload").await,
        503,
        "the queue is full"
    );
    assert_eq!(server.code("GET", "/primary").await, 200);
}

#[tokio::test]
async fn failsafe_is_accepted_with_our_position() {
    let mut server = Server::start(config(|_| ()), RECORDS, replica).await;
    let url = format!("http://{}/patroni", server.address);
    let peers = Peers::new(&config(|_| ()).ctl).expect("client");
    let all = BTreeMap::from([(MemberName::from("gd-a"), url)]);
    let message = FailsafeMessage {
        name: "gd-b".into(),
        conn_url: "postgres://b/".into(),
        api_url: "http://b/".into(),
        slots: BTreeMap::from([("gd_a".into(), 5)]),
    };
    let asking = {
        let (peers, all, message) = (peers.clone(), all.clone(), message.clone());
        tokio::spawn(async move { peers.failsafe(&all, &message).await })
    };
    let seen = as_loop(&mut server, 200, "Accepted").await;
    assert!(seen.contains("gd-b") && seen.contains("gd_a"), "{seen}");
    let verdict = asking.await.expect("no panic");
    assert!(verdict.accepted, "{verdict:?}");
    assert_eq!(
        verdict.positions.get(&"gd-a".into()).map(|lsn| lsn.0),
        Some(100)
    );
    server.publish(|p| *p = leader(&server.etcd));
    let refused = peers.failsafe(&all, &message).await;
    assert!(!refused.accepted);
    assert_eq!(
        refused.refusals.get(&"gd-a".into()).map(String::as_str),
        Some("500: Running as a leader")
    );
    server.etcd.put("config", "{}");
    server.publish(|p| *p = replica(&server.etcd));
    assert_eq!(
        server
            .ask("POST", "/failsafe", Some("{\"a\": 1}"))
            .await
            .code,
        502,
        "switched off"
    );
}

/// S3: a candidate sees whether a position is from before the lock was free; S23: a primary, whether others have
/// led since it did.
#[tokio::test]
async fn a_peer_says_how_old_its_position_is_and_what_epoch_it_knows_of() {
    let server = Server::start(config(|_| ()), RECORDS, replica).await;
    let url = format!("http://{}/patroni", server.address);
    let peers = Peers::new(&config(|_| ()).ctl).expect("client");
    let all = BTreeMap::from([(MemberName::from("gd-a"), url)]);
    let minute = Duration::from_secs(60);
    for least in [Duration::ZERO, minute] {
        server.publish(|p| {
            let mut postgres = (*p.postgres).clone();
            postgres.sql_at = garden_agent::clock::now() - least;
            p.postgres = std::sync::Arc::new(postgres);
            p.epoch = Epoch(7);
        });
        let answers = peers.ask(&all, Duration::from_secs(10)).await;
        let status = answers.get(&"gd-a".into()).and_then(|a| a.status.clone());
        let status = status.expect("answered");
        assert_eq!(status.epoch, Epoch(7));
        let age = status.age;
        assert!(age > least && age < least + minute, "{age:?}");
    }
}

#[tokio::test]
async fn peers_are_asked_at_once_and_none_is_waited_for_beyond_the_limit() {
    let silent = TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let silent_url = format!("http://{}/patroni", silent.local_addr().expect("address"));
    let urls = [
        ("good", peer(GOOD).await),
        (
            "agent",
            peer("HTTP/1.0 200 OK\r\n\r\n{\"state\": \"crashed\", \"role\": \"primary\"}").await,
        ),
        ("garbage", peer("HTTP/1.0 200 OK\r\n\r\nhello").await),
        (
            "primary",
            peer("HTTP/1.0 200 OK\r\n\r\n{\"role\": \"master\", \"wal\": {\"location\": 7}}").await,
        ),
        ("silent", silent_url),
        ("nobody", "http://127.0.0.1:1/patroni".to_owned()),
        ("nonsense", "not a url".to_owned()),
    ];
    let asked: BTreeMap<MemberName, String> = urls
        .into_iter()
        .map(|(name, url)| (name.into(), url))
        .collect();
    let peers = Peers::new(&config(|_| ()).ctl).expect("client");
    let began = std::time::Instant::now();
    let answers = peers.ask(&asked, Duration::from_millis(300)).await;
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "{:?}",
        began.elapsed()
    );
    assert_eq!(answers.len(), asked.len());
    let status = |name: &str| {
        answers
            .get(&name.into())
            .and_then(|answer| answer.status.clone())
    };
    let good = status("good").expect("answered");
    assert_eq!(
        (good.position.0, good.streaming, good.is_primary),
        (100, true, false)
    );
    assert_eq!(good.timeline.map(|t| t.0), Some(5));
    assert!(status("agent").is_some_and(|s| s.agent_only));
    assert!(status("garbage").is_some_and(|s| s.agent_only));
    assert!(status("primary").is_some_and(|s| s.is_primary && s.position.0 == 7));
    for name in ["silent", "nobody", "nonsense"] {
        assert_eq!(status(name), None, "{name}");
    }
    assert!(
        peers
            .answers(asked.get(&"good".into()).expect("there"))
            .await
    );
    assert!(!peers.answers("http://127.0.0.1:1/patroni").await);
}
