//! The table of readers; each has the directory of its name in `tests/corpus`.

mod config;
mod members;
mod postgres;
mod wire;

use crate::fuzz::{Answers, Seen, Target};
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

const fn all(
    name: &'static str,
    read: fn(&[u8]) -> Seen,
    words: &'static [&'static str],
    thousands: u64,
) -> Target {
    Target {
        name,
        read,
        answers: Answers::AcceptsAll,
        words,
        thousands,
    }
}

#[rustfmt::skip]
pub const TARGETS: [Target; 25] = [
    both("yaml", config::yaml, config::YAML_WORDS, 30),
    both("config_file", config::file, config::FILE_WORDS, 6),
    both("config_dynamic", config::dynamic, config::DYNAMIC_WORDS, 6),
    both("config_environment", config::environment, config::VARIABLES, 8),
    both("config_value", config::value, &["kB", "min", "0x", "[::1]:", "*:"], 40),
    all("config_patch", config::patch, &["null", "{\"a\":{}}"], 20),
    both("dsn", config::dsn, &["postgresql://", "hostaddr", "port", "%40"], 40),
    all("log_format", config::log_format, &["%(asctime)s", "%(levelname)-8s", "%%", "%Y", "%z", "%f"], 20),
    both("controldata", postgres::controldata, &[], 30),
    both("waldump", postgres::waldump, &["CHECKPOINT", "len (rec/tot):"], 30),
    both("postmaster_pid", postgres::postmaster_pid, &[], 20),
    both("proc_stat", postgres::proc_stat, &[") Z 1", ") S"], 30),
    both("complaint", postgres::complaint, &["FATAL:", "is outside the valid range for parameter", "parameter \""], 40),
    all("auto_conf", postgres::auto_conf, &["primary_conninfo", "recovery_target"], 30),
    all("conf_value", postgres::conf_value, &[], 20),
    both("conn_url", postgres::conn_url, &["postgres://", "postgresql:///", "target_session_attrs", "hostaddr"], 30),
    both("setting", postgres::setting, &["kB", "MB", "us", "0x", "1e"], 40),
    both("startup_packet", postgres::startup_packet, &[], 30),
    all("mount_point", postgres::mount_point, &["\\040", "\\134", "\\+12"], 20),
    both("member_url", members::url, &["https://", "[::1]", "@"], 30),
    both("member_status", members::status, &["\"wal\"", "\"master\"", "\"standby\""], 30),
    both("journal", members::journal, members::RULES, 30),
    both("certificate", members::certificate, &[], 40),
    both("allowlist", members::allowlist, &["/255.255.0.0", "::/0"], 30),
    both("request", wire::request, wire::WORDS, 1),
];

fn text(input: &[u8]) -> Cow<'_, str> {
    String::from_utf8_lossy(input)
}
