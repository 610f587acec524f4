//! The judgement: `decide(observation, memory, settings) -> (decision, memory)`.
//!
//! ```text
//!  Observation ──┐
//!  Memory ───────┼──▶ decide ──▶ Decision { reason, actions, wake_at } + Memory
//!  Settings ─────┘
//! ```
//!
//! Level-triggered: a decision looks at what is, never at which event came, so a lost or doubled event
//! costs time and nothing else. Reading order: [`observation`], [`decision`], [`reason`], then
//! [`tenure`] (who leads, until when), [`decide`], and the branches it names.

mod copies;
mod cx;
pub mod decide;
pub mod decision;
mod down;
pub mod election;
mod empty;
pub mod failsafe;
mod finish;
mod follow;
mod handover;
pub mod history;
pub mod job;
mod keep;
pub mod lag;
mod lead;
mod leave;
pub mod memory;
pub mod observation;
pub mod quorum;
mod race;
pub mod reason;
pub mod rewind;
pub mod slots;
pub mod standing;
pub mod sync;
pub mod tenure;
pub mod txns;
pub mod vote;

pub use decide::decide;
pub use decision::{Action, Decision};
pub use keep::{PROTOCOL, capabilities};
pub use memory::Memory;
pub use observation::Observation;
pub use reason::Reason;
