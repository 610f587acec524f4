//! `explain`: why each member leads or does not, in its own words where it is ours, and why no failover
//! happens now.

use super::args::Explain;
use super::error::{CtlResult, chain, says};
use super::outlook;
use super::say;
use super::session::{Cluster, QUESTION_LIMIT, Session};
use hyper::Method;
use proto::dcs::MemberRecord;
use proto::ids::MemberName;
use serde_json::Value;

/// `explain`.
pub async fn explain(session: &Session, args: Explain) -> CtlResult<()> {
    let cluster = session
        .cluster_or(args.cluster.as_deref(), args.group)
        .await?;
    let members: Vec<_> = match args.member.as_deref() {
        None => cluster.leader_first(),
        Some(name) => match cluster.member(name) {
            Some(member) => vec![member],
            None => {
                return says(format!(
                    "{name} is not a member of cluster {}",
                    cluster.scope
                ));
            }
        },
    };
    for (name, record) in members {
        say!("{name}: {}", place(&cluster, name, record));
        for line in own_words(session, record).await {
            say!("    {line}");
        }
    }
    say!("Failover: {}", outlook::why_no_failover(&cluster));
    Ok(())
}

/// From the records: leads, could take over, or could not, and why.
fn place(cluster: &Cluster, name: &MemberName, record: &MemberRecord) -> String {
    if cluster.leader() == Some(name) {
        return String::from("leads");
    }
    let role = match cluster.leader() {
        Some(leader) => format!("does not lead, since {leader} does"),
        None => String::from("does not lead; nobody does"),
    };
    match outlook::obstacle(cluster, name, record) {
        None => format!("{role}; it could take over"),
        Some(why) => format!("{role}; it could not take over: {why}"),
    }
}

/// What the member says of its last decision.
async fn own_words(session: &Session, record: &MemberRecord) -> Vec<String> {
    let answer = session
        .request(record, Method::GET, Some("garden"), None, QUESTION_LIMIT)
        .await;
    match answer {
        Err(err) => vec![format!("its agent does not answer: {}", chain(&err))],
        Ok(answer) => match answer.json() {
            Ok(document) if answer.status.is_success() && document.get("rule").is_some() => {
                words(&document)
            }
            _ => vec![String::from(
                "its agent is not garden-agent and does not explain itself",
            )],
        },
    }
}

fn words(document: &Value) -> Vec<String> {
    let text = |key: &str| document.get(key).and_then(Value::as_str);
    let number = |key: &str| document.get(key).and_then(Value::as_u64);
    let mut lines = Vec::new();
    let rule = text("rule").unwrap_or_default();
    lines.push(match text("reason").unwrap_or_default() {
        "" => String::from("it has not decided anything yet"),
        reason => format!("{reason} [{rule}]"),
    });
    if let Some(left) = number("lease_remaining_ms") {
        lines.push(format!("its lease lasts for another {left} ms"));
    }
    if let Some(why) = text("held_back") {
        lines.push(format!("primary checks answer 503: {why}"));
    }
    if let Some(job) = text("job") {
        lines.push(format!("under way: {job}"));
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_members_words_leave_out_what_it_does_not_say() {
        let document = json!({"rule": "leading", "reason": "I lead", "lease_remaining_ms": 7});
        assert_eq!(
            words(&document),
            ["I lead [leading]", "its lease lasts for another 7 ms"]
        );
        assert_eq!(
            words(&json!({"rule": ""})),
            ["it has not decided anything yet"]
        );
    }
}
