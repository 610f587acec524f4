//! What a whole run must have reached: every rule of the core, every kind of fault, and the moments that
//! the simulator marks. What cannot be reached stands here with its reason; if it is reached after all,
//! the reason is wrong.

use super::faults::Kind;
use proto::core::Reason;
use std::collections::BTreeMap;

/// Rules that no schedule can reach.
const OUT_OF_THE_WORLD: &[(&str, &str)] = &[
    (
        "standby-leading",
        "the world has no remote primary that a standby cluster could follow",
    ),
    ("copy-slots", "the world has no replication slots"),
];

/// Moments in which a protocol shows what it is for.
const MARKS: &[(&str, &str)] = &[
    ("fenced-claim-won", "a takeover by promises was committed"),
    (
        "old-primary-cut-off",
        "a primary that was cut off still ran",
    ),
    ("own-record-adopted", "an agent found its own record"),
    (
        "renewal-found-in-record",
        "a renewal of unknown outcome had been committed",
    ),
    (
        "read-after-crash",
        "clients read what a crash recovery made visible",
    ),
    ("same-number-refused", "two timelines of one number met"),
    ("receiver-hangs", "a WAL receiver waited for nobody"),
    ("receiver-ended", "such a one was ended"),
    ("wipe", "data was thrown away"),
    ("job-failed", "a job failed"),
    ("operator-copies-anew", "a person had a member copied anew"),
];

/// Moments too rare to be asked of every run; the table shows them.
const RARE: &[&str] = &[
    "read-of-the-past",
    "wal-fork",
    "operator-names-candidate",
    "operator-resumes-again",
    "operator-changes-again",
    "operator-empties-directory",
    "bootstrap-set-aside",
    "old-primary-restarts",
    "stranger-starts",
];

/// All that must be reached, with what it means.
fn wanted() -> impl Iterator<Item = (&'static str, &'static str)> {
    let rules = Reason::RULES.iter().copied();
    let faults = Kind::ALL.iter().map(|kind| (kind.text(), "a fault"));
    rules.chain(faults).chain(MARKS.iter().copied())
}

/// One line for each thing that is wanted and not reached, or was thought to be out of reach.
pub fn gaps(reached: &BTreeMap<&'static str, u64>) -> Vec<String> {
    let excused = |id: &str| OUT_OF_THE_WORLD.iter().any(|(known, _)| *known == id);
    let missed = wanted()
        .filter(|(id, _)| !excused(id) && !reached.contains_key(id))
        .map(|(id, text)| format!("never reached: {id} ({text})"));
    let surprises = OUT_OF_THE_WORLD
        .iter()
        .filter(|(id, _)| reached.contains_key(id))
        .map(|(id, why)| format!("reached, although {why}: {id}"));
    missed.chain(surprises).collect()
}

/// The table: faults, marks, then rules, each with how often it was reached.
pub fn table(reached: &BTreeMap<&'static str, u64>) -> String {
    let line = |id: &str| format!("{:>12}  {id}\n", reached.get(id).unwrap_or(&0));
    let faults: String = Kind::ALL.iter().map(|kind| line(kind.text())).collect();
    let marks = MARKS.iter().map(|(id, _)| *id).chain(RARE.iter().copied());
    let marks: String = marks.map(line).collect();
    let rules: String = Reason::RULES.iter().map(|(id, _)| line(id)).collect();
    format!("faults\n{faults}moments\n{marks}rules of the core\n{rules}")
}
