//! Every method on every kind of path: the codes, and all headers that occur, so that a change of the
//! machinery below shows.

mod rest_support;

use expect_test::expect_file;
use garden_agent::config::secret::Secret;
use garden_agent::journal::Journal;
use proto::core::{Memory, Observation, decide};
use rest_support::{Server, config, exchange, leader, replica};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use tokio::net::TcpStream;

const RECORDS: &[(&str, &str)] = &[
    ("leader", "gd-a"),
    ("config", r#"{"ttl":30,"loop_wait":10}"#),
    ("history", r#"[[1,5,"no recovery target specified"]]"#),
];

const FAILSAFE: &[(&str, &str)] = &[("leader", "gd-a"), ("config", r#"{"failsafe_mode":true}"#)];

const TARGETS: &[&str] = &[
    "/",
    "/primary",
    "//primary",
    "/replica",
    "/sync/",
    "/nonsense",
    "/PATRONI",
    "/%70atroni",
    "*",
    "http://other/patroni",
    "http://other",
    "//patroni",
    "///patroni//x",
    "/patroni",
    "/patroni/",
    "/patroni//",
    "/patroni/x/y?z",
    "/patronix",
    "/cluster",
    "/cluster/",
    "/history",
    "/config",
    "/config/ttl",
    "/liveness",
    "/readiness",
    "/readiness/?lag=0",
    "/failsafe",
    "/reload",
    "/sigterm",
    "/restart",
    "/reinitialize",
    "/switchover",
    "/failover",
    "/citus",
    "/mpp",
    "/garden/nothing",
    "/openapi.jsonx",
];

const METHODS: &[&str] = &[
    "GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "BREW",
];

/// The code, and the whole head in an order of its own, without what is a matter of the moment.
async fn ask(server: &Server, request: &str) -> (u16, String) {
    let stream = TcpStream::connect(server.address).await.expect("connects");
    let reply = exchange(stream, request).await;
    let mut lines = reply.head.lines();
    let status = lines.next().unwrap_or_default().to_owned();
    let headers = lines.filter(|line| !line.starts_with("Date:"));
    let mut headers: Vec<&str> = headers
        .map(|line| match line.split_once(": ") {
            Some(("Content-Length", length)) if length != "0" => "Content-Length: (some)",
            Some(("Garden-Position-Age-Ms", _)) => "Garden-Position-Age-Ms: (some)",
            _ => line,
        })
        .collect();
    headers.sort_unstable();
    (reply.code, format!("{status} | {}", headers.join(" | ")))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_method_on_every_path_has_the_answer_it_had() {
    let mut text = format!("{:32} {}\n", "", METHODS.join(" "));
    let mut heads = BTreeSet::new();
    let named = config(|c| c.restapi.server_tokens = "ProductOnly".into());
    for (who, describe) in [("leader", leader as fn(&_) -> _), ("replica", replica)] {
        let mut server = Server::start(named.clone(), RECORDS, describe).await;
        // Nobody takes requests, so what the member loop would have to answer is refused at once.
        let (_, nobody) = tokio::sync::mpsc::channel(1);
        drop(std::mem::replace(&mut server.requests, nobody));
        for target in TARGETS {
            write!(text, "{:32}", format!("{who} {target}")).expect("a string");
            for method in METHODS {
                let host = "Host: x\r\nConnection: close\r\n";
                let old = ask(
                    &server,
                    &format!("{method} {target} HTTP/1.0\r\n{host}\r\n"),
                )
                .await;
                let new = ask(
                    &server,
                    &format!("{method} {target} HTTP/1.1\r\n{host}\r\n"),
                )
                .await;
                assert_eq!(
                    old.0, new.0,
                    "{method} {target}: the version does not matter"
                );
                let kind = if matches!(*method, "HEAD" | "OPTIONS" | "GET") {
                    *method
                } else {
                    "other"
                };
                heads.extend([format!("{kind:7} {}", old.1), format!("{kind:7} {}", new.1)]);
                write!(text, " {:width$}", old.0, width = method.len()).expect("a string");
            }
            text.push('\n');
        }
        let connect = "CONNECT x:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        assert_eq!(ask(&server, connect).await.0, 501);
    }
    text.push('\n');
    text.extend(heads.into_iter().map(|head| head + "\n"));
    expect_file!["rest_wire.txt"].assert_eq(&text);
}

/// All operations that change something, from the document that the router makes of itself.
async fn operations(server: &Server) -> Vec<(String, String, Value)> {
    let document = server.ask("GET", "/openapi.json", None).await.body;
    let document: Value = serde_json::from_str(&document).expect("JSON");
    let paths = document["paths"].as_object().expect("paths").iter();
    let all = paths.flat_map(|(path, methods)| {
        let methods = methods.as_object().expect("methods").iter();
        methods.map(|(method, about)| (method.to_uppercase(), path.clone(), about.clone()))
    });
    let safe = ["GET", "HEAD", "OPTIONS"];
    let unsafe_ones = all.filter(|(method, ..)| !safe.contains(&method.as_str()));
    unsafe_ones.collect()
}

#[tokio::test]
async fn whatever_changes_something_needs_the_password_and_a_body_where_the_document_says_so() {
    let user = ("user".to_owned(), Secret::new("pass"));
    let locked = config(|c| c.restapi.authentication = Some(user));
    let server = Server::start(locked, RECORDS, leader).await;
    let open = Server::start(config(|_| ()), FAILSAFE, leader).await;
    let operations = operations(&server).await;
    assert!(operations.len() > 10, "{operations:?}");
    for (method, path, about) in operations {
        let code = server.code(&method, &path).await;
        let wanted = if path == "/mpp" { 411 } else { 401 };
        assert_eq!(code, wanted, "{method} {path}, as Patroni does");
        assert_eq!(
            about.get("security").is_some(),
            path != "/mpp",
            "{method} {path}"
        );
        if about["requestBody"]["required"] == true {
            assert_eq!(open.code(&method, &path).await, 411, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn the_journal_shows_as_many_lines_as_are_asked_for() {
    // No directory can be made there, so the entries stay in memory.
    let mut journal = Journal::open(Path::new("/dev/null/data"), "gd-a");
    let server = Server::start_with(journal.reader(), config(|_| ()), RECORDS, leader).await;
    let observation = Observation::default();
    let settings = server.published.borrow().settings.clone();
    let memory = Memory::default();
    let (decision, _) = decide(&observation, &memory, &settings);
    for _ in 0..250 {
        journal.record(&observation, &memory, &settings, &decision);
    }
    for (target, lines, first) in [
        ("/garden/journal", 200, 51),
        ("/garden/journal?limit=3", 3, 248),
        ("/garden/journal/?limit=1000", 250, 1),
        ("/garden/journal?limit=0", 0, 0),
        ("/garden/journal?limit=", 200, 51),
    ] {
        let reply = server.ask("GET", target, None).await;
        assert_eq!(
            (reply.code, reply.body.lines().count()),
            (200, lines),
            "{target}"
        );
        let line = reply.body.lines().next().map(serde_json::from_str::<Value>);
        let seq = line.map(|line| line.expect("JSON")["seq"].as_u64());
        assert_eq!(
            seq.flatten().unwrap_or(0),
            first,
            "{target}: the newest are shown"
        );
    }
    assert_eq!(server.code("GET", "/garden/journal?limit=many").await, 400);
}
