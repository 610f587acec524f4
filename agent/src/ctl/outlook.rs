//! What the records say about the next failover: who could take over, and why nobody does now. The
//! members themselves decide by more than this (`proto::core::election`); an operator asks the records,
//! since they answer also when members do not.

use super::session::Cluster;
use proto::config::{SyncMode, Tags};
use proto::dcs::{MemberRecord, RecordState};
use proto::ids::MemberName;

/// Why a member could not take over now; `None` when it could.
pub fn obstacle(cluster: &Cluster, name: &MemberName, record: &MemberRecord) -> Option<String> {
    let config = &cluster.config;
    if Tags(record.tags.clone()).nofailover() {
        return Some(String::from(
            "its tags forbid it (nofailover, or failover_priority 0)",
        ));
    }
    if !record.is_running() {
        let state = record.state.as_deref().unwrap_or("unknown");
        return Some(format!("its PostgreSQL is not running ({state})"));
    }
    if config.is_synchronous() && cluster.view.sync.is_active() && !cluster.view.sync.involves(name)
    {
        return Some(String::from(
            "it is not in /sync, so it may lack commits that were acknowledged",
        ));
    }
    let Some(position) = record.position() else {
        return Some(String::from("its WAL position is not known"));
    };
    let lag = cluster
        .view
        .status
        .optime
        .unwrap_or_default()
        .bytes_ahead_of(position);
    let limit = config.maximum_lag_on_failover;
    if lag > limit && config.synchronous_mode == SyncMode::Off {
        return Some(format!(
            "it lags by {lag} bytes, more than maximum_lag_on_failover ({limit})"
        ));
    }
    None
}

/// Members other than the leader that could take over.
pub fn candidates(cluster: &Cluster) -> Vec<&MemberName> {
    cluster
        .members()
        .filter(|(name, _)| Some(*name) != cluster.leader())
        .filter(|(name, record)| obstacle(cluster, name, record).is_none())
        .map(|(name, _)| name)
        .collect()
}

/// Why no failover happens at this moment.
pub fn why_no_failover(cluster: &Cluster) -> String {
    if cluster.config.pause {
        return String::from("the cluster is paused: nobody is promoted automatically");
    }
    if cluster.view.record_garbled {
        return String::from(
            "the lease record in etcd cannot be read: nobody may lead until somebody has looked at it",
        );
    }
    let Some(leader) = cluster.leader() else {
        return match candidates(cluster).as_slice() {
            [] => String::from("nobody leads, and no member could take over"),
            names => format!(
                "nobody leads, and {} could take over: it should happen now",
                join(names)
            ),
        };
    };
    let lease = match &cluster.view.record {
        Some(entry) if entry.record.state == RecordState::Held => format!(
            "{} renews the lease record (epoch {}); others must see it stand still for {} ms",
            entry.record.owner, entry.record.epoch, entry.record.w_ms
        ),
        _ => format!(
            "{leader} holds the leader key on an etcd lease of {} s",
            cluster.config.timing.ttl().as_secs()
        ),
    };
    let next = match candidates(cluster).as_slice() {
        [] => String::from("no member could take over if it stopped"),
        names => format!("{} could take over if it stopped", join(names)),
    };
    format!("{lease}; {next}")
}

fn join(names: &[&MemberName]) -> String {
    let names: Vec<&str> = names.iter().map(|name| name.as_str()).collect();
    names.join(", ")
}
