//! What becomes of the orders of `decide`, and of the answers to what was written.

use super::super::clock::{MS, T, nanos};
use super::super::keeper::{For, Req};
use super::super::mutation::Mutation;
use super::super::postgres::Step;
use super::super::story::Tag;
use super::super::world::{Ev, World};
use super::COMMIT_LIMIT;
use proto::core::decision::{Action, LeaseGoal, Wish};
use proto::core::observation::{DataDir, HeldRecord, Outcome, Sql, Task, TaskResult};
use proto::core::txns;
use proto::dcs::txn::{Op, Txn, TxnOutcome};
use proto::dcs::{Key, LeaseRecord, RecordState};
use proto::fence::Basis;
use proto::ids::{Epoch, LeaseId};
use proto::time::MonoTime;
use proto::wal::Timeline;
use std::time::Duration;

impl World {
    pub(super) fn begin(&mut self, n: usize, task: Task) {
        self.agent(n).o.in_flight.insert(task);
    }

    pub(super) fn task_after(&mut self, n: usize, wait: T, task: Task, result: TaskResult) {
        let inc = self.inc(n);
        let result = Box::new(result);
        self.after(
            wait,
            Ev::TaskEnd {
                n,
                inc,
                task,
                result,
            },
        );
    }

    fn tell_order(&mut self, n: usize, action: &Action) {
        if self.story.told
            && !matches!(
                action,
                Action::Hold(_)
                    | Action::Slots(_)
                    | Action::Callback { .. }
                    | Action::Write {
                        task: Task::Member | Task::Status,
                        ..
                    }
            )
        {
            let text = format!("{action:?}");
            let short: String = text.chars().take(400).collect();
            self.tell(n, Tag::Order, || short);
        }
    }

    pub(super) fn order(&mut self, n: usize, action: Action) {
        self.tell_order(n, &action);
        if let Some(task) = action.task()
            && self.agent(n).o.in_flight.contains(&task)
        {
            self.fail(format!("busy: n{n} orders {task:?} while it is under way"));
        }
        let few = self.rng.u64(5..40) * MS;
        match action {
            Action::Write { task, txn } => self.commit(n, task, txn),
            Action::Hold(goal) => self.hold(n, goal),
            Action::Start(job) => {
                let job = self.mistaken_promotion(n, job);
                self.start_job(n, job);
            }
            Action::Cancel(id) => self.cancel_job(n, id),
            Action::Arm { epoch, deadline } => {
                self.agent(n).tenure_epoch = epoch;
                self.arm(n, epoch, deadline);
            }
            Action::Disarm => self.ordered_disarm(n),
            Action::Fence => self.fence(n),
            Action::Configure(wanted) => {
                self.begin(n, Task::Configure);
                self.agent(n).wanted = Some(wanted);
                let inc = self.inc(n);
                self.after(few, Ev::Configured { n, inc });
            }
            Action::Checkpoint => {
                self.begin(n, Task::Checkpoint);
                self.pg_after(n, few, Step::Checkpoint);
                self.task_after(n, few + MS, Task::Checkpoint, TaskResult::Done);
            }
            Action::Slots(_) => {
                self.begin(n, Task::Slots);
                self.task_after(n, few, Task::Slots, TaskResult::Done);
            }
            Action::AskPeers { peers, limit } => self.ask_peers(n, &peers, nanos(limit)),
            Action::AskLineage { leader, upstream } => self.ask_lineage(n, leader, &upstream),
            Action::AskFailsafe { peers, .. } => self.ask_failsafe(n, &peers),
            Action::Promise(epoch) => self.promise(n, epoch),
            Action::Withdraw(epoch) => self.withdraw(n, epoch),
            Action::ClearMark => {
                self.begin(n, Task::ClearMark);
                self.nodes[n].disk.dir = DataDir::Initialised;
                self.probe_now(n);
                self.task_after(n, few, Task::ClearMark, TaskResult::Done);
            }
            Action::NoteWalEpoch(epoch) => {
                let disk = &mut self.nodes[n].disk;
                disk.wal_epoch = disk.wal_epoch.max(epoch);
                self.probe_now(n);
            }
            Action::NoteLed(led) => {
                let disk = &mut self.nodes[n].disk;
                disk.wal_epoch = disk.wal_epoch.max(led.epoch);
                disk.led = Some(led);
                self.probe_now(n);
            }
            Action::EndReceiver(limit) => {
                if !self.has(Mutation::ReceiverHangs) {
                    self.end_receiver(n, nanos(limit));
                }
            }
            Action::ResumeReplay | Action::Callback { .. } | Action::Log { .. } => {}
            Action::Answer { wish, .. } => {
                let wishes = &mut self.agent(n).o.wishes;
                match wish {
                    Wish::Restart(_) => wishes.restart = None,
                    Wish::ScheduledRestart => wishes.scheduled_restart = None,
                }
            }
            Action::Exit { code, why } => {
                self.tell(n, Tag::Order, || format!("agent ends: {code} {why}"));
                self.end_agent(n);
                let wait = self.rng.u64(500..2_000) * MS;
                self.after(wait, Ev::AgentStart { n });
            }
        }
    }

    fn hold(&mut self, n: usize, goal: LeaseGoal) {
        self.set_goal(n, goal);
    }

    fn ordered_disarm(&mut self, n: usize) {
        let paused = self.agent(n).s.cluster.pause;
        let recovery = match &self.agent(n).o.postgres.sql {
            Sql::Sample(sample) => sample.in_recovery,
            _ => false,
        };
        let basis = match (paused, recovery) {
            (true, _) => Basis::Paused,
            (false, true) => Basis::InRecovery,
            (false, false) => Basis::Unknown,
        };
        let epoch = self.nodes[n]
            .guard
            .as_ref()
            .and_then(|g| g.clock.armed())
            .map_or(Epoch(0), |a| a.epoch);
        self.disarm(n, epoch, basis);
        let inc = self.inc(n);
        self.after(MS / 2, Ev::Nudge { n, inc });
    }

    pub fn commit(&mut self, n: usize, task: Task, txn: Txn) {
        self.begin(n, task);
        let txn = self.mistaken(task, txn);
        let sent_at = self.local(n);
        let record = own_record(&txn).map(|record| (record, sent_at));
        if let Some((record, sent_at)) = &record {
            let agent = self.agent(n);
            let earlier = agent
                .claimed
                .take()
                .filter(|(c, _)| c.epoch == record.epoch);
            let first = earlier.map_or(*sent_at, |(_, at)| at.min(*sent_at));
            agent.claimed = Some((record.clone(), first));
        }
        let session = self.agent(n).keeper.session_id();
        let what = For::Commit(task, txn.clone(), session, record);
        self.request(n, Req::Txn(txn, session), COMMIT_LIMIT, what);
    }

    pub fn commit_answered(
        &mut self,
        n: usize,
        task: Task,
        txn: &Txn,
        session: LeaseId,
        record: Option<(LeaseRecord, MonoTime)>,
        outcome: TxnOutcome,
    ) {
        self.tell(n, Tag::Etcd, || match task {
            Task::Member | Task::Status => String::from("-"),
            _ => format!("{task:?}: {outcome:?}"),
        });
        match &outcome {
            TxnOutcome::Committed(revision) => {
                let revision = *revision;
                self.fold_own(n, txn, session, revision);
                self.task_done(n, task, TaskResult::Txn(outcome), record);
            }
            _ => {
                if outcome == TxnOutcome::LeaseGone {
                    self.nudge_keeper(n);
                }
                let what = For::ReadAfter(task, TaskResult::Txn(outcome), record);
                self.request(n, Req::Read, COMMIT_LIMIT, what);
            }
        }
    }

    pub fn task_done(
        &mut self,
        n: usize,
        task: Task,
        result: TaskResult,
        record: Option<(LeaseRecord, MonoTime)>,
    ) {
        if self.nodes[n].agent.is_none() {
            return;
        }
        if let Some((written, sent_at)) = record {
            self.record_written(n, written, sent_at, &result);
        }
        if let TaskResult::Promised(promise) = &result {
            let mut promise = promise.clone();
            if self.has(Mutation::LsnOrderOnly) {
                promise.timeline = Timeline(1);
            }
            let agent = self.agent(n);
            if let Some(view) = &agent.o.dcs.view {
                let txn = txns::promise(view, &agent.s, &promise);
                return self.commit(n, Task::Fence, txn);
            }
        }
        let at = self.local(n);
        let agent = self.agent(n);
        agent.o.in_flight.remove(&task);
        agent.o.outcomes.insert(task, Outcome { at, result });
        self.decide(n);
    }

    fn record_written(
        &mut self,
        n: usize,
        written: LeaseRecord,
        sent_at: MonoTime,
        result: &TaskResult,
    ) {
        let TaskResult::Txn(outcome) = result else {
            return;
        };
        let by_us = written.owner == self.names[n] && written.state == RecordState::Held;
        match outcome {
            TxnOutcome::Committed(revision) if by_us => {
                let held = HeldRecord {
                    epoch: written.epoch,
                    sent_at,
                    length: Duration::from_millis(written.l_ms),
                    modified: *revision,
                    seq: written.seq,
                };
                self.hold_record(n, written, held);
            }
            TxnOutcome::Committed(_) => self.agent(n).o.dcs.held = None,
            TxnOutcome::Unknown(_) => {}
            TxnOutcome::Refused | TxnOutcome::LeaseGone => self.agent(n).claimed = None,
        }
    }

    pub(super) fn hold_record(&mut self, n: usize, record: LeaseRecord, held: HeldRecord) {
        let agent = self.agent(n);
        agent.keeper.adopted = Some((record, held));
        agent.o.dcs.held = Some(held);
        agent.claimed = None;
        agent.inherited = None;
        if let Some(guard) = self.nodes[n].guard.as_mut() {
            guard.kept = Some((held.epoch, held.length));
        }
        self.nudge_keeper(n);
    }
}

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
