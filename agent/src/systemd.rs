//! What systemd is told. Without `NOTIFY_SOCKET` nothing happens.

use sd_notify::NotifyState;

fn notify(states: &[NotifyState<'_>]) {
    if let Err(err) = sd_notify::notify(states) {
        tracing::debug!("systemd was not told: {err}");
    }
}

/// The agent serves.
pub fn ready() {
    notify(&[NotifyState::Ready]);
}

/// The configuration is being read again; [`ready`] follows.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(err) => tracing::debug!("systemd was not told: {err}"),
    }
}

/// The agent ends.
pub fn stopping() {
    notify(&[NotifyState::Stopping]);
}
