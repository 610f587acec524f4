//! Positions in the write-ahead log and the tree of timelines.
//!
//! Positions on different timelines have no order of their own: two servers at the same number may
//! hold different bytes. [`TimelineHistory`] says where a timeline left its parent, and
//! [`TimelineHistory::contains`] whether a position of an older timeline is part of it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A byte position in the write-ahead log. `0/0` is "none" in PostgreSQL, and here.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// No position.
    pub const NONE: Self = Self(0);

    /// `None` for `0/0`.
    pub fn some(self) -> Option<Self> {
        (self.0 != 0).then_some(self)
    }

    /// Bytes from `behind` to `self`; zero when `behind` is ahead.
    pub fn bytes_ahead_of(self, behind: Self) -> u64 {
        self.0.saturating_sub(behind.0)
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// Text that is not `X/Y` in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a WAL position: {0:?}")]
pub struct BadLsn(pub String);

impl FromStr for Lsn {
    type Err = BadLsn;
    fn from_str(text: &str) -> Result<Self, BadLsn> {
        let bad = || BadLsn(text.chars().take(40).collect());
        let (high, low) = text.trim().split_once('/').ok_or_else(bad)?;
        let part = |hex: &str| {
            let plain =
                !hex.is_empty() && hex.len() <= 8 && hex.bytes().all(|b| b.is_ascii_hexdigit());
            plain.then(|| u64::from_str_radix(hex, 16).ok()).flatten()
        };
        match (part(high), part(low)) {
            (Some(high), Some(low)) => Ok(Self(high << 32 | low)),
            _ => Err(bad()),
        }
    }
}

/// A branch of the WAL's history. The first is 1; each promotion starts a new one.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl Timeline {
    /// The timeline of a cluster that was never failed over.
    pub const FIRST: Self = Self(1);

    /// The one that a promotion would start at the earliest.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }
}

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One line of a `.history` file: `parent` ended at `switch`, for `reason`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Switch {
    /// The timeline that ended.
    pub parent: Timeline,
    /// The first byte that is no longer part of it.
    pub switch: Lsn,
    /// The text that PostgreSQL wrote, for people.
    pub reason: String,
}

/// A timeline and all its ancestors, as a `.history` file tells it (PostgreSQL documentation,
/// "Timelines", section 26.3.5).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimelineHistory {
    /// The timeline whose history it is.
    pub timeline: Timeline,
    /// Its ancestors, oldest first.
    pub switches: Vec<Switch>,
}

/// A history file that breaks the format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line} of the timeline history is not `timeline position reason`: {text:?}")]
pub struct BadHistory {
    /// Counted from one.
    pub line: usize,
    /// The beginning of what stood there.
    pub text: String,
}

impl TimelineHistory {
    /// A timeline without ancestors.
    pub fn first() -> Self {
        Self {
            timeline: Timeline::FIRST,
            switches: Vec::new(),
        }
    }

    /// Parses the content of `<timeline>.history`. Empty lines and `#` comments are skipped, as
    /// PostgreSQL's own reader does.
    pub fn parse(timeline: Timeline, text: &str) -> Result<Self, BadHistory> {
        let mut switches: Vec<Switch> = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let trimmed = line.trim();
            if trimmed.is_empty() || trimmed.starts_with('#') {
                continue;
            }
            let bad = || BadHistory {
                line: index + 1,
                text: trimmed.chars().take(80).collect(),
            };
            let mut words = trimmed.splitn(3, char::is_whitespace);
            let parent = words.next().and_then(|w| w.parse().ok()).ok_or_else(bad)?;
            let switch = words.next().and_then(|w| w.parse().ok()).ok_or_else(bad)?;
            let reason = words.next().unwrap_or_default().trim().to_owned();
            if switches.last().is_some_and(|last| last.parent.0 >= parent) || parent >= timeline.0 {
                return Err(bad());
            }
            switches.push(Switch {
                parent: Timeline(parent),
                switch,
                reason,
            });
        }
        Ok(Self { timeline, switches })
    }

    /// Where `parent` ended on the way to this timeline; `None` when it is no ancestor.
    pub fn switch_point(&self, parent: Timeline) -> Option<Lsn> {
        self.switches
            .iter()
            .find(|s| s.parent == parent)
            .map(|s| s.switch)
    }

    /// Whether a server at `lsn` of `timeline` can go on to this timeline: it is this timeline, or an
    /// ancestor that had not yet ended there.
    pub fn contains(&self, timeline: Timeline, lsn: Lsn) -> bool {
        timeline == self.timeline || self.switch_point(timeline).is_some_and(|end| lsn <= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn history_tells_where_each_ancestor_ended() {
        let text = "1\t0/3000148\tno recovery target specified\n\n2\t0/5000000\tbefore x\n";
        let history = TimelineHistory::parse(Timeline(3), text).expect("well formed");
        assert_eq!(history.switch_point(Timeline(2)), Some(Lsn(0x0500_0000)));
        assert!(history.contains(Timeline(1), Lsn(0x0300_0148)));
        assert!(!history.contains(Timeline(1), Lsn(0x0300_0149)));
        assert!(history.contains(Timeline(3), Lsn(u64::MAX)));
        assert!(!history.contains(Timeline(4), Lsn(1)));
    }

    #[test]
    fn broken_histories_are_refused_with_their_line() {
        for (text, line) in [
            ("x 0/1 r", 1),
            ("1 0/1 r\n1 0/2 r", 2),
            ("3 0/1 r", 1),
            ("1", 1),
        ] {
            let err = TimelineHistory::parse(Timeline(3), text).expect_err(text);
            assert_eq!(err.line, line, "{text}");
        }
    }

    #[test]
    fn positions_refuse_what_postgres_refuses() {
        for bad in [
            "",
            "/",
            "0/",
            "1/2/3",
            "0x1/2",
            "123456789/0",
            "-1/0",
            "g/0",
        ] {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn positions_print_and_parse(n in any::<u64>()) {
            prop_assert_eq!(Lsn(n).to_string().parse::<Lsn>(), Ok(Lsn(n)));
        }

        #[test]
        fn history_parser_never_panics(text in "\\PC*", tli in any::<u32>()) {
            let _ = TimelineHistory::parse(Timeline(tli), &text);
        }
    }
}
