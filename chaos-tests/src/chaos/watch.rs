//! What is watched from outside while a fault lasts: the lease's record, and the end of a server.

use crate::exclusivity::boot_time;
use crate::http;
use crate::process;
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// The record is read this often: so much too long may a fencing delay be shown.
const READ_EVERY: Duration = Duration::from_millis(50);
/// An etcd that does not answer within this time is not asked again at once.
const READ_LIMIT: Duration = Duration::from_millis(400);
/// The processes of a server are looked at this often.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The last renewal of one tenure.
#[derive(Clone, Copy, Debug)]
pub struct Renewal {
    /// `CLOCK_BOOTTIME` before which it cannot have been committed.
    pub not_before: Duration,
    /// How long the lease lasts from there.
    pub length: Duration,
}

/// Reads the lease's record again and again.
#[derive(Debug)]
pub struct LeaseWatch {
    seen: Arc<Mutex<BTreeMap<u64, Renewal>>>,
    task: JoinHandle<()>,
}

impl LeaseWatch {
    /// Starts to read from the etcds on these ports.
    pub fn start(ports: Vec<u16>, key: String) -> Self {
        let seen = Arc::new(Mutex::new(BTreeMap::new()));
        let task = tokio::spawn(read(ports, key, seen.clone()));
        Self { seen, task }
    }

    /// The newest tenure that was seen.
    pub fn epoch(&self) -> Option<u64> {
        self.lock().keys().next_back().copied()
    }

    /// When the lease of a tenure runs out, unless it is renewed again.
    pub fn deadline(&self, epoch: u64) -> Option<Duration> {
        let renewal = self.lock().get(&epoch).copied()?;
        Some(renewal.not_before + renewal.length)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<u64, Renewal>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LeaseWatch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn read(ports: Vec<u16>, key: String, seen: Arc<Mutex<BTreeMap<u64, Renewal>>>) {
    let body = format!("{{\"key\":\"{}\"}}", BASE64.encode(key));
    let (mut revision, mut before) = (String::new(), boot_time());
    for port in ports.iter().cycle() {
        let asked = boot_time();
        let answer = http::request(*port, "POST", "/v3/kv/range", Some(&body), READ_LIMIT).await;
        if let Some((modified, epoch, length)) = answer.ok().and_then(|a| record(&a.body)) {
            if modified != revision {
                let renewal = Renewal {
                    not_before: before,
                    length,
                };
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.insert(epoch, renewal);
                revision = modified;
            }
            before = asked;
        }
        tokio::time::sleep(READ_EVERY).await;
    }
}

/// Revision, epoch and length of the record in an answer of etcd.
fn record(body: &str) -> Option<(String, u64, Duration)> {
    let answer: serde_json::Value = serde_json::from_str(body).ok()?;
    let entry = answer.pointer("/kvs/0")?;
    let value = BASE64.decode(entry.get("value")?.as_str()?).ok()?;
    let value: serde_json::Value = serde_json::from_slice(&value).ok()?;
    let number = |key: &str| value.get(key).and_then(serde_json::Value::as_u64);
    let length = Duration::from_millis(number("l_ms")?);
    Some((
        entry.get("mod_revision")?.as_str()?.to_owned(),
        number("epoch")?,
        length,
    ))
}

/// Sees the moment at which no process of a PostgreSQL is left.
#[derive(Debug)]
pub struct DeathWatch {
    died: Arc<Mutex<Option<Duration>>>,
    stop: Arc<AtomicBool>,
}

impl DeathWatch {
    /// Watches the server of this data directory, which runs.
    pub fn start(data_dir: PathBuf) -> Self {
        let died = Arc::new(Mutex::new(None));
        let stop = Arc::new(AtomicBool::new(false));
        let watch = Self {
            died: died.clone(),
            stop: stop.clone(),
        };
        std::thread::spawn(move || {
            let mut known = process::below(&data_dir);
            while !stop.load(Ordering::Relaxed) {
                known.retain(|pid| process::alive(*pid));
                if known.is_empty() {
                    let now = boot_time();
                    // Those that began since the last look; only now do they matter.
                    known = process::below(&data_dir);
                    if known.is_empty() {
                        *died.lock().unwrap_or_else(PoisonError::into_inner) = Some(now);
                        return;
                    }
                }
                std::thread::sleep(LOOK_EVERY);
            }
        });
        watch
    }

    /// When that was, once it was.
    pub fn died(&self) -> Option<Duration> {
        *self.died.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn record_is_found_in_an_answer_of_etcd() {
        let value = BASE64.encode(br#"{"epoch":7,"l_ms":8000,"owner":"a"}"#);
        let body = format!(r#"{{"kvs":[{{"mod_revision":"42","value":"{value}"}}]}}"#);
        let expected = ("42".to_owned(), 7, Duration::from_secs(8));
        assert_eq!(record(&body), Some(expected));
        assert_eq!(record("{}"), None);
    }
}
