//! Real clusters, real faults: three PostgreSQL, three etcd and an HAProxy as processes on loopback,
//! a writer that remembers what was acknowledged, and a checker that counts what is missing.
//!
//! The agent's binaries are run, never linked, and which ones is a parameter ([`Binaries`]): the same
//! stories drive `garden-agent` and, for comparison, the released Patroni
//! (`GARDEN_AGENT_BIN=.../patroni GARDEN_CTL_BIN=.../patronictl`).
//!
//! How to write a story, in one screen:
//!
//! ```no_run
//! use chaos_tests::{Builder, Fault, Writer, story};
//! use std::time::{Duration, Instant};
//!
//! story("postmaster_killed", async {
//!     let cluster = Builder::from_environment()?.start().await?;
//!     let settled = cluster.settle(Duration::from_secs(60)).await?;
//!     let writer = Writer::through_haproxy(&cluster).await?;
//!     let fault = Instant::now();
//!     Fault::KillPostmaster(settled.leader).inject(&cluster)?;
//!     writer.wait_ack_after(fault, Duration::from_secs(60)).await?;
//!     let settled = cluster.settle(Duration::from_secs(120)).await?;
//!     let ledger = writer.stop().await;
//!     let verdict = chaos_tests::checker::check(&cluster, settled.leader, &[ledger]).await?;
//!     anyhow::ensure!(verdict.lost.is_empty(), "{verdict}");
//!     Ok(())
//! });
//! ```
//!
//! Reading order: [`builder`], [`cluster`], [`member`], [`fault`], [`workload`], [`checker`], then the servers
//! ([`etcd`], [`haproxy`]) and what keeps the machine clean ([`process`], [`janitor`]).

pub mod bench;
pub mod beside;
pub mod binaries;
pub mod builder;
pub mod chaos;
pub mod checker;
pub mod clients;
pub mod cluster;
pub mod demo;
pub mod disks;
pub mod etcd;
pub mod etcd_api;
pub mod exclusivity;
pub mod fault;
pub mod haproxy;
pub mod history;
pub mod http;
pub mod janitor;

pub mod member;
pub mod mixed;
pub mod netns;
pub mod operate;
pub mod ports;
pub mod post_mortem;
pub mod process;
pub mod report;
pub mod session;
pub mod steps;
pub mod store;
pub mod template;
pub mod wait;
pub mod workload;

pub use binaries::Binaries;
pub use builder::Builder;
pub use cluster::{Cluster, Settled};
pub use fault::Fault;
pub use member::{Member, Software};
pub use workload::{Ledger, Writer};

use anyhow::Context;
use nix::fcntl::{Flock, FlockArg};
use std::future::Future;

/// Runs one story to its end. Stories of all test binaries on this machine run one at a time, since
/// two clusters on two cores would measure each other: a lock on a file in the temporary directory
/// is held while a story runs.
///
/// # Panics
/// When the story fails; that is how a test reports.
pub fn story<F: Future<Output = anyhow::Result<()>>>(name: &str, body: F) {
    let _earlier = cluster::last_words();
    let outcome = (|| {
        let _turn = turn()?;
        runtime()?.block_on(body)
    })();
    if let Err(error) = outcome {
        eprintln!("{}", cluster::last_words());
        panic!("{name}: {error:#}");
    }
}

/// Waits until no other cluster is being measured on this machine; the turn ends when this is dropped.
///
/// # Errors
/// When the file of the lock cannot be opened.
pub fn turn() -> anyhow::Result<Flock<std::fs::File>> {
    let path = std::env::temp_dir().join("garden-chaos.lock");
    let file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| error)
        .context("wait for the other stories of this machine")
}

/// The runtime of the harness: two threads, so that a writer goes on while the story waits.
///
/// # Errors
/// When the threads cannot be started.
pub fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    runtime.context("start the runtime of the harness")
}
