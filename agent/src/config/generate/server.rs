//! What a running PostgreSQL says about itself, as a configuration.

use super::dsn::Target;
use super::{FIXME, GenerateError, template};
use crate::config::effective::CONTROLLED;
use crate::config::env::Captured;
use crate::config::secret::Secret;
use crate::postgres::connect;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tokio_postgres::Client;

/// Limit of each question.
const QUERY_LIMIT: Duration = Duration::from_secs(10);

/// Settings that belong to one member (`configuration.md` 13.6).
const LOCAL: [&str; 5] = [
    "archive_command",
    "restore_command",
    "archive_cleanup_command",
    "recovery_end_command",
    "ssl_passphrase_command",
];

/// Settings that follow from other keys, or that the agent decides.
const DERIVED: [&str; 9] = [
    "listen_addresses",
    "port",
    "cluster_name",
    "config_file",
    "hba_file",
    "ident_file",
    "data_directory",
    "primary_conninfo",
    "primary_slot_name",
];

/// Connects and asks.
pub(super) fn describe(
    dsn: Option<&str>,
    environment: &Captured,
) -> Result<Map<String, Value>, GenerateError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(GenerateError::Runtime)?;
    let mut target = Target::parse(dsn, |name| std::env::var(name).ok())?;
    let facts = runtime.block_on(async {
        let client = session(&mut target).await?;
        tokio::time::timeout(QUERY_LIMIT, Facts::ask(&client))
            .await
            .unwrap_or_else(|_| Err(GenerateError::Connect(String::from("no answer in time"))))
    })?;
    Ok(document(&facts, &target, environment))
}

/// A session; asks for the password when the server wants one that was not given.
async fn session(target: &mut Target) -> Result<Client, GenerateError> {
    let first = connected(target).await;
    let wants_password = |error: &str| error.contains("password");
    match first {
        Err(GenerateError::Connect(why))
            if target.credentials.password.is_none()
                && wants_password(&why)
                && io::stdin().is_terminal() =>
        {
            target.credentials.password = Some(ask_password()?);
            connected(target).await
        }
        other => other,
    }
}

async fn connected(target: &Target) -> Result<Client, GenerateError> {
    let database = target.database.as_deref().unwrap_or("postgres");
    connect::direct(&target.hosts, target.port, database, &target.credentials)
        .await
        .map_err(|error| GenerateError::Connect(error.to_string()))
}

/// Reads a password without showing it.
fn ask_password() -> Result<Secret, GenerateError> {
    let echo = |mode: &str| Command::new("stty").arg(mode).status().map(|_| ());
    write!(io::stderr(), "Please enter the user password: ").map_err(GenerateError::Prompt)?;
    echo("-echo").map_err(GenerateError::Prompt)?;
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    echo("echo").map_err(GenerateError::Prompt)?;
    read.map_err(GenerateError::Prompt)?;
    // The newline that was not shown.
    writeln!(io::stderr()).map_err(GenerateError::Prompt)?;
    Ok(Secret::new(line.trim_end_matches(['\r', '\n'])))
}

/// Answers of the server.
struct Facts {
    /// Settings that somebody set, and the controlled ones.
    settings: Map<String, Value>,
    data_dir: PathBuf,
    listen: String,
    port: u16,
    cluster_name: String,
    hba_file: PathBuf,
    ident_file: PathBuf,
}

impl Facts {
    async fn ask(client: &Client) -> Result<Self, GenerateError> {
        let setting = async |name: &str| -> Result<String, GenerateError> {
            let row = client
                .query_one("SELECT pg_catalog.current_setting($1)", &[&name])
                .await
                .map_err(GenerateError::Query)?;
            row.try_get(0).map_err(GenerateError::Query)
        };
        if setting("is_superuser").await? != "on" {
            return Err(GenerateError::NotSuperuser);
        }
        let names: Vec<&str> = CONTROLLED.iter().map(|(name, _, _)| *name).collect();
        let rows = client
            .query(
                "SELECT name, pg_catalog.current_setting(name) FROM pg_catalog.pg_settings \
                 WHERE name = ANY ($1) OR (context <> 'internal' AND setting <> '(disabled)' \
                 AND source IN ('configuration file', 'command line', 'environment variable') \
                 AND category <> 'Write-Ahead Log / Recovery Target')",
                &[&names],
            )
            .await
            .map_err(GenerateError::Query)?;
        let mut settings = Map::new();
        for row in rows {
            let name: String = row.try_get(0).map_err(GenerateError::Query)?;
            let value: String = row.try_get(1).map_err(GenerateError::Query)?;
            settings.insert(name, Value::from(value));
        }
        Ok(Self {
            settings,
            data_dir: PathBuf::from(setting("data_directory").await?),
            listen: setting("listen_addresses").await?,
            port: setting("port").await?.parse().unwrap_or(5432),
            cluster_name: setting("cluster_name").await?,
            hba_file: PathBuf::from(setting("hba_file").await?),
            ident_file: PathBuf::from(setting("ident_file").await?),
        })
    }
}

fn document(facts: &Facts, target: &Target, environment: &Captured) -> Map<String, Value> {
    let mut doc = template(environment);
    if !facts.cluster_name.is_empty() {
        doc.insert(
            String::from("scope"),
            Value::from(facts.cluster_name.as_str()),
        );
    }
    let mut shared = facts.settings.clone();
    let mut local = Map::new();
    for name in LOCAL {
        local.extend(shared.remove(name).map(|value| (name.to_owned(), value)));
    }
    shared.retain(|name, _| !DERIVED.contains(&name.as_str()));
    doc.insert(
        String::from("bootstrap"),
        json!({"dcs": {
            "ttl": 30, "loop_wait": 10, "retry_timeout": 10,
            "postgresql": {"use_slots": true, "parameters": shared},
        }}),
    );
    let mut postgresql = Map::new();
    let files = [
        ("pg_hba", "hba_file", &facts.hba_file),
        ("pg_ident", "ident_file", &facts.ident_file),
    ];
    for (key, setting, path) in files {
        if path.parent() != Some(facts.data_dir.as_path()) {
            local.insert(setting.to_owned(), Value::from(path.display().to_string()));
        } else if let Some(lines) = lines_of(path, key == "pg_hba") {
            postgresql.insert(key.to_owned(), Value::from(lines));
        }
    }
    let host = connect_host(doc.get("restapi"), target);
    let listen = if facts.listen.is_empty() {
        "localhost"
    } else {
        &facts.listen
    };
    postgresql.insert(String::from("parameters"), Value::Object(local));
    postgresql.insert(String::from("authentication"), authentication(target, &doc));
    for (key, value) in [
        ("data_dir", facts.data_dir.display().to_string()),
        ("listen", format!("{listen}:{}", facts.port)),
        ("connect_address", format!("{host}:{}", facts.port)),
        ("bin_dir", bin_dir(&facts.data_dir).unwrap_or_default()),
    ] {
        postgresql.insert(key.to_owned(), Value::from(value));
    }
    doc.insert(String::from("postgresql"), Value::Object(postgresql));
    doc
}

/// The address that was connected to, when others can use it; else this host's own.
fn connect_host(restapi: Option<&Value>, target: &Target) -> String {
    let local = |host: &String| {
        host.starts_with('/') || matches!(host.as_str(), "localhost" | "127.0.0.1" | "::1")
    };
    if let Some(host) = target.hosts.first().filter(|host| !local(host)) {
        return host.clone();
    }
    let address = restapi
        .and_then(|r| r.get("connect_address"))
        .and_then(Value::as_str);
    let host = address
        .and_then(|a| a.rsplit_once(':'))
        .map(|(host, _)| host.to_owned());
    host.unwrap_or_else(|| FIXME.to_owned())
}

fn authentication(target: &Target, doc: &Map<String, Value>) -> Value {
    let mut superuser = Map::new();
    let credentials = &target.credentials;
    superuser.insert(
        String::from("username"),
        Value::from(connect::user_of(credentials)),
    );
    let password = credentials
        .password
        .as_ref()
        .map_or(FIXME, |password| password.reveal());
    superuser.insert(String::from("password"), Value::from(password));
    for (key, value) in &credentials.options {
        superuser.insert(key.clone(), Value::from(value.as_str()));
    }
    // The environment may know the replication user; the template's own is only an example.
    let from_environment = doc
        .get("postgresql")
        .and_then(|p| p.get("authentication"))
        .and_then(|a| a.get("replication"))
        .filter(|r| r.get("username") != Some(&Value::from("replicator")))
        .cloned();
    let replication =
        from_environment.unwrap_or_else(|| json!({"username": FIXME, "password": FIXME}));
    json!({"superuser": superuser, "replication": replication})
}

/// The lines that mean something: records of the known types, or all but comments.
fn lines_of(path: &Path, is_hba: bool) -> Option<Vec<String>> {
    const TYPES: [&str; 6] = [
        "local",
        "host",
        "hostssl",
        "hostnossl",
        "hostgssenc",
        "hostnogssenc",
    ];
    let text = fs::read_to_string(path).ok()?;
    let is_record = |line: &&str| match line.split_whitespace().next() {
        None => false,
        Some(first) if is_hba => TYPES.contains(&first),
        Some(first) => !first.starts_with('#'),
    };
    let lines: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(is_record)
        .map(str::to_owned)
        .collect();
    (!lines.is_empty()).then_some(lines)
}

/// Where the postmaster's program lies.
fn bin_dir(data_dir: &Path) -> Option<String> {
    let file = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let pid: u32 = file.lines().next()?.trim().parse().ok()?;
    let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(program.parent()?.display().to_string())
}
