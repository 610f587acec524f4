//! Requests to etcd and their answers, and the keeper of leases: session and record, each on its own
//! cadence, bound by the progress of the loop. Follows `agent/src/etcd/{keeper,session,watch}.rs`; the
//! rules of a renewal are that code itself.

use super::clock::{MS, SEC, T, dur, nanos};
use super::etcd::EXPIRY_SCAN;
use super::mutation::Mutation;
use super::network::{ETCD, Plane};
use super::record::{Renewal, Resolved, Terms};
use super::story::Tag;
use super::world::{Ev, World};
use proto::core::decision::LeaseGoal;
use proto::core::observation::{HeldRecord, Session, Task, TaskResult};
use proto::core::txns;
use proto::dcs::txn::{Compare, LeaseRef, Op, Txn, TxnOutcome};
use proto::dcs::{Entry, Key, LeaseRecord, Snapshot};
use proto::ids::{Epoch, LeaseId, MemberName, Revision};
use proto::time::MonoTime;
use std::rc::Rc;
use std::time::Duration;

const PROGRESS_LIMIT_MIN: Duration = Duration::from_secs(2);
pub const COMPATIBLE_MARGIN: Duration = Duration::from_secs(1);
const ATTEMPT_LIMIT: Duration = Duration::from_secs(1);
const RETRY_PAUSE: T = 100 * MS;
const IDLE: T = 60 * SEC;

/// A request as it travels.
#[derive(Clone, Debug)]
pub enum Req {
    Txn(Txn, LeaseId),
    Read,
    Record,
    Header,
    Grant(u64),
    Beat(LeaseId),
}

/// An answer as it travels.
#[derive(Clone, Debug)]
pub enum Rep {
    Txn(TxnOutcome),
    Read(Rc<Snapshot>, usize),
    Record(Option<Entry>),
    Header(u64, i64),
    Granted(LeaseId, T),
    /// Whether the lease is known.
    Beat(bool),
    /// A deposed leader of etcd says that it is, and has not lengthened it.
    StaleBeat,
    /// It was meant for another cluster.
    Stranger,
}

/// What an answer is for.
#[derive(Clone, Debug)]
pub enum For {
    Commit(Task, Txn, LeaseId, Option<(LeaseRecord, MonoTime)>),
    ReadAfter(Task, TaskResult, Option<(LeaseRecord, MonoTime)>),
    Withdraw(Epoch, Txn, LeaseId),
    List,
    Check,
    Grant(Duration, MonoTime),
    Move,
    Beat(MonoTime),
    LeaderIsOurs(MonoTime),
    Renew(Terms, LeaseRecord, Txn, LeaseId),
    ReadRecord(Terms),
}

impl For {
    fn of_keeper(&self) -> bool {
        matches!(
            self,
            Self::Grant(..)
                | Self::Move
                | Self::Beat(_)
                | Self::LeaderIsOurs(_)
                | Self::Renew(..)
                | Self::ReadRecord(_)
        )
    }
}

/// The keeper's state.
#[derive(Clone, Debug)]
pub struct Keeper {
    pub goal: LeaseGoal,
    pub adopted: Option<(LeaseRecord, HeldRecord)>,
    pub progress: MonoTime,
    pub session: Option<(Session, Duration)>,
    pub session_tok: u64,
    pub record_tok: u64,
    pub session_busy: bool,
    /// `/leader` has hung on this lease as far as the member loop knew.
    pub led: bool,
    /// A server that answers keepalives and commits nothing is asked no more.
    left: bool,
    pub renewal: Option<Renewal>,
    pub leader_moved: bool,
    pub renewing: bool,
    pub dead_session: LeaseId,
}

impl Keeper {
    pub fn new(now: MonoTime, ttl: Duration) -> Self {
        Self {
            goal: LeaseGoal::Session { ttl },
            adopted: None,
            progress: now,
            session: None,
            session_tok: 0,
            record_tok: 0,
            session_busy: false,
            led: false,
            left: false,
            renewal: None,
            leader_moved: false,
            renewing: false,
            dead_session: LeaseId(0),
        }
    }

    pub fn session_id(&self) -> LeaseId {
        self.session.map_or(LeaseId(0), |(s, _)| s.id)
    }

    fn ttl(&self) -> Duration {
        match &self.goal {
            LeaseGoal::Session { ttl }
            | LeaseGoal::Leader { ttl }
            | LeaseGoal::Record { ttl, .. } => *ttl,
        }
    }

    fn leads(&self) -> bool {
        matches!(self.goal, LeaseGoal::Leader { .. })
    }
}

fn attempt_limit(length: Duration) -> T {
    nanos((length / 6).min(ATTEMPT_LIMIT))
}

impl World {
    // --- the wire ---------------------------------------------------------------------------------

    pub fn request(&mut self, n: usize, req: Req, limit: T, what: For) {
        let keeper = what.of_keeper();
        let id = self.pend(n, what);
        let inc = self.inc(n);
        let world = self.agent(n).cluster_id;
        if self.net.ok(Plane::Etcd, n, ETCD) && self.nodes[n].powered {
            let wait = self.net.latency(Plane::Etcd, &mut self.rng);
            let req = Box::new(req);
            self.after(
                wait,
                Ev::Arrive {
                    n,
                    inc,
                    id,
                    req,
                    world,
                },
            );
        }
        self.after(limit, Ev::Timeout { n, inc, id, keeper });
    }

    pub fn arrive(&mut self, n: usize, inc: u32, id: u64, req: Req, world: u64) {
        if self.store.down > 0 {
            // Some requests wait in a queue until there is a leader again: unknown to their sender.
            if self.rng.u32(0..4) == 0 {
                let wait = self.rng.u64(100..1_500) * MS;
                self.after(
                    wait,
                    Ev::Arrive {
                        n,
                        inc,
                        id,
                        req: Box::new(req),
                        world,
                    },
                );
            }
            return;
        }
        let rep = self.serve(n, req, world);
        let keeper = self.nodes[n]
            .agent
            .as_ref()
            .and_then(|a| a.pending.iter().find(|(asked, _)| *asked == id))
            .is_some_and(|(_, what)| what.of_keeper());
        let lost = self.net.lossy > 0 && self.rng.u32(0..100) < self.net.lossy;
        if self.net.ok(Plane::Etcd, ETCD, n) && !lost {
            let wait = self.net.latency(Plane::Etcd, &mut self.rng);
            let rep = Box::new(rep);
            self.after(
                wait,
                Ev::Reply {
                    n,
                    inc,
                    id,
                    keeper,
                    rep,
                },
            );
        }
    }

    fn serve(&mut self, n: usize, req: Req, world: u64) -> Rep {
        let here = self.store.snap.cluster_id;
        let now = self.now;
        match req {
            Req::Header => Rep::Header(here, self.read_by(n).0.revision.0),
            Req::Read => {
                let (snapshot, log) = self.read_by(n);
                Rep::Read(Rc::new(snapshot.clone()), log)
            }
            _ if world != here => Rep::Stranger,
            Req::Txn(txn, session) => Rep::Txn(self.commit_to_etcd(Some(n), &txn, session)),
            Req::Record => Rep::Record(self.store.get("record").cloned()),
            Req::Grant(seconds) => {
                let (id, ttl) = self.store.grant(now, seconds);
                self.expect_expiry(id.0, now + ttl);
                Rep::Granted(id, ttl)
            }
            Req::Beat(_) if self.asks_a_stale_lessor(n) => Rep::StaleBeat,
            Req::Beat(id) => match self.store.keep_alive(now, id) {
                Some(_) => Rep::Beat(true),
                None => Rep::Beat(false),
            },
        }
    }

    /// Once a proof was not answered there, another server is asked.
    fn asks_a_stale_lessor(&self, n: usize) -> bool {
        let left = self.nodes[n].agent.as_ref().is_some_and(|a| a.keeper.left);
        self.nodes[n].stale_lessor > 0 && !left
    }

    /// A keepalive that counts for nothing. A leader's proof goes through the same server, which commits nothing.
    fn stale_beat(&mut self, n: usize, sent_at: MonoTime) {
        if !self.agent(n).keeper.led || self.has(Mutation::KeepaliveTrusted) {
            return self.beat(n, sent_at);
        }
        self.agent(n).keeper.left = true;
        self.session_done(n, RETRY_PAUSE);
    }

    /// What this member reads, and where a watch goes on from there: even linearizable reads were answered
    /// with the past by etcd before 3.4.42, 3.5.28 and 3.6.9 (etcd 20418).
    fn read_by(&self, n: usize) -> (&Snapshot, usize) {
        let now = &self.store.snap;
        match &self.nodes[n].past {
            Some((past, log)) if past.cluster_id == now.cluster_id => (past, *log),
            _ => (now, self.store.log.len()),
        }
    }

    /// Every write to etcd passes here, so that the checks see it and the watches bring it.
    pub fn commit_to_etcd(&mut self, by: Option<usize>, txn: &Txn, session: LeaseId) -> TxnOutcome {
        let renews = txn.then.iter().any(|op| *op.key() == Key::Record);
        let before = renews.then(|| self.store.get("record").cloned()).flatten();
        let outcome = self.store.commit(txn, session);
        if let TxnOutcome::Committed(revision) = outcome {
            self.story.mix(u64::try_from(revision.0).unwrap_or(0));
            self.committed(by, txn, before.as_ref());
            self.tell_watches();
        }
        outcome
    }

    pub fn expect_expiry(&mut self, id: i64, at: T) {
        let late = self.rng.u64(0..EXPIRY_SCAN);
        let world = self.store.snap.cluster_id;
        self.push(at + late, Ev::Expiry { id, world });
    }

    pub fn lease_expires(&mut self, id: i64, world: u64) {
        if self.store.snap.cluster_id != world {
            return;
        }
        let Some(lease) = self.store.leases.get(&id) else {
            return;
        };
        if self.store.down > 0 {
            self.expect_expiry(id, self.now + SEC);
        } else if lease.expires > self.now {
            let at = lease.expires;
            self.expect_expiry(id, at);
        } else if self.store.revoke(id) {
            self.note(Tag::Etcd, || format!("lease {id} expired"));
            self.tell_watches();
        }
    }

    // --- watches ----------------------------------------------------------------------------------

    /// Schedules what the watches that stand will bring.
    pub fn tell_watches(&mut self) {
        let upto = self.store.log.len();
        for n in 0..self.nodes.len() {
            let inc = self.inc(n);
            let Some(agent) = self.nodes[n].agent.as_ref().filter(|a| a.watched.is_live()) else {
                continue;
            };
            if agent.watch_broken || agent.cluster_id != self.store.snap.cluster_id {
                continue;
            }
            let watch = agent.watch;
            if !self.net.ok(Plane::Etcd, ETCD, n) || !self.nodes[n].powered {
                // The stream holds its messages back until the connection is given up.
                self.agent(n).watch_broken = true;
                continue;
            }
            let wait = self.net.latency(Plane::Etcd, &mut self.rng);
            let at = (self.now + wait).max(self.agent(n).watch_last + 1);
            self.agent(n).watch_last = at;
            self.push(
                at,
                Ev::Watch {
                    n,
                    inc,
                    watch,
                    upto,
                },
            );
        }
    }

    // --- session ----------------------------------------------------------------------------------

    fn session_again(&mut self, n: usize, wait: T) {
        let inc = self.inc(n);
        let keeper = &mut self.agent(n).keeper;
        keeper.session_tok += 1;
        let tok = keeper.session_tok;
        self.after(wait, Ev::SessionTick { n, inc, tok });
    }

    fn progressing(&mut self, n: usize, length: Duration) -> bool {
        let now = self.local(n);
        now.since(self.agent(n).keeper.progress) <= (length / 3).max(PROGRESS_LIMIT_MIN)
    }

    pub fn nudge_keeper(&mut self, n: usize) {
        if !self.agent(n).keeper.session_busy {
            self.session_again(n, 0);
        }
        if !self.agent(n).keeper.renewing {
            self.record_again(n, 0);
        }
    }

    pub fn set_goal(&mut self, n: usize, goal: LeaseGoal) {
        let keeper = &mut self.agent(n).keeper;
        if keeper.goal == goal {
            return;
        }
        let left = Terms::of(&keeper.goal).map(|t| t.epoch) != Terms::of(&goal).map(|t| t.epoch);
        keeper.goal = goal;
        if left && keeper.renewing {
            // An attempt for another goal is abandoned; its outcome stays unknown.
            keeper.renewing = false;
            let agent = self.agent(n);
            agent
                .pending
                .retain(|(_, what)| !matches!(what, For::Renew(..) | For::ReadRecord(_)));
        }
        self.nudge_keeper(n);
    }

    pub fn session_step(&mut self, n: usize) {
        let now = self.local(n);
        let ttl = self.agent(n).keeper.ttl();
        match self.agent(n).keeper.session {
            Some((session, asked)) if asked == ttl => {
                let leads = self.agent(n).keeper.leads();
                let keeper = &mut self.agent(n).keeper;
                let by_record = matches!(keeper.goal, LeaseGoal::Record { .. });
                keeper.led = !by_record && (keeper.led || leads);
                if leads && !self.progressing(n, session.ttl) {
                    return self.session_again(n, RETRY_PAUSE);
                }
                self.agent(n).keeper.session_busy = true;
                let limit = attempt_limit(session.ttl);
                self.request(n, Req::Beat(session.id), limit, For::Beat(now));
            }
            _ => {
                self.agent(n).keeper.session_busy = true;
                let seconds = ttl.as_secs().max(1);
                let limit = nanos(ATTEMPT_LIMIT);
                self.request(n, Req::Grant(seconds), limit, For::Grant(ttl, now));
            }
        }
    }

    fn session_done(&mut self, n: usize, pause: T) {
        self.agent(n).keeper.session_busy = false;
        self.session_again(n, pause);
    }

    fn granted(&mut self, n: usize, asked: Duration, sent_at: MonoTime, id: LeaseId, ttl: T) {
        let previous = self.agent(n).keeper.session;
        let session = Session {
            id,
            ttl: dur(ttl),
            sent_at,
        };
        self.agent(n).keeper.session = Some((session, asked));
        self.agent(n).keeper.led = false;
        if let Some((previous, _)) = previous {
            let me = self.names[n].as_str().to_owned();
            let moving = Txn::when(
                vec![Compare::OnLease(Key::Leader, previous.id)],
                vec![Op::Put {
                    key: Key::Leader,
                    value: me,
                    lease: LeaseRef::Other(id),
                }],
            );
            let limit = attempt_limit(session.ttl);
            self.request(n, Req::Txn(moving, id), limit, For::Move);
        }
        self.agent(n).o.dcs.session = Some(session);
        self.session_done(n, 0);
        self.decide(n);
    }

    fn beat(&mut self, n: usize, sent_at: MonoTime) {
        let Some((session, asked)) = self.agent(n).keeper.session else {
            return self.session_done(n, 0);
        };
        let session = Session { sent_at, ..session };
        self.agent(n).keeper.session = Some((session, asked));
        if self.agent(n).keeper.led && self.has(Mutation::KeepaliveTrusted) {
            self.leader_is_ours(n, sent_at, Some(true));
        } else if self.agent(n).keeper.led {
            let txn = Txn::when(vec![Compare::OnLease(Key::Leader, session.id)], Vec::new());
            let limit = attempt_limit(session.ttl);
            self.request(
                n,
                Req::Txn(txn, session.id),
                limit,
                For::LeaderIsOurs(sent_at),
            );
        } else {
            self.session_done(n, beat_every(session.ttl));
            self.loop_fact(n, |agent| agent.o.dcs.session = Some(session));
        }
    }

    fn session_lost(&mut self, n: usize) {
        let id = self.agent(n).keeper.session_id();
        self.agent(n).keeper.session = None;
        self.agent(n).keeper.led = false;
        self.tell(n, Tag::Etcd, || format!("session {id} is gone"));
        self.session_done(n, 0);
        self.loop_fact(n, |agent| {
            if agent.o.dcs.session.is_some_and(|s| s.id == id) {
                agent.o.dcs.session = None;
            }
        });
    }

    fn leader_is_ours(&mut self, n: usize, sent_at: MonoTime, ours: Option<bool>) {
        let Some((session, _)) = self.agent(n).keeper.session else {
            return self.session_done(n, 0);
        };
        match ours {
            Some(true) => {
                let from = match self.mutation {
                    Some(Mutation::DeadlineFromReply) => self.local(n),
                    _ => sent_at,
                };
                let deadline = from + session.ttl.saturating_sub(COMPATIBLE_MARGIN);
                if self.agent(n).keeper.leads() {
                    self.earned(n, None, deadline);
                }
                let session = Session { sent_at, ..session };
                self.session_done(n, beat_every(session.ttl));
                self.loop_fact(n, |agent| agent.o.dcs.session = Some(session));
            }
            Some(false) if self.agent(n).keeper.leads() => self.session_done(n, 500 * MS),
            Some(false) => self.session_lost(n),
            None => self.session_done(n, RETRY_PAUSE),
        }
    }

    /// Right after a renewal: the guardian first.
    fn earned(&mut self, n: usize, epoch: Option<Epoch>, deadline: MonoTime) {
        if deadline > self.local(n) {
            let epoch = epoch.unwrap_or(self.agent(n).tenure_epoch);
            self.arm(n, epoch, deadline);
        }
    }

    // --- record -----------------------------------------------------------------------------------

    fn record_again(&mut self, n: usize, wait: T) {
        let inc = self.inc(n);
        let keeper = &mut self.agent(n).keeper;
        keeper.record_tok += 1;
        let tok = keeper.record_tok;
        self.after(wait, Ev::RecordTick { n, inc, tok });
    }

    pub fn record_step(&mut self, n: usize) {
        let now = self.local(n);
        let keeper = &mut self.agent(n).keeper;
        if let Some((record, held)) = keeper.adopted.take() {
            keeper.renewal = Some(Renewal::adopt(record, held));
        }
        let terms = Terms::of(&keeper.goal);
        let terms = terms.filter(|t| {
            keeper
                .renewal
                .as_ref()
                .is_some_and(|r| r.epoch() == t.epoch)
        });
        let Some(terms) = terms else {
            return self.record_again(n, IDLE);
        };
        if !self.progressing(n, terms.length) {
            return self.record_again(n, RETRY_PAUSE);
        }
        let keeper = &mut self.agent(n).keeper;
        let session = keeper.session_id();
        let moved = std::mem::take(&mut keeper.leader_moved);
        let with_leader = session.0 != 0 && session != keeper.dead_session && !moved;
        let agent = self.agent(n);
        let seen = agent
            .o
            .dcs
            .view
            .as_ref()
            .and_then(|v| v.leader_name())
            .cloned();
        let keeper = &mut agent.keeper;
        let Some(renewal) = keeper.renewal.as_mut() else {
            return;
        };
        let early = now.until(renewal.due(terms.every));
        if !early.is_zero() {
            return self.record_again(n, nanos(early));
        }
        let seen = seen.as_ref().map(MemberName::as_str);
        let leader = with_leader.then(|| txns::leader_beside_record(seen, renewal.owner()));
        let (written, txn) = renewal.attempt(&terms, now, leader.flatten());
        keeper.renewing = true;
        let txn = self.mistaken_renewal(txn);
        let limit = attempt_limit(terms.length);
        let what = For::Renew(terms, written, txn.clone(), session);
        self.request(n, Req::Txn(txn, session), limit, what);
    }

    fn record_done(&mut self, n: usize, pause: T) {
        self.agent(n).keeper.renewing = false;
        self.record_again(n, pause);
    }

    fn renewed(
        &mut self,
        n: usize,
        terms: &Terms,
        written: LeaseRecord,
        txn: &Txn,
        session: LeaseId,
        outcome: TxnOutcome,
    ) {
        match outcome {
            TxnOutcome::Committed(revision) => {
                let Some(renewal) = self.agent(n).keeper.renewal.as_mut() else {
                    return self.record_done(n, 0);
                };
                let held = renewal.committed(written, revision);
                let held = self.heard(n, held, terms);
                self.record_earned(n, terms.epoch, held);
                self.fold_own(n, txn, session, revision);
            }
            TxnOutcome::Refused => {
                let limit = attempt_limit(terms.length);
                self.request(n, Req::Record, limit, For::ReadRecord(terms.clone()));
            }
            TxnOutcome::LeaseGone => {
                self.agent(n).keeper.dead_session = session;
                self.record_done(n, 0);
                self.nudge_keeper(n);
            }
            TxnOutcome::Unknown(_) => self.record_done(n, RETRY_PAUSE),
        }
    }

    /// A renewal has succeeded: from when it counts, and the next one.
    fn heard(&mut self, n: usize, held: HeldRecord, terms: &Terms) -> HeldRecord {
        if !self.has(Mutation::DeadlineFromReply) {
            self.record_done(n, 0);
            return held;
        }
        self.record_done(n, nanos(terms.every));
        HeldRecord {
            sent_at: self.local(n),
            ..held
        }
    }

    fn record_earned(&mut self, n: usize, epoch: Epoch, held: HeldRecord) {
        self.earned(n, Some(epoch), held.sent_at + held.length);
        self.loop_fact(n, |agent| {
            let dcs = &mut agent.o.dcs;
            if dcs.held.is_none_or(|before| before.epoch <= held.epoch) {
                dcs.held = Some(held);
            }
        });
    }

    fn found_record(&mut self, n: usize, terms: &Terms, found: Option<&Entry>) {
        let Some(renewal) = self.agent(n).keeper.renewal.as_mut() else {
            return self.record_done(n, 0);
        };
        match renewal.resolve(found) {
            Resolved::Renewed(held) => {
                self.cover("renewal-found-in-record");
                let held = self.heard(n, held, terms);
                self.record_earned(n, terms.epoch, held);
            }
            Resolved::Again => {
                self.agent(n).keeper.leader_moved = true;
                self.record_done(n, RETRY_PAUSE);
            }
            Resolved::Lost(why) => {
                self.agent(n).keeper.renewal = None;
                self.tell(n, Tag::Etcd, || format!("record lost: {why}"));
                self.record_done(n, 0);
                let epoch = terms.epoch;
                self.loop_fact(n, |agent| {
                    if agent.o.dcs.held.is_some_and(|held| held.epoch == epoch) {
                        agent.o.dcs.held = None;
                    }
                });
            }
        }
    }

    // --- answers ----------------------------------------------------------------------------------

    pub fn answered(&mut self, n: usize, what: For, rep: Option<Rep>) {
        let rep = rep.filter(|r| !matches!(r, Rep::Stranger));
        match (what, rep) {
            (For::Commit(task, txn, session, record), rep) => {
                let outcome = match rep {
                    Some(Rep::Txn(outcome)) => outcome,
                    _ => TxnOutcome::Unknown("no answer".into()),
                };
                self.commit_answered(n, task, &txn, session, record, outcome);
            }
            (For::ReadAfter(task, result, record), _) => self.task_done(n, task, result, record),
            (For::Withdraw(epoch, txn, session), Some(Rep::Txn(TxnOutcome::Committed(rev)))) => {
                self.fold_own(n, &txn, session, rev);
                self.withdraw_on_disk(n, epoch);
            }
            (For::Withdraw(..), _) => {
                let unknown = TaskResult::Txn(TxnOutcome::Unknown("no answer".into()));
                self.task_done(n, Task::Fence, unknown, None);
            }
            (For::List, Some(Rep::Read(snapshot, log))) => self.listed(n, &snapshot, log),
            (For::List, _) => self.list_failed(n),
            (For::Check, Some(Rep::Header(world, revision))) => {
                self.checked(n, world, Revision(revision));
            }
            (For::Check, _) => self.check_unanswered(n),
            (For::Grant(asked, sent), Some(Rep::Granted(id, ttl))) => {
                self.granted(n, asked, sent, id, ttl);
            }
            (For::Grant(..), _) => self.session_done(n, RETRY_PAUSE),
            (For::Move, _) => {}
            (For::Beat(sent), Some(Rep::Beat(true))) => self.beat(n, sent),
            (For::Beat(sent), Some(Rep::StaleBeat)) => self.stale_beat(n, sent),
            (For::Beat(_), Some(Rep::Beat(false))) => self.session_lost(n),
            (For::Beat(_), _) => self.session_done(n, RETRY_PAUSE),
            (For::LeaderIsOurs(sent), rep) => {
                let ours = match rep {
                    Some(Rep::Txn(outcome)) => Some(matches!(outcome, TxnOutcome::Committed(_))),
                    _ => None,
                };
                self.leader_is_ours(n, sent, ours);
            }
            (For::Renew(terms, written, txn, session), Some(Rep::Txn(outcome))) => {
                self.renewed(n, &terms, written, &txn, session, outcome);
            }
            (For::Renew(..), _) => self.record_done(n, RETRY_PAUSE),
            (For::ReadRecord(terms), Some(Rep::Record(found))) => {
                self.found_record(n, &terms, found.as_ref());
            }
            (For::ReadRecord(_), _) => self.record_done(n, RETRY_PAUSE),
        }
    }
}

fn beat_every(ttl: Duration) -> T {
    nanos((ttl / 10).clamp(Duration::from_millis(500), Duration::from_secs(3)))
}
