//! Deleting a data directory: the last resort, after every check of S7 (`safety.md` 5).
//!
//! A wrong deletion cannot be undone, so each check that fails refuses, and says why: a process lives;
//! the path is not plainly a data directory of its own; the copy may be the last one, since no other
//! live primary with the same identifier was seen. Work of our own that did not end (a clone, a
//! bootstrap) carries a mark and holds nothing that is not elsewhere: it needs no such witness.

use super::controldata;
use super::lineage;
use super::pgdata;
use super::shared::{JobCx, JobError, ProcessSet};
use crate::clock;
use proto::core::job::Upstream;
use proto::core::observation::{DataDir, Lineage};
use proto::ids::{MemberName, SystemId};
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How old the leader's answer may be that proves another copy.
const WITNESS_AGE: Duration = Duration::from_secs(60);

/// Why nothing was deleted.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    /// Something about the path.
    #[error("{path} is not to be emptied: {why}")]
    Place {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: &'static str,
    },
    /// It could not be looked at.
    #[error("look at {path}")]
    Look {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// PostgreSQL, or a part of it, runs on it.
    #[error("a process still uses the data directory")]
    InUse,
    /// No other primary with the same data was seen.
    #[error("this may be the last copy: {0}")]
    LastCopy(String),
}

impl From<Refused> for JobError {
    fn from(refused: Refused) -> Self {
        Self::other(super::shared::chain(&refused))
    }
}

/// Empties the data directory after every check. `leader` is asked to prove that it is another live
/// primary of this cluster.
pub(super) async fn data_dir(job: &JobCx, leader: &Upstream) -> Result<(), JobError> {
    let dir = job.ctx().data_dir();
    if job.shared.process_set() != ProcessSet::Empty || uses_it(&dir) {
        return Err(Refused::InUse.into());
    }
    let Some(plan) = permitted(job, leader).await? else {
        return Ok(());
    };
    job.phase("removing data directory").await;
    tracing::warn!(path = %plan.dir.display(), "emptying the data directory");
    job.blocking(move || empty(&plan)).await
}

/// Every check but that nothing runs, so that it can be asked before something is stopped for it.
/// `None`: there is nothing to remove.
pub(super) async fn permitted(job: &JobCx, leader: &Upstream) -> Result<Option<Plan>, JobError> {
    let found = pgdata::inspect(job.ctx()).await;
    let abandoned = match &found {
        DataDir::Empty => return Ok(None),
        DataDir::Unfinished(_) => found.abandoned(),
        DataDir::Initialised => false,
        DataDir::Unknown | DataDir::Unreadable(_) => {
            return Err(JobError::other(format!(
                "the data directory is not known: {found:?}"
            )));
        }
    };
    let dir = job.ctx().data_dir();
    let plan = job.blocking(move || Ok(plan(&dir, abandoned))).await??;
    if !abandoned {
        witness(job, leader).await?;
    }
    Ok(Some(plan))
}

/// `postmaster.pid` names a living server, single-user ones included.
fn uses_it(dir: &Path) -> bool {
    pgdata::running_postmaster(dir).is_some()
        || pgdata::read_postmaster_pid(dir)
            .ok()
            .flatten()
            .is_some_and(|file| file.single_user && pgdata::is_alive(file.pid))
}

/// Another live primary with the same identifier must exist: this is not the last copy.
async fn witness(job: &JobCx, leader: &Upstream) -> Result<(), JobError> {
    let mine = controldata::read(job.ctx()).await?.system_id;
    let me = job.ctx().config().name.clone();
    let recent = job.shared.lineage.borrow().clone();
    let recent = recent.filter(|l| clock::now().since(l.at) <= WITNESS_AGE);
    let lineage = match recent {
        Some(lineage) if lineage.leader.as_str() != me => lineage,
        _ => ask(job, leader).await?,
    };
    let standby_cluster = job.ctx().cluster().standby_cluster.is_some();
    prove(&lineage, mine, &me, standby_cluster).map_err(|why| Refused::LastCopy(why).into())
}

async fn ask(job: &JobCx, leader: &Upstream) -> Result<Lineage, JobError> {
    let leader = match leader {
        Upstream::None => job.shared.applied.borrow().upstream.clone(),
        known => known.clone(),
    };
    let name = match &leader {
        Upstream::Member { name, .. } => name.clone(),
        Upstream::Remote { .. } => MemberName::from("remote"),
        Upstream::None => return Err(Refused::LastCopy("no leader to ask".into()).into()),
    };
    lineage::ask(job.ctx(), name, &leader)
        .await
        .map_err(|err| Refused::LastCopy(super::shared::chain(&err)).into())
}

/// Whether the answer proves another copy: a primary's, or in a standby cluster, whose primary may be out
/// of reach, that of the leader.
fn prove(lineage: &Lineage, mine: SystemId, me: &str, standby_cluster: bool) -> Result<(), String> {
    if lineage.leader.as_str() == me {
        return Err("the leader is this member".into());
    }
    if !lineage.is_primary && !standby_cluster {
        return Err(format!("{} is not a primary", lineage.leader));
    }
    if lineage.system_id != mine {
        return Err(format!(
            "{} has the identifier {}, not {mine}",
            lineage.leader, lineage.system_id
        ));
    }
    Ok(())
}

/// What is to be emptied.
#[derive(Debug)]
pub struct Plan {
    /// The data directory, symbolic links resolved.
    pub dir: PathBuf,
    /// A WAL directory that `pg_wal` points to.
    pub wal: Option<PathBuf>,
    /// Directories of this cluster in tablespaces.
    pub tablespaces: Vec<PathBuf>,
}

/// Checks the path and everything that hangs off it. `marked`: our own unfinished work, which need not
/// hold a cluster yet. The root of a mount is emptied like any other directory, since it is never
/// renamed or removed itself; but nothing else may be mounted below it.
pub fn plan(configured: &Path, marked: bool) -> Result<Plan, Refused> {
    let refuse = |why| Refused::Place {
        path: configured.to_owned(),
        why,
    };
    let plain = configured.components().all(|c| {
        matches!(
            c,
            std::path::Component::RootDir | std::path::Component::Normal(_)
        )
    });
    if !configured.is_absolute() || !plain {
        return Err(refuse("it is not an absolute path without `..`"));
    }
    let look = |source| Refused::Look {
        path: configured.to_owned(),
        source,
    };
    let dir = fs::canonicalize(configured).map_err(look)?;
    let meta = fs::symlink_metadata(&dir).map_err(look)?;
    if dir.components().count() < 3 {
        return Err(refuse("it is a directory of the system"));
    }
    if meta.uid() != nix::unistd::geteuid().as_raw() {
        return Err(refuse("it belongs to another user"));
    }
    if has_mount_below(&dir) {
        return Err(refuse("something else is mounted below it"));
    }
    if !marked && !dir.join("global/pg_control").is_file() {
        return Err(refuse("it holds no cluster"));
    }
    let wal = external_wal(&dir)?;
    let tablespaces = tablespaces(&dir)?;
    Ok(Plan {
        dir,
        wal,
        tablespaces,
    })
}

/// Whether something is mounted inside, bind mounts included (proc(5), `mountinfo`): it is not ours, and
/// its mount point cannot be removed. When that cannot be read, the answer is yes.
fn has_mount_below(dir: &Path) -> bool {
    let Ok(table) = fs::read("/proc/self/mountinfo") else {
        return true;
    };
    let mut inside = dir.as_os_str().as_bytes().to_vec();
    if !inside.ends_with(b"/") {
        inside.push(b'/');
    }
    table.split(|b| *b == b'\n').any(|line| {
        let point = line.split(|b| *b == b' ').nth(4).unwrap_or_default();
        unescape(point).starts_with(&inside)
    })
}

/// Undoes the octal escapes of blanks in `mountinfo`.
pub(crate) fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = |digits: &&[u8]| digits.iter().all(|digit| (b'0'..=b'7').contains(digit));
        let code = tail.get(..3).filter(|_| *first == b'\\').filter(octal);
        let byte = code
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte {
            Some(byte) => {
                plain.push(byte);
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

/// Where `pg_wal` points to, when it is a link: nothing but WAL may be in there.
fn external_wal(dir: &Path) -> Result<Option<PathBuf>, Refused> {
    let link = dir.join("pg_wal");
    if !link.is_symlink() {
        return Ok(None);
    }
    let look = |source| Refused::Look {
        path: link.clone(),
        source,
    };
    let target = match fs::canonicalize(&link) {
        Ok(target) => target,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(look(err)),
    };
    let refuse = |why| Refused::Place {
        path: target.clone(),
        why,
    };
    if dir.starts_with(&target) || target.starts_with(dir) {
        return Err(refuse("pg_wal points into or above the data directory"));
    }
    for entry in fs::read_dir(&target).map_err(look)? {
        if !is_wal_name(&entry.map_err(look)?.file_name().to_string_lossy()) {
            return Err(refuse("pg_wal points to it, but it holds more than WAL"));
        }
    }
    Ok(Some(target))
}

/// Segments, partial and backup files, histories, and the directories that PostgreSQL keeps there.
fn is_wal_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or_default();
    let hex = |len| stem.len() == len && stem.bytes().all(|b| b.is_ascii_hexdigit());
    hex(24)
        || (hex(8) && name.ends_with(".history"))
        || matches!(
            stem,
            "archive_status" | "summaries" | "xlogtemp" | "lost+found"
        )
        || name.starts_with("RECOVERY")
}

/// The directories of this major version below the links in `pg_tblspc`.
fn tablespaces(dir: &Path) -> Result<Vec<PathBuf>, Refused> {
    let Some(version) = pgdata::pg_version(dir) else {
        return Ok(Vec::new());
    };
    let links = dir.join("pg_tblspc");
    let look = |source| Refused::Look {
        path: links.clone(),
        source,
    };
    let entries = match fs::read_dir(&links) {
        Ok(entries) => entries,
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(err) => return Err(look(err)),
    };
    let ours = format!("PG_{version}_");
    let mut found = Vec::new();
    for link in entries {
        let link = link.map_err(look)?.path();
        if !link.is_symlink() {
            continue;
        }
        let Ok(target) = fs::canonicalize(&link) else {
            continue;
        };
        if dir.starts_with(&target) || target.starts_with(dir) {
            return Err(Refused::Place {
                path: target,
                why: "a tablespace overlaps the data directory",
            });
        }
        for entry in fs::read_dir(&target).map_err(look)? {
            let entry = entry.map_err(look)?;
            let is_dir = entry.file_type().is_ok_and(|kind| kind.is_dir());
            if is_dir && entry.file_name().to_string_lossy().starts_with(&ours) {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Removes what the plan names; the data directory itself stays, with its mode and owner. The mark is
/// set first and goes last: half a data directory is never taken for a whole one.
pub fn empty(plan: &Plan) -> io::Result<()> {
    if !plan.dir.join(pgdata::UNFINISHED_FILE).exists() {
        pgdata::mark_unfinished(&plan.dir, "removal of the data directory")?;
    }
    for dir in &plan.tablespaces {
        fs::remove_dir_all(dir)?;
    }
    if let Some(wal) = &plan.wal {
        remove_entries(wal, |_| true)?;
    }
    let last = [pgdata::UNFINISHED_FILE, pgdata::REWINDING_FIFO];
    remove_entries(&plan.dir, |name| {
        !last.contains(&name) && name != "lost+found"
    })?;
    pgdata::clear_rewinding(&plan.dir)?;
    pgdata::clear_unfinished(&plan.dir)
}

/// Removes the entries whose names are wanted, following no links.
fn remove_entries(dir: &Path, wanted: impl Fn(&str) -> bool) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if !wanted(&entry.file_name().to_string_lossy()) {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::time::MonoTime;
    use proto::wal::TimelineHistory;
    use std::os::unix::fs::symlink;

    /// A directory that looks like a cluster, with an outside beside it.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let root =
                std::env::temp_dir().join(format!("garden-wipe-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&root);
            fs::create_dir_all(root.join("data/global")).expect("create");
            fs::create_dir_all(root.join("data/pg_tblspc")).expect("create");
            fs::create_dir_all(root.join("outside")).expect("create");
            fs::write(root.join("data/global/pg_control"), "x").expect("write");
            fs::write(root.join("data/PG_VERSION"), "15\n").expect("write");
            Self(root)
        }

        fn data(&self) -> PathBuf {
            self.0.join("data")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn why(refused: Refused) -> String {
        refused.to_string()
    }

    #[test]
    fn only_a_plain_directory_with_a_cluster_is_emptied() {
        let scratch = Scratch::new("plain");
        for bad in ["/", "/tmp", "relative", "/proc/sys", "/etc/../etc"] {
            assert!(plan(Path::new(bad), false).is_err(), "{bad}");
            assert!(
                plan(Path::new(bad), true).is_err() || bad == "/proc/sys",
                "{bad} marked"
            );
        }
        let dotted = scratch.0.join("outside/../data");
        assert!(why(plan(&dotted, false).expect_err("dots")).contains("absolute path"));
        let outside = plan(&scratch.0.join("outside"), false).expect_err("no cluster");
        assert!(why(outside).contains("holds no cluster"));
        let planned = plan(&scratch.data(), false).expect("allowed");
        empty(&planned).expect("emptied");
        assert_eq!(pgdata::look(&scratch.data()), DataDir::Empty);
        assert!(scratch.data().is_dir());
    }

    #[test]
    fn directories_with_mounts_inside_are_left_alone() {
        assert!(has_mount_below(Path::new("/")));
        assert!(!has_mount_below(
            &std::env::temp_dir().join("nothing-mounted-here")
        ));
        assert_eq!(unescape(b"/a\\040b\\"), b"/a b\\");
    }

    #[test]
    fn links_out_of_the_directory_are_not_followed() {
        let scratch = Scratch::new("links");
        let outside = scratch.0.join("outside");
        fs::write(outside.join("precious"), "x").expect("write");
        symlink(&outside, scratch.data().join("elsewhere")).expect("link");
        empty(&plan(&scratch.data(), false).expect("allowed")).expect("emptied");
        assert!(outside.join("precious").exists());
    }

    #[test]
    fn an_external_wal_directory_is_emptied_only_if_it_holds_nothing_else() {
        let scratch = Scratch::new("wal");
        let outside = scratch.0.join("outside");
        fs::write(outside.join("000000010000000000000001"), "x").expect("write");
        fs::write(outside.join("00000002.history"), "x").expect("write");
        symlink(&outside, scratch.data().join("pg_wal")).expect("link");
        fs::write(outside.join("notes.txt"), "x").expect("write");
        assert!(
            why(plan(&scratch.data(), false).expect_err("foreign file")).contains("more than WAL")
        );
        fs::remove_file(outside.join("notes.txt")).expect("remove");
        empty(&plan(&scratch.data(), false).expect("allowed")).expect("emptied");
        assert_eq!(fs::read_dir(&outside).expect("listed").count(), 0);
    }

    #[test]
    fn a_wal_link_to_above_the_directory_is_refused() {
        let scratch = Scratch::new("above");
        symlink(&scratch.0, scratch.data().join("pg_wal")).expect("link");
        assert!(plan(&scratch.data(), false).is_err());
    }

    #[test]
    fn of_a_tablespace_only_this_versions_part_is_removed() {
        let scratch = Scratch::new("tblspc");
        let outside = scratch.0.join("outside");
        for name in ["PG_15_202209061", "PG_16_202307071"] {
            fs::create_dir(outside.join(name)).expect("create");
        }
        fs::write(outside.join("precious"), "x").expect("write");
        symlink(&outside, scratch.data().join("pg_tblspc/16384")).expect("link");
        empty(&plan(&scratch.data(), false).expect("allowed")).expect("emptied");
        let mut left: Vec<_> = fs::read_dir(&outside)
            .expect("listed")
            .map(|e| e.expect("entry").file_name().to_string_lossy().into_owned())
            .collect();
        left.sort();
        assert_eq!(left, ["PG_16_202307071", "precious"]);
    }

    #[test]
    fn only_another_live_primary_with_the_same_identifier_is_a_witness() {
        let good = Lineage {
            leader: "b".into(),
            at: MonoTime(0),
            is_primary: true,
            system_id: SystemId(7),
            history: TimelineHistory::first(),
        };
        assert_eq!(prove(&good, SystemId(7), "a", false), Ok(()));
        assert!(prove(&good, SystemId(7), "b", false).is_err());
        assert!(prove(&good, SystemId(8), "a", false).is_err());
        let standby = Lineage {
            is_primary: false,
            ..good
        };
        assert!(prove(&standby, SystemId(7), "a", false).is_err());
        // In a standby cluster the leader is one itself.
        assert_eq!(prove(&standby, SystemId(7), "a", true), Ok(()));
        assert!(prove(&standby, SystemId(7), "b", true).is_err());
    }
}
