//! The thread between the member loop and the guardian.

use super::{GuardianEvent, Hello, Shared, words};
use crate::guardian::{GuardianError, fence, proc, socket_address};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, getsockopt, recv, send, socket,
    sockopt::PeerCredentials,
};
use proto::fence::wire::{MAX_MESSAGE, Message, Request, VERSION};
use proto::time::MonoTime;
use rustix::process::{Signal, pidfd_send_signal};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::mpsc;

/// Interval of signs of life (`safety.md` 3).
const HEARTBEAT: Duration = Duration::from_secs(1);

/// After so many unanswered signs of life the guardian counts as silent.
const SILENCE: u32 = 3;

/// After so many it is ended and replaced: nobody could be armed through it. A deadline that was armed has
/// passed long before with every usual length.
const HOPELESS: u32 = 30;

/// How long a started guardian may take to answer: it tests its own bound first.
const START_LIMIT: Duration = Duration::from_secs(5);

/// How long an agent that died without the kernel having closed its socket may block this one.
const BUSY_LIMIT: Duration = Duration::from_secs(4);

/// Between attempts to connect.
const RETRY: Duration = Duration::from_millis(10);

/// How long after its socket closed a dying guardian may still show as alive.
const DYING: Duration = Duration::from_millis(200);

/// How long a sweep in place of a dead guardian may take before it is reported and begun anew.
const SWEEP_LIMIT: Duration = Duration::from_secs(5);

/// A connection, and where its news goes.
pub(super) struct Link {
    shared: Weak<Shared>,
    events: mpsc::Sender<GuardianEvent>,
    socket: OwnedFd,
    /// Readable when the guardian has ended.
    guardian: Option<OwnedFd>,
    asked: MonoTime,
    /// Signs of life that were sent since the last message came. Not a time, so that an agent that was
    /// stopped itself blames nobody.
    unanswered: u32,
}

/// Why a connection ended.
enum End {
    /// Nobody uses the client any more.
    Unused,
    /// Another agent has it.
    Replaced,
    /// The guardian closed it, or died.
    Closed,
}

impl Link {
    /// Connects, starting a guardian if needed, and waits for its greeting.
    pub(super) fn open(
        shared: &Arc<Shared>,
        events: mpsc::Sender<GuardianEvent>,
    ) -> Result<(Self, Hello), GuardianError> {
        let (socket, hello) = meet(shared)?;
        let copy = socket.try_clone().map_err(|_| GuardianError::Lost)?;
        {
            let mut state = shared.lock();
            state.socket = Some(copy);
            state.hello = hello.clone();
            state.responsive = true;
        }
        let asked = crate::clock::now();
        let guardian = proc::pidfd(hello.pid);
        let shared = Arc::downgrade(shared);
        Ok((
            Self {
                shared,
                events,
                socket,
                guardian,
                asked,
                unanswered: 0,
            },
            hello,
        ))
    }

    /// Serves the connection until the client is dropped or another agent takes over.
    pub(super) fn run_on_thread(self) -> Result<(), GuardianError> {
        let work = move || self.run();
        std::thread::Builder::new()
            .name(String::from("guardian-link"))
            .spawn(work)
            .map(drop)
            .map_err(|_| GuardianError::System("start the link thread", nix::Error::EAGAIN))
    }

    fn run(mut self) {
        loop {
            match self.serve() {
                End::Unused => return,
                End::Replaced => {
                    self.close();
                    let _ = self.events.blocking_send(GuardianEvent::Replaced);
                    return;
                }
                End::Closed => {
                    let before = self.close();
                    if self.guardian_died() {
                        self.stand_in(before.as_ref());
                    }
                    if !self.reconnect() {
                        return;
                    }
                }
            }
        }
    }

    /// Passes news on until the connection ends.
    fn serve(&mut self) -> End {
        let mut buffer = vec![0u8; MAX_MESSAGE];
        loop {
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            let timeout = PollTimeout::try_from(HEARTBEAT / 4).unwrap_or(PollTimeout::ZERO);
            let _ = poll(&mut fds, timeout);
            let Some(shared) = self.shared.upgrade() else {
                return End::Unused;
            };
            loop {
                match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                    Ok(0) => return End::Closed,
                    Ok(n) => {
                        let message = buffer
                            .get(..n)
                            .and_then(|bytes| Message::decode(bytes).ok());
                        // A newer guardian may say what we do not understand; its state comes with
                        // what we do.
                        let Some((id, message)) = message else {
                            continue;
                        };
                        self.heard_something(&shared);
                        if message == Message::Replaced {
                            return End::Replaced;
                        }
                        self.pass(&shared, id, message);
                    }
                    Err(nix::Error::EAGAIN) => break,
                    Err(nix::Error::EINTR) => {}
                    Err(_) => return End::Closed,
                }
            }
            self.beat(&shared);
        }
    }

    fn heard_something(&mut self, shared: &Shared) {
        self.unanswered = 0;
        let was = std::mem::replace(&mut shared.lock().responsive, true);
        if !was {
            let _ = self.events.blocking_send(GuardianEvent::Back);
        }
    }

    /// Sends a sign of life when one is due, and notices when none comes back.
    fn beat(&mut self, shared: &Shared) {
        let now = crate::clock::now();
        if now.since(self.asked) >= HEARTBEAT {
            self.asked = now;
            self.unanswered = self.unanswered.saturating_add(1);
            let state = shared.lock();
            let _ = shared.send(&state, 0, &Request::Heartbeat);
        }
        if self.unanswered > SILENCE {
            let was = std::mem::replace(&mut shared.lock().responsive, false);
            if was {
                let _ = self.events.blocking_send(GuardianEvent::Silent);
            }
            if self.unanswered > HOPELESS
                && let Some(guardian) = &self.guardian
            {
                tracing::error!("the guardian does not answer, ending and replacing it");
                let _ = pidfd_send_signal(guardian, Signal::KILL);
            }
        }
    }

    /// Updates what is known, answers whoever asked, tells the rest to the member loop.
    fn pass(&self, shared: &Shared, id: u32, message: Message) {
        let mut state = shared.lock();
        let hello = &mut state.hello;
        match &message {
            Message::Armed(armed) => hello.armed = Some(*armed),
            Message::Disarmed => hello.armed = None,
            Message::Fenced { .. } => {
                hello.armed = None;
                hello.postmaster = None;
            }
            Message::Postmaster { pid } => hello.postmaster = Some(*pid),
            Message::Exited { .. } | Message::Empty => hello.postmaster = None,
            _ => {}
        }
        if let Some(waiting) = state.waiting.remove(&id) {
            drop(state);
            let _ = waiting.send(Ok(message));
            return;
        }
        drop(state);
        let event = match message {
            Message::Armed(armed) => {
                // The state above has it, and the next one follows soon: not worth waiting for.
                let _ = self.events.try_send(GuardianEvent::Armed(armed));
                return;
            }
            Message::Disarmed => GuardianEvent::Disarmed,
            Message::Exited { pid, status } => GuardianEvent::PostmasterExited { pid, status },
            Message::Orphans { count } => GuardianEvent::Orphans(count),
            Message::Empty => GuardianEvent::Empty,
            Message::Fenced { took, .. } => GuardianEvent::Fenced { took },
            Message::Refused { why } => GuardianEvent::Refused(why),
            Message::Postmaster { pid } => GuardianEvent::PostmasterFound(pid),
            Message::Hello(_)
            | Message::Heartbeat
            | Message::Done
            | Message::Replaced
            | Message::Busy { .. } => return,
        };
        let _ = self.events.blocking_send(event);
    }

    /// Takes the connection out of the handles' reach; returns what the guardian was like.
    fn close(&self) -> Option<Hello> {
        let shared = self.shared.upgrade()?;
        let mut state = shared.lock();
        state.socket = None;
        state.responsive = false;
        state.waiting.clear();
        let before = state.hello.clone();
        state.hello.postmaster = None;
        state.hello.armed = None;
        Some(before)
    }

    fn guardian_died(&self) -> bool {
        let Some(guardian) = &self.guardian else {
            return true;
        };
        let mut fds = [PollFd::new(guardian.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(DYING).unwrap_or(PollTimeout::ZERO);
        matches!(poll(&mut fds, timeout), Ok(n) if n > 0)
    }

    /// Does what the dead guardian cannot: ends what is left of the cluster. A postmaster that was not
    /// its child has not died with it, and may go on when no deadline was armed.
    fn stand_in(&self, before: Option<&Hello>) {
        let _ = self.events.blocking_send(GuardianEvent::Lost);
        let Some(hello) = before else { return };
        let goes_on = hello.armed.is_none() && hello.postmaster.is_some() && !hello.is_parent;
        if goes_on || (hello.armed.is_none() && hello.postmaster.is_none()) {
            return;
        }
        loop {
            let Some(shared) = self.shared.upgrade() else {
                return;
            };
            let data_dir = shared.data_dir.as_os_str().as_bytes();
            let scope = fence::Scope {
                data_dir: Some(data_dir),
                ..fence::Scope::default()
            };
            if fence::sweep(&scope, SWEEP_LIMIT).is_some() {
                let _ = self.events.blocking_send(GuardianEvent::Empty);
                return;
            }
            tracing::error!("processes of the cluster outlive SIGKILL; trying again");
        }
    }

    /// Connects again, for as long as somebody uses the client. Returns whether to go on.
    fn reconnect(&mut self) -> bool {
        loop {
            let Some(shared) = self.shared.upgrade() else {
                return false;
            };
            match Self::open(&shared, self.events.clone()) {
                Ok((link, hello)) => {
                    *self = link;
                    let _ = self.events.blocking_send(GuardianEvent::Attached(hello));
                    return true;
                }
                Err(GuardianError::Busy { .. }) => {
                    let _ = self.events.blocking_send(GuardianEvent::Replaced);
                    return false;
                }
                Err(error) => {
                    tracing::error!("{}", crate::guardian::note::chain(&error));
                    std::thread::sleep(HEARTBEAT);
                }
            }
        }
    }
}

/// Connects to the guardian of the data directory, or starts one and connects to it.
fn meet(shared: &Shared) -> Result<(OwnedFd, Hello), GuardianError> {
    let begin = crate::clock::now();
    let mut started: Option<MonoTime> = None;
    loop {
        let now = crate::clock::now();
        let busy = match try_connect(shared) {
            Ok(Some(met)) => return Ok(met),
            Ok(None) => {
                // Nobody listens: start one, again when the one that was started gave up.
                if started.is_none_or(|at| now.since(at) >= START_LIMIT / 4) {
                    spawn(shared)?;
                    started = Some(now);
                }
                None
            }
            Err(GuardianError::Busy { pid }) => Some(pid),
            Err(other) => return Err(other),
        };
        match busy {
            Some(pid) if now.since(begin) >= BUSY_LIMIT => return Err(GuardianError::Busy { pid }),
            None if now.since(begin) >= START_LIMIT => {
                let data_dir = shared.data_dir.clone();
                return Err(GuardianError::Silent {
                    data_dir,
                    limit: START_LIMIT,
                });
            }
            Some(_) | None => std::thread::sleep(RETRY),
        }
    }
}

/// One attempt; `None` when nobody listens (any more).
fn try_connect(shared: &Shared) -> Result<Option<(OwnedFd, Hello)>, GuardianError> {
    let system = |what| move |error| GuardianError::System(what, error);
    let address = socket_address(&shared.data_dir)
        .ok()
        .and_then(|address| {
            use std::os::linux::net::SocketAddrExt;
            UnixAddr::new_abstract(address.as_abstract_name()?).ok()
        })
        .ok_or(GuardianError::Lost)?;
    let fd = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(system("create a socket"))?;
    match connect(fd.as_raw_fd(), &address) {
        Ok(()) => {}
        Err(nix::Error::ECONNREFUSED | nix::Error::EAGAIN | nix::Error::EINTR) => return Ok(None),
        Err(error) => return Err(system("connect to the guardian")(error)),
    }
    let peer = getsockopt(&fd, PeerCredentials).map_err(system("ask who the guardian is"))?;
    if peer.uid() != nix::unistd::geteuid().as_raw() && peer.uid() != 0 {
        return Err(GuardianError::Impostor { uid: peer.uid() });
    }
    let mut bytes = Vec::new();
    let hello = Request::Hello { version: VERSION };
    if hello.encode(1, &mut bytes).is_err() {
        return Ok(None);
    }
    if send(fd.as_raw_fd(), &bytes, MsgFlags::MSG_NOSIGNAL).is_err() {
        return Ok(None);
    }
    let mut fds = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(START_LIMIT).unwrap_or(PollTimeout::ZERO);
    if !matches!(poll(&mut fds, timeout), Ok(n) if n > 0) {
        let data_dir = shared.data_dir.clone();
        return Err(GuardianError::Silent {
            data_dir,
            limit: START_LIMIT,
        });
    }
    let mut buffer = vec![0u8; MAX_MESSAGE];
    let n = recv(fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT).unwrap_or(0);
    match buffer.get(..n).map(Message::decode) {
        Some(Ok((_, Message::Hello(hello)))) => Ok(Some((fd, hello))),
        Some(Ok((_, Message::Busy { pid }))) => Err(GuardianError::Busy { pid }),
        _ => Ok(None),
    }
}

/// Starts a guardian. It leaves our session by itself, and closes what it does not need.
fn spawn(shared: &Shared) -> Result<(), GuardianError> {
    let program = &shared.options.program;
    let mut command = Command::new(program);
    command
        .args(words(shared))
        .stdin(Stdio::null())
        .current_dir("/")
        .env_clear();
    for name in ["PATH", "LANG", "TZ"] {
        command.envs(std::env::var_os(name).map(|value| (name, value)));
    }
    let mut child = command.spawn().map_err(|source| GuardianError::Spawn {
        program: program.clone(),
        source,
    })?;
    // It normally outlives this process; if it does not, somebody has to take its status.
    let wait = move || drop(child.wait());
    std::thread::Builder::new()
        .name(String::from("guardian-wait"))
        .spawn(wait)
        .map(drop)
        .map_err(|source| GuardianError::Spawn {
            program: program.clone(),
            source,
        })
}
