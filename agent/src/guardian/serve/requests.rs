//! What agents ask, carried out.

use super::agents::{Agent, Incoming};
use super::sweep::{Cause, Sweep};
use super::{Guardian, test};
use crate::guardian::client::Hello;
use crate::guardian::namespace;
use crate::guardian::note::{self, note};
use crate::guardian::spawn::{self, Postmaster};
use crate::guardian::timer::moment;
use nix::unistd::getpid;
use proto::fence::wire::{Message, Request, Start, VERSION};
use proto::fence::{Armed, Basis};
use proto::ids::Epoch;
use rustix::process::{Signal, pidfd_send_signal};
use std::os::unix::ffi::OsStrExt;
use std::time::Duration;

/// Requests taken per pass of the loop, so that the clocks are looked at in between.
const BATCH: usize = 32;

impl Guardian {
    /// Does what agents want.
    pub(super) fn listen(&mut self) {
        let now = moment().boot;
        self.agents.accept(now);
        for _ in 0..BATCH {
            match self.agents.next(now) {
                Some(Incoming::Hello(agent, id, version)) => self.greet(agent, id, version),
                Some(Incoming::Request(id, request)) => self.serve(id, request),
                Some(Incoming::Gone) => note!("INFO", "agent disconnected"),
                None => return,
            }
        }
    }

    /// Carries a request out.
    fn serve(&mut self, id: u32, request: Request) {
        let answer = match request {
            // A second greeting on the same connection changes nothing.
            Request::Hello { .. } => return,
            Request::Heartbeat => {
                self.look_around();
                Message::Heartbeat
            }
            Request::Start(start) => self.start_postmaster(&start),
            Request::Adopt { pid } => self.adopt(pid),
            Request::Signal { signal } => self.signal(signal),
            Request::Arm(armed) => self.arm(armed),
            Request::Disarm { epoch, basis } => self.disarm(epoch, basis),
            Request::Fence => {
                note!("INFO", "fencing, as ordered");
                self.clock.fence();
                self.begin_fencing(None, moment());
                Message::Done
            }
            Request::Keep(kept) => {
                self.kept = Some(kept);
                Message::Done
            }
            Request::Leave => {
                self.may_leave = true;
                Message::Done
            }
        };
        self.agents.answer(id, &answer);
    }

    fn greet(&mut self, from: Agent, id: u32, version: u16) {
        if !self.verdict.fit && self.not_startable().is_none() {
            self.verdict = test(&self.spared, self.bound, self.namespace);
        }
        self.look_around();
        let greeting = Hello {
            version: VERSION,
            pid: getpid().as_raw(),
            session: self.session.clone(),
            postmaster: self.postmaster.as_ref().map(|p| p.process.pid),
            is_parent: self.postmaster.as_ref().is_some_and(|p| p.is_child),
            armed: self.clock.armed(),
            fit: self.verdict.fit,
            measured: self.verdict.took,
            method: String::from(if self.namespace { "namespace" } else { "scan" }),
            kept: self.kept.clone(),
        };
        let pid = from.pid;
        if self.agents.admit(from, id, greeting, moment().boot) {
            self.may_leave = false;
            note!("INFO", "agent {pid} connected, protocol {version}");
        }
    }

    fn start_postmaster(&mut self, start: &Start) -> Message {
        if let Some(why) = self.not_startable() {
            return refused(why);
        }
        if let Err(why) = self.clock.may_start(start.bounded) {
            return refused(&why.to_string());
        }
        let started =
            spawn::Prepared::new(start, &self.data_dir, self.oom_score).and_then(|prepared| {
                if self.namespace {
                    namespace::start(&prepared)
                } else {
                    spawn::start(&prepared)
                }
            });
        match started {
            Ok(postmaster) => self.guard(postmaster),
            Err(error) => refused(&note::chain(&error)),
        }
    }

    fn adopt(&mut self, pid: i32) -> Message {
        if let Some(guarded) = self.postmaster.as_ref().filter(|p| p.process.pid == pid) {
            return Message::Postmaster {
                pid: guarded.process.pid,
            };
        }
        if let Some(why) = self.not_startable() {
            return refused(why);
        }
        match spawn::adopt(pid, self.data_dir.as_os_str().as_bytes()) {
            Ok(postmaster) => self.guard(postmaster),
            Err(error) => refused(&note::chain(&error)),
        }
    }

    /// With no postmaster known, looks for one that others started, and for what a postmaster left that
    /// ended before anybody watched it. The first is guarded, the second is ended.
    fn look_around(&mut self) {
        if self.not_startable().is_some() {
            return;
        }
        let data_dir = self.data_dir.as_os_str().as_bytes();
        let (postmaster, children) = self.sweeper.servers(data_dir);
        match postmaster.map(|process| spawn::adopt(process.pid, data_dir)) {
            Some(Ok(postmaster)) => {
                let news = self.guard(postmaster);
                self.agents.tell(&news);
            }
            // Gone meanwhile, or not ours to hold: the next look tells.
            Some(Err(_)) => {}
            None if children => {
                note!("WARNING", "found processes of a postmaster that is gone");
                self.sweep = Some(Sweep::new(Cause::Orphans, moment().boot, Duration::ZERO));
            }
            None => {}
        }
    }

    fn not_startable(&self) -> Option<&'static str> {
        if self.postmaster.is_some() {
            Some("a postmaster is guarded already")
        } else if self.sweep.is_some() || self.clock.is_fencing() {
            Some("processes of the cluster are being ended")
        } else {
            None
        }
    }

    fn guard(&mut self, postmaster: Postmaster) -> Message {
        let pid = postmaster.process.pid;
        note!("INFO", "guarding postmaster {pid}");
        self.postmaster = Some(postmaster);
        self.tell_witness();
        Message::Postmaster { pid }
    }

    fn signal(&self, signal: i32) -> Message {
        let Some(postmaster) = &self.postmaster else {
            return refused("there is no postmaster");
        };
        let Some(signal) = Signal::from_named_raw(signal) else {
            return refused("there is no such signal");
        };
        match pidfd_send_signal(&postmaster.pidfd, signal) {
            Ok(()) => Message::Done,
            Err(error) => Message::Refused {
                why: error.to_string(),
            },
        }
    }

    fn arm(&mut self, armed: Armed) -> Message {
        let first = self.clock.armed().is_none();
        match self.clock.arm(moment(), armed.epoch, armed.deadline) {
            Ok(armed) => {
                if first {
                    note!("INFO", "armed, epoch {}", armed.epoch);
                }
                // Confirmed only once the timers hold it: whoever hears it may let PostgreSQL write.
                let _ = self.tick();
                Message::Armed(armed)
            }
            Err(why) => {
                note!("WARNING", "not armed: {why}");
                Message::Refused {
                    why: why.to_string(),
                }
            }
        }
    }

    fn disarm(&mut self, epoch: Epoch, basis: Basis) -> Message {
        let alive = self.postmaster.is_some() || self.sweep.is_some();
        match self.clock.disarm(epoch, basis, alive) {
            Ok(()) => {
                note!("INFO", "disarmed");
                Message::Disarmed
            }
            Err(why) => {
                note!("WARNING", "not disarmed: {why}");
                Message::Refused {
                    why: why.to_string(),
                }
            }
        }
    }
}

fn refused(why: &str) -> Message {
    Message::Refused {
        why: why.to_owned(),
    }
}
