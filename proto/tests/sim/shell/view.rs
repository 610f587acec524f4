//! What the loop knows of etcd: reads, the watch, own commits.

use super::super::clock::{MS, SEC};
use super::super::keeper::{For, Req};
use super::super::mutation::Mutation;
use super::super::reader::Reader;
use super::super::story::Tag;
use super::super::world::{Ev, World};
use super::{Agent, BACKWARD_READS_MAX, CHECK_AGAIN, CHECK_EVERY, STARVED_AFTER};
use proto::config::ClusterConfig;
use proto::core::observation::{HeldRecord, RecordSeen};
use proto::dcs::txn::Txn;
use proto::dcs::{ClusterView, Key, RecordState, Snapshot};
use proto::ids::{LeaseId, Revision};
use proto::time::MonoTime;
use std::rc::Rc;
use std::time::Duration;

impl World {
    pub(super) fn list(&mut self, n: usize) {
        self.agent(n).watched.gap();
        self.request(n, Req::Read, 3 * SEC, For::List);
    }

    pub fn list_failed(&mut self, n: usize) {
        let inc = self.inc(n);
        self.after(200 * MS, Ev::Check { n, inc });
    }

    pub fn listed(&mut self, n: usize, snapshot: &Snapshot, log: usize) {
        let now = self.local(n);
        self.watches += 1;
        let watch = self.watches;
        let agent = self.agent(n);
        // One read of the past is nothing; many in a row mean that the store went back (S23).
        let same = snapshot.cluster_id == agent.cluster_id;
        let back = same && snapshot.revision < agent.watched.upto();
        agent.backward = if back { agent.backward + 1 } else { 0 };
        if back && agent.backward < BACKWARD_READS_MAX {
            self.cover("read-of-the-past");
            return self.list_failed(n);
        }
        agent.backward = 0;
        if !same || back {
            agent.cluster_id = snapshot.cluster_id;
            agent.alive_at = None;
            agent.o.dcs.view = None;
            agent.o.dcs.held = None;
            agent.o.dcs.record_seen = None;
            self.tell(n, Tag::Etcd, || "etcd is another cluster".into());
            let inc = self.inc(n);
            self.decide(n);
            if !self.lives(n, inc) {
                return;
            }
        }
        let agent = self.agent(n);
        agent.watch = watch;
        agent.watch_broken = false;
        agent.cursor = log;
        agent.watched.list(snapshot.clone(), same && !back);
        agent.o.dcs.view = Some(ClusterView::read(agent.watched.snapshot()));
        agent.alive_at = Some(now);
        let inc = self.inc(n);
        self.after(CHECK_EVERY, Ev::Check { n, inc });
        // What was committed while the watch was being opened comes at once.
        self.tell_watches();
        self.new_view(n, now);
    }

    pub fn watch_brings(&mut self, n: usize, watch: u32, upto: usize) {
        let now = self.local(n);
        if !self.agent(n).watched.is_live() || self.agent(n).watch != watch {
            return;
        }
        let from = self.agent(n).cursor;
        let Some(changes) = self.store.log.get(from..upto.max(from)) else {
            return;
        };
        let changes = changes.to_vec();
        let Self { nodes, reader, .. } = self;
        let Some(agent) = nodes[n].agent.as_mut() else {
            return;
        };
        agent.cursor = upto.max(from);
        let mut news = false;
        for change in changes {
            let changed = match &change.entry {
                Some(entry) => agent.watched.put(&change.suffix, entry),
                None => agent.watched.delete(&change.suffix, change.revision),
            };
            if changed {
                news = true;
                patch(agent, &change.suffix, reader);
            }
        }
        if news {
            self.new_view(n, now);
        }
    }

    /// Our own commit, folded in before the watch brings it.
    pub fn fold_own(&mut self, n: usize, txn: &Txn, session: LeaseId, revision: Revision) {
        let now = self.local(n);
        let Self { nodes, reader, .. } = self;
        let Some(agent) = nodes[n].agent.as_mut().filter(|_| !txn.then.is_empty()) else {
            return;
        };
        if !agent.watched.own(txn, session, revision) {
            return;
        }
        for op in &txn.then {
            patch(agent, &op.key().to_string(), reader);
        }
        self.new_view(n, now);
    }

    pub(super) fn new_view(&mut self, n: usize, now: MonoTime) {
        let hasty = self.has(Mutation::WaitHalved);
        let agent = self.agent(n);
        let Some(view) = agent.o.dcs.view.as_mut() else {
            return;
        };
        view.revision = agent.watched.snapshot().revision;
        view.cluster_id = agent.watched.snapshot().cluster_id;
        let dcs = &mut agent.o.dcs;
        dcs.watching_since.get_or_insert(now);
        match dcs.view.as_ref().and_then(|v| v.record.as_ref()) {
            Some(entry)
                if dcs
                    .record_seen
                    .is_some_and(|s| s.modified == entry.modified) => {}
            Some(entry) => {
                let early = Duration::from_millis(if hasty { entry.record.w_ms / 2 } else { 0 });
                dcs.record_seen = Some(RecordSeen {
                    modified: entry.modified,
                    since: now - early,
                });
            }
            None => dcs.record_seen = None,
        }
        self.adopt_own_record(n);
        self.dynamic_may_have_changed(n);
        self.decide(n);
    }

    pub(super) fn adopt_own_record(&mut self, n: usize) {
        let me = self.names[n].clone();
        let session = self.nodes[n]
            .guard
            .as_ref()
            .map(super::super::guardian::Guard::session)
            .unwrap_or_default();
        let agent = self.agent(n);
        let Some(entry) = agent.o.dcs.view.as_ref().and_then(|v| v.record.as_ref()) else {
            return;
        };
        let record = entry.record.clone();
        let modified = entry.modified;
        let ours =
            record.owner == me && record.session == session && record.state == RecordState::Held;
        if !ours
            || agent
                .o
                .dcs
                .held
                .is_some_and(|held| held.epoch == record.epoch)
        {
            return;
        }
        let claimed = agent
            .claimed
            .as_ref()
            .filter(|(c, _)| c.epoch == record.epoch);
        let inherited = agent.inherited.filter(|held| held.epoch == record.epoch);
        let sent_at = claimed
            .map(|(_, at)| *at)
            .or(inherited.map(|held| held.sent_at));
        let Some(sent_at) = sent_at else { return };
        let held = HeldRecord {
            epoch: record.epoch,
            sent_at,
            length: Duration::from_millis(record.l_ms),
            modified,
            seq: record.seq,
        };
        self.hold_record(n, record, held);
        self.cover("own-record-adopted");
    }

    pub(super) fn dynamic_may_have_changed(&mut self, n: usize) {
        let agent = self.agent(n);
        let Some(view) = agent.o.dcs.view.as_ref() else {
            return;
        };
        // A revision says nothing beside that of another etcd.
        let seen = view.config.modified().map(|at| (agent.cluster_id, at));
        if seen == agent.config_seen {
            return;
        }
        agent.config_seen = seen;
        if let Some(document) = view.config.document() {
            agent.s.cluster = ClusterConfig::parse(document);
            agent.s.dynamic = document.clone();
        }
    }

    pub fn check_watch(&mut self, n: usize) {
        if self.agent(n).watched.is_live() {
            self.request(n, Req::Header, SEC, For::Check);
        } else {
            self.list(n);
        }
    }

    pub fn checked(&mut self, n: usize, world: u64, revision: Revision) {
        let now = self.local(n);
        let inc = self.inc(n);
        let agent = self.agent(n);
        let same = world == agent.cluster_id;
        if same && !agent.watch_broken && agent.watched.upto() == revision {
            agent.behind_since = None;
            agent.alive_at = Some(now);
            self.after(CHECK_EVERY, Ev::Check { n, inc });
            return self.decide(n);
        }
        let since = *agent.behind_since.get_or_insert(now);
        // A connection that was cut says so soon after packets pass again.
        let starved = now.since(since) >= STARVED_AFTER || agent.watch_broken || !same;
        if starved {
            agent.behind_since = None;
            self.lose_watch(n);
        } else {
            self.after(CHECK_AGAIN, Ev::Check { n, inc });
        }
    }

    pub fn lose_watch(&mut self, n: usize) {
        let agent = self.agent(n);
        agent.watched.gap();
        agent.alive_at = None;
        agent.o.dcs.watching_since = None;
        agent.o.dcs.record_seen = None;
        self.tell(n, Tag::Etcd, || "the watch is lost".into());
        self.list(n);
        self.decide(n);
    }

    pub fn check_unanswered(&mut self, n: usize) {
        let inc = self.inc(n);
        self.after(CHECK_AGAIN, Ev::Check { n, inc });
    }
}

/// Takes one key of the snapshot over into the view, as reading the whole would.
fn patch(agent: &mut Agent, suffix: &str, reader: &Reader) {
    let Some(view) = agent.o.dcs.view.as_mut() else {
        return;
    };
    let Some(key) = Key::parse(suffix) else {
        return;
    };
    let fresh = match agent.watched.snapshot().entries.get(suffix) {
        Some(entry) => reader.read(suffix, entry),
        None => Rc::default(),
    };
    match key {
        Key::Leader => view.leader = fresh.leader.clone(),
        Key::Member(name) => match fresh.members.get(&name) {
            Some(entry) => {
                view.members.insert(name, entry.clone());
            }
            None => {
                view.members.remove(&name);
            }
        },
        Key::Initialize => view.initialize = fresh.initialize.clone(),
        Key::Config => view.config = fresh.config.clone(),
        Key::Status => view.status = fresh.status.clone(),
        Key::LegacyOptime => {}
        Key::History => view.history = fresh.history.clone(),
        Key::Failover => {
            view.failover = fresh.failover.clone();
            view.failover_modified = fresh.failover_modified;
        }
        Key::Sync => view.sync = fresh.sync.clone(),
        Key::Failsafe => view.failsafe = fresh.failsafe.clone(),
        Key::Record => {
            view.record = fresh.record.clone();
            view.record_garbled = fresh.record_garbled;
        }
        Key::Fence(name) => match fresh.fences.get(&name) {
            Some(entry) => {
                view.fences.insert(name, entry.clone());
            }
            None => {
                view.fences.remove(&name);
            }
        },
    }
    view.garbled.retain(|g| g.key != suffix);
    view.garbled.extend(fresh.garbled.iter().cloned());
}
