//! The guardian's loop: agents, postmaster, clocks.
//!
//! One pass: look at the clocks, end processes if that is due, sleep until something happens or the
//! clocks have to be looked at again, take what happened. Nothing in it waits for anything else.

mod agents;
mod requests;
mod sweep;

use super::namespace::{self, Init};
use super::note::{self, note};
use super::spawn::{self, Postmaster};
use super::timer::{Alarm, Backstop, moment};
use super::witness::{Duty, Witness};
use super::{Args, GuardianError, canonical, fence, selftest};
use agents::Agents;
use nix::libc;
use nix::sys::mman::{MlockAllFlags, mlockall};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{Pid, getpid, setsid};
use proto::fence::wire::{Kept, Message};
use proto::fence::{FenceClock, Moment, Verdict};
use proto::time::MonoTime;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;
use sweep::{Cause, Sweep};

/// With nothing to guard and nobody connected it ends after this long: an agent that is restarted is
/// back before.
const LINGER: Duration = Duration::from_secs(15);

/// The kernel timer while processes are being ended: a guardian that is stopped in the middle is killed,
/// and the witness goes on.
const BACKSTOP_FENCING: Duration = Duration::from_millis(100);

/// Preferred over every other process of this machine when memory runs out, short of never.
const OOM_SCORE: i32 = -900;

/// Its priority among real-time processes: the lowest, which is above everything else.
const PRIORITY: i32 = 1;

/// The process.
#[derive(Debug)]
pub struct Guardian {
    data_dir: PathBuf,
    session: String,
    clock: FenceClock,
    postmaster: Option<Postmaster>,
    /// Processes are being ended.
    sweep: Option<Sweep>,
    sweeper: fence::Sweeper,
    agents: Agents,
    alarm: Alarm,
    backstop: Backstop,
    signals: SignalFd,
    witness: Witness,
    /// Our own children that are not of the cluster.
    spared: Vec<i32>,
    bound: Duration,
    verdict: selftest::Verdict,
    kept: Option<Kept>,
    /// What the postmaster gets: ours before we made ourselves precious.
    oom_score: i32,
    /// Since when there is nothing to do.
    idle_since: Option<MonoTime>,
    /// An agent said that it may end.
    may_leave: bool,
    /// PostgreSQL gets a PID namespace.
    namespace: bool,
}

impl Guardian {
    /// Takes the data directory's socket and gets ready.
    ///
    /// # Errors
    /// [`GuardianError::Busy`] when another guardian has it; others when the kernel refuses something
    /// that is needed.
    pub fn start(args: &Args) -> Result<Self, GuardianError> {
        let system = |what| move |error| GuardianError::System(what, error);
        let _ = setsid();
        spawn::close_others(&[]);
        let data_dir = canonical(&args.data_dir);
        let agents = Agents::listen(&data_dir)?;
        let mut set = SigSet::empty();
        // TERM, INT and HUP are for the agent: whoever stops a whole unit at once means PostgreSQL to
        // be stopped in order, and that is the agent's work.
        let ignored = [
            Signal::SIGTERM,
            Signal::SIGINT,
            Signal::SIGHUP,
            Signal::SIGPIPE,
        ];
        ignored
            .into_iter()
            .chain([Signal::SIGCHLD])
            .for_each(|signal| set.add(signal));
        set.thread_block().map_err(system("block signals"))?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags).map_err(system("create a signalfd"))?;
        nix::sys::prctl::set_child_subreaper(true).map_err(system("become a subreaper"))?;
        let mut spared = Vec::new();
        spared.extend(note::divert(args.log.as_deref()).map_err(system("open the log"))?);
        let witness =
            Witness::start(data_dir.as_os_str().as_bytes()).map_err(system("start the witness"))?;
        spared.push(witness.pid());
        let oom_score = spawn::oom_score().unwrap_or(0);
        harden();
        let bound = Duration::from_millis(args.fence_ms);
        let session = format!("{:016x}", fastrand::u64(..));
        note!("INFO", "guarding {}", data_dir.display());
        let verdict = test(&spared, bound, args.namespace);
        Ok(Self {
            data_dir,
            session,
            clock: FenceClock::default(),
            postmaster: None,
            sweep: None,
            sweeper: fence::Sweeper::default(),
            agents,
            alarm: Alarm::new().map_err(system("create a timer"))?,
            backstop: Backstop::new().map_err(system("create the kernel timer"))?,
            signals,
            witness,
            spared,
            bound,
            verdict,
            kept: None,
            oom_score,
            idle_since: None,
            may_leave: false,
            namespace: args.namespace,
        })
    }

    /// Guards until there is nothing to guard. Returns the exit status.
    pub fn run(&mut self) -> u8 {
        loop {
            let wake = self.tick();
            if self.is_done(moment().boot) {
                self.witness.dismiss();
                note!("INFO", "nothing left to guard, ending");
                return 0;
            }
            self.wait(wake);
            self.reap();
            self.watch_postmaster();
            self.listen();
        }
    }

    /// Looks at the clocks and does what is due. Returns when to look again.
    fn tick(&mut self) -> Option<Duration> {
        let now = moment();
        let armed = self.clock.armed();
        let verdict = self.clock.poll(now);
        if verdict == Verdict::Fence {
            let deadline = armed.map(|armed| armed.deadline);
            self.begin_fencing(deadline, now);
        }
        self.backstop.set(match verdict {
            Verdict::Fence => Some(BACKSTOP_FENCING),
            Verdict::Wait { backstop, .. } => Some(backstop),
            Verdict::Idle => None,
        });
        self.tell_witness();
        let pause = self.sweep_once();
        match (pause, self.clock.poll(now)) {
            (Some(pause), _) => Some(pause),
            (None, Verdict::Wait { wake, .. }) => Some(wake),
            (None, Verdict::Fence) => Some(fence::PASS_INTERVAL),
            (None, Verdict::Idle) => {
                self.backstop.set(None);
                self.idle_since.is_some().then_some(LINGER)
            }
        }
    }

    /// Says what has to end if this process ended now.
    fn tell_witness(&self) {
        let own_child = self.postmaster.as_ref().is_some_and(|p| p.is_child);
        let busy = self.clock.armed().is_some() || self.sweep.is_some() || own_child;
        self.witness.set(if busy {
            Duty::Everything
        } else {
            Duty::Nothing
        });
    }

    /// Whether there is nothing to guard, and has not been for a while. The deadline of an agent that has
    /// left ends with the last process: the next server in this data directory is somebody else's, and is
    /// not to be ended for a lease that nobody holds any more.
    fn is_done(&mut self, now: MonoTime) -> bool {
        let armed = self.clock.armed().is_some() && !self.may_leave;
        let busy = self.postmaster.is_some()
            || armed
            || self.clock.is_fencing()
            || self.sweep.is_some()
            || self.agents.is_connected();
        if busy {
            self.idle_since = None;
            return false;
        }
        let since = *self.idle_since.get_or_insert(now);
        self.may_leave || now.since(since) >= LINGER
    }

    /// Sleeps until something happens.
    fn wait(&mut self, wake: Option<Duration>) {
        // An idle guardian still has to notice that it may end.
        let wake = wake.or_else(|| self.idle_since.map(|_| LINGER));
        self.alarm.set(wake);
        let postmaster = self.postmaster.as_ref().map_or(-1, |p| p.pidfd.as_raw_fd());
        let fds = [
            self.alarm.fd(),
            self.signals.as_fd().as_raw_fd(),
            postmaster,
        ];
        self.agents.poll(&fds);
    }

    /// Takes the status of whatever ended: the postmaster, and every orphan that came to us.
    fn reap(&mut self) {
        while let Ok(Some(_)) = self.signals.read_signal() {}
        loop {
            let flags = WaitPidFlag::WNOHANG | WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            let ended = match waitid(Id::All, flags) {
                Ok(WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, _, _)) => pid,
                Err(nix::Error::EINTR) => continue,
                Ok(_) | Err(_) => return,
            };
            let mut status = wait_raw(ended);
            if let Some(postmaster) = self
                .postmaster
                .as_ref()
                .filter(|p| p.child() == Some(ended.as_raw()))
            {
                // The first process of a namespace passes on how the postmaster ended.
                status = postmaster.init.as_ref().and_then(Init::status).or(status);
                self.postmaster_exited(status);
            } else if ended.as_raw() == self.witness.pid() {
                self.replace_witness();
            }
        }
    }

    /// Somebody ended the witness, which has to be there.
    fn replace_witness(&mut self) {
        note!("WARNING", "the witness was ended, starting another");
        match Witness::start(self.data_dir.as_os_str().as_bytes()) {
            Ok(witness) => {
                let old = self.witness.pid();
                self.spared.retain(|pid| *pid != old);
                self.spared.push(witness.pid());
                self.witness = witness;
                self.tell_witness();
            }
            Err(error) => note!("ERROR", "no witness: {error}"),
        }
    }

    /// Notices the end of a postmaster that is not our child.
    fn watch_postmaster(&mut self) {
        let Some(postmaster) = self.postmaster.as_ref().filter(|p| !p.is_child) else {
            return;
        };
        if agents::is_readable(postmaster.pidfd.as_raw_fd()) {
            self.postmaster_exited(None);
        }
    }

    /// The postmaster ended. What it left behind can still commit (S10), so it is ended too.
    fn postmaster_exited(&mut self, status: Option<i32>) {
        let Some(postmaster) = self.postmaster.take() else {
            return;
        };
        let pid = postmaster.process.pid;
        note!(
            "INFO",
            "postmaster {pid} ended, status {}",
            status.unwrap_or(-1)
        );
        self.agents.tell(&Message::Exited { pid, status });
        if self.sweep.is_none() {
            let now = moment().boot;
            // A postmaster that ended in order waited for everybody but its log writer.
            let grace = if status == Some(0) {
                sweep::LOGGER_GRACE
            } else {
                Duration::ZERO
            };
            self.sweep = Some(Sweep::new(Cause::Orphans, now, grace));
        }
    }

    /// Fencing begins, unless it is under way; `deadline` is what passed, if it was one.
    fn begin_fencing(&mut self, deadline: Option<MonoTime>, now: Moment) {
        if self
            .sweep
            .as_ref()
            .is_some_and(|sweep| sweep.cause == Cause::Fence)
        {
            return;
        }
        if deadline.is_some() {
            note!(
                "WARNING",
                "the deadline has passed, ending every process of the cluster"
            );
        }
        let since = deadline.map_or(now.boot, |deadline| deadline.min(now.boot));
        self.sweep = Some(Sweep::new(Cause::Fence, since, Duration::ZERO));
    }

    /// One pass over the processes, if they are being ended. Returns the pause before the next one.
    fn sweep_once(&mut self) -> Option<Duration> {
        let sweep = self.sweep.as_mut()?;
        if let Some(init) = self.postmaster.as_ref().and_then(|p| p.init.as_ref()) {
            // With it the kernel ends the whole namespace; the passes below see to that.
            init.kill();
        }
        // Nobody of ours is here and no lease is held: the data directory may have been handed to Patroni,
        // whose next server is no orphan. What our own child left behind came to us, and still ends.
        let handed_over = sweep.cause == Cause::Orphans
            && self.clock.armed().is_none()
            && !self.agents.is_connected();
        let scope = fence::Scope {
            data_dir: (!handed_over).then(|| self.data_dir.as_os_str().as_bytes()),
            postmaster: self.postmaster.as_ref().map(|p| p.process),
            under: Some(getpid().as_raw()),
            spared: &self.spared,
        };
        let now = moment().boot;
        let news = sweep.pass(&mut self.sweeper, &scope, now);
        // The postmaster itself counts until its status was taken.
        let over = sweep.is_over && self.postmaster.is_none();
        let (cause, took, found) = (sweep.cause, sweep.took(now), sweep.found);
        if let Some(found) = news {
            note!("INFO", "ending {found} processes");
            if cause == Cause::Orphans {
                self.agents.tell(&Message::Orphans { count: found });
            }
        }
        if !over {
            return Some(fence::PASS_INTERVAL);
        }
        self.sweep = None;
        self.clock.emptied();
        if cause == Cause::Fence {
            note!("INFO", "fenced: {found} processes ended within {took:?}");
            self.agents.tell(&Message::Fenced { took, count: found });
        }
        self.agents.tell(&Message::Empty);
        self.tell_witness();
        None
    }
}

/// Whether this machine lets us do our work in time.
fn test(spared: &[i32], bound: Duration, namespace: bool) -> selftest::Verdict {
    let mut verdict = selftest::measure(spared, bound);
    if namespace && !namespace::is_possible() {
        note!("ERROR", "this machine does not let us make a PID namespace");
        verdict.fit = false;
    }
    if verdict.fit {
        note!("INFO", "fencing takes {:?} here", verdict.took);
    } else {
        note!(
            "ERROR",
            "not fit to lead: fencing took {:?}, the bound is {bound:?}",
            verdict.took
        );
    }
    verdict
}

/// Reaps a child that has ended; its status in the form of wait(2).
fn wait_raw(pid: Pid) -> Option<i32> {
    match waitpid(pid, Some(WaitPidFlag::WNOHANG)).ok()? {
        WaitStatus::Exited(_, code) => Some(code << 8),
        WaitStatus::Signaled(_, signal, core) => Some(signal as i32 | if core { 0x80 } else { 0 }),
        _ => None,
    }
}

/// Makes this process one that is scheduled, resident and not chosen by the kernel, as far as it may.
fn harden() {
    if !spawn::set_oom_score(OOM_SCORE) {
        note!("INFO", "may not lower its OOM score");
    }
    // Pages are locked as they are touched: the program as a whole is much larger than this part of it.
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    if mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault).is_err() {
        note!("INFO", "may not lock its memory");
    }
    if !super::timer::become_real_time(PRIORITY) {
        note!("INFO", "may not use real-time priority");
    }
}

/// For `poll`.
pub(super) type Fds = [RawFd; 3];
