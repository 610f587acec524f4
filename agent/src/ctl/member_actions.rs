//! Commands for single members: `restart`, `reload`, `reinit`, `flush`.

use super::args::{Flush, Group, Reinit, Reload, Restart, Role};
use super::console::{self, confirm, prompt};
use super::error::{CtlResult, says};
use super::progress::Progress;
use super::say;
use super::select::{Chosen, Purpose, choose, confirmed, names};
use super::session::{Cluster, QUESTION_LIMIT, Session};
use clap::CommandFactory;
use hyper::Method;
use proto::dcs::{Compare, FailoverRecord, Key, Op, PgState, Txn};
use proto::rest::json::to_text;
use proto::rest::stamp::Stamp;
use serde_json::{Map, Value, json};
use std::time::Duration;

/// Pause between two looks at a member that is being reinitialised.
const REINIT_POLL: Duration = Duration::from_secs(2);

/// `restart`.
pub async fn restart(session: &Session, args: Restart) -> CtlResult<()> {
    let cluster = session.cluster(&args.cluster_name, args.group).await?;
    let force = args.force.force;
    let mut chosen = choose(
        &cluster,
        &args.member_names,
        args.role,
        force,
        Purpose::Restart,
    )?;
    let when = match (&args.scheduled, force) {
        (Some(when), _) => when.clone(),
        (None, true) => String::new(),
        (None, false) => {
            let example = console::example_time();
            let question = format!("When should the restart take place (e.g. {example}) ");
            prompt(&question, Some("now"))?
        }
    };
    let scheduled = console::scheduled(&when)?;
    if args.pending && scheduled.is_none() {
        chosen.retain(|(_, record)| record.pending_restart);
    }
    if args.any && chosen.len() > 1 {
        let at = fastrand::usize(..chosen.len());
        chosen = chosen.get(at).copied().into_iter().collect();
    }
    if !force {
        confirm_restart(&chosen, scheduled.as_ref(), args.pending)?;
    }
    let version = match (&args.pg_version, force) {
        (Some(version), _) => version.clone(),
        (None, true) => String::new(),
        (None, false) => prompt(
            "Restart if the PostgreSQL version is less than provided (e.g. 9.5.2) ",
            Some(""),
        )?,
    };
    let body = restart_body(&args, &version, scheduled.as_ref())?;
    if scheduled.is_some() && cluster.config.pause {
        return says("Can't schedule restart in the paused state");
    }
    for (name, record) in chosen {
        // Only where nobody could be asked; otherwise the agent's refusal is shown.
        if force && scheduled.is_some() && record.scheduled_restart.is_some() {
            flush_one(session, (name, record), Quiet::WhenDone).await?;
        }
        let progress = Progress::start(format!("restarting {name}"));
        let asked = session.demand(name, record, Method::POST, "restart", Some(body.clone()));
        let answer = progress.during(session, &[(name, record)], asked).await?;
        say!(
            "{}",
            match answer.status.as_u16() {
                200 => format!("Success: restart on member {name}"),
                202 => format!("Success: restart scheduled on member {name}"),
                409 => format!("Failed: another restart is already scheduled on member {name}"),
                code => format!(
                    "Failed: restart for member {name}, status code={code}, ({})",
                    answer.text()
                ),
            }
        );
    }
    Ok(())
}

fn confirm_restart(
    chosen: &[Chosen<'_>],
    scheduled: Option<&Stamp>,
    pending: bool,
) -> CtlResult<()> {
    let names = names(chosen);
    let question = match scheduled {
        None => return confirmed(chosen, false, Purpose::Restart),
        Some(_) if pending => String::from(
            "The nodes needing a restart will be identified at the scheduled time, and might be \
             different from the ones showing pending restart right now. Is this fine?",
        ),
        Some(at) => format!(
            "Are you sure you want to schedule restart of members {names} at {}?",
            at.render(' ')
        ),
    };
    if confirm(&question)? {
        Ok(())
    } else {
        says("Aborted scheduled restart")
    }
}

fn restart_body(args: &Restart, version: &str, scheduled: Option<&Stamp>) -> CtlResult<String> {
    let mut body = Map::new();
    if args.pending {
        body.insert("restart_pending".into(), json!(true));
    }
    if !version.is_empty() {
        let mut parts = version.split('.').map(str::parse::<u32>);
        if parts.any(|part| part.is_err()) {
            return says(format!("Invalid PostgreSQL version: {version}"));
        }
        if !matches!(version.split('.').count(), 2 | 3) {
            return says(format!(
                "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: {version}"
            ));
        }
        body.insert("postgres_version".into(), json!(version));
    }
    if let Some(at) = scheduled {
        body.insert("schedule".into(), json!(at.render('T')));
    }
    if let Some(timeout) = &args.timeout {
        body.insert("timeout".into(), json!(timeout));
    }
    Ok(to_text(&body))
}

/// `reload`.
pub async fn reload(session: &Session, args: Reload) -> CtlResult<()> {
    let cluster = session.cluster(&args.cluster_name, args.group).await?;
    let force = args.force.force;
    let chosen = choose(
        &cluster,
        &args.member_names,
        args.role,
        force,
        Purpose::Reload,
    )?;
    confirmed(&chosen, force, Purpose::Reload)?;
    let wait = cluster.config.timing.loop_wait().as_secs();
    for (name, record) in chosen {
        let answer = session
            .demand(name, record, Method::POST, "reload", None)
            .await?;
        say!(
            "{}",
            match answer.status.as_u16() {
                200 => format!("No changes to apply on member {name}"),
                202 => format!(
                    "Reload request received for member {name} and will be processed within {wait} seconds"
                ),
                code => format!(
                    "Failed: reload for member {name}, status code={code}, ({})",
                    answer.text()
                ),
            }
        );
    }
    Ok(())
}

/// `reinit`.
pub async fn reinit(session: &Session, args: Reinit) -> CtlResult<()> {
    let cluster = session.cluster(&args.cluster_name, args.group).await?;
    let force = args.force.force;
    let chosen = choose(
        &cluster,
        &args.member_names,
        Role::Replica,
        force,
        Purpose::Reinitialize,
    )?;
    if chosen.is_empty() {
        return Ok(());
    }
    confirmed(&chosen, force, Purpose::Reinitialize)?;
    let mut started = Vec::new();
    for member in chosen {
        if reinit_one(session, member, force, args.from_leader).await? {
            started.push(member);
        }
    }
    if args.wait && !started.is_empty() {
        say!(
            "Waiting for reinitialize to complete on: {}",
            names(&started)
        );
        wait_for_copies(session, started).await?;
    }
    Ok(())
}

/// Whether it was accepted, perhaps after the operator agreed to cancel what runs.
async fn reinit_one(
    session: &Session,
    (name, record): Chosen<'_>,
    force: bool,
    from_leader: bool,
) -> CtlResult<bool> {
    let mut cancel = force;
    loop {
        let body = to_text(&json!({"force": cancel, "from_leader": from_leader}));
        let answer = session
            .demand(name, record, Method::POST, "reinitialize", Some(body))
            .await?;
        let (code, text) = (answer.status.as_u16(), answer.text());
        if code < 400 {
            say!("Success: reinitialize for member {name}");
            return Ok(true);
        }
        say!("Failed: reinitialize for member {name}, status code={code}, ({text})");
        let busy = text.trim_end().ends_with(" already in progress");
        if !busy || force || !confirm("Do you want to cancel it and reinitialize anyway?")? {
            return Ok(false);
        }
        cancel = true;
    }
}

async fn wait_for_copies(session: &Session, mut waiting: Vec<Chosen<'_>>) -> CtlResult<()> {
    let progress = Progress::start(String::from("copying"));
    while !waiting.is_empty() {
        let pause = tokio::time::sleep(REINIT_POLL);
        progress.during(session, &waiting, pause).await;
        let mut still = Vec::new();
        for (name, record) in waiting {
            let answer = session
                .demand(name, record, Method::GET, "patroni", None)
                .await?;
            let document = answer.json().unwrap_or_default();
            let state = document.get("state").and_then(Value::as_str);
            if state == Some(PgState::CreatingReplica.as_str()) {
                still.push((name, record));
                continue;
            }
            say!("Reinitialize is completed on: {name}");
        }
        waiting = still;
    }
    Ok(())
}

/// `flush`.
pub async fn flush(session: &Session, args: Flush) -> CtlResult<()> {
    let (target, named) = args
        .rest
        .split_last()
        .map_or(("", &[][..]), |(t, n)| (t.as_str(), n));
    match target {
        "restart" => {
            let cluster = session.cluster(&args.cluster_name, args.group).await?;
            let force = args.force.force;
            let chosen = choose(&cluster, named, args.role, force, Purpose::Flush)?;
            confirmed(&chosen, force, Purpose::Flush)?;
            for (name, record) in chosen {
                if record.scheduled_restart.is_some() {
                    flush_one(session, (name, record), Quiet::Never).await?;
                } else {
                    say!("No scheduled restart for member {name}");
                }
            }
            Ok(())
        }
        "switchover" => flush_switchover(session, &args.cluster_name, args.group).await,
        other => Err(super::args::Cli::command()
            .error(
                clap::error::ErrorKind::InvalidValue,
                format!("'{other}' is not one of 'restart', 'switchover'"),
            )
            .into()),
    }
}

/// Whether a success is worth a line.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quiet {
    Never,
    WhenDone,
}

async fn flush_one(session: &Session, member: Chosen<'_>, quiet: Quiet) -> CtlResult<()> {
    let (name, record) = member;
    let answer = session
        .demand(name, record, Method::DELETE, "restart", None)
        .await?;
    match answer.status.as_u16() {
        200 if quiet == Quiet::WhenDone => {}
        200 => say!("Success: flush scheduled restart for member {name}"),
        code => say!(
            "Failed: flush scheduled restart for member {name}, status code={code}, ({})",
            answer.text()
        ),
    }
    Ok(())
}

async fn flush_switchover(session: &Session, scope: &str, group: Group) -> CtlResult<()> {
    let cluster = session.cluster(scope, group).await?;
    let scheduled = cluster
        .view
        .failover
        .as_ref()
        .is_some_and(|r| r.scheduled_at.is_some());
    if !scheduled {
        say!("No pending scheduled switchover");
        return Ok(());
    }
    for (name, record) in cluster.leader_first() {
        let answer = session
            .request(
                record,
                Method::DELETE,
                Some("switchover"),
                None,
                QUESTION_LIMIT,
            )
            .await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(err) => {
                tracing::warn!("{}", super::error::chain(&err));
                tracing::warn!("Member {name} is not accessible");
                continue;
            }
        };
        match answer.status.as_u16() {
            200 => say!("Success: {}", answer.text()),
            404 => say!("Failed: {}", answer.text()),
            code => {
                say!(
                    "Failed: member={name}, status_code={code}, ({})",
                    answer.text()
                );
                continue;
            }
        }
        return Ok(());
    }
    tracing::warn!("Failing over to DCS");
    say!(
        "{} Could not find any accessible member of cluster {scope}",
        console::timestamp()
    );
    clear_switchover(&cluster).await
}

async fn clear_switchover(cluster: &Cluster) -> CtlResult<()> {
    let Some(modified) = cluster.view.failover_modified else {
        return Ok(());
    };
    let txn = Txn::when(
        vec![Compare::Unchanged(Key::Failover, modified)],
        vec![Op::put(
            Key::Failover,
            FailoverRecord::value(None, None, None),
        )],
    );
    cluster.commit(&txn).await.map(|_| ())
}
