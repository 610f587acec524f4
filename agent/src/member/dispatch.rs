//! Orders go to the drivers. Nothing here decides: every parameter was filled in by the core.

use super::{Done, Member, job_id};
use crate::clock;
use crate::guardian::{Basis, GuardianError};
use crate::peers::FailsafeMessage;
use proto::core::Decision;
use proto::core::decision::{Action, LeaseGoal, Wish, WishOutcome};
use proto::core::job::Job;
use proto::core::observation::{Process, RunningJob, Sql, Task, TaskResult};
use proto::core::txns;
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{Key, LeaseRecord, Op, RecordState, Txn};
use proto::ids::{Epoch, MemberName};
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// One transaction may take this long before its outcome counts as unknown.
const COMMIT_LIMIT: Duration = Duration::from_secs(2);

/// A read after an outcome that left the view in doubt.
const READ_LIMIT: Duration = Duration::from_secs(2);

impl Member {
    pub(super) fn act(&mut self, decision: Decision) {
        self.postgres.probe_every(decision.probe_every);
        for action in decision.actions {
            self.order(action);
        }
    }

    fn order(&mut self, action: Action) {
        match action {
            Action::Write { task, txn } => self.commit(task, txn),
            Action::Hold(goal) => self.hold(goal),
            Action::Start(job) => self.start_job(job),
            Action::Cancel(id) => {
                if let Some(job) = self.observation.job.as_mut().filter(|job| job.id == id) {
                    job.cancelled = true;
                }
                self.postgres.cancel(id);
            }
            Action::Arm { epoch, deadline } => {
                self.tenure_epoch.store(epoch.0, Ordering::Release);
                told("arm", self.guardian.arm(epoch, deadline));
            }
            Action::Disarm => self.disarm(),
            Action::Fence => told("fence", self.guardian.fence()),
            Action::Configure(wanted) => {
                self.begin(Task::Configure);
                self.postgres.configure(wanted);
            }
            Action::Checkpoint => {
                self.begin(Task::Checkpoint);
                self.postgres.checkpoint();
            }
            Action::Slots(plan) => {
                self.begin(Task::Slots);
                self.postgres.slots(plan);
            }
            Action::AskPeers { peers, limit } => self.ask_peers(peers, limit),
            Action::AskLineage { leader, upstream } => {
                self.begin(Task::Lineage);
                self.postgres.lineage(leader, upstream);
            }
            Action::AskFailsafe { peers, slots } => self.ask_failsafe(peers, slots),
            Action::Promise(epoch) => {
                self.begin(Task::Fence);
                self.postgres.promise(epoch);
            }
            Action::Withdraw(epoch) => self.withdraw(epoch),
            Action::NoteWalEpoch(epoch) => self.postgres.note_wal_epoch(epoch),
            Action::NoteLed(led) => self.postgres.note_led(led),
            Action::ClearMark => {
                self.begin(Task::ClearMark);
                self.postgres.clear_mark();
            }
            Action::ResumeReplay => self.postgres.resume_replay(),
            Action::EndReceiver(limit) => self.postgres.end_receiver(limit),
            Action::Callback { event, role } => self.postgres.callback(event, role),
            Action::Answer { wish, outcome } => self.answer(wish, outcome),
            Action::Log { level, text } => self.log(level, &text),
            Action::Exit { code, why } => self.exit = Some((code, why)),
        }
    }

    fn begin(&mut self, task: Task) {
        self.observation.in_flight.insert(task);
    }

    fn start_job(&mut self, job: Job) {
        let id = job_id(&mut self.next_job);
        tracing::info!("starting: {}", job.label());
        self.observation.job = Some(RunningJob {
            id,
            job: job.clone(),
            started: clock::now(),
            phase: String::from("begun"),
            cancelled: false,
        });
        let bounded = self.observation.guardian.armed.is_some();
        self.postgres.run(id, job, bounded);
    }

    fn hold(&mut self, goal: LeaseGoal) {
        let leads = !matches!(goal, LeaseGoal::Session { .. });
        let timing = self.settings.cluster.timing;
        if leads && !self.settings.cluster.pause {
            match self.watchdog.activate(timing.ttl(), timing.loop_wait()) {
                // The keeper renews, so the loop that gives it this goal is alive.
                Ok(()) => self.watchdog.ping(),
                Err(err) => tracing::error!("watchdog: {err}"),
            }
        } else if self.watchdog_may_rest() {
            self.watchdog.disable();
        }
        self.etcd.keeper().set(goal);
    }

    /// The watchdog stays on until nothing of ours can be writable, or the cluster is paused.
    fn watchdog_may_rest(&self) -> bool {
        let postgres = &self.observation.postgres;
        self.settings.cluster.pause || self.in_recovery() || postgres.process == Process::Gone
    }

    fn in_recovery(&self) -> bool {
        matches!(&self.observation.postgres.sql, Sql::Sample(sample) if sample.in_recovery)
    }

    fn disarm(&self) {
        let epoch = self.guardian.armed().map_or(Epoch(0), |armed| armed.epoch);
        let basis = match (self.settings.cluster.pause, self.in_recovery()) {
            (true, _) => Basis::Paused,
            (false, true) => Basis::InRecovery,
            (false, false) => Basis::Unknown,
        };
        told("disarm", self.guardian.disarm_because(epoch, basis));
    }

    /// Commits in the background. Whatever leaves the view in doubt is followed by a read before the
    /// task counts as ended (I5).
    pub(super) fn commit(&mut self, task: Task, txn: Txn) {
        self.begin(task);
        let (etcd, done) = (self.etcd.clone(), self.done.clone());
        let sent_at = clock::now();
        let record = own_record(&txn).map(|record| (record, sent_at));
        if let Some((record, sent_at)) = &record {
            // The one that is committed may be an earlier attempt for the same epoch, whose outcome is
            // unknown: count from the first (I2).
            let earlier = self
                .claimed
                .take()
                .filter(|(claim, _)| claim.epoch == record.epoch);
            let first = earlier.map_or(*sent_at, |(_, at)| at.min(*sent_at));
            self.claimed = Some((record.clone(), first));
            if record.state == RecordState::Released {
                // From here on the tenure may end at any moment, so no later agent goes on with it.
                told(
                    "forget",
                    self.guardian.keep(record.session.clone(), Vec::new()),
                );
            }
        }
        tokio::spawn(async move {
            let outcome = etcd.commit(&txn, COMMIT_LIMIT).await;
            match &outcome {
                TxnOutcome::Committed(_) => tracing::debug!("{task:?}: committed"),
                TxnOutcome::Refused => tracing::info!("{task:?}: a compare did not hold"),
                TxnOutcome::LeaseGone => tracing::warn!("{task:?}: our etcd lease is gone"),
                TxnOutcome::Unknown(why) => tracing::warn!("{task:?}: outcome unknown: {why}"),
            }
            if !matches!(outcome, TxnOutcome::Committed(_))
                && let Err(err) = etcd.read(READ_LIMIT).await
            {
                tracing::debug!("{task:?}: reading afterwards failed: {err}");
            }
            let result = TaskResult::Txn(outcome);
            // The loop is gone only when the process ends.
            let _ = done
                .send(Done {
                    task,
                    result,
                    peers: None,
                    record,
                })
                .await;
        });
    }

    fn ask_peers(&mut self, peers: BTreeMap<MemberName, String>, limit: Duration) {
        self.begin(Task::Peers);
        let (client, done) = (self.peers.clone(), self.done.clone());
        tokio::spawn(async move {
            let answers = client.ask(&peers, limit).await;
            let report = Done {
                peers: Some(answers),
                ..Done::plain(Task::Peers, TaskResult::Done)
            };
            let _ = done.send(report).await;
        });
    }

    fn ask_failsafe(&mut self, peers: BTreeMap<MemberName, String>, slots: BTreeMap<String, u64>) {
        self.begin(Task::AskFailsafe);
        let message = FailsafeMessage {
            name: self.settings.me.clone(),
            conn_url: self.settings.conn_url.clone(),
            api_url: self.settings.api_url.clone(),
            slots,
        };
        let (client, done) = (self.peers.clone(), self.done.clone());
        tokio::spawn(async move {
            let verdict = client.failsafe(&peers, &message).await;
            for (name, why) in &verdict.refusals {
                tracing::warn!("failsafe: {name} does not agree: {why}");
            }
            let accepted = verdict.accepted;
            let result = TaskResult::Failsafe {
                accepted,
                sent_at: verdict.sent_at,
            };
            let _ = done.send(Done::plain(Task::AskFailsafe, result)).await;
        });
    }

    /// The key goes first; only when it is taken back for certain may the disk forget (S19).
    fn withdraw(&mut self, epoch: Epoch) {
        let Some(view) = &self.observation.dcs.view else {
            return;
        };
        let txn = txns::withdraw(view, &self.settings);
        self.begin(Task::Fence);
        let (etcd, done, postgres) = (self.etcd.clone(), self.done.clone(), self.postgres.clone());
        tokio::spawn(async move {
            match etcd.commit(&txn, COMMIT_LIMIT).await {
                // The driver reports the end of the task.
                TxnOutcome::Committed(_) => postgres.withdraw(epoch),
                other => {
                    let report = Done::plain(Task::Fence, TaskResult::Txn(other));
                    let _ = done.send(report).await;
                }
            }
        });
    }

    fn answer(&mut self, wish: Wish, outcome: WishOutcome) {
        let (code, text) = match outcome {
            // Only a restart by the clock is answered when it starts, and nobody waits for that.
            WishOutcome::Done | WishOutcome::Started => (200, "restarted successfully".into()),
            WishOutcome::Refused(why) | WishOutcome::Failed(why) => (503, why),
        };
        match wish {
            Wish::Restart(id) => {
                self.observation.wishes.restart = None;
                if let Some(reply) = self.restart_replies.remove(&id) {
                    // Whoever asked may have hung up.
                    let _ = reply.send((code, text));
                }
            }
            Wish::ScheduledRestart => self.observation.wishes.scheduled_restart = None,
        }
    }
}

fn told(what: &str, result: Result<(), GuardianError>) {
    if let Err(err) = result {
        tracing::warn!("the guardian could not be told to {what}: {err}");
    }
}

/// The lease record that a transaction would write.
fn own_record(txn: &Txn) -> Option<LeaseRecord> {
    txn.then.iter().find_map(|op| match op {
        Op::Put {
            key: Key::Record,
            value,
            ..
        } => serde_json::from_str(value).ok(),
        _ => None,
    })
}
