//! `pg_controldata`: the control file, read by PostgreSQL's own program, since its layout changes with
//! every major version.

use super::context::{PgContext, ProgramError, SHORT_PROGRAM_LIMIT};
use proto::core::observation::{ControlData, ControlState};
use proto::ids::SystemId;
use proto::wal::{Lsn, Timeline};
use std::collections::BTreeMap;

/// Why the control file could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The program failed.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// A line that must be there is missing or broken.
    #[error("pg_controldata printed no usable {0:?}")]
    Missing(&'static str),
}

/// Settings that a standby must not have lower than its primary (`configuration.md` 8.1), as the
/// control file knows them, by the names of the settings.
const SHARED_SETTINGS: [(&str, &str); 5] = [
    ("max_connections setting", "max_connections"),
    ("max_worker_processes setting", "max_worker_processes"),
    ("max_wal_senders setting", "max_wal_senders"),
    ("max_prepared_xacts setting", "max_prepared_transactions"),
    ("max_locks_per_xact setting", "max_locks_per_transaction"),
];

/// Everything that we take from the control file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Control {
    /// What rules read.
    pub data: ControlData,
    /// `max_connections` and its like, as of the newest WAL that was replayed.
    pub settings: BTreeMap<&'static str, i64>,
    /// Bytes of a page of WAL.
    pub wal_page: u64,
    /// Bytes of a segment of WAL.
    pub wal_segment: u64,
}

/// Reads the control file. After a clean shutdown `checkpoint_end` is filled in, too.
pub async fn read(ctx: &PgContext) -> Result<ControlData, ControlError> {
    let control = read_all(ctx).await?;
    let mut data = control.data.clone();
    if data.state == ControlState::ShutDown {
        data.checkpoint_end = record_end(ctx, &control).await;
    }
    Ok(data)
}

/// Reads the control file, without a look at the WAL.
pub async fn read_all(ctx: &PgContext) -> Result<Control, ControlError> {
    let dir = ctx.data_dir();
    let printed = ctx
        .run(
            "pg_controldata",
            &["-D", &dir.to_string_lossy()],
            SHORT_PROGRAM_LIMIT,
        )
        .await?;
    parse(&printed.stdout)
}

/// Where the latest checkpoint record ends, by `pg_waldump`; `None` when that cannot be said.
pub async fn checkpoint_end(ctx: &PgContext, control: &ControlData) -> Option<Lsn> {
    let all = read_all(ctx).await.ok()?;
    (all.data.checkpoint == control.checkpoint && all.data.timeline == control.timeline)
        .then_some(())?;
    record_end(ctx, &all).await
}

/// The length of the record comes from `pg_waldump`, which also checks its CRC; where it ends follows
/// from the page headers between (PostgreSQL source, `XLogBytePosToEndRecPtr`). The next record's
/// error message names the same position, but in words that differ between versions.
async fn record_end(ctx: &PgContext, control: &Control) -> Option<Lsn> {
    let start = control.data.checkpoint.some()?;
    let wal = ctx.data_dir().join("pg_wal");
    let (timeline, start_text) = (control.data.timeline.to_string(), start.to_string());
    let args = [
        "-p",
        &wal.to_string_lossy(),
        "-t",
        &timeline,
        "-s",
        &start_text,
        "-n",
        "1",
    ];
    let printed = ctx
        .run_any_status("pg_waldump", &args, SHORT_PROGRAM_LIMIT)
        .await
        .ok()?;
    let length = parse_record_length(&printed.stdout)?;
    end_of_record(start, length, control.wal_page, control.wal_segment)
}

/// The total length in `rmgr: XLOG        len (rec/tot):    114/   114, tx: …`.
pub(crate) fn parse_record_length(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.contains("CHECKPOINT"))?;
    let (_, lengths) = line.split_once("len (rec/tot):")?;
    lengths
        .split_once('/')?
        .1
        .split(',')
        .next()?
        .trim()
        .parse()
        .ok()
}

/// Where a record of `length` bytes that starts at `start` ends, counting the page headers that it
/// spans and the alignment behind it.
pub(crate) fn end_of_record(start: Lsn, length: u64, page: u64, segment: u64) -> Option<Lsn> {
    const SHORT_HEADER: u64 = 24;
    const LONG_HEADER: u64 = 40;
    const ALIGNMENT: u64 = 8;
    // Longer records than this are not checkpoints.
    const LENGTH_MAX: u64 = 1 << 20;
    if length > LENGTH_MAX || page <= LONG_HEADER || segment < page {
        return None;
    }
    let (mut at, mut left) = (start.0, length.checked_next_multiple_of(ALIGNMENT)?);
    loop {
        let room = page - at % page;
        if left <= room {
            return at.checked_add(left).map(Lsn);
        }
        left -= room;
        at = at.checked_add(room)?;
        at = at.checked_add(if at % segment == 0 {
            LONG_HEADER
        } else {
            SHORT_HEADER
        })?;
    }
}

/// Parses what `pg_controldata` prints with `LC_ALL=C`.
pub fn parse(text: &str) -> Result<Control, ControlError> {
    // Some names have apostrophes, none has a colon, and `newestCommitTsXid:0` has no blank.
    let lines: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.trim(), value.trim()))
        .collect();
    let field = |name: &'static str| lines.get(name).copied().ok_or(ControlError::Missing(name));
    let lsn = |name| {
        field(name)?
            .parse::<Lsn>()
            .map_err(|_| ControlError::Missing(name))
    };
    let timeline = |name| {
        field(name)?
            .parse()
            .map(Timeline)
            .map_err(|_| ControlError::Missing(name))
    };
    let number = |name| {
        field(name)?
            .parse::<u64>()
            .map_err(|_| ControlError::Missing(name))
    };
    let checksums = number("Data page checksum version")?;
    let data = ControlData {
        system_id: SystemId(number("Database system identifier")?),
        state: state(field("Database cluster state")?),
        timeline: timeline("Latest checkpoint's TimeLineID")?,
        checkpoint: lsn("Latest checkpoint location")?,
        redo: lsn("Latest checkpoint's REDO location")?,
        checkpoint_end: None,
        min_recovery_end: lsn("Minimum recovery ending location")?,
        min_recovery_timeline: timeline("Min recovery ending loc's timeline")?,
        rewindable: checksums != 0 || field("wal_log_hints setting")? == "on",
    };
    let settings = SHARED_SETTINGS
        .iter()
        .filter_map(|(line, setting)| Some((*setting, lines.get(line)?.parse().ok()?)))
        .collect();
    Ok(Control {
        data,
        settings,
        wal_page: number("WAL block size")?,
        wal_segment: number("Bytes per WAL segment")?,
    })
}

fn state(text: &str) -> ControlState {
    match text {
        "starting up" => ControlState::StartingUp,
        "shut down" => ControlState::ShutDown,
        "shut down in recovery" => ControlState::ShutDownInRecovery,
        "shutting down" => ControlState::ShuttingDown,
        "in crash recovery" => ControlState::InCrashRecovery,
        "in archive recovery" => ControlState::InArchiveRecovery,
        "in production" => ControlState::InProduction,
        _ => ControlState::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;
    use proptest::prelude::*;

    /// As PostgreSQL 15 prints it; later versions add lines (18: `Default char data signedness`) and
    /// pad the names wider, so the parser must depend on neither.
    const SAMPLE: &str = "\
pg_control version number:            1300
Database system identifier:           7711909859395666414
Database cluster state:               shut down in recovery
pg_control last modified:             Wed Nov 25 01:08:56 2026
Latest checkpoint location:           0/1511A88
Latest checkpoint's REDO location:    0/1511A50
Latest checkpoint's REDO WAL file:    000000010000000000000001
Latest checkpoint's TimeLineID:       3
Latest checkpoint's PrevTimeLineID:   2
Latest checkpoint's newestCommitTsXid:0
Minimum recovery ending location:     0/1600000
Min recovery ending loc's timeline:   4
wal_log_hints setting:                off
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
WAL block size:                       8192
Bytes per WAL segment:                16777216
Data page checksum version:           1
";

    #[test]
    fn the_lines_that_matter_are_read() {
        expect![[r#"
            Control {
                data: ControlData {
                    system_id: SystemId(
                        7711909859395666414,
                    ),
                    state: ShutDownInRecovery,
                    timeline: Timeline(
                        3,
                    ),
                    checkpoint: Lsn(
                        22092424,
                    ),
                    redo: Lsn(
                        22092368,
                    ),
                    checkpoint_end: None,
                    min_recovery_end: Lsn(
                        23068672,
                    ),
                    min_recovery_timeline: Timeline(
                        4,
                    ),
                    rewindable: true,
                },
                settings: {
                    "max_connections": 100,
                    "max_locks_per_transaction": 64,
                    "max_prepared_transactions": 0,
                    "max_wal_senders": 10,
                    "max_worker_processes": 8,
                },
                wal_page: 8192,
                wal_segment: 16777216,
            }
        "#]]
        .assert_debug_eq(&parse(SAMPLE).expect("complete"));
    }

    #[test]
    fn wider_padding_and_new_lines_change_nothing() {
        let later: String = SAMPLE
            .lines()
            .map(|line| line.replacen(':', ":      ", 1) + "\n")
            .chain([String::from(
                "Default char data signedness:         signed\n",
            )])
            .collect();
        assert_eq!(
            parse(&later).expect("later"),
            parse(SAMPLE).expect("complete")
        );
    }

    #[test]
    fn a_missing_line_is_named() {
        let cut = SAMPLE.replace("Latest checkpoint location", "Latest somewhere");
        let err = parse(&cut).expect_err("incomplete");
        assert_eq!(
            err.to_string(),
            "pg_controldata printed no usable \"Latest checkpoint location\""
        );
    }

    #[test]
    fn records_end_behind_the_page_headers_that_they_span() {
        let end = |start, length| end_of_record(Lsn(start), length, 8192, 16 << 20);
        // Measured: CHECKPOINT_SHUTDOWN of 114 bytes at 0/1511B00, next record expected at 0/1511B78.
        assert_eq!(end(0x0151_1B00, 114), Some(Lsn(0x0151_1B78)));
        assert_eq!(end(8192 - 120, 114), Some(Lsn(8192)), "fits exactly");
        assert_eq!(
            end(8192 - 104, 114),
            Some(Lsn(8192 + 24 + 16)),
            "short header"
        );
        assert_eq!(
            end((16 << 20) - 104, 114),
            Some(Lsn((16 << 20) + 40 + 16)),
            "long header"
        );
        assert_eq!(end(u64::MAX - 4, 114), None);
    }

    #[test]
    fn record_length_is_read_from_waldump() {
        let line = "rmgr: XLOG        len (rec/tot):    114/   114, tx:          0, lsn: 0/01511B00, \
                    prev 0/01511A88, desc: CHECKPOINT_SHUTDOWN redo 0/1511B00; tli 1; shutdown\n";
        assert_eq!(parse_record_length(line), Some(114));
        assert_eq!(
            parse_record_length("pg_waldump: error: could not find a valid record"),
            None
        );
    }

    proptest! {
        #[test]
        fn parsers_never_panic(text in "\\PC*", start in any::<u64>(), length in any::<u64>()) {
            let _ = parse(&text);
            let _ = parse_record_length(&text);
            let _ = end_of_record(Lsn(start), length, 8192, 16 << 20);
        }
    }
}
