//! The checks. Each says at least one thing, so that the table shows what was looked at.

use super::super::outlook;
use super::{Agent, Finding, Level, Patient};
use proto::cluster_table::identity;
use proto::config::SyncMode;
use proto::dcs::{ConfigRecord, Initialize, MemberRecord, RecordState};
use proto::ids::{Epoch, MemberName};
use serde_json::Value;
use std::collections::BTreeMap;

/// A clock that is further off than this confuses people and schedules; leases do not read it. The
/// answers tell whole seconds.
const CLOCK_SECONDS_MAX: i64 = 2;

/// All of them.
pub fn all(patient: &Patient<'_>) -> Vec<Finding> {
    let checks: [fn(&Patient<'_>, &mut Notes); 13] = [
        configuration,
        records,
        identifier,
        leader,
        lease,
        dynamic,
        agents,
        servers,
        replication,
        synchronous,
        candidates,
        pending,
        moving,
    ];
    let mut notes = Notes::default();
    for check in checks {
        check(patient, &mut notes);
    }
    notes.0
}

/// Collects findings.
#[derive(Default)]
struct Notes(Vec<Finding>);

impl Notes {
    fn add(&mut self, check: &'static str, level: Level, text: impl Into<String>) {
        let text = text.into();
        self.0.push(Finding { check, level, text });
    }

    /// Says that all is well when this check has said nothing else.
    fn else_ok(&mut self, check: &'static str, text: impl Into<String>) {
        if self.0.iter().all(|finding| finding.check != check) {
            self.add(check, Level::Ok, text);
        }
    }
}

fn configuration(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "local configuration";
    for note in &patient.notes {
        notes.add(CHECK, Level::Warn, note.clone());
    }
    notes.else_ok(CHECK, "every key is known");
}

/// Only where a member is Patroni.
fn moving(patient: &Patient<'_>, notes: &mut Notes) {
    let cluster = patient.cluster;
    let ours = |(_, record): (_, &MemberRecord)| record.capabilities.is_some_and(|c| c.record);
    if cluster.members().all(ours) {
        return;
    }
    for (level, text) in super::moving::differences(&cluster.config, cluster.view.config.document())
    {
        notes.add("moving from Patroni", level, text);
    }
}

fn records(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "records in etcd";
    let view = &patient.cluster.view;
    for garbled in &view.garbled {
        // These two stop the cluster; what else cannot be read counts as absent.
        let stops = matches!(garbled.key.as_str(), "record" | "config");
        let level = if stops { Level::Fail } else { Level::Warn };
        notes.add(
            CHECK,
            level,
            format!("/{}: {}", garbled.key, garbled.problem),
        );
    }
    let count = patient.cluster.snapshot.entries.len();
    notes.else_ok(
        CHECK,
        format!("{count} keys at revision {}, all readable", view.revision),
    );
}

fn identifier(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "system identifier";
    match &patient.cluster.view.initialize {
        Some(Initialize::System(id)) => notes.add(CHECK, Level::Ok, id.to_string()),
        Some(Initialize::Bootstrapping(_)) => notes.add(
            CHECK,
            Level::Warn,
            "the cluster is being initialised, or whoever did it died",
        ),
        Some(Initialize::Invalid(_)) => {
            let text = identity(&patient.cluster.snapshot);
            notes.add(
                CHECK,
                Level::Fail,
                format!("/initialize holds no identifier: {text}"),
            );
        }
        None => notes.add(CHECK, Level::Fail, "the cluster is not initialised"),
    }
}

fn leader(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "leader";
    let cluster = patient.cluster;
    match (cluster.leader(), cluster.leader_member()) {
        (Some(_), Some((name, record))) if record.is_running() => {
            notes.add(
                CHECK,
                Level::Ok,
                format!("{name} leads and its PostgreSQL runs"),
            );
        }
        (Some(_), Some((name, record))) => {
            let state = record.state.as_deref().unwrap_or("unknown");
            notes.add(
                CHECK,
                Level::Fail,
                format!("{name} leads, but its PostgreSQL is: {state}"),
            );
        }
        (Some(name), None) => {
            notes.add(
                CHECK,
                Level::Fail,
                format!("{name} holds the leader key, but has no member key"),
            );
        }
        (None, _) => notes.add(CHECK, Level::Fail, "nobody leads"),
    }
    if cluster.config.pause {
        notes.add(
            CHECK,
            Level::Warn,
            "the cluster is paused: there is no automatic failover",
        );
    }
    // A promise stays behind after the takeover that it was made for, and means nothing any more.
    let epoch = cluster
        .view
        .record
        .as_ref()
        .map_or(Epoch(0), |entry| entry.record.epoch);
    let standing = cluster
        .view
        .fences
        .iter()
        .filter(|(_, fence)| fence.promise.epoch >= epoch);
    for (name, _) in standing {
        let text = format!("{name} has promised to follow the leader no more");
        notes.add(CHECK, Level::Warn, text);
    }
}

fn lease(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "lease";
    let cluster = patient.cluster;
    let ttl = cluster.config.timing.ttl().as_secs();
    let patroni: Vec<&str> = cluster
        .members()
        .filter(|(_, record)| !record.capabilities.is_some_and(|c| c.record))
        .map(|(name, _)| name.as_str())
        .collect();
    let compatible =
        format!("leadership hangs on an etcd lease of {ttl} s, which a failover waits for");
    match (&cluster.view.record, patient.record_renewed) {
        (Some(entry), Some(true)) => notes.add(
            CHECK,
            Level::Ok,
            format!(
                "record mode: {} holds epoch {} for {} ms at a time and renews it",
                entry.record.owner, entry.record.epoch, entry.record.l_ms
            ),
        ),
        (Some(entry), Some(false)) => notes.add(
            CHECK,
            Level::Fail,
            format!(
                "record mode: {} holds epoch {}, but did not renew it while we watched",
                entry.record.owner, entry.record.epoch
            ),
        ),
        _ if !patroni.is_empty() => notes.add(
            CHECK,
            Level::Warn,
            format!(
                "compatible mode, since {} cannot hold a record: {compatible}",
                patroni.join(", ")
            ),
        ),
        _ if !cluster.config.native.record_lease => {
            notes.add(
                CHECK,
                Level::Ok,
                format!("compatible mode, as configured: {compatible}"),
            );
        }
        _ => notes.add(
            CHECK,
            Level::Warn,
            format!("no record is held although every member could: {compatible}"),
        ),
    }
    let record = cluster
        .view
        .record
        .as_ref()
        .filter(|r| r.record.state == RecordState::Held);
    if let (Some(entry), Some(leader)) = (record, cluster.leader())
        && entry.record.owner != *leader
    {
        let owner = &entry.record.owner;
        notes.add(
            CHECK,
            Level::Warn,
            format!("{owner} holds the record, but the leader key names {leader}"),
        );
    }
}

fn dynamic(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "dynamic configuration";
    let cluster = patient.cluster;
    if cluster.view.config == ConfigRecord::Absent {
        notes.add(
            CHECK,
            Level::Warn,
            "there is none: the defaults are in force",
        );
    }
    for note in &cluster.config.notes {
        notes.add(CHECK, Level::Warn, note.clone());
    }
    let timing = cluster.config.timing;
    notes.else_ok(
        CHECK,
        format!(
            "ttl {} s, loop_wait {} s and retry_timeout {} s fit together",
            timing.ttl().as_secs(),
            timing.loop_wait().as_secs(),
            timing.retry_timeout().as_secs()
        ),
    );
}

fn agents(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "agents";
    let mut versions: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (name, agent) in &patient.agents {
        let (status, ahead) = match agent {
            Agent::Silent(why) => {
                notes.add(CHECK, Level::Fail, format!("no answer from {name}: {why}"));
                continue;
            }
            Agent::Answers {
                status,
                clock_ahead,
            } => (status, clock_ahead),
        };
        if let Some(ahead) = ahead.filter(|ahead| ahead.abs() > CLOCK_SECONDS_MAX) {
            let how = if ahead > 0 { "ahead of" } else { "behind" };
            let text = format!("the clock of {name} is {} s {how} ours", ahead.abs());
            notes.add(CHECK, Level::Warn, text);
        }
        if status.get("watchdog_failed") == Some(&Value::Bool(true)) {
            notes.add(
                CHECK,
                Level::Fail,
                format!("{name} requires a watchdog and has none"),
            );
        }
        let version = status
            .get("patroni")
            .and_then(|p| p.get("version"))
            .and_then(Value::as_str);
        versions
            .entry(version.unwrap_or("unknown").to_owned())
            .or_default()
            .push(name.as_str());
    }
    if versions.len() > 1 {
        let each =
            |(version, names): (&String, &Vec<&str>)| format!("{version} ({})", names.join(", "));
        let list: Vec<String> = versions.iter().map(each).collect();
        notes.add(
            CHECK,
            Level::Warn,
            format!("different versions: {}", list.join(", ")),
        );
    }
    if patient.agents.is_empty() {
        notes.add(CHECK, Level::Fail, "the cluster has no members");
    }
    notes.else_ok(CHECK, format!("all {} answer", patient.agents.len()));
}

fn servers(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "servers";
    let leader = patient
        .cluster
        .leader_member()
        .and_then(|(_, record)| record.timeline);
    for (name, record) in replicas(patient) {
        if !record.is_running() {
            let state = record.state.as_deref().unwrap_or("unknown");
            notes.add(
                CHECK,
                Level::Warn,
                format!("PostgreSQL of {name} is: {state}"),
            );
        } else if let (Some(theirs), Some(leaders)) = (record.timeline, leader)
            && theirs != leaders
        {
            notes.add(
                CHECK,
                Level::Warn,
                format!("{name} is on timeline {theirs}, the leader on {leaders}"),
            );
        }
    }
    notes.else_ok(CHECK, "all replicas run, on the leader's timeline");
}

fn replication(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "replication";
    let (leader, config) = (patient.cluster.view.status.optime, &patient.cluster.config);
    for (name, record) in replicas(patient).filter(|(_, record)| record.is_running()) {
        let Some(position) = record.position() else {
            notes.add(
                CHECK,
                Level::Warn,
                format!("{name} publishes no WAL position"),
            );
            continue;
        };
        let lag = leader.unwrap_or_default().bytes_ahead_of(position);
        if lag > config.maximum_lag_on_failover {
            notes.add(CHECK, Level::Warn, format!("{name} lags by {lag} bytes"));
        }
        if record.replication_state.as_deref() != Some("streaming") {
            let state = record
                .replication_state
                .as_deref()
                .unwrap_or("not replicating");
            notes.add(
                CHECK,
                Level::Warn,
                format!("{name} does not stream ({state})"),
            );
        }
    }
    notes.else_ok(CHECK, "all running replicas stream and are near the leader");
}

fn synchronous(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "synchronous mode";
    let (view, config) = (&patient.cluster.view, &patient.cluster.config);
    if config.synchronous_mode == SyncMode::Off {
        notes.add(
            CHECK,
            Level::Ok,
            "off: a failover may lose the last commits",
        );
        return;
    }
    let sync = &view.sync;
    if sync.standbys.is_empty() {
        let (level, text) = match config.synchronous_mode_strict {
            true => (
                Level::Fail,
                "no standby is in /sync, and strict mode lets no commit through",
            ),
            false => (
                Level::Warn,
                "no standby is in /sync: commits are not replicated synchronously",
            ),
        };
        notes.add(CHECK, level, text);
    }
    if let (Some(keeper), Some(leader)) = (&sync.leader, patient.cluster.leader())
        && keeper != leader
    {
        notes.add(
            CHECK,
            Level::Warn,
            format!("/sync is kept by {keeper}, but {leader} leads"),
        );
    }
    for standby in &sync.standbys {
        let known = patient
            .cluster
            .members()
            .any(|(name, _)| name.same_standby(standby));
        if !known {
            notes.add(
                CHECK,
                Level::Warn,
                format!("{standby} is in /sync, but is no member"),
            );
        }
    }
    notes.else_ok(CHECK, format!("/sync lists {}", sync.standbys.join(", ")));
}

fn candidates(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "failover";
    let cluster = patient.cluster;
    for (name, record) in replicas(patient) {
        if let Some(why) = outlook::obstacle(cluster, name, record) {
            notes.add(
                CHECK,
                Level::Warn,
                format!("{name} could not take over: {why}"),
            );
        }
    }
    let able: Vec<&str> = outlook::candidates(cluster)
        .iter()
        .map(|n| n.as_str())
        .collect();
    match able.as_slice() {
        [] => notes.add(
            CHECK,
            Level::Warn,
            "no member could take over if the leader stopped",
        ),
        names => notes.add(
            CHECK,
            Level::Ok,
            format!("{} could take over", names.join(", ")),
        ),
    }
}

fn pending(patient: &Patient<'_>, notes: &mut Notes) {
    const CHECK: &str = "pending";
    for (name, record) in patient
        .cluster
        .members()
        .filter(|(_, record)| record.pending_restart)
    {
        let reasons = record
            .pending_restart_reason
            .as_ref()
            .and_then(Value::as_object);
        let keys: Vec<&str> = reasons
            .into_iter()
            .flatten()
            .map(|(key, _)| key.as_str())
            .collect();
        notes.add(
            CHECK,
            Level::Warn,
            format!("{name} needs a restart ({})", keys.join(", ")),
        );
    }
    for (name, record) in patient.cluster.members() {
        let at = record
            .scheduled_restart
            .as_ref()
            .and_then(|s| s.get("schedule")?.as_str());
        if let Some(at) = at {
            notes.add(CHECK, Level::Ok, format!("{name} will restart at {at}"));
        }
    }
    if let Some(request) = &patient.cluster.view.failover {
        match &request.scheduled_at {
            Some(at) => notes.add(
                CHECK,
                Level::Ok,
                format!("a switchover is scheduled at {}", at.text),
            ),
            None => notes.add(CHECK, Level::Warn, "a switchover or failover is under way"),
        }
    }
    notes.else_ok(CHECK, "no restart and no switchover");
}

fn replicas<'p>(
    patient: &'p Patient<'_>,
) -> impl Iterator<Item = (&'p MemberName, &'p MemberRecord)> {
    let leader = patient.cluster.leader();
    patient
        .cluster
        .members()
        .filter(move |(name, _)| Some(*name) != leader)
}
