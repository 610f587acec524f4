//! What every part of the driver needs: the configuration in force, and where the programs are.

use crate::config::AgentConfig;
use proto::config::ClusterConfig;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::process::Command;
use tokio::sync::watch;

/// Limit of a program that only prints something (`--version`, `pg_controldata`, …).
pub const SHORT_PROGRAM_LIMIT: Duration = Duration::from_secs(5);

/// Why a short program gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// It could not be run.
    #[error("run {program}")]
    Spawn {
        /// Which.
        program: String,
        /// Why.
        source: std::io::Error,
    },
    /// It did not end in time and was killed.
    #[error("{program} did not end within {limit:?}")]
    Timeout {
        /// Which.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// It ended with another status than zero.
    #[error("{program} failed ({status}): {stderr}")]
    Status {
        /// Which.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// The beginning of what it said.
        stderr: String,
    },
    /// Its answer was not understood.
    #[error("{program} gave an answer that was not understood: {text}")]
    Answer {
        /// Which.
        program: String,
        /// The beginning of the answer.
        text: String,
    },
}

/// What a short program printed.
#[derive(Clone, Debug)]
pub struct Printed {
    /// How it ended.
    pub status: std::process::ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// Shared by all parts of the PostgreSQL driver; a clone is cheap.
#[derive(Clone, Debug)]
pub struct PgContext {
    /// The local configuration over the dynamic one.
    pub config: watch::Receiver<Arc<AgentConfig>>,
    /// The dynamic configuration as the rules read it: slots, standby cluster, synchronous mode.
    pub cluster: watch::Receiver<Arc<ClusterConfig>>,
    /// How far a copy is.
    pub copied: Copied,
    cache: Arc<Mutex<Cache>>,
}

/// Bytes in the data directory while it is being filled; zero at other times. Written by the job, read
/// by REST, so that nobody waits for a disk who asks.
#[derive(Clone, Debug, Default)]
pub struct Copied(Arc<AtomicU64>);

impl Copied {
    /// The last count, while something is being copied.
    pub fn bytes(&self) -> Option<u64> {
        Some(self.0.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    /// Notes a count.
    pub fn note(&self, bytes: u64) {
        self.0.store(bytes, Ordering::Relaxed);
    }
}

/// Answers of programs that would be the same again. The lock is held for a copy only.
#[derive(Debug, Default)]
struct Cache {
    /// Program and its major version.
    version: Option<(PathBuf, u32)>,
    /// Settings as given to [`super::guc::check`], and as they came back.
    judged: Option<(BTreeMap<String, String>, BTreeMap<String, String>)>,
}

impl PgContext {
    /// A context over the two layers of configuration.
    pub fn new(
        config: watch::Receiver<Arc<AgentConfig>>,
        cluster: watch::Receiver<Arc<ClusterConfig>>,
    ) -> Self {
        Self {
            config,
            cluster,
            copied: Copied::default(),
            cache: Arc::default(),
        }
    }

    /// The configuration in force at this moment.
    pub fn config(&self) -> Arc<AgentConfig> {
        self.config.borrow().clone()
    }

    /// The dynamic configuration in force at this moment.
    pub fn cluster(&self) -> Arc<ClusterConfig> {
        self.cluster.borrow().clone()
    }

    /// PGDATA.
    pub fn data_dir(&self) -> PathBuf {
        self.config.borrow().postgresql.data_dir.clone()
    }

    /// A PostgreSQL program, by `bin_name` and `bin_dir`; without `bin_dir` the first one in `PATH`, or its
    /// bare name when there is none. A path, since the guardian executes what it is told and searches nothing.
    pub fn bin(&self, name: &str) -> PathBuf {
        let config = self.config.borrow();
        let program = config
            .postgresql
            .bin_name
            .get(name)
            .map_or(name, String::as_str);
        match &config.postgresql.bin_dir {
            Some(dir) if !dir.as_os_str().is_empty() => dir.join(program),
            Some(_) | None => in_path(program, std::env::var_os("PATH")),
        }
    }

    /// Major version of the binaries, for example 15; asked once of `postgres --version`.
    pub async fn major_version(&self) -> Result<u32, ProgramError> {
        let program = self.bin("postgres");
        let known = self
            .cache
            .lock()
            .ok()
            .and_then(|cache| cache.version.clone());
        if let Some((_, version)) = known.filter(|(asked, _)| *asked == program) {
            return Ok(version);
        }
        let printed = self
            .run("postgres", &["--version"], SHORT_PROGRAM_LIMIT)
            .await?;
        let version = parse_version(&printed.stdout).ok_or_else(|| ProgramError::Answer {
            program: program.display().to_string(),
            text: printed.stdout.chars().take(80).collect(),
        })?;
        if let Ok(mut cache) = self.cache.lock() {
            cache.version = Some((program, version));
        }
        Ok(version)
    }

    /// The remembered verdict on these settings.
    pub(super) fn judged(
        &self,
        given: &BTreeMap<String, String>,
    ) -> Option<BTreeMap<String, String>> {
        let cache = self.cache.lock().ok()?;
        cache
            .judged
            .as_ref()
            .filter(|(known, _)| known == given)
            .map(|(_, good)| good.clone())
    }

    /// Remembers a verdict.
    pub(super) fn remember_judged(
        &self,
        given: BTreeMap<String, String>,
        good: BTreeMap<String, String>,
    ) {
        if let Ok(mut cache) = self.cache.lock() {
            cache.judged = Some((given, good));
        }
    }

    /// Runs a PostgreSQL program that only prints something; a status other than zero is an error.
    pub async fn run(
        &self,
        name: &str,
        args: &[&str],
        limit: Duration,
    ) -> Result<Printed, ProgramError> {
        let printed = self.run_any_status(name, args, limit).await?;
        if printed.status.success() {
            return Ok(printed);
        }
        Err(ProgramError::Status {
            program: self.bin(name).display().to_string(),
            status: printed.status,
            stderr: printed.stderr.trim().chars().take(500).collect(),
        })
    }

    /// The same when the status says little: `pg_waldump` fails at the end of WAL by design.
    pub async fn run_any_status(
        &self,
        name: &str,
        args: &[&str],
        limit: Duration,
    ) -> Result<Printed, ProgramError> {
        let path = self.bin(name);
        let program = path.display().to_string();
        let mut command = Command::new(&path);
        command
            .args(args)
            .env("LC_ALL", "C")
            .env("LANG", "C")
            .env_remove("NOTIFY_SOCKET")
            .stdin(Stdio::null())
            .kill_on_drop(true);
        let output = tokio::time::timeout(limit, command.output())
            .await
            .map_err(|_| ProgramError::Timeout {
                program: program.clone(),
                limit,
            })?
            .map_err(|source| ProgramError::Spawn { program, source })?;
        Ok(Printed {
            status: output.status,
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }
}

/// The major version in `postgres (PostgreSQL) 15.18 (Debian …)`, also of `17beta1` and `18devel`.
pub(crate) fn parse_version(text: &str) -> Option<u32> {
    let after = text.split_once(')')?.1.trim_start();
    let digits = after
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(after.len());
    after.get(..digits)?.parse().ok()
}

/// The first file of this name in the directories of `path`.
fn in_path(program: &str, path: Option<OsString>) -> PathBuf {
    let path = path.unwrap_or_default();
    let mut candidates = std::env::split_paths(&path).map(|dir| dir.join(program));
    candidates
        .find(|candidate| candidate.is_absolute() && candidate.is_file())
        .unwrap_or_else(|| PathBuf::from(program))
}

#[cfg(test)]
mod tests {
    use super::{in_path, parse_version};
    use std::path::PathBuf;

    /// The guardian executes paths: a bare name is not found, and a container without `bin_dir` never
    /// started its PostgreSQL.
    #[test]
    fn a_program_without_bin_dir_is_a_path() {
        let path = Some("/nonexistent:relative:/usr/bin:/bin".into());
        let found = in_path("sh", path.clone());
        assert!(found.is_absolute() && found.is_file(), "{found:?}");
        assert_eq!(
            in_path("no-such-program", path),
            PathBuf::from("no-such-program")
        );
        assert_eq!(in_path("sh", None), PathBuf::from("sh"));
    }

    #[test]
    fn versions_are_read_from_releases_betas_and_packages() {
        for (text, version) in [
            (
                "postgres (PostgreSQL) 15.18 (Debian 15.18-1.pgdg12+1)\n",
                Some(15),
            ),
            ("postgres (PostgreSQL) 17beta1", Some(17)),
            ("postgres (PostgreSQL) 18devel", Some(18)),
            ("postgres", None),
            ("postgres (PostgreSQL) x", None),
        ] {
            assert_eq!(parse_version(text), version, "{text}");
        }
    }
}
