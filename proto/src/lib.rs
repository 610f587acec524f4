//! The pure core of garden-agent. (Placeholder, written in full below.)
pub mod cluster_table;
pub mod config;
pub mod core;
pub mod dcs;
pub mod fence;
pub mod ids;
pub mod rest;
pub mod time;
pub mod wal;
