//! Waiting for a condition, with a limit and with the last thing seen in the error.

use anyhow::{Result, bail};
use std::future::Future;
use std::time::{Duration, Instant};

/// How often a condition is looked at.
pub const POLL: Duration = Duration::from_millis(50);

/// Looks until the condition holds.
///
/// # Errors
/// When it did not within `limit`: what was waited for, and what the last look said was missing.
pub async fn until<T, F, R>(what: &str, limit: Duration, mut look: F) -> Result<T>
where
    F: FnMut() -> R,
    R: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + limit;
    loop {
        let missing = match look().await {
            Ok(value) => return Ok(value),
            Err(missing) => missing,
        };
        if Instant::now() > end {
            bail!("waited {limit:?} for {what}: {missing}");
        }
        tokio::time::sleep(POLL).await;
    }
}
