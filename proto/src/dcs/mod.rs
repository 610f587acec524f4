//! What lives in etcd, who may write it, and how.
//!
//! [`keys`] names every key once. [`records`] says what each value means and forgives what others
//! may have written. [`view`] is all of them at one revision, [`watched`]
//! how it is kept up to date. [`txn`] holds every transaction as data,
//! so that the real driver and the simulated store carry out the same definition.

pub mod keys;
pub mod records;
pub mod txn;
pub mod view;
pub mod watched;

pub use keys::{Key, Keyspace};
pub use records::*;
pub use txn::{Compare, LeaseRef, Op, Txn};
pub use view::{ClusterView, Entry, Snapshot};
pub use watched::Watched;
