//! The agent's side of the guardian.
//!
//! [`GuardianClient`] only hands messages to a socket and never waits. A thread of its own, the link,
//! reads what the guardian says, starts one when there is none, and stands in for a guardian that died:
//! what is left of the cluster is then ended here before the next guardian is started.

mod link;

use super::{Args, Armed, Basis, GuardianError, canonical, this_program};
use link::Link;
use nix::sys::socket::{MsgFlags, Shutdown, send, shutdown};
use proto::fence::wire::{Kept, Message, Request, Start};
use proto::ids::Epoch;
use proto::time::MonoTime;
use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

pub use proto::fence::wire::Greeting as Hello;

/// Longest wait for an answer: starting and adopting only need the guardian to be scheduled.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// Events that may wait for the member loop. More come only if that loop hangs, and then the link waits.
const EVENTS_MAX: usize = 1024;

/// How to reach or start the guardian.
#[derive(Clone, Debug)]
pub struct AttachOptions {
    /// The program; normally this very one.
    pub program: PathBuf,
    /// Its own messages go there; `None`: to the agent's streams.
    pub log: Option<PathBuf>,
    /// F, the fencing bound that its self-test is held against.
    pub fence_bound: Duration,
    /// PostgreSQL runs in a PID namespace of its own. A guardian that is already there keeps the form
    /// that it has.
    pub namespace: bool,
}

impl Default for AttachOptions {
    fn default() -> Self {
        Self {
            program: this_program(),
            log: None,
            fence_bound: Duration::from_millis(500),
            namespace: false,
        }
    }
}

/// What the agent hears from its guardian.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuardianEvent {
    /// This deadline counts now.
    Armed(Armed),
    /// None counts.
    Disarmed,
    /// A postmaster that others started is guarded now.
    PostmasterFound(i32),
    /// The postmaster ended.
    PostmasterExited {
        /// Its pid.
        pid: i32,
        /// As of `wait`; `None` when the guardian was not its parent.
        status: Option<i32>,
    },
    /// So many processes outlived the postmaster; they are being ended.
    Orphans(u32),
    /// No process of the cluster is left.
    Empty,
    /// Fencing is over, no process is left; time from the deadline (or the order) to the last end.
    Fenced {
        /// How long it took.
        took: Duration,
    },
    /// The guardian refused an order that has no other answer: arming and disarming, above all.
    Refused(String),
    /// The guardian has not answered for a while: stopped, or starved. It still fences.
    Silent,
    /// It answers again.
    Back,
    /// The guardian is dead. Its postmaster died with it; what is left of the cluster is being ended
    /// here, `Empty` says when that is done, and then another guardian is started.
    Lost,
    /// Connected again: to the same guardian or to another one.
    Attached(Hello),
    /// Another agent took the guardian over. This one has to end, and must not touch PostgreSQL.
    Replaced,
}

/// The handle. All methods return at once, from any thread, except those that are `async`.
#[derive(Clone, Debug)]
pub struct GuardianClient(Arc<Shared>);

/// What the handles and the link share.
#[derive(Debug)]
struct Shared {
    /// Canonical.
    data_dir: PathBuf,
    options: AttachOptions,
    next_id: AtomicU32,
    state: Mutex<State>,
}

/// The last that is known.
#[derive(Debug, Default)]
struct State {
    socket: Option<OwnedFd>,
    hello: Hello,
    /// It answered lately.
    responsive: bool,
    waiting: HashMap<u32, oneshot::Sender<Result<Message, GuardianError>>>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is held, and the fields are valid whatever happened.
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn send(&self, state: &State, id: u32, request: &Request) -> Result<(), GuardianError> {
        let socket = state.socket.as_ref().ok_or(GuardianError::Lost)?;
        let mut bytes = Vec::new();
        request
            .encode(id, &mut bytes)
            .map_err(|_| GuardianError::Undelivered)?;
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        match send(socket.as_raw_fd(), &bytes, flags) {
            Ok(_) => Ok(()),
            Err(nix::Error::EPIPE | nix::Error::ECONNRESET | nix::Error::ENOTCONN) => {
                Err(GuardianError::Lost)
            }
            Err(_) => Err(GuardianError::Undelivered),
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The link sleeps on a copy of the socket; this wakes it, and it finds nobody to work for.
        if let Some(socket) = self.lock().socket.take() {
            let _ = shutdown(socket.as_raw_fd(), Shutdown::Both);
        }
    }
}

impl GuardianClient {
    /// Connects to the guardian of this data directory, and starts one when there is none. Waits for its
    /// first answer, at most a few seconds.
    ///
    /// # Errors
    /// [`GuardianError::Busy`] when another living agent works on this data directory; others when no
    /// guardian can be started.
    pub fn attach(
        data_dir: &Path,
        options: AttachOptions,
    ) -> Result<(Self, mpsc::Receiver<GuardianEvent>, Hello), GuardianError> {
        let shared = Arc::new(Shared {
            data_dir: canonical(data_dir),
            options,
            next_id: AtomicU32::new(1),
            state: Mutex::default(),
        });
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let (link, hello) = Link::open(&shared, events)?;
        link.run_on_thread()?;
        Ok((Self(shared), receiver, hello))
    }

    /// The guardian as far as it is known: who it is, whether it passed its self-test, the postmaster
    /// and the deadline as of its last message.
    pub fn hello(&self) -> Hello {
        self.0.lock().hello.clone()
    }

    /// Whether it is connected and has answered lately.
    pub fn is_alive(&self) -> bool {
        let state = self.0.lock();
        state.socket.is_some() && state.responsive
    }

    /// Whether its self-test kept the fencing bound.
    pub fn is_fit(&self) -> bool {
        self.0.lock().hello.fit
    }

    /// The postmaster that it guards.
    pub fn postmaster(&self) -> Option<i32> {
        self.0.lock().hello.postmaster
    }

    /// The deadline that it confirmed.
    pub fn armed(&self) -> Option<Armed> {
        self.0.lock().hello.armed
    }

    /// Starts the postmaster and returns its pid. `command` begins with an absolute path; `env` is the
    /// whole environment; both streams are appended to `log`, or go where the guardian's own go. That
    /// the program cannot be executed shows as [`GuardianEvent::PostmasterExited`] with status 127. A start that
    /// is `bounded` is only good while a deadline stands ([`proto::fence::FenceClock::may_start`]).
    ///
    /// # Errors
    /// Refused while one lives, fencing is under way, or the deadline is over.
    pub async fn start_postmaster(
        &self,
        command: Vec<OsString>,
        env: Vec<(OsString, OsString)>,
        log: Option<PathBuf>,
        bounded: bool,
    ) -> Result<i32, GuardianError> {
        let start = Start {
            argv: command.into_iter().map(OsString::into_vec).collect(),
            env: env
                .into_iter()
                .map(|(k, v)| (k.into_vec(), v.into_vec()))
                .collect(),
            cwd: Vec::new(),
            log: log.map(|path| super::path_bytes(&path)).unwrap_or_default(),
            bounded,
        };
        self.postmaster_from(Request::Start(start)).await
    }

    /// Has it guard a postmaster that somebody else started.
    ///
    /// # Errors
    /// Refused when that process is not a server in this data directory, or another one is guarded.
    pub async fn adopt(&self, pid: i32) -> Result<i32, GuardianError> {
        self.postmaster_from(Request::Adopt { pid }).await
    }

    async fn postmaster_from(&self, request: Request) -> Result<i32, GuardianError> {
        match self.ask(&request).await? {
            Message::Postmaster { pid } => Ok(pid),
            Message::Refused { why } => Err(GuardianError::Refused(why)),
            _ => Err(GuardianError::Undelivered),
        }
    }

    /// Sends a signal to the postmaster.
    ///
    /// # Errors
    /// Refused when there is none.
    pub fn signal(&self, signal: nix::sys::signal::Signal) -> Result<(), GuardianError> {
        if self.postmaster().is_none() {
            return Err(GuardianError::Refused(String::from(
                "there is no postmaster",
            )));
        }
        self.tell(&Request::Signal {
            signal: signal as i32,
        })
    }

    /// Moves the deadline. [`GuardianEvent::Armed`] confirms it.
    ///
    /// # Errors
    /// It could not be handed over; what was armed stays so.
    pub fn arm(&self, epoch: Epoch, deadline: MonoTime) -> Result<(), GuardianError> {
        self.tell(&Request::Arm(Armed { epoch, deadline }))
    }

    /// Gives the deadline up; refused while a postmaster lives. See [`Self::disarm_because`].
    ///
    /// # Errors
    /// It could not be handed over; what was armed stays so.
    pub fn disarm(&self, epoch: Epoch) -> Result<(), GuardianError> {
        self.disarm_because(epoch, Basis::Unknown)
    }

    /// Gives the deadline up, on the agent's word that PostgreSQL cannot be writable or that the cluster
    /// is paused. [`GuardianEvent::Disarmed`] confirms it.
    ///
    /// # Errors
    /// It could not be handed over; what was armed stays so.
    pub fn disarm_because(&self, epoch: Epoch, basis: Basis) -> Result<(), GuardianError> {
        self.tell(&Request::Disarm { epoch, basis })
    }

    /// Ends every process of the cluster now. [`GuardianEvent::Fenced`] reports the end.
    ///
    /// # Errors
    /// It could not be handed over.
    pub fn fence(&self) -> Result<(), GuardianError> {
        self.tell(&Request::Fence)
    }

    /// Leaves something for the agent after this one ([`Hello::kept`]).
    ///
    /// # Errors
    /// It could not be handed over.
    pub fn keep(&self, session: String, blob: Vec<u8>) -> Result<(), GuardianError> {
        self.tell(&Request::Keep(Kept { session, blob }))
    }

    /// Lets it end when nothing is left to guard, without the wait for another agent.
    ///
    /// # Errors
    /// It could not be handed over.
    pub fn leave(&self) -> Result<(), GuardianError> {
        self.tell(&Request::Leave)
    }

    fn tell(&self, request: &Request) -> Result<(), GuardianError> {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let state = self.0.lock();
        self.0.send(&state, id, request)
    }

    async fn ask(&self, request: &Request) -> Result<Message, GuardianError> {
        let id = self.0.next_id.fetch_add(1, Ordering::Relaxed);
        let (sender, answer) = oneshot::channel();
        {
            let mut state = self.0.lock();
            self.0.send(&state, id, request)?;
            state.waiting.insert(id, sender);
        }
        match tokio::time::timeout(ANSWER_LIMIT, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(GuardianError::Lost),
            Err(_) => {
                self.0.lock().waiting.remove(&id);
                Err(GuardianError::Silent {
                    data_dir: self.0.data_dir.clone(),
                    limit: ANSWER_LIMIT,
                })
            }
        }
    }
}

/// The command line of a guardian with these options.
fn words(shared: &Shared) -> Vec<OsString> {
    let args = Args {
        data_dir: shared.data_dir.clone(),
        log: shared.options.log.clone(),
        fence_ms: u64::try_from(shared.options.fence_bound.as_millis()).unwrap_or(500),
        namespace: shared.options.namespace,
    };
    args.to_words()
}
