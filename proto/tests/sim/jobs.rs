//! Long work on the local PostgreSQL, one job at a time, in small steps that faults can come between
//! (`agent/src/postgres/`).

use super::clock::{MS, SEC, T, nanos};
use super::mutation::Mutation;
use super::network::Plane;
use super::postgres::{Branch, Disk, Run};
use super::story::Tag;
use super::world::{Ev, World};
use proto::core::job::{Failure, Finished, Job, JobEnd, StopMode, Upstream};
use proto::core::observation::{ControlState, DataDir, RunningJob};
use proto::ids::JobId;
use proto::wal::{Lsn, Timeline};
use std::time::Duration;

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    Begin,
    /// A stop was asked for; nobody left yet.
    Halting,
    Halted,
    Working,
    Waiting,
}

#[derive(Clone, Debug)]
pub struct JobRun {
    pub id: u64,
    pub job: Job,
    pub cancelled: bool,
    /// When the stop becomes less polite, and how often it has.
    until: Option<T>,
    pressed: u32,
    /// A limit of the job as a whole.
    limit: T,
    /// It was decided on while a deadline stood.
    bounded: bool,
}

const POLL: T = 20 * MS;

impl World {
    pub fn start_job(&mut self, n: usize, job: Job) {
        self.tell(n, Tag::Job, || format!("start {}", job.label()));
        let now = self.local(n);
        let inc = self.inc(n);
        let agent = self.agent(n);
        if agent.job.is_some() {
            self.fail(format!(
                "n{n} ordered a job while one runs: {}",
                job.label()
            ));
            return;
        }
        agent.next_job += 1;
        let id = agent.next_job;
        agent.o.job = Some(RunningJob {
            id: JobId(id),
            job: job.clone(),
            started: now,
            phase: "begun".into(),
            cancelled: false,
        });
        agent.job = Some(JobRun {
            id,
            job,
            cancelled: false,
            until: None,
            pressed: 0,
            limit: u64::MAX,
            bounded: agent.o.guardian.armed.is_some(),
        });
        self.after(
            MS,
            Ev::Job {
                n,
                inc,
                id,
                stage: Stage::Begin,
            },
        );
    }

    pub fn cancel_job(&mut self, n: usize, id: JobId) {
        let agent = self.agent(n);
        if let Some(job) = agent.o.job.as_mut().filter(|j| j.id == id) {
            job.cancelled = true;
        }
        if let Some(run) = agent.job.as_mut().filter(|j| j.id == id.0) {
            run.cancelled = true;
        }
    }

    fn next(&mut self, n: usize, wait: T, stage: Stage) {
        let inc = self.inc(n);
        let Some(id) = self.agent(n).job.as_ref().map(|j| j.id) else {
            return;
        };
        self.after(wait, Ev::Job { n, inc, id, stage });
    }

    fn end_job(&mut self, n: usize, end: JobEnd) {
        self.tell(n, Tag::Job, || format!("ended {end:?}"));
        // The end of a job is reported behind a fresh sample.
        let local = self.look_at_postgres(n);
        let at = self.local(n);
        let agent = self.agent(n);
        agent.o.postgres = local;
        let Some(run) = agent.job.take() else { return };
        agent.o.job = None;
        agent.o.finished = Some(Finished {
            id: JobId(run.id),
            job: run.job,
            at,
            end,
        });
        self.decide(n);
    }

    fn failed_job(&mut self, n: usize, why: &str) {
        self.end_job(n, JobEnd::Failed(Failure::Other(why.into())));
    }

    /// A job that was under way when its agent died leaves what it was doing unfinished.
    pub fn abandon_files(&mut self, _n: usize) {}

    pub fn job_step(&mut self, n: usize, stage: Stage) {
        let Some(run) = self.agent(n).job.clone() else {
            return;
        };
        if stage == Stage::Begin && self.nodes[n].fail_jobs > 0 {
            self.nodes[n].fail_jobs -= 1;
            self.cover("job-failed");
            return self.failed_job(n, "injected");
        }
        match &run.job {
            Job::Bootstrap => self.bootstrap(n, &run, stage),
            Job::Clone { source, follow, .. } => self.clone_job(n, stage, source.as_ref(), follow),
            Job::Reinitialize { source, follow, .. } => {
                self.reinitialize(n, &run, stage, source, follow);
            }
            Job::StartPrimary { timeout } => self.start_job_of(n, &run, stage, false, *timeout),
            Job::StartStandby { timeout, .. } => self.start_job_of(n, &run, stage, true, *timeout),
            Job::Stop {
                mode,
                checkpoint_first,
                timeout,
                ..
            } => self.stop(n, &run, stage, *mode, *checkpoint_first, *timeout),
            Job::Promote { above, .. } => self.promote_job(n, &run, stage, above.0),
            Job::Restart { timeout, .. } => self.restart(n, &run, stage, *timeout),
            Job::CopySlots { timeout, .. } => self.restart(n, &run, stage, *timeout),
            Job::Follow { follow } => self.follow(n, &run, stage, follow),
            Job::Rewind { source } => self.rewind(n, &run, stage, source),
            Job::CrashRecovery => self.failed_job(n, "not simulated"),
            Job::RemoveData => self.failed_job(n, "not simulated"),
            Job::SetAside { system } => {
                self.set_bootstrap_aside(n, &run, stage, system.map(|id| id.0))
            }
        }
    }

    // --- stopping ---------------------------------------------------------------------------------

    /// Asks for the stop, once.
    fn ask_to_stop(&mut self, n: usize, mode: StopMode, timeout: Option<Duration>) {
        let until = timeout.map(|t| self.now + nanos(t));
        if let Some(run) = self.agent(n).job.as_mut() {
            run.until = until;
            run.pressed = u32::from(mode == StopMode::Immediate);
        }
        match mode {
            StopMode::Immediate => {
                if self.nodes[n].pg.run != Run::Orphans {
                    let wait = self.rng.u64(5..40) * MS;
                    self.quit(n, wait);
                }
            }
            StopMode::Smart | StopMode::Fast => self.stop_fast(n),
        }
        self.next(n, POLL, Stage::Halting);
    }

    /// SIGQUIT: the postmaster ends its children at once.
    fn quit(&mut self, n: usize, wait: T) {
        if self.nodes[n].pg.lives() {
            self.nodes[n].pg.run = Run::Stopping;
            self.nodes[n].pg.waiters.clear();
            self.no_longer_writable(n);
            self.pg_after(n, wait, super::postgres::Step::OrphansGone);
        }
    }

    /// Whether the stop has ended; presses on if it takes too long.
    fn halted(&mut self, n: usize, run: &JobRun) -> bool {
        if !self.nodes[n].pg.lives() {
            return true;
        }
        if run.until.is_some_and(|until| self.now >= until) {
            let until = Some(self.now + 6 * SEC);
            if let Some(run) = self.agent(n).job.as_mut() {
                run.until = until;
                run.pressed += 1;
            }
            if run.pressed == 0 {
                self.quit(n, 10 * MS);
            } else {
                self.fence(n);
            }
        }
        self.next(n, POLL, Stage::Halting);
        false
    }

    fn stop(
        &mut self,
        n: usize,
        run: &JobRun,
        stage: Stage,
        mode: StopMode,
        checkpoint_first: bool,
        timeout: Option<Duration>,
    ) {
        match stage {
            Stage::Begin => {
                if run.cancelled {
                    return self.end_job(n, JobEnd::Cancelled);
                }
                let wait = if checkpoint_first {
                    self.rng.u64(10..100) * MS
                } else {
                    0
                };
                if checkpoint_first {
                    self.checkpointed(n);
                }
                self.next(n, wait, Stage::Working);
            }
            Stage::Working => match self.nodes[n].pg.run {
                Run::Gone => self.next(n, 0, Stage::Halted),
                Run::Orphans => {
                    self.fence(n);
                    self.next(n, POLL, Stage::Halting);
                }
                _ => self.ask_to_stop(n, mode, timeout),
            },
            Stage::Halting => {
                if run.cancelled {
                    return self.end_job(n, JobEnd::Cancelled);
                }
                if self.halted(n, run) {
                    self.next(n, 0, Stage::Halted);
                }
            }
            Stage::Halted | Stage::Waiting => {
                let disk = &self.nodes[n].disk;
                let shutdown = (disk.state == ControlState::ShutDown)
                    .then_some((Timeline(disk.ckpt_tli), Lsn(disk.flush)));
                self.end_job(n, JobEnd::Stopped { shutdown });
            }
        }
    }

    // --- starting ---------------------------------------------------------------------------------

    fn launch(
        &mut self,
        n: usize,
        standby: bool,
        follow: &Upstream,
        timeout: Duration,
    ) -> Result<(), String> {
        if let DataDir::Unfinished(what) = &self.nodes[n].disk.dir {
            return Err(what.clone());
        }
        let conf = self.conf_state(n, standby, follow);
        let bounded = !standby && self.agent(n).job.as_ref().is_some_and(|run| run.bounded);
        if bounded && !self.has(Mutation::StartUnbounded) {
            let guard = self.nodes[n].guard.as_ref();
            let clock = guard.map(|g| g.clock).unwrap_or_default();
            clock.may_start(bounded).map_err(|why| why.to_string())?;
        }
        self.start_postgres(n, standby, conf.sync_names.clone(), conf.upstream.clone())?;
        self.agent(n).applied = conf;
        let limit = self.now + nanos(timeout);
        if let Some(run) = self.agent(n).job.as_mut() {
            run.limit = limit;
        }
        self.next(n, POLL, Stage::Waiting);
        Ok(())
    }

    /// Waits until the server accepts connections.
    fn await_start(&mut self, n: usize, run: &JobRun) {
        match self.nodes[n].pg.run {
            Run::Running => self.end_job(n, JobEnd::Done),
            Run::Starting if self.now >= run.limit || run.cancelled => {
                self.end_job(n, JobEnd::StillStarting);
            }
            Run::Starting => self.next(n, POLL, Stage::Waiting),
            Run::Gone | Run::Orphans | Run::Stopping => {
                self.failed_job(n, "the postmaster ended while it was starting");
            }
        }
    }

    fn start_job_of(
        &mut self,
        n: usize,
        run: &JobRun,
        stage: Stage,
        standby: bool,
        timeout: Duration,
    ) {
        match stage {
            Stage::Waiting => self.await_start(n, run),
            _ if run.cancelled => self.end_job(n, JobEnd::Cancelled),
            _ => {
                let follow = match &run.job {
                    Job::StartStandby { follow, .. } => follow.clone(),
                    _ => Upstream::None,
                };
                if let Err(why) = self.launch(n, standby, &follow, timeout) {
                    self.failed_job(n, &why);
                }
            }
        }
    }

    fn promote_job(&mut self, n: usize, run: &JobRun, stage: Stage, above: u32) {
        match stage {
            Stage::Begin => {
                if run.cancelled {
                    return self.end_job(n, JobEnd::Cancelled);
                }
                if self.nodes[n].pg.run != Run::Running {
                    return self.failed_job(n, "PostgreSQL does not run");
                }
                if self.nodes[n].refuse_promotions > 0 {
                    self.nodes[n].refuse_promotions -= 1;
                    let refused = Failure::PrePromote("exit status 1".into());
                    return self.end_job(n, JobEnd::Failed(refused));
                }
                if let Some(job) = self.agent(n).o.job.as_mut() {
                    job.phase = "promoting".into();
                }
                self.promote_postgres(n, above);
                self.next(n, POLL, Stage::Waiting);
            }
            _ if self.nodes[n].pg.run != Run::Running => {
                self.failed_job(n, "the postmaster ended before it was out of recovery");
            }
            _ if !self.nodes[n].pg.in_recovery => self.end_job(n, JobEnd::Done),
            _ if run.cancelled => self.end_job(n, JobEnd::Cancelled),
            _ => self.next(n, 10 * MS, Stage::Waiting),
        }
    }

    fn restart(&mut self, n: usize, run: &JobRun, stage: Stage, timeout: Duration) {
        let standby = self.nodes[n].disk.signal;
        match stage {
            Stage::Begin => {
                self.checkpointed(n);
                self.ask_to_stop(n, StopMode::Fast, None);
            }
            Stage::Halting if run.cancelled => self.end_job(n, JobEnd::Cancelled),
            Stage::Halting => {
                if self.halted(n, run) {
                    self.next(n, 0, Stage::Halted);
                }
            }
            Stage::Halted | Stage::Working => {
                let follow = match &run.job {
                    Job::Restart { follow, .. }
                    | Job::CopySlots { follow, .. }
                    | Job::Follow { follow } => follow.clone(),
                    _ => Upstream::None,
                };
                if let Err(why) = self.launch(n, standby, &follow, timeout) {
                    self.failed_job(n, &why);
                }
            }
            Stage::Waiting => self.await_start(n, run),
        }
    }

    fn follow(&mut self, n: usize, run: &JobRun, stage: Stage, follow: &Upstream) {
        if stage == Stage::Begin {
            if self.nodes[n].pg.run != Run::Running {
                return self.failed_job(n, "PostgreSQL does not run");
            }
            if !self.nodes[n].disk.signal {
                self.nodes[n].disk.signal = true;
                return self.restart(n, run, stage, Duration::from_secs(60));
            }
            let wait = self.rng.u64(5..60) * MS;
            return self.next(n, wait, Stage::Working);
        }
        if stage != Stage::Working {
            return self.restart(n, run, stage, Duration::from_secs(60));
        }
        let conf = self.conf_state(n, true, follow);
        self.load_names(n, &conf.sync_names);
        self.load_upstream(n, &conf.upstream);
        self.agent(n).applied = conf;
        self.end_job(n, JobEnd::Done);
    }

    // --- new data ---------------------------------------------------------------------------------

    fn bootstrap(&mut self, n: usize, run: &JobRun, stage: Stage) {
        match stage {
            Stage::Begin => {
                self.nodes[n].disk.dir = DataDir::Unfinished("bootstrap".into());
                let wait = self.rng.u64(300..1_200) * MS;
                self.next(n, wait, Stage::Working);
            }
            _ if run.cancelled => self.set_aside(n, JobEnd::Cancelled),
            Stage::Working => {
                self.make_cluster(n);
                match self.start_postgres(n, false, String::new(), Upstream::None) {
                    Ok(()) => {
                        self.nodes[n].disk.dir = DataDir::Unfinished("bootstrap".into());
                        self.next(n, POLL, Stage::Waiting);
                    }
                    Err(why) => self.set_aside(n, JobEnd::Failed(Failure::Other(why))),
                }
            }
            _ => match self.nodes[n].pg.run {
                Run::Running => self.end_job(n, JobEnd::Done),
                Run::Starting => self.next(n, POLL, Stage::Waiting),
                _ => {
                    let why = Failure::Other("the first start failed".into());
                    self.set_aside(n, JobEnd::Failed(why));
                }
            },
        }
    }

    /// What `initdb` leaves.
    fn make_cluster(&mut self, n: usize) {
        self.systems += 1;
        self.branches.push(Branch {
            tli: 1,
            parent: None,
            end: 1_000_000,
            writer: n,
        });
        let wal_epoch = self.nodes[n].disk.wal_epoch;
        self.nodes[n].disk = Disk {
            dir: DataDir::Initialised,
            system: self.systems,
            branch: self.branches.len() - 1,
            flush: 1_000_000,
            replay: 1_000_000,
            state: ControlState::ShutDown,
            ckpt: 1_000_000,
            ckpt_tli: 1,
            max_tli: 1,
            wal_epoch,
            ..Disk::empty()
        };
    }

    /// A bootstrap that does not end well leaves an empty place for the next attempt.
    fn set_aside(&mut self, n: usize, end: JobEnd) {
        self.kill_postgres(n, 0);
        let disk = &mut self.nodes[n].disk;
        *disk = Disk {
            promised: disk.promised,
            ..Disk::empty()
        };
        self.end_job(n, end);
    }

    fn set_bootstrap_aside(&mut self, n: usize, run: &JobRun, stage: Stage, system: Option<u64>) {
        match stage {
            Stage::Begin => {
                self.story.reach("bootstrap-set-aside");
                let disk = &self.nodes[n].disk;
                let known = system.map_or(disk.dir.never_presented(), |id| id == disk.system);
                if !known {
                    return self.failed_job(n, "it is another cluster");
                }
                if self.checks.system() == Some(disk.system.to_string()) {
                    self.fail(format!("S7: n{n} sets the cluster itself aside"));
                }
                self.ask_to_stop(n, StopMode::Immediate, Some(Duration::from_secs(6)));
            }
            _ if self.halted(n, run) => self.set_aside(n, JobEnd::Done),
            _ => {}
        }
    }

    /// A source that answers, and is the same cluster as far as that is known.
    fn source(&self, n: usize, source: &Upstream) -> Option<usize> {
        let source = Self::upstream_node(source).filter(|s| *s < self.nodes.len() && *s != n)?;
        let node = &self.nodes[source];
        let up = node.powered
            && node.frozen == 0
            && node.pg.run == Run::Running
            && self.net.both(Plane::Pg, n, source);
        up.then_some(source)
    }

    fn clone_job(&mut self, n: usize, stage: Stage, from: Option<&Upstream>, follow: &Upstream) {
        let cancelled = self.agent(n).job.as_ref().is_some_and(|j| j.cancelled);
        let found = from.and_then(|from| self.source(n, from));
        match (stage, found) {
            (Stage::Waiting, _) => {
                let run = self.agent(n).job.clone();
                if let Some(run) = run {
                    self.await_start(n, &run);
                }
            }
            (_, None) => self.end_job(
                n,
                JobEnd::Failed(Failure::SourceUnavailable("it does not answer".into())),
            ),
            (_, _) if cancelled => self.end_job(n, JobEnd::Cancelled),
            (Stage::Begin | Stage::Halted, Some(_)) => {
                self.nodes[n].disk.dir = DataDir::Unfinished("clone".into());
                let wait = self.rng.u64(300..2_500) * MS;
                self.next(n, wait, Stage::Working);
            }
            (_, Some(source)) => {
                self.copy_from(n, source);
                if let Err(why) = self.launch(n, true, follow, Duration::from_secs(60)) {
                    self.failed_job(n, &why);
                }
            }
        }
    }

    /// What a base backup brings: the source's WAL up to now. Promises and notes stay our own.
    fn copy_from(&mut self, n: usize, source: usize) {
        let theirs = self.nodes[source].disk.clone();
        let mine = &mut self.nodes[n].disk;
        *mine = Disk {
            dir: DataDir::Initialised,
            state: ControlState::InArchiveRecovery,
            replay: theirs.flush,
            signal: true,
            promised: mine.promised,
            wal_epoch: proto::ids::Epoch(0),
            led: None,
            ..theirs
        };
    }

    fn reinitialize(
        &mut self,
        n: usize,
        run: &JobRun,
        stage: Stage,
        source: &Upstream,
        follow: &Upstream,
    ) {
        match stage {
            Stage::Begin => {
                if self.source(n, source).is_none() {
                    let why = Failure::SourceUnavailable("it does not answer".into());
                    return self.end_job(n, JobEnd::Failed(why));
                }
                if self.nodes[n].pg.lives() {
                    self.ask_to_stop(n, StopMode::Immediate, Some(Duration::from_secs(6)));
                } else {
                    self.next(n, 0, Stage::Halted);
                }
            }
            Stage::Halting => {
                if self.halted(n, run) {
                    self.next(n, 0, Stage::Halted);
                }
            }
            Stage::Halted => {
                let Some(from) = self.source(n, source) else {
                    let why = Failure::SourceUnavailable("it does not answer".into());
                    return self.end_job(n, JobEnd::Failed(why));
                };
                let disk = &self.nodes[n].disk;
                // What was never finished has no identifier that counts.
                let mine = if disk.dir.abandoned() { 0 } else { disk.system };
                let primary = !self.nodes[from].pg.in_recovery
                    && (mine == 0 || mine == self.nodes[from].disk.system);
                if !primary && !self.has(Mutation::WipeUnchecked) {
                    return self.failed_job(n, "no other primary of this cluster is there");
                }
                self.about_to_wipe(n, from);
                self.clone_job(n, Stage::Halted, Some(source), follow);
            }
            Stage::Working | Stage::Waiting => self.clone_job(n, stage, Some(source), follow),
        }
    }

    // --- rewinding --------------------------------------------------------------------------------

    fn rewind(&mut self, n: usize, run: &JobRun, stage: Stage, source: &Upstream) {
        let found = self.source(n, source).filter(|s| {
            let theirs = &self.nodes[*s];
            !theirs.pg.in_recovery && theirs.disk.system == self.nodes[n].disk.system
        });
        let unavailable = || {
            JobEnd::Failed(Failure::SourceUnavailable(
                "it is no primary that answers".into(),
            ))
        };
        match stage {
            Stage::Begin => {
                let Some(source) = found else {
                    return self.end_job(n, unavailable());
                };
                let theirs = &self.nodes[source].disk;
                if theirs.ckpt_tli != self.branches[theirs.branch].tli {
                    return self.end_job(n, unavailable());
                }
                if self.nodes[n].pg.lives() {
                    self.ask_to_stop(n, StopMode::Fast, Some(Duration::from_secs(60)));
                } else {
                    self.next(n, 0, Stage::Halted);
                }
            }
            Stage::Halting => {
                if self.halted(n, run) {
                    self.next(n, 0, Stage::Halted);
                }
            }
            Stage::Halted => {
                if run.cancelled {
                    return self.end_job(n, JobEnd::Cancelled);
                }
                if found.is_none() {
                    return self.end_job(n, unavailable());
                }
                self.nodes[n].disk.signal = false;
                self.nodes[n].disk.dir = DataDir::Unfinished("rewind".into());
                let wait = self.rng.u64(100..1_000) * MS;
                self.next(n, wait, Stage::Working);
            }
            Stage::Working | Stage::Waiting => {
                let Some(source) = found.filter(|_| !run.cancelled) else {
                    let why = Failure::HalfDone("the source went away".into());
                    return self.end_job(n, JobEnd::Failed(why));
                };
                self.copy_from(n, source);
                self.nodes[n].disk.signal = false;
                self.end_job(n, JobEnd::Done);
            }
        }
    }
}
