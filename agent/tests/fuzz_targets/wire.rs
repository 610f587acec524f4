//! Requests as bytes on a connection, against the server itself: it answers in HTTP or hangs up, no handler panics, and
//! it goes on serving.

use crate::fuzz::Seen;
use crate::rest_support::{Server, config, leader};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub const WORDS: &[&str] = &[
    "Content-Length: ",
    "Transfer-Encoding: chunked\r\n",
    "Authorization: Basic ",
    "Expect: 100-continue\r\n",
    "HTTP/1.0",
    "OPTIONS",
    "HEAD",
    "PATCH",
    "DELETE",
    "/replica?lag=",
    "/readiness",
    "/switchover",
    "/history",
    "/openapi.json",
    "/metrics",
    "/garden/journal?limit=",
    "\r\n\r\n",
    "0\r\n\r\n",
];

/// Panics on any thread that is not watched by the engine.
static PANICS: AtomicU64 = AtomicU64::new(0);

const RECORDS: &[(&str, &str)] = &[
    ("leader", "gd-a"),
    (
        "config",
        r#"{"ttl":30,"loop_wait":10,"failsafe_mode":true}"#,
    ),
    ("history", r#"[[1,5,"no recovery target specified"]]"#),
];

/// Started by the first request; it lives as long as the process.
fn address() -> SocketAddr {
    static ADDRESS: OnceLock<SocketAddr> = OnceLock::new();
    *ADDRESS.get_or_init(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let server = std::thread::current()
                .name()
                .is_some_and(|name| name.contains("tokio"));
            PANICS.fetch_add(u64::from(server), Ordering::Relaxed);
            before(info);
        }));
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || serve(&tell));
        told.recv().expect("the server starts")
    })
}

fn serve(tell: &std::sync::mpsc::Sender<SocketAddr>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    runtime.expect("a runtime").block_on(async {
        let mut server = Server::start(config(|_| {}), RECORDS, leader).await;
        // Nobody takes requests, so what the member loop would have to answer is refused at once.
        let (_, nobody) = tokio::sync::mpsc::channel(1);
        drop(std::mem::replace(&mut server.requests, nobody));
        tell.send(server.address).expect("somebody waits");
        std::future::pending::<()>().await;
    });
}

/// Accepted here means that the request has an end: what is answered before the connection closes is a matter of time.
pub fn request(input: &[u8]) -> Seen {
    let before = PANICS.load(Ordering::Relaxed);
    let answer = exchange(input, PATIENCE);
    assert_eq!(PANICS.load(Ordering::Relaxed), before, "a handler panicked");
    assert!(
        answer.is_empty() || answer.starts_with(b"HTTP/1."),
        "{}",
        answer.escape_ascii()
    );
    let alive = exchange(b"GET /liveness HTTP/1.0\r\n\r\n", LIMIT);
    assert!(
        alive.starts_with(b"HTTP/1.0 "),
        "it does not serve any more"
    );
    Seen::from(input.windows(4).any(|end| end == b"\r\n\r\n"))
}

/// How long an answer to damage is waited for; half of it has none, since it is waited for the rest.
const PATIENCE: Duration = Duration::from_millis(10);

/// How long an answer to a good request is waited for.
const LIMIT: Duration = Duration::from_secs(30);

/// Sends, and reads until the other side closes; once patience is over, says that no more will come.
fn exchange(request: &[u8], patience: Duration) -> Vec<u8> {
    let mut stream = TcpStream::connect(address()).expect("connects");
    stream.set_read_timeout(Some(patience)).expect("a limit");
    // A refused body is not read to its end.
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    if stream.read_to_end(&mut answer).is_err() {
        let _ = stream.shutdown(Shutdown::Write);
        stream.set_read_timeout(Some(LIMIT)).expect("a limit");
        let end = stream.read_to_end(&mut answer);
        let waits = |err: &std::io::Error| err.kind() == std::io::ErrorKind::WouldBlock;
        assert!(!end.as_ref().is_err_and(waits), "no answer and no end");
    }
    answer
}
