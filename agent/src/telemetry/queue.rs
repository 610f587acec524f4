//! The bounded queue between those who log and the writer thread.

use super::levels;
use super::record::Record;
use super::writer::Settings;
use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Most records taken at a time, so that those who log find room again soon.
const BATCH: usize = 64;

/// What the writer receives.
pub(super) enum Item {
    Record(Record),
    Reconfigure(Box<Settings>),
}

/// See the module. The lock is held for moving a few values only, never while writing.
pub(super) struct Queue {
    state: Mutex<State>,
    ready: Condvar,
}

struct State {
    items: VecDeque<Item>,
    capacity: usize,
    lost: u64,
    stopping: bool,
}

impl Queue {
    pub(super) fn new(capacity: usize) -> Self {
        let state = State {
            items: VecDeque::new(),
            capacity,
            lost: 0,
            stopping: false,
        };
        Self {
            state: Mutex::new(state),
            ready: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while the lock was held left a queue that is still a queue.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set_capacity(&self, capacity: usize) {
        self.lock().capacity = capacity;
    }

    /// Queues a record, or counts it as lost.
    pub(super) fn push(&self, record: Record) {
        let mut state = self.lock();
        if state.items.len() >= state.capacity {
            state.lost += 1;
            return;
        }
        if state.lost > 0 {
            let note = format!("QueueHandler has lost {} log records", state.lost);
            state.lost = 0;
            state
                .items
                .push_back(Item::Record(Record::new(levels::WARNING, note)));
        }
        state.items.push_back(Item::Record(record));
        self.ready.notify_one();
    }

    /// Queues new settings, which apply to what is logged from now on; never dropped.
    pub(super) fn reconfigure(&self, settings: Settings) {
        self.lock()
            .items
            .push_back(Item::Reconfigure(Box::new(settings)));
        self.ready.notify_one();
    }

    /// The next items; empty when the queue has ended.
    pub(super) fn take(&self) -> Vec<Item> {
        let mut state = self.lock();
        while state.items.is_empty() && !state.stopping {
            state = self
                .ready
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        let count = state.items.len().min(BATCH);
        state.items.drain(..count).collect()
    }

    /// Ends the queue once it is empty; whether it was full.
    pub(super) fn stop(&self) -> bool {
        let mut state = self.lock();
        state.stopping = true;
        self.ready.notify_one();
        state.items.len() >= state.capacity
    }
}
