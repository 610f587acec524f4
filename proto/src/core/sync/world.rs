//! A small world in which the steps of both synchronous modes are tried.

use super::*;
use crate::config::SyncMode;
use crate::core::observation::WalSender;
use crate::dcs::{MemberEntry, MemberRecord};
use crate::ids::{LeaseId, Revision, STRICT_PLACEHOLDER};
use crate::wal::Lsn;
use serde_json::{Value, json};

/// A primary `p`, its standbys, `/sync` and `synchronous_standby_names`, with PostgreSQL obeying at
/// once. Time passes and WAL flows only when told.
#[derive(Clone)]
pub(crate) struct World {
    pub(crate) now: MonoTime,
    pub(crate) view: ClusterView,
    pub(crate) sample: SqlSample,
    pub(crate) written: String,
    pub(crate) in_flight: BTreeSet<Task>,
    pub(crate) config: ClusterConfig,
    pub(crate) memory: SyncMemory,
}

pub(crate) fn world(config: Value, standbys: &[&str]) -> World {
    let config = config.as_object().cloned().unwrap_or_default();
    let mut world = World {
        now: MonoTime(0),
        view: ClusterView::default(),
        sample: SqlSample {
            flush_lsn: Lsn(1000),
            ..SqlSample::default()
        },
        written: String::new(),
        in_flight: BTreeSet::new(),
        config: ClusterConfig::parse(&config),
        memory: SyncMemory::default(),
    };
    for name in ["p"].iter().chain(standbys) {
        world.member(name, json!({}));
    }
    for name in standbys {
        world.connect(name);
    }
    world.pass(SETTLE_TIME);
    world
}

impl World {
    pub(crate) fn member(&mut self, name: &str, tags: Value) {
        let record = MemberRecord {
            state: Some("running".into()),
            tags: tags.as_object().cloned().unwrap_or_default(),
            ..MemberRecord::default()
        };
        let entry = MemberEntry {
            record,
            lease: LeaseId(1),
            modified: Revision(1),
        };
        self.view.members.insert(name.into(), entry);
    }

    pub(crate) fn connect(&mut self, name: &str) {
        self.sample.wal_senders.push(WalSender {
            application_name: name.into(),
            state: "streaming".into(),
            flush_lsn: self.sample.flush_lsn,
            write_lsn: self.sample.flush_lsn,
            replay_lsn: self.sample.flush_lsn,
            ..WalSender::default()
        });
        self.states();
    }

    pub(crate) fn lose(&mut self, name: &str) {
        self.sample
            .wal_senders
            .retain(|s| s.application_name != name);
        self.states();
    }

    pub(crate) fn sender(&mut self, name: &str) -> &mut WalSender {
        self.sample
            .wal_senders
            .iter_mut()
            .find(|s| s.application_name == name)
            .expect("is connected")
    }

    /// What PostgreSQL shows as `sync_state`.
    pub(crate) fn states(&mut self) {
        let names = parse_names(&self.sample.synchronous_standby_names).expect("our own");
        let mut left = names.count;
        for sender in &mut self.sample.wal_senders {
            sender.sync_state = "async".into();
        }
        for name in names.names {
            for sender in self.sample.wal_senders.iter_mut() {
                if sender.application_name.eq_ignore_ascii_case(&name) {
                    let sync = if left > 0 { "sync" } else { "potential" };
                    let state = if names.form == Form::Any {
                        "quorum"
                    } else {
                        sync
                    };
                    sender.sync_state = state.into();
                    left = left.saturating_sub(1);
                }
            }
        }
    }

    pub(crate) fn key(&mut self, standbys: &[&str], quorum: u32) {
        self.view.sync = SyncRecord {
            leader: Some("p".into()),
            standbys: standbys.iter().map(|s| (*s).to_owned()).collect(),
            quorum,
            modified: Some(Revision(1)),
        };
    }

    pub(crate) fn names(&mut self, names: &str) {
        self.written = names.into();
        self.sample.synchronous_standby_names = names.into();
        self.states();
    }

    pub(crate) fn pass(&mut self, time: Duration) {
        self.now = self.now + time;
    }

    /// WAL is written and reaches everybody.
    pub(crate) fn flow(&mut self) {
        self.sample.flush_lsn.0 += 100;
        for sender in &mut self.sample.wal_senders {
            sender.flush_lsn = self.sample.flush_lsn;
        }
    }

    /// One step of the mode that is configured.
    pub(crate) fn step(&mut self) -> SyncStep {
        let me = "p".into();
        let mut memory = self.memory.clone();
        let step_of_mode = match self.config.synchronous_mode {
            SyncMode::Quorum => crate::core::quorum::step_quorum,
            SyncMode::On | SyncMode::Off => step_on,
        };
        let step = step_of_mode(
            &SyncInput {
                now: self.now,
                me: &me,
                view: &self.view,
                sample: &self.sample,
                written: &self.written,
                in_flight: &self.in_flight,
                config: &self.config,
            },
            &mut memory,
        );
        self.memory = memory;
        step
    }

    pub(crate) fn apply(&mut self, step: &SyncStep) {
        match step {
            SyncStep::WriteKey { standbys, quorum } => {
                let standbys: Vec<&str> = standbys.iter().map(String::as_str).collect();
                self.key(&standbys, *quorum);
            }
            SyncStep::SetNames(names) => self.names(&names.clone()),
            SyncStep::Wait(_) | SyncStep::DeleteKey | SyncStep::Settled => {}
        }
        if self.config.synchronous_mode == SyncMode::On {
            self.assert_key_is_waited_for();
        }
    }

    /// The invariant of the module: who is in the key is waited for.
    pub(crate) fn assert_key_is_waited_for(&self) {
        let names = parse_names(&self.sample.synchronous_standby_names).expect("our own");
        for standby in &self.view.sync.standbys {
            let listed = names.names.contains(standby);
            let all = usize::try_from(names.count).expect("small") >= names.names.len();
            let blocked = names.names == [STRICT_PLACEHOLDER];
            assert!(
                blocked || (listed && all),
                "{standby} of {:?} in {names:?}",
                self.view.sync
            );
        }
    }

    /// Steps until nothing more happens, with WAL flowing after each; returns what was done.
    pub(crate) fn run(&mut self) -> Vec<SyncStep> {
        let mut done = Vec::new();
        for _ in 0..60 {
            let step = self.step();
            self.apply(&step);
            self.flow();
            match step {
                SyncStep::Settled | SyncStep::Wait(SyncWait::NoStandby) => return done,
                SyncStep::Wait(_) => self.pass(Duration::from_millis(200)),
                step => done.push(step),
            }
        }
        panic!("no end: {done:?}");
    }
}
