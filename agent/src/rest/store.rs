//! The part of etcd that operators' requests need, as a trait, so that tests of the interface need no
//! etcd.

use proto::dcs::txn::TxnOutcome;
use proto::dcs::{Snapshot, Txn};
use std::pin::Pin;
use std::time::Duration;

/// A future that can be named.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Reads and writes the records of the cluster.
pub trait Store: Send + Sync {
    /// Commits, within `limit`.
    fn commit<'a>(&'a self, txn: &'a Txn, limit: Duration) -> StoreFuture<'a, TxnOutcome>;

    /// Reads everything, linearizably, within `limit`. `None`: etcd did not answer.
    fn read(&self, limit: Duration) -> StoreFuture<'_, Option<Snapshot>>;
}
