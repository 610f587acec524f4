//! Commands that only look: `list`, `topology`, `history`, `dsn`, `show-config`, `version`.

use super::args::{Dsn, Format, Group, History, List, OneCluster, Role, Topology, Version, Watch};
use super::console;
use super::error::{CtlResult, chain, says};
use super::session::{Cluster, QUESTION_LIMIT, Session};
use super::sheet::{Column, Empty, Sheet};
use super::{say, sayn};
use crate::config::yaml;
use hyper::Method;
use proto::cluster_table::{self, MemberRow, WalCell};
use proto::dcs::MemberRecord;
use proto::rest::cluster::{history_document, host_and_port};
use serde_json::Value;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// A longer reason for a pending restart would spoil a table.
const REASON_CHARS_MAX: usize = 50;

/// Column after which a long text of the configuration is folded.
const YAML_WIDTH: usize = 200;

/// `-W`.
const REPEAT_EVERY: Duration = Duration::from_secs(2);

/// How the members are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// By name, in a format.
    List(Format),
    /// As a tree, in a table.
    Topology,
}

/// `list`.
pub async fn list(session: &Session, args: List) -> CtlResult<()> {
    let layout = Layout::List(args.format);
    loop {
        let names = names_or_scope(session, &args.cluster_names);
        for (at, name) in names.iter().enumerate() {
            let cluster = session.cluster(name, args.group).await?;
            if args.timestamp && at == 0 {
                say!("{}", console::timestamp_seconds());
            }
            sayn!("{}", members(&cluster, layout, args.extended));
        }
        if !again(args.watch).await {
            return Ok(());
        }
    }
}

/// `topology`.
pub async fn topology(session: &Session, args: Topology) -> CtlResult<()> {
    loop {
        for name in names_or_scope(session, &args.cluster_names) {
            let cluster = session.cluster(&name, args.group).await?;
            sayn!("{}", members(&cluster, Layout::Topology, false));
        }
        if !again(args.watch).await {
            return Ok(());
        }
    }
}

fn names_or_scope(session: &Session, named: &[String]) -> Vec<String> {
    if !named.is_empty() {
        return named.to_vec();
    }
    match session.scope() {
        Some(scope) => vec![scope.to_owned()],
        None => {
            tracing::warn!("Listing members: No cluster names were provided");
            Vec::new()
        }
    }
}

/// Waits for the next round, when one is wanted, and clears a terminal for it.
pub async fn again(watch: Watch) -> bool {
    let seconds = watch
        .watch
        .map(|s| Duration::try_from_secs_f64(s).unwrap_or_default());
    let Some(pause) = seconds.or(watch.repeat.then_some(REPEAT_EVERY)) else {
        return false;
    };
    // What cannot be flushed cannot be seen either; the next line will fail for the same reason.
    let _ = io::stdout().flush();
    tokio::time::sleep(pause).await;
    if io::stdout().is_terminal() {
        sayn!("\x1b[2J\x1b[H");
    }
    true
}

/// The members' table with its footer, as most commands print it.
pub fn table(cluster: &Cluster) -> String {
    members(cluster, Layout::List(Format::Pretty), false)
}

/// The members in a layout.
pub fn members(cluster: &Cluster, layout: Layout, extended: bool) -> String {
    let rows = match layout {
        Layout::List(_) => cluster_table::rows(&cluster.view, &cluster.config),
        Layout::Topology => cluster_table::tree(&cluster.view, &cluster.config),
    };
    let sheet = members_sheet(cluster, &rows, layout, extended);
    match layout {
        Layout::List(format) if format != Format::Pretty => sheet.render(format, Empty::Drop),
        Layout::List(_) | Layout::Topology => {
            let mut text = sheet.table(Some(&caption(cluster)));
            for line in cluster_table::footer(&cluster.view, &cluster.config) {
                text.push_str(&line);
                text.push('\n');
            }
            text
        }
    }
}

fn caption(cluster: &Cluster) -> String {
    let (scope, identity) = (&cluster.scope, cluster_table::identity(&cluster.snapshot));
    match cluster.group {
        Some(group) => format!("Citus cluster: {scope} (group: {group}, {identity})"),
        None => format!("Cluster: {scope} ({identity})"),
    }
}

/// A column, and what each member has in it.
type Filled<'r> = (Column, Box<dyn Fn(&'r MemberRow) -> Value + 'r>);

fn members_sheet<'r>(
    cluster: &'r Cluster,
    rows: &'r [MemberRow],
    layout: Layout,
    extended: bool,
) -> Sheet {
    let mut columns: Vec<Filled<'r>> = Vec::new();
    if !is_table(layout) {
        let scope = cluster.scope.clone();
        columns.push((
            Column::left("Cluster"),
            Box::new(move |_| Value::from(scope.clone())),
        ));
    }
    columns.push((
        Column::left("Member"),
        Box::new(|row| Value::from(indented(row))),
    ));
    columns.push((
        Column::left("Host"),
        Box::new(|row| Value::from(row.host.clone())),
    ));
    columns.push((
        Column::left("Role"),
        Box::new(|row| Value::from(row.role.clone())),
    ));
    columns.push((
        Column::left("State"),
        Box::new(|row| Value::from(row.state.clone())),
    ));
    columns.push((
        Column::right("TL"),
        Box::new(|row| Value::from(row.timeline)),
    ));
    let lag = |key| Column {
        title: "Lag".into(),
        ..Column::right(key)
    };
    columns.push((
        Column::right("Receive LSN"),
        Box::new(|row| position(row.receive)),
    ));
    columns.push((lag("Receive Lag"), Box::new(|row| distance(row.receive))));
    columns.push((
        Column::right("Replay LSN"),
        Box::new(|row| position(row.replay)),
    ));
    columns.push((lag("Replay Lag"), Box::new(|row| distance(row.replay))));
    let says_something =
        |value: &Value| !matches!(value, Value::Null) && value.as_str() != Some("");
    for (column, cell) in optional_columns(layout) {
        if extended || rows.iter().any(|row| says_something(&cell(row))) {
            columns.push((column, cell));
        }
    }
    Sheet {
        columns: columns.iter().map(|(column, _)| column.clone()).collect(),
        rows: rows
            .iter()
            .map(|row| columns.iter().map(|(_, cell)| cell(row)).collect())
            .collect(),
    }
}

/// The columns that appear only where some member has a value.
fn optional_columns<'r>(layout: Layout) -> [Filled<'r>; 4] {
    let in_table = is_table(layout);
    [
        (
            Column::left("Pending restart"),
            Box::new(|row| Value::from(if row.pending_restart { "*" } else { "" })),
        ),
        (
            Column::left("Pending restart reason"),
            Box::new(move |row| Value::from(reasons(row, in_table))),
        ),
        (
            Column::left("Scheduled restart"),
            Box::new(|row| Value::from(row.scheduled_restart.clone())),
        ),
        (Column::left("Tags"), Box::new(move |row| tags(row, layout))),
    ]
}

fn is_table(layout: Layout) -> bool {
    matches!(layout, Layout::Topology | Layout::List(Format::Pretty))
}

fn indented(row: &MemberRow) -> String {
    match row.depth {
        0 => row.name.to_string(),
        depth => format!("{}+ {}", "  ".repeat(depth - 1), row.name),
    }
}

fn position(cell: WalCell) -> Value {
    match cell {
        WalCell::Leader => Value::Null,
        WalCell::Unknown => Value::from("unknown"),
        WalCell::At { lsn, .. } => Value::from(lsn.to_string()),
    }
}

fn distance(cell: WalCell) -> Value {
    match cell {
        WalCell::Leader | WalCell::Unknown => Value::Null,
        WalCell::At { lag_mb, .. } => Value::from(lag_mb),
    }
}

fn reasons(row: &MemberRow, shorten: bool) -> String {
    let line = |(parameter, change): &(String, String)| {
        let line = format!("{parameter}: {change}");
        match shorten && line.chars().count() > REASON_CHARS_MAX {
            true => format!("{parameter}: [hidden - too long]"),
            false => line,
        }
    };
    row.pending_reasons
        .iter()
        .map(line)
        .collect::<Vec<_>>()
        .join("\n")
}

fn tags(row: &MemberRow, layout: Layout) -> Value {
    let tags = Value::Object(row.tags.clone());
    match layout {
        _ if row.tags.is_empty() => Value::Null,
        Layout::Topology => Value::from(yaml::to_flow(&tags)),
        Layout::List(_) => tags,
    }
}

/// `history`.
pub async fn history(session: &Session, args: History) -> CtlResult<()> {
    let cluster = session
        .cluster_or(args.cluster_name.as_deref(), args.group)
        .await?;
    let columns = vec![
        Column::right("TL"),
        Column::right("LSN"),
        Column::left("Reason"),
        Column::left("Timestamp"),
        Column::left("New Leader"),
    ];
    let cells = |row: &Value| {
        let mut cells = row.as_array().cloned().unwrap_or_default();
        cells.resize(columns.len(), Value::Null);
        cells
    };
    let document = history_document(&cluster.view);
    let rows = document.as_array().map(Vec::as_slice).unwrap_or_default();
    let rows = rows.iter().map(cells).collect();
    sayn!(
        "{}",
        Sheet { columns, rows }.render(args.format, Empty::Keep)
    );
    Ok(())
}

/// `show-config`.
pub async fn show_config(session: &Session, args: OneCluster) -> CtlResult<()> {
    let cluster = session
        .cluster_or(args.cluster_name.as_deref(), args.group)
        .await?;
    if let Some(document) = cluster.view.config.document() {
        say!("{}", config_text(&Value::Object(document.clone())));
    }
    Ok(())
}

/// The dynamic configuration as people see and edit it.
pub fn config_text(document: &Value) -> String {
    yaml::to_string_wide(document, YAML_WIDTH)
}

/// `dsn`.
pub async fn dsn(session: &Session, args: Dsn) -> CtlResult<()> {
    let cluster = session
        .cluster_or(args.cluster_name.as_deref(), args.group)
        .await?;
    let (role, member) = (args.role, args.member.as_deref());
    match one_member(&cluster, role, member)?.and_then(address) {
        Some((host, port)) => {
            say!("host={host} port={port}");
            Ok(())
        }
        None => says("Can not find a suitable member"),
    }
}

/// Where a member's PostgreSQL listens.
pub fn address(record: &MemberRecord) -> Option<(String, u16)> {
    record.conn_url.as_deref().and_then(host_and_port)
}

/// The member that was named, or the first one with the role.
pub fn one_member<'c>(
    cluster: &'c Cluster,
    role: Option<Role>,
    member: Option<&str>,
) -> CtlResult<Option<&'c MemberRecord>> {
    if role.is_some() && member.is_some() {
        return says("--role and --member are mutually exclusive options");
    }
    let found = match (member, role.unwrap_or(Role::Leader)) {
        (Some(name), _) => cluster.member(name),
        (None, role) => cluster.with_role(role).into_iter().next(),
    };
    Ok(found.map(|(_, record)| record))
}

/// `version`.
pub async fn version(session: Option<&Session>, args: Version, own: &str) -> CtlResult<()> {
    say!("{own}");
    let (Some(session), Some(name)) = (session, args.cluster_name.as_deref()) else {
        return Ok(());
    };
    say!("");
    let cluster = session.cluster(name, args.group).await?;
    let wanted =
        |name: &str| args.member_names.is_empty() || args.member_names.iter().any(|m| m == name);
    for (name, record) in cluster.members().filter(|(name, _)| wanted(name.as_str())) {
        if record.api_url.is_none() {
            continue;
        }
        let answer = session
            .request(record, Method::GET, None, None, QUESTION_LIMIT)
            .await;
        let document = answer
            .map_err(|err| chain(&err))
            .and_then(|response| response.json().map_err(|err| err.to_string()));
        match document.as_ref().map(member_version) {
            Ok(Some(version)) => say!("{name}: {version}"),
            Ok(None) => say!("{name}: failed to get version: the answer names none"),
            Err(why) => say!("{name}: failed to get version: {why}"),
        }
    }
    Ok(())
}

fn member_version(document: &Value) -> Option<String> {
    let agent = document.get("patroni")?.get("version")?.as_str()?;
    let server = document.get("server_version").and_then(Value::as_u64);
    Some(match server {
        Some(number) => format!("Patroni {agent} PostgreSQL {}", server_version(number)),
        None => format!("Patroni {agent}"),
    })
}

/// 140008 is 14.8, and 90624 is 9.6.24.
fn server_version(number: u64) -> String {
    let (major, rest) = (number / 10_000, number % 10_000);
    match major {
        10.. => format!("{major}.{rest}"),
        _ => format!("{major}.{}.{}", rest / 100, rest % 100),
    }
}

/// The whole cluster, read for a command about it, which most of them show first.
pub async fn read_and_show(session: &Session, scope: &str, group: Group) -> CtlResult<Cluster> {
    let cluster = session.cluster(scope, group).await?;
    say!("Current cluster topology");
    sayn!("{}", table(&cluster));
    Ok(cluster)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_versions_are_read_as_postgres_numbers_them() {
        assert_eq!(server_version(140_008), "14.8");
        assert_eq!(server_version(90_624), "9.6.24");
    }
}
