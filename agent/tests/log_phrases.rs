//! The sentences that people, scripts and acceptance suites look for in the log (`log-phrases.md` 3) are
//! said, word for word, and at the level that is looked for. Reasons and messages of the core are
//! rendered; texts of the shell are looked for in its sources, and what the log makes of levels is tested
//! beside the log itself.

use proto::core::reason::Reason;
use std::path::{Path, PathBuf};

/// Where a sentence comes from.
enum From {
    /// A rule's sentence, logged at INFO when the decision changes.
    Rule,
    /// The text of this call in this file.
    Source(&'static str, &'static str),
}

/// A sentence in the parts between its values.
const PHRASES: &[(From, &[&str])] = &[
    (
        From::Source("agent/src/member/start.rs", "#[error("),
        &["Can't start; there is already a node named '", "' running"],
    ),
    (
        From::Source("proto/src/core/lead.rs", "LogLevel::Warning"),
        &[
            "No active replication connections from Patroni members and synchronous_mode_strict is requested",
        ],
    ),
    (
        From::Rule,
        &["wal position moved since last heart beat loop"],
    ),
    (
        From::Rule,
        &["following a different leader because I am not allowed to promote"],
    ),
    (
        From::Rule,
        &["no action. I am (", "), the leader with the lock"],
    ),
    (From::Rule, &["promoted self to leader"]),
    (
        From::Source("proto/src/core/election/verdict.rs", ""),
        &[
            " has equally tolerable WAL position and priority ",
            ", while this node has priority ",
        ],
    ),
    (
        From::Source("proto/src/core/election/verdict.rs", ""),
        &["Wal position of ", " is ahead of my wal position"],
    ),
    (
        From::Source("agent/src/config/effective/sections.rs", ""),
        &[
            "Conflicting configuration between ",
            " and ",
            "Defaulting to ",
        ],
    ),
    (
        From::Source("agent/src/telemetry/queue.rs", ""),
        &["QueueHandler has lost ", " log records"],
    ),
    (
        From::Source("agent/src/member/start.rs", "tracing::info!"),
        &["waiting on etcd"],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("the workspace")
        .to_owned()
}

/// A source without comments, continued strings in one piece.
fn code(path: &Path) -> String {
    let text =
        std::fs::read_to_string(path).unwrap_or_else(|err| panic!("{}: {err}", path.display()));
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let mut joined = String::new();
    let mut continued = false;
    for line in lines {
        let line = if continued { line.trim_start() } else { line };
        continued = line.ends_with('\\');
        joined.push_str(line.trim_end_matches('\\'));
        if !continued {
            joined.push('\n');
        }
    }
    joined
}

/// All parts, one after the other.
fn contains(text: &str, parts: &[&str]) -> bool {
    let mut rest = text;
    parts.iter().all(|part| match rest.split_once(part) {
        Some((_, after)) => {
            rest = after;
            true
        }
        None => false,
    })
}

#[test]
fn every_sentence_that_is_looked_for_is_said() {
    let mut missing = Vec::new();
    for (from, parts) in PHRASES {
        let said = match from {
            From::Rule => Reason::RULES
                .iter()
                .any(|(_, sentence)| contains(sentence, parts)),
            From::Source(file, call) => {
                let text = code(&root().join(file));
                text.contains(call) && contains(&text, parts)
            }
        };
        if !said {
            missing.push(parts.join("…"));
        }
    }
    assert!(missing.is_empty(), "nothing says:\n{}", missing.join("\n"));
}

#[test]
fn no_source_asks_for_a_report() {
    let mut open = vec![root().join("agent/src"), root().join("proto/src")];
    let mut seen = 0;
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory").flatten() {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|end| end == "rs") {
                seen += 1;
                let text = code(&path);
                assert!(
                    !text.contains("please report it as a BUG"),
                    "{}",
                    path.display()
                );
            }
        }
    }
    assert!(seen > 100, "{seen} sources");
}
