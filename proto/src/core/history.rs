//! The next value of `/history` (`ha-behaviour.md` 25, `dcs-layout.md` 3.7).
//!
//! PostgreSQL's own `.history` file tells when and why each timeline ended; the key repeats it for
//! those who cannot read the file, and adds who took over and at what time.

use crate::dcs::{HistoryLine, HistoryRecord};
use crate::ids::MemberName;
use crate::wal::{Timeline, TimelineHistory};

/// What the running primary should write to `/history`; `None` when the key is right as it is, or when
/// the history file of the present timeline is not there yet.
///
/// `local` is the newest local history file with its time of modification as ISO text. `keep` limits
/// the number of lines; zero keeps all.
pub fn next(
    key: &HistoryRecord,
    timeline: Timeline,
    local: Option<&(TimelineHistory, String)>,
    me: &MemberName,
    keep: usize,
) -> Option<HistoryRecord> {
    if timeline <= Timeline::FIRST {
        // A new cluster under an old name: its predecessor's timelines mean nothing.
        let stale = !key.lines.is_empty();
        return stale.then(|| HistoryRecord {
            present: true,
            lines: Vec::new(),
        });
    }
    let (history, written_at) = local.filter(|(history, _)| history.timeline == timeline)?;
    let newest = history.switches.last()?;
    let complete = key.lines.last().is_some_and(|line| {
        line.timeline.next() == timeline && line.timestamp.is_some() && line.new_leader.is_some()
    });
    if complete {
        return None;
    }
    let lines: Vec<HistoryLine> = history
        .switches
        .iter()
        .map(|switch| {
            let known = key
                .lines
                .iter()
                .find(|line| line.timeline == switch.parent && line.lsn == switch.switch);
            let is_newest = switch.parent == newest.parent;
            HistoryLine {
                timeline: switch.parent,
                lsn: switch.switch,
                reason: switch.reason.clone(),
                timestamp: if is_newest {
                    Some(written_at.clone())
                } else {
                    known.and_then(|line| line.timestamp.clone())
                },
                new_leader: if is_newest {
                    Some(me.as_str().to_owned())
                } else {
                    known.and_then(|line| line.new_leader.clone())
                },
            }
        })
        .collect();
    let surplus = if keep == 0 {
        0
    } else {
        lines.len().saturating_sub(keep)
    };
    let lines = lines.into_iter().skip(surplus).collect();
    Some(HistoryRecord {
        present: true,
        lines,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    const FILE: &str = "1\t0/1000000\tno recovery target specified\n\
                        2\t0/2000000\tno recovery target specified\n";

    fn local(timeline: u32) -> Option<(TimelineHistory, String)> {
        let history = TimelineHistory::parse(Timeline(timeline), FILE).expect("well formed");
        Some((history, "2026-01-02T03:04:05.678901+00:00".into()))
    }

    fn check(key: &str, timeline: u32, keep: usize, expected: Expect) {
        let key = match key {
            "" => HistoryRecord::default(),
            text => HistoryRecord::parse(text).expect("well formed"),
        };
        let wanted = next(
            &key,
            Timeline(timeline),
            local(3).as_ref(),
            &"pg1".into(),
            keep,
        );
        let shown = wanted.map_or("-".into(), |record| {
            record
                .to_value()
                .replace("no recovery target specified", "why")
        });
        expected.assert_eq(&shown);
    }

    #[test]
    fn the_key_repeats_the_file_and_adds_time_and_leader() {
        check(
            "",
            3,
            0,
            expect![[
                r#"[[1,16777216,"why"],[2,33554432,"why","2026-01-02T03:04:05.678901+00:00","pg1"]]"#
            ]],
        );
    }

    #[test]
    fn older_lines_keep_what_was_known_of_them() {
        check(
            r#"[[1,16777216,"why","then","pg0"]]"#,
            3,
            0,
            expect![[
                r#"[[1,16777216,"why","then","pg0"],[2,33554432,"why","2026-01-02T03:04:05.678901+00:00","pg1"]]"#
            ]],
        );
        check(
            r#"[[1,7,"another past","then","pg0"]]"#,
            3,
            0,
            expect![[
                r#"[[1,16777216,"why"],[2,33554432,"why","2026-01-02T03:04:05.678901+00:00","pg1"]]"#
            ]],
        );
    }

    #[test]
    fn only_the_last_lines_are_kept() {
        check(
            r#"[[1,16777216,"why","then","pg0"]]"#,
            3,
            1,
            expect![[r#"[[2,33554432,"why","2026-01-02T03:04:05.678901+00:00","pg1"]]"#]],
        );
    }

    #[test]
    fn a_complete_key_stays_and_a_short_line_is_completed() {
        check(r#"[[2,33554432,"why","then","pg0"]]"#, 3, 0, expect!["-"]);
        check(
            r#"[[2,33554432,"why"]]"#,
            3,
            0,
            expect![[
                r#"[[1,16777216,"why"],[2,33554432,"why","2026-01-02T03:04:05.678901+00:00","pg1"]]"#
            ]],
        );
    }

    #[test]
    fn without_the_file_of_the_timeline_nothing_is_written() {
        check("", 4, 0, expect!["-"]);
        let none = next(
            &HistoryRecord::default(),
            Timeline(3),
            None,
            &"pg1".into(),
            0,
        );
        assert_eq!(none, None);
    }

    #[test]
    fn the_first_timeline_clears_what_an_earlier_cluster_left() {
        check("", 1, 0, expect!["-"]);
        check("[]", 1, 0, expect!["-"]);
        check(r#"[[2,33554432,"why","then","pg0"]]"#, 1, 0, expect!["[]"]);
    }
}
