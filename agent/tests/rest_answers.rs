//! The wire: routing, shapes of answers, access control, over a real socket.

mod rest_support;

use garden_agent::config::secret::Secret;
use rest_support::{Server, config, exchange, leader, replica};
use tokio::net::TcpStream;

const RECORDS: &[(&str, &str)] = &[
    ("leader", "gd-a"),
    ("config", r#"{"ttl":30,"loop_wait":10}"#),
    ("history", r#"[[1,5,"no recovery target specified"]]"#),
    ("failsafe", r#"{"gd-a":"http://127.0.0.1:1/patroni"}"#),
    (
        "members/gd-a",
        r#"{"conn_url":"postgres://127.0.0.1:5433/postgres","api_url":"http://127.0.0.1:1/patroni","state":"running","role":"primary"}"#,
    ),
];

#[tokio::test]
async fn health_checks_are_routed_by_substring_and_documents_by_the_first_segment() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    for (method, target, code) in [
        ("GET", "/", 200),
        ("HEAD", "/", 200),
        ("OPTIONS", "/", 200),
        ("OPTIONS", "/replica?lag=1MB", 503),
        ("GET", "/?x=1", 200),
        ("GET", "//primary", 200),
        ("GET", "http://other/primary", 200),
        ("GET", "/nonsense", 503),
        ("GET", "/PRIMARY", 503),
        ("GET", "/patroni/x/y", 200),
        ("GET", "/liveness", 200),
        ("GET", "/readiness", 200),
        ("HEAD", "/liveness", 503),
        ("OPTIONS", "/patroni", 503),
        ("OPTIONS", "*", 503),
        ("GET", "/cluster", 200),
        ("GET", "/history", 200),
        ("GET", "/config/ttl", 200),
        ("GET", "/metrics", 200),
        ("GET", "/failsafe", 200),
        ("GET", "/garden", 200),
        ("GET", "/openapi.json", 200),
        ("POST", "/", 501),
        ("PUT", "/patroni", 501),
        ("DELETE", "/failover", 501),
        ("TRACE", "/patroni", 501),
        ("BREW", "/patroni", 501),
        ("POST", "/sigterm", 202),
        ("POST", "/reload", 202),
    ] {
        assert_eq!(server.code(method, target).await, code, "{method} {target}");
    }
}

#[tokio::test]
async fn each_kind_of_answer_has_its_shape() {
    let server = Server::start(
        config(|c| {
            c.restapi
                .http_extra_headers
                .insert("X-Extra".into(), "yes".into());
            c.restapi.server_tokens = "Minimal".into();
        }),
        RECORDS,
        leader,
    )
    .await;
    let json = server.ask("GET", "/patroni", None).await;
    assert_eq!(json.header("content-type"), Some("application/json"));
    assert_eq!(json.header("server"), Some("Patroni/4.1.4"));
    assert_eq!(json.header("x-extra"), Some("yes"));
    assert!(
        json.body
            .starts_with(r#"{"state": "running", "postmaster_start_time": "#),
        "{json:?}"
    );
    let metrics = server.ask("GET", "/metrics", None).await;
    assert_eq!(metrics.header("content-type"), Some("text/plain"));
    let text = server.ask("POST", "/reload", None).await;
    assert_eq!(text.header("content-type"), Some("text/html"));
    assert_eq!(text.body, "reload scheduled");
    for bare in ["/liveness", "/readiness"] {
        let reply = server.ask("GET", bare, None).await;
        assert_eq!((reply.header("x-extra"), reply.body.as_str()), (None, ""));
    }
    assert_eq!(server.ask("HEAD", "/", None).await.body, "");
    let page = server.ask("POST", "/nothing", None).await;
    assert_eq!(page.header("content-type"), Some("text/html;charset=utf-8"));
    assert_eq!(page.header("connection"), Some("close"));
    assert_eq!(page.header("x-extra"), None);
    assert!(
        page.body.contains("<title>Error response</title>"),
        "{page:?}"
    );
    assert!(
        page.body.contains("Message: Unsupported method ('POST')."),
        "{page:?}"
    );
    assert!(
        page.body
            .contains("501 - Server does not support this operation"),
        "{page:?}"
    );
    let cluster = server.ask("GET", "/cluster", None).await.body;
    assert!(
        cluster.starts_with(r#"{"members": [{"name": "gd-a", "role": "leader""#),
        "{cluster}"
    );
    let history = server.ask("GET", "/history", None).await.body;
    assert_eq!(history, r#"[[1, 5, "no recovery target specified"]]"#);
    let document = server.ask("GET", "/config", None).await.body;
    assert_eq!(document, r#"{"ttl": 30, "loop_wait": 10}"#);
}

#[tokio::test]
async fn both_versions_of_http_are_spoken_and_connections_are_kept() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    let stream = TcpStream::connect(server.address).await.expect("connects");
    let old = exchange(stream, "OPTIONS / HTTP/1.0\r\n\r\n").await;
    assert!(
        old.head.starts_with("HTTP/1.0 200 OK"),
        "what HAProxy sends by default: {old:?}"
    );
    let stream = TcpStream::connect(server.address).await.expect("connects");
    let two = "GET /primary HTTP/1.1\r\nHost: x\r\n\r\n\
               GET /replica HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let both = exchange(stream, two).await;
    assert!(both.head.starts_with("HTTP/1.1 200 OK"), "{both:?}");
    assert!(
        both.body.contains("HTTP/1.1 503 Service Unavailable"),
        "{both:?}"
    );
    let stream = TcpStream::connect(server.address).await.expect("connects");
    assert_eq!(exchange(stream, "rubbish\r\n\r\n").await.code, 400);
}

#[tokio::test]
async fn the_lock_runs_out_between_two_answers() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    let soon = garden_agent::clock::now() + std::time::Duration::from_millis(300);
    server.publish(|p| p.leader_until = Some(soon));
    assert_eq!(server.code("GET", "/primary").await, 200);
    tokio::time::sleep(std::time::Duration::from_millis(320)).await;
    assert_eq!(
        server.code("GET", "/primary").await,
        503,
        "nothing new was published"
    );
}

#[tokio::test]
async fn what_needs_a_view_is_unavailable_without_one_but_failsafe_is_remembered() {
    let server = Server::start(config(|_| ()), RECORDS, replica).await;
    server.publish(|p| p.view = None);
    for (target, code) in [
        ("/cluster", 503),
        ("/history", 503),
        ("/config", 503),
        ("/failsafe", 200),
        ("/replica", 200),
    ] {
        assert_eq!(server.code("GET", target).await, code, "{target}");
    }
    let metrics = server.ask("GET", "/metrics", None).await.body;
    assert!(metrics.contains("patroni_failsafe_member{scope=\"garden\",name=\"gd-a\"} 1\n"));
}

#[tokio::test]
async fn unsafe_requests_need_the_password() {
    let user = ("user".to_owned(), Secret::new("pass"));
    let server = Server::start(
        config(|c| c.restapi.authentication = Some(user)),
        RECORDS,
        leader,
    )
    .await;
    let none = server.ask("POST", "/sigterm", None).await;
    assert_eq!(
        (none.code, none.body.as_str()),
        (401, "no auth header received")
    );
    assert_eq!(
        none.header("www-authenticate"),
        Some("Basic realm=\"Patroni\"")
    );
    for (header, code) in [
        ("Authorization: Basic dXNlcjpwYXNz\r\n", 202),
        ("Authorization: basic dXNlcjpwYXNz\r\n", 401),
        ("Authorization: Basic dXNlcjpwYXNy\r\n", 401),
        ("Authorization: Basic dXNlcjpwYXNzZQ==\r\n", 401),
        ("Authorization: Bearer dXNlcjpwYXNz\r\n", 401),
    ] {
        let reply = server.ask_with("POST", "/sigterm", header, None).await;
        assert_eq!(reply.code, code, "{header}");
        assert!(code == 202 || reply.body == "not authenticated");
    }
    assert_eq!(server.code("GET", "/config").await, 200, "reading is free");
    assert_eq!(
        server.ask("POST", "/mpp", Some("{\"a\": 1}")).await.code,
        200
    );
    assert_eq!(
        server.ask("POST", "/citus", Some("{\"a\": 1}")).await.code,
        401
    );
    assert_eq!(
        server.code("PATCH", "/config").await,
        401,
        "access comes before the body"
    );
    assert_eq!(
        server.code("POST", "/unknown").await,
        501,
        "and routing before access"
    );
}

#[tokio::test]
async fn unsafe_requests_come_from_allowed_addresses() {
    let denied = config(|c| c.restapi.allowlist = vec!["10.0.0.0/8".into(), "bad/x".into()]);
    let server = Server::start(denied, RECORDS, leader).await;
    let reply = server.ask("POST", "/sigterm", None).await;
    assert_eq!((reply.code, reply.body.as_str()), (403, "Access is denied"));
    assert_eq!(server.code("GET", "/primary").await, 200);

    let allowed = config(|c| c.restapi.allowlist = vec!["127.0.0.0/8".into()]);
    server.config.send_replace(config(|c| {
        c.restapi = allowed.restapi.clone();
    }));
    let mut code = 403;
    for _ in 0..100 {
        code = server.code("POST", "/sigterm").await;
        if code == 202 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(code, 202, "a new list is taken over without a restart");
}

#[tokio::test]
async fn members_are_allowed_when_the_list_says_so() {
    let members = config(|c| c.restapi.allowlist_include_members = true);
    let records = [RECORDS, &[("config", r#"{"failsafe_mode":true}"#)]].concat();
    let server = Server::start(members, &records, replica).await;
    assert_eq!(
        server.code("POST", "/sigterm").await,
        202,
        "127.0.0.1 is a member's address"
    );
    server.publish(|p| p.view = None);
    assert_eq!(
        server.code("POST", "/sigterm").await,
        403,
        "no view, no members"
    );
    let failsafe = server.ask("POST", "/failsafe", Some("{}")).await;
    assert_eq!(
        failsafe.code, 400,
        "the list of members does not count here"
    );
}

#[tokio::test]
async fn all_addresses_take_both_protocols_and_see_plain_ipv4() {
    let server = Server::start(
        config(|c| {
            c.restapi.listen_host = "*".into();
            c.restapi.allowlist = vec!["127.0.0.1".into()];
        }),
        RECORDS,
        leader,
    )
    .await;
    let stream = TcpStream::connect(("127.0.0.1", server.address.port()))
        .await
        .expect("connects");
    let reply = exchange(stream, "POST /sigterm HTTP/1.0\r\n\r\n").await;
    assert_eq!(reply.code, 202, "::ffff:127.0.0.1 is 127.0.0.1");
}

#[tokio::test]
async fn a_changed_address_is_taken_over() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = free.local_addr().expect("address").port();
    drop(free);
    server
        .config
        .send_replace(config(|c| c.restapi.listen_port = port));
    let mut moved = None;
    for _ in 0..100 {
        if let Ok(stream) = TcpStream::connect(("127.0.0.1", port)).await {
            moved = Some(exchange(stream, "GET /primary HTTP/1.0\r\n\r\n").await.code);
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    assert_eq!(moved, Some(200));
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "the old port is closed"
    );
    server
        .handle
        .shutdown(std::time::Duration::from_secs(1))
        .await;
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
}
