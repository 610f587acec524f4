//! Transactions as data (I5): every write to etcd is one of these, and whoever carries them out, the
//! real driver or the simulated store, has no choice left to make.

use super::keys::Key;
use crate::ids::{LeaseId, Revision};
use serde::{Deserialize, Serialize};

/// A condition that etcd checks at the moment of the commit.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Compare {
    /// The key does not exist (`create_revision == 0`).
    Absent(Key),
    /// The key exists.
    Present(Key),
    /// The key exists with just this value.
    Value(Key, String),
    /// The key was last changed at this revision.
    Unchanged(Key, Revision),
    /// The key hangs on this etcd lease.
    OnLease(Key, LeaseId),
}

/// Which etcd lease a written key hangs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum LeaseRef {
    /// None: the key stays until somebody deletes it.
    None,
    /// The writer's own session lease, whatever it is when the transaction is sent.
    Session,
    /// A lease that another member keeps: used to hand `/leader` over.
    Other(LeaseId),
}

/// One write.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Op {
    /// Sets a key.
    Put {
        /// Which key.
        key: Key,
        /// Its new value.
        value: String,
        /// The lease it shall hang on.
        lease: LeaseRef,
    },
    /// Removes a key; nothing happens when it does not exist.
    Delete(Key),
}

impl Op {
    /// A put that outlives every lease.
    pub fn put(key: Key, value: impl Into<String>) -> Self {
        Self::Put {
            key,
            value: value.into(),
            lease: LeaseRef::None,
        }
    }

    /// A put on the writer's session lease.
    pub fn put_leased(key: Key, value: impl Into<String>) -> Self {
        Self::Put {
            key,
            value: value.into(),
            lease: LeaseRef::Session,
        }
    }

    /// The key that is written.
    pub fn key(&self) -> &Key {
        match self {
            Self::Put { key, .. } | Self::Delete(key) => key,
        }
    }
}

/// All compares must hold; then all writes happen at one revision, else none does.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Txn {
    /// The conditions.
    pub when: Vec<Compare>,
    /// The writes.
    pub then: Vec<Op>,
}

impl Txn {
    /// A transaction without conditions.
    pub fn always(then: Vec<Op>) -> Self {
        Self {
            when: Vec::new(),
            then,
        }
    }

    /// A transaction with conditions.
    pub fn when(when: Vec<Compare>, then: Vec<Op>) -> Self {
        Self { when, then }
    }
}

/// How a transaction ended, as far as its sender knows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TxnOutcome {
    /// Committed at this revision.
    Committed(Revision),
    /// A compare did not hold; nothing was written.
    Refused,
    /// The session lease that a put named does not exist any more; nothing was written.
    LeaseGone,
    /// No answer, or one that says nothing: it may have happened and may still happen. Read before
    /// acting (I5).
    Unknown(String),
}
