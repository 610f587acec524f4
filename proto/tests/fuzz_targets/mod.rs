//! The table of readers; each has the directory of its name in `tests/corpus`.

mod dcs;
mod decision;
mod requests;
mod selftest;
mod texts;

use crate::fuzz::{Answers, Seen, Target};
use serde::Serialize;
use serde_json::{Map, Value};
use std::borrow::Cow;

const fn both(
    name: &'static str,
    read: fn(&[u8]) -> Seen,
    words: &'static [&'static str],
    thousands: u64,
) -> Target {
    Target {
        name,
        read,
        answers: Answers::Both,
        words,
        thousands,
    }
}

const fn all(name: &'static str, read: fn(&[u8]) -> Seen, thousands: u64) -> Target {
    Target {
        name,
        read,
        answers: Answers::AcceptsAll,
        words: &[],
        thousands,
    }
}

#[rustfmt::skip]
pub const TARGETS: [Target; 23] = [
    both("dcs_member", dcs::member, dcs::MEMBER_WORDS, 30),
    both("dcs_initialize", dcs::initialize, &[], 20),
    both("dcs_config", dcs::config, dcs::CONFIG_WORDS, 60),
    both("dcs_status", dcs::status, &[], 30),
    both("dcs_history", dcs::history, &[], 30),
    both("dcs_failover", dcs::failover, &[], 30),
    both("dcs_sync", dcs::sync, &[], 30),
    both("dcs_failsafe", dcs::failsafe, &[], 20),
    both("dcs_record", dcs::record, &[], 30),
    both("dcs_fence", dcs::fence, &[], 20),
    both("dcs_key", dcs::key, &["members/", "fence/"], 20),
    both("dcs_snapshot", dcs::snapshot, dcs::CONFIG_WORDS, 30),
    both("decision", decision::decision, decision::WORDS, 4),
    both("wal_history", texts::history, &[], 40),
    both("wal_lsn", texts::lsn, &[], 30),
    both("sync_names", texts::names, &["ANY", "FIRST", "first 2 (", "*", "\"\""], 60),
    both("moment", texts::moment, &["UTC", "GMT", "Sat, 13 Jul 2024 15:09:59 -0400"], 40),
    both("size", texts::size, &["kB", "MB", "GB", "TB", "ms", "us", "min", "0x"], 40),
    both("guardian_request", texts::guardian_request, &[], 40),
    both("guardian_message", texts::guardian_message, &[], 40),
    all("query", requests::query, 30),
    both("restart_body", requests::restart, requests::WORDS, 30),
    both("handover_body", requests::handover, requests::WORDS, 30),
];

/// Values in etcd and answers of programs are read so everywhere.
fn text(input: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(input)
}

fn object(input: &[u8]) -> Option<Map<String, Value>> {
    match serde_json::from_slice(input) {
        Ok(Value::Object(map)) => Some(map),
        Ok(_) | Err(_) => None,
    }
}

/// Whether two values are the same for a reader. A number with a fraction may change in its last digit when it is
/// written and read, and nothing depends on that.
fn same<T: Serialize>(left: &T, right: &T) -> bool {
    let value = |of: &T| serde_json::to_value(of).expect("plain data");
    alike(&value(left), &value(right))
}

fn alike(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Array(left), Value::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(l, r)| alike(l, r))
        }
        (Value::Object(left), Value::Object(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|((k, l), (q, r))| k == q && alike(l, r))
        }
        (Value::Number(l), Value::Number(r)) if l.is_f64() && r.is_f64() => {
            let (l, r) = (l.as_f64().unwrap_or(0.0), r.as_f64().unwrap_or(0.0));
            (l - r).abs() <= l.abs() * 1e-14
        }
        _ => left == right,
    }
}

/// What a value may grow to when it is written anew: `\u0000` for a byte, and the names of fields.
fn fits(written: &str, input: &[u8]) {
    let limit = 8 * input.len() + 512;
    assert!(
        written.len() <= limit,
        "{} bytes from {}",
        written.len(),
        input.len()
    );
}

/// Longest sentence about a value that cannot be read: it goes to the log with every change of the key.
const PROBLEM_MAX: usize = 400;

fn told_briefly(problem: &str) {
    assert!(
        problem.len() <= PROBLEM_MAX,
        "a problem of {} bytes",
        problem.len()
    );
}
