//! The table of members that operators look at: what each cell says, from the records alone, so that it
//! can be shown while every agent is down (`cli.md` 6). How it is drawn is the control tool's affair.

use crate::config::{ClusterConfig, Tags};
use crate::dcs::{ClusterView, MemberRecord, Snapshot};
use crate::ids::MemberName;
use crate::rest::cluster::{host_and_port, member_role, member_state};
use crate::rest::stamp::Stamp;
use crate::wal::Lsn;
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};

/// The port that is not worth showing.
const DEFAULT_PORT: u16 = 5432;

/// One member.
#[derive(Clone, Debug, PartialEq)]
pub struct MemberRow {
    /// Its name.
    pub name: MemberName,
    /// Levels below the root of the replication tree; the leader is at zero.
    pub depth: usize,
    /// Host, with the port where that is needed to tell members apart.
    pub host: String,
    /// `Leader`, `Standby Leader`, `Sync Standby`, `Quorum Standby` or `Replica`.
    pub role: String,
    /// As published.
    pub state: String,
    /// Its timeline, when known.
    pub timeline: Option<u32>,
    /// How far it has received WAL.
    pub receive: WalCell,
    /// How far it has replayed WAL.
    pub replay: WalCell,
    /// A restart of its PostgreSQL is pending.
    pub pending_restart: bool,
    /// Each parameter that needs it, and `old->new`.
    pub pending_reasons: Vec<(String, String)>,
    /// When a restart is scheduled, and for which versions.
    pub scheduled_restart: Option<String>,
    /// Its tags.
    pub tags: Map<String, Value>,
}

/// A position and its distance from the leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalCell {
    /// The leader has none.
    Leader,
    /// Not published.
    Unknown,
    /// Published.
    At {
        /// The position.
        lsn: Lsn,
        /// Distance from the leader, in whole megabytes.
        lag_mb: u64,
    },
}

/// What stands in `/initialize`, for the caption.
pub fn identity(snapshot: &Snapshot) -> &str {
    match snapshot.entries.get("initialize").map(|e| e.value.as_str()) {
        None => "uninitialized",
        Some("") => "initializing",
        Some(text) => text,
    }
}

/// All members by name.
pub fn rows(view: &ClusterView, config: &ClusterConfig) -> Vec<MemberRow> {
    let with_port = ports_matter(view);
    view.members
        .iter()
        .map(|(name, entry)| row(view, config, name, &entry.record, with_port))
        .collect()
}

/// All members as a tree: the leader, then each member below the one it replicates from. Members that
/// wait for each other in a circle belong nowhere and are left out.
pub fn tree(view: &ClusterView, config: &ClusterConfig) -> Vec<MemberRow> {
    let rows: BTreeMap<MemberName, MemberRow> = rows(view, config)
        .into_iter()
        .map(|row| (row.name.clone(), row))
        .collect();
    let leader = view.leader_name().filter(|name| rows.contains_key(*name));
    let mut below: BTreeMap<Option<&MemberName>, Vec<&MemberName>> = BTreeMap::new();
    for (name, row) in rows.iter().filter(|(name, _)| leader != Some(*name)) {
        let source = Tags(row.tags.clone()).replicatefrom();
        let parent = source
            .filter(|source| Some(source) != leader)
            .and_then(|source| rows.get_key_value(&source).map(|(name, _)| name));
        below.entry(parent).or_default().push(name);
    }
    let mut ordered = Vec::new();
    if let Some(row) = leader.and_then(|name| rows.get(name)) {
        ordered.push(row.clone());
    }
    // Depth first with a stack of our own: names come from outside, and so does their number.
    let children = |parent: Option<&MemberName>, depth: usize| {
        let names = below.get(&parent).map(Vec::as_slice).unwrap_or_default();
        names
            .iter()
            .rev()
            .map(|name| (*name, depth))
            .collect::<Vec<_>>()
    };
    let mut stack = children(None, 1);
    while let Some((name, depth)) = stack.pop() {
        ordered.extend(rows.get(name).map(|row| MemberRow {
            depth,
            ..row.clone()
        }));
        stack.extend(children(Some(name), depth + 1));
    }
    ordered
}

/// The lines below the table.
pub fn footer(view: &ClusterView, config: &ClusterConfig) -> Vec<String> {
    let mut lines = Vec::new();
    if config.pause {
        lines.push(String::from(" Maintenance mode: on"));
    }
    let request = view.failover.as_ref();
    if let Some((request, at)) = request.and_then(|r| Some((r, r.scheduled_at.as_ref()?))) {
        let at = Stamp::parse(&at.text).map_or_else(|| at.text.clone(), |stamp| stamp.render('T'));
        lines.push(format!(" Switchover scheduled at: {at}"));
        let names = [("from", &request.leader), ("to", &request.candidate)];
        for (label, name) in names {
            lines.extend(name.as_ref().map(|name| format!("{label:>24}: {name}")));
        }
    }
    lines
}

/// Bytes as whole megabytes; exactly half of one goes to the even neighbour.
pub fn megabytes(bytes: u64) -> u64 {
    const MB: u64 = 1 << 20;
    let (whole, rest) = (bytes / MB, bytes % MB);
    match rest.cmp(&(MB / 2)) {
        std::cmp::Ordering::Less => whole,
        std::cmp::Ordering::Equal => whole + whole % 2,
        std::cmp::Ordering::Greater => whole + 1,
    }
}

/// Ports are shown when one is unusual, or when two members share a host.
fn ports_matter(view: &ClusterView) -> bool {
    let mut hosts = BTreeSet::new();
    view.members
        .values()
        .filter_map(|entry| entry.record.conn_url.as_deref().and_then(host_and_port))
        .any(|(host, port)| port != DEFAULT_PORT || !hosts.insert(host))
}

fn row(
    view: &ClusterView,
    config: &ClusterConfig,
    name: &MemberName,
    record: &MemberRecord,
    with_port: bool,
) -> MemberRow {
    let role = member_role(view, config, name);
    let host = match record.conn_url.as_deref().and_then(host_and_port) {
        Some((host, port)) if with_port => format!("{host}:{port}"),
        Some((host, _)) => host,
        None => String::new(),
    };
    let state = member_state(role, record).to_owned();
    let (receive, replay) = wal(view, name, record, &state);
    MemberRow {
        name: name.clone(),
        depth: 0,
        host,
        role: title(role),
        timeline: record.timeline.map(|timeline| timeline.0),
        receive,
        replay,
        pending_restart: record.pending_restart,
        pending_reasons: pending_reasons(record),
        scheduled_restart: scheduled_restart(record),
        tags: record.tags.clone(),
        state,
    }
}

fn title(role: &str) -> String {
    let word = |word: &str| {
        let mut chars = word.chars();
        let first = chars.next().map(|c| c.to_ascii_uppercase());
        first.into_iter().chain(chars).collect::<String>()
    };
    role.split('_').map(word).collect::<Vec<_>>().join(" ")
}

fn wal(
    view: &ClusterView,
    name: &MemberName,
    record: &MemberRecord,
    state: &str,
) -> (WalCell, WalCell) {
    if view.leader_name() == Some(name) {
        return (WalCell::Leader, WalCell::Leader);
    }
    let leader = view.status.optime.unwrap_or_default();
    let cell = |lsn: Option<Lsn>| match lsn {
        Some(lsn) => WalCell::At {
            lsn,
            lag_mb: megabytes(leader.bytes_ahead_of(lsn)),
        },
        None => WalCell::Unknown,
    };
    // Older agents publish one position only.
    match (record.receive_lsn, record.replay_lsn) {
        (None, None) if state == "streaming" => (cell(record.xlog_location), WalCell::Unknown),
        (None, None) => (WalCell::Unknown, cell(record.xlog_location)),
        (receive, replay) => (cell(receive), cell(replay)),
    }
}

fn pending_reasons(record: &MemberRecord) -> Vec<(String, String)> {
    let reasons = record.pending_restart_reason.as_ref();
    let Some(reasons) = reasons.and_then(Value::as_object) else {
        return Vec::new();
    };
    let change = |reason: &Value| {
        let side = |key: &str| reason.get(key).map_or_else(String::new, shown);
        format!("{}->{}", side("old_value"), side("new_value"))
    };
    reasons
        .iter()
        .map(|(parameter, reason)| (parameter.clone(), change(reason)))
        .collect()
}

/// A parameter's value; numbers and flags appear as Python prints them.
fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::from("None"),
        Value::Bool(true) => String::from("True"),
        Value::Bool(false) => String::from("False"),
        other => other.to_string(),
    }
}

fn scheduled_restart(record: &MemberRecord) -> Option<String> {
    let scheduled = record.scheduled_restart.as_ref()?;
    let text = |key: &str| scheduled.get(key).and_then(Value::as_str);
    let mut shown = text("schedule")?.to_owned();
    if let Some(version) = text("postgres_version").filter(|v| !v.is_empty()) {
        shown.push_str(" if version < ");
        shown.push_str(version);
    }
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcs::Entry;
    use crate::ids::{LeaseId, Revision};

    fn view(entries: &[(&str, &str)]) -> ClusterView {
        let mut snapshot = Snapshot::default();
        for (key, value) in entries {
            let entry = Entry {
                value: (*value).to_owned(),
                lease: LeaseId(1),
                created: Revision(1),
                modified: Revision(1),
            };
            snapshot.apply_put(key, entry);
        }
        ClusterView::read(&snapshot)
    }

    fn names(rows: &[MemberRow]) -> Vec<String> {
        let shown = |row: &MemberRow| format!("{}{}", "+".repeat(row.depth), row.name);
        rows.iter().map(shown).collect()
    }

    fn tree_of(entries: &[(&str, &str)]) -> Vec<String> {
        names(&tree(&view(entries), &ClusterConfig::default()))
    }

    #[test]
    fn half_a_megabyte_goes_to_the_even_neighbour() {
        let half = 1u64 << 19;
        for (halves, expected) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 2), (7, 4)] {
            assert_eq!(megabytes(halves * half), expected, "{halves} halves");
        }
        assert_eq!(megabytes(half + 1), 1);
        assert_eq!(megabytes(u64::MAX), 1 << 44);
    }

    #[test]
    fn the_tree_follows_replicatefrom_below_the_leader() {
        let from = |source: &str| format!(r#"{{"tags":{{"replicatefrom":"{source}"}}}}"#);
        let shown = tree_of(&[
            ("leader", "b"),
            ("members/a", &from("c")),
            ("members/b", "{}"),
            ("members/c", &from("b")),
            ("members/d", &from("a")),
            ("members/e", &from("gone")),
            ("members/x", &from("y")),
            ("members/y", &from("x")),
        ]);
        assert_eq!(
            shown,
            ["b", "+c", "++a", "+++d", "+e"],
            "x and y wait for each other"
        );
    }

    #[test]
    fn without_a_leader_everybody_hangs_below_nothing() {
        assert_eq!(
            tree_of(&[("members/a", "{}"), ("members/b", "{}")]),
            ["+a", "+b"]
        );
        assert_eq!(tree_of(&[("leader", "z"), ("members/a", "{}")]), ["+a"]);
    }

    #[test]
    fn an_old_member_publishes_one_position() {
        let rows = |state: &str| {
            let value = format!(r#"{{"xlog_location":10,"replication_state":"{state}"}}"#);
            let view = view(&[("members/a", &value), ("status", r#"{"optime":3145738}"#)]);
            let row = rows(&view, &ClusterConfig::default()).remove(0);
            (row.receive, row.replay)
        };
        let at = WalCell::At {
            lsn: Lsn(10),
            lag_mb: 3,
        };
        assert_eq!(rows("streaming"), (at, WalCell::Unknown));
        assert_eq!(rows("in archive recovery"), (WalCell::Unknown, at));
    }

    #[test]
    fn ports_appear_when_they_tell_something() {
        let hosts = |first: &str, second: &str| {
            let value =
                |address: &str| format!(r#"{{"conn_url":"postgres://{address}/postgres"}}"#);
            let view = view(&[("members/a", &value(first)), ("members/b", &value(second))]);
            let rows = rows(&view, &ClusterConfig::default());
            rows.into_iter().map(|row| row.host).collect::<Vec<_>>()
        };
        assert_eq!(hosts("h:5432", "i"), ["h", "i"]);
        assert_eq!(hosts("h:5432", "i:1"), ["h:5432", "i:1"]);
        assert_eq!(hosts("h", "h"), ["h:5432", "h:5432"]);
    }
}
