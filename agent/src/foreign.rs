//! What this crate reads that others wrote and that no public function reads by itself: programs of PostgreSQL, the
//! kernel, operators, other members. Only for `tests/fuzz_agent.rs`; nothing is decided here.
#![doc(hidden)]
#![allow(missing_docs, reason = "the functions behind these are documented")]

use crate::config::generate::dsn;
use crate::config::{AgentConfig, LogConfig};
use crate::ctl::{console, journals};
use crate::guardian::proc::Process;
use crate::http::HttpResponse;
use crate::postgres::connect::ConninfoKind;
use crate::postgres::pgdata::{self, PostmasterPid};
use crate::postgres::{conf, context, controldata, guc, startup, target, wipe};
use crate::rest::access::Network;
use proto::core::job::Upstream;
use proto::core::observation::PeerStatus;
use proto::rest::stamp::Stamp;
use proto::wal::Lsn;
use std::collections::BTreeMap;
use std::net::IpAddr;

pub fn percent_decode(text: &str) -> String {
    crate::config::percent_decode(text)
}

pub fn record_length(waldump: &str) -> Option<u64> {
    controldata::parse_record_length(waldump)
}

pub fn end_of_record(start: Lsn, length: u64, page: u64, segment: u64) -> Option<Lsn> {
    controldata::end_of_record(start, length, page, segment)
}

pub fn postmaster_pid(text: &str) -> Option<PostmasterPid> {
    pgdata::parse_postmaster_pid(text)
}

/// As the guardian reads `/proc/<pid>/stat`.
pub fn process(stat: &[u8]) -> Option<Process> {
    Process::parse(stat)
}

/// As the driver does: parent, and whether it is dead.
pub fn parent_of(stat: &str) -> Option<(i32, bool)> {
    pgdata::ProcessStat::parse(stat).map(|stat| (stat.parent, stat.dead))
}

pub fn without_recovery_settings(auto_conf: &str) -> String {
    conf::without_recovery_settings(auto_conf)
}

/// A value as it stands between quotes in `postgresql.conf`.
pub fn escaped(value: &str) -> String {
    conf::escape(value)
}

/// The setting that the server's program complains about.
pub fn complaint(line: &str) -> Option<String> {
    guc::Complaint::parse(line).map(|complaint| format!("{complaint:?}"))
}

pub fn addresses(conn_url: &str) -> Option<Vec<(String, u16)>> {
    target::parse_url(conn_url)
}

pub fn addresses_of_list(hosts: &str, ports: &str) -> Option<Vec<(String, u16)>> {
    target::host_list(hosts, ports)
}

pub fn conninfo(config: &AgentConfig, conn_url: &str) -> Option<String> {
    let upstream = Upstream::Member {
        name: "other".into(),
        conn_url: conn_url.to_owned(),
    };
    target::conninfo(
        config,
        &upstream,
        ConninfoKind::PrimaryConninfo,
        170_000,
        true,
    )
    .ok()
}

/// `key=value` words as libpq reads them.
pub fn keywords(conninfo: &str) -> Option<BTreeMap<String, String>> {
    dsn::keywords(conninfo)
}

/// What `--dsn` gives, without the password, or the sentence about it.
pub fn dsn(text: &str) -> Result<String, String> {
    let target = dsn::Target::parse(Some(text), |_| None);
    target
        .map(|target| format!("{target:?}"))
        .map_err(|error| error.to_string())
}

pub fn startup_packet(bytes: &[u8]) -> Option<Vec<u8>> {
    startup::with_replication(bytes)
}

pub fn mount_point(field: &[u8]) -> Vec<u8> {
    wipe::unescape(field)
}

pub fn major_version(printed: &str) -> Option<u32> {
    context::parse_version(printed)
}

/// Whether an entry of the allowlist means a network, and that one has the address.
pub fn admits(entry: &str, address: IpAddr) -> Option<bool> {
    Network::parse(entry).map(|network| network.contains(address))
}

pub fn peer_status(response: &HttpResponse) -> PeerStatus {
    crate::peers::parse_status(response)
}

pub fn validity(certificate: &[u8]) -> Option<(i64, i64)> {
    crate::tls::der::validity(certificate)
}

/// A line of the log as configured, and sentences about the configuration.
pub fn log_line(config: &LogConfig, message: &str) -> (String, Vec<String>) {
    crate::telemetry::line(config, message)
}

/// Steps of the last change of leadership in the journals of two members, and how long it took.
pub fn last_change(text: &str) -> Option<(usize, String)> {
    let change = journals::last_change(journals::parse(text, "asked"))?;
    Some((change.steps.len(), crate::ctl::timeline::told(&change)))
}

pub fn moment_at_the_console(text: &str) -> Option<Stamp> {
    console::parse_moment(text, &jiff::tz::TimeZone::UTC)
}
