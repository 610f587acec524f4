//! The queue of events and what stands behind it.

use super::checks::Checks;
use super::clock::{Clock, T, nanos};
use super::etcd::Store;
use super::guardian::Guard;
use super::jobs::Stage;
use super::keeper::{For, Rep, Req};
use super::mutation::Mutation;
use super::network::{MAX, Net};
use super::postgres::{Branch, Commit, Conn, Disk, Pg, Step};
use super::shell::Agent;
use super::story::{Story, Tag};
use proto::config::ClusterConfig;
use proto::core::observation::{Lineage, PeerStatus, Task, TaskResult};
use proto::dcs::Snapshot;
use proto::ids::{Epoch, MemberName};
use proto::time::MonoTime;
use serde_json::{Map, Value};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::rc::Rc;
use std::time::Duration;

#[derive(Clone, Debug)]
pub enum Ev {
    /// The loop's timer; only the newest counts.
    Wake {
        n: usize,
        inc: u32,
        tok: u64,
    },
    /// Something that the loop reads at its next look has changed.
    Nudge {
        n: usize,
        inc: u32,
    },
    Probe {
        n: usize,
        inc: u32,
        tok: u64,
    },
    Arrive {
        n: usize,
        inc: u32,
        id: u64,
        req: Box<Req>,
        world: u64,
    },
    Reply {
        n: usize,
        inc: u32,
        id: u64,
        keeper: bool,
        rep: Box<Rep>,
    },
    Timeout {
        n: usize,
        inc: u32,
        id: u64,
        keeper: bool,
    },
    Watch {
        n: usize,
        inc: u32,
        watch: u32,
        upto: usize,
    },
    Check {
        n: usize,
        inc: u32,
    },
    SessionTick {
        n: usize,
        inc: u32,
        tok: u64,
    },
    RecordTick {
        n: usize,
        inc: u32,
        tok: u64,
    },
    PeerAsk {
        n: usize,
        inc: u32,
        ask: u64,
        to: usize,
    },
    PeerReply {
        n: usize,
        inc: u32,
        ask: u64,
        to: usize,
        status: Box<PeerStatus>,
    },
    PeerLimit {
        n: usize,
        inc: u32,
        ask: u64,
    },
    FailsafeAsk {
        n: usize,
        inc: u32,
        ask: u64,
        to: usize,
    },
    FailsafeReply {
        n: usize,
        inc: u32,
        ask: u64,
        accepted: bool,
    },
    FailsafeLimit {
        n: usize,
        inc: u32,
        ask: u64,
    },
    TaskEnd {
        n: usize,
        inc: u32,
        task: Task,
        result: Box<TaskResult>,
    },
    Lineage {
        n: usize,
        inc: u32,
        lineage: Option<Box<Lineage>>,
    },
    Job {
        n: usize,
        inc: u32,
        id: u64,
        stage: Stage,
    },
    Configured {
        n: usize,
        inc: u32,
    },
    Cut {
        n: usize,
        inc: u32,
        epoch: u64,
    },
    Pg {
        n: usize,
        life: u32,
        step: Step,
    },
    Wal {
        id: u32,
        branch: usize,
        lsn: u64,
    },
    Ack {
        id: u32,
        lsn: u64,
    },
    NamesSeen {
        id: u32,
        names_gen: u32,
    },
    Defined {
        n: usize,
        life: u32,
        names_gen: u32,
    },
    ConnTimeout {
        id: u32,
        since: T,
        standby: bool,
    },
    Deadline {
        n: usize,
        guard: u32,
    },
    Fenced {
        n: usize,
        guard: u32,
    },
    GuardAgain {
        n: usize,
    },
    AgentStart {
        n: usize,
    },
    Expiry {
        id: i64,
        world: u64,
    },
    Client,
    Fault {
        index: usize,
        begins: bool,
    },
}

/// Who must be running for an event to be taken.
enum Class {
    Loop(usize),
    Agent(usize),
    Pg(usize),
    Nobody,
}

/// What is to come, in order of time; at the same time in the order in which it was said. The heap moves
/// only places in a list, since events are large.
#[derive(Clone, Debug, Default)]
struct Queue {
    heap: BinaryHeap<Reverse<(T, u64, usize)>>,
    events: Vec<Option<Ev>>,
    free: Vec<usize>,
    said: u64,
    /// The timer of each loop: a new one takes the place of the last, which is most of them.
    wakes: [Option<Timer>; MAX],
}

/// When, after how much else was said, for which life and decision.
#[derive(Clone, Copy, Debug)]
struct Timer {
    at: (T, u64),
    inc: u32,
    tok: u64,
}

impl Queue {
    fn push(&mut self, t: T, ev: Ev) {
        self.said += 1;
        let place = self.free.pop().unwrap_or_else(|| {
            self.events.push(None);
            self.events.len() - 1
        });
        self.events[place] = Some(ev);
        self.heap.push(Reverse((t, self.said, place)));
    }

    fn set_timer(&mut self, n: usize, t: T, inc: u32, tok: u64) {
        self.said += 1;
        let at = (t, self.said);
        self.wakes[n] = Some(Timer { at, inc, tok });
    }

    /// The next event up to this time.
    fn pop_until(&mut self, end: T) -> Option<(T, Ev)> {
        let timers = self.wakes.iter().enumerate();
        let first = timers.filter_map(|(n, timer)| timer.map(|timer| (timer.at, n)));
        let queued = self.heap.peek().map(|Reverse((t, said, _))| (*t, *said));
        if let Some((at, n)) = first.min()
            && at.0 <= end
            && queued.is_none_or(|queued| at < queued)
        {
            let Timer { inc, tok, .. } = self.wakes[n].take()?;
            return Some((at.0, Ev::Wake { n, inc, tok }));
        }
        let Reverse((t, _, place)) = *self.heap.peek().filter(|next| next.0.0 <= end)?;
        self.heap.pop();
        self.free.push(place);
        Some((t, self.events[place].take()?))
    }
}

#[derive(Clone, Debug)]
pub struct Node {
    pub clock: Clock,
    pub powered: bool,
    /// The whole machine stands still; its clock does not.
    pub frozen: u32,
    /// SIGSTOP of the agent.
    pub agent_frozen: u32,
    /// The member loop hangs, the keeper's thread does not.
    pub stalled: u32,
    /// Which life of the agent this is.
    pub inc: u32,
    pub agent: Option<Agent>,
    pub guard: Option<Guard>,
    /// The last deadline that a guardian took was of this epoch.
    pub armed_last: Option<Epoch>,
    pub pg: Pg,
    pub disk: Disk,
    deferred: Vec<Ev>,
    pub slow_until: T,
    pub slow_reload_until: T,
    pub replay_lag: u32,
    /// Jobs that will fail.
    pub fail_jobs: u32,
    /// Faults that keep the agent down.
    pub kept_down: u32,
    /// Its keepalives are answered by a leader of etcd that is none any more.
    pub stale_lessor: u32,
    /// What its reads of etcd are answered with, if not with what stands there.
    pub past: Option<(Rc<Snapshot>, usize)>,
    /// The data directory is not mounted, or not ours to read.
    pub hidden: u32,
    pub watchdog_failed: u32,
    /// Promotions that `pre_promote` will refuse.
    pub refuse_promotions: u32,
}

#[derive(Clone, Debug)]
pub struct World {
    pub now: T,
    pub rng: fastrand::Rng,
    queue: Queue,
    pub names: Vec<MemberName>,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub store: Store,
    pub reader: super::reader::Reader,
    pub branches: Vec<Branch>,
    pub commits: Vec<Commit>,
    pub conns: BTreeMap<u32, Conn>,
    pub conn_ids: u32,
    pub guards: u32,
    pub watches: u32,
    pub requests: u64,
    pub systems: u64,
    /// The dynamic configuration that the cluster was made with, and what it means.
    pub doc: Map<String, Value>,
    pub config: ClusterConfig,
    pub mutation: Option<Mutation>,
    pub story: Story,
    pub checks: Checks,
    /// What went wrong first.
    pub failed: Option<String>,
    pub promotions: u32,
    pub events: u64,
    pub faults: Rc<Vec<super::faults::Fault>>,
    /// Whom a fault that has begun has hit, so that its end undoes just that.
    pub hits: BTreeMap<usize, usize>,
    /// Switchovers and failovers that were asked for.
    pub asked: u32,
    /// Clients leave off.
    pub quiet: bool,
    pub use_rewind: bool,
    pub wipe: bool,
}

impl World {
    pub fn new(seed: u64, n: usize, doc: Map<String, Value>) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let nodes = (0..n)
            .map(|_| Node {
                clock: Clock {
                    offset: rng.u64(1..1_000) * super::clock::SEC,
                    ppm: rng.i64(-500..=500),
                },
                powered: true,
                frozen: 0,
                agent_frozen: 0,
                stalled: 0,
                inc: 0,
                agent: None,
                guard: None,
                armed_last: None,
                pg: Pg::new(),
                disk: Disk::empty(),
                deferred: Vec::new(),
                slow_until: 0,
                slow_reload_until: 0,
                replay_lag: 0,
                fail_jobs: 0,
                kept_down: 0,
                stale_lessor: 0,
                past: None,
                hidden: 0,
                watchdog_failed: 0,
                refuse_promotions: 0,
            })
            .collect();
        let config = ClusterConfig::parse(&doc);
        let mut world = Self {
            now: 0,
            rng,
            queue: Queue::default(),
            names: (0..MAX).map(|i| MemberName::new(format!("n{i}"))).collect(),
            nodes,
            net: Net::default(),
            store: Store::new(),
            reader: super::reader::Reader::default(),
            branches: Vec::new(),
            commits: Vec::new(),
            conns: BTreeMap::new(),
            conn_ids: 0,
            guards: 0,
            watches: 0,
            requests: 0,
            systems: 7_000_000_000_000_000_000,
            doc,
            config,
            mutation: None,
            story: Story::default(),
            checks: Checks::default(),
            failed: None,
            promotions: 0,
            events: 0,
            faults: Rc::default(),
            hits: BTreeMap::new(),
            asked: 0,
            quiet: false,
            use_rewind: true,
            wipe: true,
        };
        for i in 0..n {
            let wait = world.rng.u64(0..200) * super::clock::MS;
            world.after(wait, Ev::AgentStart { n: i });
        }
        world.after(super::clock::SEC, Ev::Client);
        world
    }

    /// Whether members may rewind, and throw diverged data away.
    pub fn may_repair(&mut self, rewind: bool, wipe: bool) {
        (self.use_rewind, self.wipe) = (rewind, wipe);
        for agent in self.nodes.iter_mut().filter_map(|n| n.agent.as_mut()) {
            agent.s.use_pg_rewind = rewind;
            agent.s.wipe_on_rewind_failure = wipe;
            agent.s.wipe_on_divergence = wipe;
        }
    }

    pub fn push(&mut self, t: T, ev: Ev) {
        self.queue.push(t.max(self.now), ev);
    }

    /// When this loop looks again, whatever happens; the last time that was set counts.
    pub fn wake_at(&mut self, n: usize, t: T, tok: u64) {
        let inc = self.inc(n);
        self.queue.set_timer(n, t.max(self.now), inc, tok);
    }

    pub fn after(&mut self, wait: T, ev: Ev) {
        self.push(self.now + wait, ev);
    }

    pub fn local(&self, n: usize) -> MonoTime {
        self.nodes[n].clock.local(self.now)
    }

    pub fn inc(&self, n: usize) -> u32 {
        self.nodes[n].inc
    }

    pub fn tell(&mut self, n: usize, tag: Tag, what: impl FnOnce() -> String) {
        let Self {
            story, now, names, ..
        } = self;
        story.tell(*now, names[n].as_str(), tag, what);
    }

    pub fn note(&mut self, tag: Tag, what: impl FnOnce() -> String) {
        self.story.tell(self.now, "-", tag, what);
    }

    pub fn cover(&mut self, what: &'static str) {
        self.story.reach(what);
    }

    pub fn fail(&mut self, what: impl Into<String>) {
        let what = what.into();
        self.note(Tag::Check, || format!("FAILED {what}"));
        self.failed.get_or_insert(what);
    }

    /// Runs until `end` or the first failure.
    pub fn run_until(&mut self, end: T) {
        while self.failed.is_none()
            && let Some((t, ev)) = self.queue.pop_until(end)
        {
            self.now = t;
            self.events += 1;
            self.dispatch(ev);
        }
        self.now = self.now.max(end);
    }

    pub fn run_for(&mut self, time: T) {
        self.run_until(self.now + time);
    }

    pub fn wait(&mut self, time: Duration) {
        self.run_for(nanos(time));
    }

    fn class(&self, ev: &Ev) -> Class {
        match ev {
            Ev::Wake { n, .. }
            | Ev::Nudge { n, .. }
            | Ev::Probe { n, .. }
            | Ev::Watch { n, .. }
            | Ev::Check { n, .. }
            | Ev::PeerReply { n, .. }
            | Ev::PeerLimit { n, .. }
            | Ev::FailsafeReply { n, .. }
            | Ev::FailsafeLimit { n, .. }
            | Ev::TaskEnd { n, .. }
            | Ev::Lineage { n, .. } => Class::Loop(*n),
            Ev::Reply { n, keeper, .. } | Ev::Timeout { n, keeper, .. } => {
                if *keeper {
                    Class::Agent(*n)
                } else {
                    Class::Loop(*n)
                }
            }
            Ev::SessionTick { n, .. }
            | Ev::RecordTick { n, .. }
            | Ev::Job { n, .. }
            | Ev::Configured { n, .. }
            | Ev::GuardAgain { n }
            | Ev::Cut { n, .. } => Class::Agent(*n),
            Ev::Pg { n, .. } | Ev::Defined { n, .. } => Class::Pg(*n),
            Ev::Wal { id, .. } => self
                .conns
                .get(id)
                .map_or(Class::Nobody, |c| Class::Pg(c.standby)),
            Ev::Ack { id, .. } | Ev::NamesSeen { id, .. } => self
                .conns
                .get(id)
                .map_or(Class::Nobody, |c| Class::Pg(c.primary)),
            Ev::Arrive { .. }
            | Ev::PeerAsk { .. }
            | Ev::FailsafeAsk { .. }
            | Ev::ConnTimeout { .. }
            | Ev::Deadline { .. }
            | Ev::Fenced { .. }
            | Ev::AgentStart { .. }
            | Ev::Expiry { .. }
            | Ev::Client
            | Ev::Fault { .. } => Class::Nobody,
        }
    }

    fn dispatch(&mut self, ev: Ev) {
        let stuck = match self.class(&ev) {
            Class::Loop(n) => {
                let node = &self.nodes[n];
                (node.frozen + node.agent_frozen + node.stalled > 0).then_some(n)
            }
            Class::Agent(n) => {
                let node = &self.nodes[n];
                (node.frozen + node.agent_frozen > 0).then_some(n)
            }
            Class::Pg(n) => (self.nodes[n].frozen > 0).then_some(n),
            Class::Nobody => None,
        };
        if let Some(n) = stuck {
            self.nodes[n].deferred.push(ev);
            return;
        }
        self.take(ev);
    }

    /// What was held up while something stood still, in the order in which it came.
    pub fn thaw(&mut self, n: usize) {
        for ev in std::mem::take(&mut self.nodes[n].deferred) {
            self.after(0, ev);
        }
    }

    fn take(&mut self, ev: Ev) {
        match ev {
            Ev::Wake { n, inc, tok } => {
                if self.lives(n, inc) && self.agent(n).wake_tok == tok {
                    self.decide(n);
                }
            }
            Ev::Nudge { n, inc } => {
                if self.lives(n, inc) {
                    self.decide(n);
                }
            }
            Ev::Probe { n, inc, tok } => {
                if self.lives(n, inc) && self.agent(n).probe_tok == tok {
                    self.probe(n);
                }
            }
            Ev::Arrive {
                n,
                inc,
                id,
                req,
                world,
            } => self.arrive(n, inc, id, *req, world),
            Ev::Reply {
                n, inc, id, rep, ..
            } => {
                if self.lives(n, inc)
                    && let Some(what) = self.agent(n).answer_of(id)
                {
                    self.answered(n, what, Some(*rep));
                }
            }
            Ev::Timeout { n, inc, id, .. } => {
                if self.lives(n, inc)
                    && let Some(what) = self.agent(n).answer_of(id)
                {
                    self.answered(n, what, None);
                }
            }
            Ev::Watch {
                n,
                inc,
                watch,
                upto,
            } => {
                if self.lives(n, inc) {
                    self.watch_brings(n, watch, upto);
                }
            }
            Ev::Check { n, inc } => {
                if self.lives(n, inc) {
                    self.check_watch(n);
                }
            }
            Ev::SessionTick { n, inc, tok } => {
                if self.lives(n, inc) && self.agent(n).keeper.session_tok == tok {
                    self.session_step(n);
                }
            }
            Ev::RecordTick { n, inc, tok } => {
                if self.lives(n, inc) && self.agent(n).keeper.record_tok == tok {
                    self.record_step(n);
                }
            }
            Ev::PeerAsk { n, inc, ask, to } => self.peer_asked(n, inc, ask, to),
            Ev::PeerReply {
                n,
                inc,
                ask,
                to,
                status,
            } => {
                if self.lives(n, inc) {
                    self.peer_answered(n, ask, to, *status);
                }
            }
            Ev::PeerLimit { n, inc, ask } => {
                if self.lives(n, inc) {
                    self.peers_done(n, ask);
                }
            }
            Ev::FailsafeAsk { n, inc, ask, to } => self.failsafe_asked(n, inc, ask, to),
            Ev::FailsafeReply {
                n,
                inc,
                ask,
                accepted,
            } => {
                if self.lives(n, inc) {
                    self.failsafe_answered(n, ask, accepted);
                }
            }
            Ev::FailsafeLimit { n, inc, ask } => {
                if self.lives(n, inc) {
                    self.failsafe_answered(n, ask, false);
                }
            }
            Ev::TaskEnd {
                n,
                inc,
                task,
                result,
            } => {
                if self.lives(n, inc) {
                    self.task_done(n, task, *result, None);
                }
            }
            Ev::Lineage { n, inc, lineage } => {
                if self.lives(n, inc) {
                    self.lineage_came(n, lineage.map(|l| *l));
                }
            }
            Ev::Job { n, inc, id, stage } => {
                if self.lives(n, inc) && self.agent(n).job.as_ref().is_some_and(|j| j.id == id) {
                    self.job_step(n, stage);
                }
            }
            Ev::Configured { n, inc } => {
                if self.lives(n, inc) {
                    self.configured(n);
                }
            }
            Ev::Cut { n, inc, epoch } => {
                if self.lives(n, inc) {
                    self.cut_done(n, epoch);
                }
            }
            Ev::Pg { n, life, step } => self.pg_step(n, life, step),
            Ev::Wal { id, branch, lsn } => self.wal_arrived(id, branch, lsn),
            Ev::Ack { id, lsn } => self.acked(id, lsn),
            Ev::NamesSeen { id, names_gen } => self.names_seen(id, names_gen),
            Ev::Defined { n, life, names_gen } => self.names_defined(n, life, names_gen),
            Ev::ConnTimeout { id, since, standby } => self.conn_timeout(id, since, standby),
            Ev::Deadline { n, guard } => self.deadline(n, guard),
            Ev::Fenced { n, guard } => self.fenced(n, guard),
            Ev::GuardAgain { n } => {
                let node = &self.nodes[n];
                if node.powered && node.guard.as_ref().is_none_or(|guard| !guard.alive) {
                    self.spawn_guard(n);
                    self.probe_now(n);
                }
            }
            Ev::AgentStart { n } => self.start_agent(n),
            Ev::Expiry { id, world } => self.lease_expires(id, world),
            Ev::Client => self.clients(),
            Ev::Fault { index, begins } => self.fault(index, begins),
        }
    }

    /// Whether an event of this life of the agent still has somebody to go to.
    pub fn lives(&self, n: usize, inc: u32) -> bool {
        self.nodes[n].inc == inc && self.nodes[n].agent.is_some()
    }

    pub fn agent(&mut self, n: usize) -> &mut Agent {
        self.nodes[n].agent.as_mut().expect("checked by the caller")
    }

    /// Where an answer goes.
    pub fn pend(&mut self, n: usize, what: For) -> u64 {
        self.requests += 1;
        let id = self.requests;
        self.agent(n).pending.push((id, what));
        id
    }
}
