//! A whole cluster in one thread: the real `decide` of every member, over a simulated etcd, PostgreSQL,
//! network, guardian and clocks, with seeded faults (`safety.md` 8, layer 2).
//!
//! ```text
//!  faults ──▶ World { queue of events in virtual time }
//!               ├─ nodes: agent (shell around the real decide) · guardian (the real FenceClock) · PostgreSQL
//!               ├─ etcd: one linearizable store, leases, watches
//!               ├─ network: cuts per plane and direction
//!               └─ clients: unique commits, and what was acknowledged
//!  checks ◀── every change of who may write, every acknowledgement, every commit to etcd
//! ```
//!
//! One seed is one run, exactly repeatable. [`run::run`] runs one; [`run::shrink`] finds the fewest
//! faults with which it still fails.
#![allow(dead_code, reason = "each test binary uses its part of the simulator")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a simulator fails loudly; its parts are explained at their modules"
)]

pub mod aimed;
pub mod checks;
pub mod clock;
pub mod coverage;
pub mod effort;
pub mod etcd;
pub mod faults;
pub mod guardian;
pub mod jobs;
pub mod keeper;
pub mod kept;
pub mod mistakes;
pub mod mutation;
pub mod network;
pub mod people;
pub mod postgres;
pub mod reader;
pub mod run;
pub mod shell;
pub mod story;
pub mod workload;
pub mod world;

/// The rules by which the record is renewed are the agent's own: its module knows nothing but `proto`.
#[path = "../../../agent/src/etcd/record.rs"]
#[allow(dead_code, unreachable_pub, reason = "it belongs to another crate")]
pub mod record;
