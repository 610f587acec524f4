//! The keys that mean something, to tell people about those that do not. Patroni ignores unknown keys
//! silently; a typo then looks like a setting that does not work.

use super::keys;
use super::source::Origins;
use serde_json::{Map, Value};

/// Sections that mean something here beside [`keys::KEYS`]: other stores, which are refused elsewhere,
/// and what the control tool once had.
const OTHERS: &[&str] = &[
    "tags",
    "citus",
    "etcd",
    "consul",
    "zookeeper",
    "exhibitor",
    "kubernetes",
    "raft",
    "dcs_api",
];

/// Dynamic keys that Patroni ignores in a file (`configuration.md` 2.1).
const DYNAMIC_ONLY: &[&str] = &[
    "ttl",
    "loop_wait",
    "retry_timeout",
    "standby_cluster",
    "maximum_lag_on_failover",
    "maximum_lag_on_syncnode",
    "synchronous_mode",
    "synchronous_mode_strict",
    "synchronous_node_count",
    "failsafe_mode",
    "primary_start_timeout",
    "master_start_timeout",
    "primary_stop_timeout",
    "master_stop_timeout",
    "primary_race_backoff",
    "check_timeline",
    "max_timelines_history",
    "pause",
    "member_slots_ttl",
    "slots",
    "permanent_slots",
    "permanent_replication_slots",
    "ignore_slots",
];

/// A sentence for each key that means nothing.
pub(super) fn unknown_keys(doc: &Map<String, Value>, origins: &Origins) -> Vec<String> {
    let mut notes = Vec::new();
    let top = [keys::of("").as_slice(), OTHERS].concat();
    for key in doc.keys() {
        if DYNAMIC_ONLY.contains(&key.as_str()) {
            notes.push(format!(
                "{}: {key} is ignored here: it belongs to the dynamic configuration (gardenctl \
                 edit-config), which bootstrap.dcs starts",
                origins.of(key)
            ));
        } else if !top.contains(&key.as_str()) {
            notes.push(unknown(key, key, &top, origins));
        }
    }
    for section in ["log", "restapi", "ctl", "etcd3", "watchdog", "garden"] {
        let known = keys::of(section);
        let Some(map) = doc.get(section).and_then(Value::as_object) else {
            continue;
        };
        for key in map.keys().filter(|key| !known.contains(&key.as_str())) {
            notes.push(unknown(&format!("{section}.{key}"), key, &known, origins));
        }
    }
    if let Some(map) = doc.get("postgresql").and_then(Value::as_object) {
        let known = keys::of("postgresql");
        for (key, value) in map {
            if !known.contains(&key.as_str()) && !value.is_object() {
                notes.push(unknown(&format!("postgresql.{key}"), key, &known, origins));
            }
        }
        if map.contains_key("use_slots") {
            notes.push(format!(
                "{}: postgresql.use_slots is ignored here: it belongs to the dynamic configuration",
                origins.of("postgresql.use_slots")
            ));
        }
    }
    notes
}

fn unknown(path: &str, key: &str, known: &[&str], origins: &Origins) -> String {
    let hint = nearest(key, known)
        .map(|k| format!("; did you mean {k}?"))
        .unwrap_or_default();
    format!("{}: unknown key {path} is ignored{hint}", origins.of(path))
}

/// The known key that one could have meant: at most two letters away, and at most a third of them.
fn nearest<'k>(key: &str, known: &[&'k str]) -> Option<&'k str> {
    let length = key.chars().count();
    let limit = (length / 3).min(2);
    known
        .iter()
        // So far from it at least; it spares comparing a long text with everything, letter by letter.
        .filter(|candidate| candidate.chars().count().abs_diff(length) <= limit)
        .map(|candidate| (distance(key, candidate), *candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.chars().enumerate() {
        let mut next = vec![i + 1];
        for ((j, r), pair) in right.iter().enumerate().zip(row.windows(2)) {
            let (diagonal, above) = (pair.first().copied(), pair.last().copied());
            let replace = diagonal.unwrap_or(0) + usize::from(l != *r);
            let insert = next.get(j).copied().unwrap_or(0) + 1;
            next.push(replace.min(insert).min(above.unwrap_or(0) + 1));
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typo_has_a_suggestion_and_a_stranger_has_none() {
        let (top, watchdog) = (keys::of(""), keys::of("watchdog"));
        assert_eq!(nearest("postgresq", &top), Some("postgresql"));
        assert_eq!(nearest("safety_magrin", &watchdog), Some("safety_margin"));
        assert_eq!(nearest("monitoring", &top), None);
        assert_eq!(nearest("x", &top), None);
    }

    #[test]
    fn distance_counts_edits() {
        for (left, right, expected) in [
            ("", "", 0),
            ("a", "", 1),
            ("kitten", "sitting", 3),
            ("scope", "scpoe", 2),
        ] {
            assert_eq!(distance(left, right), expected, "{left} {right}");
        }
    }
}
