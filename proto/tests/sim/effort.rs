//! How much is run: a little by default, all of it where a build is optimised and time was planned for it.

use std::num::NonZeroUsize;

/// How much is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// What an unoptimised build can do in seconds.
    Quick,
    /// `GARDEN_FULL`: what every change must pass.
    Full,
    /// `GARDEN_LONG`: hours.
    Long,
}

impl Effort {
    pub fn asked() -> Self {
        let set = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        match (set("GARDEN_LONG"), set("GARDEN_FULL")) {
            (true, _) => Self::Long,
            (false, true) => Self::Full,
            (false, false) => Self::Quick,
        }
    }
}

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Threads to run schedules on.
pub fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, NonZeroUsize::get)
}
