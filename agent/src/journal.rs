//! The journal: every changed decision with all that it was made from, so that it can be explained and
//! decided again (`DESIGN.md` 5). Bounded, one JSON line an entry, beside the data directory.
//!
//! Writing never delays a decision: a thread of its own writes, and when it falls behind, entries are
//! left out and counted. The newest entries are kept in memory for REST.

use proto::config::Settings;
use proto::core::{Decision, Memory, Observation};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Size at which a file is put aside; one older file is kept.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Entries that may wait for the writer.
const WAITING_MAX: usize = 64;

/// Entries that REST can show.
const SHOWN_MAX: usize = 500;

/// One entry as REST and `gardenctl timeline` see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// Counts the entries of this life of the agent.
    pub seq: u64,
    /// Milliseconds since 1970.
    pub wall_ms: i64,
    /// Nanoseconds on the member's boot clock.
    pub mono_ns: u64,
    /// Who decided.
    pub member: String,
    /// The rule's id.
    pub rule: String,
    /// Its sentence.
    pub reason: String,
    /// The orders, by name.
    pub actions: Vec<String>,
    /// Entries before this one that were left out, since the writer was behind.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde hands out a reference"
)]
fn is_zero(n: &u64) -> bool {
    *n == 0
}

/// One line of the file: what was decided, and all that it was decided from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The part that people read.
    pub shown: Shown,
    /// What was seen.
    pub observation: Observation,
    /// What was remembered before.
    pub memory: Memory,
    /// The settings in force.
    pub settings: Settings,
    /// What was decided.
    pub decision: Decision,
}

/// What REST reads.
#[derive(Clone, Debug, Default)]
pub struct JournalReader(Arc<Mutex<VecDeque<Shown>>>);

impl JournalReader {
    fn entries(&self) -> MutexGuard<'_, VecDeque<Shown>> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The newest `limit` entries as JSON lines, oldest first.
    pub fn lines(&self, limit: usize) -> String {
        let entries = self.entries();
        let skip = entries.len().saturating_sub(limit);
        let mut text = String::new();
        for entry in entries.iter().skip(skip) {
            if let Ok(line) = serde_json::to_string(entry) {
                text.push_str(&line);
                text.push('\n');
            }
        }
        text
    }
}

enum ToWriter {
    Entry(Box<Entry>),
    Flush(SyncSender<()>),
}

/// The journal of this agent.
#[derive(Debug)]
pub struct Journal {
    member: String,
    reader: JournalReader,
    writer: Option<SyncSender<ToWriter>>,
    seq: u64,
    left_out: u64,
}

/// Where the journal of a data directory lives: `<data_dir>.garden/journal.jsonl`. Beside it, not in
/// it, so that neither a new copy nor a base backup takes it along.
pub fn path(data_dir: &Path) -> PathBuf {
    let mut name = data_dir.as_os_str().to_owned();
    name.push(".garden");
    PathBuf::from(name).join("journal.jsonl")
}

impl Journal {
    /// Opens the journal beside `data_dir`. Where that is not possible, entries are kept in memory
    /// only, and one line says so.
    pub fn open(data_dir: &Path, member: &str) -> Self {
        let path = path(data_dir);
        let writer = match FileWriter::open(&path) {
            Ok(file) => {
                let (sender, receiver) = sync_channel(WAITING_MAX);
                let thread = std::thread::Builder::new().name(String::from("journal"));
                match thread.spawn(move || file.run(&receiver)) {
                    Ok(_) => Some(sender),
                    Err(err) => {
                        tracing::warn!("the journal is not written: {err}");
                        None
                    }
                }
            }
            Err(err) => {
                tracing::warn!("the journal is not written: {}: {err}", path.display());
                None
            }
        };
        Self {
            member: member.to_owned(),
            reader: JournalReader::default(),
            writer,
            seq: 0,
            left_out: 0,
        }
    }

    /// For REST.
    pub fn reader(&self) -> JournalReader {
        self.reader.clone()
    }

    /// Takes an entry down.
    pub fn record(&mut self, o: &Observation, memory: &Memory, s: &Settings, decision: &Decision) {
        self.seq += 1;
        let shown = Shown {
            seq: self.seq,
            wall_ms: o.wall.0,
            mono_ns: o.now.0,
            member: self.member.clone(),
            rule: decision.reason.rule().to_owned(),
            reason: decision.reason.to_string(),
            actions: decision.actions.iter().map(action_name).collect(),
            left_out: self.left_out,
        };
        {
            let mut entries = self.reader.entries();
            if entries.len() >= SHOWN_MAX {
                entries.pop_front();
            }
            entries.push_back(shown.clone());
        }
        let Some(writer) = &self.writer else { return };
        let entry = Box::new(Entry {
            shown,
            observation: o.clone(),
            memory: memory.clone(),
            settings: s.clone(),
            decision: decision.clone(),
        });
        match writer.try_send(ToWriter::Entry(entry)) {
            Ok(()) => self.left_out = 0,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => self.left_out += 1,
        }
    }

    /// Waits until what was taken down is on disk, for a moment at most.
    pub fn flush(&self) {
        let Some(writer) = &self.writer else { return };
        let (done, wait) = sync_channel(1);
        if writer.try_send(ToWriter::Flush(done)).is_ok() {
            // A disk that hangs must not hang the end of the agent.
            let _ = wait.recv_timeout(std::time::Duration::from_millis(500));
        }
    }
}

fn action_name(action: &proto::core::Action) -> String {
    let shown = format!("{action:?}");
    let end = shown.find(['(', ' ', '{']).unwrap_or(shown.len());
    shown.get(..end).unwrap_or_default().to_owned()
}

struct FileWriter {
    path: PathBuf,
    file: File,
    size: u64,
}

impl FileWriter {
    fn open(path: &Path) -> std::io::Result<Self> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir)?;
        }
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self {
            path: path.to_owned(),
            file,
            size,
        })
    }

    fn run(mut self, entries: &Receiver<ToWriter>) {
        while let Ok(message) = entries.recv() {
            match message {
                ToWriter::Entry(entry) => {
                    if let Err(err) = self.write(&entry) {
                        tracing::warn!("the journal was not written: {err}");
                    }
                }
                ToWriter::Flush(done) => {
                    let _ = done.try_send(());
                }
            }
        }
    }

    fn write(&mut self, entry: &Entry) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        if self.size > FILE_BYTES_MAX {
            std::fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            *self = Self::open(&self.path)?;
        }
        self.file.write_all(&line)?;
        self.size += line.len() as u64;
        Ok(())
    }
}

/// How a recorded decision compares with what the rules say today.
#[derive(Clone, Debug, PartialEq)]
pub enum Replayed {
    /// The same decision.
    Same {
        /// The rule and its sentence.
        reason: String,
    },
    /// Another one.
    Differs {
        /// As recorded.
        recorded: String,
        /// As decided now.
        now: String,
    },
    /// Not an entry.
    Unreadable {
        /// Counted from one.
        line: usize,
        /// Why.
        problem: String,
    },
}

/// Decides every entry of a journal again.
pub fn replay(text: &str) -> Vec<Replayed> {
    let one = |(index, line): (usize, &str)| match serde_json::from_str::<Entry>(line) {
        Err(err) => Replayed::Unreadable {
            line: index + 1,
            problem: err.to_string(),
        },
        Ok(entry) => {
            let (now, _) = proto::core::decide(&entry.observation, &entry.memory, &entry.settings);
            if now == entry.decision {
                let rule = now.reason.rule();
                Replayed::Same {
                    reason: format!("{rule}: {}", now.reason),
                }
            } else {
                Replayed::Differs {
                    recorded: format!("{:#?}", entry.decision),
                    now: format!("{now:#?}"),
                }
            }
        }
    };
    text.lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty())
        .map(one)
        .collect()
}
