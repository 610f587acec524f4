//! Models of the protocol for `stateright`. They are made of the real rules wherever those are functions:
//! transactions ([`etcd`] carries them out as data), judgement of the lock, renewal of the record, the
//! guardian's clock, votes, and the steps of synchronous replication.
//!
//! What keeps them small:
//! - revisions are not numbers: a compare either still holds or never will again ([`etcd::Sent`]);
//! - times are ages in ticks, cut off where nothing can depend on them any more;
//! - an agent that does nothing is any agent that is slow, frozen or cut off: nobody has to act, only the
//!   guardian and the kernel are driven by time.
#![allow(dead_code, reason = "each model uses its part of the kit")]
#![allow(
    missing_docs,
    clippy::unwrap_used,
    reason = "a model fails loudly; its parts are explained at their modules"
)]

pub mod etcd;
pub mod failsafe;
pub mod kit;
pub mod lease;
pub mod switch;
pub mod votes;

/// The rules by which the record is renewed are the agent's own: its module knows nothing but `proto`.
#[path = "../../../agent/src/etcd/record.rs"]
#[allow(unreachable_pub, reason = "it belongs to another crate")]
pub mod record;
