//! Thousands of idle and slow clients on the REST port of a real agent: a health check is as quick as
//! without them, and the lease is renewed as before. Prints the figures; the limits here are generous,
//! since the machine of a test may be busy with other things.

use anyhow::{Context, Result, ensure};
use chaos_tests::report::{median, table};
use chaos_tests::steps::BOOTSTRAP_LIMIT;
use chaos_tests::{Builder, Cluster, http, ports, process, story};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

/// Clients that are in no hurry.
const CLIENTS: usize = 2000;
/// Open files that the clients and the agent need.
const FILES: u64 = 8192;
/// Looks with and without them.
const LOOKS: usize = 300;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// What is promised, between the medians: a health check is delayed by no more than this.
const DELAY_MAX_MS: f64 = 50.0;
/// A renewal is due every half second, and a lease lives 8 s. No renewal may be as late as this.
const RENEWAL_MAX: Duration = Duration::from_millis(2500);
/// base64 of `/service/garden/record`.
const RECORD: &str = r#"{"key": "L3NlcnZpY2UvZ2FyZGVuL3JlY29yZA=="}"#;

/// What was seen for a while.
struct Seen {
    checks: Vec<f64>,
    renewals: Vec<f64>,
    cpu_percent: f64,
}

#[test]
fn thousands_of_slow_clients_delay_neither_health_checks_nor_the_lease() {
    story("slow clients", async {
        let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, FILES.max(soft).min(hard), hard)?;
        let builder = Builder::from_environment()?.quick().members(1).etcds(1);
        let cluster = builder.start().await?;
        cluster.settle(BOOTSTRAP_LIMIT).await?;
        renewing(&cluster).await?;
        let without = look(&cluster).await?;
        let mut clients = JoinSet::new();
        let port = cluster.member(0)?.rest_port;
        for index in 0..CLIENTS {
            clients.spawn(client(port, index));
        }
        // Until all have connected.
        let connected =
            chaos_tests::wait::until("the clients", Duration::from_secs(60), || async {
                let open = cluster
                    .member(0)
                    .map(|member| sockets(member.agent()))
                    .unwrap_or(0);
                if open >= CLIENTS * 9 / 10 {
                    Ok(open)
                } else {
                    Err(format!("{open} connections"))
                }
            });
        let open = connected.await?;
        let with = look(&cluster).await?;
        clients.abort_all();
        print(open, &without, &with);
        judge(&without, &with)
    });
}

fn print(open: usize, without: &Seen, with: &Seen) {
    let head = ["", "without", "with", "difference"].map(str::to_owned);
    let row = |name: &str, of: &dyn Fn(&Seen) -> f64| {
        let (a, b) = (of(without), of(with));
        [
            name.to_owned(),
            format!("{a:.2}"),
            format!("{b:.2}"),
            format!("{:+.2}", b - a),
        ]
    };
    let rows = [
        row("health check, median ms", &|seen| {
            median(&seen.checks).unwrap_or(0.0)
        }),
        row("health check, 99th percentile ms", &|seen| {
            percentile(&seen.checks, 0.99)
        }),
        row("health check, maximum ms", &|seen| {
            percentile(&seen.checks, 1.0)
        }),
        row("between renewals, median ms", &|seen| {
            median(&seen.renewals).unwrap_or(0.0)
        }),
        row("between renewals, maximum ms", &|seen| {
            percentile(&seen.renewals, 1.0)
        }),
        row("agent, % of a core", &|seen| seen.cpu_percent),
    ];
    println!("{open} connections were open\n{}", table(&head, &rows));
}

fn judge(without: &Seen, with: &Seen) -> Result<()> {
    let middle = |seen: &Seen| median(&seen.checks).unwrap_or(f64::MAX);
    let delay = middle(with) - middle(without);
    ensure!(
        delay < DELAY_MAX_MS,
        "health checks are {delay:.1} ms slower"
    );
    let latest = percentile(&with.renewals, 1.0);
    ensure!(
        latest < RENEWAL_MAX.as_secs_f64() * 1e3,
        "a renewal was {latest:.0} ms after the last"
    );
    ensure!(!with.renewals.is_empty(), "no renewal was seen");
    Ok(())
}

fn percentile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let count = u32::try_from(sorted.len()).map_or(0.0, f64::from);
    // In bounds and not negative: a part of the length.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small index"
    )]
    let index = ((count * part).ceil() as usize).saturating_sub(1);
    sorted.get(index).copied().unwrap_or(0.0)
}

/// The revision of the record, which changes with each renewal.
async fn revision(cluster: &Cluster) -> Result<Option<String>> {
    let port = cluster.etcds().first().context("an etcd")?.client_port;
    let limit = Duration::from_secs(5);
    let answer = http::request(port, "POST", "/v3/kv/range", Some(RECORD), limit)
        .await?
        .json()?;
    Ok(answer
        .pointer("/kvs/0/mod_revision")
        .and_then(Value::as_str)
        .map(str::to_owned))
}

async fn renewing(cluster: &Cluster) -> Result<()> {
    chaos_tests::wait::until("the lease record", Duration::from_secs(30), || async {
        match revision(cluster).await {
            Ok(Some(_)) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    })
    .await
}

/// Health checks, and renewals meanwhile.
async fn look(cluster: &Cluster) -> Result<Seen> {
    let member = cluster.member(0)?;
    let agent = member.agent().context("the agent runs")?;
    let (from, used) = (
        Instant::now(),
        process::cpu_time(agent).context("its time")?,
    );
    let port = member.rest_port;
    // On a thread of its own: the clients must not slow down who measures.
    let checks = tokio::task::spawn_blocking(move || {
        let mut checks = Vec::new();
        for _ in 0..LOOKS {
            checks.push(check(port)?.as_secs_f64() * 1e3);
            std::thread::sleep(BETWEEN_LOOKS);
        }
        anyhow::Ok(checks)
    });
    let renewals = async {
        let (mut last, mut at, mut renewals) = (None, Instant::now(), Vec::new());
        loop {
            if let Ok(Some(now)) = revision(cluster).await
                && last.as_ref() != Some(&now)
            {
                if last.is_some() {
                    renewals.push(at.elapsed().as_secs_f64() * 1e3);
                }
                (last, at) = (Some(now), Instant::now());
            }
            if from.elapsed() > BETWEEN_LOOKS * u32::try_from(LOOKS).unwrap_or(0) {
                return renewals;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let (checks, renewals) = tokio::join!(checks, renewals);
    let spent = process::cpu_time(agent)
        .context("its time")?
        .saturating_sub(used);
    let cpu_percent = 100.0 * spent.as_secs_f64() / from.elapsed().as_secs_f64();
    Ok(Seen {
        checks: checks.context("the checks ended")??,
        renewals,
        cpu_percent,
    })
}

/// One health check, from the connection to the end of the answer.
fn check(port: u16) -> Result<Duration> {
    let from = Instant::now();
    let mut stream = std::net::TcpStream::connect((ports::host(port), port))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(b"OPTIONS /primary HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.contains(" 200 "), "it is the primary: {answer}");
    Ok(from.elapsed())
}

/// Open files of the agent, nearly all of them connections.
fn sockets(agent: Option<i32>) -> usize {
    let Some(agent) = agent else { return 0 };
    std::fs::read_dir(format!("/proc/{agent}/fd")).map_or(0, Iterator::count)
}

/// One of six bad habits, again and again; being sent away is expected.
async fn client(port: u16, index: usize) {
    loop {
        // What becomes of it is the server's business.
        let _ = habit(port, index % 6).await;
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

async fn habit(port: u16, which: usize) -> std::io::Result<()> {
    let mut stream = TcpStream::connect((ports::host(port), port)).await?;
    match which {
        // Says nothing.
        0 => {}
        1 => stream.write_all(b"GET /primary HTT").await?,
        2 => {
            stream
                .write_all(b"POST /mpp HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
                .await?
        }
        // A byte now and then.
        3 => {
            stream
                .write_all(b"GET /patroni HTTP/1.1\r\nHost: x\r\nX: ")
                .await?;
            loop {
                stream.write_all(b"y").await?;
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
        // Asks for the largest answers and reads none of them.
        4 => {
            for _ in 0..3 {
                stream
                    .write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
                    .await?;
            }
            tokio::time::sleep(Duration::from_secs(20)).await;
        }
        // Keeps its connection after an answer.
        _ => {
            stream
                .write_all(b"OPTIONS / HTTP/1.1\r\nHost: x\r\n\r\n")
                .await?
        }
    }
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).await.map(|_| ())
}
