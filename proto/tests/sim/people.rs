//! What people do: the configuration, requests, keys deleted or written by hand, and what an operator does
//! where the cluster leaves it to one.

use super::faults::Kind;
use super::postgres::Disk;
use super::world::World;
use proto::core::observation::{DataDir, ReinitWish};
use proto::dcs::txn::{Op, Txn};
use proto::dcs::{FailoverRecord, Key};
use proto::ids::LeaseId;
use serde_json::Value;

/// An identifier that no cluster of the simulator has.
const STRANGER: &str = "7999999999999999999";
const RUBBISH: &str = "{";

impl World {
    fn write_by_hand(&mut self, op: Op) {
        self.commit_to_etcd(None, &Txn::always(vec![op]), LeaseId(0));
    }

    pub fn delete(&mut self, key: Key) {
        self.write_by_hand(Op::Delete(key));
        self.key_taken();
    }

    /// Overwrites `/initialize` with the identifier of another cluster, and sets it right again.
    pub fn write_system(&mut self, begins: bool) {
        let now = self.store.get("initialize").map(|e| e.value.as_str());
        let value = match (begins, now) {
            (true, Some(_)) => STRANGER.to_owned(),
            (false, Some(STRANGER)) => self.checks.system().unwrap_or_default(),
            _ => return,
        };
        self.write_by_hand(Op::put(Key::Initialize, value));
    }

    /// Overwrites `/record`, and takes it away again.
    pub fn garble_record(&mut self, begins: bool) {
        match self.store.get("record").map(|e| e.value.as_str()) {
            Some(_) if begins => self.write_by_hand(Op::put(Key::Record, RUBBISH)),
            Some(RUBBISH) => {
                // Nobody knows any more how long the last primary may write: whoever does not look breaks S2.
                self.checks.lease_broken |= self.nodes.iter().any(|node| node.pg.writable());
                self.delete(Key::Record);
            }
            _ => {}
        }
    }

    pub fn ask_reinitialize(&mut self, n: usize, from_leader: bool) {
        self.requests += 1;
        let id = self.requests;
        if let Some(agent) = self.nodes[n].agent.as_mut() {
            agent.o.wishes.reinitialize = Some(ReinitWish { id, from_leader });
        }
    }

    /// Where nothing may be thrown away without a person, a member that does not stream waits for one; and
    /// so does one whose data are of a cluster that lost the race to be made. Who says that it has diverged
    /// is helped at once; who only does not stream is noticed `later`.
    pub fn operator_copies_anew(&mut self, later: bool) {
        for n in 0..self.nodes.len() {
            if later {
                self.empty_a_stranger(n);
            }
            let node = &self.nodes[n];
            let streams = node.pg.conn.is_some() || node.pg.writable();
            // A promotion by hand that lost power before its first record leaves a history that no position shows.
            let by_hand =
                later && self.checks.by_hand.contains_key(&n) && !self.differs_in_number(n);
            let asks = (!self.wipe || by_hand)
                && !streams
                && node.agent.as_ref().is_some_and(|a| {
                    let rule = a.m.last_rule.as_ref();
                    let stuck =
                        rule == "diverged" || later && matches!(rule, "following" | "wait-recopy");
                    let asked = a.o.wishes.reinitialize.as_ref();
                    stuck && asked.is_none_or(|wish| a.m.reinit_wish_done == Some(wish.id))
                });
            if asks {
                self.story.reach("operator-copies-anew");
                self.ask_reinitialize(n, true);
            }
        }
    }

    /// It has the number of the primary's timeline with another history: that its own agent can tell.
    fn differs_in_number(&self, n: usize) -> bool {
        let Some(primary) = self.primary() else {
            return false;
        };
        let branch = |n: usize| self.nodes[n].disk.branch;
        let (ours, theirs) = (branch(n), branch(primary));
        let number = |b: usize| self.branches[b].tli;
        number(ours) == number(theirs) && self.history(ours) != self.history(theirs)
    }

    fn empty_a_stranger(&mut self, n: usize) {
        let node = &self.nodes[n];
        let ours = self.checks.system() == Some(node.disk.system.to_string());
        let never_ours = !self.commits.iter().any(|c| c.strict && c.node == n);
        // Its agent has ended beside a cluster that others have made, and touches nothing.
        let left = self.primary().is_some() && !node.pg.writable();
        let idle = !node.pg.lives() || left;
        if node.disk.dir == DataDir::Initialised && !ours && never_ours && idle {
            self.story.reach("operator-empties-directory");
            self.kill_postgres(n, 0);
            self.nodes[n].disk = Disk::empty();
        }
    }

    pub fn set_config(&mut self, key: &str, value: Value) {
        // Where etcd has lost it, an operator writes the whole anew.
        let stored = self.store.get("config");
        let stored = stored.and_then(|entry| serde_json::from_str(&entry.value).ok());
        let mut doc: serde_json::Map<String, Value> = stored.unwrap_or_else(|| self.doc.clone());
        doc.insert(key.to_owned(), value);
        let was_paused = self.config.pause;
        self.config = proto::config::ClusterConfig::parse(&doc);
        self.doc.clone_from(&doc);
        if was_paused && !self.config.pause {
            self.pause_ended();
        }
        let put = Op::put(Key::Config, Value::Object(doc).to_string());
        self.commit_to_etcd(None, &Txn::always(vec![put]), LeaseId(0));
    }

    /// What `POST /switchover` and `/failover` write.
    pub fn ask_switchover(&mut self, kind: Kind, to: usize) {
        let Some(leader) = self.store.get("leader").map(|e| e.value.clone()) else {
            return;
        };
        let candidate = self.names[to].clone();
        if candidate.as_str() == leader {
            return;
        }
        let sync = self.config.is_synchronous();
        let value = match kind {
            // Without a leader's name any member will do, also one that lacks commits: only where
            // none are promised.
            Kind::Failover if sync => return,
            Kind::Failover => FailoverRecord::value(None, Some(&candidate), None),
            Kind::Switchover => FailoverRecord::value(Some(&leader.as_str().into()), None, None),
            _ => FailoverRecord::value(Some(&leader.as_str().into()), Some(&candidate), None),
        };
        self.asked += 1;
        let txn = Txn::always(vec![Op::put(Key::Failover, value)]);
        self.commit_to_etcd(None, &txn, LeaseId(0));
    }

    /// What an operator has changed may be lost with etcd, and then the members go on as they know it: who sees that
    /// changes it again.
    pub fn operator_changes_again(&mut self) {
        let stored = self.store.get("config");
        let stored = stored.and_then(|entry| serde_json::from_str(&entry.value).ok());
        if stored.is_some_and(|stored: serde_json::Map<String, Value>| stored != self.doc) {
            self.story.reach("operator-changes-again");
            let doc = Value::Object(self.doc.clone()).to_string();
            self.write_by_hand(Op::put(Key::Config, doc));
        }
        let paused = |agent: &super::shell::Agent| agent.s.cluster.pause;
        let seen = self
            .nodes
            .iter()
            .any(|n| n.agent.as_ref().is_some_and(paused));
        if seen && !self.config.pause {
            self.story.reach("operator-resumes-again");
            self.set_config("pause", serde_json::json!(false));
        }
    }

    /// S23: after etcd was lost a person looks who has most, and says so. A timeline that was made by hand does not
    /// count, if there is another.
    pub fn operator_names_the_best(&mut self) {
        let initialize = self.store.get("initialize");
        if self.store.get("leader").is_some() || initialize.is_some_and(|e| e.value.is_empty()) {
            return;
        }
        let place = |n: &usize| {
            let disk = &self.nodes[*n].disk;
            let led = !self.checks.hand_made.contains(&disk.branch);
            (led, self.branches[disk.branch].tli, disk.flush)
        };
        let has_data = |n: &usize| self.nodes[*n].disk.dir == DataDir::Initialised;
        let whole = (0..self.nodes.len()).filter(has_data);
        let Some(best) = whole.max_by_key(place) else {
            return;
        };
        self.story.reach("operator-names-candidate");
        let value = FailoverRecord::value(None, Some(&self.names[best].clone()), None);
        let txn = Txn::always(vec![Op::put(Key::Failover, value)]);
        self.commit_to_etcd(None, &txn, LeaseId(0));
    }
}
