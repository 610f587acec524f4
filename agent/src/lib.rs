//! garden-agent: the shell around the core.
//!
//! ```text
//!  etcd ─────┐                                         ┌─▶ etcd transaction
//!  guardian ─┤                                         ├─▶ postgres job
//!  postgres ─┼─▶ member loop ─▶ proto::core::decide ───┼─▶ guardian deadline
//!  peers ────┤                                         ├─▶ published snapshot ─▶ REST
//!  REST ─────┘                                         └─▶ journal
//! ```
//!
//! Everything that can hang, fail or lie is here; everything that is judged is in `proto`. Modules in
//! reading order: [`member`] (the loop), then the drivers [`etcd`], [`guardian`], [`postgres`],
//! [`peers`] and [`rest`], then what they stand on.

pub mod member;

pub mod etcd;
pub mod guardian;
pub mod peers;
pub mod postgres;
pub mod rest;

pub mod cli;
pub mod clock;
pub mod config;
pub mod ctl;
pub mod exit;
pub mod foreign;
pub mod http;
pub mod journal;
pub mod manual;
pub mod run;
pub mod systemd;
pub mod telemetry;
pub mod tls;
pub mod watchdog;
