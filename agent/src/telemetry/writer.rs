//! The writer thread: formats, leaves out heartbeat noise, rotates the file.

use super::format::Formatter;
use super::levels::{self, Levels};
use super::queue::{Item, Queue};
use super::record::Record;
use crate::config::LogConfig;
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

/// What a reload replaces.
pub(super) struct Settings {
    pub(super) output: Output,
    pub(super) formatter: Formatter,
    pub(super) heartbeat: Heartbeat,
    pub(super) levels: Levels,
}

/// Writes until the queue has ended.
pub(super) fn run(queue: &Queue, mut settings: Settings) {
    loop {
        let items = queue.take();
        if items.is_empty() {
            break;
        }
        for item in items {
            match item {
                Item::Record(record) => settings.log(record),
                Item::Reconfigure(new) => {
                    settings.flush();
                    settings = *new;
                }
            }
        }
    }
    settings.flush();
}

impl Settings {
    fn log(&mut self, record: Record) {
        // Where only critical records are wanted, plain errors get this far.
        if record.level < self.levels.threshold(&record.name) {
            return;
        }
        for record in self.heartbeat.pass(record) {
            self.output.write(&self.formatter.format(&record));
        }
    }

    fn flush(&mut self) {
        for record in self.heartbeat.held() {
            self.output.write(&self.formatter.format(&record));
        }
    }
}

/// Leaves out `Lock owner: …; I am …` before an uneventful cycle, at level INFO
/// (`configuration.md` 5.4).
pub(super) struct Heartbeat {
    active: bool,
    deduplicate: bool,
    /// Held back, by module.
    held: BTreeMap<String, Record>,
    /// The last uneventful line, by module.
    last: BTreeMap<String, String>,
}

impl Heartbeat {
    pub(super) fn new(config: &LogConfig) -> Self {
        Self {
            active: levels::number(&config.level) == levels::INFO,
            deduplicate: config.deduplicate_heartbeat_logs,
            held: BTreeMap::new(),
            last: BTreeMap::new(),
        }
    }

    /// The records to print now.
    fn pass(&mut self, record: Record) -> Vec<Record> {
        if !self.active {
            return vec![record];
        }
        let message = &record.message;
        if message.starts_with("Lock owner: ") {
            let before = self.held.insert(record.name.clone(), record);
            return before.into_iter().collect();
        }
        let held = self.held.remove(&record.name);
        let uneventful =
            message.starts_with("no action.") || message.starts_with("PAUSE: no action");
        if !uneventful {
            self.last.remove(&record.name);
            return held.into_iter().chain([record]).collect();
        }
        let repeated = self.last.insert(record.name.clone(), message.clone());
        if self.deduplicate && repeated.is_some_and(|last| last == record.message) {
            return Vec::new();
        }
        vec![record]
    }

    fn held(&mut self) -> Vec<Record> {
        std::mem::take(&mut self.held).into_values().collect()
    }
}

/// Where lines go.
pub(super) enum Output {
    Stderr,
    File(RotatingFile),
}

impl Output {
    fn write(&mut self, line: &str) {
        let written = match self {
            Self::Stderr => Err(io::Error::other("no file")),
            Self::File(file) => file.write(line),
        };
        if written.is_err() {
            // A full disk must not silence the agent; a broken stderr has nobody to tell.
            let _ = writeln!(io::stderr().lock(), "{line}");
        }
    }
}

/// `patroni.log` and the files `.1` to `.N` before it.
pub(super) struct RotatingFile {
    path: PathBuf,
    file: File,
    size: u64,
    limit: u64,
    keep: usize,
    mode: Option<u32>,
}

impl RotatingFile {
    pub(super) fn open(path: PathBuf, config: &LogConfig) -> io::Result<Self> {
        let file = open(&path, config.mode)?;
        let size = file.metadata()?.len();
        let (limit, keep, mode) = (config.file_size, config.file_num, config.mode);
        Ok(Self {
            path,
            file,
            size,
            limit,
            keep,
            mode,
        })
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64 + 1;
        // Without files to keep nothing is ever rotated, as in Python.
        let rotates = self.limit > 0 && self.keep > 0 && self.size > 0;
        if rotates && self.size.saturating_add(length) > self.limit {
            self.rotate()?;
        }
        self.file.write_all(format!("{line}\n").as_bytes())?;
        self.size += length;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |n: usize| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{n}"));
            PathBuf::from(name)
        };
        for n in (1..self.keep).rev() {
            rename_if_there(&numbered(n), &numbered(n + 1))?;
        }
        rename_if_there(&self.path, &numbered(1))?;
        self.file = open(&self.path, self.mode)?;
        self.size = 0;
        Ok(())
    }
}

fn rename_if_there(from: &std::path::Path, to: &std::path::Path) -> io::Result<()> {
    match fs::rename(from, to) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn open(path: &std::path::Path, mode: Option<u32>) -> io::Result<File> {
    let file = OpenOptions::new().append(true).create(true).open(path)?;
    if let Some(mode) = mode {
        file.set_permissions(Permissions::from_mode(mode & 0o7777))?;
    }
    Ok(file)
}
