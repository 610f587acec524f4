//! Timeline history files: `pg_wal/<timeline>.history` (PostgreSQL documentation, "Timelines").

use super::pgdata::read_small;
use proto::wal::{Timeline, TimelineHistory};
use std::fs;
use std::path::Path;
use std::time::UNIX_EPOCH;

/// The newest history file in `pg_wal`, parsed, and its modification time as ISO text. `None` when
/// there is none, or the newest cannot be read or understood: an older one would be a wrong answer.
pub fn newest(data_dir: &Path) -> Option<(TimelineHistory, String)> {
    let wal = data_dir.join("pg_wal");
    let timeline = fs::read_dir(&wal)
        .ok()?
        .filter_map(|entry| timeline_of(&entry.ok()?.file_name().to_string_lossy()))
        .max()?;
    let path = wal.join(format!("{:08X}.history", timeline.0));
    let text = read_small(&path).ok()??;
    let history = TimelineHistory::parse(timeline, &String::from_utf8_lossy(&text)).ok()?;
    let modified = fs::metadata(&path).ok()?.modified().ok()?;
    let since = modified.duration_since(UNIX_EPOCH).ok()?;
    let stamp = jiff::Timestamp::from_microsecond(i64::try_from(since.as_micros()).ok()?).ok()?;
    let text = stamp.to_string();
    Some((history, format!("{}+00:00", text.trim_end_matches('Z'))))
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
}
