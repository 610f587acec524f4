//! Children of the harness, and the processes of a cluster that are nobody's children.
//!
//! PostgreSQL and the guardian outlive the agent on purpose, so a cluster is not ended by ending what
//! the harness started. A process belongs to a cluster when its working directory or one of its
//! arguments lies below the cluster's directory, whose name is random; only such processes are
//! signalled, and only by pid.

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, User, setgid, setgroups, setsid, setuid};
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::{BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::{Duration, Instant};

/// How often a wait looks again.
const POLL: Duration = Duration::from_millis(10);
/// How often orphans that were handed to the harness are collected.
const REAP: Duration = Duration::from_millis(50);
/// A sweep gives up after this time; a process in uninterruptible sleep is the only reason.
const SWEEP_LIMIT: Duration = Duration::from_secs(15);

/// Length of the ticks in `/proc/PID/stat`; Linux has had 100 per second everywhere for decades.
const TICK_MS: u64 = 10;

/// Direct children, which [`Process`] waits for itself.
static OWN: Mutex<BTreeSet<i32>> = Mutex::new(BTreeSet::new());

fn own() -> MutexGuard<'static, BTreeSet<i32>> {
    OWN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What to start.
#[derive(Debug)]
pub struct Launch<'a> {
    /// Program.
    pub program: &'a Path,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// Added to a nearly empty environment.
    pub env: BTreeMap<String, String>,
    /// Working directory.
    pub cwd: &'a Path,
    /// Standard output and error are appended here.
    pub log: &'a Path,
    /// Account to run under; none: the harness's own.
    pub user: Option<&'a User>,
    /// Network namespace to run in; none: the harness's own. The descriptor stays open as long as
    /// processes may be started.
    pub network: Option<RawFd>,
}

/// A running child: a session of its own, so that a Ctrl-C at the terminal does not reach it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    status: Option<ExitStatus>,
}

impl Process {
    /// Starts it.
    ///
    /// # Errors
    /// When the log cannot be opened or the program not be executed.
    pub fn spawn(launch: &Launch) -> Result<Self> {
        adopt_orphans();
        let log = append(launch.log)?;
        let mut command = Command::new(launch.program);
        command
            .args(&launch.args)
            .current_dir(launch.cwd)
            .env_clear();
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command
            .env("LANG", "C.UTF-8")
            .env("LC_ALL", "C.UTF-8")
            .envs(&launch.env);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share the log")?)
            .stderr(log);
        let account = launch.user.map(|user| (user.uid, user.gid));
        let network = launch.network;
        // SAFETY: between fork and exec only system calls that are async-signal-safe are made, and
        // nothing is allocated.
        unsafe {
            command.pre_exec(move || {
                setsid()?;
                if let Some(fd) = network {
                    // SAFETY: the harness keeps the descriptor open.
                    setns(BorrowedFd::borrow_raw(fd), CloneFlags::CLONE_NEWNET)?;
                }
                if let Some((uid, gid)) = account {
                    setgroups(&[gid])?;
                    setgid(gid)?;
                    setuid(uid)?;
                }
                Ok(())
            });
        }
        // The lock is held across the spawn, so that the reaper cannot take a child that died at once.
        let mut own = own();
        let child = command.spawn();
        let child = child.with_context(|| format!("start {}", launch.program.display()))?;
        own.insert(child.id().cast_signed());
        drop(own);
        Ok(Self {
            child,
            status: None,
        })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// The status, once it has ended.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
            if self.status.is_some() {
                own().remove(&self.pid());
            }
        }
        self.status
    }

    /// Sends a signal, unless it has ended.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.ended().is_some() {
            return Ok(());
        }
        kill(Pid::from_raw(self.pid()), signal)
            .with_context(|| format!("send {signal} to {}", self.pid()))
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Option<ExitStatus> {
        let until = Instant::now() + limit;
        while self.ended().is_none() && Instant::now() < until {
            std::thread::sleep(POLL);
        }
        self.status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // What runs on is collected by the reaper when it ends.
        own().remove(&self.pid());
    }
}

fn append(path: &Path) -> Result<File> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.with_context(|| format!("open {}", path.display()))
}

/// Runs a command with this input to its end. Unlike [`Command::output`], it tells the reaper whose child
/// this is, so that the status is not taken away.
///
/// # Errors
/// When it cannot be started, or ends with a status other than zero: what it said.
pub fn tool(mut command: Command, input: &str) -> Result<Vec<u8>> {
    let what = format!("{command:?}");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut held = own();
    let mut child = command.spawn().with_context(|| format!("start {what}"))?;
    let pid = child.id().cast_signed();
    held.insert(pid);
    drop(held);
    let written = match child.stdin.take() {
        Some(mut stdin) => stdin.write_all(input.as_bytes()),
        None => Ok(()),
    };
    let output = child.wait_with_output();
    own().remove(&pid);
    let output = output.with_context(|| format!("wait for {what}"))?;
    if !output.status.success() {
        bail!("{what}: {}", String::from_utf8_lossy(&output.stderr));
    }
    written.with_context(|| format!("write to {what}"))?;
    Ok(output.stdout)
}

/// Makes the harness the parent of orphans below it, and collects them. Without it a zombie
/// postmaster would look alive to an agent that was started again, in containers whose first process
/// collects nobody.
fn adopt_orphans() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Without the right to adopt, orphans go to the first process as usual.
        let _ = nix::sys::prctl::set_child_subreaper(true);
        std::thread::spawn(|| {
            loop {
                std::thread::sleep(REAP);
                let own = own();
                for (pid, _) in zombies_of(std::process::id().cast_signed()) {
                    if !own.contains(&pid) {
                        // Somebody else's `Command` may have been quicker; then there is nothing left.
                        let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG));
                    }
                }
            }
        });
    });
}

/// Runs a short-lived tool of the harness (`gardenctl`, `patronictl`) to its end.
///
/// # Errors
/// When it cannot be started or does not end within `limit`.
pub fn run(launch: &Launch, limit: Duration) -> Result<(ExitStatus, String)> {
    let mut process = Process::spawn(launch)?;
    let status = process.wait(limit);
    if status.is_none() {
        process.signal(Signal::SIGKILL)?;
        process.wait(limit);
    }
    let text = std::fs::read(launch.log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).into_owned();
    let status = status.with_context(|| {
        format!(
            "{} did not end within {limit:?}: {text}",
            launch.program.display()
        )
    })?;
    Ok((status, text))
}

/// `(pid, state)` of zombies whose parent is `parent`.
fn zombies_of(parent: i32) -> Vec<(i32, char)> {
    let all = all_pids()
        .into_iter()
        .filter_map(|pid| Some((pid, stat(pid)?)));
    let zombies = all.filter(|(_, (state, ppid))| *state == 'Z' && *ppid == parent);
    zombies.map(|(pid, (state, _))| (pid, state)).collect()
}

fn all_pids() -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// State letter and parent of a process, from `/proc/PID/stat`; the name in it may hold anything,
/// so reading starts after its closing bracket.
pub fn stat(pid: i32) -> Option<(char, i32)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether the process exists and is not a zombie.
pub fn alive(pid: i32) -> bool {
    stat(pid).is_some_and(|(state, _)| state != 'Z')
}

/// CPU time that a process and its threads have used, user and system.
pub fn cpu_time(pid: i32) -> Option<Duration> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // utime and stime are fields 14 and 15; the first after the name is the third.
    let mut fields = text
        .get(text.rfind(')')? + 1..)?
        .split_whitespace()
        .skip(11);
    let ticks: u64 = fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?;
    Some(Duration::from_millis(ticks * TICK_MS))
}

/// Resident memory of a process in MiB.
pub fn resident_mib(pid: i32) -> Option<f64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u32 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(f64::from(kib) / 1024.0)
}

/// Arguments of a process.
pub fn arguments(pid: i32) -> Vec<String> {
    let text = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = text
        .split(|byte| *byte == 0)
        .filter(|word| !word.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// The live processes of this directory, other than the harness itself.
pub fn below(dir: &Path) -> Vec<i32> {
    let me = std::process::id().cast_signed();
    let all = all_pids().into_iter();
    all.filter(|pid| *pid != me && belongs(*pid, dir) && alive(*pid))
        .collect()
}

fn belongs(pid: i32, dir: &Path) -> bool {
    let cwd: PathBuf = std::fs::read_link(format!("/proc/{pid}/cwd")).unwrap_or_default();
    if cwd.starts_with(dir) {
        return true;
    }
    let mut needle = dir.as_os_str().as_bytes().to_vec();
    needle.push(b'/');
    let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    cmdline.windows(needle.len()).any(|window| window == needle)
}

/// Ends every process of this directory with SIGKILL, and returns those that would not go.
pub fn sweep(dir: &Path) -> Vec<i32> {
    let until = Instant::now() + SWEEP_LIMIT;
    loop {
        let left = below(dir);
        if left.is_empty() || Instant::now() > until {
            return left;
        }
        for pid in left {
            // It may have ended since; then there is nothing to do.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(POLL);
    }
}
