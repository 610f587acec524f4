//! The local PostgreSQL: facts about it, its files, and the work done on it.

pub mod conf;
pub mod connect;
pub mod context;
pub mod controldata;
pub mod guc;
pub mod hba;
pub mod history;
pub mod pgdata;
pub mod probe;
pub mod settings;
pub mod slots;
mod target;

pub use context::PgContext;
