//! One way to run an external program: `initdb`, `pg_basebackup`, `pg_rewind`, scripts of the operator.
//!
//! Each child leads a process group of its own, so that it can be ended with everything that it
//! started; its output is captured up to a limit; and its environment holds nothing that was meant for
//! the agent alone ([`env::child_env`]).

use crate::config::env;
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Bytes of each output stream that are kept. The end is kept, since that is where a program says why
/// it failed; `pg_controldata` and `postgres --describe-config` fit whole.
pub const OUTPUT_LIMIT: usize = 1 << 20;

/// How long the pipes may stay open after the child has ended: a script may leave a background process
/// behind that still holds them, and that is not ours to wait for.
const DRAIN: Duration = Duration::from_millis(200);

/// Characters of a program's last words that go into an error.
const LAST_WORDS: usize = 1000;

/// A program to run.
#[derive(Clone, Debug, Default)]
pub struct Tool {
    /// Path, or a name to be looked up in `PATH`.
    pub program: OsString,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Added to [`env::child_env`].
    pub env: Vec<(OsString, OsString)>,
    /// Killed after it. `None` for work whose length depends on the amount of data; that is bounded by
    /// cancelling it.
    pub limit: Option<Duration>,
    /// Where it runs; the agent's own directory if not given.
    pub cwd: Option<PathBuf>,
    /// See [`Tool::dies_with_us`].
    pub dies_with_us: bool,
}

impl Tool {
    /// A program with its arguments and nothing else.
    pub fn new<A: Into<OsString>>(
        program: impl Into<OsString>,
        args: impl IntoIterator<Item = A>,
    ) -> Self {
        Self {
            program: program.into(),
            args: args.into_iter().map(Into::into).collect(),
            ..Self::default()
        }
    }

    /// From a split command; `None` without any word.
    pub fn from_words(words: &[String]) -> Option<Self> {
        let (program, args) = words.split_first()?;
        Some(Self::new(program, args))
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// Adds an environment variable.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Sets the limit.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = Some(limit);
        self
    }

    /// Has the kernel kill it when the agent dies, for programs that change the data directory: a new
    /// agent must not find one of them still at work.
    #[must_use]
    pub fn dies_with_us(mut self) -> Self {
        self.dies_with_us = true;
        self
    }

    /// Its name for people: the last part of the path.
    pub fn name(&self) -> String {
        let path = std::path::Path::new(&self.program);
        path.file_name()
            .unwrap_or(&self.program)
            .to_string_lossy()
            .into_owned()
    }

    /// The command: own process group, empty input, clean environment.
    pub(super) fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).env_clear().envs(env::child_env());
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).process_group(0);
        if let Some(cwd) = &self.cwd {
            command.current_dir(cwd);
        }
        if self.dies_with_us {
            // The signal comes when the *thread* that started the child ends; the workers of the
            // runtime live as long as the agent.
            // SAFETY: prctl(2) is async-signal-safe, and nothing else is done between fork and exec.
            unsafe {
                command.pre_exec(|| {
                    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)
                        .map_err(io::Error::from)
                });
            }
        }
        command
    }
}

/// What a program left behind.
#[derive(Clone, Debug)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// The end of its standard output, at most [`OUTPUT_LIMIT`] bytes.
    pub stdout: Vec<u8>,
    /// The end of its standard error, at most [`OUTPUT_LIMIT`] bytes.
    pub stderr: Vec<u8>,
    /// How long it ran.
    pub took: Duration,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// The last words on standard error, or on standard output if there were none; one line.
    pub fn last_words(&self) -> String {
        let said = if self.stderr.trim_ascii().is_empty() {
            &self.stdout
        } else {
            &self.stderr
        };
        let text = String::from_utf8_lossy(said);
        let text = text.trim();
        let skip = text.chars().count().saturating_sub(LAST_WORDS);
        let tail: String = text.chars().skip(skip).collect();
        tail.lines()
            .map(str::trim)
            .filter(|l| !l.is_empty())
            .collect::<Vec<_>>()
            .join(" | ")
    }
}

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    /// It could not be started.
    #[error("start {program}")]
    Start {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// Waiting for it failed.
    #[error("wait for {program}")]
    Wait {
        /// Its name.
        program: String,
        /// Why.
        source: io::Error,
    },
    /// It took too long, and was killed with its group.
    #[error("{program} did not end within {limit:?} and was killed")]
    TimedOut {
        /// Its name.
        program: String,
        /// The limit.
        limit: Duration,
    },
    /// The work that it was part of was cancelled; it was killed with its group.
    #[error("{program} was cancelled")]
    Cancelled {
        /// Its name.
        program: String,
    },
    /// It ended with a failure.
    #[error("{program} failed ({status}): {said}")]
    Failed {
        /// Its name.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// Its last words.
        said: String,
    },
}

/// Runs a program to its end. Its exit status is for the caller to judge. Dropping the future kills
/// the whole process group.
pub async fn run(tool: Tool) -> Result<Output, ToolError> {
    let program = tool.name();
    let started = Instant::now();
    let mut command = tool.command();
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|source| ToolError::Start {
        program: program.clone(),
        source,
    })?;
    let mut group = Group(Some(child));
    let work = group.capture();
    let ended = match tool.limit {
        None => Ok(work.await),
        Some(limit) => tokio::time::timeout(limit, work).await.map_err(|_| limit),
    };
    match ended {
        Ok(Ok((status, stdout, stderr))) => {
            group.0 = None;
            Ok(Output {
                status,
                stdout,
                stderr,
                took: started.elapsed(),
            })
        }
        Ok(Err(source)) => Err(ToolError::Wait { program, source }),
        Err(limit) => Err(ToolError::TimedOut { program, limit }),
    }
}

/// [`run`], ended early when `cancel` fires.
pub async fn run_until(tool: Tool, cancel: &CancellationToken) -> Result<Output, ToolError> {
    let program = tool.name();
    cancel
        .run_until_cancelled(run(tool))
        .await
        .unwrap_or(Err(ToolError::Cancelled { program }))
}

/// [`run_until`], with a failing exit status as an error.
pub async fn succeed(tool: Tool, cancel: &CancellationToken) -> Result<Output, ToolError> {
    let program = tool.name();
    let output = run_until(tool, cancel).await?;
    if output.status.success() {
        return Ok(output);
    }
    Err(ToolError::Failed {
        program,
        status: output.status,
        said: output.last_words(),
    })
}

/// A child and its process group, killed together unless the child was awaited.
struct Group(Option<Child>);

impl Group {
    /// Reads both streams and waits for the end.
    async fn capture(&mut self) -> io::Result<(ExitStatus, Vec<u8>, Vec<u8>)> {
        let Some(child) = self.0.as_mut() else {
            return Err(io::Error::other("the child is gone"));
        };
        let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let status = {
            let reading =
                async { tokio::join!(tail(&mut stdout, &mut out), tail(&mut stderr, &mut err)) };
            tokio::pin!(reading);
            // Both branches are cancel safe: what was read is in `out` and `err` already.
            let early = tokio::select! {
                status = child.wait() => Some(status?),
                _ = &mut reading => None,
            };
            match early {
                Some(status) => {
                    let _ = tokio::time::timeout(DRAIN, &mut reading).await;
                    status
                }
                None => child.wait().await?,
            }
        };
        Ok((status, out, err))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            kill_group(&child);
            // The group is dead; tokio reaps the leader in the background.
            let _ = child.start_kill();
        }
    }
}

/// Kills the process group that `child` leads. The leader has not been awaited yet, so its id cannot
/// have been given to anybody else.
pub(super) fn kill_group(child: &Child) {
    let Some(pid) = child.id().and_then(|id| i32::try_from(id).ok()) else {
        return;
    };
    let _ = nix::sys::signal::killpg(nix::unistd::Pid::from_raw(pid), nix::sys::signal::SIGKILL);
}

/// Reads a stream to its end and keeps the last [`OUTPUT_LIMIT`] bytes.
async fn tail<R: AsyncRead + Unpin>(stream: &mut Option<R>, kept: &mut Vec<u8>) {
    let Some(stream) = stream else { return };
    let mut chunk = vec![0_u8; 8192];
    while let Ok(n) = stream.read(&mut chunk).await {
        if n == 0 {
            return;
        }
        kept.extend_from_slice(chunk.get(..n).unwrap_or_default());
        if kept.len() > 2 * OUTPUT_LIMIT {
            kept.drain(..kept.len() - OUTPUT_LIMIT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str) -> Tool {
        Tool::new("/bin/sh", ["-c", script])
    }

    #[tokio::test]
    async fn output_and_status_are_reported() {
        let output = run(sh("echo out; echo bad >&2; exit 3"))
            .await
            .expect("runs");
        assert_eq!(output.status.code(), Some(3));
        assert_eq!(output.text(), "out\n");
        assert_eq!(output.last_words(), "bad");
    }

    #[tokio::test]
    async fn at_the_limit_the_whole_group_is_killed() {
        let dir = std::env::temp_dir().join(format!("tool-group-{}", std::process::id()));
        let script = format!("sleep 60 & echo $! > {}; wait", dir.display());
        let err = run(sh(&script).limit(Duration::from_millis(300)))
            .await
            .expect_err("too slow");
        assert!(matches!(err, ToolError::TimedOut { .. }), "{err}");
        let pid: i32 = std::fs::read_to_string(&dir)
            .expect("pid file")
            .trim()
            .parse()
            .expect("a pid");
        std::fs::remove_file(&dir).expect("removable");
        for _ in 0..100 {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            if stat.is_empty() || stat.contains(") Z ") {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the grandchild survived");
    }

    #[tokio::test]
    async fn a_background_process_that_keeps_the_pipe_is_not_waited_for() {
        let output = run(sh("sleep 3 & echo done")).await.expect("runs");
        assert_eq!(output.text(), "done\n");
        assert!(output.took < Duration::from_secs(2), "{:?}", output.took);
    }

    #[tokio::test]
    async fn cancelling_ends_the_program() {
        let cancel = CancellationToken::new();
        let ended = tokio::join!(run_until(sh("sleep 60"), &cancel), async {
            tokio::time::sleep(Duration::from_millis(50)).await;
            cancel.cancel();
        });
        assert!(matches!(ended.0, Err(ToolError::Cancelled { .. })));
    }

    #[tokio::test]
    async fn only_the_end_of_long_output_is_kept() {
        let output = run(sh("head -c 5000000 /dev/zero | tr '\\0' x; echo end"))
            .await
            .expect("runs");
        assert!(output.stdout.len() <= 2 * OUTPUT_LIMIT + 8192);
        assert!(output.text().ends_with("end\n"));
    }
}
