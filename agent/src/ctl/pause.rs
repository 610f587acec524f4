//! `pause` and `resume` (`cli.md` 8.11), `demote-cluster` and `promote-cluster` (8.17, 8.18): changes of
//! the dynamic configuration through an agent.

use super::args::{DemoteCluster, Group, Pause, PromoteCluster};
use super::console::{self, confirm};
use super::error::{CtlError, CtlResult, chain, says};
use super::session::{Cluster, REQUEST_LIMIT, Session};
use super::show;
use super::{say, sayn};
use hyper::Method;
use proto::ids::{MemberName, Revision};
use proto::rest::json::to_text;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::time::Duration;

/// Pause between two looks at the cluster.
const POLL: Duration = Duration::from_secs(1);

/// `pause` when `wanted`, else `resume`.
pub async fn pause(session: &Session, args: Pause, wanted: bool) -> CtlResult<()> {
    let cluster = session
        .cluster_or(args.cluster_name.as_deref(), args.group)
        .await?;
    if cluster.config.pause == wanted {
        return says(format!(
            "Cluster is {} paused",
            if wanted { "already" } else { "not" }
        ));
    }
    let (verb, done) = if wanted {
        ("pause", "paused")
    } else {
        ("resume", "resumed")
    };
    let body = to_text(&json!({"pause": wanted.then_some(true)}));
    for (name, record) in cluster.leader_first() {
        let answer = session
            .request(
                record,
                Method::PATCH,
                Some("config"),
                Some(body.clone()),
                REQUEST_LIMIT,
            )
            .await;
        match answer {
            Err(err) => {
                tracing::warn!("{}", chain(&err));
                tracing::warn!("Member {name} is not accessible");
            }
            Ok(answer) if answer.status.as_u16() == 200 => {
                let unaware = if args.wait {
                    wait(&cluster, wanted, verb).await?
                } else {
                    None
                };
                say!(
                    "{}",
                    unaware.unwrap_or_else(|| format!("Success: cluster management is {done}"))
                );
                return Ok(());
            }
            Ok(answer) => {
                say!(
                    "Failed: {verb} cluster management status code={}, ({})",
                    answer.status.as_u16(),
                    answer.text()
                );
                return Ok(());
            }
        }
    }
    says("Can not find accessible cluster member")
}

/// Waits until all member keys show the wanted state. A member that does not write its key any more
/// cannot show it, so it is not waited for in the end; the sentence names the others.
async fn wait(cluster: &Cluster, wanted: bool, verb: &str) -> CtlResult<Option<String>> {
    say!("'{verb}' request sent, waiting until it is recognized by all nodes");
    let revisions = |cluster: &Cluster| -> BTreeMap<MemberName, Revision> {
        let members = cluster.view.members.iter();
        members
            .map(|(name, entry)| (name.clone(), entry.modified))
            .collect()
    };
    let before = revisions(cluster);
    let rounds = cluster.config.timing.loop_wait().as_secs() + 1;
    let mut now = cluster.read_again().await?;
    for _ in 0..rounds {
        if now.members().all(|(_, record)| record.pause == wanted) {
            return Ok(None);
        }
        tokio::time::sleep(POLL).await;
        now = now.read_again().await?;
    }
    let after = revisions(&now);
    let unaware: Vec<&str> = now
        .members()
        .filter(|(name, record)| record.pause != wanted && before.get(*name) != after.get(*name))
        .map(|(name, _)| name.as_str())
        .collect();
    Ok((!unaware.is_empty()).then(|| {
        format!(
            "{} members didn't recognized {verb} state after {} seconds",
            unaware.join(", "),
            rounds - 1
        )
    }))
}

/// `demote-cluster`.
pub async fn demote(session: &Session, args: DemoteCluster) -> CtlResult<()> {
    let mut section = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        section.extend(value.map(|value| (key.to_owned(), value)));
    };
    put("host", args.host.map(Value::from));
    put("port", args.port.map(Value::from));
    if section.is_empty() && args.restore_command.is_none() {
        return says("At least --host, --port or --restore-command should be specified");
    }
    let mut put = |key: &str, value: Option<String>| {
        section.extend(value.map(|value| (key.to_owned(), Value::from(value))));
    };
    put("primary_slot_name", args.primary_slot_name);
    put("restore_command", args.restore_command);
    let change = Change {
        verb: "demote",
        noun: "demotion",
        target: "standby_leader",
        document: Value::Object(section),
    };
    change_cluster(
        session,
        args.cluster_name.as_deref(),
        args.force.force,
        change,
    )
    .await
}

/// `promote-cluster`.
pub async fn promote(session: &Session, args: PromoteCluster) -> CtlResult<()> {
    let change = Change {
        verb: "promote",
        noun: "promotion",
        target: "primary",
        document: Value::Null,
    };
    change_cluster(
        session,
        args.cluster_name.as_deref(),
        args.force.force,
        change,
    )
    .await
}

/// A change between a cluster of its own and a standby cluster.
struct Change {
    verb: &'static str,
    noun: &'static str,
    /// The role that the leader has afterwards.
    target: &'static str,
    document: Value,
}

async fn change_cluster(
    session: &Session,
    named: Option<&str>,
    force: bool,
    change: Change,
) -> CtlResult<()> {
    let Change {
        verb,
        noun,
        target,
        document,
    } = change;
    let cluster = session.cluster_or(named, Group { group: None }).await?;
    let scope = &cluster.scope;
    let Some((name, record)) = cluster.leader_member() else {
        return says(format!("Cluster has no leader, {noun} is not possible"));
    };
    if record.role.as_deref() == Some(target) {
        return says("Cluster is already in the required state");
    }
    say!("Current cluster topology");
    sayn!("{}", show::table(&cluster));
    if !force && !confirm(&format!("Are you sure you want to {verb} {scope} cluster?"))? {
        return says(format!("Aborted cluster {noun}"));
    }
    let body = to_text(&json!({"standby_cluster": document}));
    let failed = |why: String| {
        // The text is doubled, as scripts know it.
        let text = format!("Failed to {verb} {scope} cluster");
        CtlError::Says(format!("{text}: {text}: {why}"))
    };
    let answer = session
        .request(
            record,
            Method::PATCH,
            Some("config"),
            Some(body),
            REQUEST_LIMIT,
        )
        .await
        .map_err(|err| failed(chain(&err)))?;
    if answer.status.as_u16() != 200 {
        let code = answer.status.as_u16();
        return Err(failed(format!(
            "/config PATCH status code={code}, ({})",
            answer.text()
        )));
    }
    follow_change(&cluster, name, target).await?;
    say!("{} cluster is successfully {verb}d", console::timestamp());
    sayn!("{}", show::table(&cluster.read_again().await?));
    Ok(())
}

/// Shows how far it is, until the leader runs in the target role. There is no limit: how long a demotion
/// takes depends on the other cluster.
async fn follow_change(cluster: &Cluster, old_leader: &MemberName, target: &str) -> CtlResult<()> {
    loop {
        tokio::time::sleep(POLL).await;
        let now = cluster.read_again().await?;
        let leader = now.leader_member();
        let role = leader.and_then(|(_, record)| record.role.as_deref());
        let state = leader.and_then(|(_, record)| record.state.as_deref());
        let old = now
            .member(old_leader.as_str())
            .filter(|_| now.leader() != Some(old_leader));
        let old_state = old.and_then(|(_, record)| record.state.as_deref());
        let demoted = target != "standby_leader" || old.is_none() || old_state == Some("running");
        if role == Some(target) && state == Some("running") && demoted {
            return Ok(());
        }
        let unlocked = if now.leader().is_none() {
            "True"
        } else {
            "False"
        };
        let mut line = format!(
            "{} cluster is unlocked: {unlocked}, leader role: {}, leader state: {}",
            console::timestamp_seconds(),
            role.unwrap_or("None"),
            state.unwrap_or("None")
        );
        if let Some(state) = old_state {
            line.push_str(&format!(", previous leader state: '{state}'"));
        }
        say!("{line}");
    }
}
