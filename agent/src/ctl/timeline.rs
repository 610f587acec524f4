//! `timeline`: the last change of leadership, told from the members' journals.

use super::args::Timeline;
use super::error::{CtlResult, chain};
use super::journals::{self, Change, Entry};
use super::session::{Cluster, QUESTION_LIMIT, Session};
use super::sheet::{Column, Sheet};
use super::{say, sayn};
use hyper::Method;
use jiff::tz::TimeZone;
use serde_json::{Value, json};

/// `timeline`.
pub async fn timeline(session: &Session, args: Timeline) -> CtlResult<()> {
    let cluster = session
        .cluster_or(args.cluster_name.as_deref(), args.group)
        .await?;
    let entries = fetch(session, &cluster, args.limit).await;
    let Some(change) = journals::last_change(entries) else {
        say!(
            "No change of leadership in the journals of cluster {}",
            cluster.scope
        );
        return Ok(());
    };
    say!("{}", headline(&cluster, &change));
    sayn!("{}", steps(&change).table(None));
    let first = change.steps.first().map(|(_, entry)| &entry.member);
    if change
        .steps
        .iter()
        .any(|(_, entry)| Some(&entry.member) != first)
    {
        say!("Times are those of the members' own clocks.");
    }
    if args.all {
        sayn!("{}", everything(&change).table(None));
    }
    Ok(())
}

/// Asks all members; those that have nothing to tell get a line on standard error.
async fn fetch(session: &Session, cluster: &Cluster, limit: u32) -> Vec<Entry> {
    let endpoint = format!("garden/journal?limit={limit}");
    let mut entries = Vec::new();
    for (name, record) in cluster.members() {
        let answer = session
            .request(record, Method::GET, Some(&endpoint), None, QUESTION_LIMIT)
            .await;
        match answer {
            Ok(answer) if answer.status.is_success() => {
                entries.extend(journals::parse(&answer.text(), name.as_str()));
            }
            Ok(_) => tracing::warn!("{name} keeps no journal"),
            Err(err) => tracing::warn!("{name} does not tell its journal: {}", chain(&err)),
        }
    }
    entries
}

fn headline(cluster: &Cluster, change: &Change) -> String {
    let from = change
        .from
        .as_ref()
        .map_or_else(String::new, |from| format!(" from {from}"));
    let start = change.steps.first().map_or(0, |(_, entry)| entry.wall_ms);
    format!(
        "Cluster {}: {} took over{from} in {} ms, beginning at {}",
        cluster.scope,
        change.to,
        change.took_ms(),
        moment(start)
    )
}

/// Local time with milliseconds.
fn moment(wall_ms: i64) -> String {
    match jiff::Timestamp::from_millisecond(wall_ms) {
        Ok(stamp) => {
            let zoned = stamp.to_zoned(TimeZone::system());
            zoned.strftime("%Y-%m-%d %H:%M:%S.%3f").to_string()
        }
        Err(_) => format!("{wall_ms} ms"),
    }
}

/// A row for each step: when it was, and how long it took since the one before.
fn steps(change: &Change) -> Sheet {
    let columns = vec![
        Column::left("Phase"),
        Column::right("At, ms"),
        Column::right("Took, ms"),
        Column::left("Member"),
        Column::left("Rule"),
        Column::left("Reason"),
    ];
    let start = change.steps.first().map_or(0, |(_, entry)| entry.wall_ms);
    let mut before = start;
    let mut rows: Vec<Vec<Value>> = Vec::new();
    for (step, entry) in &change.steps {
        rows.push(vec![
            json!(step.name()),
            json!(entry.wall_ms.saturating_sub(start)),
            json!(entry.wall_ms.saturating_sub(before)),
            json!(entry.member),
            json!(entry.rule),
            json!(entry.reason),
        ]);
        before = entry.wall_ms;
    }
    Sheet { columns, rows }
}

/// Both tables.
pub(crate) fn told(change: &Change) -> String {
    let (steps, all) = (steps(change), everything(change));
    format!(
        "{} ms\n{}{}",
        change.took_ms(),
        steps.table(None),
        all.table(None)
    )
}

fn everything(change: &Change) -> Sheet {
    let columns = vec![
        Column::right("At, ms"),
        Column::left("Member"),
        Column::left("Rule"),
        Column::left("Reason"),
    ];
    let start = change.steps.first().map_or(0, |(_, entry)| entry.wall_ms);
    let row = |entry: &Entry| {
        vec![
            json!(entry.wall_ms.saturating_sub(start)),
            json!(entry.member),
            json!(entry.rule),
            json!(entry.reason),
        ]
    };
    let rows = change.entries.iter().map(row).collect();
    Sheet { columns, rows }
}
