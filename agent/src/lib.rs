//! The shell around the core. (Placeholder, written in full below.)
pub mod clock;
pub mod config;
pub mod guardian;
pub mod http;
pub mod peers;
pub mod postgres;
pub mod rest;
pub mod tls;
pub mod watchdog;
pub mod cli;
pub mod exit;
pub mod telemetry;
pub mod etcd;
