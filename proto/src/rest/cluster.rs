//! `GET /cluster`: the members as the records describe them (`rest-api.md` 7). `gardenctl` prints its
//! tables from the same document.

use crate::config::{ClusterConfig, SyncMode};
use crate::dcs::{ClusterView, MemberRecord};
use crate::ids::MemberName;
use crate::wal::Lsn;
use serde_json::{Map, Value, json};

/// The port of a connection URL that names none.
const DEFAULT_PORT: u16 = 5432;

/// The document. Derived from the records alone, never from what a member runs as.
pub fn cluster_document(
    view: &ClusterView,
    config: &ClusterConfig,
    scope: &str,
) -> Map<String, Value> {
    let mut doc = Map::new();
    let members = view
        .members
        .iter()
        .map(|(name, entry)| Value::Object(member(view, config, name, &entry.record)))
        .collect();
    doc.insert("members".into(), members);
    if config.pause {
        doc.insert("pause".into(), json!(true));
    }
    if let Some(scheduled) = scheduled_switchover(view) {
        doc.insert("scheduled_switchover".into(), Value::Object(scheduled));
    }
    doc.insert("scope".into(), json!(scope));
    doc
}

/// `leader`, `standby_leader`, `sync_standby`, `quorum_standby` or `replica` (7.3).
pub fn member_role(view: &ClusterView, config: &ClusterConfig, name: &MemberName) -> &'static str {
    if view.leader_name() == Some(name) {
        return if config.standby_cluster.is_some() {
            "standby_leader"
        } else {
            "leader"
        };
    }
    match config.synchronous_mode {
        SyncMode::Quorum if view.sync.lists(name) => "quorum_standby",
        SyncMode::On if view.sync.lists(name) => "sync_standby",
        SyncMode::Off | SyncMode::On | SyncMode::Quorum => "replica",
    }
}

/// The state that is shown for a member of this role: a leader's own, else how it replicates (7.4).
pub fn member_state<'r>(role: &str, record: &'r MemberRecord) -> &'r str {
    let state = match &record.replication_state {
        Some(_) if role != "leader" => &record.replication_state,
        _ => &record.state,
    };
    state.as_deref().unwrap_or_default()
}

/// Host and port of a connection URL such as `postgres://192.0.2.1:5432/postgres`.
pub fn host_and_port(conn_url: &str) -> Option<(String, u16)> {
    let (_, rest) = conn_url.split_once("://")?;
    let authority = rest.split(['/', '?']).next()?;
    let address = authority
        .rsplit_once('@')
        .map_or(authority, |(_, address)| address);
    let (host, port) = match address.strip_prefix('[') {
        Some(bracketed) => {
            let (host, after) = bracketed.split_once(']')?;
            (host, after.strip_prefix(':'))
        }
        None => match address.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (address, None),
        },
    };
    let port = match port {
        Some(port) => port.parse().ok()?,
        None => DEFAULT_PORT,
    };
    (!host.is_empty()).then(|| (host.to_owned(), port))
}

fn member(
    view: &ClusterView,
    config: &ClusterConfig,
    name: &MemberName,
    record: &MemberRecord,
) -> Map<String, Value> {
    let role = member_role(view, config, name);
    let mut doc = Map::new();
    doc.insert("name".into(), json!(name));
    doc.insert("role".into(), json!(role));
    doc.insert("state".into(), json!(member_state(role, record)));
    doc.insert("api_url".into(), json!(record.api_url));
    if let Some((host, port)) = record.conn_url.as_deref().and_then(host_and_port) {
        doc.insert("host".into(), json!(host));
        doc.insert("port".into(), json!(port));
    }
    if let Some(timeline) = record.timeline {
        doc.insert("timeline".into(), json!(timeline.0));
    }
    if record.pending_restart {
        doc.insert("pending_restart".into(), json!(true));
    }
    if let Some(reason) = &record.pending_restart_reason {
        doc.insert("pending_restart_reason".into(), reason.clone());
    }
    if let Some(scheduled) = &record.scheduled_restart {
        doc.insert("scheduled_restart".into(), scheduled.clone());
    }
    if !record.tags.is_empty() {
        doc.insert("tags".into(), Value::Object(record.tags.clone()));
    }
    if view.leader_name() != Some(name) {
        let leader = view.status.optime.unwrap_or_default();
        put_lag(&mut doc, "receive_", record.receive_lsn, leader);
        put_lag(&mut doc, "replay_", record.replay_lsn, leader);
        put_lag(
            &mut doc,
            "",
            record.receive_lsn.max(record.replay_lsn),
            leader,
        );
    }
    doc
}

/// A known pair has its lag first, an unknown one its position: as readers have always seen it.
fn put_lag(doc: &mut Map<String, Value>, prefix: &str, position: Option<Lsn>, leader: Lsn) {
    let (lsn, lag) = (format!("{prefix}lsn"), format!("{prefix}lag"));
    match position.and_then(Lsn::some) {
        Some(position) => {
            doc.insert(lag, json!(leader.bytes_ahead_of(position)));
            doc.insert(lsn, json!(position.to_string()));
        }
        None => {
            doc.insert(lsn, json!("unknown"));
            doc.insert(lag, json!("unknown"));
        }
    }
}

fn scheduled_switchover(view: &ClusterView) -> Option<Map<String, Value>> {
    let request = view.failover.as_ref()?;
    let mut doc = Map::new();
    doc.insert("at".into(), json!(request.scheduled_at.as_ref()?.text));
    if let Some(leader) = &request.leader {
        doc.insert("from".into(), json!(leader));
    }
    if let Some(candidate) = &request.candidate {
        doc.insert("to".into(), json!(candidate));
    }
    Some(doc)
}

/// `GET /history`: the rows as they are stored, entries that lack their last parts included.
pub fn history_document(view: &ClusterView) -> Value {
    serde_json::from_str(&view.history.to_value()).unwrap_or_else(|_| json!([]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dcs::{Entry, Snapshot};
    use crate::ids::{LeaseId, Revision};
    use crate::rest::json::to_text;
    use expect_test::expect;

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

    fn document(entries: &[(&str, &str)]) -> String {
        let view = view(entries);
        let config = view
            .config
            .document()
            .map(ClusterConfig::parse)
            .unwrap_or_default();
        to_text(&cluster_document(&view, &config, "garden"))
    }

    #[test]
    fn leader_sync_standby_and_a_stopped_member_are_shown_as_published() {
        let shown = document(&[
            ("config", r#"{"synchronous_mode": true, "pause": true}"#),
            ("leader", "gd-a"),
            ("status", r#"{"optime":67419744}"#),
            ("sync", r#"{"leader":"gd-a","sync_standby":"GD-B"}"#),
            (
                "failover",
                r#"{"leader":"gd-a","member":"gd-b","scheduled_at":"2030-01-01T00:00:00+00:00"}"#,
            ),
            (
                "members/gd-a",
                r#"{"conn_url":"postgres://192.0.2.11/postgres","api_url":"http://192.0.2.11:8008/patroni",
                    "state":"running","role":"primary","timeline":5,"xlog_location":67419744}"#,
            ),
            (
                "members/gd-b",
                r#"{"conn_url":"postgres://[::1]:5433/postgres","api_url":"http://[::1]:8008/patroni",
                    "state":"running","replication_state":"streaming","role":"replica","timeline":5,
                    "tags":{"clonefrom":true},"pending_restart":true,
                    "receive_lsn":67419744,"replay_lsn":67419648}"#,
            ),
            ("members/gd-c", r#"{"state":"stopped","role":"replica"}"#),
        ]);
        expect![[r#"{"members": [{"name": "gd-a", "role": "leader", "state": "running", "api_url": "http://192.0.2.11:8008/patroni", "host": "192.0.2.11", "port": 5432, "timeline": 5}, {"name": "gd-b", "role": "sync_standby", "state": "streaming", "api_url": "http://[::1]:8008/patroni", "host": "::1", "port": 5433, "timeline": 5, "pending_restart": true, "tags": {"clonefrom": true}, "receive_lag": 0, "receive_lsn": "0/404BE60", "replay_lag": 96, "replay_lsn": "0/404BE00", "lag": 0, "lsn": "0/404BE60"}, {"name": "gd-c", "role": "replica", "state": "stopped", "api_url": null, "receive_lsn": "unknown", "receive_lag": "unknown", "replay_lsn": "unknown", "replay_lag": "unknown", "lsn": "unknown", "lag": "unknown"}], "pause": true, "scheduled_switchover": {"at": "2030-01-01T00:00:00+00:00", "from": "gd-a", "to": "gd-b"}, "scope": "garden"}"#]]
        .assert_eq(&shown);
    }

    #[test]
    fn a_standby_clusters_leader_shows_its_replication_state() {
        let shown = document(&[
            ("config", r#"{"standby_cluster": {"host": "h"}}"#),
            ("leader", "a"),
            (
                "members/a",
                r#"{"state":"running","replication_state":"streaming"}"#,
            ),
        ]);
        assert!(
            shown.contains(r#""role": "standby_leader", "state": "streaming""#),
            "{shown}"
        );
        assert!(!shown.contains("lag"), "a leader has no lag: {shown}");
    }

    #[test]
    fn a_position_ahead_of_the_leader_lags_by_nothing() {
        let shown = document(&[
            ("status", r#"{"optime":5}"#),
            ("members/a", r#"{"state":"running","receive_lsn":10}"#),
        ]);
        assert!(shown.contains(r#""lag": 0, "lsn": "0/A""#), "{shown}");
    }

    #[test]
    fn nothing_known_gives_an_empty_list() {
        assert_eq!(document(&[]), r#"{"members": [], "scope": "garden"}"#);
    }

    #[test]
    fn history_keeps_short_rows() {
        let view = view(&[(
            "history",
            r#"[[1,5,"no recovery target specified"],[2,6,"x","t","gd-b"]]"#,
        )]);
        assert_eq!(
            to_text(&history_document(&view)),
            r#"[[1, 5, "no recovery target specified"], [2, 6, "x", "t", "gd-b"]]"#
        );
    }

    #[test]
    fn hosts_are_read_from_connection_urls() {
        for (url, expected) in [
            ("postgres://h:1/db", Some(("h", 1))),
            ("postgres://u:p@h/db?x=1", Some(("h", 5432))),
            ("postgres://[fe80::1]", Some(("fe80::1", 5432))),
            ("postgres://:5432/", None),
            ("h:5432", None),
            ("postgres://h:port/", None),
        ] {
            let read = host_and_port(url);
            assert_eq!(read, expected.map(|(h, p)| (h.to_owned(), p)), "{url}");
        }
    }
}
