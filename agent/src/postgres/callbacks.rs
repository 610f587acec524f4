//! The operator's scripts on events (`configuration.md` 7.4): `<words> <event> <role> <scope>`, not
//! waited for, one at a time. A newer one kills the older one with its process group; `on_reload` has a
//! lane of its own, so that it does not kill a running `on_role_change`.

use super::context::PgContext;
use super::tool::{self, Tool};
use crate::config::value::shell_words;
use tokio::process::Child;
use tokio::sync::mpsc;

/// Calls that may wait for a lane; it only starts processes, so more are a sign of a loop gone wild.
const QUEUE: usize = 64;

/// The event that has a lane of its own.
const ON_RELOAD: &str = "on_reload";

/// Hands calls to the two lanes.
#[derive(Clone, Debug)]
pub(super) struct Callbacks {
    reload: mpsc::Sender<Call>,
    other: mpsc::Sender<Call>,
}

#[derive(Debug)]
struct Call {
    event: String,
    role: String,
}

impl Callbacks {
    /// Starts the lanes; they end with the last handle.
    pub fn spawn(ctx: &PgContext) -> Self {
        let lane = || {
            let (tx, rx) = mpsc::channel(QUEUE);
            tokio::spawn(lane(ctx.clone(), rx));
            tx
        };
        Self {
            reload: lane(),
            other: lane(),
        }
    }

    /// Calls the script for `event`, if one is configured. A promoted member is told as primary.
    pub fn call(&self, event: &str, role: &str) {
        let role = if role == "promoted" { "primary" } else { role };
        let lane = if event == ON_RELOAD {
            &self.reload
        } else {
            &self.other
        };
        let call = Call {
            event: event.to_owned(),
            role: role.to_owned(),
        };
        if lane.try_send(call).is_err() {
            tracing::error!(event, "too many callbacks wait, this one is dropped");
        }
    }
}

/// One lane: at most one child.
async fn lane(ctx: PgContext, mut calls: mpsc::Receiver<Call>) {
    let mut running: Option<(String, Child)> = None;
    loop {
        // Both branches are cancel safe.
        let call = tokio::select! {
            call = calls.recv() => call,
            () = ended(&mut running) => continue,
        };
        // At the end of the agent a script is left to itself: `on_stop` is called right before it.
        let Some(call) = call else { return };
        let Some(script) = script(&ctx, &call) else {
            continue;
        };
        if let Some((event, mut child)) = running.take() {
            tracing::info!(
                event,
                by = call.event,
                "killing a callback that is still running"
            );
            tool::kill_group(&child);
            let _ = child.wait().await;
        }
        tracing::info!(event = call.event, role = call.role, "calling back");
        match script.command().spawn() {
            Ok(child) => running = Some((call.event, child)),
            Err(error) => tracing::error!(event = call.event, %error, "callback did not start"),
        }
    }
}

/// Waits for the running child; for ever when there is none.
async fn ended(running: &mut Option<(String, Child)>) {
    let Some((event, child)) = running else {
        return std::future::pending().await;
    };
    match child.wait().await {
        Ok(status) if status.success() => tracing::debug!(event, "callback done"),
        Ok(status) => tracing::warn!(event, %status, "callback failed"),
        Err(error) => tracing::warn!(event, %error, "callback lost"),
    }
    *running = None;
}

fn script(ctx: &PgContext, call: &Call) -> Option<Tool> {
    let config = ctx.config();
    let command = config.postgresql.callbacks.get(&call.event)?;
    let Some(mut words) = shell_words(command) else {
        tracing::error!(
            event = call.event,
            command,
            "a quotation of the callback does not end"
        );
        return None;
    };
    words.extend([call.event.clone(), call.role.clone(), config.scope.clone()]);
    Tool::from_words(&words)
}
