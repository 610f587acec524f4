//! Slow, silent and numerous clients: health checks must not wait for them.

mod rest_support;

use rest_support::{Server, config, leader};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const RECORDS: &[(&str, &str)] = &[("leader", "gd-a"), ("config", "{}")];

async fn assert_prompt(server: &Server) {
    let began = Instant::now();
    assert_eq!(server.code("OPTIONS", "/primary").await, 200);
    assert!(
        began.elapsed() < Duration::from_secs(2),
        "took {:?}",
        began.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hundreds_of_idle_and_half_sent_requests_delay_no_health_check() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    let mut held = Vec::new();
    for n in 0..600 {
        let mut stream = TcpStream::connect(server.address).await.expect("connects");
        match n % 3 {
            0 => {}
            1 => stream.write_all(b"GET /primary HT").await.expect("sends"),
            _ => stream
                .write_all(b"POST /mpp HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
                .await
                .expect("sends"),
        }
        held.push(stream);
        if n % 100 == 99 {
            assert_prompt(&server).await;
        }
    }
    assert_prompt(&server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_silent_client_is_sent_away() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    let mut idle = TcpStream::connect(server.address).await.expect("connects");
    let mut half = TcpStream::connect(server.address).await.expect("connects");
    half.write_all(b"GET /primary HTTP/1.1\r\nHost")
        .await
        .expect("sends");
    let mut kept = TcpStream::connect(server.address).await.expect("connects");
    kept.write_all(b"OPTIONS / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("sends");
    let mut body = TcpStream::connect(server.address).await.expect("connects");
    body.write_all(b"POST /mpp HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        .await
        .expect("sends");
    for (what, stream) in [
        ("idle", &mut idle),
        ("half", &mut half),
        ("kept", &mut kept),
        ("body", &mut body),
    ] {
        let mut bytes = Vec::new();
        let ended = tokio::time::timeout(Duration::from_secs(25), stream.read_to_end(&mut bytes));
        let _ = ended
            .await
            .unwrap_or_else(|_| panic!("{what}: still connected"));
    }
}

#[tokio::test]
async fn stopping_lets_a_request_end_and_cuts_the_rest() {
    let mut server = Server::start(config(|_| ()), RECORDS, leader).await;
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    stream
        .write_all(b"POST /restart HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .expect("sends");
    let _idle = TcpStream::connect(server.address).await.expect("connects");
    let request = server.requests.recv().await.expect("a restart");
    let stopping = tokio::spawn(server.handle.shutdown(Duration::from_secs(2)));
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "nobody comes in any more"
    );
    if let garden_agent::rest::RestRequest::Restart { reply, .. } = request {
        reply
            .send((200, "restarted successfully".into()))
            .expect("the server waits");
    }
    let mut text = String::new();
    stream.read_to_string(&mut text).await.expect("an answer");
    assert!(text.ends_with("restarted successfully"), "{text}");
    let began = Instant::now();
    stopping.await.expect("no panic");
    assert!(began.elapsed() < Duration::from_secs(3));
}

/// What each of these gets: a refusal, or the end of the connection, within the limit; never a 5xx.
async fn refused(server: &Server, what: &str, request: &[u8], close: bool) {
    let mut stream = TcpStream::connect(server.address).await.expect("connects");
    // The server may have had enough before all of it is sent.
    let _ = stream.write_all(request).await;
    if close {
        let _ = stream.shutdown().await;
    }
    let mut bytes = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(25), stream.read_to_end(&mut bytes)).await;
    // A reset is an end, too.
    let _ = ended.unwrap_or_else(|_| panic!("{what}: still connected"));
    let text = String::from_utf8_lossy(&bytes);
    let code = text
        .split(' ')
        .nth(1)
        .and_then(|code| code.parse::<u16>().ok());
    assert!(
        code.is_none_or(|code| (400..500).contains(&code)),
        "{what}: {}",
        text.lines().next().unwrap_or_default()
    );
    assert_prompt(server).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_and_truncated_requests_are_refused_and_cost_nobody_else_anything() {
    let server = Server::start(config(|_| ()), RECORDS, leader).await;
    let long = "x".repeat(300_000);
    let many: String = (0..500).map(|n| format!("X-{n}: y\r\n")).collect();
    let big = "x".repeat(2 << 20);
    let post = "POST /mpp HTTP/1.1\r\nHost: x\r\n";
    for (what, request, close) in [
        (
            "a long path",
            format!("GET /{long} HTTP/1.1\r\nHost: x\r\n\r\n"),
            false,
        ),
        (
            "a long header",
            format!("GET / HTTP/1.1\r\nHost: x\r\nX: {long}\r\n\r\n"),
            false,
        ),
        (
            "many headers",
            format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"),
            false,
        ),
        (
            "headers without an end",
            format!("GET / HTTP/1.1\r\n{}", "X: y\r\n".repeat(100_000)),
            false,
        ),
        (
            "a header without a colon",
            "GET / HTTP/1.1\r\nnothing\r\n\r\n".into(),
            false,
        ),
        (
            "a body that is too long",
            format!("{post}Content-Length: {}\r\n\r\n{big}", big.len()),
            false,
        ),
        (
            "a body that claims to be huge",
            format!("{post}Content-Length: 99999999999\r\n\r\n{{"),
            true,
        ),
        (
            "a length below zero",
            format!("{post}Content-Length: -1\r\n\r\n"),
            false,
        ),
        (
            "a length of letters",
            format!("{post}Content-Length: ten\r\n\r\n"),
            false,
        ),
        (
            "two lengths",
            format!("{post}Content-Length: 2\r\nContent-Length: 3\r\n\r\n{{}}"),
            false,
        ),
        (
            "a body cut short",
            format!("{post}Content-Length: 100\r\n\r\n{{\"a\": 1"),
            true,
        ),
        (
            "a head cut short",
            "GET /primary HTTP/1.1\r\nHos".into(),
            true,
        ),
        (
            "chunks of nonsense",
            format!("{post}Transfer-Encoding: chunked\r\n\r\nzz\r\nabc\r\n"),
            false,
        ),
        (
            "a chunk cut short",
            format!("{post}Transfer-Encoding: chunked\r\n\r\nff\r\nabc"),
            true,
        ),
        ("no HTTP", "\u{0}\u{1}\u{2} hello\r\n\r\n".into(), false),
        (
            "TLS on a plain port",
            "\u{16}\u{3}\u{1}\u{0}\u{5}hello\r\n\r\n".into(),
            false,
        ),
    ] {
        refused(&server, what, request.as_bytes(), close).await;
    }
}
