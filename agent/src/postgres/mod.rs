//! The local PostgreSQL: facts about it, its files, and the work done on it.
//!
//! ```text
//!  member loop ──Order──▶ driver task ──▶ one job at a time, cancellable ──┐
//!       ▲                     │──▶ short tasks beside it ──────────────────┤
//!       │                     └──▶ sampler: looks again and again ─────────┤
//!       └────────────────────────── PgEvent ◀──────────────────────────────┘
//! ```
//!
//! [`Postgres`] is the loop's handle; nothing it offers waits. The driver judges nothing: it does what
//! it is told and reports. What the guardian reports about processes reaches it through
//! [`Postgres::guardian_event`], to which the loop forwards each event that it receives: there is one
//! stream of them, and the loop is its owner.
//!
//! Reading order: [`probe`] and [`pgdata`] (facts), [`conf`] (files), `shared` (what jobs may use), then
//! one file per job. [`tool`] runs every external program.

pub mod conf;
pub mod connect;
pub mod context;
pub mod controldata;
pub mod guc;
pub mod hba;
pub mod history;
pub mod lineage;
pub mod pgdata;
pub mod probe;
pub mod settings;
pub mod slots;
pub mod tool;
pub mod walsender;
pub mod wipe;

mod archive;
mod bootstrap;
mod callbacks;
mod changes;
mod clone;
mod driver;
mod follow;
mod monitor;
mod promise;
mod promote;
mod receiver;
mod rewind;
mod shared;
mod start;
pub(crate) mod startup;
mod stop;
pub(crate) mod target;
mod units;

pub use context::{Copied, PgContext};
pub use driver::{PgEvent, Postgres};
