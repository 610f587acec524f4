//! Journals of several members as one story: which entries belong to the last change of leadership, and
//! what each of them was a step of. Pure; [`super::timeline`] fetches and prints.
//!
//! Readers forgive: an entry of another version may lack fields or have more of them, and a rule that is
//! not known here is a step of nothing.

use serde_json::Value;
use std::collections::BTreeMap;

/// One decision of one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Milliseconds since 1970, on that member's clock.
    pub wall_ms: i64,
    /// Who decided.
    pub member: String,
    /// The rule's id.
    pub rule: String,
    /// Its sentence.
    pub reason: String,
}

/// A step of a change of leadership.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Somebody noticed, or was told.
    Detected,
    /// The old leader can commit nothing more: it let go, or was cut off.
    Fenced,
    /// The new leader asked for the lock.
    Elected,
    /// It got the lock and promotes.
    Promoted,
    /// It leads, and its primary checks answer 200.
    Routed,
}

impl Step {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Detected => "detected",
            Self::Fenced => "fenced",
            Self::Elected => "elected",
            Self::Promoted => "promoted",
            Self::Routed => "routed",
        }
    }
}

/// A change of leadership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Who led before, when the journals tell.
    pub from: Option<String>,
    /// Who leads now.
    pub to: String,
    /// Its steps, as far as the journals tell, in the order of time.
    pub steps: Vec<(Step, Entry)>,
    /// Everything that all members decided meanwhile.
    pub entries: Vec<Entry>,
}

impl Change {
    /// Milliseconds from the first step to the last.
    pub fn took_ms(&self) -> i64 {
        let at = |step: Option<&(Step, Entry)>| step.map_or(0, |(_, entry)| entry.wall_ms);
        at(self.steps.last()).saturating_sub(at(self.steps.first()))
    }
}

/// A member decided to go on as it is.
const STEADY: &[&str] = &[
    "leading",
    "standby-leading",
    "paused-leading",
    "following",
    "paused-following",
    "withdraw",
    "handover-back",
    "handover-refused",
];

/// A member follows another.
const FOLLOWING: &[&str] = &["following", "paused-following"];

/// A member leads.
const LEADING: &[&str] = &["leading", "standby-leading", "paused-leading"];

/// A member has just given up, or is about to give up, what only a leader has.
const LED: &[&str] = &[
    "leading",
    "standby-leading",
    "paused-leading",
    "leading-blind",
    "failsafe",
    "recover-primary",
    "crash-failover",
    "handover-prepare",
    "handover-stop",
    "handover-wait",
    "releasing",
    "release-no-data",
    "release-start",
    "release-pre-promote",
    "release-watchdog",
    "release-pause",
    "lease-spent",
    "lost-lock",
    "no-lock",
];

const DETECTED: &[&str] = &[
    "suspect",
    "recover-primary",
    "crash-failover",
    "start-too-slow",
    "handover-prepare",
    "handover-stop",
    "releasing",
    "release-no-data",
    "release-start",
    "release-pre-promote",
    "release-watchdog",
    "release-pause",
    "lease-spent",
    "lost-lock",
    "no-lock",
    "leading-blind",
    "shutdown-stop",
    "shutdown-release",
    "race-ask",
    "race-claim",
    "race-candidate",
    "fenced-claim",
];

const FENCED: &[&str] = &[
    "handover-wait",
    "crash-failover",
    "releasing",
    "release-no-data",
    "release-start",
    "release-pre-promote",
    "release-watchdog",
    "release-pause",
    "lease-spent",
    "lost-lock",
    "no-lock",
    "shutdown-release",
    "wait-promises",
    "race-ask",
];

const ELECTED: &[&str] = &["race-claim", "race-candidate", "fenced-claim"];

const PROMOTED: &[&str] = &["promote"];

/// Reads JSON lines; those that say too little are left out.
pub fn parse(text: &str, asked: &str) -> Vec<Entry> {
    text.lines()
        .filter_map(|line| parse_line(line, asked))
        .collect()
}

fn parse_line(line: &str, asked: &str) -> Option<Entry> {
    let value: Value = serde_json::from_str(line).ok()?;
    let text = |key: &str| value.get(key).and_then(Value::as_str);
    Some(Entry {
        wall_ms: value.get("wall_ms")?.as_i64()?,
        member: text("member").unwrap_or(asked).to_owned(),
        rule: text("rule")?.to_owned(),
        reason: text("reason")
            .or(text("detail"))
            .unwrap_or_default()
            .to_owned(),
    })
}

/// The last change of leadership in these journals. Entries of one member must be in their order.
pub fn last_change(mut entries: Vec<Entry>) -> Option<Change> {
    // Stable, so that what a member decided within a millisecond stays in its order.
    entries.sort_by_key(|entry| entry.wall_ms);
    let is = |entry: &Entry, rules: &[&str]| rules.contains(&entry.rule.as_str());
    let decided = entries.iter().rposition(|entry| is(entry, PROMOTED))?;
    let to = entries.get(decided)?.member.clone();
    let before = entries.get(..decided).unwrap_or_default();
    let after = entries.get(decided..).unwrap_or_default();

    // A member's part in the story begins after it last was content with how things were.
    let mut begins: BTreeMap<&str, usize> = BTreeMap::new();
    let mut led: Option<&str> = None;
    for (at, entry) in before.iter().enumerate() {
        if is(entry, STEADY) {
            begins.insert(&entry.member, at + 1);
        }
        if is(entry, LED) && entry.member != to {
            led = Some(&entry.member);
        }
        // It led before somebody else did, whose journal is out of reach.
        if is(entry, FOLLOWING) && led == Some(&*entry.member) {
            led = None;
        }
    }
    let part = |at: usize, entry: &Entry| at >= begins.get(&*entry.member).copied().unwrap_or(0);
    let story: Vec<&Entry> = before
        .iter()
        .enumerate()
        .filter(|(at, entry)| part(*at, entry))
        .map(|(_, entry)| entry)
        .collect();

    let mut steps = Vec::new();
    let mut put = |step: Step, entry: Option<&Entry>| {
        steps.extend(entry.map(|entry| (step, entry.clone())));
    };
    put(
        Step::Detected,
        story.iter().copied().find(|entry| is(entry, DETECTED)),
    );
    put(
        Step::Fenced,
        story.iter().copied().rfind(|entry| is(entry, FENCED)),
    );
    let mine = |entry: &&&Entry| entry.member == to && is(entry, ELECTED);
    put(Step::Elected, story.iter().find(mine).copied());
    put(Step::Promoted, after.first());
    let routed = after
        .iter()
        .find(|entry| entry.member == to && is(entry, LEADING));
    put(Step::Routed, routed);
    steps.sort_by_key(|(_, entry)| entry.wall_ms);

    let start = steps.first().map_or(i64::MIN, |(_, entry)| entry.wall_ms);
    let end = routed
        .or(after.first())
        .map_or(i64::MAX, |entry| entry.wall_ms);
    let from = led.map(str::to_owned);
    entries.retain(|entry| (start..=end).contains(&entry.wall_ms));
    Some(Change {
        from,
        to,
        steps,
        entries,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use proto::core::Reason;

    fn entries(lines: &[(i64, &str, &str)]) -> Vec<Entry> {
        let entry = |(wall_ms, member, rule): &(i64, &str, &str)| Entry {
            wall_ms: *wall_ms,
            member: (*member).to_owned(),
            rule: (*rule).to_owned(),
            reason: String::new(),
        };
        lines.iter().map(entry).collect()
    }

    fn told(lines: &[(i64, &str, &str)]) -> (Option<String>, String, Vec<(&'static str, i64)>) {
        let change = last_change(entries(lines)).expect("a change of leadership");
        let steps = change
            .steps
            .iter()
            .map(|(step, entry)| (step.name(), entry.wall_ms));
        (change.from.clone(), change.to.clone(), steps.collect())
    }

    #[test]
    fn every_rule_that_is_named_exists() {
        let known: Vec<&str> = Reason::RULES.iter().map(|(id, _)| *id).collect();
        for rule in [
            STEADY, FOLLOWING, LEADING, LED, DETECTED, FENCED, ELECTED, PROMOTED,
        ]
        .concat()
        {
            assert!(known.contains(&rule), "{rule}");
        }
    }

    #[test]
    fn a_quorum_fenced_failover_is_told_by_the_standbys_alone() {
        let (from, to, steps) = told(&[
            (0, "b", "following"),
            (0, "c", "following"),
            (500, "b", "suspect"),
            (510, "b", "withdraw"),
            (520, "b", "following"),
            (9_000, "c", "suspect"),
            (9_010, "b", "suspect"),
            (9_040, "b", "wait-promises"),
            (9_060, "b", "fenced-claim"),
            (9_070, "b", "promote"),
            (9_071, "b", "job-running"),
            (9_150, "b", "leading"),
            (9_160, "c", "following"),
        ]);
        assert_eq!((from, to.as_str()), (None, "b"));
        assert_eq!(
            steps,
            [
                ("detected", 9_000),
                ("fenced", 9_040),
                ("elected", 9_060),
                ("promoted", 9_070),
                ("routed", 9_150)
            ]
        );
    }

    /// Its machine is lost, and with it the journal of who led last.
    #[test]
    fn who_led_before_the_last_leader_is_not_taken_for_it() {
        let (from, to, _) = told(&[
            (0, "a", "leading"),
            (0, "b", "following"),
            (100, "a", "recover-primary"),
            (900, "a", "following"),
            (9_010, "b", "suspect"),
            (9_040, "b", "wait-promises"),
            (9_060, "b", "fenced-claim"),
            (9_070, "b", "promote"),
            (9_150, "b", "leading"),
        ]);
        assert_eq!((from, to.as_str()), (None, "b"));
    }

    #[test]
    fn a_switchover_begins_with_the_old_leader() {
        let (from, _, steps) = told(&[
            (0, "a", "leading"),
            (0, "b", "following"),
            (100, "a", "handover-prepare"),
            (150, "a", "handover-stop"),
            (260, "a", "handover-wait"),
            (270, "a", "releasing"),
            (275, "b", "race-candidate"),
            (280, "b", "promote"),
            (340, "b", "leading"),
            (900, "a", "start-standby"),
        ]);
        assert_eq!(from.as_deref(), Some("a"));
        assert_eq!(steps.first(), Some(&("detected", 100)));
        assert_eq!(steps.get(1), Some(&("fenced", 270)));
        assert_eq!(steps.last(), Some(&("routed", 340)));
    }

    #[test]
    fn a_quiet_cluster_has_no_story() {
        assert_eq!(
            last_change(entries(&[(0, "a", "leading"), (0, "b", "following")])),
            None
        );
        assert_eq!(last_change(Vec::new()), None);
    }

    #[test]
    fn lines_of_other_versions_are_understood_or_left_out() {
        let text = "{\"wall_ms\": 5, \"rule\": \"leading\", \"detail\": \"x\", \"new\": [1]}\n\nnonsense\n{\"rule\": \"x\"}\n";
        let read = parse(text, "a");
        assert_eq!(read.len(), 1);
        assert_eq!(
            (read[0].member.as_str(), read[0].reason.as_str()),
            ("a", "x")
        );
    }

    proptest! {
        #[test]
        fn any_journal_is_told_in_order(
            lines in proptest::collection::vec((0..50i64, 0..3usize, 0..Reason::RULES.len()), 0..60),
        ) {
            let entries = lines.iter().map(|(at, member, rule)| Entry {
                wall_ms: *at,
                member: format!("m{member}"),
                rule: Reason::RULES[*rule].0.to_owned(),
                reason: String::new(),
            });
            if let Some(change) = last_change(entries.collect()) {
                let times: Vec<i64> = change.steps.iter().map(|(_, e)| e.wall_ms).collect();
                prop_assert!(times.is_sorted());
                prop_assert!(change.took_ms() >= 0);
            }
        }
    }
}
