//! `switchover` and `failover` (`cli.md` 8.8 and 8.9).

use super::args::{Failover, Switchover};
use super::console::{self, confirm, prompt};
use super::error::{CtlResult, chain, says};
use super::progress::Progress;
use super::session::{Cluster, REQUEST_LIMIT, Session};
use super::show;
use super::{say, sayn};
use crate::config::value::python_repr;
use crate::http::{HttpError, HttpResponse};
use hyper::Method;
use proto::config::Tags;
use proto::dcs::{FailoverRecord, Key, MemberRecord, Op, Txn};
use proto::ids::MemberName;
use proto::rest::json::to_text;
use proto::rest::stamp::Stamp;
use serde_json::{Map, Value, json};

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Switchover,
    Failover,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Switchover => "switchover",
            Self::Failover => "failover",
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Switchover => "Switchover",
            Self::Failover => "Failover",
        }
    }
}

/// What is asked for.
struct Wish {
    kind: Kind,
    leader: Option<String>,
    candidate: Option<String>,
    scheduled: Option<Stamp>,
}

/// `switchover`.
pub async fn switchover(session: &Session, args: Switchover) -> CtlResult<()> {
    let scope = session.scope_or(args.cluster_name.as_deref())?;
    let cluster = show::read_and_show(session, scope, args.group).await?;
    let force = args.force.force;
    let leader = switchover_leader(&cluster, args.leader, force)?;
    let candidate = candidate(&cluster, Kind::Switchover, args.candidate, force)?;
    let when = match (args.scheduled, force) {
        (Some(when), _) => when,
        (None, true) => String::from("now"),
        (None, false) => {
            let example = console::example_time();
            let question = format!("When should the switchover take place (e.g. {example} ) ");
            prompt(&question, Some("now"))?
        }
    };
    let scheduled = console::scheduled(&when)?;
    if scheduled.is_some() && cluster.config.pause {
        return says("Can't schedule switchover in the paused state");
    }
    let wish = Wish {
        kind: Kind::Switchover,
        leader: Some(leader),
        candidate,
        scheduled,
    };
    go(session, &cluster, wish, force).await
}

/// `failover`.
pub async fn failover(session: &Session, args: Failover) -> CtlResult<()> {
    let scope = session.scope_or(args.cluster_name.as_deref())?;
    let cluster = show::read_and_show(session, scope, args.group).await?;
    let force = args.force.force;
    let candidate = candidate(&cluster, Kind::Failover, args.candidate, force)?;
    let name = candidate.as_deref().unwrap_or_default();
    // A node outside of `/sync` may lack commits that were acknowledged.
    let asynchronous = cluster.config.is_synchronous() && !cluster.view.sync.involves(&name.into());
    let question = format!("Are you sure you want to failover to the asynchronous node {name}?");
    if asynchronous && !force && !confirm(&question)? {
        return says("Aborting failover");
    }
    let wish = Wish {
        kind: Kind::Failover,
        leader: None,
        candidate,
        scheduled: None,
    };
    go(session, &cluster, wish, force).await
}

fn switchover_leader(cluster: &Cluster, named: Option<String>, force: bool) -> CtlResult<String> {
    let Some(current) = cluster.leader().map(MemberName::as_str) else {
        return says("This cluster has no leader");
    };
    let named = match (named, force) {
        (Some(named), _) => named,
        (None, true) => current.to_owned(),
        (None, false) => {
            let standby = cluster.config.standby_cluster.is_some();
            prompt(
                if standby { "Standby Leader" } else { "Primary" },
                Some(current),
            )?
        }
    };
    if named == current {
        return Ok(named);
    }
    says(format!(
        "Member {named} is not the leader of cluster {}",
        cluster.scope
    ))
}

/// Asks for a candidate where none was named, and checks it.
fn candidate(
    cluster: &Cluster,
    kind: Kind,
    named: Option<String>,
    force: bool,
) -> CtlResult<Option<String>> {
    let eligible = |(name, record): &(&MemberName, &MemberRecord)| {
        Some(*name) != cluster.leader() && !Tags(record.tags.clone()).nofailover()
    };
    let names: Vec<&str> = cluster
        .members()
        .filter(eligible)
        .map(|(name, _)| name.as_str())
        .collect();
    if names.is_empty() {
        return says(format!("No candidates found to {} to", kind.name()));
    }
    let candidate = match (named, force) {
        (None, false) => {
            let list = python_repr(&json!(names));
            Some(prompt(&format!("Candidate {list}"), Some(""))?)
        }
        (named, _) => named,
    };
    match candidate.as_deref().unwrap_or_default() {
        "" if kind == Kind::Failover => {
            says("Failover could be performed only to a specific candidate")
        }
        "" => Ok(candidate),
        name if cluster
            .leader()
            .is_some_and(|leader| leader.as_str() == name) =>
        {
            says(format!(
                "Member {name} is already the leader of cluster {}",
                cluster.scope
            ))
        }
        name if !names.contains(&name) => says(format!(
            "Member {name} does not exist in cluster {} or is tagged as nofailover",
            cluster.scope
        )),
        _ => Ok(candidate),
    }
}

async fn go(session: &Session, cluster: &Cluster, wish: Wish, force: bool) -> CtlResult<()> {
    if !force {
        confirm_wish(cluster, &wish)?;
    }
    let progress = Progress::start(format!("{} of {}", wish.kind.name(), cluster.scope));
    let both: Vec<_> = [
        cluster.leader().map(MemberName::as_str),
        wish.candidate.as_deref(),
    ]
    .into_iter()
    .flatten()
    .filter_map(|name| cluster.member(name))
    .collect();
    let asked = ask(session, cluster, &wish);
    let answer = progress.during(session, &both, asked).await;
    let (title, name) = (wish.kind.title(), wish.kind.name());
    let answer = match answer {
        Ok(answer) => answer,
        Err(err) => {
            tracing::error!("{}", chain(&err));
            tracing::warn!("Failing over to DCS");
            write_key(cluster, &wish).await?;
            say!(
                "{} Could not {name} using Patroni api, falling back to DCS",
                console::timestamp()
            );
            sayn!("{}", show::table(cluster));
            return Ok(());
        }
    };
    let (code, body) = (answer.status.as_u16(), answer.text());
    match code {
        200 | 202 => {
            say!("{} {body}", console::timestamp());
            sayn!("{}", show::table(&cluster.read_again().await?));
        }
        _ if body.to_lowercase().contains("status unknown") => {
            say!("{title} result unknown, details: {code}, {body}");
        }
        _ => say!("{title} failed, details: {code}, {body}"),
    }
    Ok(())
}

fn confirm_wish(cluster: &Cluster, wish: &Wish) -> CtlResult<()> {
    let (name, scope) = (wish.kind.name(), &cluster.scope);
    let what = match &wish.scheduled {
        Some(at) => format!("schedule {name} of cluster {scope} at {}", at.render('T')),
        None => format!("{name} cluster {scope}"),
    };
    let whom = cluster.leader().map_or_else(String::new, |leader| {
        format!(", demoting current leader {leader}")
    });
    if confirm(&format!("Are you sure you want to {what}{whom}?"))? {
        return Ok(());
    }
    says(match wish.scheduled {
        Some(_) => format!("Aborting scheduled {name}"),
        None => format!("Aborting {name}"),
    })
}

/// Sends the request to the leader's agent, without a leader to the candidate's.
async fn ask(session: &Session, cluster: &Cluster, wish: &Wish) -> Result<HttpResponse, HttpError> {
    let candidate = wish
        .candidate
        .as_deref()
        .and_then(|name| cluster.member(name));
    let Some((_, record)) = cluster.leader_member().or(candidate) else {
        return Err(HttpError::Url(String::new()));
    };
    let mut body = Map::new();
    body.insert("candidate".into(), json!(wish.candidate));
    if let Some(leader) = &wish.leader {
        body.insert("leader".into(), json!(leader));
    }
    if let Some(at) = &wish.scheduled {
        body.insert("scheduled_at".into(), Value::from(at.render('T')));
    }
    let send = |endpoint| {
        session.request(
            record,
            Method::POST,
            Some(endpoint),
            Some(to_text(&body)),
            REQUEST_LIMIT,
        )
    };
    let answer = send(wish.kind.name()).await?;
    // Very old agents know only the other endpoint.
    let unknown = answer.status.as_u16() == 501
        && answer
            .text()
            .contains("Server does not support this operation");
    if unknown && wish.kind == Kind::Switchover {
        return send(Kind::Failover.name()).await;
    }
    Ok(answer)
}

/// Writes what an agent would have written.
async fn write_key(cluster: &Cluster, wish: &Wish) -> CtlResult<()> {
    let name = |name: &Option<String>| {
        name.as_deref()
            .filter(|name| !name.is_empty())
            .map(MemberName::from)
    };
    let at = wish.scheduled.as_ref().map(|at| at.render('T'));
    let value = FailoverRecord::value(
        name(&wish.leader).as_ref(),
        name(&wish.candidate).as_ref(),
        at.as_deref(),
    );
    let txn = Txn::always(vec![Op::put(Key::Failover, value)]);
    cluster.commit(&txn).await.map(|_| ())
}
