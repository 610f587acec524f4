//! `query` (`cli.md` 8.4): SQL on a member, with libpq's defaults for who connects and how.

use super::args::{Cli, Format, Query, Role};
use super::console;
use super::error::{CtlResult, says};
use super::sayn;
use super::session::Session;
use super::sheet::{Column, Empty, Sheet};
use super::show::{address, again, one_member};
use crate::tls::{ClientTls, Trust, client_config};
use clap::CommandFactory;
use proto::dcs::MemberRecord;
use proto::rest::stamp::status_form;
use serde_json::{Number, Value};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Config, SimpleQueryMessage};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How long connecting may take.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// The setting of the name under which the server lists us.
const APPLICATION_NAME: &str = "Patroni ctl";

/// Names and rows of a result.
type Table = (Vec<String>, Vec<Vec<Value>>);

/// `query`.
pub async fn query(session: &Session, args: Query) -> CtlResult<()> {
    if args.role.is_some() && args.member.is_some() {
        return says("--role and --member are mutually exclusive options");
    }
    let sql = sql(&args)?;
    let password = if args.password {
        Some(console::secret("Password")?)
    } else {
        None
    };
    loop {
        let cluster = session
            .cluster_or(args.cluster_name.as_deref(), args.group)
            .await?;
        let member = one_member(&cluster, args.role, args.member.as_deref())?;
        let (names, rows) = match connect(member, &args, password.as_deref()).await {
            Ok(Some(client)) => run(&client, &sql).await,
            Ok(None) => failure(no_connection(&args)),
            Err(why) => failure(format!("ERROR, SQLSTATE: {why}")),
        };
        print_result(&args, names, rows);
        if !again(args.watch).await {
            return Ok(());
        }
    }
}

fn sql(args: &Query) -> CtlResult<String> {
    match (&args.command, &args.file) {
        (Some(_), Some(_)) => says("--file and --command are mutually exclusive options"),
        (None, None) => says("You need to specify either --command or --file"),
        (Some(sql), None) => Ok(sql.clone()),
        (None, Some(file)) => std::fs::read_to_string(file).map_err(|err| {
            let text = format!("--file {}: {err}", file.display());
            Cli::command()
                .error(clap::error::ErrorKind::InvalidValue, text)
                .into()
        }),
    }
}

fn no_connection(args: &Query) -> String {
    match (&args.member, args.role) {
        (Some(member), _) => format!("No connection to member {member} is available"),
        (None, Some(role)) => format!("No connection to role '{}' is available", role.name()),
        (None, None) => String::from("No connection is available"),
    }
}

/// A message takes the place of a result; it has no column names.
fn failure(text: String) -> Table {
    (
        Vec::new(),
        vec![vec![
            Value::from(console::timestamp_seconds()),
            Value::from(text),
        ]],
    )
}

/// `None`: nobody there, or not in the role that was asked for. An error is PostgreSQL's, or the
/// network's.
async fn connect(
    member: Option<&MemberRecord>,
    args: &Query,
    password: Option<&str>,
) -> Result<Option<Client>, String> {
    let Some((host, port)) = member.and_then(address) else {
        return Ok(None);
    };
    let target = Target::new(&host, port, args, password);
    let client = target.connect().await.map_err(|why| {
        format!("connection failed: connection to server at \"{host}\", port {port} failed: {why}")
    })?;
    let in_recovery = match args.role {
        None | Some(Role::Leader | Role::Any) => return Ok(Some(client)),
        Some(Role::Primary) => false,
        Some(Role::StandbyLeader | Role::Replica | Role::Standby) => true,
    };
    let answer = client
        .query_one("SELECT pg_catalog.pg_is_in_recovery()", &[])
        .await;
    let found: Option<bool> = answer.ok().and_then(|row| row.try_get(0).ok());
    Ok(Some(client).filter(|_| found == Some(in_recovery)))
}

/// What the server says, else what the network says.
fn problem(err: &tokio_postgres::Error) -> String {
    match err.as_db_error() {
        Some(db) => format!("{}:  {}", db.severity(), db.message()),
        None => super::error::chain(err),
    }
}

/// Where to connect, and as whom.
struct Target {
    config: Config,
    mode: String,
}

impl Target {
    fn new(host: &str, port: u16, args: &Query, password: Option<&str>) -> Self {
        let variable = |name: &str| std::env::var(name).ok().filter(|text| !text.is_empty());
        let system = || {
            nix::unistd::User::from_uid(nix::unistd::Uid::effective())
                .ok()
                .flatten()
        };
        let user = args.username.clone().or_else(|| variable("PGUSER"));
        let user = user
            .or_else(|| system().map(|user| user.name))
            .unwrap_or_default();
        let database = args.dbname.clone().or_else(|| variable("PGDATABASE"));
        let database = database.unwrap_or_else(|| user.clone());
        let password = password
            .map(str::to_owned)
            .or_else(|| variable("PGPASSWORD"));
        let password = password.or_else(|| passfile(host, port, &database, &user));
        let mut config = Config::new();
        config
            .host(host)
            .port(port)
            .user(user)
            .dbname(database)
            .application_name(
                variable("PGAPPNAME").unwrap_or_else(|| String::from(APPLICATION_NAME)),
            )
            .connect_timeout(CONNECT_LIMIT);
        if let Some(password) = password {
            config.password(password);
        }
        let mode = variable("PGSSLMODE").unwrap_or_else(|| String::from("prefer"));
        Self { config, mode }
    }

    async fn connect(&self) -> Result<Client, String> {
        use tokio_postgres::config::SslMode;
        let mut config = self.config.clone();
        config.ssl_mode(match self.mode.as_str() {
            "disable" | "allow" => SslMode::Disable,
            "prefer" => SslMode::Prefer,
            _ => SslMode::Require,
        });
        let tls = client_config(&self.tls()).map_err(|err| super::error::chain(&err))?;
        let tls = MakeRustlsConnect::new(Arc::unwrap_or_clone(tls));
        let connected = tokio::time::timeout(CONNECT_LIMIT, config.connect(tls)).await;
        let (client, connection) = connected
            .map_err(|_| String::from("connecting took too long"))?
            .map_err(|err| problem(&err))?;
        tokio::spawn(async move {
            if let Err(err) = connection.await {
                tracing::debug!("connection ended: {err}");
            }
        });
        Ok(client)
    }

    /// libpq verifies certificates only when it is told to.
    fn tls(&self) -> ClientTls {
        let file = |name: &str| std::env::var_os(name).map(PathBuf::from);
        let verified = matches!(self.mode.as_str(), "verify-ca" | "verify-full");
        let trust = match file("PGSSLROOTCERT") {
            _ if !verified => Trust::Anybody,
            Some(path) if path.as_os_str() != "system" => Trust::Ca(path),
            Some(_) | None => Trust::System,
        };
        ClientTls {
            trust,
            any_host_name: self.mode != "verify-full",
            certificate: file("PGSSLCERT").map(|cert| (cert, file("PGSSLKEY"))),
            key_password: None,
        }
    }
}

/// The password that `.pgpass` has for this connection.
fn passfile(host: &str, port: u16, database: &str, user: &str) -> Option<String> {
    let path = std::env::var_os("PGPASSFILE").map(PathBuf::from);
    let path = path.or_else(|| Some(std::env::home_dir()?.join(".pgpass")))?;
    let text = std::fs::read_to_string(path).ok()?;
    let wanted = [host, &port.to_string(), database, user];
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .find_map(|line| {
            let fields = passfile_fields(line);
            let matches = |(field, wanted): (&String, &&str)| field == "*" || field == wanted;
            let fits = fields.len() == 5 && fields.iter().zip(&wanted).all(matches);
            fits.then(|| fields.last().cloned()).flatten()
        })
}

/// Fields between colons; a backslash takes the next character as it is.
fn passfile_fields(line: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ':' if fields.len() < 5 => fields.push(String::new()),
            c => {
                let c = if c == '\\' {
                    chars.next().unwrap_or('\\')
                } else {
                    c
                };
                if let Some(field) = fields.last_mut() {
                    field.push(c);
                }
            }
        }
    }
    fields
}

/// Runs the statements; the first result is the one that is shown.
async fn run(client: &Client, sql: &str) -> Table {
    // Types can be asked for only when there is a single statement; otherwise everything is text.
    let types: Vec<Type> = match client.prepare(sql).await {
        Ok(statement) => statement
            .columns()
            .iter()
            .map(|c| c.type_().clone())
            .collect(),
        Err(_) => Vec::new(),
    };
    let messages = match client.simple_query(sql).await {
        Ok(messages) => messages,
        Err(err) => {
            let code = err.code().map(|code| code.code().to_owned());
            let code = code.unwrap_or_else(|| super::error::chain(&err));
            return failure(format!("ERROR, SQLSTATE: {code}"));
        }
    };
    let mut result: Option<Table> = None;
    for message in messages {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                let names = columns
                    .iter()
                    .map(|column| column.name().to_owned())
                    .collect();
                result = Some((names, Vec::new()));
            }
            SimpleQueryMessage::Row(row) => {
                let cells = (0..row.len()).map(|at| cell(row.get(at), types.get(at)));
                if let Some((_, rows)) = &mut result {
                    rows.push(cells.collect());
                }
            }
            // The end of the first statement.
            _ => break,
        }
    }
    result.unwrap_or_else(|| {
        failure(String::from(
            "ERROR, SQLSTATE: the last operation didn't produce records",
        ))
    })
}

/// A value as the other formats shall hold it; a table shows Python's text of it.
fn cell(text: Option<&str>, kind: Option<&Type>) -> Value {
    let Some(text) = text else {
        return Value::Null;
    };
    let number = || text.parse::<Number>().ok().map(Value::Number);
    let float = || {
        text.parse()
            .ok()
            .and_then(Number::from_f64)
            .map(Value::Number)
    };
    let typed = match kind {
        Some(kind) if *kind == Type::BOOL => Some(Value::Bool(text == "t")),
        Some(kind) if [Type::INT2, Type::INT4, Type::INT8, Type::OID].contains(kind) => number(),
        Some(kind) if [Type::FLOAT4, Type::FLOAT8].contains(kind) => float(),
        Some(kind) if *kind == Type::TIMESTAMPTZ => Some(Value::from(status_form(text))),
        _ => None,
    };
    typed.unwrap_or_else(|| Value::from(text))
}

fn print_result(args: &Query, names: Vec<String>, rows: Vec<Vec<Value>>) {
    let format = match args.format.as_str() {
        "pretty" => Format::Pretty,
        "tsv" => Format::Tsv,
        "json" => Format::Json,
        "yaml" | "yml" => Format::Yaml,
        // Nothing is printed then, as it always was.
        _ => return,
    };
    let as_text = matches!(format, Format::Pretty | Format::Tsv);
    let rows = if as_text {
        rows.into_iter().map(python_texts).collect()
    } else {
        rows
    };
    let columns: Vec<Column> = names.iter().cloned().map(Column::named).collect();
    let sheet = Sheet { columns, rows };
    match format {
        // A message has no header, and a table counts its fields.
        Format::Tsv if names.is_empty() => sayn!("{}", sheet.tsv_rows(&args.delimiter)),
        Format::Tsv => sayn!("{}", sheet.tsv(&args.delimiter)),
        Format::Pretty if names.is_empty() => {
            let fields = sheet.rows.first().map_or(0, Vec::len);
            let columns = (1..=fields)
                .map(|n| Column::named(format!("Field {n}")))
                .collect();
            sayn!("{}", Sheet { columns, ..sheet }.table(None));
        }
        format => sayn!("{}", sheet.render(format, Empty::Null)),
    }
}

fn python_texts(row: Vec<Value>) -> Vec<Value> {
    row.iter()
        .map(|cell| Value::from(crate::config::value::python_text(cell)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passfile_fields_may_hold_escaped_colons() {
        assert_eq!(
            passfile_fields(r"h:5432:*:u\:x:p\\w:d"),
            ["h", "5432", "*", "u:x", r"p\w:d"]
        );
    }
}
