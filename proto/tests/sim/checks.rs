//! What must hold at every moment (`safety.md` 5).

use super::clock::{MS, SEC, T, nanos};
use super::mutation::Mutation;
use super::network::{CLIENT, Plane};
use super::postgres::Branch;
use super::story::Tag;
use super::world::World;
use proto::core::decision::LeaseGoal;
use proto::core::observation::{DataDir, Sql};
use proto::dcs::txn::{Compare, Op, Txn};
use proto::dcs::{ClusterView, Entry, Key, LeaseRecord, RecordState, SyncRecord};
use proto::ids::{Epoch, MemberName};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Clone, Debug, Default)]
pub struct Checks {
    /// Who became able to write last.
    latest: Option<usize>,
    /// Epochs that were won by promises: the primary before may still run, cut off (`DESIGN.md` 3).
    fenced: BTreeSet<u64>,
    highest_epoch: u64,
    /// Somebody has taken the lock away under a primary: record and `/leader`, or a record that cannot be read.
    pub lease_broken: bool,
    /// Until when a pause and its end excuse what the leases would forbid.
    pub paused_until: T,
    /// A promotion by hand took the number of another: nothing can tell the two timelines apart.
    pub twins: bool,
    /// Branches of WAL that a promotion by hand began, and in which nobody has led since.
    pub hand_made: BTreeSet<usize>,
    /// Servers that somebody promoted by hand.
    pub by_hand: BTreeMap<usize, T>,
    /// Primaries whose agents were ended in pause: what they do once the pause is over, nobody prevents.
    pub left_alone: BTreeSet<usize>,
    /// Primaries whose etcd lease was taken away while they led by it: until they have stopped, nothing can protect
    /// them from the next one (S1 holds by record).
    pub lease_gone: BTreeSet<usize>,
    /// Systems that were put into `/initialize`.
    systems: BTreeSet<String>,
    pub clean_claims: u64,
    pub acks: u64,
    pub strict_acks: u64,
    pub epochs: u64,
}

impl Checks {
    /// The identifier of the cluster, once it was made.
    pub fn system(&self) -> Option<String> {
        self.systems.first().cloned()
    }
}

/// After a pause ends or a hand has promoted something, this long may pass until it is in order.
const GRACE: T = 15 * SEC;

impl World {
    fn paused(&self) -> bool {
        self.config.pause || self.now < self.checks.paused_until
    }

    pub fn pause_ended(&mut self) {
        self.checks.paused_until = self.now + GRACE;
    }

    fn excused(&self, n: usize) -> bool {
        let left_alone = self.checks.left_alone.contains(&n) || self.checks.lease_gone.contains(&n);
        left_alone
            || self.missed_the_end_of_a_pause(n)
            || self.promoted_behind_its_agent(n)
            || self
                .checks
                .by_hand
                .get(&n)
                .is_some_and(|at| self.now < at + GRACE)
    }

    /// Somebody has promoted it while its agent was away or stood still, so nobody stops it before the agent is back
    /// (`docs/explanation/guarantees.md`).
    fn promoted_behind_its_agent(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let away = node.agent.is_none() || node.agent_frozen + node.stalled > 0;
        away && self.checks.hand_made.contains(&node.disk.branch)
    }

    /// From now on it may take as long as after a promotion that it has seen.
    pub fn agent_is_back(&mut self, n: usize) {
        if self.nodes[n].pg.writable() && self.checks.by_hand.contains_key(&n) {
            self.checks.by_hand.insert(n, self.now);
        }
    }

    /// In pause a primary has no deadline, and the others wait for W from the end of the pause. Whose agent has not heard
    /// of it by then goes on (`docs/explanation/guarantees.md`).
    fn missed_the_end_of_a_pause(&self, n: usize) -> bool {
        let agent = self.nodes[n].agent.as_ref();
        let unaware = !self.config.pause && agent.is_some_and(|a| a.s.cluster.pause);
        unaware && self.now + GRACE >= self.checks.paused_until + self.takeover_wait()
    }

    /// An agent begins. Epochs are remembered by agents when the record cannot be read.
    pub fn agent_began(&mut self, n: usize) {
        self.agent_is_back(n);
        if self.checks.left_alone.remove(&n) {
            self.checks.by_hand.insert(n, self.now);
        }
        if self.record().is_none() {
            self.checks.highest_epoch = 0;
        }
    }

    /// Somebody has deleted a key.
    pub fn key_taken(&mut self) {
        let lock = ["record", "leader"]
            .iter()
            .any(|key| self.store.get(key).is_some());
        let writable = self.nodes.iter().any(|node| node.pg.writable());
        self.checks.lease_broken |= !lock && writable;
    }

    // --- who writes -------------------------------------------------------------------------------

    pub fn became_writable(&mut self, n: usize, how: &str) {
        self.nodes[n].pg.writable_since = Some(self.now);
        if self.excused(n) {
            return;
        }
        self.story.reach("writable");
        if self.is_stranger(n) {
            self.story.reach("stranger-starts");
            return;
        }
        if self.is_cut_off(n) {
            // PostgreSQL comes up again within the lease of a primary that its standbys have cut off: it
            // may serve stale reads until its deadline, and acknowledges nothing (`DESIGN.md` 3).
            self.story.reach("old-primary-restarts");
            return;
        }
        let others: Vec<usize> = (0..self.nodes.len())
            .filter(|m| *m != n && self.nodes[*m].pg.writable() && !self.excused(*m))
            .filter(|m| !self.is_being_ended(*m))
            .collect();
        let same_system = |m: &usize| self.nodes[*m].disk.system == self.nodes[n].disk.system;
        if let Some(other) = others.iter().find(|m| same_system(m)).copied() {
            if self.is_cut_off(other) {
                self.story.reach("old-primary-cut-off");
            } else if !self.paused() && !self.checks.lease_broken {
                let names = (&self.names[n], &self.names[other]);
                self.fail(format!(
                    "S2x: {} {how} while {} is still writable",
                    names.0, names.1
                ));
            }
        }
        self.checks.latest = Some(n);
        self.holds_everything(n);
    }

    /// What a dead guardian's witness is ending on a machine that stands still runs no more before that is done.
    fn is_being_ended(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let dead = node.guard.as_ref().is_none_or(|guard| !guard.alive);
        node.frozen > 0 && dead && node.pg.run == super::postgres::Run::Orphans
    }

    /// A cluster of its own, which lost the race to be made, and which nobody knows of.
    fn is_stranger(&self, n: usize) -> bool {
        let system = self.nodes[n].disk.system;
        let ours = self.checks.systems.first();
        ours.is_some_and(|ours| ours.parse() != Ok(system))
    }

    /// Since the epoch of this server one was won by promises: nobody acknowledges for it any more, whoever
    /// leads now, also when that one has released its lock long before this server's deadline.
    fn is_cut_off(&self, n: usize) -> bool {
        // While it is fenced, and after a guardian's death, its processes are still of the last epoch.
        let Some(epoch) = self.nodes[n].armed_last else {
            return false;
        };
        let leads = self.record().is_some_and(|r| r.owner == self.names[n]);
        !leads && self.checks.fenced.range(epoch.0 + 1..).next().is_some()
    }

    pub fn no_longer_writable(&mut self, n: usize) {
        self.nodes[n].pg.writable_since = None;
        self.checks.lease_gone.remove(&n);
    }

    /// S4: no two promotions make a timeline of one number. Whoever promotes by hand asks nobody.
    pub fn number_is_new(&mut self, n: usize) {
        let ours = self.nodes[n].disk.branch;
        let number = self.branches[ours].tli;
        let made = |b: &Branch| b.parent.is_some_and(|(p, _)| self.branches[p].tli != b.tli);
        let taken = self.branches[..ours]
            .iter()
            .any(|b| b.tli == number && made(b));
        if taken && self.checks.by_hand.is_empty() {
            self.fail(format!(
                "S4: {} makes timeline {number} a second time",
                self.names[n]
            ));
        }
    }

    /// S3: whoever becomes the primary has all that was acknowledged strictly.
    fn holds_everything(&mut self, n: usize) {
        let disk = &self.nodes[n].disk;
        let lost = self
            .commits
            .iter()
            .position(|c| c.strict && !self.holds(disk.branch, disk.flush, (c.branch, c.lsn)));
        if let Some(lost) = lost {
            let commit = &self.commits[lost];
            let what = format!(
                "S3: {} became the primary without commit {lost} at {} of branch {} (timeline {}), which {} had acknowledged",
                self.names[n],
                commit.lsn,
                commit.branch,
                self.branches[commit.branch].tli,
                self.names[commit.node],
            );
            self.fail(what);
        }
    }

    /// S2: whatever writes does so before its deadline and F have passed.
    pub fn commit_is_guarded(&mut self, n: usize) {
        if self.paused() || self.excused(n) || self.is_stranger(n) {
            return;
        }
        let now = self.local(n);
        let bound = Duration::from_millis(self.config.native.fence_ms);
        let armed = self.nodes[n].guard.as_ref().and_then(|g| g.clock.armed());
        let killing = self.nodes[n].guard.as_ref().is_some_and(|g| g.killing);
        match armed {
            Some(armed) if now > armed.deadline + bound => {
                self.fail(format!("S2: {} writes after its deadline", self.names[n]));
            }
            None if !killing && !self.may_be_unarmed(n) => {
                self.fail(format!("S2: {} writes without a deadline", self.names[n]));
            }
            _ => {}
        }
    }

    /// A server of a cluster that is being made, and was never presented, is nobody's second primary; orphans
    /// are being ended.
    fn may_be_unarmed(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        let unknown = node.disk.dir.never_presented();
        let young = node
            .pg
            .writable_since
            .is_none_or(|at| self.now < at + 3 * SEC);
        let orphans = node.pg.run == super::postgres::Run::Orphans;
        let no_guard = node.guard.as_ref().is_none_or(|g| !g.alive);
        unknown || (young && self.promotions == 0) || orphans || no_guard
    }

    // --- who was told what ------------------------------------------------------------------------

    fn sync_key(&self) -> SyncRecord {
        self.store
            .get("sync")
            .map(|entry| self.reader.sync(entry))
            .unwrap_or_default()
    }

    /// PostgreSQL lets a commit return.
    pub fn acknowledge(&mut self, n: usize, commit: usize) {
        if !self.net.ok(Plane::Client, n, CLIENT) {
            return;
        }
        self.commits[commit].acked = true;
        self.checks.acks += 1;
        // Synchronous mode is in force where the primary and etcd say so.
        let strict = self.config.is_synchronous() && self.sync_key().is_active();
        if !strict || self.excused(n) || self.is_stranger(n) {
            return;
        }
        self.commits[commit].strict = true;
        self.checks.strict_acks += 1;
        let place = (self.commits[commit].branch, self.commits[commit].lsn);
        if self.checks.hand_made.contains(&place.0) && self.announced(n) {
            self.checks.hand_made.remove(&place.0);
        }
        let others = |l: &usize| *l != n && !self.is_stranger(*l);
        let Some(latest) = self.checks.latest.filter(others) else {
            return;
        };
        let newer = self.nodes[latest].pg.writable_since > self.nodes[n].pg.writable_since;
        if newer && self.nodes[latest].pg.writable() && !self.node_holds(latest, place) {
            self.fail(format!(
                "S3: {} acknowledged commit {commit}, which {} lacks, the primary since {:.3}",
                self.names[n],
                self.names[latest],
                self.nodes[latest].pg.writable_since.unwrap_or(0) as f64 / SEC as f64
            ));
        }
    }

    /// Readers that go through HAProxy see what crash recovery made visible (S9): where only what is
    /// safe may be read, it is as good as acknowledged.
    pub fn read_recovered(&mut self, n: usize) {
        let Some(upto) = self.nodes[n].pg.recovered else {
            return;
        };
        let node = &self.nodes[n];
        let strict = self.config.is_synchronous() && self.sync_key().is_active();
        if !node.pg.writable() || node.frozen > 0 || !strict || !self.announced(n) {
            return;
        }
        let branch = node.disk.branch;
        let seen: Vec<usize> = (0..self.commits.len())
            .filter(|i| {
                let c = &self.commits[*i];
                !c.strict && c.lsn <= upto && self.holds(branch, upto, (c.branch, c.lsn))
            })
            .collect();
        for i in seen {
            self.commits[i].strict = true;
        }
        self.nodes[n].pg.recovered = None;
        self.story.reach("read-after-crash");
    }

    // --- etcd -------------------------------------------------------------------------------------

    pub fn record(&self) -> Option<LeaseRecord> {
        self.reader.record(self.store.get("record")?)
    }

    /// Every commit to etcd.
    pub fn committed(&mut self, by: Option<usize>, txn: &Txn, before: Option<&Entry>) {
        for op in &txn.then {
            match op {
                Op::Put {
                    key: Key::Record,
                    value,
                    ..
                } => {
                    if let Ok(record) = serde_json::from_str::<LeaseRecord>(value) {
                        let before = before.and_then(|entry| self.reader.record(entry));
                        self.record_committed(by, txn, before.as_ref(), &record);
                    }
                }
                Op::Put {
                    key: Key::Initialize,
                    value,
                    ..
                } if !value.is_empty() && by.is_some() => {
                    self.checks.systems.insert(value.clone());
                    if self.checks.systems.len() > 1 {
                        let systems = self.checks.systems.clone();
                        self.fail(format!("S22: two clusters were made: {systems:?}"));
                    }
                }
                Op::Delete(Key::Leader) => self.released(by, "deleted /leader"),
                Op::Put { .. } | Op::Delete(_) => {}
            }
        }
    }

    fn record_committed(
        &mut self,
        by: Option<usize>,
        txn: &Txn,
        before: Option<&LeaseRecord>,
        now: &LeaseRecord,
    ) {
        if now.epoch.0 < self.checks.highest_epoch {
            let high = self.checks.highest_epoch;
            self.fail(format!("S4: epoch {} after {high}", now.epoch));
        }
        let other = before.is_some_and(|b| {
            b.owner != now.owner || (b.session != now.session && now.state == RecordState::Held)
        });
        if other && before.is_some_and(|b| b.epoch >= now.epoch) {
            self.fail(format!("S4: {} took epoch {} over", now.owner, now.epoch));
        }
        if now.epoch.0 > self.checks.highest_epoch {
            self.checks.highest_epoch = now.epoch.0;
            self.checks.epochs += 1;
            let fenced = txn
                .when
                .iter()
                .any(|c| matches!(c, Compare::Unchanged(Key::Fence(_), _)));
            let fenced = fenced
                || (self.has(Mutation::FenceNotCompared)
                    && self
                        .store
                        .snap
                        .entries
                        .keys()
                        .any(|k| k.starts_with("fence/")));
            if fenced {
                self.checks.fenced.insert(now.epoch.0);
                self.story.reach("fenced-claim-won");
            }
            let (epoch, owner) = (now.epoch, now.owner.clone());
            self.note(Tag::Etcd, || {
                format!(
                    "epoch {epoch} goes to {owner}{}",
                    if fenced { ", by promises" } else { "" }
                )
            });
        }
        if now.state == RecordState::Released {
            self.released(by, "released its record");
        }
    }

    /// S10: released means dead.
    fn released(&mut self, by: Option<usize>, what: &str) {
        let Some(n) = by else { return };
        if self.nodes[n].pg.writable() && !self.paused() && !self.excused(n) {
            self.fail(format!("S10: {} {what} while it can write", self.names[n]));
        }
    }

    // --- data -------------------------------------------------------------------------------------

    /// S7: never the last good copy.
    pub fn about_to_wipe(&mut self, n: usize, source: usize) {
        self.story.reach("wipe");
        let lost = self.commits.iter().position(|c| {
            let place = (c.branch, c.lsn);
            c.strict
                && self.node_holds(n, place)
                && !(0..self.nodes.len()).any(|m| m != n && self.node_holds(m, place))
        });
        let good = self.nodes[source].disk.dir == DataDir::Initialised;
        let kind = &self.nodes[source].pg;
        if kind.run != super::postgres::Run::Running || kind.in_recovery {
            let names = (&self.names[n], &self.names[source]);
            return self.fail(format!(
                "S7: {} throws its data away for a copy of {}, which is no primary",
                names.0, names.1
            ));
        }
        // What a promotion by hand has left behind is lost by hand.
        let lost = lost.filter(|_| !self.checks.by_hand.contains_key(&source));
        if lost.is_some() || !good {
            self.fail(format!(
                "S7: {} throws away the last copy of commit {lost:?}",
                self.names[n]
            ));
        }
    }

    // --- the end ----------------------------------------------------------------------------------

    /// What is still missing for a healthy cluster; `None` when nothing is.
    pub fn unsettled(&self) -> Option<String> {
        let leader = match self.leader() {
            Ok(leader) => leader,
            Err(why) => return Some(why),
        };
        let name = &self.names[leader];
        for n in 0..self.nodes.len() {
            let me = &self.names[n];
            let Some(agent) = &self.nodes[n].agent else {
                return Some(format!("{me} has no agent"));
            };
            if agent.job.is_some() {
                return Some(format!("{me} is at work: {:?}", agent.o.job));
            }
            if self.nodes[n].disk.promised.is_some() {
                return Some(format!("{me} keeps its promise"));
            }
            if n != leader {
                let streams = self.conns.values().any(|c| {
                    c.standby == n
                        && c.standby_open
                        && c.primary_open
                        && c.acked > 0
                        && (c.primary == leader || self.nodes[n].replay_lag > 0)
                });
                if !streams {
                    return Some(format!(
                        "{me} does not stream from {name} ({})",
                        agent.m.last_rule
                    ));
                }
            }
        }
        let mut fences = self.store.snap.entries.iter();
        if fences.any(|(key, entry)| self.stands(key, entry)) {
            return Some("a promise stands in etcd".into());
        }
        self.unsettled_keys(name)
    }

    fn stands(&self, key: &str, entry: &Entry) -> bool {
        let promises =
            |view: &ClusterView| view.fences.values().any(|f| f.promise.epoch > Epoch(0));
        key.starts_with("fence/") && promises(&self.reader.read(key, entry))
    }

    fn unsettled_keys(&self, name: &MemberName) -> Option<String> {
        let sync = self.sync_key();
        let n = self.nodes.len();
        if self.config.is_synchronous() && n > 1 {
            let count = usize::try_from(self.config.synchronous_node_count).unwrap_or(1);
            if sync.leader.as_ref() != Some(name) || sync.standbys.len() < count.min(n - 1) {
                return Some(format!("/sync is not as it should be: {sync:?}"));
            }
        } else if sync.is_active() && !self.config.is_synchronous() {
            return Some("/sync is left over".into());
        }
        let native = self.record().is_some_and(|r| r.state == RecordState::Held);
        if native != self.config.native.record_lease {
            return Some(format!(
                "the record lease should be {}",
                self.config.native.record_lease
            ));
        }
        let request = self.store.get("failover").map(|e| e.value.as_str());
        if request.is_some_and(|value| value != "{}" && !value.is_empty()) {
            return Some(format!("a request is left: {request:?}"));
        }
        None
    }

    /// The one primary that is announced.
    pub fn leader(&self) -> Result<usize, String> {
        let writable: Vec<usize> = (0..self.nodes.len())
            .filter(|n| self.nodes[*n].pg.writable())
            .collect();
        let [leader] = writable[..] else {
            let rules: Vec<String> = self
                .nodes
                .iter()
                .enumerate()
                .map(|(n, node)| {
                    let rule = node
                        .agent
                        .as_ref()
                        .map_or("down", |a| a.m.last_rule.as_ref());
                    format!("n{n} {rule} {:?}", node.pg.run)
                })
                .collect();
            return Err(format!("writable: {writable:?}; {}", rules.join(", ")));
        };
        if !self.announced(leader) {
            let agent = self.nodes[leader].agent.as_ref();
            let why = agent
                .and_then(|a| a.standing.clone())
                .map(|s| (s.role, s.leader_until, s.hold_back));
            let rule = agent.map_or("down", |a| a.m.last_rule.as_ref());
            return Err(format!(
                "n{leader} writes but is not announced: {rule} {why:?}"
            ));
        }
        let key = self.store.get("leader").map(|e| e.value.as_str());
        if key != Some(self.names[leader].as_str()) {
            return Err(format!("/leader is {key:?} and not n{leader}"));
        }
        let holds = self.nodes[leader]
            .agent
            .as_ref()
            .is_some_and(|a| !matches!(a.keeper.goal, LeaseGoal::Session { .. }));
        if !holds {
            return Err(format!("n{leader} does not renew"));
        }
        if self.nodes[leader].pg.waiters.len() > 20 {
            return Err(format!("commits hang on n{leader}"));
        }
        Ok(leader)
    }

    /// No primary is there, or not the one that was.
    pub fn leader_lost(&self) -> bool {
        self.promotions > 0 || self.primary().is_none()
    }

    pub fn answers(&self, n: usize) -> bool {
        self.nodes[n]
            .agent
            .as_ref()
            .is_some_and(|a| matches!(a.o.postgres.sql, Sql::Sample(_)))
    }

    /// How long a lock must have stood still before it is taken over.
    pub fn takeover_wait(&self) -> T {
        if self.config.native.record_lease {
            self.config.native.wait_ms * MS
        } else {
            nanos(self.config.timing.ttl())
        }
    }

    /// How long a failover may take in all: `L1`.
    pub fn patience(&self) -> T {
        let wait = self.takeover_wait();
        // S20: an agent that was restarted may have promised a primary without etcd that much time.
        let promised = if self.config.failsafe_mode {
            nanos(self.config.timing.ttl())
        } else {
            0
        };
        2 * wait + 10 * SEC + promised
    }
}
