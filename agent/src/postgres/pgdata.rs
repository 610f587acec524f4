//! The data directory: what is in it, who runs on it, and the few small files of our own beside it.
//!
//! Everything with `std::fs` in it blocks, and a hung disk blocks it for ever. The driver therefore
//! calls it through [`on_disk`], which waits in another thread and gives up at a limit.

use super::context::PgContext;
use proto::core::observation::{DataDir, Led, REWIND_MARK};
use proto::ids::Epoch;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a look at the data directory may take before the disk counts as hung.
pub const DISK_LIMIT: Duration = Duration::from_secs(2);

/// Says that work on the directory has not ended, and what that was (S18).
pub const UNFINISHED_FILE: &str = "garden.unfinished";

/// Lies in the directory while `pg_rewind` works on it. A FIFO, since that program removes regular
/// files that its source does not have and passes over everything else.
pub const REWINDING_FIFO: &str = "garden.rewinding";

/// Promise and WAL epoch (S19).
pub const STATE_FILE: &str = "garden.state";

/// The cached dynamic configuration, by the name that Patroni gave it (`configuration.md` 12.8).
pub const DYNAMIC_FILE: &str = "patroni.dynamic.json";

/// No small file of ours, and none of PostgreSQL's that we read whole, is longer.
const SMALL_FILE_BYTES_MAX: u64 = 4 << 20;

/// `postmaster.pid` and `/proc` may disagree by this much about the start (`ha-behaviour.md` 2.1).
const START_TIME_SLACK: u64 = 3;

/// What `postmaster.pid` says (PostgreSQL source, `miscadmin.h`, `LOCK_FILE_LINE_*`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PostmasterPid {
    /// Process id, positive.
    pub pid: i32,
    /// The file belongs to a single-user server, which writes its id as a negative number.
    pub single_user: bool,
    /// Data directory.
    pub data_dir: String,
    /// Start time in seconds since 1970.
    pub start_time: i64,
    /// Port.
    pub port: Option<u16>,
    /// First directory of `unix_socket_directories`.
    pub socket_dir: Option<String>,
    /// First listen address.
    pub listen_addr: Option<String>,
    /// `starting`, `stopping`, `ready`, `standby`.
    pub status: Option<String>,
}

/// What must survive a restart of the agent: promise and WAL epoch (S19).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DurableState {
    /// Follow no epoch at or below this one.
    pub promised: Option<Epoch>,
    /// The epoch of the newest WAL that was received.
    pub wal_epoch: Epoch,
    /// The tenure in which this server was the primary last.
    #[serde(default)]
    pub led: Option<Led>,
}

/// The durable state as it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FoundState {
    /// Nothing was ever stored here.
    Never,
    /// Something is there, but it is torn or cannot be read: not the same as zero.
    Unknown,
    /// As stored.
    Known(DurableState),
}

impl FoundState {
    /// The state to act on. An unreadable promise counts as a promise against every epoch, since
    /// forgetting one can lose an acknowledged commit (`safety.md` 4.3); the unknown epoch counts as
    /// the lowest, so that this member wins no election by it.
    pub fn or_strictest(self) -> DurableState {
        match self {
            Self::Known(state) => state,
            Self::Never => DurableState::default(),
            Self::Unknown => DurableState {
                promised: Some(Epoch(u64::MAX)),
                wal_epoch: Epoch(0),
                led: None,
            },
        }
    }
}

/// Runs blocking work on the disk in another thread; `None` when it did not end within the limit (the
/// thread then stays behind until the disk answers).
pub async fn on_disk<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let job = tokio::task::spawn_blocking(work);
    tokio::time::timeout(DISK_LIMIT, job).await.ok()?.ok()
}

/// Looks at the data directory, in a worker thread and with a limit: a hung disk gives `Unreadable`.
pub async fn inspect(ctx: &PgContext) -> DataDir {
    let dir = ctx.data_dir();
    on_disk(move || look(&dir))
        .await
        .unwrap_or_else(|| DataDir::Unreadable(format!("no answer within {DISK_LIMIT:?}")))
}

/// Looks at a directory; blocks.
pub fn look(dir: &Path) -> DataDir {
    let unreadable = |what: &str, err: io::Error| DataDir::Unreadable(format!("{what}: {err}"));
    if fs::symlink_metadata(dir.join(REWINDING_FIFO)).is_ok() {
        return DataDir::Unfinished(REWIND_MARK.into());
    }
    match read_small(&dir.join(UNFINISHED_FILE)) {
        Ok(Some(what)) => {
            let what = String::from_utf8_lossy(&what).trim().to_owned();
            return DataDir::Unfinished(what);
        }
        Ok(None) => {}
        Err(err) => return unreadable(UNFINISHED_FILE, err),
    }
    // Opened, not only looked at: a directory that others may list can still hide its files.
    match File::open(dir.join("global/pg_control")) {
        Ok(_) => return DataDir::Initialised,
        Err(err) if err.kind() == io::ErrorKind::NotFound => {}
        Err(err) => return unreadable("global/pg_control", err),
    }
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return DataDir::Empty,
        Err(err) => return unreadable("data directory", err),
    };
    let mut foreign = None;
    for entry in entries {
        let name = match entry {
            Ok(entry) => entry.file_name().to_string_lossy().into_owned(),
            Err(err) => return unreadable("data directory", err),
        };
        match name.as_str() {
            // `initdb` writes the control file late and a base backup ends with it, so these alone
            // are what an interruption leaves.
            "PG_VERSION" | "base" | "global" | "backup_label" | "pg_wal" => {
                return DataDir::Unfinished(String::from("no global/pg_control"));
            }
            _ if name.starts_with('.') || is_ours(&name) => {}
            _ => foreign = Some(name),
        }
    }
    match foreign {
        None => DataDir::Empty,
        Some(name) => DataDir::Unreadable(format!("not a cluster, but it contains {name:?}")),
    }
}

/// Files that say nothing about whether there is a cluster.
fn is_ours(name: &str) -> bool {
    name == "lost+found" || name.starts_with("garden.") || name.starts_with(DYNAMIC_FILE)
}

/// Parses `postmaster.pid`; `None` when there is none, or it is empty: the postmaster creates the file
/// first and fills it afterwards.
pub fn read_postmaster_pid(dir: &Path) -> io::Result<Option<PostmasterPid>> {
    let text = read_small(&dir.join("postmaster.pid"))?;
    Ok(text.and_then(|text| parse_postmaster_pid(&String::from_utf8_lossy(&text))))
}

pub(crate) fn parse_postmaster_pid(text: &str) -> Option<PostmasterPid> {
    let mut lines = text.lines().map(str::trim);
    let pid: i32 = lines
        .next()?
        .parse()
        .ok()
        .filter(|pid| *pid != 0 && *pid != i32::MIN)?;
    let data_dir = lines.next().unwrap_or_default().to_owned();
    let start_time = lines.next().and_then(|t| t.parse().ok()).unwrap_or(0);
    let mut text_line = || lines.next().filter(|t| !t.is_empty()).map(str::to_owned);
    let port = text_line().and_then(|t| t.parse().ok());
    let socket_dir = text_line();
    let listen_addr = text_line();
    let _shared_memory_key = text_line();
    let status = text_line();
    Some(PostmasterPid {
        pid: pid.abs(),
        single_user: pid < 0,
        data_dir,
        start_time,
        port,
        socket_dir,
        listen_addr,
        status,
    })
}

/// The process id of the postmaster that runs on this directory (`ha-behaviour.md` 2.1): the one that
/// `postmaster.pid` names, unless another process has got its number since. A single-user server does
/// not count.
pub fn running_postmaster(dir: &Path) -> Option<i32> {
    let file = read_postmaster_pid(dir).ok()??;
    (!file.single_user && is_postmaster(&file, dir)).then_some(file.pid)
}

fn is_postmaster(file: &PostmasterPid, dir: &Path) -> bool {
    let me = i32::try_from(std::process::id()).unwrap_or(0);
    let Some(stat) = ProcessStat::read(file.pid) else {
        return false;
    };
    let relative = file.pid == me || stat.parent == me || ProcessStat::parent_of(me) == file.pid;
    if relative || stat.dead {
        return false;
    }
    let start = boot_time().map(|boot| boot + stat.started_seconds);
    if start.is_some_and(|start| start.abs_diff(file.start_time) <= START_TIME_SLACK) {
        return true;
    }
    // The wall clock may have been set since; then the program and its directory decide.
    let proc_dir = PathBuf::from(format!("/proc/{}", file.pid));
    let program = fs::read_link(proc_dir.join("exe")).ok();
    let program = program
        .as_deref()
        .and_then(Path::file_name)
        .map(|n| n.to_string_lossy());
    let is_postgres = program.is_some_and(|name| {
        let name = name.trim_end_matches(" (deleted)");
        name == "postgres" || name == "postmaster"
    });
    if !is_postgres {
        return false;
    }
    match (fs::read_link(proc_dir.join("cwd")), fs::canonicalize(dir)) {
        (Ok(cwd), Ok(dir)) => cwd == dir,
        _ => true,
    }
}

/// Whether a process exists and is no zombie.
pub fn is_alive(pid: i32) -> bool {
    ProcessStat::read(pid).is_some_and(|stat| !stat.dead)
}

/// The few fields of `/proc/<pid>/stat` that matter here.
pub(crate) struct ProcessStat {
    pub(crate) parent: i32,
    started_seconds: i64,
    pub(crate) dead: bool,
}

impl ProcessStat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    fn parent_of(pid: i32) -> i32 {
        Self::read(pid).map_or(0, |stat| stat.parent)
    }

    /// Fields are counted from behind the last `)`, since the program's name may contain anything.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        // USER_HZ, in which Linux shows times to programs; 100 on every platform that we build for.
        const TICKS_PER_SECOND: i64 = 100;
        let (_, fields) = text.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let state = fields.next()?;
        let parent = fields.next()?.parse().ok()?;
        let started: i64 = fields.nth(17)?.parse().ok()?;
        let dead = matches!(state, "Z" | "X" | "x");
        Some(Self {
            parent,
            started_seconds: started / TICKS_PER_SECOND,
            dead,
        })
    }
}

/// Seconds since 1970 at which this machine booted.
fn boot_time() -> Option<i64> {
    let stat = fs::read_to_string("/proc/stat").ok()?;
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

/// `standby.signal` or `recovery.signal` exists.
pub fn has_signal_file(dir: &Path) -> bool {
    dir.join("standby.signal").exists() || dir.join("recovery.signal").exists()
}

/// Marks the directory as not to be started, before work that leaves it broken when interrupted (S18).
pub fn mark_unfinished(dir: &Path, what: &str) -> io::Result<()> {
    write_durably(&dir.join(UNFINISHED_FILE), what.as_bytes(), file_mode(dir))
}

/// Takes the mark away after the work has ended in order.
pub fn clear_unfinished(dir: &Path) -> io::Result<()> {
    remove_durably(&dir.join(UNFINISHED_FILE))
}

/// Marks the directory as being rewound.
pub fn mark_rewinding(dir: &Path) -> io::Result<()> {
    let path = dir.join(REWINDING_FIFO);
    match nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRUSR) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => sync_parent(&path),
        Err(err) => Err(err.into()),
    }
}

/// Takes that mark away after the rewind has ended in order.
pub fn clear_rewinding(dir: &Path) -> io::Result<()> {
    remove_durably(&dir.join(REWINDING_FIFO))
}

/// `PG_VERSION`, for example 15.
pub fn pg_version(dir: &Path) -> Option<u32> {
    let text = read_small(&dir.join("PG_VERSION")).ok()??;
    String::from_utf8_lossy(&text).trim().parse().ok()
}

/// The cached dynamic configuration; `None` when there is none or it is broken.
pub fn read_dynamic(dir: &Path) -> Option<Map<String, Value>> {
    let text = read_small(&dir.join(DYNAMIC_FILE)).ok()??;
    serde_json::from_slice(&text).ok()
}

/// Stores the dynamic configuration, atomically; nothing when it is unchanged.
pub fn save_dynamic(dir: &Path, dynamic: &Map<String, Value>) -> io::Result<()> {
    if read_dynamic(dir).as_ref() == Some(dynamic) {
        return Ok(());
    }
    let text = serde_json::to_string(dynamic)?;
    write_durably(&dir.join(DYNAMIC_FILE), text.as_bytes(), file_mode(dir))
}

/// Reads promise and WAL epoch.
pub fn read_state(dir: &Path) -> FoundState {
    match read_small(&dir.join(STATE_FILE)) {
        Ok(None) => FoundState::Never,
        Ok(Some(text)) => {
            serde_json::from_slice(&text).map_or(FoundState::Unknown, FoundState::Known)
        }
        Err(_) => FoundState::Unknown,
    }
}

/// Stores promise and WAL epoch: temporary file, fsync, rename, fsync of the directory.
pub fn save_state(dir: &Path, state: &DurableState) -> io::Result<()> {
    let text = serde_json::to_string(state)?;
    write_durably(&dir.join(STATE_FILE), text.as_bytes(), file_mode(dir))
}

/// Removes the state that a base backup copied along: it is the source's, not ours.
pub fn forget_state(dir: &Path) -> io::Result<()> {
    remove_durably(&dir.join(STATE_FILE))
}

/// Mode of new files in PGDATA: as `initdb --allow-group-access` or its absence left the directory.
pub fn file_mode(dir: &Path) -> u32 {
    match fs::metadata(dir) {
        Ok(meta) if meta.mode() & 0o050 == 0o050 => 0o640,
        Ok(_) | Err(_) => 0o600,
    }
}

/// Writes a file durably: temporary file beside it, fsync, rename, fsync of the directory. After a
/// crash at any moment there is the old file or the new one, never a torn one.
pub fn write_durably(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let name = path
        .file_name()
        .map(|n| n.to_string_lossy())
        .unwrap_or_default();
    let temporary = path.with_file_name(format!("{name}.new"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    // `mode` above is cut by the umask and ignored for a leftover.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(content)?;
    file.sync_all()?;
    drop(file);
    fs::rename(&temporary, path)?;
    sync_parent(path)
}

/// Removes a file and makes that durable; it is no error when there is none.
pub fn remove_durably(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(err),
    }
}

pub(super) fn sync_parent(path: &Path) -> io::Result<()> {
    match path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

/// The content of a small file; `None` when there is none.
pub fn read_small(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    };
    let mut content = Vec::new();
    file.take(SMALL_FILE_BYTES_MAX + 1)
        .read_to_end(&mut content)?;
    if content.len() as u64 > SMALL_FILE_BYTES_MAX {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "unreasonably long",
        ));
    }
    Ok(Some(content))
}

/// Bytes of the files below a directory, as far as they can be seen. Links are not followed.
pub fn bytes_below(dir: &Path) -> u64 {
    let mut total = 0;
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            match entry.metadata() {
                Ok(meta) if meta.is_dir() => open.push(entry.path()),
                Ok(meta) => total += meta.len(),
                // Gone meanwhile.
                Err(_) => {}
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A directory that is removed at the end of the test.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir =
                std::env::temp_dir().join(format!("garden-pgdata-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir).expect("create a scratch directory");
            Self(dir)
        }

        fn touch(&self, name: &str) {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().expect("has a parent")).expect("create");
            fs::write(path, "x").expect("write");
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_missing_directory_and_one_with_dot_files_are_empty() {
        let dir = Scratch::new("empty");
        assert_eq!(look(&dir.0.join("missing")), DataDir::Empty);
        assert_eq!(look(&dir.0), DataDir::Empty);
        for name in [".profile", "lost+found/x", DYNAMIC_FILE, STATE_FILE] {
            dir.touch(name);
        }
        assert_eq!(look(&dir.0), DataDir::Empty);
    }

    #[test]
    fn foreign_files_are_neither_empty_nor_a_cluster() {
        let dir = Scratch::new("foreign");
        dir.touch("letters.txt");
        assert!(matches!(look(&dir.0), DataDir::Unreadable(_)));
    }

    #[test]
    fn an_interrupted_copy_is_unfinished_and_the_mark_beats_everything() {
        let dir = Scratch::new("unfinished");
        dir.touch("PG_VERSION");
        assert!(matches!(look(&dir.0), DataDir::Unfinished(_)));
        dir.touch("global/pg_control");
        assert_eq!(look(&dir.0), DataDir::Initialised);
        mark_unfinished(&dir.0, "rewind from b").expect("mark");
        assert_eq!(look(&dir.0), DataDir::Unfinished("rewind from b".into()));
        clear_unfinished(&dir.0).expect("clear");
        clear_unfinished(&dir.0).expect("clearing twice is no error");
        assert_eq!(look(&dir.0), DataDir::Initialised);
    }

    #[test]
    fn durable_state_is_unknown_when_torn_and_never_zero() {
        let dir = Scratch::new("state");
        assert_eq!(read_state(&dir.0), FoundState::Never);
        let state = DurableState {
            promised: Some(Epoch(7)),
            wal_epoch: Epoch(6),
            led: Some(Led {
                epoch: Epoch(5),
                native: true,
            }),
        };
        save_state(&dir.0, &state).expect("save");
        assert_eq!(read_state(&dir.0), FoundState::Known(state));
        let path = dir.0.join(STATE_FILE);
        let whole = fs::read(&path).expect("read");
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).expect("tear");
            assert_eq!(read_state(&dir.0), FoundState::Unknown, "cut at {cut}");
        }
        let strict = read_state(&dir.0).or_strictest();
        assert_eq!(strict.promised, Some(Epoch(u64::MAX)));
    }

    #[test]
    fn dynamic_configuration_comes_back_as_stored() {
        let dir = Scratch::new("dynamic");
        let doc = serde_json::json!({"ttl": 30, "postgresql": {"parameters": {"a": null}}});
        let doc = doc.as_object().expect("object").clone();
        assert_eq!(read_dynamic(&dir.0), None);
        save_dynamic(&dir.0, &doc).expect("save");
        assert_eq!(read_dynamic(&dir.0), Some(doc));
        fs::write(dir.0.join(DYNAMIC_FILE), "{\"ttl\"").expect("tear");
        assert_eq!(read_dynamic(&dir.0), None);
    }

    #[test]
    fn postmaster_pid_is_parsed_while_it_is_still_growing() {
        let text =
            "4711\n/data/pg\n1700000000\n5432\n/run/postgresql\nlocalhost\n  1234 5\nready   \n";
        let full = parse_postmaster_pid(text).expect("complete");
        assert_eq!(full.port, Some(5432));
        assert_eq!(full.socket_dir.as_deref(), Some("/run/postgresql"));
        assert_eq!(full.status.as_deref(), Some("ready"));
        let started = parse_postmaster_pid("4711\n/data/pg\n1700000000\n").expect("first lines");
        assert_eq!((started.pid, started.port), (4711, None));
        assert!(
            parse_postmaster_pid("-9\n/d\n1\n")
                .expect("single user")
                .single_user
        );
        assert_eq!(parse_postmaster_pid(""), None);
        assert_eq!(parse_postmaster_pid("x"), None);
    }

    #[test]
    fn another_process_with_the_same_number_is_no_postmaster() {
        let dir = Scratch::new("recycled");
        // Process 1 exists, started long ago, and is not PostgreSQL.
        fs::write(dir.0.join("postmaster.pid"), "1\n/x\n100\n").expect("write");
        assert_eq!(running_postmaster(&dir.0), None);
        let me = std::process::id();
        fs::write(dir.0.join("postmaster.pid"), format!("{me}\n/x\n100\n")).expect("write");
        assert_eq!(running_postmaster(&dir.0), None);
    }

    #[test]
    fn process_names_with_parentheses_do_not_confuse() {
        let mut text = String::from("42 (a) R (b) S 7");
        for n in 5..=25 {
            text.push_str(&format!(" {n}00"));
        }
        let stat = ProcessStat::parse(&text).expect("well formed");
        assert_eq!(
            (stat.parent, stat.started_seconds, stat.dead),
            (7, 22, false)
        );
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC*") {
            let _ = parse_postmaster_pid(&text);
            let _ = ProcessStat::parse(&text);
        }
    }
}
