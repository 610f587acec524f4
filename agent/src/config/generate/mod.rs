//! `--generate-sample-config` and `--generate-config` (`configuration.md` 13.5, 13.6): a first
//! configuration, from a template or from a PostgreSQL that already runs.

pub(crate) mod dsn;
mod server;

use super::effective::{CONTROLLED, Rule};
use super::env::{self, Captured};
use super::{merge, yaml};
use crate::exit::Exit;
use serde_json::{Map, Value, json};
use std::fs;
use std::io::{self, Write as _};
use std::net::{IpAddr, ToSocketAddrs as _};
use std::path::Path;

/// What nobody but the operator knows.
const FIXME: &str = "#FIXME";

/// Why no configuration was written.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The connection string cannot be understood.
    #[error("--dsn: {0}")]
    Dsn(String),
    /// No session with the server.
    #[error("Failed to establish PostgreSQL connection: {0}")]
    Connect(String),
    /// The user may not see what is needed.
    #[error("The provided user does not have superuser privilege")]
    NotSuperuser,
    /// A question to the server failed.
    #[error("ask PostgreSQL")]
    Query(#[source] tokio_postgres::Error),
    /// A file cannot be read or written.
    #[error("{path}")]
    File {
        /// The file.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The password cannot be asked for.
    #[error("ask for the password")]
    Prompt(#[source] io::Error),
    /// No runtime for the connection.
    #[error("start the runtime")]
    Runtime(#[source] io::Error),
}

/// `--generate-sample-config`.
pub fn sample(output: Option<&Path>, environment: &Captured) -> Exit {
    report(write(output, &render(template(environment))))
}

/// `--generate-config`.
pub fn from_server(output: Option<&Path>, dsn: Option<&str>, environment: &Captured) -> Exit {
    report(server::describe(dsn, environment).and_then(|doc| write(output, &render(doc))))
}

fn report(result: Result<(), GenerateError>) -> Exit {
    let Err(error) = result else {
        return Exit::Success;
    };
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(error) = cause {
        line.push_str(&format!(": {error}"));
        cause = error.source();
    }
    // A closed stderr has nobody to tell.
    let _ = writeln!(io::stderr(), "{line}");
    Exit::Failure
}

/// To a file, whose directories are created, or to stdout.
fn write(output: Option<&Path>, text: &str) -> Result<(), GenerateError> {
    let failed = |path: &Path| {
        let path = path.display().to_string();
        move |source| GenerateError::File { path, source }
    };
    let Some(path) = output else {
        let stdout = Path::new("stdout");
        return io::stdout()
            .lock()
            .write_all(text.as_bytes())
            .map_err(failed(stdout));
    };
    if let Some(parent) = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
    {
        fs::create_dir_all(parent).map_err(failed(parent))?;
    }
    write_private(path, text).map_err(failed(path))
}

/// The file holds passwords.
fn write_private(path: &Path, text: &str) -> io::Result<()> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut options = fs::OpenOptions::new();
    let mut file = options
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

/// The template with the environment over it.
fn template(environment: &Captured) -> Map<String, Value> {
    let address = first_address();
    let doc = json!({
        "scope": FIXME,
        "name": host_name(),
        "log": {
            "type": "plain", "level": "INFO", "traceback_level": "ERROR", "max_queue_size": 1000,
            "format": "%(asctime)s %(levelname)s: %(message)s",
        },
        "restapi": {
            "listen": format!("{address}:8008"), "connect_address": format!("{address}:8008"),
        },
        "bootstrap": {"dcs": {
            "ttl": 30, "loop_wait": 10, "retry_timeout": 10,
            "postgresql": {
                "use_pg_rewind": true, "use_slots": true, "parameters": controlled_defaults(),
            },
        }},
        "postgresql": {
            "listen": format!("{address}:5432"), "connect_address": format!("{address}:5432"),
            "data_dir": FIXME, "bin_dir": "",
            "authentication": {
                "superuser": {"username": "postgres", "password": FIXME},
                "replication": {"username": "replicator", "password": FIXME},
                "rewind": {"username": "rewind_user", "password": FIXME},
            },
            "parameters": {"password_encryption": "scram-sha-256"},
            "pg_hba": [
                "host all all all scram-sha-256",
                "host replication replicator all scram-sha-256",
            ],
        },
        // Priorities and the older booleans exclude each other, so only one kind is offered.
        "tags": {
            "failover_priority": 1, "sync_priority": 1, "noloadbalance": false, "clonefrom": true,
            "nostream": false,
        },
    });
    let mut doc = match doc {
        Value::Object(doc) => doc,
        _ => Map::new(),
    };
    let (layer, _) = env::layer(environment);
    merge::patch(&mut doc, &layer);
    // Without a store nothing starts; Patroni leaves it to the reader to notice.
    if !super::validate::STORES
        .iter()
        .any(|kind| doc.contains_key(*kind))
    {
        doc.insert(String::from("etcd3"), json!({"hosts": [FIXME]}));
    }
    doc
}

fn controlled_defaults() -> Map<String, Value> {
    CONTROLLED
        .iter()
        .filter(|(name, _, rule)| *rule != Rule::Fixed && *name != "wal_keep_segments")
        .map(|(name, default, rule)| {
            let number = match rule {
                Rule::AtLeast(_) => default.parse::<i64>().ok(),
                _ => None,
            };
            (
                (*name).to_owned(),
                number.map_or_else(|| Value::from(*default), Value::from),
            )
        })
        .collect()
}

fn host_name() -> String {
    let name = nix::unistd::gethostname()
        .ok()
        .and_then(|name| name.into_string().ok());
    name.unwrap_or_else(|| FIXME.to_owned())
}

/// The address that our host name has.
fn first_address() -> String {
    let found = (host_name().as_str(), 0).to_socket_addrs().ok();
    let found = found.and_then(|mut all| all.find(|a| a.is_ipv4()).map(|a| a.ip()));
    match found {
        Some(IpAddr::V4(address)) if !address.is_loopback() => address.to_string(),
        _ => String::from("127.0.0.1"),
    }
}

/// The order in which people read it.
const ORDER: [&str; 18] = [
    "scope",
    "namespace",
    "name",
    "log",
    "restapi",
    "ctl",
    "citus",
    "consul",
    "etcd",
    "etcd3",
    "exhibitor",
    "kubernetes",
    "raft",
    "zookeeper",
    "bootstrap",
    "postgresql",
    "watchdog",
    "tags",
];

const BOOTSTRAP_COMMENT: &str = "\
# Read only while a new cluster is initialised. \"dcs\" becomes the dynamic configuration, which all
# members share; once the cluster exists, change it with \"gardenctl edit-config\", not here.
";

/// The document as text: a group per section, with a word of explanation where one is needed.
fn render(mut doc: Map<String, Value>) -> String {
    let mut text = String::new();
    let mut rest: Vec<String> = doc
        .keys()
        .filter(|k| !ORDER.contains(&k.as_str()))
        .cloned()
        .collect();
    rest.sort();
    for key in ORDER.into_iter().map(str::to_owned).chain(rest) {
        let Some(value) = doc.remove(&key) else {
            continue;
        };
        if value.is_object() {
            text.push('\n');
        }
        if key == "bootstrap" {
            text.push_str(BOOTSTRAP_COMMENT);
        }
        let section = Map::from_iter([(key, value)]);
        text.push_str(&yaml::to_string(&Value::Object(section)));
    }
    text
}

#[cfg(test)]
mod tests;
