//! Logging as Patroni's operators know it (`configuration.md` 5): the same line layout, levels, files
//! and options, from `tracing` events.
//!
//! ```text
//! tracing event ─▶ Levels (filter) ─▶ Record ─▶ Queue (bounded) ─▶ writer thread ─▶ stderr or file
//!                                                 │ full: counted, dropped
//! ```
//!
//! Who logs never waits: not for a disk, not for a pipe that nobody reads. An event's message is the
//! sentence; its fields follow as `key=value`. The field `critical = true` on an error prints as
//! `CRITICAL`.

mod format;
mod levels;
mod queue;
mod record;
mod writer;

use crate::config::LogConfig;
use format::Formatter;
use levels::Levels;
use queue::Queue;
use record::Record;
use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, SubscriberExt as _};
use tracing_subscriber::{Layer, Registry, reload};
use writer::{Heartbeat, Output, RotatingFile, Settings};

/// How long the end of the process may wait for the last records to be written.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(3);

/// How often that wait looks.
const SHUTDOWN_STEP: Duration = Duration::from_millis(5);

/// Why logging cannot be set up, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The log file cannot be opened.
    #[error("log.dir: open {path}")]
    Open {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The writer thread cannot be started.
    #[error("start the log writer")]
    Thread(#[source] io::Error),
    /// Another subscriber is set for this process.
    #[error("logging is set up twice")]
    Twice,
    /// The level cannot be changed, since the subscriber is gone.
    #[error("logging has ended")]
    Ended,
    /// The end of the process came before the last records were written.
    #[error("log records were lost at the end")]
    Lost,
}

/// Keeps the writer alive. Ending it writes what is queued, within a limit.
pub struct TelemetryGuard {
    queue: Arc<Queue>,
    writer: Option<JoinHandle<()>>,
    levels: reload::Handle<Levels, Registry>,
}

/// Sets up logging for this process.
pub fn init(config: &LogConfig) -> Result<TelemetryGuard, TelemetryError> {
    let (subscriber, guard, notes) = build(config)?;
    tracing::subscriber::set_global_default(subscriber).map_err(|_| TelemetryError::Twice)?;
    for note in notes {
        tracing::warn!("{note}");
    }
    Ok(guard)
}

/// The subscriber, its guard, and sentences about values that were not used.
fn build(
    config: &LogConfig,
) -> Result<(impl Subscriber + Send + Sync, TelemetryGuard, Vec<String>), TelemetryError> {
    let (settings, notes) = settings(config)?;
    let queue = Arc::new(Queue::new(config.max_queue_size));
    let thread_queue = Arc::clone(&queue);
    let writer = thread::Builder::new()
        .name(String::from("log-writer"))
        .spawn(move || writer::run(&thread_queue, settings))
        .map_err(TelemetryError::Thread)?;
    let (filter, levels) = reload::Layer::new(Levels::new(config));
    let layer = EventLayer {
        queue: Arc::clone(&queue),
    }
    .with_filter(filter);
    let subscriber = Registry::default().with(layer);
    Ok((
        subscriber,
        TelemetryGuard {
            queue,
            writer: Some(writer),
            levels,
        },
        notes,
    ))
}

/// One line as configured, and what could not be used of the configuration.
pub(crate) fn line(config: &LogConfig, message: &str) -> (String, Vec<String>) {
    let (formatter, notes) = format::Formatter::new(config);
    let record = record::Record::new(levels::CRITICAL, message.to_owned());
    (formatter.format(&record), notes)
}

/// Everything that the writer needs; opens the file, so that a wrong directory is an error here.
fn settings(config: &LogConfig) -> Result<(Settings, Vec<String>), TelemetryError> {
    let output = match &config.dir {
        None => Output::Stderr,
        Some(dir) => {
            let path = dir.join("patroni.log");
            let file = RotatingFile::open(path.clone(), config)
                .map_err(|source| TelemetryError::Open { path, source })?;
            Output::File(file)
        }
    };
    let (formatter, notes) = Formatter::new(config);
    let (heartbeat, levels) = (Heartbeat::new(config), Levels::new(config));
    Ok((
        Settings {
            output,
            formatter,
            heartbeat,
            levels,
        },
        notes,
    ))
}

impl TelemetryGuard {
    /// Applies a changed section. On an error everything stays as it was.
    pub fn reload(&self, config: &LogConfig) -> Result<(), TelemetryError> {
        let (settings, notes) = settings(config)?;
        self.levels
            .reload(Levels::new(config))
            .map_err(|_| TelemetryError::Ended)?;
        self.queue.set_capacity(config.max_queue_size);
        self.queue.reconfigure(settings);
        for note in notes {
            tracing::warn!("{note}");
        }
        Ok(())
    }

    /// Writes what is queued and ends logging. An error when records were lost on the way: the process
    /// should then exit with [`crate::exit::Exit::LogLost`].
    pub fn shutdown(mut self) -> Result<(), TelemetryError> {
        self.stop()
    }

    fn stop(&mut self) -> Result<(), TelemetryError> {
        let Some(writer) = self.writer.take() else {
            return Ok(());
        };
        let was_full = self.queue.stop();
        let started = Instant::now();
        while !writer.is_finished() {
            if started.elapsed() > SHUTDOWN_LIMIT {
                return Err(TelemetryError::Lost);
            }
            thread::sleep(SHUTDOWN_STEP);
        }
        if was_full || writer.join().is_err() {
            Err(TelemetryError::Lost)
        } else {
            Ok(())
        }
    }
}

impl Drop for TelemetryGuard {
    fn drop(&mut self) {
        // Nobody is left to tell.
        let _ = self.stop();
    }
}

/// Turns events into records.
struct EventLayer {
    queue: Arc<Queue>,
}

impl<S: Subscriber> Layer<S> for EventLayer {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        self.queue.push(Record::of(event));
    }
}

#[cfg(test)]
mod tests;
