//! What a [`Mutation`] does to the transactions of the simulated agent.

use super::mutation::Mutation;
use super::world::World;
use proto::core::job::Job;
use proto::core::observation::{Observation, PeerAnswer, PeerStatus, Sql, Task};
use proto::dcs::txn::{Compare, Op, Txn};
use proto::dcs::{Key, LeaseRecord};
use proto::ids::{Epoch, MemberName};
use proto::time::MonoTime;
use proto::wal::{Lsn, Timeline};

fn puts(txn: &Txn, key: &Key) -> bool {
    let written = |op: &Op| matches!(op, Op::Put { .. }) && op.key() == key;
    txn.then.iter().any(written)
}

/// Changes the value that is written to a key.
fn rewrite(txn: &mut Txn, wanted: &Key, change: impl Fn(&str) -> Option<String>) {
    for op in &mut txn.then {
        if let Op::Put { key, value, .. } = op
            && key == wanted
            && let Some(changed) = change(value)
        {
            *value = changed;
        }
    }
}

/// What a standby goes by that needs one vote less than `/sync` asks for.
pub fn one_vote_less(o: &Observation) -> Observation {
    let mut seen = o.clone();
    let standby = matches!(&o.postgres.sql, Sql::Sample(sample) if sample.in_recovery);
    if let Some(view) = seen
        .dcs
        .view
        .as_mut()
        .filter(|_| standby && o.dcs.held.is_none())
    {
        view.sync.quorum = view.sync.quorum.saturating_sub(1);
    }
    seen
}

/// The epoch that a claimant would have had to leave behind.
fn same_epoch(value: &str) -> Option<String> {
    let mut record: LeaseRecord = serde_json::from_str(value).ok()?;
    record.epoch = Epoch(record.epoch.0.saturating_sub(1));
    Some(record.to_value())
}

/// A leader's answer of before, as if it had everything.
pub fn pretend_as_much(o: &mut Observation, me: &MemberName) {
    let leader = o.dcs.view.as_ref().and_then(|view| view.leader_name());
    let Some(leader) = leader.filter(|leader| *leader != me).cloned() else {
        return;
    };
    let Sql::Sample(sample) = &o.postgres.sql else {
        return;
    };
    let status = PeerStatus {
        timeline: sample.timeline,
        position: Lsn(u64::MAX),
        ..PeerStatus::default()
    };
    o.peers.insert(
        leader,
        PeerAnswer {
            asked_at: MonoTime::default(),
            status: Some(status),
        },
    );
}

impl World {
    pub fn has(&self, mutation: Mutation) -> bool {
        self.mutation == Some(mutation)
    }

    /// What the loop commits.
    pub fn mistaken(&self, task: Task, mut txn: Txn) -> Txn {
        let Some(mutation) = self.mutation else {
            return txn;
        };
        let claims = puts(&txn, &Key::Leader);
        let native = puts(&txn, &Key::Record);
        match (mutation, task) {
            (Mutation::ClaimWithoutCompare, Task::Lock) if claims && native => txn.when.clear(),
            (Mutation::LeaderWithoutCompare, Task::Lock) if claims && !native => txn.when.clear(),
            (Mutation::EpochReused, Task::Lock) if claims => {
                rewrite(&mut txn, &Key::Record, same_epoch);
            }
            (Mutation::SyncWithoutCompare, Task::Sync)
            | (Mutation::PromiseWithoutCompare, Task::Fence)
            | (Mutation::TimelineWithoutCompare, Task::History)
            | (Mutation::InitializeWithoutCompare, Task::Initialize) => txn.when.clear(),
            (Mutation::InitializeWithoutCompare, Task::Lock) if puts(&txn, &Key::Initialize) => {
                txn.when.clear();
            }
            (Mutation::FenceNotCompared, Task::Lock) => {
                let promise = |c: &Compare| matches!(c, Compare::Unchanged(Key::Fence(_), _));
                if txn.when.iter().any(promise) {
                    txn.when
                        .retain(|c| !promise(c) && !matches!(c, Compare::Unchanged(Key::Sync, _)));
                }
            }
            _ => {}
        }
        txn
    }

    /// What a promotion is told.
    pub fn mistaken_promotion(&mut self, n: usize, mut job: Job) -> Job {
        if let Job::Promote { above, .. } = &mut job {
            if self.has(Mutation::NamesEmptyAtPromotion) {
                self.load_names(n, "");
            }
            if self.has(Mutation::TimelineWithoutCompare) {
                *above = Timeline::FIRST;
            }
        }
        job
    }

    /// What the keeper commits.
    pub fn mistaken_renewal(&self, mut txn: Txn) -> Txn {
        if self.has(Mutation::RenewWithoutCompare) {
            txn.when.clear();
        }
        txn
    }

    pub fn mistaken_withdrawal(&self, mut txn: Txn) -> Txn {
        if self.has(Mutation::WithdrawWithoutCompare) {
            txn.when.clear();
        }
        txn
    }
}
