//! Messages between the agent and its guardian: one datagram each, at most [`MAX_MESSAGE`] bytes.
//!
//! `tag: u8, id: u32, fields…`, little-endian; texts and lists carry their length as `u32`. An agent
//! may be newer than the guardian that it finds (an upgrade restarts only the agent), so both sides
//! open with their version, and fields are only ever appended: a reader ignores what follows.

use super::{Armed, Basis};
use crate::ids::Epoch;
use crate::time::MonoTime;
use std::time::Duration;

/// Version of the messages. A reader of version `n` understands all from 1 to `n`.
pub const VERSION: u16 = 1;

/// Longest message: an argument list and an environment fit, and a socket buffer holds it.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Most arguments or variables in one list.
const MAX_ITEMS: usize = 4096;

/// What a message could not be read for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("malformed guardian message")]
pub struct Malformed;

/// How to start a postmaster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Start {
    /// Program (an absolute path) and arguments.
    pub argv: Vec<Vec<u8>>,
    /// The whole environment: name and value.
    pub env: Vec<(Vec<u8>, Vec<u8>)>,
    /// Working directory; empty: the guardian's own.
    pub cwd: Vec<u8>,
    /// File that both output streams are appended to; empty: the guardian's own streams.
    pub log: Vec<u8>,
    /// Only while a deadline stands: see [`super::FenceClock::may_start`]. An agent that does not know of this
    /// asks for nothing of the kind.
    pub bounded: bool,
}

/// What an agent leaves with the guardian for the agent after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// The agent's session.
    pub session: String,
    /// Whatever the agent needs to go on: epoch, sequence number, revision, in its own form.
    pub blob: Vec<u8>,
}

/// What the agent asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// First message of a connection.
    Hello {
        /// [`VERSION`] of the agent.
        version: u16,
    },
    /// Sign of life.
    Heartbeat,
    /// Start the postmaster.
    Start(Start),
    /// Guard a postmaster that somebody else started.
    Adopt {
        /// Its pid.
        pid: i32,
    },
    /// Send a signal to the postmaster.
    Signal {
        /// Number.
        signal: i32,
    },
    /// See [`super::FenceClock::arm`].
    Arm(Armed),
    /// See [`super::FenceClock::disarm`].
    Disarm {
        /// The tenure.
        epoch: Epoch,
        /// What is known about PostgreSQL.
        basis: Basis,
    },
    /// End every process now.
    Fence,
    /// Remember this for the next agent.
    Keep(Kept),
    /// End, unless something is left to guard.
    Leave,
}

/// What the guardian is like when an agent meets it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Greeting {
    /// [`VERSION`] of the guardian.
    pub version: u16,
    /// Its pid.
    pub pid: i32,
    /// Which life of the guardian this is: random.
    pub session: String,
    /// The postmaster, if there is one.
    pub postmaster: Option<i32>,
    /// Whether the guardian is its parent, and so gets its exit status.
    pub is_parent: bool,
    /// The deadline.
    pub armed: Option<Armed>,
    /// The test of the fencing bound passed.
    pub fit: bool,
    /// What that test measured.
    pub measured: Duration,
    /// How processes are ended, for people: `scan`, `cgroup`, `namespace`.
    pub method: String,
    /// What the agent before left.
    pub kept: Option<Kept>,
}

/// What the guardian says. `id` of an answer is that of the request, zero for news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Answer to [`Request::Hello`].
    Hello(Greeting),
    /// Answer to [`Request::Heartbeat`].
    Heartbeat,
    /// The postmaster was started or adopted.
    Postmaster {
        /// Its pid.
        pid: i32,
    },
    /// A request was carried out that has no other answer.
    Done,
    /// A request was refused.
    Refused {
        /// Why, for people.
        why: String,
    },
    /// This deadline counts now.
    Armed(Armed),
    /// None counts.
    Disarmed,
    /// The postmaster ended.
    Exited {
        /// Its pid.
        pid: i32,
        /// As of `wait`; `None` when the guardian was not its parent.
        status: Option<i32>,
    },
    /// So many processes outlived the postmaster and are being ended.
    Orphans {
        /// How many.
        count: u32,
    },
    /// No process of the cluster is left.
    Empty,
    /// Fencing is over; no process is left.
    Fenced {
        /// From the deadline or the order to the end of the last process.
        took: Duration,
        /// How many were ended.
        count: u32,
    },
    /// Another agent has taken over this connection.
    Replaced,
    /// Another agent, alive, holds the guardian.
    Busy {
        /// Its pid.
        pid: i32,
    },
}

/// Appends a message to `out`.
struct Writer<'a>(&'a mut Vec<u8>);

impl Writer<'_> {
    fn open(&mut self, tag: u8, id: u32) {
        self.0.clear();
        self.0.push(tag);
        self.u32(id);
    }
    fn u32(&mut self, n: u32) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }
    fn i32(&mut self, n: i32) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }
    fn u64(&mut self, n: u64) {
        self.0.extend_from_slice(&n.to_le_bytes());
    }
    fn flag(&mut self, on: bool) {
        self.0.push(u8::from(on));
    }
    fn bytes(&mut self, bytes: &[u8]) {
        // Longer texts cannot pass the check of the whole message's length.
        self.u32(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        self.0.extend_from_slice(bytes);
    }
    fn duration(&mut self, d: Duration) {
        self.u64(u64::try_from(d.as_nanos()).unwrap_or(u64::MAX));
    }
    fn armed(&mut self, armed: Armed) {
        self.u64(armed.epoch.0);
        self.u64(armed.deadline.0);
    }
    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        self.flag(value.is_some());
        if let Some(value) = value {
            write(self, value);
        }
    }
}

/// Reads fields off the front of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, rest) = self.0.split_at_checked(n).ok_or(Malformed)?;
        self.0 = rest;
        Ok(head)
    }
    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }
    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }
    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    fn i32(&mut self) -> Result<i32, Malformed> {
        Ok(i32::from_le_bytes(self.array()?))
    }
    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    fn flag(&mut self) -> Result<bool, Malformed> {
        Ok(self.u8()? != 0)
    }
    fn bytes(&mut self) -> Result<Vec<u8>, Malformed> {
        let n = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        Ok(self.take(n)?.to_vec())
    }
    fn text(&mut self) -> Result<String, Malformed> {
        String::from_utf8(self.bytes()?).map_err(|_| Malformed)
    }
    fn duration(&mut self) -> Result<Duration, Malformed> {
        Ok(Duration::from_nanos(self.u64()?))
    }
    fn armed(&mut self) -> Result<Armed, Malformed> {
        Ok(Armed {
            epoch: Epoch(self.u64()?),
            deadline: MonoTime(self.u64()?),
        })
    }
    fn option<T>(
        &mut self,
        read: impl FnOnce(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Option<T>, Malformed> {
        if self.flag()? {
            read(self).map(Some)
        } else {
            Ok(None)
        }
    }
    fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let n = usize::try_from(self.u32()?).map_err(|_| Malformed)?;
        if n > MAX_ITEMS {
            return Err(Malformed);
        }
        (0..n).map(|_| read(self)).collect()
    }
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

impl Request {
    /// Writes the message with this id into `out`, replacing what was there.
    ///
    /// # Errors
    /// [`Malformed`] when it is longer than [`MAX_MESSAGE`].
    pub fn encode(&self, id: u32, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut w = Writer(out);
        match self {
            Self::Hello { version } => {
                w.open(1, id);
                w.u32(u32::from(*version));
            }
            Self::Heartbeat => w.open(2, id),
            Self::Start(start) => {
                w.open(3, id);
                w.u32(count(start.argv.len()));
                start.argv.iter().for_each(|arg| w.bytes(arg));
                w.u32(count(start.env.len()));
                for (name, value) in &start.env {
                    w.bytes(name);
                    w.bytes(value);
                }
                w.bytes(&start.cwd);
                w.bytes(&start.log);
                if start.bounded {
                    w.flag(true);
                }
            }
            Self::Adopt { pid } => {
                w.open(4, id);
                w.i32(*pid);
            }
            Self::Signal { signal } => {
                w.open(5, id);
                w.i32(*signal);
            }
            Self::Arm(armed) => {
                w.open(6, id);
                w.armed(*armed);
            }
            Self::Disarm { epoch, basis } => {
                w.open(7, id);
                w.u64(epoch.0);
                w.0.push(match basis {
                    Basis::Unknown => 0,
                    Basis::InRecovery => 1,
                    Basis::Paused => 2,
                });
            }
            Self::Fence => w.open(8, id),
            Self::Keep(kept) => {
                w.open(9, id);
                w.bytes(kept.session.as_bytes());
                w.bytes(&kept.blob);
            }
            Self::Leave => w.open(10, id),
        }
        if out.len() > MAX_MESSAGE {
            Err(Malformed)
        } else {
            Ok(())
        }
    }

    /// Reads a message and its id.
    ///
    /// # Errors
    /// [`Malformed`] for anything that is not one.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), Malformed> {
        let mut r = Reader(bytes);
        let tag = r.u8()?;
        let id = r.u32()?;
        let request = match tag {
            1 => Self::Hello {
                version: u16::try_from(r.u32()?).map_err(|_| Malformed)?,
            },
            2 => Self::Heartbeat,
            3 => Self::Start(Start {
                argv: r.list(Reader::bytes)?,
                env: r.list(|r| Ok((r.bytes()?, r.bytes()?)))?,
                cwd: r.bytes()?,
                log: r.bytes()?,
                bounded: !r.0.is_empty() && r.flag()?,
            }),
            4 => Self::Adopt { pid: r.i32()? },
            5 => Self::Signal { signal: r.i32()? },
            6 => Self::Arm(r.armed()?),
            7 => Self::Disarm {
                epoch: Epoch(r.u64()?),
                basis: match r.u8()? {
                    1 => Basis::InRecovery,
                    2 => Basis::Paused,
                    // What a newer agent knows that we do not: as if it knew nothing.
                    _ => Basis::Unknown,
                },
            },
            8 => Self::Fence,
            9 => Self::Keep(Kept {
                session: r.text()?,
                blob: r.bytes()?,
            }),
            10 => Self::Leave,
            _ => return Err(Malformed),
        };
        Ok((id, request))
    }
}

impl Message {
    /// Writes the message with this id into `out`, replacing what was there.
    ///
    /// # Errors
    /// [`Malformed`] when it is longer than [`MAX_MESSAGE`].
    pub fn encode(&self, id: u32, out: &mut Vec<u8>) -> Result<(), Malformed> {
        let mut w = Writer(out);
        match self {
            Self::Hello(greeting) => {
                w.open(1, id);
                greeting.write(&mut w);
            }
            Self::Heartbeat => w.open(2, id),
            Self::Postmaster { pid } => {
                w.open(3, id);
                w.i32(*pid);
            }
            Self::Done => w.open(4, id),
            Self::Refused { why } => {
                w.open(5, id);
                w.bytes(why.as_bytes());
            }
            Self::Armed(armed) => {
                w.open(6, id);
                w.armed(*armed);
            }
            Self::Disarmed => w.open(7, id),
            Self::Exited { pid, status } => {
                w.open(8, id);
                w.i32(*pid);
                w.option(*status, Writer::i32);
            }
            Self::Orphans { count } => {
                w.open(9, id);
                w.u32(*count);
            }
            Self::Empty => w.open(10, id),
            Self::Fenced { took, count } => {
                w.open(11, id);
                w.duration(*took);
                w.u32(*count);
            }
            Self::Replaced => w.open(12, id),
            Self::Busy { pid } => {
                w.open(13, id);
                w.i32(*pid);
            }
        }
        if out.len() > MAX_MESSAGE {
            Err(Malformed)
        } else {
            Ok(())
        }
    }

    /// Reads a message and its id.
    ///
    /// # Errors
    /// [`Malformed`] for anything that is not one.
    pub fn decode(bytes: &[u8]) -> Result<(u32, Self), Malformed> {
        let mut r = Reader(bytes);
        let tag = r.u8()?;
        let id = r.u32()?;
        let message = match tag {
            1 => Self::Hello(Greeting::read(&mut r)?),
            2 => Self::Heartbeat,
            3 => Self::Postmaster { pid: r.i32()? },
            4 => Self::Done,
            5 => Self::Refused { why: r.text()? },
            6 => Self::Armed(r.armed()?),
            7 => Self::Disarmed,
            8 => Self::Exited {
                pid: r.i32()?,
                status: r.option(Reader::i32)?,
            },
            9 => Self::Orphans { count: r.u32()? },
            10 => Self::Empty,
            11 => Self::Fenced {
                took: r.duration()?,
                count: r.u32()?,
            },
            12 => Self::Replaced,
            13 => Self::Busy { pid: r.i32()? },
            _ => return Err(Malformed),
        };
        Ok((id, message))
    }
}

impl Greeting {
    fn write(&self, w: &mut Writer<'_>) {
        w.u32(u32::from(self.version));
        w.i32(self.pid);
        w.bytes(self.session.as_bytes());
        w.option(self.postmaster, Writer::i32);
        w.flag(self.is_parent);
        w.option(self.armed, Writer::armed);
        w.flag(self.fit);
        w.duration(self.measured);
        w.bytes(self.method.as_bytes());
        w.option(self.kept.as_ref(), |w, kept| {
            w.bytes(kept.session.as_bytes());
            w.bytes(&kept.blob);
        });
    }

    fn read(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        Ok(Self {
            version: u16::try_from(r.u32()?).map_err(|_| Malformed)?,
            pid: r.i32()?,
            session: r.text()?,
            postmaster: r.option(Reader::i32)?,
            is_parent: r.flag()?,
            armed: r.option(Reader::armed)?,
            fit: r.flag()?,
            measured: r.duration()?,
            method: r.text()?,
            kept: r.option(|r| {
                Ok(Kept {
                    session: r.text()?,
                    blob: r.bytes()?,
                })
            })?,
        })
    }
}
