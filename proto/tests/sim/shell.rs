//! The agent around the real `decide`: what `agent/src/member/` does with events, orders and answers.

mod orders;
mod peers;
mod view;

use super::clock::{MS, SEC, T, nanos};
use super::jobs::JobRun;
use super::keeper::{For, Keeper, Req};
use super::mistakes::{one_vote_less, pretend_as_much};
use super::mutation::Mutation;
use super::story::Tag;
use super::world::{Ev, World};
use proto::config::{ClusterConfig, Settings, Tags};
use proto::core::decision::{Standing, WantedConf};
use proto::core::job::Upstream;
use proto::core::observation::{AppliedConf, HeldRecord, Led, PeerAnswer, Sql, Task, TaskResult};
use proto::core::{Memory, Observation, txns};
use proto::dcs::{FencePromise, LeaseRecord, PgRole, Watched};
use proto::ids::{Epoch, MemberName, Revision};
use proto::time::{MonoTime, WallTime};
use proto::wal::{Lsn, Timeline};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

const COMMIT_LIMIT: T = 2 * SEC;
const CONFIRM_LIMIT: Duration = Duration::from_secs(3);
const CHECK_EVERY: T = 700 * MS;
const CHECK_AGAIN: T = 100 * MS;
const BACKWARD_READS_MAX: u32 = 3;
const STARVED_AFTER: Duration = Duration::from_secs(3);
/// More decisions in one second than this is a loop that does not come to rest.
const DECISIONS_MAX: u32 = 900;

/// A question to several peers.
#[derive(Clone, Debug)]
pub struct Asking {
    id: u64,
    at: MonoTime,
    left: BTreeSet<usize>,
    answers: BTreeMap<MemberName, PeerAnswer>,
}

#[derive(Clone, Debug)]
pub struct Agent {
    pub o: Observation,
    pub m: Memory,
    pub s: Settings,
    pub standing: Option<Standing>,
    pub wake_tok: u64,
    pub probe_tok: u64,
    probe_every: Duration,
    probe_at: T,
    /// What has been asked of etcd, with its number.
    pub pending: Vec<(u64, For)>,
    // The watch.
    pub watched: Watched,
    pub watch: u32,
    pub watch_broken: bool,
    pub watch_last: T,
    cursor: usize,
    /// Reads in a row that were older than what the watch has brought.
    backward: u32,
    pub cluster_id: u64,
    alive_at: Option<MonoTime>,
    behind_since: Option<MonoTime>,
    pub keeper: Keeper,
    claimed: Option<(LeaseRecord, MonoTime)>,
    inherited: Option<HeldRecord>,
    pub tenure_epoch: Epoch,
    // The PostgreSQL driver.
    pub job: Option<JobRun>,
    pub next_job: u64,
    pub applied: AppliedConf,
    pub wanted: Option<WantedConf>,
    peers: Option<Asking>,
    failsafe: Option<Asking>,
    config_seen: Option<(u64, Revision)>,
    rule: String,
    decisions: (T, u32),
}

impl Agent {
    /// What this answer is for, once.
    pub fn answer_of(&mut self, id: u64) -> Option<For> {
        let at = self.pending.iter().position(|(asked, _)| *asked == id)?;
        Some(self.pending.swap_remove(at).1)
    }
}

impl World {
    pub fn start_agent(&mut self, n: usize) {
        let node = &self.nodes[n];
        if node.agent.is_some() || !node.powered || node.kept_down > 0 {
            return;
        }
        if self.nodes[n].guard.as_ref().is_none_or(|g| !g.alive) {
            self.spawn_guard(n);
        }
        let forgets = self.has(Mutation::PromiseForgotten);
        let node = &mut self.nodes[n];
        node.inc += 1;
        let now = node.clock.local(self.now);
        let inherited = node
            .guard
            .as_ref()
            .and_then(super::guardian::Guard::inherited);
        if forgets {
            node.disk.promised = None;
        }
        let s = settings(&self.names[n], &self.doc, self.use_rewind, self.wipe);
        let ttl = s.cluster.timing.ttl();
        let agent = Agent {
            o: Observation::default(),
            m: Memory::default(),
            s,
            standing: None,
            wake_tok: 0,
            probe_tok: 0,
            probe_every: Duration::from_secs(1),
            probe_at: 0,
            pending: Vec::new(),
            watched: Watched::default(),
            watch: 0,
            watch_broken: false,
            watch_last: 0,
            cursor: 0,
            backward: 0,
            cluster_id: self.store.snap.cluster_id,
            alive_at: None,
            behind_since: None,
            keeper: Keeper::new(now, ttl),
            claimed: None,
            inherited,
            tenure_epoch: Epoch(0),
            job: None,
            next_job: 0,
            applied: AppliedConf::default(),
            wanted: None,
            peers: None,
            failsafe: None,
            config_seen: None,
            rule: String::new(),
            decisions: (0, 0),
        };
        self.nodes[n].agent = Some(agent);
        self.tell(n, Tag::Order, || "agent starts".into());
        self.agent_began(n);
        self.list(n);
        self.nudge_keeper(n);
        self.probe_now(n);
    }

    /// The process of the agent ends; guardian and PostgreSQL do not.
    pub fn end_agent(&mut self, n: usize) {
        if self.nodes[n].agent.take().is_some() {
            self.nodes[n].inc += 1;
            if self.config.pause && self.nodes[n].pg.writable() {
                self.checks.left_alone.insert(n);
            }
            self.abandon_files(n);
        }
    }

    // --- deciding ---------------------------------------------------------------------------------

    fn look(&mut self, n: usize) {
        let now = self.local(n);
        let dice = self.rng.u64(..);
        let trusts = self.has(Mutation::StaleViewTrusted);
        let anybody = self.has(Mutation::LsnOrderOnly);
        let hand = self.has(Mutation::HandPromotionTrusted);
        let uncompared = self.has(Mutation::ConnectedUncompared);
        let guard = self.nodes[n].guard.as_ref();
        let alive = guard.is_some_and(|g| g.alive);
        let armed = guard.and_then(super::guardian::Guard::shown);
        let epoch = guard.map_or(Epoch(0), |g| g.clock.highest());
        let session = guard
            .map(super::guardian::Guard::session)
            .unwrap_or_default();
        let watchdog_failed = self.nodes[n].watchdog_failed > 0;
        let wall = WallTime(1_767_225_600_000 + i64::try_from(self.now / MS).unwrap_or(0));
        let agent = self.agent(n);
        let o = &mut agent.o;
        o.now = now;
        o.wall = wall;
        o.dice = dice;
        if anybody && let Some(entry) = o.dcs.view.as_ref().and_then(|v| v.record.as_ref()) {
            o.postgres.wal_epoch = entry.record.epoch;
        }
        if hand && o.postgres.led.is_none() {
            let epoch = o.postgres.wal_epoch;
            o.postgres.led = Some(Led {
                epoch,
                native: false,
            });
        }
        if uncompared {
            pretend_as_much(o, &agent.s.me);
        }
        o.dcs.confirmed = o.dcs.view.is_some()
            && (trusts
                || agent
                    .alive_at
                    .is_some_and(|at| now.since(at) < CONFIRM_LIMIT));
        o.dcs.confirmed_at = agent.alive_at.unwrap_or(o.dcs.confirmed_at);
        o.watchdog_failed = watchdog_failed;
        o.guardian.alive = alive;
        o.guardian.fit = true;
        o.guardian.armed = armed;
        o.guardian.session = session;
        o.guardian.epoch = epoch;
    }

    pub fn decide(&mut self, n: usize) {
        if self.nodes[n].agent.is_none() || self.nodes[n].stalled > 0 || self.failed.is_some() {
            return;
        }
        self.look(n);
        let inc = self.inc(n);
        let short = self.has(Mutation::QuorumOneShort);
        let agent = self.agent(n);
        let seen = short.then(|| one_vote_less(&agent.o));
        let o = seen.as_ref().unwrap_or(&agent.o);
        let (decision, memory) = proto::core::decide(o, &agent.m, &agent.s);
        agent.m = memory;
        agent.standing = Some(decision.standing);
        agent.keeper.progress = agent.o.now;
        agent.probe_every = decision.probe_every;
        agent.wake_tok += 1;
        let tok = agent.wake_tok;
        let rule = decision.reason.rule();
        self.story.reach(rule);
        self.story
            .mix(rule.len() as u64 ^ u64::from(rule.as_bytes()[0]) << 8 ^ self.now);
        if self.story.told {
            let sentence = decision.reason.to_string();
            if self.agent(n).rule != sentence {
                self.tell(n, Tag::Rule, || format!("[{rule}] {sentence}"));
                self.agent(n).rule = sentence;
            }
        }
        self.at_rest(n, rule);
        let wake = self.nodes[n].clock.truth(decision.wake_at);
        self.wake_at(n, wake, tok);
        for action in decision.actions {
            if !self.lives(n, inc) {
                return;
            }
            self.order(n, action);
        }
        self.probe_sooner(n);
    }

    fn at_rest(&mut self, n: usize, rule: &str) {
        let second = self.now / SEC;
        let seen = &mut self.agent(n).decisions;
        if seen.0 == second {
            seen.1 += 1;
        } else {
            *seen = (second, 1);
        }
        if seen.1 > DECISIONS_MAX {
            self.fail(format!("busy: n{n} does not come to rest in rule {rule}"));
        }
    }

    /// A fact from the keeper's thread: the loop takes note when it runs.
    pub fn loop_fact(&mut self, n: usize, fact: impl FnOnce(&mut Agent)) {
        fact(self.agent(n));
        self.decide(n);
    }

    // --- probes -----------------------------------------------------------------------------------

    pub fn probe_now(&mut self, n: usize) {
        self.probe_in(n, MS);
    }

    fn probe_in(&mut self, n: usize, wait: T) {
        let inc = self.inc(n);
        let at = self.now + wait;
        let Some(agent) = self.nodes[n].agent.as_mut() else {
            return;
        };
        agent.probe_tok += 1;
        agent.probe_at = at;
        let tok = agent.probe_tok;
        self.push(at, Ev::Probe { n, inc, tok });
    }

    fn probe_interval(&mut self, n: usize) -> T {
        let agent = self.agent(n);
        let every = nanos(agent.probe_every);
        if agent.job.is_some() {
            every.min(50 * MS)
        } else {
            every
        }
    }

    fn probe_sooner(&mut self, n: usize) {
        if self.nodes[n].agent.is_none() {
            return;
        }
        let wait = self.probe_interval(n);
        if self.agent(n).probe_at > self.now + wait {
            self.probe_in(n, wait);
        }
    }

    /// The driver reports the end of its work behind a fresh sample.
    fn fresh_sample(&mut self, n: usize) {
        let local = self.look_at_postgres(n);
        self.agent(n).o.postgres = local;
    }

    pub fn probe(&mut self, n: usize) {
        let local = self.look_at_postgres(n);
        self.agent(n).o.postgres = local;
        let wait = self.probe_interval(n);
        self.probe_in(n, wait);
        self.decide(n);
    }

    // --- configuration ----------------------------------------------------------------------------

    pub fn configured(&mut self, n: usize) {
        let standby = self.nodes[n].disk.signal;
        let upstream = self.agent(n).applied.upstream.clone();
        let mut conf = self.conf_state(n, standby, &upstream);
        if let Some(order) = self.agent(n).wanted.clone() {
            let with = WantedConf::at_start(Some(&order), &self.agent(n).s.cluster, standby);
            let order = order.carried_out(with);
            conf.as_primary = order.as_primary;
            conf.sync_names = order.sync_names.unwrap_or_default();
            conf.generation = order.generation;
        }
        let mut result = TaskResult::Done;
        match self.nodes[n].pg.run {
            super::postgres::Run::Running => {
                self.load_names(n, &conf.sync_names);
                self.load_upstream(n, &conf.upstream);
                self.agent(n).applied = conf;
            }
            super::postgres::Run::Gone => self.agent(n).applied = conf,
            _ => result = TaskResult::Failed("the reload was not seen".into()),
        }
        self.fresh_sample(n);
        self.task_done(n, Task::Configure, result, None);
    }

    pub fn conf_state(&mut self, n: usize, standby: bool, follow: &Upstream) -> AppliedConf {
        let promised = self.nodes[n].disk.promised.is_some();
        let agent = self.agent(n);
        let conf = WantedConf::at_start(agent.wanted.as_ref(), &agent.s.cluster, standby);
        AppliedConf {
            generation: conf.generation,
            upstream: follow.allowed(standby, promised),
            sync_names: conf.sync_names.unwrap_or_default(),
            as_primary: conf.as_primary,
        }
    }

    // --- promises ---------------------------------------------------------------------------------

    fn promise(&mut self, n: usize, epoch: Epoch) {
        self.begin(n, Task::Fence);
        let disk = &mut self.nodes[n].disk;
        disk.promised = disk.promised.max(Some(epoch));
        let running = self.nodes[n].pg.run == super::postgres::Run::Running;
        if !running || !self.nodes[n].pg.in_recovery {
            let failed = TaskResult::Failed("a primary makes no promise".into());
            return self.task_after(n, 5 * MS, Task::Fence, failed);
        }
        if !self.has(Mutation::StreamNotCut) {
            self.agent(n).applied.upstream = Upstream::None;
            self.load_upstream(n, &Upstream::None);
        }
        let inc = self.inc(n);
        let wait = self.rng.u64(40..300) * MS;
        self.after(
            wait,
            Ev::Cut {
                n,
                inc,
                epoch: epoch.0,
            },
        );
    }

    pub fn cut_done(&mut self, n: usize, epoch: u64) {
        let disk = &self.nodes[n].disk;
        let promise = FencePromise {
            v: proto::dcs::RECORD_VERSION,
            epoch: Epoch(epoch),
            wal_epoch: disk.wal_epoch,
            timeline: Timeline(self.branches[disk.branch].tli),
            lsn: Lsn(disk.flush.max(disk.replay)),
        };
        let up = self.nodes[n].pg.run == super::postgres::Run::Running;
        let result = if up && self.nodes[n].pg.in_recovery {
            TaskResult::Promised(promise)
        } else {
            TaskResult::Failed("PostgreSQL does not answer".into())
        };
        self.fresh_sample(n);
        self.task_done(n, Task::Fence, result, None);
    }

    fn withdraw(&mut self, n: usize, epoch: Epoch) {
        self.begin(n, Task::Fence);
        if self.has(Mutation::WithdrawDiskFirst) {
            self.nodes[n].disk.promised = None;
        }
        let agent = self.agent(n);
        let view = agent.o.dcs.view.clone().unwrap_or_default();
        let txn = txns::withdraw(&view, &agent.s);
        let txn = self.mistaken_withdrawal(txn);
        let session = self.agent(n).keeper.session_id();
        let what = For::Withdraw(epoch, txn.clone(), session);
        self.request(n, Req::Txn(txn, session), COMMIT_LIMIT, what);
    }

    pub fn withdraw_on_disk(&mut self, n: usize, epoch: Epoch) {
        let disk = &mut self.nodes[n].disk;
        if disk.promised.is_some_and(|p| p <= epoch) {
            disk.promised = None;
        }
        self.fresh_sample(n);
        self.task_after(n, 5 * MS, Task::Fence, TaskResult::Done);
    }

    /// Whether REST would send writers here.
    pub fn announced(&self, n: usize) -> bool {
        let now = self.local(n);
        let ignores = self.has(Mutation::HoldBackIgnored);
        self.answers_rest(n)
            && self.nodes[n].agent.as_ref().is_some_and(|a| {
                a.standing.as_ref().is_some_and(|s| {
                    s.leader_until.is_some_and(|until| until > now)
                        && (s.hold_back.is_none() || ignores)
                        && s.role == PgRole::Primary
                }) && matches!(&a.o.postgres.sql, Sql::Sample(s) if !s.in_recovery)
            })
    }
}

pub fn index_of(name: &MemberName) -> Option<usize> {
    name.as_str().get(1..)?.parse().ok()
}

fn conn_url(name: &MemberName) -> String {
    format!("postgres://{name}:5432/postgres")
}

fn api_url(name: &MemberName) -> String {
    format!("http://{name}:8008/patroni")
}

/// What a member is configured with.
pub fn settings(
    me: &MemberName,
    doc: &serde_json::Map<String, serde_json::Value>,
    use_rewind: bool,
    wipe: bool,
) -> Settings {
    Settings {
        me: me.clone(),
        scope: "sim".into(),
        version: "4.1.0".into(),
        conn_url: conn_url(me),
        api_url: api_url(me),
        proxy_url: None,
        tags: Tags::default(),
        cluster: ClusterConfig::parse(doc),
        dynamic: doc.clone(),
        can_bootstrap: true,
        can_clone_without_leader: false,
        use_pg_rewind: use_rewind,
        wipe_on_rewind_failure: wipe,
        wipe_on_divergence: wipe,
        has_pre_promote: false,
        watchdog_required: false,
        conf_generation: 1,
    }
}
