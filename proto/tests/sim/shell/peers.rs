//! What members ask each other.

use super::super::clock::{MS, SEC, T};
use super::super::mutation::Mutation;
use super::super::network::Plane;
use super::super::world::{Ev, World};
use super::{Asking, api_url, conn_url, index_of};
use proto::core::job::Upstream;
use proto::core::observation::{
    FailsafeCaller, Lineage, PeerAnswer, PeerStatus, Sql, Task, TaskResult,
};
use proto::ids::{MemberName, SystemId};
use proto::time::MonoTime;
use std::collections::BTreeMap;

impl World {
    pub(super) fn asking(&mut self, n: usize, peers: &BTreeMap<MemberName, String>) -> Asking {
        self.requests += 1;
        let at = self.local(n);
        let answers = peers
            .keys()
            .map(|name| {
                (
                    name.clone(),
                    PeerAnswer {
                        asked_at: at,
                        status: None,
                    },
                )
            })
            .collect();
        Asking {
            id: self.requests,
            at,
            left: peers.keys().filter_map(index_of).collect(),
            answers,
        }
    }

    pub(super) fn ask_peers(&mut self, n: usize, peers: &BTreeMap<MemberName, String>, limit: T) {
        self.begin(n, Task::Peers);
        let inc = self.inc(n);
        let asking = self.asking(n, peers);
        let ask = asking.id;
        for to in asking.left.clone() {
            if self.net.ok(Plane::Agent, n, to) {
                let wait = self.net.latency(Plane::Agent, &mut self.rng);
                self.after(wait, Ev::PeerAsk { n, inc, ask, to });
            }
        }
        let wait = if asking.left.is_empty() { MS } else { limit };
        self.agent(n).peers = Some(asking);
        self.after(wait, Ev::PeerLimit { n, inc, ask });
    }

    pub fn answers_rest(&self, n: usize) -> bool {
        let Some(node) = self.nodes.get(n) else {
            return false;
        };
        let looked = node
            .agent
            .as_ref()
            .is_some_and(|a| a.o.postgres.sql_at != MonoTime(0));
        node.powered && node.frozen + node.agent_frozen == 0 && looked
    }

    pub fn peer_asked(&mut self, n: usize, inc: u32, ask: u64, to: usize) {
        if !self.answers_rest(to) || !self.net.ok(Plane::Agent, to, n) {
            return;
        }
        let status = Box::new(self.status_of(to));
        let wait = self.net.latency(Plane::Agent, &mut self.rng);
        self.after(
            wait,
            Ev::PeerReply {
                n,
                inc,
                ask,
                to,
                status,
            },
        );
    }

    pub(super) fn status_of(&self, n: usize) -> PeerStatus {
        let Some(agent) = &self.nodes[n].agent else {
            return PeerStatus::default();
        };
        let tags = agent.s.tags.published();
        let epoch = agent.standing.as_ref().map(|s| s.epoch);
        let epoch = epoch.filter(|_| !self.has(Mutation::EpochUntold));
        let epoch = epoch.unwrap_or_default();
        match &agent.o.postgres.sql {
            Sql::Sample(sample) => PeerStatus {
                is_primary: !sample.in_recovery,
                position: proto::core::lag::position(sample),
                timeline: sample.timeline,
                tags,
                streaming: sample.receiver.is_some(),
                age: self.local(n).since(agent.o.postgres.sql_at),
                epoch,
                ..PeerStatus::default()
            },
            _ => PeerStatus {
                agent_only: true,
                epoch,
                tags,
                ..PeerStatus::default()
            },
        }
    }

    pub fn peer_answered(&mut self, n: usize, ask: u64, to: usize, status: PeerStatus) {
        let name = self.names[to].clone();
        let Some(asking) = self.agent(n).peers.as_mut().filter(|a| a.id == ask) else {
            return;
        };
        asking.left.remove(&to);
        let asked_at = asking.at;
        asking.answers.insert(
            name,
            PeerAnswer {
                asked_at,
                status: Some(status),
            },
        );
        if asking.left.is_empty() {
            self.peers_done(n, ask);
        }
    }

    pub fn peers_done(&mut self, n: usize, ask: u64) {
        let Some(asking) = self.agent(n).peers.take_if(|a| a.id == ask) else {
            return;
        };
        self.agent(n).o.peers.extend(asking.answers);
        self.task_done(n, Task::Peers, TaskResult::Done, None);
    }

    pub(super) fn ask_failsafe(&mut self, n: usize, peers: &BTreeMap<MemberName, String>) {
        self.begin(n, Task::AskFailsafe);
        let inc = self.inc(n);
        let asking = self.asking(n, peers);
        let ask = asking.id;
        for to in asking.left.clone() {
            if self.net.ok(Plane::Agent, n, to) {
                let wait = self.net.latency(Plane::Agent, &mut self.rng);
                self.after(wait, Ev::FailsafeAsk { n, inc, ask, to });
            }
        }
        self.agent(n).failsafe = Some(asking);
        self.after(2 * SEC, Ev::FailsafeLimit { n, inc, ask });
    }

    pub fn failsafe_asked(&mut self, n: usize, inc: u32, ask: u64, to: usize) {
        if !self.answers_rest(to) || !self.net.ok(Plane::Agent, to, n) {
            return;
        }
        let at = self.local(to);
        let name = self.names[n].clone();
        let forgets = self.has(Mutation::FailsafeForgotten);
        let agent = self.agent(to);
        let accepted = proto::core::failsafe::answer(&agent.o, &agent.m, &agent.s, &name).is_ok();
        if accepted && !forgets {
            agent.o.failsafe_caller = Some(FailsafeCaller {
                at,
                conn_url: conn_url(&name),
                api_url: api_url(&name),
                name,
                slots: BTreeMap::new(),
            });
        }
        let wait = self.net.latency(Plane::Agent, &mut self.rng);
        self.after(
            wait,
            Ev::FailsafeReply {
                n,
                inc,
                ask,
                accepted,
            },
        );
    }

    pub fn failsafe_answered(&mut self, n: usize, ask: u64, accepted: bool) {
        let hasty = self.has(Mutation::FailsafeMajority);
        let Some(asking) = self.agent(n).failsafe.as_mut().filter(|a| a.id == ask) else {
            return;
        };
        // Each answer counts once; which peer gave it does not matter.
        asking.left.pop_first();
        if accepted && !asking.left.is_empty() && !hasty {
            return;
        }
        let sent_at = asking.at;
        self.agent(n).failsafe = None;
        let result = TaskResult::Failsafe { accepted, sent_at };
        self.task_done(n, Task::AskFailsafe, result, None);
    }

    pub(super) fn ask_lineage(&mut self, n: usize, leader: MemberName, upstream: &Upstream) {
        self.begin(n, Task::Lineage);
        let inc = self.inc(n);
        let source = Self::upstream_node(upstream).filter(|s| *s < self.nodes.len());
        let up = source.filter(|s| {
            self.net.both(Plane::Pg, n, *s)
                && self.nodes[*s].powered
                && self.nodes[*s].frozen == 0
                && self.nodes[*s].pg.run == super::super::postgres::Run::Running
        });
        let wait = self.rng.u64(5..40) * MS;
        let Some(source) = up else {
            return self.after(
                wait + SEC,
                Ev::Lineage {
                    n,
                    inc,
                    lineage: None,
                },
            );
        };
        let disk = &self.nodes[source].disk;
        let lineage = Lineage {
            leader,
            at: self.local(n) + super::super::clock::dur(wait),
            is_primary: !self.nodes[source].pg.in_recovery,
            system_id: SystemId(disk.system),
            history: self.history(disk.branch),
        };
        let lineage = Some(Box::new(lineage));
        self.after(wait, Ev::Lineage { n, inc, lineage });
    }

    pub fn lineage_came(&mut self, n: usize, lineage: Option<Lineage>) {
        let result = match lineage {
            Some(lineage) => {
                self.agent(n).o.lineage = Some(lineage);
                TaskResult::Done
            }
            None => TaskResult::Failed("the server did not answer".into()),
        };
        self.task_done(n, Task::Lineage, result, None);
    }
}
