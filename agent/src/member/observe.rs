//! Events become facts of the observation. No judgement here: each fact says what was seen and when.

use super::{CONFIRM_LIMIT, Done, Member};
use crate::clock;
use crate::etcd::{EtcdEvent, LeaseEvent};
use crate::guardian::client::GuardianEvent;
use crate::postgres::PgEvent;
use proto::core::Decision;
use proto::core::observation::{Armed, HeldRecord, Outcome, RecordSeen, Task, TaskResult};
use proto::core::txns;
use proto::dcs::txn::TxnOutcome;
use proto::dcs::{ClusterView, LeaseRecord, RecordEntry, RecordState, Snapshot};
use proto::fence::Moment;
use proto::ids::Epoch;
use proto::rest::Published;
use proto::time::MonoTime;
use std::sync::Arc;
use std::time::Duration;

impl Member {
    pub(super) fn etcd_event(&mut self, event: EtcdEvent) {
        let now = clock::now();
        match event {
            EtcdEvent::Snapshot(snapshot) => {
                // A later snapshot may be old news after this process was stopped; the first one after
                // a gap comes from a linearizable read.
                if std::mem::take(&mut self.gap) {
                    self.alive_at = Some(now);
                }
                self.new_view(&snapshot, now);
            }
            EtcdEvent::Alive => self.alive_at = Some(now),
            EtcdEvent::Gap => {
                // What happens meanwhile is not seen: a record may be renewed and stand still again
                // unseen, so watching it starts over (S21).
                self.alive_at = None;
                self.gap = true;
                self.observation.dcs.watching_since = None;
                self.observation.dcs.record_seen = None;
            }
            EtcdEvent::Unreachable(why) => tracing::warn!("etcd is not reachable: {why}"),
            EtcdEvent::OtherCluster { was, is } => {
                // S23: another world. Nothing that was seen counts any more.
                let how = if was == is {
                    String::from("its revision went back")
                } else {
                    format!("cluster id {was:x} became {is:x}")
                };
                tracing::error!("etcd was wiped or restored: {how}");
                self.alive_at = None;
                self.gap = true;
                self.observation.dcs.view = None;
                self.observation.dcs.held = None;
                self.observation.dcs.record_seen = None;
            }
            EtcdEvent::Lease(event) => self.lease_event(event),
        }
    }

    fn lease_event(&mut self, event: LeaseEvent) {
        let dcs = &mut self.observation.dcs;
        match event {
            LeaseEvent::Session(session) => dcs.session = Some(session),
            LeaseEvent::SessionLost(id) => {
                if dcs.session.is_some_and(|session| session.id == id) {
                    tracing::warn!("our etcd lease is gone");
                    dcs.session = None;
                }
            }
            LeaseEvent::Record(held) => {
                let before = dcs.held;
                if before.is_none_or(|before| before.epoch <= held.epoch) {
                    dcs.held = Some(held);
                }
                if before.is_some_and(|b| b.epoch == held.epoch && b.length != held.length) {
                    self.keep_tenure(self.observation.guardian.session.clone(), &held);
                }
            }
            LeaseEvent::RecordLost { epoch, why } => {
                tracing::error!("the lease record of epoch {epoch} is lost: {why}");
                if dcs.held.is_some_and(|held| held.epoch == epoch) {
                    dcs.held = None;
                }
            }
            LeaseEvent::Refused(why) => tracing::warn!("the leader key is not ours: {why}"),
        }
    }

    fn new_view(&mut self, snapshot: &Snapshot, now: MonoTime) {
        let view = ClusterView::read(snapshot);
        let dcs = &mut self.observation.dcs;
        dcs.watching_since.get_or_insert(now);
        match &view.record {
            Some(entry)
                if dcs
                    .record_seen
                    .is_some_and(|s| s.modified == entry.modified) => {}
            Some(entry) => {
                dcs.record_seen = Some(RecordSeen {
                    modified: entry.modified,
                    since: now,
                });
                self.record_first_seen = Moment {
                    boot: now,
                    raw: clock::raw(),
                };
            }
            None => dcs.record_seen = None,
        }
        self.adopt_own_record(&view);
        self.observation.dcs.view = Some(view);
        self.last_seen = clock::wall();
        self.dynamic_may_have_changed();
    }

    /// A record that stands in our name: from a claim whose outcome was unknown, or from the tenure of
    /// the agent before us, which the guardian kept (an agent crash is not a failover).
    fn adopt_own_record(&mut self, view: &ClusterView) {
        let Some(entry) = &view.record else { return };
        let record = &entry.record;
        let ours = record.owner == self.settings.me
            && record.session == self.observation.guardian.session
            && record.state == RecordState::Held;
        if !ours
            || self
                .observation
                .dcs
                .held
                .is_some_and(|held| held.epoch == record.epoch)
        {
            return;
        }
        let claimed = self
            .claimed
            .as_ref()
            .filter(|(claim, _)| claim.epoch == record.epoch);
        let inherited = self.inherited.filter(|held| held.epoch == record.epoch);
        let Some(held) = adopted(entry, claimed.map(|(_, at)| *at), inherited) else {
            return;
        };
        self.hold_record(record.clone(), held);
    }

    /// Has the guardian keep what a later agent needs to go on in this tenure.
    fn keep_tenure(&self, session: String, held: &HeldRecord) {
        let kept = super::Kept {
            epoch: held.epoch.0,
            length_ms: u64::try_from(held.length.as_millis()).unwrap_or(u64::MAX),
        };
        if let Ok(blob) = serde_json::to_vec(&kept)
            && let Err(err) = self.guardian.keep(session, blob)
        {
            tracing::warn!("the guardian keeps nothing for a later agent: {err}");
        }
    }

    fn hold_record(&mut self, record: LeaseRecord, held: HeldRecord) {
        self.keep_tenure(record.session.clone(), &held);
        self.etcd.keeper().adopt_record(record, held);
        self.observation.dcs.held = Some(held);
        self.claimed = None;
        self.inherited = None;
    }

    pub(super) fn guardian_event(&mut self, event: GuardianEvent) {
        self.postgres.guardian_event(&event);
        match event {
            GuardianEvent::Armed(_) | GuardianEvent::Disarmed | GuardianEvent::Empty => {}
            GuardianEvent::PostmasterFound(pid) => {
                tracing::info!("guarding postmaster {pid}, which others started");
            }
            GuardianEvent::PostmasterExited { pid, status } => {
                tracing::warn!("postmaster {pid} ended, wait status {status:?}");
            }
            GuardianEvent::Orphans(count) => {
                tracing::warn!("{count} processes outlived the postmaster and are being ended");
            }
            GuardianEvent::Fenced { took } => {
                tracing::error!("the guardian ended PostgreSQL, which took {took:?}");
            }
            GuardianEvent::Refused(why) => tracing::warn!("the guardian refused: {why}"),
            GuardianEvent::Silent => tracing::warn!("the guardian has been silent for a while"),
            GuardianEvent::Back => tracing::info!("the guardian answers again"),
            GuardianEvent::Lost => tracing::error!("the guardian is gone, PostgreSQL goes with it"),
            GuardianEvent::Attached(hello) => {
                tracing::info!("guardian {} is attached", hello.pid);
            }
            GuardianEvent::Replaced => {
                self.exit = Some((1, "another agent has taken over this data directory".into()));
            }
        }
    }

    pub(super) fn postgres_event(&mut self, event: PgEvent) {
        match event {
            PgEvent::Sample(sample) => self.observation.postgres = Arc::unwrap_or_clone(sample),
            PgEvent::JobPhase { id, phase } => {
                if let Some(job) = self.observation.job.as_mut().filter(|job| job.id == id) {
                    tracing::info!("{}: {phase}", job.job.label());
                    job.phase = phase;
                }
            }
            PgEvent::JobEnded(finished) => {
                if self
                    .observation
                    .job
                    .as_ref()
                    .is_some_and(|job| job.id == finished.id)
                {
                    self.observation.job = None;
                    self.observation.finished = Some(finished);
                }
            }
            PgEvent::TaskEnded(task, result) => self.task_done(Done::plain(task, result)),
            PgEvent::Lineage(lineage) => self.observation.lineage = Some(lineage),
        }
    }

    pub(super) fn task_done(&mut self, done: Done) {
        let Done {
            task,
            result,
            peers,
            record,
        } = done;
        if let Some(answers) = peers {
            self.observation.peers.extend(answers);
        }
        if let Some((written, sent_at)) = record {
            self.record_written(written, sent_at, &result);
        }
        if let TaskResult::Failed(why) = &result {
            tracing::warn!("{task:?}: {why}");
        }
        if let TaskResult::Promised(promise) = &result {
            // The promise is on disk and the stream is cut; only now may the key say so (S19).
            if let Some(view) = &self.observation.dcs.view {
                let txn = txns::promise(view, &self.settings, promise);
                return self.commit(Task::Fence, txn);
            }
        }
        self.observation.in_flight.remove(&task);
        self.observation.outcomes.insert(
            task,
            Outcome {
                at: clock::now(),
                result,
            },
        );
    }

    fn record_written(&mut self, written: LeaseRecord, sent_at: MonoTime, result: &TaskResult) {
        let TaskResult::Txn(outcome) = result else {
            return;
        };
        let by_us = written.owner == self.settings.me && written.state == RecordState::Held;
        match outcome {
            TxnOutcome::Committed(revision) if by_us => {
                let held = HeldRecord {
                    epoch: written.epoch,
                    sent_at,
                    length: Duration::from_millis(written.l_ms),
                    modified: *revision,
                    seq: written.seq,
                };
                self.hold_record(written, held);
            }
            TxnOutcome::Committed(_) => self.observation.dcs.held = None,
            // It may have happened: the next view tells (rule 8 of `safety.md` 1). A refusal too: the
            // read that follows it may show our own first attempt.
            TxnOutcome::Unknown(_) => {}
            TxnOutcome::Refused | TxnOutcome::LeaseGone => self.claimed = None,
        }
    }

    /// Facts that are read at the moment of the decision.
    pub(super) fn look(&mut self, now: MonoTime) {
        let o = &mut self.observation;
        o.now = now;
        if let Some(seen) = &mut o.dcs.record_seen {
            let raw = clock::raw();
            seen.since = standing_since(Moment { boot: now, raw }, self.record_first_seen);
        }
        o.wall = clock::wall();
        o.dice = fastrand::u64(..);
        o.dcs.confirmed = o.dcs.view.is_some()
            && self
                .alive_at
                .is_some_and(|at| now.since(at) < CONFIRM_LIMIT);
        o.dcs.confirmed_at = self.alive_at.unwrap_or(o.dcs.confirmed_at);
        let hello = self.guardian.hello();
        o.guardian.alive = self.guardian.is_alive();
        o.guardian.fit = hello.fit;
        o.guardian.armed = hello.armed.map(|armed| Armed {
            epoch: armed.epoch,
            deadline: armed.deadline,
        });
        let armed = o.guardian.armed.map_or(Epoch(0), |armed| armed.epoch);
        o.guardian.epoch = o.guardian.epoch.max(armed);
        o.guardian.session = hello.session;
        let timing = self.settings.cluster.timing;
        o.watchdog_failed = !self.watchdog.is_healthy(timing.ttl(), timing.loop_wait());
    }

    pub(super) fn publish(&mut self, decision: &Decision, began: MonoTime) {
        let o = &self.observation;
        let age = o.now.since(o.dcs.confirmed_at);
        let fresh = o.dcs.confirmed || age < self.settings.cluster.timing.ttl();
        let standing = &decision.standing;
        let micros = clock::now().since(began).as_micros();
        let snapshot = Published {
            at: o.now,
            settings: Arc::clone(&self.settings),
            view: o
                .dcs
                .view
                .as_ref()
                .filter(|_| fresh)
                .map(|view| Arc::new(view.clone())),
            dcs_last_seen: self.last_seen,
            postgres: Arc::new(o.postgres.clone()),
            state: standing.state,
            role: standing.role,
            leader_until: standing.leader_until,
            hold_back: standing.hold_back.clone(),
            paused: self.settings.cluster.pause,
            failsafe_active: standing.failsafe_active,
            watchdog_failed: o.watchdog_failed,
            epoch: standing.epoch,
            wishes: o.wishes.clone(),
            job: o.job.as_ref().map(|job| job.job.label()),
            system_id: o
                .postgres
                .control
                .as_ref()
                .map(|c| c.system_id)
                .filter(|id| id.0 != 0),
            next_run: decision.wake_at,
            rule: decision.reason.rule().to_owned(),
            reason: decision.reason.to_string(),
            goal: Some(standing.goal.clone()),
            cycle_micros: u64::try_from(micros).unwrap_or(u64::MAX),
        };
        self.published.send_replace(Arc::new(snapshot));
    }
}

/// Since when a record has stood still for certain, by the clock that has seen less time pass since it was
/// first seen: the boot clock may be slewed by several percent, and the raw one misses suspend (`safety.md`
/// 2).
fn standing_since(now: Moment, first: Moment) -> MonoTime {
    now.boot - now.boot.since(first.boot).min(now.raw.since(first.raw))
}

/// What a record in our name has earned: since the claim was sent, or up to the deadline that the guardian
/// kept. Its length is that of the deadline then: a renewal whose answer nobody has heard may have written
/// another one since.
fn adopted(
    entry: &RecordEntry,
    claimed: Option<MonoTime>,
    inherited: Option<HeldRecord>,
) -> Option<HeldRecord> {
    let claimed = claimed.map(|at| (at, Duration::from_millis(entry.record.l_ms)));
    let (sent_at, length) = claimed.or(inherited.map(|held| (held.sent_at, held.length)))?;
    Some(HeldRecord {
        epoch: entry.record.epoch,
        sent_at,
        length,
        modified: entry.modified,
        seq: entry.record.seq,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::dcs::RECORD_VERSION;
    use proto::ids::Revision;

    fn entry(l_ms: u64) -> RecordEntry {
        let record = LeaseRecord {
            v: RECORD_VERSION,
            epoch: Epoch(3),
            owner: "a".into(),
            session: "s".into(),
            seq: 9,
            state: RecordState::Held,
            l_ms,
            w_ms: 8600,
            members: Vec::new(),
            final_position: None,
        };
        let text = record.to_value();
        RecordEntry::parse(&text, Revision(20)).expect("just written")
    }

    #[test]
    fn a_record_stands_still_for_as_long_as_the_slower_clock_says() {
        let moment = |boot: u64, raw: u64| Moment {
            boot: MonoTime(boot),
            raw: MonoTime(raw),
        };
        for (now, stood) in [
            (moment(1_900, 590), 90),
            // The boot clock is slewed forward, or backward, or a suspend lies between.
            (moment(1_978, 590), 90),
            (moment(1_900, 670), 100),
            (moment(9_900, 590), 90),
        ] {
            let first = moment(1_800, 500);
            let since = standing_since(now, first);
            assert_eq!(now.boot.since(since).as_nanos(), stood);
        }
    }

    /// The model found it: the lease was lengthened while it was held, the agent was restarted, and counted
    /// the longer lease from a moment that belonged to the shorter one.
    #[test]
    fn a_restarted_agent_holds_until_the_deadline_of_the_guardian_and_no_longer() {
        let second = |n: u64| MonoTime(n * 1_000_000_000);
        let kept = HeldRecord {
            epoch: Epoch(3),
            sent_at: second(15),
            length: Duration::from_secs(5),
            modified: Revision(0),
            seq: 0,
        };
        let held = adopted(&entry(8000), None, Some(kept)).expect("inherited");
        assert_eq!(held.sent_at + held.length, second(20));
        assert_eq!((held.modified, held.seq), (Revision(20), 9));
        let held = adopted(&entry(8000), Some(second(12)), None).expect("claimed");
        assert_eq!(held.sent_at + held.length, second(20));
        assert_eq!(adopted(&entry(8000), None, None), None);
    }
}
