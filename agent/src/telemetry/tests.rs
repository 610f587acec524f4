use super::*;
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;

fn scratch(name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("garden-log-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).expect("directory");
    dir
}

/// What a configuration writes for the events of `log`.
fn written(name: &str, config: LogConfig, log: impl FnOnce(&TelemetryGuard)) -> String {
    let dir = scratch(name);
    let config = LogConfig {
        dir: Some(dir.clone()),
        ..config
    };
    let (subscriber, guard, _) = build(&config).expect("built");
    tracing::subscriber::with_default(subscriber, || log(&guard));
    guard.shutdown().expect("written");
    let text = fs::read_to_string(dir.join("patroni.log")).expect("log");
    let _ = fs::remove_dir_all(dir);
    text
}

#[test]
fn the_default_line_is_patronis() {
    let text = written("default", LogConfig::default(), |_| {
        tracing::info!("no action. I am (a), the leader with the lock");
        tracing::error!(critical = true, "Can't start");
        tracing::warn!(lsn = %"0/3", reason = "two words", count = 2, "moved");
        tracing::debug!("hidden");
    });
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    // A level is looked for at column 25.
    let tails: Vec<&str> = lines.iter().filter_map(|l| l.get(24..)).collect();
    assert_eq!(
        tails,
        [
            "INFO: no action. I am (a), the leader with the lock",
            "CRITICAL: Can't start",
            "WARNING: moved lsn=0/3 reason=\"two words\" count=2",
        ]
    );
    let stamp = lines.first().and_then(|l| l.get(..23)).expect("stamp");
    assert!(
        jiff::civil::DateTime::strptime("%Y-%m-%d %H:%M:%S", &stamp[..19]).is_ok(),
        "{stamp}"
    );
    assert!(stamp.as_bytes().get(19) == Some(&b','), "{stamp}");
}

#[test]
fn custom_formats_have_pythons_attributes() {
    let config = LogConfig {
        format: json!(
            "%(levelname)-8s|%(name)s|%(lineno)05d|%(module)s|%(process)d|100%%|%(message).5s"
        ),
        ..LogConfig::default()
    };
    let text = written("custom", config, |_| tracing::info!("sentence"));
    let parts: Vec<&str> = text.trim_end().split('|').collect();
    assert_eq!(parts.first(), Some(&"INFO    "));
    assert_eq!(parts.get(1), Some(&"garden_agent.telemetry.tests"));
    assert!(
        parts
            .get(2)
            .is_some_and(|line| line.len() == 5 && line.starts_with('0'))
    );
    assert_eq!(parts.get(3), Some(&"tests"));
    assert_eq!(parts.get(4), Some(&std::process::id().to_string().as_str()));
    assert_eq!(parts.get(5..), Some(["100%", "sente"].as_slice()));
}

#[test]
fn a_format_that_is_none_gives_the_default_and_a_note() {
    for format in [
        json!("%(nonsense)s"),
        json!("%d"),
        json!("%(message)"),
        json!(["message"]),
    ] {
        let config = LogConfig {
            format: format.clone(),
            ..LogConfig::default()
        };
        let (_, notes) = Formatter::new(&config);
        assert_eq!(notes.len(), 1, "{format}");
    }
}

#[test]
fn json_lines_have_the_chosen_and_the_static_fields() {
    let config = LogConfig {
        json: true,
        format: json!(["message", {"levelname": "level"}]),
        static_fields: json!({"app": "x"}).as_object().cloned().unwrap_or_default(),
        ..LogConfig::default()
    };
    let text = written("json", config, |_| tracing::info!(lsn = 3, "a \"b\""));
    let line: Value = serde_json::from_str(text.trim_end()).expect("json");
    assert_eq!(
        line,
        json!({"message": "a \"b\"", "level": "INFO", "lsn": "3", "app": "x"})
    );
}

#[test]
fn levels_per_module_and_reload() {
    let mut config = LogConfig {
        level: String::from("WARNING"),
        ..LogConfig::default()
    };
    config.format = json!("%(message)s");
    config
        .loggers
        .insert(String::from("patroni.telemetry"), String::from("DEBUG"));
    let text = written("levels", config.clone(), |guard| {
        tracing::debug!("own module");
        tracing::info!(target: "garden_agent::member", "elsewhere");
        tracing::warn!(target: "hyper::proto", "library");
        let dir = std::env::temp_dir().join(format!("garden-log-{}-levels", std::process::id()));
        let changed = LogConfig {
            level: String::from("CRITICAL"),
            dir: Some(dir),
            ..LogConfig::default()
        };
        guard.reload(&changed).expect("reloaded");
        tracing::error!("no longer");
        tracing::error!(critical = true, "still");
    });
    let tails: Vec<&str> = text
        .lines()
        .map(|l| l.rsplit(": ").next().unwrap_or(l))
        .collect();
    assert_eq!(tails, ["own module", "library", "still"], "{text}");
}

#[test]
fn uneventful_heartbeats_are_one_line() {
    let config = LogConfig {
        format: json!("%(message)s"),
        deduplicate_heartbeat_logs: true,
        ..LogConfig::default()
    };
    let text = written("heartbeat", config, |_| {
        for message in [
            "no action. I am a",
            "no action. I am a",
            "promoted self",
            "no action. I am a",
        ] {
            tracing::info!("Lock owner: a; I am a");
            tracing::info!("{message}");
        }
        tracing::info!("Lock owner: a; I am a");
    });
    assert_eq!(
        text.lines().collect::<Vec<_>>(),
        [
            "no action. I am a",
            "Lock owner: a; I am a",
            "promoted self",
            "no action. I am a",
            "Lock owner: a; I am a",
        ]
    );
}

#[test]
fn files_rotate_before_they_pass_their_size() {
    let dir = scratch("rotate");
    let config = LogConfig {
        dir: Some(dir.clone()),
        file_size: 30,
        file_num: 2,
        mode: Some(0o640),
        format: json!("%(message)s"),
        ..LogConfig::default()
    };
    let (subscriber, guard, _) = build(&config).expect("built");
    tracing::subscriber::with_default(subscriber, || {
        for n in 0..8 {
            tracing::info!("line number {n}");
        }
    });
    guard.shutdown().expect("written");
    let read = |name: &str| fs::read_to_string(dir.join(name)).unwrap_or_default();
    assert_eq!(read("patroni.log"), "line number 6\nline number 7\n");
    assert_eq!(read("patroni.log.1"), "line number 4\nline number 5\n");
    assert_eq!(read("patroni.log.2"), "line number 2\nline number 3\n");
    assert!(!dir.join("patroni.log.3").exists());
    let mode = fs::metadata(dir.join("patroni.log")).map(|m| {
        use std::os::unix::fs::PermissionsExt as _;
        m.permissions().mode() & 0o777
    });
    assert_eq!(mode.ok(), Some(0o640));
    let _ = fs::remove_dir_all(dir);
}

#[test]
fn a_full_queue_drops_counts_and_never_waits() {
    let queue = Queue::new(3);
    for n in 0..10 {
        queue.push(Record::new(levels::INFO, format!("{n}")));
    }
    let messages = |items: Vec<queue::Item>| -> Vec<String> {
        items
            .into_iter()
            .filter_map(|item| match item {
                queue::Item::Record(record) => Some(record.message),
                queue::Item::Reconfigure(_) => None,
            })
            .collect()
    };
    assert_eq!(messages(queue.take()), ["0", "1", "2"]);
    queue.push(Record::new(levels::INFO, String::from("next")));
    assert_eq!(
        messages(queue.take()),
        ["QueueHandler has lost 7 log records", "next"]
    );
}

#[test]
fn an_unusable_directory_is_an_error() {
    let config = LogConfig {
        dir: Some(PathBuf::from("/nonexistent/x")),
        ..LogConfig::default()
    };
    let error = settings(&config).err().map(|e| e.to_string());
    assert_eq!(
        error.as_deref(),
        Some("log.dir: open /nonexistent/x/patroni.log")
    );
}
