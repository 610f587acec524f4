//! A real HAProxy, with the checks that people have in their configuration, follows the lock.
//! Skipped where HAProxy is not installed.

mod rest_support;

use rest_support::{Server, config, exchange, leader, replica};
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tokio::net::TcpStream;

/// Ended with the test, also when it fails.
struct Haproxy(Child);

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    socket.local_addr().expect("address").port()
}

/// The states of the servers as HAProxy's statistics tell them, by backend.
async fn states(port: u16) -> Option<Vec<(String, String)>> {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.ok()?;
    let reply = exchange(stream, "GET /stats;csv HTTP/1.0\r\n\r\n").await;
    let rows = reply
        .body
        .lines()
        .map(|line| line.split(',').collect::<Vec<_>>());
    let servers = rows.filter(|row| row.get(1) == Some(&"s"));
    Some(
        servers
            .map(|row| (row[0].to_owned(), row[17].to_owned()))
            .collect(),
    )
}

async fn wait_for(port: u16, expected: &[(&str, &str)]) {
    let mut last = None;
    for _ in 0..100 {
        last = states(port).await;
        let matches = |seen: &Vec<(String, String)>| {
            expected
                .iter()
                .all(|(b, s)| seen.contains(&((*b).to_owned(), (*s).to_owned())))
        };
        if last.as_ref().is_some_and(matches) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("expected {expected:?}, HAProxy says {last:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn haproxy_follows_the_lock_with_every_kind_of_check() {
    let server = Server::start(
        config(|_| ()),
        &[("leader", "gd-a"), ("config", "{}")],
        leader,
    )
    .await;
    let (stats, check) = (free_port(), server.address.port());
    let backend = |name: &str, lines: &str| {
        format!(
            "listen {name}\n  bind 127.0.0.1:{}\n{lines}  http-check expect status 200\n  \
             default-server inter 100 fall 1 rise 1\n  server s 127.0.0.1:9 check port {check}\n",
            free_port()
        )
    };
    let text = [
        "defaults\n  mode tcp\n  timeout client 5s\n  timeout connect 1s\n  timeout server 5s\n  timeout check 5s\n"
            .to_owned(),
        format!("listen stats\n  mode http\n  bind 127.0.0.1:{stats}\n  stats enable\n  stats uri /stats\n"),
        backend("bare", "  option httpchk\n"),
        backend("options", "  option httpchk OPTIONS /primary\n"),
        backend("head", "  option httpchk HEAD /replica\n"),
        backend("get", "  option httpchk\n  http-check send meth GET uri /leader ver HTTP/1.1 hdr Host x\n"),
    ]
    .concat();
    let file = std::env::temp_dir().join(format!("garden-haproxy-{}.cfg", std::process::id()));
    std::fs::write(&file, text).expect("written");
    let started = ["haproxy", "/usr/sbin/haproxy"].iter().find_map(|program| {
        let mut command = Command::new(program);
        command
            .arg("-db")
            .arg("-f")
            .arg(&file)
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        command.spawn().ok()
    });
    let Some(_haproxy) = started.map(Haproxy) else {
        return;
    };
    wait_for(
        stats,
        &[
            ("bare", "UP"),
            ("options", "UP"),
            ("get", "UP"),
            ("head", "DOWN"),
        ],
    )
    .await;
    server.publish(|p| *p = replica(&server.etcd));
    wait_for(
        stats,
        &[
            ("bare", "DOWN"),
            ("options", "DOWN"),
            ("get", "DOWN"),
            ("head", "UP"),
        ],
    )
    .await;
    server.publish(|p| {
        *p = leader(&server.etcd);
        p.hold_back = Some("what was recovered is not on a quorum yet".into());
    });
    wait_for(
        stats,
        &[
            ("bare", "DOWN"),
            ("options", "DOWN"),
            ("get", "DOWN"),
            ("head", "DOWN"),
        ],
    )
    .await;
    std::fs::remove_file(&file).expect("removed");
}
