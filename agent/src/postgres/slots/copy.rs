//! Copying the leader's logical slots to a standby (`ha-behaviour.md` 15.3): read their files over SQL,
//! stop, lay them down, start. Before the stop everything is looked at that could make a copy useless.

use super::super::connect::{self, ConnectError, Role};
use super::super::context::PgContext;
use super::super::shared::{JobCx, JobError};
use super::super::stop::{self, Stop};
use super::super::{controldata, pgdata, start};
use super::{STATEMENT_LIMIT, proof};
use proto::core::job::{Failure, JobEnd, Upstream};
use proto::wal::Lsn;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::Duration;
use tokio::time::Instant;

/// How long the standby may take to replay what the consumer has confirmed on the leader.
const REPLAY_LIMIT: Duration = Duration::from_secs(5);

/// `SLOT_MAGIC` (PostgreSQL source, `slot.c`).
const MAGIC: u32 = 0x0105_1CA1;

/// Where `restart_lsn` lies in a state file: four words of header, the name, four words, in all versions
/// from 11 to 18 (PostgreSQL source, `ReplicationSlotOnDisk`).
const RESTART_LSN: usize = 96;

/// A logical slot as it lies on the leader's disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotFile {
    /// Its name.
    pub name: String,
    /// `pg_replslot/<name>/state`; may lag behind what the leader knows, which only makes the copy
    /// start further back.
    pub state: Vec<u8>,
    /// What the consumer has confirmed on the leader.
    pub confirmed: Lsn,
}

impl SlotFile {
    /// The WAL that decoding starts from; `None` for what is no state file of a slot.
    fn restart_lsn(&self) -> Option<Lsn> {
        let word = self.state.get(..4)?.try_into().ok()?;
        if u32::from_ne_bytes(word) != MAGIC {
            return None;
        }
        let bytes = self.state.get(RESTART_LSN..)?.get(..8)?.try_into().ok()?;
        Lsn(u64::from_ne_bytes(bytes)).some()
    }
}

/// [`proto::core::job::Job::CopySlots`].
pub(in crate::postgres) async fn run(
    job: &JobCx,
    slots: &[String],
    leader: &Upstream,
    follow: &Upstream,
    timeout: Duration,
) -> Result<JobEnd, JobError> {
    job.phase("reading them from the leader").await;
    let found = fetch(job.ctx(), leader, slots)
        .await
        .map_err(|err| JobError::source(&err))?;
    let found = usable(job, found).await?;
    if found.is_empty() {
        let why = String::from("the leader has none of them that could be used here");
        return Err(JobError::Failed(Failure::SourceUnavailable(why)));
    }
    replayed(job, &found).await?;
    job.check()?;
    let stop = Stop {
        checkpoint_first: true,
        ..Stop::fast(None)
    };
    stop::halt(job, &stop).await?;
    // The checkpoint of the stop may have removed WAL.
    let found = usable(job, found).await?;
    let dir = job.ctx().data_dir();
    let mut copied = Vec::new();
    for slot in found {
        let (dir, name) = (dir.clone(), slot.name.clone());
        match job.blocking(move || install(&dir, &[slot])).await {
            Ok(()) => {
                tracing::info!(slot = name, "logical slot copied from the leader");
                copied.push(name);
            }
            // Whatever became of the copy, the standby comes back.
            Err(err) => tracing::error!(slot = name, ?err, "logical slot not copied"),
        }
    }
    let end = start::standby(job, follow, timeout).await?;
    let (shared, leader, follow) = (job.shared.clone(), leader.clone(), follow.clone());
    tokio::spawn(async move { proof::prove(&shared, &leader, &follow, &copied).await });
    Ok(end)
}

/// Those whose WAL is here: decoding reads it from `pg_wal` alone, never from the archive.
async fn usable(job: &JobCx, slots: Vec<SlotFile>) -> Result<Vec<SlotFile>, JobError> {
    let segment = controldata::read_all(job.ctx()).await?.wal_segment;
    let dir = job.ctx().data_dir().join("pg_wal");
    let names = move || -> io::Result<Vec<String>> {
        fs::read_dir(dir)?
            .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
            .collect()
    };
    let names = job.blocking(names).await?;
    let here = |slot: &SlotFile| {
        let start = slot.restart_lsn();
        let here = start.is_some_and(|start| has_segment(&names, start, segment));
        if !here {
            let from = start.unwrap_or_default();
            tracing::warn!(slot = slot.name, %from, "not copied yet: the WAL that it needs is not here");
        }
        here
    };
    Ok(slots.into_iter().filter(here).collect())
}

/// Whether a segment with this position is among the names, on any timeline.
fn has_segment(names: &[String], lsn: Lsn, segment: u64) -> bool {
    let Some(number) = lsn.0.checked_div(segment) else {
        return false;
    };
    let per_file = (1u64 << 32) / segment;
    let Some(high) = number.checked_div(per_file) else {
        return false;
    };
    let suffix = format!("{high:08X}{:08X}", number % per_file);
    names
        .iter()
        .any(|name| name.len() == 24 && name.get(8..).is_some_and(|place| place == suffix))
}

/// Waits until everything that the consumers have confirmed is replayed here. A slot that is ahead of
/// its server would skip what is written up to it after a promotion.
async fn replayed(job: &JobCx, slots: &[SlotFile]) -> Result<(), JobError> {
    let Some(goal) = slots.iter().map(|slot| slot.confirmed).max() else {
        return Ok(());
    };
    let client = connect::superuser(job.ctx()).await?;
    let until = Instant::now() + REPLAY_LIMIT;
    let sql = "SELECT pg_catalog.pg_last_wal_replay_lsn()::text";
    loop {
        let text: Option<String> = client.query_one(sql, &[]).await?.try_get(0)?;
        let replayed = text.and_then(|text| text.parse::<Lsn>().ok());
        if replayed.is_some_and(|at| at >= goal) {
            return Ok(());
        }
        if Instant::now() >= until {
            let why = format!("{goal} is confirmed on the leader and not replayed here yet");
            return Err(JobError::Failed(Failure::SourceUnavailable(why)));
        }
        job.pause(Duration::from_millis(100)).await?;
    }
}

/// Reads logical slots from the leader. Slots that are gone meanwhile are left out, and PostgreSQL's own
/// failover slots (17 and later), which a copy would keep it from synchronising.
pub async fn fetch(
    ctx: &PgContext,
    leader: &Upstream,
    names: &[String],
) -> Result<Vec<SlotFile>, ConnectError> {
    let client = connect::remote(ctx, leader, Role::Rewind).await?;
    let query = "SELECT slot_name::text, \
        pg_catalog.pg_read_binary_file('pg_replslot/' || slot_name || '/state'), \
        confirmed_flush_lsn::text \
        FROM pg_catalog.pg_replication_slots s \
        WHERE slot_type = 'logical' AND NOT temporary AND confirmed_flush_lsn IS NOT NULL \
        AND NOT COALESCE((pg_catalog.to_jsonb(s)->>'failover')::bool, false) \
        AND slot_name::text = ANY($1)";
    let rows = tokio::time::timeout(STATEMENT_LIMIT, client.query(query, &[&names]))
        .await
        .map_err(|_| ConnectError::Silent(format!("no answer within {STATEMENT_LIMIT:?}")))?
        .map_err(|err| connect::classify(&err))?;
    let file = |row: &tokio_postgres::Row| -> Result<SlotFile, ConnectError> {
        let confirmed: String = row.try_get(2).map_err(|err| connect::classify(&err))?;
        Ok(SlotFile {
            name: row.try_get(0).map_err(|err| connect::classify(&err))?,
            state: row.try_get(1).map_err(|err| connect::classify(&err))?,
            confirmed: confirmed
                .parse()
                .map_err(|_| ConnectError::Other(format!("not a position: {confirmed}")))?,
        })
    };
    rows.iter().map(file).collect()
}

/// Puts copied slots into the data directory of a server that is stopped: PostgreSQL reads them when it
/// starts. A directory without its file would keep PostgreSQL from starting, so both appear at once, by
/// the name that PostgreSQL itself clears away when it was interrupted (`slot.c`, `CreateSlotOnDisk`).
/// Blocks.
pub fn install(data_dir: &Path, slots: &[SlotFile]) -> io::Result<()> {
    for slot in slots {
        // The name becomes a path; PostgreSQL allows no others either.
        let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_';
        if slot.name.is_empty() || slot.name.len() > 63 || !slot.name.bytes().all(plain) {
            let text = format!("not a slot name: {:?}", slot.name);
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let mode = pgdata::file_mode(data_dir);
        let parent = data_dir.join("pg_replslot");
        let unfinished = parent.join(format!("{}.tmp", slot.name));
        match fs::remove_dir_all(&unfinished) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
            Ok(()) | Err(_) => {}
        }
        let dir_mode = if mode & 0o040 == 0 { 0o700 } else { 0o750 };
        fs::DirBuilder::new().mode(dir_mode).create(&unfinished)?;
        pgdata::write_durably(&unfinished.join("state"), &slot.state, mode)?;
        fs::rename(&unfinished, parent.join(&slot.name))?;
        fs::File::open(&parent)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(name: &str) -> SlotFile {
        SlotFile {
            name: name.into(),
            state: b"state".to_vec(),
            confirmed: Lsn(1),
        }
    }

    #[test]
    fn a_slot_name_cannot_leave_its_directory() {
        let err = install(Path::new("/nonexistent"), &[slot("../../x")]).expect_err("refused");
        assert_eq!(err.kind(), io::ErrorKind::InvalidData);
    }

    #[test]
    fn a_slot_appears_whole_and_never_over_another() {
        let dir = std::env::temp_dir().join(format!("garden-slots-{}", std::process::id()));
        let slots = dir.join("pg_replslot");
        // Left by a copy that was interrupted.
        fs::create_dir_all(slots.join("cdc.tmp")).expect("create");
        install(&dir, &[slot("cdc")]).expect("installed");
        assert_eq!(fs::read(slots.join("cdc/state")).expect("there"), b"state");
        assert!(!slots.join("cdc.tmp").exists());
        let again = SlotFile {
            state: b"other".to_vec(),
            ..slot("cdc")
        };
        install(&dir, &[again]).expect_err("it is there");
        assert_eq!(fs::read(slots.join("cdc/state")).expect("there"), b"state");
        fs::remove_dir_all(&dir).expect("remove");
    }

    #[test]
    fn wal_is_found_by_the_place_of_its_segment_on_any_timeline() {
        let names: Vec<String> = [
            "000000030000000200000001",
            "00000003.history",
            "archive_status",
        ]
        .map(str::to_owned)
        .into();
        let segment = 16 << 20;
        assert!(has_segment(&names, Lsn(0x2_0100_0028), segment));
        assert!(!has_segment(&names, Lsn(0x2_0200_0028), segment));
        assert!(!has_segment(&names, Lsn(0x1_0100_0028), segment));
        let gigabytes = ["000000010000000200000001".to_owned()];
        assert!(has_segment(&gigabytes, Lsn(0x2_4000_0000), 1 << 30));
        assert!(!has_segment(&names, Lsn(5), 0));
    }

    #[test]
    fn only_a_state_file_has_a_position() {
        assert_eq!(slot("cdc").restart_lsn(), None);
        let mut state = MAGIC.to_ne_bytes().to_vec();
        state.resize(RESTART_LSN, 0);
        state.extend(0x0200_0028u64.to_ne_bytes());
        let file = SlotFile {
            state,
            ..slot("cdc")
        };
        assert_eq!(file.restart_lsn(), Some(Lsn(0x0200_0028)));
    }
}
