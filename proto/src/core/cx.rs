//! The work bench of one decision: what is known, what is remembered, what has been ordered so far.

use super::decision::{Action, LogLevel, WantedConf};
use super::job::{Job, Upstream};
use super::memory::Memory;
use super::observation::{Observation, Outcome, Process, Sql, SqlSample, Task, TaskResult};
use super::tenure::{self, Lock, Tenure};
use crate::config::Settings;
use crate::dcs::txn::{Txn, TxnOutcome};
use crate::dcs::{ClusterView, MemberRecord, PgRole};
use crate::ids::MemberName;
use crate::time::MonoTime;
use std::time::Duration;

/// After short work failed, it is tried again no sooner than this.
pub const RETRY_AFTER: Duration = Duration::from_millis(300);

pub(super) struct Cx<'a> {
    pub o: &'a Observation,
    pub s: &'a Settings,
    pub m: Memory,
    pub lock: Lock,
    pub actions: Vec<Action>,
    pub wake_at: MonoTime,
    pub probe_every: Duration,
    /// The primary may serve clients although a rule holds it back (S9).
    pub hold_back: Option<String>,
    /// We want to keep or get leadership: the keeper shall renew it.
    pub keep_leading: bool,
}

impl<'a> Cx<'a> {
    pub fn new(o: &'a Observation, m: &Memory, s: &'a Settings) -> Self {
        let lock = tenure::lock(o, m, s);
        let keep_leading = matches!(lock, Lock::Mine(_));
        Self {
            o,
            s,
            m: m.clone(),
            lock,
            actions: Vec::new(),
            wake_at: o.now + s.cluster.timing.loop_wait(),
            probe_every: Duration::from_secs(1),
            hold_back: None,
            keep_leading,
        }
    }

    pub fn view(&self) -> Option<&'a ClusterView> {
        self.o.dcs.view.as_ref()
    }

    pub fn paused(&self) -> bool {
        self.s.cluster.pause
    }

    pub fn tenure(&self) -> Option<Tenure> {
        match self.lock {
            Lock::Mine(tenure) => Some(tenure),
            _ => None,
        }
    }

    pub fn sample(&self) -> Option<&'a SqlSample> {
        match (&self.o.postgres.process, &self.o.postgres.sql) {
            (Process::Alive { .. }, Sql::Sample(sample)) => Some(sample),
            _ => None,
        }
    }

    pub fn alive(&self) -> bool {
        matches!(self.o.postgres.process, Process::Alive { .. })
    }

    /// PostgreSQL answers and is not in recovery.
    pub fn is_primary(&self) -> bool {
        self.sample().is_some_and(|sample| !sample.in_recovery)
    }

    /// It is a primary, or does not answer and may be one (S2): it was one, or the file that keeps a server in recovery
    /// is not there. A file that somebody lays under a running primary keeps nothing in recovery.
    pub fn may_write(&self) -> bool {
        let silent_standby = self.o.postgres.signal_file && self.m.role != Some(PgRole::Primary);
        let recovers = self
            .sample()
            .map_or(silent_standby, |sample| sample.in_recovery);
        self.alive() && !recovers
    }

    pub fn push(&mut self, action: Action) {
        self.actions.push(action);
    }

    pub fn log(&mut self, level: LogLevel, text: impl Into<String>) {
        self.actions.push(Action::Log {
            level,
            text: text.into(),
        });
    }

    /// Decide again no later than this.
    pub fn wake(&mut self, at: MonoTime) {
        self.wake_at = self
            .wake_at
            .min(at.max(self.o.now + Duration::from_millis(1)));
    }

    pub fn wake_in(&mut self, after: Duration) {
        self.wake(self.o.now + after);
    }

    pub fn probe(&mut self, every: Duration) {
        self.probe_every = self.probe_every.min(every);
    }

    pub fn outcome(&self, task: Task) -> Option<&'a Outcome> {
        self.o.outcomes.get(&task)
    }

    /// Whether short work of this kind may be ordered: none is under way or ordered already, and the
    /// last one did not fail just now.
    pub fn may(&mut self, task: Task) -> bool {
        let ordered = self
            .actions
            .iter()
            .any(|action| action.task() == Some(task));
        if ordered || self.o.in_flight.contains(&task) {
            return false;
        }
        let failed = |outcome: &Outcome| {
            !matches!(
                outcome.result,
                TaskResult::Done
                    | TaskResult::Promised(_)
                    | TaskResult::Failsafe { .. }
                    | TaskResult::Txn(TxnOutcome::Committed(_))
            )
        };
        let Some(outcome) = self.outcome(task).filter(|outcome| failed(outcome)) else {
            return true;
        };
        let again = outcome.at + RETRY_AFTER;
        if self.o.now >= again {
            return true;
        }
        self.wake(again);
        false
    }

    /// Orders a transaction unless one of its kind is under way.
    pub fn write(&mut self, task: Task, txn: Txn) -> bool {
        let may = self.may(task);
        if may {
            self.push(Action::Write { task, txn });
        }
        may
    }

    /// Orders a job. Only one runs, so callers return right after it.
    pub fn start(&mut self, job: Job) {
        self.push(Action::Start(job));
    }

    /// Where a member's PostgreSQL can be reached.
    pub fn upstream_of(&self, name: &MemberName) -> Option<Upstream> {
        let conn_url = self.member(name)?.conn_url.clone()?;
        Some(Upstream::Member {
            name: name.clone(),
            conn_url,
        })
    }

    pub fn member(&self, name: &MemberName) -> Option<&'a MemberRecord> {
        self.view()?.member(name)
    }

    /// Orders a configuration change when what is in force differs. Returns whether it is in force.
    pub fn configured(&mut self, sync_names: Option<String>, as_primary: bool) -> bool {
        let conf = &self.o.postgres.conf;
        let names_ok = sync_names
            .as_ref()
            .is_none_or(|names| *names == conf.sync_names);
        if names_ok && conf.as_primary == as_primary && conf.generation == self.s.conf_generation {
            return true;
        }
        if self.may(Task::Configure) {
            let generation = self.s.conf_generation;
            self.push(Action::Configure(WantedConf {
                generation,
                sync_names,
                as_primary,
            }));
        }
        false
    }
}
