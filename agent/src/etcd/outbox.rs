//! The way of events to the member loop, which never makes their sender wait.
//!
//! The keeper must not stop renewing because nobody reads. So a full channel overflows into a list
//! that keeps only the newest event of each kind: all of them are levels, not edges.

use super::{EtcdEvent, LeaseEvent};
use std::collections::VecDeque;
use std::mem::{Discriminant, discriminant};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::mpsc;

/// Events that may wait for the member loop before they begin to replace each other.
pub(crate) const CHANNEL_EVENTS_MAX: usize = 256;

/// A cheap clone of the sending side.
#[derive(Clone)]
pub(crate) struct Outbox {
    inner: Arc<Inner>,
}

struct Inner {
    sender: Option<mpsc::Sender<EtcdEvent>>,
    /// In order of their last occurrence; at most one of each kind.
    overflow: Mutex<VecDeque<EtcdEvent>>,
}

impl Outbox {
    /// A new channel.
    pub(crate) fn channel() -> (Self, mpsc::Receiver<EtcdEvent>) {
        let (sender, receiver) = mpsc::channel(CHANNEL_EVENTS_MAX);
        (Self::over(Some(sender)), receiver)
    }

    /// For connections that tell nobody anything.
    pub(crate) fn nowhere() -> Self {
        Self::over(None)
    }

    fn over(sender: Option<mpsc::Sender<EtcdEvent>>) -> Self {
        Self {
            inner: Arc::new(Inner {
                sender,
                overflow: Mutex::default(),
            }),
        }
    }

    /// Sends, or keeps for [`Self::flush`].
    pub(crate) fn send(&self, event: EtcdEvent) {
        let Some(sender) = &self.inner.sender else {
            return;
        };
        let mut overflow = self
            .inner
            .overflow
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        overflow.retain(|waiting| kind(waiting) != kind(&event));
        overflow.push_back(event);
        drain(sender, &mut overflow);
    }

    /// Sends what was kept, as far as there is room. Called at every beat of the watch and the keeper.
    pub(crate) fn flush(&self) {
        let Some(sender) = &self.inner.sender else {
            return;
        };
        let mut overflow = self
            .inner
            .overflow
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        drain(sender, &mut overflow);
    }
}

fn drain(sender: &mpsc::Sender<EtcdEvent>, overflow: &mut VecDeque<EtcdEvent>) {
    while let Some(event) = overflow.pop_front() {
        match sender.try_send(event) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(event)) => {
                overflow.push_front(event);
                return;
            }
            // Nobody will ever read again: the agent is on its way out.
            Err(mpsc::error::TrySendError::Closed(_)) => overflow.clear(),
        }
    }
}

fn kind(event: &EtcdEvent) -> (Discriminant<EtcdEvent>, Option<Discriminant<LeaseEvent>>) {
    let inner = match event {
        EtcdEvent::Lease(lease) => Some(discriminant(lease)),
        _ => None,
    };
    (discriminant(event), inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::ids::LeaseId;

    #[test]
    fn a_full_channel_keeps_the_newest_of_each_kind() {
        let (outbox, mut receiver) = Outbox::channel();
        for _ in 0..CHANNEL_EVENTS_MAX {
            outbox.send(EtcdEvent::Alive);
        }
        for id in [1, 2, 3] {
            outbox.send(EtcdEvent::Lease(LeaseEvent::SessionLost(LeaseId(id))));
            outbox.send(EtcdEvent::Gap);
        }
        for _ in 0..CHANNEL_EVENTS_MAX {
            assert!(matches!(receiver.try_recv(), Ok(EtcdEvent::Alive)));
        }
        assert!(receiver.try_recv().is_err());
        outbox.flush();
        let lost = receiver.try_recv();
        assert!(
            matches!(
                lost,
                Ok(EtcdEvent::Lease(LeaseEvent::SessionLost(LeaseId(3))))
            ),
            "{lost:?}"
        );
        assert!(matches!(receiver.try_recv(), Ok(EtcdEvent::Gap)));
        assert!(receiver.try_recv().is_err());
    }
}
