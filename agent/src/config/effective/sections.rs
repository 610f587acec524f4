//! The smaller sections: `log`, `restapi`, `ctl`, `watchdog`, `tags`, `bootstrap`.

use super::methods;
use super::read::Section;
use crate::config::error::ConfigError;
use crate::config::local::clamp;
use crate::config::value::{parse_int, python_text, shell_words, split_host_port, truthy};
use crate::config::{
    BootstrapConfig, CtlConfig, GuardianConfig, LogConfig, RestApiConfig, ServerTls, VerifyClient,
    WatchdogConfig, WatchdogMode,
};
use proto::config::Tags;
use serde_json::{Map, Value};
use std::path::PathBuf;

const LEVELS: [&str; 8] = [
    "NOTSET", "DEBUG", "INFO", "WARN", "WARNING", "ERROR", "FATAL", "CRITICAL",
];

impl Default for LogConfig {
    fn default() -> Self {
        Self {
            json: false,
            level: String::from("INFO"),
            traceback_level: String::from("ERROR"),
            format: Value::Null,
            dateformat: None,
            static_fields: Map::new(),
            max_queue_size: 1000,
            dir: None,
            mode: None,
            file_size: 25_000_000,
            file_num: 4,
            loggers: Default::default(),
            deduplicate_heartbeat_logs: false,
        }
    }
}

/// `log` (`configuration.md` 5.2). An unknown level is an error, as in Patroni, which knows upper case
/// only; lower case is accepted here.
pub(super) fn log(section: &Section<'_>) -> Result<LogConfig, ConfigError> {
    let default = LogConfig::default();
    let level = section
        .text("level")?
        .map_or(default.level, |l| l.to_uppercase());
    if !is_level(&level) {
        return Err(section.wrong("level", "one of DEBUG, INFO, WARNING, ERROR, CRITICAL"));
    }
    let mut loggers = section.texts("loggers");
    for level in loggers.values_mut() {
        *level = level.to_uppercase();
        if !is_level(level) {
            return Err(section.wrong("loggers", "a level such as DEBUG or WARNING for each"));
        }
    }
    let dir = section.path("dir")?;
    if let Some(dir) = &dir
        && !dir.is_dir()
    {
        return Err(section.wrong("dir", "a directory that exists and is writable"));
    }
    let unsigned = |key: &str, default: u64| -> Result<u64, ConfigError> {
        let number = section.int(key)?.map_or(Ok(default), u64::try_from);
        number.map_err(|_| section.wrong(key, "zero or more"))
    };
    let size = |key: &str, default: usize| -> Result<usize, ConfigError> {
        Ok(usize::try_from(unsigned(key, default as u64)?).unwrap_or(default))
    };
    let mode = section.int("mode")?.map(|mode| {
        u32::try_from(mode).map_err(|_| section.wrong("mode", "an octal mode such as 0644"))
    });
    Ok(LogConfig {
        json: section
            .text("type")?
            .is_some_and(|t| t.eq_ignore_ascii_case("json")),
        level,
        traceback_level: section
            .text("traceback_level")?
            .unwrap_or(default.traceback_level),
        format: section.get("format").cloned().unwrap_or(Value::Null),
        dateformat: match section.get("dateformat") {
            Some(Value::String(text)) if !text.is_empty() => Some(text.clone()),
            Some(Value::String(_)) | None => None,
            Some(_) => {
                section.unusable("dateformat", "a strftime text", "using the default");
                None
            }
        },
        static_fields: match section.get("static_fields") {
            Some(Value::Object(map)) => map.clone(),
            _ => Map::new(),
        },
        // Zero means no limit in Python; a queue without a limit is none that never blocks.
        max_queue_size: size("max_queue_size", default.max_queue_size)?.max(1),
        dir,
        mode: mode.transpose()?,
        file_size: unsigned("file_size", default.file_size)?,
        file_num: size("file_num", default.file_num)?,
        loggers,
        deduplicate_heartbeat_logs: section.flag("deduplicate_heartbeat_logs"),
    })
}

fn is_level(text: &str) -> bool {
    LEVELS.contains(&text) || (!text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()))
}

/// `restapi` (`configuration.md` 9).
pub(super) fn restapi(section: &Section<'_>) -> Result<RestApiConfig, ConfigError> {
    let expected = "host:port, for example 0.0.0.0:8008";
    let listen = section
        .text("listen")?
        .ok_or_else(|| section.missing("listen", expected))?;
    let address =
        split_host_port(&listen, None).ok_or_else(|| section.wrong("listen", expected))?;
    let connect_address = match section.text("connect_address")? {
        None => address.text(),
        Some(text) => split_host_port(&text, Some(address.port))
            .ok_or_else(|| section.wrong("connect_address", "host:port"))?
            .text(),
    };
    let backlog = section
        .int("request_queue_size")?
        .map_or(Ok(5), u32::try_from);
    Ok(RestApiConfig {
        listen_host: address.host,
        listen_port: address.port,
        connect_address,
        authentication: section.authentication()?,
        tls: server_tls(section)?,
        allowlist: allowlist(section),
        allowlist_include_members: section.flag("allowlist_include_members"),
        http_extra_headers: section.texts("http_extra_headers"),
        https_extra_headers: section.texts("https_extra_headers"),
        request_queue_size: backlog
            .map_err(|_| section.wrong("request_queue_size", "zero or more"))?,
        server_tokens: server_tokens(section)?,
    })
}

fn server_tls(section: &Section<'_>) -> Result<Option<ServerTls>, ConfigError> {
    let Some(certfile) = section.path("certfile")? else {
        return Ok(None);
    };
    Ok(Some(ServerTls {
        certfile,
        keyfile: section.path("keyfile")?,
        keyfile_password: section.secret("keyfile_password")?,
        cafile: section.path("cafile")?,
        ciphers: section.text("ciphers")?,
        verify_client: verify_client(section),
    }))
}

fn verify_client(section: &Section<'_>) -> VerifyClient {
    match section.get("verify_client") {
        // `off` and `no` are booleans in YAML 1.1.
        None | Some(Value::Bool(_)) => VerifyClient::None,
        Some(value) => match python_text(value).to_lowercase().as_str() {
            "none" | "" => VerifyClient::None,
            "optional" => VerifyClient::Optional,
            "required" => VerifyClient::Required,
            _ => {
                let expected = "none, optional or required";
                section.unusable(
                    "verify_client",
                    expected,
                    "client certificates are not verified",
                );
                VerifyClient::None
            }
        },
    }
}

/// A text instead of a list opens Patroni's API to everybody; here it is read as what it means.
fn allowlist(section: &Section<'_>) -> Vec<String> {
    match section.get("allowlist") {
        None => Vec::new(),
        Some(Value::Array(items)) => items.iter().map(python_text).collect(),
        Some(Value::String(text)) => {
            section.unusable(
                "allowlist",
                "a list",
                "reading the text as a list with commas",
            );
            text.split(',')
                .map(|t| t.trim().to_owned())
                .filter(|t| !t.is_empty())
                .collect()
        }
        Some(_) => {
            section.unusable(
                "allowlist",
                "a list of hosts, addresses or networks",
                "ignoring it",
            );
            Vec::new()
        }
    }
}

fn server_tokens(section: &Section<'_>) -> Result<String, ConfigError> {
    let tokens = section.text("server_tokens")?.map(|t| t.to_lowercase());
    match tokens.as_deref() {
        None | Some("original") => Ok(String::from("original")),
        Some("minimal" | "productonly") => Ok(tokens.unwrap_or_default()),
        Some(_) => {
            let expected = "Original, Minimal or ProductOnly";
            section.unusable("server_tokens", expected, "using Original");
            Ok(String::from("original"))
        }
    }
}

/// `ctl`, with `restapi` for what it lacks (`configuration.md` 10).
pub(super) fn ctl(section: &Section<'_>, restapi: &Section<'_>) -> Result<CtlConfig, ConfigError> {
    let authentication = match section.authentication()? {
        Some(own) => Some(own),
        None => restapi.authentication()?,
    };
    let cacert = match section.path("cacert")? {
        Some(own) => Some(own),
        None => restapi.path("cafile")?,
    };
    Ok(CtlConfig {
        authentication,
        insecure: section.flag("insecure"),
        cacert,
        certfile: section.path("certfile")?,
        keyfile: section.path("keyfile")?,
        keyfile_password: section.secret("keyfile_password")?,
    })
}

/// `watchdog` (`configuration.md` 11.1): automatic when the section is missing.
pub(super) fn watchdog(section: &Section<'_>) -> Result<WatchdogConfig, ConfigError> {
    let mode = match section.get("mode") {
        None => WatchdogMode::Automatic,
        Some(Value::Bool(false)) => WatchdogMode::Off,
        Some(value) => match python_text(value).to_lowercase().as_str() {
            "require" | "required" => WatchdogMode::Required,
            "auto" | "automatic" => WatchdogMode::Automatic,
            "off" | "disable" | "disabled" => WatchdogMode::Off,
            _ => {
                section.unusable("mode", "off, automatic or required", "the watchdog is off");
                WatchdogMode::Off
            }
        },
    };
    let safety_margin = match section.get("safety_margin") {
        None => 5,
        Some(value) => parse_int(value, None)
            .filter(|n| *n >= -1)
            .unwrap_or_else(|| {
                section.unusable("safety_margin", "a whole number from -1", "using 5");
                5
            }),
    };
    Ok(WatchdogConfig {
        mode,
        device: section
            .path("device")?
            .unwrap_or_else(|| PathBuf::from("/dev/watchdog")),
        driver: section
            .text("driver")?
            .unwrap_or_else(|| String::from("default")),
        safety_margin,
    })
}

/// `garden`, our own section.
pub(super) fn guardian(section: &Section<'_>) -> GuardianConfig {
    GuardianConfig {
        pid_namespace: section.flag("pid_namespace"),
    }
}

/// `tags`, as given.
pub(super) fn tags(section: &Section<'_>) -> Tags {
    for note in tag_conflicts(&section.map) {
        section.notes.push(note);
    }
    Tags(section.map.clone())
}

/// Sentences about boolean tags that contradict their priority tag; the boolean wins
/// (`configuration.md` 11.2).
pub(in crate::config) fn tag_conflicts(tags: &Map<String, Value>) -> Vec<String> {
    let pairs = [
        ("nofailover", "failover_priority"),
        ("nosync", "sync_priority"),
    ];
    let conflict = |(flag, priority): &(&str, &str)| {
        let (off, number) = (tags.get(*flag)?, tags.get(*priority)?);
        if off.is_null() || number.is_null() {
            return None;
        }
        let positive = parse_int(number, None).unwrap_or(1) > 0;
        (truthy(off) == positive).then(|| {
            let (off, number) = (python_text(off), python_text(number));
            format!(
                "Conflicting configuration between {flag}: {off} and {priority}: {number}. \
                 Defaulting to {flag}: {off}"
            )
        })
    };
    pairs.iter().filter_map(conflict).collect()
}

/// `bootstrap` (`configuration.md` 6.1). What is wrong with it matters only when a cluster is
/// initialised, so it is kept for then.
pub(super) fn bootstrap(
    local: &Map<String, Value>,
    section: &Section<'_>,
) -> Result<Option<BootstrapConfig>, ConfigError> {
    if !local.get("bootstrap").is_some_and(truthy) {
        return Ok(None);
    }
    if section.get("users").is_some() {
        section.notes.push(format!(
            "{}: bootstrap.users is not supported any more: create users in post_bootstrap",
            section.origin("users")
        ));
    }
    let (initdb, mut problems) =
        methods::options("initdb", section.get("initdb"), &methods::INITDB);
    let key = if section.get("post_bootstrap").is_some() {
        "post_bootstrap"
    } else {
        "post_init"
    };
    let post_bootstrap = match section.text(key)? {
        None => None,
        Some(text) => {
            let words = shell_words(&text);
            if words.is_none() {
                problems.push(format!(
                    "bootstrap.{key}: expected a command: a quote is not closed"
                ));
            }
            words.filter(|words| !words.is_empty())
        }
    };
    Ok(Some(BootstrapConfig {
        dcs: clamp(section.sub("dcs")?.map),
        method: methods::bootstrap_method(section, &mut problems)?,
        initdb,
        pg_hba: section.lines("pg_hba").unwrap_or_default(),
        post_bootstrap,
        problems,
    }))
}
