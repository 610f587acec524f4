//! `GET /metrics` in Prometheus' text format (`rest-api.md` 10): the series of Patroni with their
//! names, types and labels, then our own under `garden_agent_`.

use super::Published;
use super::stamp::Stamp;
use super::status::{
    cluster_unlocked, pending_restart, replication_state, sample, shown_role, shown_state,
    sync_duty,
};
use crate::core::observation::SqlSample;
use crate::core::tenure;
use crate::dcs::{PgRole, PgState};
use crate::time::MonoTime;
use std::fmt::Display;

/// The state names of the comment beside `patroni_postgres_state`, by number.
const STATE_NAMES: [&str; 15] = [
    "initdb",
    "initdb_failed",
    "custom_bootstrap",
    "custom_bootstrap_failed",
    "creating_replica",
    "running",
    "starting",
    "bootstrap_starting",
    "start_failed",
    "restarting",
    "restart_failed",
    "stopping",
    "stopped",
    "stop_failed",
    "crashed",
];

struct Page {
    text: String,
    labels: String,
}

impl Page {
    fn head(&mut self, kind: &str, name: &str, help: &str, comment: &str) {
        self.text.push_str(&format!(
            "# HELP {name} {help}\n{comment}# TYPE {name} {kind}\n"
        ));
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.head("gauge", name, help, "");
        self.text
            .push_str(&format!("{name}{} {value}\n", self.labels));
    }

    fn flag(&mut self, name: &str, help: &str, value: bool) {
        self.gauge(name, help, u8::from(value));
    }

    fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.head("counter", name, help, "");
        self.text
            .push_str(&format!("{name}{} {value}\n", self.labels));
    }
}

/// The whole page. `failsafe_member`: we stand in the last `/failsafe` that was seen.
pub fn page(published: &Published, failsafe_member: bool, now: MonoTime) -> String {
    let settings = &published.settings;
    let (scope, name) = (escape(&settings.scope), escape(settings.me.as_str()));
    let labels = format!("{{scope=\"{scope}\",name=\"{name}\"}}");
    let mut page = Page {
        text: String::with_capacity(8192),
        labels,
    };
    server_part(&mut page, published);
    wal_part(&mut page, published);
    cluster_part(&mut page, published, failsafe_member);
    own_part(&mut page, published, now);
    page.text
}

/// A label value; a name with a quote in it must not break the page.
fn escape(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

fn version_number(version: &str) -> String {
    let part = |p: &str| {
        p.parse::<u32>()
            .map_or_else(|_| "00".into(), |n| format!("{n:02}"))
    };
    version.split('.').map(part).collect()
}

fn epoch(text: Option<&str>) -> String {
    let stamp = text.and_then(Stamp::parse);
    stamp
        .and_then(|s| s.epoch_text())
        .unwrap_or_else(|| "0".into())
}

fn server_part(page: &mut Page, published: &Published) {
    let version = version_number(&published.settings.version);
    page.gauge(
        "patroni_version",
        "Version as a number, two digits for each part.",
        version,
    );
    let running = shown_state(published) == PgState::Running.as_str();
    page.flag(
        "patroni_postgres_running",
        "1 while PostgreSQL accepts connections.",
        running,
    );
    let started = sample(published).map(|s| s.postmaster_start_time.as_str());
    page.gauge(
        "patroni_postmaster_start_time",
        "When the postmaster started, in seconds since 1970.",
        epoch(started),
    );
}

fn wal_part(page: &mut Page, published: &Published) {
    let sample = sample(published);
    let role = shown_role(published);
    let duty = sync_duty(published);
    let lsn = |read: fn(&SqlSample) -> u64, in_recovery| {
        sample
            .filter(|s| s.in_recovery == in_recovery)
            .map_or(0, read)
    };
    let replayed_at = sample.and_then(|s| s.replayed_timestamp.as_deref());
    page.flag(
        "patroni_primary",
        "1 if PostgreSQL runs as a primary.",
        role == PgRole::Primary,
    );
    page.counter(
        "patroni_xlog_location",
        "End of the flushed WAL of a primary, in bytes.",
        lsn(|s| s.flush_lsn.0, false),
    );
    page.flag(
        "patroni_standby_leader",
        "1 if this member leads a standby cluster.",
        role == PgRole::StandbyLeader,
    );
    page.flag(
        "patroni_replica",
        "1 if PostgreSQL runs as a replica.",
        role == PgRole::Replica,
    );
    page.flag(
        "patroni_sync_standby",
        "1 if this member is a synchronous standby.",
        duty == Some("sync_standby"),
    );
    page.flag(
        "patroni_quorum_standby",
        "1 if this member votes in quorum commits.",
        duty == Some("quorum_standby"),
    );
    page.counter(
        "patroni_xlog_received_location",
        "End of the WAL that a standby has received, in bytes.",
        lsn(|s| s.receive_lsn.some().unwrap_or(s.replay_lsn).0, true),
    );
    page.counter(
        "patroni_xlog_replayed_location",
        "End of the WAL that a standby has replayed, in bytes.",
        lsn(|s| s.replay_lsn.0, true),
    );
    page.gauge(
        "patroni_xlog_replayed_timestamp",
        "Time of the last replayed transaction, in seconds since 1970.",
        epoch(replayed_at),
    );
    page.flag(
        "patroni_xlog_paused",
        "1 while replay is paused.",
        sample.is_some_and(|s| s.in_recovery && s.replay_paused),
    );
    if let Some(sample) = sample {
        let state = replication_state(sample);
        page.flag(
            "patroni_postgres_streaming",
            "1 while PostgreSQL streams from its primary.",
            state == Some("streaming"),
        );
        page.flag(
            "patroni_postgres_in_archive_recovery",
            "1 while PostgreSQL replays from the archive.",
            state == Some("in archive recovery"),
        );
    }
}

fn cluster_part(page: &mut Page, published: &Published, failsafe_member: bool) {
    let settings = &published.settings;
    let sample = sample(published);
    page.gauge(
        "patroni_postgres_server_version",
        "Version of the server as a number.",
        sample.map_or(0, |s| s.server_version),
    );
    page.flag(
        "patroni_cluster_unlocked",
        "1 while no member holds the leader lock.",
        cluster_unlocked(published),
    );
    page.flag(
        "patroni_failsafe_mode_is_active",
        "1 while the members keep the primary going without the DCS.",
        published.failsafe_active,
    );
    page.flag(
        "patroni_failsafe_mode_enabled",
        "1 if failsafe mode is switched on.",
        settings.cluster.failsafe_mode,
    );
    page.flag(
        "patroni_failsafe_member",
        "1 if this member counts in failsafe mode.",
        failsafe_member,
    );
    page.gauge(
        "patroni_postgres_timeline",
        "Timeline of the server.",
        sample.and_then(|s| s.timeline).map_or(0, |t| t.0),
    );
    page.gauge(
        "patroni_dcs_last_seen",
        "When the DCS was last read completely, in seconds since 1970.",
        published.dcs_last_seen.0.div_euclid(1000),
    );
    page.flag(
        "patroni_pending_restart",
        "1 if a changed setting waits for a restart.",
        !pending_restart(published).is_empty(),
    );
    page.flag(
        "patroni_is_paused",
        "1 in maintenance mode.",
        published.paused,
    );
    let known = shown_state(published) == published.state.as_str();
    let number = if known { published.state as i64 } else { -1 };
    let values: Vec<String> = STATE_NAMES
        .iter()
        .enumerate()
        .map(|(i, name)| format!("{i}={name}"))
        .collect();
    page.head(
        "gauge",
        "patroni_postgres_state",
        "State of PostgreSQL as a number, -1 when it does not answer.",
        &format!("# Values: {}\n", values.join(", ")),
    );
    let labels = page.labels.clone();
    page.text
        .push_str(&format!("patroni_postgres_state{labels} {number}\n"));
    page.gauge(
        "patroni_failover_priority",
        "Priority in an election; 0 is never promoted.",
        settings.tags.failover_priority(),
    );
}

fn own_part(page: &mut Page, published: &Published, now: MonoTime) {
    let left = published
        .leader_until
        .map_or(0.0, |until| now.until(until).as_secs_f64());
    page.gauge(
        "garden_agent_lease_remaining_seconds",
        "Time for which this member may still act as leader; 0 without the lock.",
        left,
    );
    page.flag(
        "garden_agent_held_back",
        "1 while the primary endpoints answer 503 although the lock is held.",
        published.hold_back.is_some(),
    );
    page.flag(
        "garden_agent_job_running",
        "1 while long work runs.",
        published.job.is_some(),
    );
    page.flag(
        "garden_agent_watchdog_failed",
        "1 if a watchdog is required and unusable.",
        published.watchdog_failed,
    );
    page.gauge(
        "garden_agent_cycle_seconds",
        "Duration of the last cycle.",
        published.cycle_micros as f64 / 1e6,
    );
    page.gauge(
        "garden_agent_published_age_seconds",
        "Age of the status that all answers are made of.",
        now.since(published.at).as_secs_f64(),
    );
    let record = published.view.as_ref().and_then(|v| v.record.as_ref());
    page.gauge(
        "garden_agent_epoch",
        "Epoch of the lease record; 0 in a cluster that was never led by one.",
        record.map_or(0, |entry| entry.record.epoch.0),
    );
    page.flag(
        "garden_agent_record_lease",
        "1 while the cluster is led by the record, 0 while by the leader key.",
        published
            .view
            .as_ref()
            .is_some_and(|v| tenure::is_native(v)),
    );
    if !published.rule.is_empty() {
        let labels = page.labels.trim_end_matches('}').to_owned();
        page.head(
            "gauge",
            "garden_agent_rule",
            "1 for the rule of the last decision.",
            "",
        );
        page.text.push_str(&format!(
            "garden_agent_rule{labels},rule=\"{}\"}} 1\n",
            escape(&published.rule)
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{NOW, leader, replica};
    use super::*;

    fn value(page: &str, name: &str) -> Option<String> {
        let line = page
            .lines()
            .find(|line| line.starts_with(&format!("{name}{{")))?;
        line.rsplit_once(' ').map(|(_, value)| value.to_owned())
    }

    #[test]
    fn all_series_come_in_the_published_order_with_help_and_type() {
        let page = page(&leader(), true, NOW);
        let expected = "patroni_version patroni_postgres_running patroni_postmaster_start_time \
            patroni_primary patroni_xlog_location patroni_standby_leader patroni_replica \
            patroni_sync_standby patroni_quorum_standby patroni_xlog_received_location \
            patroni_xlog_replayed_location patroni_xlog_replayed_timestamp patroni_xlog_paused \
            patroni_postgres_streaming patroni_postgres_in_archive_recovery \
            patroni_postgres_server_version patroni_cluster_unlocked \
            patroni_failsafe_mode_is_active patroni_failsafe_mode_enabled patroni_failsafe_member \
            patroni_postgres_timeline patroni_dcs_last_seen patroni_pending_restart \
            patroni_is_paused patroni_postgres_state patroni_failover_priority";
        let samples: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("patroni_"))
            .filter_map(|line| line.split('{').next())
            .collect();
        assert_eq!(samples, expected.split_whitespace().collect::<Vec<_>>());
        for name in samples {
            let kind = if name.ends_with("_location") {
                "counter"
            } else {
                "gauge"
            };
            assert!(page.contains(&format!("# HELP {name} ")), "{name}");
            assert!(page.contains(&format!("# TYPE {name} {kind}\n")), "{name}");
        }
        assert!(page.ends_with('\n'));
        assert!(page.contains("\n# Values: 0=initdb, 1=initdb_failed, "));
    }

    #[test]
    fn values_are_those_of_the_status() {
        let leading = page(&leader(), true, NOW);
        for (name, expected) in [
            ("patroni_version", "040104"),
            ("patroni_postmaster_start_time", "1784887200.123456"),
            ("patroni_primary", "1"),
            ("patroni_xlog_location", "67395656"),
            ("patroni_xlog_replayed_timestamp", "0"),
            ("patroni_postgres_server_version", "160004"),
            ("patroni_failsafe_member", "1"),
            ("patroni_postgres_timeline", "5"),
            ("patroni_postgres_state", "5"),
            ("patroni_failover_priority", "1"),
            ("garden_agent_lease_remaining_seconds", "20"),
        ] {
            assert_eq!(value(&leading, name).as_deref(), Some(expected), "{name}");
        }
        assert!(leading.contains("patroni_primary{scope=\"garden\",name=\"gd-a\"} 1\n"));
        let following = page(&replica(), false, NOW);
        assert_eq!(
            value(&following, "patroni_postgres_streaming").as_deref(),
            Some("1")
        );
        assert_eq!(
            value(&following, "patroni_xlog_replayed_location").as_deref(),
            Some("67419648")
        );
    }

    #[test]
    fn a_server_that_does_not_answer_has_no_replication_series() {
        let mut published = replica();
        published.postgres = std::sync::Arc::default();
        let page = page(&published, false, NOW);
        assert_eq!(value(&page, "patroni_postgres_streaming"), None);
        assert_eq!(
            value(&page, "patroni_postgres_state").as_deref(),
            Some("-1")
        );
        assert_eq!(
            value(&page, "patroni_postmaster_start_time").as_deref(),
            Some("0")
        );
    }
}
