//! What operators write: YAML, variables, values, connection strings, the log's format.

use super::text;
use crate::fuzz::Seen;
use garden_agent::config::env::Captured;
use garden_agent::config::value::{self, HostPort};
use garden_agent::config::{
    AgentConfig, ConfigError, Loader, LocalConfig, LogConfig, merge, yaml as dialect,
};
use garden_agent::foreign;
use proto::config::SECONDS_MAX;
use serde_json::{Map, Value};

pub const YAML_WORDS: &[&str] = &[
    "&a ",
    "*a",
    "<<: *a",
    "!!int ",
    "!!str ",
    "!x ",
    "- ",
    "? ",
    "|\n ",
    ">-\n ",
    "---\n",
    "...\n",
    "0o7",
    "0b1",
    "1:30",
    ".inf",
    "~",
    "0700",
    "1_000",
    "2001-01-01",
    "%YAML 1.1",
];

pub const FILE_WORDS: &[&str] = &[
    "postgresql:",
    "etcd3:",
    "restapi:",
    "bootstrap:",
    "standby_cluster:",
    "*S3CR3T",
    "!S3CR3T",
    "password: S3CR3T",
    "citus:",
    "pgpass",
    "listen: ",
    "null",
    "1e19",
];

pub const DYNAMIC_WORDS: &[&str] = &[
    "\"create_replica_methods\"",
    "\"recovery_conf\"",
    "\"pg_ctl_timeout\"",
    "\"parameters\"",
    "\"max_connections\"",
    "\"listen\"",
    "\"callbacks\"",
    "\"slots\"",
    "\"HOT_STANDBY\"",
];

pub const VARIABLES: &[&str] = &[
    "PATRONI_ETCD3_URL",
    "PATRONI_ETCD3_PASSWORD",
    "PATRONI_LOG_FORMAT",
    "PATRONI_RESTAPI_HTTP_EXTRA_HEADERS",
    "PATRONI_TAGS",
    "PATRONI_POSTGRESQL_BIN_PG_CTL",
    "PATRONI_SUPERUSER_PASSWORD",
    "PATRONI_CTL_INSECURE",
    "PATRONI_RESTAPI_ALLOWLIST",
];

/// Stands for every password of the corpus.
const SECRET: &str = "S3CR3T";

/// Most bytes that a document may become through its aliases.
const EXPANDED_MAX: usize = 32 << 20;

pub fn yaml(input: &[u8]) -> Seen {
    let text = text(input);
    let value = match dialect::from_str(&text) {
        Ok(value) => value,
        Err(error) => {
            assert!(error.problem.len() < 300, "{error}");
            return Seen::Refused;
        }
    };
    assert!(
        weight(&value) < EXPANDED_MAX,
        "{} bytes from {}",
        weight(&value),
        input.len()
    );
    for written in [dialect::to_string(&value), dialect::to_flow(&value)] {
        let again =
            dialect::from_str(&written).unwrap_or_else(|error| panic!("{error} in {written:?}"));
        assert_eq!(again, value, "{written:?}");
    }
    Seen::Accepted
}

fn weight(value: &Value) -> usize {
    match value {
        Value::String(text) => 8 + text.len(),
        Value::Array(items) => items.iter().map(weight).sum::<usize>() + 8,
        Value::Object(map) => map
            .iter()
            .map(|(key, value)| 8 + key.len() + weight(value))
            .sum(),
        _ => 8,
    }
}

fn loaded(variables: Captured) -> Result<LocalConfig, ConfigError> {
    Loader::new(None, variables)?.load()
}

/// A file, by way of `PATRONI_CONFIGURATION`, which is the same text.
pub fn file(input: &[u8]) -> Seen {
    let text = text(input);
    let source = Captured::from([(
        String::from("PATRONI_CONFIGURATION"),
        text.clone().into_owned(),
    )]);
    let local = match loaded(source) {
        Ok(local) => local,
        Err(error) => {
            // Nothing is understood, so all of it may be a password.
            assert!(!error.line().contains(SECRET), "{}", error.line());
            return Seen::Refused;
        }
    };
    let told = Told {
        secret: only_in_passwords(local.doc()),
    };
    local.notes().iter().for_each(|note| told.check(note));
    if let Err(error) = local.control() {
        told.check(&error.line());
    }
    let dynamic = local.bootstrap_dcs().unwrap_or_default();
    let built = local.effective(&dynamic);
    match &built {
        Ok((config, notes)) => {
            notes.iter().for_each(|note| told.check(note));
            told.check(&format!("{config:?}"));
            assert_usable(config);
        }
        Err(error) => told.check(&error.line()),
    }
    Seen::from(built.is_ok())
}

/// What is told of a configuration whose passwords are known.
struct Told {
    secret: bool,
}

impl Told {
    fn check(&self, line: &str) {
        assert!(
            !self.secret || !line.contains(SECRET),
            "a password is told: {line}"
        );
    }
}

/// Whether the secret is where a password belongs, and nowhere else.
fn only_in_passwords(doc: &Map<String, Value>) -> bool {
    only_in_passwords_below("", doc)
}

fn only_in_passwords_below(path: &str, doc: &Map<String, Value>) -> bool {
    let account = matches!(
        path,
        ".restapi"
            | ".restapi.authentication"
            | ".ctl"
            | ".ctl.authentication"
            | ".etcd3"
            | ".postgresql.authentication.superuser"
            | ".postgresql.authentication.replication"
            | ".postgresql.authentication.rewind"
    );
    doc.iter().all(|(key, value)| {
        let password = matches!(
            key.as_str(),
            "password" | "sslpassword" | "keyfile_password"
        );
        !key.contains(SECRET)
            && match value {
                Value::Object(map) => only_in_passwords_below(&format!("{path}.{key}"), map),
                Value::String(_) if account && password => true,
                other => !other.to_string().contains(SECRET),
            }
    })
}

fn assert_usable(config: &AgentConfig) {
    let pg = &config.postgresql;
    assert!(!config.name.is_empty() && !config.scope.is_empty());
    assert!(!config.etcd.endpoints.is_empty());
    assert!(
        pg.pg_ctl_timeout.as_secs() <= SECONDS_MAX,
        "{:?}",
        pg.pg_ctl_timeout
    );
    // What we write for libpq is what libpq reads.
    if let Some(conninfo) = foreign::conninfo(config, "postgres://10.0.0.2:5433/postgres") {
        let words = foreign::keywords(&conninfo).unwrap_or_else(|| panic!("{conninfo}"));
        assert_eq!(
            words.get("application_name"),
            Some(&config.name),
            "{conninfo}"
        );
        assert_eq!(words.get("host").map(String::as_str), Some("10.0.0.2"));
        assert_eq!(words.get("dbname"), Some(&pg.database), "{conninfo}");
    }
}

const LOCAL: &str = "
scope: garden
name: gd-a
restapi: {listen: '127.0.0.1:8008', connect_address: '127.0.0.1:8008'}
etcd3: {hosts: '127.0.0.1:2379'}
postgresql:
  listen: 127.0.0.1:5433
  connect_address: 127.0.0.1:5433
  data_dir: /nowhere/data
  pgpass: /nowhere/pgpass
  parameters: {work_mem: 8MB}
  authentication:
    replication: {username: replicator, password: S3CR3T}
    superuser: {username: postgres, password: S3CR3T}
";

/// The document in etcd over a file that is good: whatever it says, the member keeps its own identity.
pub fn dynamic(input: &[u8]) -> Seen {
    let Ok(Value::Object(document)) = serde_json::from_slice(input) else {
        return Seen::Refused;
    };
    let source = Captured::from([(String::from("PATRONI_CONFIGURATION"), LOCAL.to_owned())]);
    let local = loaded(source).expect("the file is good");
    match local.effective(&document) {
        Ok((config, notes)) => {
            assert_usable(&config);
            assert_eq!(
                (config.name.as_str(), config.scope.as_str()),
                ("gd-a", "garden")
            );
            assert_eq!(config.postgresql.data_dir.to_str(), Some("/nowhere/data"));
            assert!(notes.iter().all(|note| !note.contains(SECRET)));
            Seen::Accepted
        }
        Err(error) => {
            assert!(!error.line().contains(SECRET), "{error}");
            Seen::Refused
        }
    }
}

/// Variables, one on a line.
pub fn environment(input: &[u8]) -> Seen {
    let text = text(input);
    let variables: Captured = text
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(name, _)| name.starts_with("PATRONI_") && *name != "PATRONI_CONFIGURATION")
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let secret = variables
        .iter()
        .all(|(name, value)| name.ends_with("PASSWORD") || !value.contains(SECRET));
    let told = Told {
        secret: secret && !variables.keys().any(|name| name.contains(SECRET)),
    };
    match loaded(variables) {
        Ok(local) => {
            local.notes().iter().for_each(|note| told.check(note));
            let built = local.effective(&Map::new());
            if let Err(error) = &built {
                told.check(&error.line());
            }
            Seen::from(built.is_ok())
        }
        Err(error) => {
            told.check(&error.line());
            Seen::Refused
        }
    }
}

/// Single values: numbers with units, addresses, words of a command.
pub fn value(input: &[u8]) -> Seen {
    let text = text(input);
    let wrapped = Value::String(text.clone().into_owned());
    let mut accepted = false;
    for unit in [None, Some("s"), Some("ms"), Some("kB"), Some("8kB")] {
        if let Some(number) =
            value::parse_int(&wrapped, unit).filter(|n| n.unsigned_abs() < 1 << 53)
        {
            let again = Value::String(number.to_string());
            assert_eq!(value::parse_int(&again, unit), Some(number), "{text:?}");
            accepted = true;
        }
        assert!(
            value::parse_real(&wrapped, unit).is_none_or(|number| !number.is_nan()),
            "{text:?}"
        );
    }
    if let Some(number) = value::python_int(&wrapped) {
        assert_eq!(value::python_int(&Value::from(number)), Some(number));
    }
    let address = value::split_host_port(&text, None);
    address.as_ref().inspect(|address| assert_address(address));
    let words = value::shell_words(&text);
    assert!(words.iter().flatten().map(String::len).sum::<usize>() <= text.len());
    assert_decoded(&text);
    Seen::from(accepted || address.is_some())
}

fn assert_address(address: &HostPort) {
    let plain = |host: &str| !host.contains(['[', ']']) && host == host.trim();
    // An address in brackets is one without them, and a list is taken apart elsewhere.
    if plain(&address.host) && !address.host.contains(',') {
        assert_eq!(
            value::split_host_port(&address.text(), None).as_ref(),
            Some(address)
        );
    }
}

/// `%` and two digits are a byte; nothing else changes.
fn assert_decoded(text: &str) {
    let decoded = foreign::percent_decode(text);
    let escape = |piece: &str| {
        piece.len() >= 2 && piece.bytes().take(2).all(|byte| byte.is_ascii_hexdigit())
    };
    if !text.split('%').skip(1).any(escape) {
        assert_eq!(decoded, text);
    }
}

/// Two documents on two lines: the one that is there, and the change of it.
pub fn patch(input: &[u8]) -> Seen {
    let text = text(input);
    let read = |line: Option<&str>| match serde_json::from_str(line.unwrap_or_default()) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let mut lines = text.lines();
    let (before, change) = (read(lines.next()), read(lines.next()));
    let mut after = before.clone();
    let changed = merge::patch(&mut after, &change);
    assert_eq!(changed, after != before, "{before:?} {change:?}");
    assert!(
        change
            .iter()
            .all(|(key, value)| value.is_null() != after.contains_key(key))
    );
    for (key, value) in &change {
        let mut set = before.clone();
        let path = merge::split_path(key);
        merge::set(&mut set, &path, value.clone());
        if path.len() == 1 {
            assert_eq!(set.get(key), Some(value).filter(|value| !value.is_null()));
        }
    }
    Seen::Accepted
}

pub fn dsn(input: &[u8]) -> Seen {
    let text = text(input);
    match foreign::dsn(&text) {
        Ok(_) => Seen::Accepted,
        Err(told) => {
            assert!(!told.contains(SECRET) && told.len() < 200, "{told}");
            Seen::Refused
        }
    }
}

/// `log.format` and `log.dateformat`, on two lines: a line of the log has the message of its record, or the format is
/// one without it; and it has no more than what the widths of the format ask for.
pub fn log_format(input: &[u8]) -> Seen {
    let text = text(input);
    let (format, dateformat) = text.split_once('\n').unwrap_or((&text, ""));
    let mut config = LogConfig {
        format: Value::from(format),
        ..LogConfig::default()
    };
    config.dateformat = Some(dateformat.to_owned()).filter(|text| !text.is_empty());
    let (line, notes) = foreign::log_line(&config, "the message");
    assert!(notes.iter().all(|note| note.len() < 600), "{notes:?}");
    let fields = 1 + format.matches('%').count() + dateformat.matches('%').count();
    assert!(
        line.len() <= format.len() + fields * (2000 + dateformat.len()),
        "{line}"
    );
    let (line, _) = foreign::log_line(
        &LogConfig {
            json: true,
            ..config
        },
        "the message",
    );
    let read: Value = serde_json::from_str(&line).expect("a line of JSON");
    assert!(read.is_object());
    Seen::Accepted
}
