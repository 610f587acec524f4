//! The guardian: a small process of its own, parent of the postmaster, that holds the deadline until
//! which PostgreSQL may live.
//!
//! ```text
//! agent ──socket──▶ guardian ──▶ postmaster ──▶ backends …
//!  (may die, hang,    │  ▲  │
//!   be upgraded)      │  │  └─ kernel timer: SIGKILL to itself if it has stopped looking;
//!                     │  │     the parent-death signal takes the postmaster along
//!                     │  └─ witness: sees the guardian die, ends what is left
//!                     └─ at the deadline: ends every process of the cluster, until none is left
//! ```
//!
//! It judges nothing. The agent tells it a deadline after each renewal of the lease; when that passes,
//! whether the agent was killed, stopped or cut off, PostgreSQL is dead before anybody else can lead
//! (I1, S2; `safety.md` 3). It survives the agent and hands what it knows to the next one.
//!
//! Single-threaded, no async runtime, no disk on the path of fencing, nothing allocated by it. The rules
//! are [`proto::fence::FenceClock`]; this module must not contain a second set of them.
//!
//! Reading order: [`serve`] (the loop), [`fence`] and [`proc`] (ending processes), [`spawn`] and [`namespace`]
//! (starting and adopting), [`timer`], [`witness`], [`selftest`], [`note`]; [`client`] is the agent's side, and
//! [`supervise`] a container's first process.

pub mod client;
pub mod fence;
pub mod namespace;
pub mod note;
pub mod proc;
pub mod selftest;
pub mod serve;
pub mod spawn;
pub mod supervise;
pub mod timer;
pub mod witness;

pub use client::{AttachOptions, GuardianClient, GuardianEvent, Hello};
pub use proto::fence::{Armed, Basis};

use clap::Parser;
use std::ffi::OsString;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why something with the guardian did not work.
#[derive(Debug, thiserror::Error)]
pub enum GuardianError {
    /// The program could not be started.
    #[error("start the guardian {program}")]
    Spawn {
        /// Which.
        program: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It was started but did not answer in time.
    #[error("guardian of {data_dir} did not answer within {limit:?}")]
    Silent {
        /// Whose.
        data_dir: PathBuf,
        /// How long it had.
        limit: Duration,
    },
    /// Another living agent holds the guardian of this data directory.
    #[error("data directory is managed by another agent, process {pid}")]
    Busy {
        /// Its pid.
        pid: i32,
    },
    /// The program that holds the socket belongs to another user.
    #[error("the guardian's socket is held by another user ({uid})")]
    Impostor {
        /// That user.
        uid: u32,
    },
    /// There is no connection right now.
    #[error("not connected to the guardian")]
    Lost,
    /// The socket's buffer is full or the message is too long.
    #[error("message could not be handed to the guardian")]
    Undelivered,
    /// The guardian said no.
    #[error("guardian refused: {0}")]
    Refused(String),
    /// The operating system said no.
    #[error("guardian: {0}")]
    System(&'static str, #[source] nix::Error),
}

/// Command line of `garden-agent guardian`; the other form is `--supervise` and the agent's own words.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "garden-agent guardian")]
struct CommandLine {
    #[command(flatten)]
    args: Args,
}

/// What a guardian is told on its command line.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// Data directory of the PostgreSQL to guard.
    #[arg(long)]
    pub data_dir: PathBuf,
    /// File for the guardian's own messages instead of the standard error stream.
    #[arg(long)]
    pub log: Option<PathBuf>,
    /// F: how long after the deadline the last process may still run, in milliseconds.
    #[arg(long, default_value_t = 500)]
    pub fence_ms: u64,
    /// Run PostgreSQL in a PID namespace of its own: the kernel alone then ends it when the guardian
    /// dies, also when everything on the machine is stopped.
    #[arg(long)]
    pub namespace: bool,
}

impl Args {
    /// The words that give these arguments back, `guardian` included.
    pub fn to_words(&self) -> Vec<OsString> {
        let mut words = vec![
            OsString::from("guardian"),
            "--data-dir".into(),
            self.data_dir.clone().into(),
        ];
        words.extend(["--fence-ms".into(), self.fence_ms.to_string().into()]);
        if self.namespace {
            words.push("--namespace".into());
        }
        if let Some(log) = &self.log {
            words.extend(["--log".into(), log.clone().into()]);
        }
        words
    }
}

/// `garden-agent guardian` with these words behind it, or, after `--supervise`, a container's first
/// process that runs `garden-agent` with them. Returns the exit status of the process.
pub fn main(words: &[OsString]) -> u8 {
    let name = OsString::from("garden-agent guardian");
    if let Some((first, rest)) = words.split_first()
        && first == "--supervise"
    {
        return supervise::run(rest);
    }
    match CommandLine::try_parse_from(std::iter::once(&name).chain(words)) {
        Ok(CommandLine { args }) => run(&args),
        Err(error) => {
            // Help and mistakes alike; there is nobody to tell when even that cannot be written.
            let _ = error.print();
            u8::try_from(error.exit_code()).unwrap_or(2)
        }
    }
}

/// Runs the guardian until there is nothing left to guard. Returns the exit status of the process.
pub fn run(args: &Args) -> u8 {
    match serve::Guardian::start(args) {
        Ok(mut guardian) => guardian.run(),
        Err(error) => {
            note::note!("ERROR", "{}", crate::guardian::note::chain(&error));
            1
        }
    }
}

/// This very program, also after an upgrade has replaced its file: then the new one, if it is there.
pub fn this_program() -> PathBuf {
    let found = std::env::current_exe().ok().and_then(|path| {
        let bytes = path.as_os_str().as_bytes();
        let name = bytes.strip_suffix(b" (deleted)").unwrap_or(bytes);
        Some(PathBuf::from(OsString::from_vec(name.to_vec()))).filter(|path| path.exists())
    });
    found.unwrap_or_else(|| PathBuf::from("/proc/self/exe"))
}

/// The data directory's one true name, also when it does not exist yet: the part that exists with all
/// links resolved, the rest as given.
pub fn canonical(data_dir: &Path) -> PathBuf {
    let absolute = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_path_buf());
    for ancestor in absolute.ancestors() {
        if let Ok(found) = ancestor.canonicalize() {
            return match absolute.strip_prefix(ancestor) {
                Ok(rest) if !rest.as_os_str().is_empty() => found.join(rest),
                _ => found,
            };
        }
    }
    absolute
}

/// The abstract socket of the guardian of this data directory: one name, so only one process can hold
/// it, and with it the right to run this PostgreSQL. Containers may share a network namespace, and so
/// the names in it, without sharing files: the device of the directory above tells them apart, or where that
/// is not there before the cluster is made, of the next one above, which it will be made in.
///
/// # Errors
/// Never in practice: the name is short enough.
fn socket_address(data_dir: &Path) -> std::io::Result<SocketAddr> {
    let uid = nix::unistd::geteuid();
    let mut above = data_dir.ancestors().skip(1);
    let device = above.find_map(|directory| directory.metadata().ok());
    let device = device.map_or(0, |found| found.dev());
    let mut hash = Fnv::default();
    hash.write(data_dir.as_os_str().as_bytes());
    hash.write(&device.to_ne_bytes());
    SocketAddr::from_abstract_name(format!("garden-guardian-{uid}-{:016x}", hash.0))
}

/// FNV-1a: the same in every build, as a newer agent must find an older guardian.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
    }
}

/// A path as the wire carries it.
fn path_bytes(path: &Path) -> Vec<u8> {
    path.as_os_str().to_os_string().into_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_words_of_arguments_give_them_back() {
        let args = Args {
            data_dir: "/var/lib/x y".into(),
            log: Some("/log".into()),
            fence_ms: 300,
            namespace: true,
        };
        let words = args.to_words();
        let back = CommandLine::try_parse_from(&words).unwrap().args;
        assert_eq!(back.to_words(), words);
        assert!(CommandLine::try_parse_from(["guardian"]).is_err());
    }

    #[test]
    fn a_guardian_has_one_name_before_and_after_its_cluster_is_made() {
        let base = std::env::temp_dir().join(format!("garden-above-{}", std::process::id()));
        std::fs::create_dir_all(&base).unwrap();
        let data_dir = base.join("15/main");
        let name = || socket_address(&data_dir).unwrap();
        let before = name();
        std::fs::create_dir_all(&data_dir).unwrap();
        assert_eq!(name().as_abstract_name(), before.as_abstract_name());
        std::fs::remove_dir_all(&base).unwrap();
    }

    #[test]
    fn a_directory_has_one_name_whether_it_exists_or_not() {
        let base = std::env::temp_dir().join(format!("garden-canonical-{}", std::process::id()));
        std::fs::create_dir_all(base.join("real")).unwrap();
        std::os::unix::fs::symlink(base.join("real"), base.join("link")).unwrap();
        let real = base.join("real").canonicalize().unwrap();
        assert_eq!(canonical(&base.join("link")), real);
        assert_eq!(canonical(&base.join("link/data")), real.join("data"));
        assert_eq!(canonical(&base.join("real/./data")), real.join("data"));
        let name = |path: &str| socket_address(Path::new(path)).unwrap();
        assert_eq!(
            name("/x/a").as_abstract_name(),
            name("/x/a").as_abstract_name()
        );
        assert_ne!(
            name("/x/a").as_abstract_name(),
            name("/x/b").as_abstract_name()
        );
        std::fs::remove_dir_all(base).unwrap();
    }
}
