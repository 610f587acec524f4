//! The open connections, and who has to go when there are too many.
//!
//! A health check must get in however many clients sit idle on their connections: a proxy that cannot
//! ask takes the primary out. So at the limit the oldest connection without a request in progress is
//! closed for the newcomer.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio_util::sync::CancellationToken;

/// Connections at the same time, if the limit on open files allows for them.
const CONNECTIONS_MAX: usize = 4096;

/// Files that are left to the rest of the process.
const FILES_RESERVED: u64 = 256;

/// One connection.
#[derive(Debug, Default)]
pub(super) struct Slot {
    /// A request is being answered.
    pub(super) busy: AtomicBool,
    /// Told to go.
    pub(super) close: CancellationToken,
}

/// All connections of the server.
#[derive(Debug)]
pub(super) struct Connections {
    limit: usize,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    slots: BTreeMap<u64, Arc<Slot>>,
}

impl Connections {
    /// With the limit that this process can afford.
    pub(super) fn new() -> Self {
        use nix::sys::resource::{Resource, getrlimit};
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        let affordable = files.saturating_sub(FILES_RESERVED).max(files / 2);
        let limit = usize::try_from(affordable)
            .unwrap_or(usize::MAX)
            .clamp(16, CONNECTIONS_MAX);
        Self::with_limit(limit)
    }

    fn with_limit(limit: usize) -> Self {
        Self {
            limit,
            open: Mutex::default(),
        }
    }

    /// A place for a new connection, at the cost of the oldest idle one if need be; `None` when all
    /// are busy.
    pub(super) fn enter(self: &Arc<Self>) -> Option<Place> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.slots.len() >= self.limit {
            let idle = |slot: &Slot| !slot.busy.load(Ordering::Relaxed);
            let oldest = open
                .slots
                .iter()
                .find(|(_, slot)| idle(slot))
                .map(|(id, _)| *id)?;
            if let Some(slot) = open.slots.remove(&oldest) {
                slot.close.cancel();
            }
        }
        let id = open.next;
        open.next += 1;
        let slot = Arc::new(Slot::default());
        open.slots.insert(id, slot.clone());
        Some(Place {
            id,
            slot,
            connections: self.clone(),
        })
    }
}

/// A place among the connections; given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    id: u64,
    pub(super) slot: Arc<Slot>,
    connections: Arc<Connections>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self
            .connections
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        open.slots.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_idle_connection_makes_room() {
        let connections = Arc::new(Connections::with_limit(2));
        let first = connections.enter().expect("room");
        let second = connections.enter().expect("room");
        first.slot.busy.store(true, Ordering::Relaxed);
        let third = connections.enter().expect("the second one goes");
        assert!(!first.slot.close.is_cancelled());
        assert!(second.slot.close.is_cancelled());
        third.slot.busy.store(true, Ordering::Relaxed);
        assert!(connections.enter().is_none(), "everybody is busy");
        drop(third);
        assert!(connections.enter().is_some());
    }
}
