//! A line on a terminal's standard error that shows that something long is still going on. Nothing is
//! written where standard error is no terminal.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// How often the line changes.
const STEP: Duration = Duration::from_secs(1);

/// The line; dropping it removes it.
pub struct Progress(Option<JoinHandle<()>>);

impl Progress {
    /// Shows `what` and for how long it has been going on, from its second second on.
    pub fn start(what: String) -> Self {
        if !io::stderr().is_terminal() {
            return Self(None);
        }
        let since = Instant::now();
        Self(Some(tokio::spawn(async move {
            loop {
                tokio::time::sleep(STEP).await;
                write_line(&format!("\r\x1b[K{what} … {} s", since.elapsed().as_secs()));
            }
        })))
    }

    /// Removes the line.
    pub fn end(self) {
        drop(self);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(task) = self.0.take() {
            task.abort();
            write_line("\r\x1b[K");
        }
    }
}

fn write_line(text: &str) {
    let mut err = io::stderr();
    // A terminal that is gone needs no progress.
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}
