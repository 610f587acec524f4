//! Timeline history files: `pg_wal/<timeline>.history` (PostgreSQL documentation, "Timelines").

use super::pgdata::{file_mode, read_small, write_durably};
use proto::wal::{Timeline, TimelineHistory};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

/// The newest history file in `pg_wal`, parsed, and its modification time as ISO text. `None` when
/// there is none, or the newest cannot be read or understood: an older one would be a wrong answer.
pub fn newest(data_dir: &Path) -> Option<(TimelineHistory, String)> {
    let timeline = timelines(data_dir).ok()?.into_iter().max()?;
    let path = file(data_dir, timeline);
    let text = read_small(&path).ok()??;
    let history = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text)).ok()?;
    let modified = fs::metadata(&path).ok()?.modified().ok()?;
    let since = modified.duration_since(UNIX_EPOCH).ok()?;
    let stamp = jiff::Timestamp::from_microsecond(i64::try_from(since.as_micros()).ok()?).ok()?;
    let text = stamp.to_string();
    Some((history, format!("{}+00:00", text.trim_end_matches('Z'))))
}

/// What stands in a history file of ours: no ancestors, so that nobody goes there.
const TAKEN: &[u8] = b"# This number is taken by another member.\n";

/// Makes every timeline up to `above` look taken, so that a promotion starts a higher one (S4).
///
/// PostgreSQL starts the first timeline after its own for which it finds no history file (PostgreSQL
/// source, `findNewestTimeLine`); and a standby fetches the files of all numbers in between from its
/// primary, so they stay.
///
/// # Errors
/// The directory or a file.
pub fn occupy(data_dir: &Path, above: Timeline) -> io::Result<()> {
    let mode = file_mode(data_dir);
    for number in 2..=above.0 {
        let path = file(data_dir, Timeline(number));
        if !path.exists() {
            write_durably(&path, TAKEN, mode)?;
        }
    }
    Ok(())
}

/// Takes back what [`occupy`] wrote for a promotion that did not happen: a standby that finds such a
/// file above its own timeline would not start ("requested timeline is not a child of this server's
/// history").
///
/// # Errors
/// The directory or a file.
pub fn vacate(data_dir: &Path) -> io::Result<()> {
    let mut numbers = timelines(data_dir)?;
    numbers.sort_unstable();
    for number in numbers.into_iter().rev() {
        let path = file(data_dir, number);
        if read_small(&path)?.as_deref() != Some(TAKEN) {
            return Ok(());
        }
        fs::remove_file(path)?;
    }
    Ok(())
}

fn file(data_dir: &Path, timeline: Timeline) -> PathBuf {
    data_dir
        .join("pg_wal")
        .join(format!("{:08X}.history", timeline.0))
}

/// All that have a history file.
fn timelines(data_dir: &Path) -> io::Result<Vec<Timeline>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(data_dir.join("pg_wal"))? {
        found.extend(timeline_of(&entry?.file_name().to_string_lossy()));
    }
    Ok(found)
}

/// The timeline in `0000000A.history`; not of `….history.tmp` or a WAL segment.
fn timeline_of(name: &str) -> Option<Timeline> {
    let hex = name.strip_suffix(".history")?;
    let plain = hex.len() == 8 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    plain
        .then(|| u32::from_str_radix(hex, 16).ok().map(Timeline))
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::time::WallTime;

    #[test]
    fn only_complete_history_files_count() {
        assert_eq!(timeline_of("0000000A.history"), Some(Timeline(10)));
        for name in [
            "0000000A.history.tmp",
            "A.history",
            "000000010000000000000001",
            "+000000A.history",
        ] {
            assert_eq!(timeline_of(name), None, "{name}");
        }
    }

    #[test]
    fn the_newest_file_is_read_with_its_time() {
        let dir = std::env::temp_dir().join(format!("garden-history-{}", std::process::id()));
        let wal = dir.join("pg_wal");
        fs::create_dir_all(&wal).expect("create");
        assert_eq!(newest(&dir), None);
        fs::write(
            wal.join("00000002.history"),
            "1\t0/3000000\tno recovery target\n",
        )
        .expect("write");
        fs::write(
            wal.join("0000000A.history"),
            "1\t0/3000000\tx\n2\t0/4000000\ty\n",
        )
        .expect("write");
        let (history, time) = newest(&dir).expect("found");
        assert_eq!(history.timeline, Timeline(10));
        assert_eq!(history.switches.len(), 2);
        assert!(
            time.ends_with("+00:00") && WallTime::parse(&time).is_some(),
            "{time}"
        );
        fs::remove_dir_all(&dir).expect("clean up");
    }

    #[test]
    fn numbers_above_the_newest_real_timeline_are_given_back() {
        let dir = std::env::temp_dir().join(format!("garden-taken-{}", std::process::id()));
        fs::create_dir_all(dir.join("pg_wal")).expect("create");
        fs::write(file(&dir, Timeline(3)), "1\t0/1000000\twhy\n").expect("write");
        occupy(&dir, Timeline(5)).expect("occupy");
        assert_eq!(timelines(&dir).expect("read").len(), 4);
        vacate(&dir).expect("vacate");
        let mut left = timelines(&dir).expect("read");
        left.sort_unstable();
        assert_eq!(
            left,
            [Timeline(2), Timeline(3)],
            "2 is below a real one and stays"
        );
        fs::remove_dir_all(&dir).expect("remove");
    }
}
