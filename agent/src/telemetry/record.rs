//! One line of the log before it is formatted.

use super::levels;
use jiff::Timestamp;
use std::fmt::{self, Write as _};
use std::thread;
use tracing::Event;
use tracing::field::{Field, Visit};

/// A field of an event.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NamedValue {
    pub(super) name: &'static str,
    pub(super) text: String,
}

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) time: Timestamp,
    /// Python's number of the level.
    pub(super) level: u32,
    /// Dotted module.
    pub(super) name: String,
    pub(super) message: String,
    pub(super) fields: Vec<NamedValue>,
    pub(super) file: &'static str,
    pub(super) line: u32,
    pub(super) thread_name: String,
    pub(super) thread_id: u64,
}

impl Record {
    pub(super) fn of(event: &Event<'_>) -> Self {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        let level = if fields.critical {
            levels::CRITICAL
        } else {
            levels::of(*metadata.level())
        };
        let mut record = Self::new(level, fields.message);
        record.name = metadata.target().replace("::", ".");
        record.fields = fields.others;
        record.file = metadata.file().unwrap_or_default();
        record.line = metadata.line().unwrap_or_default();
        record
    }

    /// A record of the log itself.
    pub(super) fn new(level: u32, message: String) -> Self {
        let current = thread::current();
        // The id is opaque; its debug form is `ThreadId(7)`.
        let id = format!("{:?}", current.id());
        Self {
            time: Timestamp::now(),
            level,
            name: String::from("garden_agent.telemetry"),
            message,
            fields: Vec::new(),
            file: file!(),
            line: 0,
            thread_name: current.name().unwrap_or("unnamed").to_owned(),
            thread_id: id
                .chars()
                .filter(char::is_ascii_digit)
                .collect::<String>()
                .parse()
                .unwrap_or(0),
        }
    }

    pub(super) fn level_name(&self) -> &'static str {
        match self.level {
            levels::CRITICAL.. => "CRITICAL",
            levels::ERROR.. => "ERROR",
            levels::WARNING.. => "WARNING",
            levels::INFO.. => "INFO",
            _ => "DEBUG",
        }
    }

    /// The sentence and the fields after it.
    pub(super) fn full_message(&self) -> String {
        let mut text = self.message.clone();
        for field in &self.fields {
            if !text.is_empty() {
                text.push(' ');
            }
            // Writing to a string cannot fail.
            let _ = write!(text, "{}={}", field.name, field.text);
        }
        text
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    critical: bool,
    others: Vec<NamedValue>,
}

impl Fields {
    fn push(&mut self, field: &Field, text: String) {
        match field.name() {
            "message" => self.message = text,
            name => self.others.push(NamedValue { name, text }),
        }
    }
}

impl Visit for Fields {
    fn record_bool(&mut self, field: &Field, value: bool) {
        if field.name() == "critical" {
            self.critical = value;
        } else {
            self.push(field, value.to_string());
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let quoted =
            field.name() != "message" && (value.is_empty() || value.contains(char::is_whitespace));
        self.push(
            field,
            if quoted {
                format!("{value:?}")
            } else {
                value.to_owned()
            },
        );
    }

    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        let mut text = value.to_string();
        let mut cause = value.source();
        while let Some(error) = cause {
            let _ = write!(text, ": {error}");
            cause = error.source();
        }
        self.push(field, text);
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.push(field, format!("{value:?}"));
    }
}
