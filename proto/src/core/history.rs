//! The next value of `/history` (`ha-behaviour.md` 25, `dcs-layout.md` 3.7).
//!
//! PostgreSQL's own `.history` file tells when and why each timeline ended; the key repeats it for
//! those who cannot read the file, and adds who took over and at what time.

use crate::dcs::{HistoryLine, HistoryRecord};
use crate::ids::MemberName;
use crate::wal::{Lsn, Timeline, TimelineHistory};

/// Why a line stands for a number that no ancestor of the present timeline has.
const SKIPPED: &str = "the number is taken by another promotion";

/// Why a line stands for a promotion that has not ended yet.
const CLAIMED: &str = "claimed for a promotion";

/// A number for the next timeline that nobody has used (S4).
///
/// PostgreSQL takes the number after its own, so two members that are promoted one after the other
/// from the same timeline both make, say, timeline 2. If they also start at the same position, nothing
/// tells the two apart: `pg_rewind` sees no reason to work, and a standby never streams or, worse,
/// streams the wrong bytes. So whoever is about to be promoted first writes into `/history` which
/// number it takes, and stays above every number that stands there.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// The new timeline is to be higher than this.
    Above(Timeline),
    /// `/history` has to say so first.
    Write(HistoryRecord),
}

/// What [`claim`] has to know of the member that asks.
#[derive(Clone, Copy, Debug)]
pub struct Claimant<'a> {
    /// Who asks.
    pub me: &'a MemberName,
    /// Its timeline.
    pub timeline: Timeline,
    /// How far its WAL goes.
    pub position: Lsn,
    /// Now, as ISO text.
    pub now: &'a str,
    /// How many lines `/history` keeps; zero keeps all.
    pub keep: usize,
}

/// The claim of a member that holds the lock.
pub fn claim(key: &HistoryRecord, by: &Claimant<'_>) -> Claim {
    let ours = key.lines.last().filter(|line| {
        line.reason == CLAIMED
            && line.new_leader.as_deref() == Some(by.me.as_str())
            && line.timeline >= by.timeline
    });
    if let Some(line) = ours {
        return Claim::Above(line.timeline);
    }
    let known = key.cluster_timeline().unwrap_or(Timeline::FIRST);
    let taken = known.max(by.timeline);
    let mut lines: Vec<HistoryLine> = key.lines.clone();
    lines.retain(|line| line.timeline < taken);
    lines.push(HistoryLine {
        timeline: taken,
        lsn: by.position,
        reason: CLAIMED.to_owned(),
        timestamp: Some(by.now.to_owned()),
        new_leader: Some(by.me.as_str().to_owned()),
    });
    Claim::Write(HistoryRecord {
        present: true,
        lines: newest(lines, by.keep),
        modified: key.modified,
    })
}

fn newest(lines: Vec<HistoryLine>, keep: usize) -> Vec<HistoryLine> {
    let surplus = if keep == 0 {
        0
    } else {
        lines.len().saturating_sub(keep)
    };
    lines.into_iter().skip(surplus).collect()
}

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
            modified: key.modified,
        });
    }
    let (history, written_at) = local.filter(|(history, _)| history.timeline == timeline)?;
    let last = history.switches.last()?;
    let complete = key.lines.last().is_some_and(|line| {
        line.timeline.next() == timeline
            && line.lsn == last.switch
            && line.reason != CLAIMED
            && line.timestamp.is_some()
            && line.new_leader.is_some()
    });
    if complete {
        return None;
    }
    let mut lines: Vec<HistoryLine> = history
        .switches
        .iter()
        .map(|switch| {
            let known = key
                .lines
                .iter()
                .find(|line| line.timeline == switch.parent && line.lsn == switch.switch);
            let is_newest = switch.parent == last.parent;
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
    // Readers take the last line's number plus one for the present timeline.
    if last.parent.next() < timeline {
        lines.push(HistoryLine {
            timeline: Timeline(timeline.0.saturating_sub(1)),
            lsn: last.switch,
            reason: SKIPPED.to_owned(),
            timestamp: Some(written_at.clone()),
            new_leader: Some(me.as_str().to_owned()),
        });
    }
    Some(HistoryRecord {
        present: true,
        lines: newest(lines, keep),
        modified: key.modified,
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

    fn by<'a>(me: &'a MemberName, timeline: u32) -> Claimant<'a> {
        Claimant {
            me,
            timeline: Timeline(timeline),
            position: Lsn(77),
            now: "now",
            keep: 0,
        }
    }

    #[test]
    fn a_number_that_somebody_has_taken_is_not_taken_again() {
        let me = MemberName::from("pg1");
        let key = HistoryRecord::parse(r#"[[1,50,"why","then","pg2"]]"#).expect("well formed");
        let Claim::Write(written) = claim(&key, &by(&me, 1)) else {
            panic!("nobody has claimed anything");
        };
        expect![[r#"[[1,50,"why","then","pg2"],[2,77,"claimed for a promotion","now","pg1"]]"#]]
            .assert_eq(&written.to_value());
        assert_eq!(claim(&written, &by(&me, 1)), Claim::Above(Timeline(2)));
        let other = MemberName::from("pg0");
        assert!(matches!(claim(&written, &by(&other, 2)), Claim::Write(_)));
        assert!(
            matches!(claim(&written, &by(&me, 3)), Claim::Write(_)),
            "used up"
        );
    }

    #[test]
    fn a_skipped_number_shows_so_that_readers_still_tell_the_timeline() {
        let history = TimelineHistory::parse(Timeline(4), "1\t0/10\twhy\n").expect("well formed");
        let local = (history, "then".to_owned());
        let key = HistoryRecord::default();
        let written = next(&key, Timeline(4), Some(&local), &"pg1".into(), 0).expect("news");
        expect![[
            r#"[[1,16,"why","then","pg1"],[3,16,"the number is taken by another promotion","then","pg1"]]"#
        ]]
        .assert_eq(&written.to_value());
        assert_eq!(written.cluster_timeline(), Some(Timeline(4)));
        assert_eq!(
            next(&written, Timeline(4), Some(&local), &"pg1".into(), 0),
            None
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
