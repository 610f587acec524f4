//! What goes wrong: a list of faults with times, so that a failing run can be told again with fewer.

use super::clock::{MS, SEC, T};
use super::network::{CLIENT, ETCD, Plane};
use super::story::Tag;
use super::world::{Ev, World};
use proto::core::observation::RestartWish;
use proto::dcs::{Key, RecordState};
use proto::ids::LeaseId;
use serde_json::json;
use std::rc::Rc;

macro_rules! kinds {
    ($($name:ident = $text:literal,)+) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind { $($name,)+ }
        impl Kind {
            pub const ALL: &'static [Kind] = &[$(Kind::$name,)+];
            pub fn text(self) -> &'static str {
                match self { $(Kind::$name => $text,)+ }
            }
        }
    };
}

kinds! {
    AgentCrash = "agent killed",
    AgentFreeze = "agent stopped",
    LoopStall = "member loop hangs",
    NodeFreeze = "machine frozen",
    PowerLoss = "machine loses power",
    PgCrash = "postmaster killed",
    PgSilent = "PostgreSQL does not answer queries",
    CutEtcd = "cut from etcd",
    CutAgents = "agents cut from each other",
    CutPg = "replication cut",
    Isolate = "machine isolated",
    CutClient = "clients cut off",
    EtcdDown = "etcd without a quorum",
    EtcdLeaderChange = "etcd elects a leader",
    EtcdSlow = "etcd is slow",
    EtcdLossy = "etcd's answers are lost",
    LeaseRevoked = "a live lease is revoked",
    WatchLost = "a watch falls silent",
    EtcdWiped = "etcd is replaced by an empty one",
    RecordDeleted = "the record is deleted by hand",
    LeaderDeleted = "the leader key is deleted by hand",
    SlowReload = "reloads take effect late",
    SlowPostgres = "starts and stops take long",
    ReplayLag = "a standby does not replay",
    Switchover = "switchover asked for",
    SwitchoverTo = "switchover to a candidate asked for",
    Failover = "failover asked for",
    Pause = "pause",
    Shutdown = "agent told to end",
    Restart = "restart asked for",
    Reinitialize = "reinitialize asked for",
    NodeCount = "synchronous_node_count changes",
    JobFails = "the next jobs fail",
    GuardianKilled = "guardian killed",
    PromotedByHand = "promoted by hand",
    FlapPg = "replication flaps",
    SlowPg = "replication is slow",
    StaleLessor = "a deposed leader of etcd answers keepalives",
    StaleReads = "etcd answers reads with the past",
    DataHidden = "data directory cannot be read",
    OtherSystem = "another cluster's identifier is written by hand",
    RecordGarbled = "the record is overwritten with rubbish",
    WatchdogFails = "the watchdog cannot be used",
    PromotionRefused = "pre_promote refuses",
}

/// One thing that goes wrong.
#[derive(Clone, Debug)]
pub struct Fault {
    pub kind: Kind,
    /// When, counted from the start of the faults, and for how long.
    pub at: T,
    pub lasts: T,
    pub node: usize,
    pub other: usize,
    /// Direction and other choices.
    pub dice: u32,
    /// At this time the primary is meant, whoever it is.
    pub primary: bool,
}

impl Fault {
    pub fn random(rng: &mut fastrand::Rng, kind: Kind, n: usize, window: T) -> Self {
        let lasts = match rng.u32(0..4) {
            0 => rng.u64(50..1_500) * MS,
            1 => rng.u64(1_500..5_000) * MS,
            _ => rng.u64(3_000..12_000) * MS,
        };
        // No longer than an election takes.
        let lasts = match kind {
            Kind::EtcdLeaderChange | Kind::StaleReads => rng.u64(200..1_700) * MS,
            _ => lasts,
        };
        Self {
            kind,
            at: rng.u64(0..window.max(1)),
            lasts,
            node: rng.usize(0..n),
            other: rng.usize(0..n),
            dice: rng.u32(..),
            primary: rng.u32(0..3) > 0,
        }
    }
}

impl World {
    /// Schedules the faults from now on.
    pub fn plan_faults(&mut self, faults: &[Fault]) {
        self.faults = std::rc::Rc::new(faults.to_vec());
        for (index, fault) in faults.iter().enumerate() {
            self.after(
                fault.at,
                Ev::Fault {
                    index,
                    begins: true,
                },
            );
            self.after(
                fault.at + fault.lasts,
                Ev::Fault {
                    index,
                    begins: false,
                },
            );
        }
    }

    /// Who can write, as far as a fault may aim.
    pub fn primary(&self) -> Option<usize> {
        (0..self.nodes.len()).find(|n| self.nodes[*n].pg.writable())
    }

    pub fn fault(&mut self, index: usize, begins: bool) {
        let Some(fault) = self.faults.get(index).cloned() else {
            return;
        };
        let node = if begins {
            let node = match self.primary() {
                Some(primary) if fault.primary => primary,
                _ => fault.node,
            };
            self.hits.insert(index, node);
            self.story.reach(fault.kind.text());
            node
        } else {
            match self.hits.remove(&index) {
                Some(node) => node,
                None => return,
            }
        };
        let other = if fault.other == node {
            (node + 1) % self.nodes.len()
        } else {
            fault.other
        };
        let verb = if begins { "begins" } else { "ends" };
        self.tell(node, Tag::Fault, || {
            format!(
                "{} {verb} (other n{other}, dice {})",
                fault.kind.text(),
                fault.dice % 8
            )
        });
        self.apply(&fault, node, other, begins);
        self.relink();
    }

    fn apply(&mut self, fault: &Fault, n: usize, other: usize, begins: bool) {
        let by = |count: &mut u32| {
            if begins {
                *count += 1;
            } else {
                *count = count.saturating_sub(1);
            }
        };
        match fault.kind {
            Kind::AgentCrash => {
                by(&mut self.nodes[n].kept_down);
                self.agent_down(n, begins);
            }
            Kind::AgentFreeze => {
                by(&mut self.nodes[n].agent_frozen);
                self.moves_again(n, begins);
            }
            Kind::LoopStall => {
                by(&mut self.nodes[n].stalled);
                self.moves_again(n, begins);
            }
            Kind::NodeFreeze => {
                by(&mut self.nodes[n].frozen);
                self.moves_again(n, begins);
            }
            Kind::PowerLoss => self.power(n, begins),
            Kind::PgCrash if begins => {
                let orphans = u64::from(fault.dice % 150) * MS + MS;
                self.kill_postgres(n, orphans);
            }
            Kind::PgSilent if begins => self.nodes[n].pg.silent_until = self.now + fault.lasts,
            Kind::CutEtcd => self.cut(Plane::Etcd, n, ETCD, fault.dice, begins),
            Kind::CutAgents => self.cut(Plane::Agent, n, other, fault.dice, begins),
            Kind::CutPg => self.cut(Plane::Pg, n, other, fault.dice, begins),
            Kind::CutClient => self.cut(Plane::Client, n, CLIENT, fault.dice, begins),
            Kind::Isolate => self.isolate(n, fault.dice, begins),
            Kind::FlapPg => {
                for m in 0..self.nodes.len() {
                    if m != n {
                        self.cut(Plane::Pg, n, m, 0, begins);
                    }
                }
            }
            Kind::EtcdDown => {
                by(&mut self.store.down);
                if !begins {
                    self.leases_again();
                }
            }
            Kind::EtcdLeaderChange => {
                by(&mut self.store.down);
                if !begins {
                    self.leases_again();
                }
            }
            Kind::EtcdSlow => self.slow(Plane::Etcd, u64::from(fault.dice % 2_500), begins),
            Kind::SlowPg => self.slow(Plane::Pg, u64::from(fault.dice % 1_500), begins),
            Kind::EtcdLossy => self.net.lossy = if begins { 20 + fault.dice % 60 } else { 0 },
            Kind::LeaseRevoked if begins => self.revoke(n),
            Kind::WatchLost if begins => {
                if let Some(agent) = self.nodes[n].agent.as_mut() {
                    agent.watch_broken = true;
                }
            }
            Kind::EtcdWiped if begins => self.store.wipe(),
            Kind::RecordDeleted if begins => self.delete(Key::Record),
            Kind::LeaderDeleted if begins => self.delete(Key::Leader),
            Kind::SlowReload if begins => self.nodes[n].slow_reload_until = self.now + fault.lasts,
            Kind::SlowPostgres if begins => self.nodes[n].slow_until = self.now + fault.lasts,
            Kind::ReplayLag => {
                by(&mut self.nodes[n].replay_lag);
                if self.nodes[n].replay_lag == 0 {
                    self.nodes[n].disk.replay = self.nodes[n].disk.flush;
                }
            }
            Kind::Switchover | Kind::SwitchoverTo | Kind::Failover if begins => {
                self.ask_switchover(fault.kind, other);
            }
            Kind::Pause => self.set_config("pause", json!(begins)),
            Kind::NodeCount if begins => {
                self.set_config("synchronous_node_count", json!(1 + fault.dice % 2));
            }
            Kind::Shutdown => {
                by(&mut self.nodes[n].kept_down);
                if begins {
                    if let Some(agent) = self.nodes[n].agent.as_mut() {
                        agent.o.wishes.shutdown = true;
                    }
                    self.decide(n);
                } else {
                    self.after(MS, Ev::AgentStart { n });
                }
            }
            Kind::Restart if begins => {
                self.requests += 1;
                let id = self.requests;
                if let Some(agent) = self.nodes[n].agent.as_mut() {
                    agent.o.wishes.restart = Some(RestartWish { id, timeout: None });
                }
            }
            Kind::Reinitialize if begins => self.ask_reinitialize(n, fault.dice.is_multiple_of(2)),
            Kind::JobFails if begins => {
                let many = fault.dice.is_multiple_of(8);
                self.nodes[n].fail_jobs += if many { 12 } else { 1 + fault.dice % 3 };
            }
            Kind::StaleLessor => by(&mut self.nodes[n].stale_lessor),
            Kind::StaleReads => {
                let now = (Rc::new(self.store.snap.clone()), self.store.log.len());
                self.nodes[n].past = begins.then_some(now);
            }
            Kind::DataHidden => {
                by(&mut self.nodes[n].hidden);
                if begins {
                    self.kill_postgres(n, u64::from(fault.dice % 150) * MS + MS);
                }
                self.probe_now(n);
            }
            Kind::OtherSystem => self.write_system(begins),
            Kind::RecordGarbled => self.garble_record(begins),
            Kind::WatchdogFails => by(&mut self.nodes[n].watchdog_failed),
            Kind::PromotionRefused if begins => self.nodes[n].refuse_promotions += 1,
            // Nothing on a machine that stands still can kill.
            Kind::GuardianKilled if begins && self.nodes[n].frozen == 0 => self.guard_killed(n),
            Kind::PromotedByHand if begins => {
                let standby = self.nodes[n].pg.in_recovery;
                if standby && self.nodes[n].pg.run == super::postgres::Run::Running {
                    self.checks.by_hand.insert(n, self.now);
                    self.nodes[n].pg.by_hand = true;
                    self.promote_postgres(n, 0);
                }
            }
            _ => {}
        }
    }

    fn agent_down(&mut self, n: usize, begins: bool) {
        if begins {
            self.end_agent(n);
        } else {
            self.after(MS, Ev::AgentStart { n });
        }
    }

    fn moves_again(&mut self, n: usize, begins: bool) {
        if begins {
            return;
        }
        // PostgreSQL goes on with the machine, also while the agent still stands: what is held up by that is put
        // back as it comes.
        self.thaw(n);
        let node = &self.nodes[n];
        if node.frozen + node.agent_frozen + node.stalled == 0 {
            self.agent_is_back(n);
            let inc = self.inc(n);
            self.after(0, Ev::Nudge { n, inc });
        }
    }

    fn power(&mut self, n: usize, begins: bool) {
        if begins {
            self.nodes[n].powered = false;
            self.relink();
            self.end_agent(n);
            self.kill_postgres(n, 0);
            self.nodes[n].guard = None;
        } else if !self.nodes[n].powered {
            self.nodes[n].powered = true;
            self.after(200 * MS, Ev::AgentStart { n });
        }
    }

    fn cut(&mut self, plane: Plane, a: usize, b: usize, dice: u32, begins: bool) {
        let mut one = |from, to| {
            if begins {
                self.net.cut(plane, from, to);
            } else {
                self.net.heal(plane, from, to);
            }
        };
        match dice % 4 {
            1 => one(a, b),
            2 => one(b, a),
            _ => {
                one(a, b);
                one(b, a);
            }
        }
    }

    /// Some or all planes, between this node and everything else.
    fn isolate(&mut self, n: usize, dice: u32, begins: bool) {
        for m in 0..self.nodes.len() {
            if m != n {
                self.cut(Plane::Agent, n, m, 0, begins);
                self.cut(Plane::Pg, n, m, 0, begins);
            }
        }
        self.cut(Plane::Etcd, n, ETCD, 0, begins);
        // Clients that sit on the same side go on writing.
        if dice.is_multiple_of(2) {
            self.cut(Plane::Client, n, CLIENT, 0, begins);
        }
    }

    fn slow(&mut self, plane: Plane, ms: u64, begins: bool) {
        self.net.slow[plane as usize] = if begins { ms * MS + MS } else { 0 };
    }

    fn leases_again(&mut self) {
        if self.store.down == 0 {
            for (id, at) in self.store.extend_all(self.now) {
                self.expect_expiry(id, at);
            }
        }
    }

    fn revoke(&mut self, n: usize) {
        let id = self.nodes[n]
            .agent
            .as_ref()
            .map_or(LeaseId(0), |a| a.keeper.session_id());
        let native = self
            .record()
            .is_some_and(|r| r.state != RecordState::Compatible);
        let leads = self.store.get("leader").is_some_and(|e| e.lease == id);
        if self.store.revoke(id.0) {
            if leads && !native && self.nodes[n].pg.writable() {
                self.checks.lease_gone.insert(n);
            }
            self.tell_watches();
            self.key_taken();
        }
    }

    /// Everything that was broken is whole again.
    pub fn heal(&mut self) {
        for index in 0..self.faults.len() {
            if self.hits.contains_key(&index) {
                self.fault(index, false);
            }
        }
        if self.config.pause {
            self.set_config("pause", json!(false));
        }
        for n in 0..self.nodes.len() {
            let node = &mut self.nodes[n];
            node.fail_jobs = 0;
            node.refuse_promotions = 0;
            node.slow_until = 0;
            node.pg.silent_until = 0;
            node.slow_reload_until = 0;
            if node.agent.is_none() && node.powered {
                self.after(SEC, Ev::AgentStart { n });
            }
        }
    }
}
