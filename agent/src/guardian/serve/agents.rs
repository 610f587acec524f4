//! The agents on the guardian's socket: at most one is served, and the newest one wins over one that has
//! gone silent. Two agents that live at once are two managers of one PostgreSQL: the second is refused.
#![expect(unsafe_code, reason = "poll with absent descriptors")]

use crate::guardian::client::Hello;
use crate::guardian::{GuardianError, socket_address};
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt,
    listen, recv, send, socket, sockopt::PeerCredentials,
};
use proto::fence::wire::{MAX_MESSAGE, Message, Request};
use proto::time::MonoTime;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::linux::net::SocketAddrExt;
use std::path::Path;
use std::time::Duration;

/// Connections that have not said who they are.
const PENDING_MAX: usize = 4;

/// An agent that has said nothing for so long is stopped or dead: three signs of life.
const SILENT: Duration = Duration::from_secs(3);

/// Descriptors of the loop, the listener, the agent, those pending.
const FDS: usize = 3 + 2 + PENDING_MAX;

/// A connection.
#[derive(Debug)]
pub(super) struct Agent {
    fd: OwnedFd,
    /// As the kernel knows it.
    pub pid: i32,
    heard: MonoTime,
}

/// What an agent wants.
#[derive(Debug)]
pub(super) enum Incoming {
    /// To be served.
    Hello(Agent, u32, u16),
    /// Something, of the agent that is served.
    Request(u32, Request),
    /// Nothing any more: it closed its connection.
    Gone,
}

/// All connections.
#[derive(Debug)]
pub(super) struct Agents {
    listener: OwnedFd,
    current: Option<Agent>,
    pending: Vec<Agent>,
    buffer: Vec<u8>,
    out: Vec<u8>,
}

/// Whether a descriptor is readable right now.
pub(super) fn is_readable(fd: RawFd) -> bool {
    let mut fds = [libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    }];
    // SAFETY: one entry, which is a valid array of that length.
    unsafe { libc::poll(fds.as_mut_ptr(), 1, 0) > 0 }
}

impl Agents {
    /// Takes the socket of this data directory.
    pub fn listen(data_dir: &Path) -> Result<Self, GuardianError> {
        let system = |what| move |error| GuardianError::System(what, error);
        let address = socket_address(data_dir)
            .ok()
            .and_then(|address| UnixAddr::new_abstract(address.as_abstract_name()?).ok())
            .ok_or(GuardianError::Lost)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)
            .map_err(system("create its socket"))?;
        bind(listener.as_raw_fd(), &address)
            .map_err(system("take the socket of the data directory"))?;
        let backlog = Backlog::new(8).map_err(system("listen"))?;
        listen(&listener, backlog).map_err(system("listen"))?;
        Ok(Self {
            listener,
            current: None,
            pending: Vec::with_capacity(PENDING_MAX),
            buffer: vec![0; MAX_MESSAGE],
            out: Vec::with_capacity(4096),
        })
    }

    /// Whether an agent is served or about to be.
    pub fn is_connected(&self) -> bool {
        self.current.is_some() || !self.pending.is_empty()
    }

    /// Sleeps until one of these descriptors or a connection is readable.
    pub fn poll(&self, own: &super::Fds) {
        let mut fds = [libc::pollfd {
            fd: -1,
            events: libc::POLLIN,
            revents: 0,
        }; FDS];
        let agents = self
            .current
            .iter()
            .chain(&self.pending)
            .map(|agent| agent.fd.as_raw_fd());
        let all = own
            .iter()
            .copied()
            .chain([self.listener.as_raw_fd()])
            .chain(agents);
        for (slot, fd) in fds.iter_mut().zip(all) {
            slot.fd = fd;
        }
        // SAFETY: the array is valid and has that length; absent descriptors are -1, which poll skips.
        unsafe { libc::poll(fds.as_mut_ptr(), FDS as libc::nfds_t, -1) };
    }

    /// Takes the connections that wait.
    pub fn accept(&mut self, now: MonoTime) {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        while let Ok(raw) = accept4(self.listener.as_raw_fd(), flags) {
            // SAFETY: a descriptor that the kernel has just made for us.
            let fd = unsafe { OwnedFd::from_raw_fd(raw) };
            let Ok(peer) = getsockopt(&fd, PeerCredentials) else {
                continue;
            };
            if peer.uid() != 0 && peer.uid() != nix::unistd::geteuid().as_raw() {
                continue;
            }
            self.pending.retain(|agent| now.since(agent.heard) < SILENT);
            if self.pending.len() == PENDING_MAX {
                self.pending.remove(0);
            }
            self.pending.push(Agent {
                fd,
                pid: peer.pid(),
                heard: now,
            });
        }
    }

    /// The next thing that an agent wants, if there is one now.
    pub fn next(&mut self, now: MonoTime) -> Option<Incoming> {
        if let Some(agent) = &mut self.current {
            match read(&agent.fd, &mut self.buffer) {
                Read::Request(id, request) => {
                    agent.heard = now;
                    return Some(Incoming::Request(id, request));
                }
                Read::Nothing => {}
                Read::End => {
                    self.current = None;
                    return Some(Incoming::Gone);
                }
            }
        }
        let mut at = 0;
        while let Some(agent) = self.pending.get(at) {
            match read(&agent.fd, &mut self.buffer) {
                Read::Request(id, Request::Hello { version }) => {
                    return Some(Incoming::Hello(self.pending.remove(at), id, version));
                }
                Read::Nothing => at += 1,
                Read::Request(..) | Read::End => drop(self.pending.remove(at)),
            }
        }
        None
    }

    /// Serves this agent from now on, unless another one lives. Returns whether it does.
    pub fn admit(&mut self, mut agent: Agent, id: u32, greeting: Hello, now: MonoTime) -> bool {
        if let Some(old) = self.current.take() {
            if now.since(old.heard) < SILENT {
                let busy = Message::Busy { pid: old.pid };
                let _ = write(&agent.fd, &mut self.out, id, &busy);
                self.current = Some(old);
                return false;
            }
            let _ = write(&old.fd, &mut self.out, 0, &Message::Replaced);
        }
        agent.heard = now;
        let heard = write(&agent.fd, &mut self.out, id, &Message::Hello(greeting)).is_ok();
        self.current = heard.then_some(agent);
        heard
    }

    /// Answers a request.
    pub fn answer(&mut self, id: u32, message: &Message) {
        let Some(agent) = &self.current else {
            return;
        };
        match write(&agent.fd, &mut self.out, id, message) {
            // One that has ended may have asked for more before it did, above all to be let go. That is
            // read first, and then the end.
            Ok(()) | Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => {}
            // It is stopped or stuck. It comes back, and the greeting then tells it everything.
            Err(_) => self.current = None,
        }
    }

    /// Tells news.
    pub fn tell(&mut self, message: &Message) {
        self.answer(0, message);
    }
}

/// What reading a connection gave.
enum Read {
    Request(u32, Request),
    Nothing,
    End,
}

fn read(fd: &OwnedFd, buffer: &mut [u8]) -> Read {
    loop {
        return match recv(fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => Read::End,
            Ok(n) => match buffer.get(..n).map(Request::decode) {
                Some(Ok((id, request))) => Read::Request(id, request),
                // Nothing that we could have said yes to; a newer agent knows our version.
                _ => continue,
            },
            Err(nix::Error::EAGAIN) => Read::Nothing,
            // Told once, when it ended without having read everything; what it sent comes after that.
            Err(nix::Error::EINTR | nix::Error::ECONNRESET) => continue,
            Err(_) => Read::End,
        };
    }
}

/// Hands a message over, or says why not; EAGAIN is an agent that does not read.
fn write(fd: &OwnedFd, out: &mut Vec<u8>, id: u32, message: &Message) -> nix::Result<()> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    message.encode(id, out).map_err(|_| nix::Error::EMSGSIZE)?;
    send(fd.as_raw_fd(), out, flags).map(drop)
}
