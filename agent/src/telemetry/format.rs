//! Percent-style and JSON lines (`configuration.md` 5.3).

use super::record::Record;
use crate::config::LogConfig;
use crate::config::value::python_text;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use serde_json::{Map, Value};
use std::path::Path;

const DEFAULT: &str = "%(asctime)s %(levelname)s: %(message)s";

/// Fields of a JSON line when none are configured.
const DEFAULT_FIELDS: [&str; 3] = ["asctime", "levelname", "message"];

const ATTRIBUTES: [&str; 17] = [
    "asctime",
    "created",
    "filename",
    "funcName",
    "levelname",
    "levelno",
    "lineno",
    "message",
    "module",
    "msecs",
    "name",
    "pathname",
    "process",
    "processName",
    "relativeCreated",
    "thread",
    "threadName",
];

/// Formats records as configured.
pub(super) struct Formatter {
    layout: Layout,
    dateformat: Option<String>,
    zone: TimeZone,
    started: Timestamp,
}

enum Layout {
    Plain(Vec<Piece>),
    Json {
        fields: Vec<(String, String)>,
        statics: Map<String, Value>,
    },
}

/// A part of a percent-style format.
#[derive(Debug, PartialEq)]
enum Piece {
    Text(String),
    Attribute {
        name: String,
        left: bool,
        zero: bool,
        width: usize,
        precision: Option<usize>,
        kind: char,
    },
}

impl Formatter {
    /// The formatter, and sentences about what could not be used.
    pub(super) fn new(config: &LogConfig) -> (Self, Vec<String>) {
        let mut notes = Vec::new();
        let layout = if config.json {
            let fields = json_fields(&config.format, &mut notes);
            Layout::Json {
                fields,
                statics: config.static_fields.clone(),
            }
        } else {
            Layout::Plain(plain(&config.format, &mut notes))
        };
        let zone = TimeZone::system();
        let dateformat = config.dateformat.clone().filter(|text| {
            let shown =
                jiff::fmt::strtime::format(text, &Timestamp::UNIX_EPOCH.to_zoned(zone.clone()));
            if let Err(error) = &shown {
                notes.push(format!("log.dateformat is not used: {error}"));
            }
            shown.is_ok()
        });
        (
            Self {
                layout,
                dateformat,
                zone,
                started: Timestamp::now(),
            },
            notes,
        )
    }

    /// One line, without its end.
    pub(super) fn format(&self, record: &Record) -> String {
        match &self.layout {
            Layout::Plain(pieces) => pieces
                .iter()
                .map(|piece| self.piece(piece, record))
                .collect(),
            Layout::Json { fields, statics } => self.json(fields, statics, record),
        }
    }

    fn json(
        &self,
        fields: &[(String, String)],
        statics: &Map<String, Value>,
        record: &Record,
    ) -> String {
        let mut line = Map::new();
        for (attribute, shown) in fields {
            let value = match attribute.as_str() {
                "message" => Value::from(record.message.as_str()),
                other => self.attribute(other, record),
            };
            line.insert(shown.clone(), value);
        }
        for field in &record.fields {
            line.entry(field.name)
                .or_insert_with(|| Value::from(field.text.as_str()));
        }
        for (key, value) in statics {
            line.insert(key.clone(), value.clone());
        }
        Value::Object(line).to_string()
    }

    fn piece(&self, piece: &Piece, record: &Record) -> String {
        let Piece::Attribute {
            name,
            left,
            zero,
            width,
            precision,
            kind,
        } = piece
        else {
            return match piece {
                Piece::Text(text) => text.clone(),
                Piece::Attribute { .. } => String::new(),
            };
        };
        let value = self.attribute(name, record);
        let text = match (kind, value.as_f64(), precision) {
            ('d' | 'i' | 'u', Some(number), _) => format!("{number:.0}"),
            ('f' | 'F', Some(number), precision) => format!("{number:.*}", precision.unwrap_or(6)),
            (_, _, Some(precision)) => python_text(&value).chars().take(*precision).collect(),
            _ => python_text(&value),
        };
        if *left {
            format!("{text:<width$}")
        } else if *zero && value.is_number() {
            format!("{text:0>width$}")
        } else {
            format!("{text:>width$}")
        }
    }

    fn attribute(&self, name: &str, record: &Record) -> Value {
        let path = Path::new(record.file);
        let part = |part: Option<&std::ffi::OsStr>| {
            Value::from(part.and_then(|p| p.to_str()).unwrap_or_default())
        };
        match name {
            "asctime" => Value::from(self.asctime(record.time)),
            "created" => Value::from(record.time.as_microsecond() as f64 / 1e6),
            "msecs" => Value::from(f64::from(record.time.subsec_microsecond()) / 1e3),
            "relativeCreated" => {
                let passed = record.time.as_microsecond() - self.started.as_microsecond();
                Value::from(passed as f64 / 1e3)
            }
            "filename" => part(path.file_name()),
            "module" => part(path.file_stem()),
            "pathname" => Value::from(record.file),
            "levelname" => Value::from(record.level_name()),
            "levelno" => Value::from(record.level),
            "lineno" => Value::from(record.line),
            "message" => Value::from(record.full_message()),
            "name" => Value::from(record.name.as_str()),
            "process" => Value::from(std::process::id()),
            "processName" => Value::from("MainProcess"),
            "thread" => Value::from(record.thread_id),
            "threadName" => Value::from(record.thread_name.as_str()),
            // `funcName`: Rust does not tell.
            _ => Value::from(""),
        }
    }

    fn asctime(&self, time: Timestamp) -> String {
        let local = time.to_zoned(self.zone.clone());
        match &self.dateformat {
            // Checked in `new`.
            Some(format) => jiff::fmt::strtime::format(format, &local).unwrap_or_default(),
            None => format!(
                "{},{:03}",
                local.strftime("%Y-%m-%d %H:%M:%S"),
                local.millisecond()
            ),
        }
    }
}

fn plain(format: &Value, notes: &mut Vec<String>) -> Vec<Piece> {
    let text = match format {
        Value::Null => DEFAULT,
        Value::String(text) if text.is_empty() => DEFAULT,
        Value::String(text) => text,
        _ => {
            notes.push(String::from(
                "Expected log format to be a string when log type is plain",
            ));
            DEFAULT
        }
    };
    match pieces(text) {
        Some(pieces) => pieces,
        None => {
            notes.push(format!(
                "log.format is not used: expected %(name)s with one of {ATTRIBUTES:?}"
            ));
            pieces(DEFAULT).unwrap_or_default()
        }
    }
}

/// `None` when the text is no percent-style format or names an attribute that does not exist.
fn pieces(text: &str) -> Option<Vec<Piece>> {
    let mut pieces = Vec::new();
    let mut literal = String::new();
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        literal.push_str(rest.get(..at)?);
        rest = rest.get(at + 1..)?;
        if let Some(after) = rest.strip_prefix('%') {
            literal.push('%');
            rest = after;
            continue;
        }
        if !literal.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut literal)));
        }
        let (name, after) = rest.strip_prefix('(')?.split_once(')')?;
        if !ATTRIBUTES.contains(&name) {
            return None;
        }
        let (piece, after) = conversion(name, after)?;
        pieces.push(piece);
        rest = after;
    }
    literal.push_str(rest);
    if !literal.is_empty() {
        pieces.push(Piece::Text(literal));
    }
    Some(pieces)
}

/// Widest column that a format may ask for.
const WIDTH_LIMIT: usize = 1000;

/// Flags, width, precision and type after the name.
fn conversion<'t>(name: &str, text: &'t str) -> Option<(Piece, &'t str)> {
    let flags_end = text.find(|c| !"-+ #0".contains(c))?;
    let (flags, rest) = text.split_at(flags_end);
    let width_end = rest.find(|c: char| !c.is_ascii_digit())?;
    let (width, mut rest) = rest.split_at(width_end);
    let mut precision = None;
    if let Some(after) = rest.strip_prefix('.') {
        let end = after.find(|c: char| !c.is_ascii_digit())?;
        let (digits, after) = after.split_at(end);
        precision = Some(if digits.is_empty() {
            0
        } else {
            digits.parse().ok()?
        });
        rest = after;
    }
    let kind = rest
        .chars()
        .next()
        .filter(|c| "sdiufFrxXeEgG".contains(*c))?;
    let width: usize = if width.is_empty() {
        0
    } else {
        width.parse().ok()?
    };
    if width > WIDTH_LIMIT || precision > Some(WIDTH_LIMIT) {
        return None;
    }
    let (left, zero) = (flags.contains('-'), flags.contains('0'));
    let piece = Piece::Attribute {
        name: name.to_owned(),
        left,
        zero,
        width,
        precision,
        kind,
    };
    Some((piece, rest.get(kind.len_utf8()..)?))
}

/// The attributes of a JSON line and the names under which they are printed.
fn json_fields(format: &Value, notes: &mut Vec<String>) -> Vec<(String, String)> {
    let mut fields = Vec::new();
    match format {
        Value::String(text) => {
            for part in text.split("%(").skip(1) {
                if let Some((name, _)) = part.split_once(')') {
                    fields.push((name.to_owned(), name.to_owned()));
                }
            }
        }
        Value::Array(items) => {
            for item in items {
                match item {
                    Value::String(name) => fields.push((name.clone(), name.clone())),
                    Value::Object(map) if map.len() == 1 => fields.extend(
                        map.iter()
                            .map(|(name, shown)| (name.clone(), python_text(shown))),
                    ),
                    _ => notes.push(String::from(
                        "log.format: expected a name or a mapping of one name to the printed one",
                    )),
                }
            }
        }
        _ => {}
    }
    if fields.is_empty() {
        fields = DEFAULT_FIELDS
            .map(|name| (name.to_owned(), name.to_owned()))
            .to_vec();
    }
    fields
}
