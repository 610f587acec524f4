//! Which events are logged: a level for all, and one per module (`log.level`, `log.loggers`).

use crate::config::LogConfig;
use tracing::level_filters::LevelFilter;
use tracing::subscriber::Interest;
use tracing::{Level, Metadata};
use tracing_subscriber::layer::{Context, Filter};

/// Python's numbers of the levels, in which people may write them too.
pub(super) const DEBUG: u32 = 10;
pub(super) const INFO: u32 = 20;
pub(super) const WARNING: u32 = 30;
pub(super) const ERROR: u32 = 40;
pub(super) const CRITICAL: u32 = 50;

/// Our crates; the logger `patroni` in a file means them.
const OWN: [&str; 3] = ["garden_agent", "garden_proto", "gardenctl"];

/// The number of a level's name, or the number itself.
pub(super) fn number(level: &str) -> u32 {
    match level {
        "NOTSET" => 0,
        "DEBUG" => DEBUG,
        "INFO" => INFO,
        "WARN" | "WARNING" => WARNING,
        "ERROR" => ERROR,
        "FATAL" | "CRITICAL" => CRITICAL,
        number => number.parse().unwrap_or(INFO),
    }
}

/// The number of an event's level.
pub(super) fn of(level: Level) -> u32 {
    match level {
        Level::ERROR => ERROR,
        Level::WARN => WARNING,
        Level::INFO => INFO,
        Level::DEBUG => DEBUG,
        Level::TRACE => 5,
    }
}

/// The thresholds in force.
#[derive(Clone, Debug)]
pub(super) struct Levels {
    root: u32,
    /// Dotted module names, longest first.
    modules: Vec<(String, u32)>,
}

impl Levels {
    pub(super) fn new(config: &LogConfig) -> Self {
        let mut modules: Vec<(String, u32)> = config
            .loggers
            .iter()
            .map(|(name, level)| {
                let own = name
                    .strip_prefix("patroni")
                    .filter(|r| r.is_empty() || r.starts_with('.'));
                let name = own.map_or_else(|| name.clone(), |rest| format!("garden_agent{rest}"));
                (name, number(level))
            })
            .collect();
        modules.sort_by_key(|(name, _)| std::cmp::Reverse(name.len()));
        Self {
            root: number(&config.level),
            modules,
        }
    }

    pub(super) fn threshold(&self, target: &str) -> u32 {
        let name = target.replace("::", ".");
        let within = |prefix: &str| {
            name.strip_prefix(prefix)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        if let Some((_, level)) = self.modules.iter().find(|(prefix, _)| within(prefix)) {
            return *level;
        }
        // Libraries tell every frame at DEBUG, which would bury our own lines.
        if OWN.iter().any(|own| within(own)) {
            self.root
        } else {
            self.root.max(INFO)
        }
    }

    fn is_enabled(&self, metadata: &Metadata<'_>) -> bool {
        // An error may turn out to be critical; the writer, which knows, looks again.
        let most = match *metadata.level() {
            Level::ERROR => CRITICAL,
            level => of(level),
        };
        metadata.is_event() && most >= self.threshold(metadata.target())
    }
}

impl<S> Filter<S> for Levels {
    fn enabled(&self, metadata: &Metadata<'_>, _context: &Context<'_, S>) -> bool {
        self.is_enabled(metadata)
    }

    fn callsite_enabled(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.is_enabled(metadata) {
            Interest::always()
        } else {
            Interest::never()
        }
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        let lowest = self
            .modules
            .iter()
            .map(|(_, level)| *level)
            .chain([self.root])
            .min();
        Some(match lowest.unwrap_or(INFO) {
            0..DEBUG => LevelFilter::TRACE,
            DEBUG..INFO => LevelFilter::DEBUG,
            INFO..WARNING => LevelFilter::INFO,
            WARNING..ERROR => LevelFilter::WARN,
            _ => LevelFilter::ERROR,
        })
    }
}
